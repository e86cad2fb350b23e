"""Every kind of path that may lead to photos, and what may lie in the way."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import unicodedata
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from pomona.dataset import find_photos, load_dataset, split_dataset
from pomona.errors import DataError
from pomona.files import MANIFEST_NAME, cache_folder

if TYPE_CHECKING:
    from pomona.dataset import Dataset


def write_photo(path: Path, content: str = "") -> Path:
    """Write bytes that begin like a JPEG; the content makes them differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff\xe0" + (content or str(path)).encode("utf-8", "surrogateescape"))
    return path


def write_tree(root: Path, *names: str) -> Path:
    for name in names:
        write_photo(root / name)
    return root


def labelled(dataset: Dataset) -> dict[str, str]:
    return {p.name: "/".join(dataset.tree.paths[p.label]) if p.label >= 0 else "?" for p in dataset.photos}


# --- folders ----------------------------------------------------------------------------------------------------------


def test_files_are_told_by_content(tmp_path: Path) -> None:
    write_tree(tmp_path, "Apple/1.jpg", "Pear/photo-without-suffix", "Pear/2.png")
    for hidden in (".git/x.jpg", "__MACOSX/Apple/1.jpg", "Apple/.1.jpg", "@eaDir/1.jpg"):
        write_photo(tmp_path / hidden)
    (tmp_path / "classes.csv").write_text("a,b")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "Apple" / "Thumbs.db").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "Pear" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "Apple" / "empty").touch()
    (tmp_path / "Apple" / "empty.jpg").touch()
    (tmp_path / "Apple" / "page.JPG").write_text("<html>")
    (tmp_path / "Apple" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "Apple" / "round.png").symlink_to("round.png")
    dataset = load_dataset(tmp_path)
    assert sorted(labelled(dataset)) == ["Apple/1.jpg", "Pear/2.png", "Pear/photo-without-suffix"]
    assert dataset.n_ignored == 5
    assert {one.name: one.fault for one in dataset.skipped} == {
        "Apple/empty.jpg": "empty",
        "Apple/gone.png": "not_found",
        "Apple/page.JPG": "not_an_image",
        "Apple/round.png": "not_found",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_and_sockets_never_hang(tmp_path: Path) -> None:
    write_tree(tmp_path, "Apple/1.jpg", "Pear/1.jpg")
    os.mkfifo(tmp_path / "Apple" / "pipe.jpg")
    os.mkfifo(tmp_path / "Apple" / "pipe")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.path.relpath(tmp_path / "Apple" / "socket.jpg"))
        dataset = load_dataset(tmp_path)
    assert [one.name for one in dataset.skipped] == ["Apple/pipe.jpg", "Apple/socket.jpg"]
    assert dataset.n_photos == 2
    assert find_photos([tmp_path / "Pear", tmp_path / "Apple" / "pipe"])[-1].name == "pipe"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    write_tree(tmp_path, "Apple/1.jpg", "Pear/1.jpg", "Pear/2.jpg", "Kiwi/1.jpg")
    (tmp_path / "Pear" / "2.jpg").chmod(0)
    (tmp_path / "Kiwi").chmod(0)
    dataset = load_dataset(tmp_path)
    (tmp_path / "Kiwi").chmod(0o700)
    assert {one.name: one.fault for one in dataset.skipped} == {"Kiwi": "no_permission", "Pear/2.jpg": "no_permission"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    pool, root = tmp_path / "pool", tmp_path / "data"
    write_tree(pool, "x.jpg", "Kiwi/1.jpg")
    write_tree(root, "Zebra/1.jpg", "Apple/1.jpg")
    (root / "Aardvark").symlink_to(root / "Zebra")
    (root / "Apple" / "loop").symlink_to(root)
    (root / "Kiwi").symlink_to(pool / "Kiwi")
    (root / "Apple" / "0.jpg").symlink_to(root / "Zebra" / "1.jpg")
    (root / "Apple" / "x.jpg").symlink_to(pool / "x.jpg")
    dataset = load_dataset(root)
    assert list(labelled(dataset)) == ["Apple/1.jpg", "Apple/x.jpg", "Kiwi/1.jpg", "Zebra/1.jpg"]


def test_odd_names(tmp_path: Path) -> None:
    write_tree(tmp_path, "苹果/照片 1.jpg", "🍐/new\nline.jpg", unicodedata.normalize("NFD", "Açaí/é.jpg"))
    write_photo(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/\xff.jpg")))
    dataset = load_dataset(tmp_path)
    assert set(dataset.tree.names) == {"苹果", "🍐", "Açaí", "caf\ufffd"}
    for photo in dataset.photos:
        assert photo.name.isprintable()
        assert photo.name.encode() == unicodedata.normalize("NFC", photo.name).encode()
        assert photo.path.read_bytes().startswith(b"\xff\xd8")
    assert len(dataset.fingerprint) == 64


def test_progress_counts_every_file(tmp_path: Path) -> None:
    write_tree(tmp_path, *(f"{label}/{row}.jpg" for label in ("Apple", "Pear") for row in range(40)))
    calls: list[tuple[int, int]] = []
    load_dataset(tmp_path, on_photo=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 80) for done in range(1, 81)]


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    write_photo(tmp_path / "one.jpg")
    (tmp_path / "model.bin").write_bytes(bytes(100))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_text("text")
    (tmp_path / "notes.md").write_text("# My fruit photos\n")
    for name, message in {
        "nowhere": "there is nothing",
        "one.jpg": "got one",
        "model.bin": "another kind",
        "bad": "no photo found: 0 files that are no photos and 1 that cannot be used, the first: x.jpg",
        "notes.md": "row 1: wanted a list",
        "*.tif": "nothing matches",
    }.items():
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path / name)
    with pytest.raises(DataError, match="empty"):
        load_dataset("")
    with pytest.raises(DataError, match="empty"):
        load_dataset([])


def write_run(folder: Path) -> Path:
    """Write what tells a run folder, a picture of its own and one in a folder below."""
    write_tree(folder, "confusion_matrix.png", "below/1.png")
    (folder / MANIFEST_NAME).write_text("{}")
    return folder


def test_folder_of_a_run_is_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, "flat/Apple/1.jpg", "flat/Pear/1.jpg")
    write_run(tmp_path / "flat" / "run")
    monkeypatch.chdir(tmp_path)
    photos = {"Apple/1.jpg": "Apple", "Pear/1.jpg": "Pear"}
    walked = load_dataset("flat")
    assert labelled(walked) == photos
    assert walked.n_ignored == 3
    for data in ("flat/*/*", "flat/*", "flat/**/*g", ["flat/*/*", "flat/run/*/*", "flat/run"]):
        assert labelled(load_dataset(data)) == photos, data
    assert load_dataset("flat/*/*").n_ignored == 2
    assert labelled(load_dataset(["flat/*/*.jpg", "flat/run/confusion_matrix.png"])) == photos
    write_tree(tmp_path, "flat/run/photos/Apple/1.jpg", "flat/run/photos/Pear/1.jpg")
    assert labelled(load_dataset("flat/run/photos/*/*")) == photos
    for data in ("flat/run", "flat/run/*.png", "flat/run/*/*"):
        with pytest.raises(DataError, match=r"nothing in .*run is taken: it holds pomona.json"):
            load_dataset(data)


def test_pictures_of_a_run_are_predicted_only_when_named_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, "w/1.jpg", "w/deep/2.jpg")
    write_run(tmp_path / "w" / "run")
    monkeypatch.chdir(tmp_path)

    def found(item: str) -> list[str]:
        return [path.as_posix() for path in find_photos(item)]

    assert found("w") == ["w/1.jpg", "w/deep/2.jpg"]
    assert found("w/**/*") == ["w/1.jpg", "w/deep/2.jpg"]
    assert found("w/*") == ["w/1.jpg", "w/deep/2.jpg"]
    assert found("w/*/*") == ["w/deep/2.jpg"]
    assert found("w/run") == []
    assert found("w/run/confusion_matrix.png") == ["w/run/confusion_matrix.png"]


# --- tables, lists, patterns, zips ------------------------------------------------------------------------------------


def test_table(tmp_path: Path) -> None:
    write_tree(tmp_path, "a, 1.jpg", "sub/b.jpg", "sub/c.jpg", "d")
    (tmp_path / "x").write_text("no image")
    table = tmp_path / "photos.csv"
    table.write_text(
        "\ufeffLabel,note,file_name,split,group\r\n"
        'Fruit/Apple,"good, ""ripe""","a, 1.jpg",train,tree 1\r\n'
        "Fruit/Pear,,sub\\b.jpg,Validation,\r\n\r\n"
        "Box,,./sub/c.jpg,training,tree 1\r\n"
        "Fruit/Pear,,d,train,\r\n"
        "Box,,gone.jpg,train,\r\n"
        ",,d,,\r\n"
        "Box,,x,train,\r\n"
        "Fruit/Pear,again,d,train,\r\n",
        encoding="utf-8",
    )
    dataset = load_dataset(table)
    assert labelled(dataset) == {
        "a, 1.jpg": "Fruit/Apple",
        "d": "Fruit/Pear",
        "sub/b.jpg": "Fruit/Pear",
        "sub/c.jpg": "Box",
    }
    assert {photo.name: photo.split for photo in dataset.photos}["sub/b.jpg"] == "val"
    groups = {photo.name: photo.group for photo in dataset.photos}
    assert groups["a, 1.jpg"] == groups["sub/c.jpg"] == "tree 1"
    assert groups["d"] == {photo.name: photo.sha256 for photo in dataset.photos}["d"]
    assert [(one.name, one.fault) for one in dataset.skipped] == [
        ("d", "no_label"),
        ("gone.jpg", "not_found"),
        ("x", "not_an_image"),
    ]
    assert "row 8" in dataset.skipped[0].detail
    assert dataset.n_photos == 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
def test_table_dialects(tmp_path: Path, encoding: str, delimiter: str) -> None:
    write_tree(tmp_path, "苹.jpg", "b.jpg")
    rows = [("file_name", "label"), ("苹.jpg", "苹果"), ("b.jpg", "Pear")]
    (tmp_path / "t.tsv").write_text("\n".join(delimiter.join(row) for row in rows), encoding=encoding)
    assert load_dataset(tmp_path / "t.tsv").tree.names == ("Pear", "苹果")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1: wanted the columns"),
        ("path,class\na.jpg,Apple", "row 1: wanted the columns file_name,label.*'path,class'"),
        ("file_name,label\na.jpg,Apple\nb.jpg", "row 3: wanted file_name and label"),
        ("file_name,label\n,Apple", "row 2: wanted the path"),
        ("file_name,label,split\na.jpg,Apple,evaluation", "row 2: wanted train, val or test .* 'evaluation'"),
        ('file_name,label\n"a.jpg,Apple\nb.jpg,Pear\n', "row 3: "),
        ('file_name,label\na.jpg,"Apple\nb.jpg,Pear\n', "row 3: "),
        ("file_name,label\na.jpg,\xc4pfel", "row 2: wanted UTF-8"),
        ("file_name,label\ngone.jpg,Apple", "no photo found: .* gone.jpg: .*relative to its folder"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "text",
    ["my a.jpg, 7, 1\nb.jpg, 12, 0\n", "my a.jpg\t7\nb.jpg\t12\n", "file_name,label\nmy a.jpg,7\nb.jpg,12"],
)
def test_list(tmp_path: Path, text: str) -> None:
    write_tree(tmp_path, "my a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text(text)
    assert labelled(load_dataset(tmp_path / "list.txt")) == {"my a.jpg": "7", "b.jpg": "12"}


def test_list_divided_by_spaces(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg  Apple\n\nb.jpg Pear/Green\n")
    assert labelled(load_dataset(tmp_path / "list.txt")) == {"a.jpg": "Apple", "b.jpg": "Pear/Green"}
    (tmp_path / "list.txt").write_text("a.jpg Apple\nmy b.jpg Pear\n")
    with pytest.raises(DataError, match=r"row 2: .*put a comma"):
        load_dataset(tmp_path / "list.txt")


def test_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, "photos/Apple/1.jpg", "photos/Apple/.2.jpg", "photos/Pear/Green/1.png", "photos/Pear/3.jpg")
    monkeypatch.chdir(tmp_path)
    assert labelled(load_dataset("photos/*/*.jpg")) == {"Apple/1.jpg": "Apple", "Pear/3.jpg": "Pear"}
    assert set(labelled(load_dataset("photos/**/*g")).values()) == {"Apple", "Pear", "Pear/Green"}
    assert load_dataset("photos/Apple/*.jpg", min_classes=1).tree.names == ("Apple",)
    assert labelled(load_dataset(["photos/Apple", "photos/Pear/3.jpg"])) == {
        "Apple/1.jpg": "Apple",
        "Pear/3.jpg": "Pear",
    }
    with pytest.raises(DataError, match="name it alone"):
        load_dataset(["photos/Apple", write_photo(tmp_path / "t.csv")])


def write_zip(path: Path, *names: str, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"\xff\xd8\xff" + name[::-1].encode())
    return path


def test_zip(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "data.zip", "d/", "d/train/Apple/1.jpg", "d/train/苹果/1.jpg", "d/val/苹果/2.jpg", "d/val/.x"
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("d/LICENSE", "free")
    before = sorted(tmp_path.iterdir())
    dataset = load_dataset(path)
    assert dataset.tree.names == ("Apple", "苹果")
    assert (len(dataset.part("val").photos), dataset.n_ignored) == (1, 1)
    assert dataset.root.parent == cache_folder() / "zips"
    assert sorted(tmp_path.iterdir()) == before
    unpacked = dataset.root.stat().st_ino
    assert load_dataset(path).n_photos == 3
    assert dataset.root.stat().st_ino == unpacked


@pytest.mark.parametrize("damage", ["cut", "gone", "added", "emptied"])
def test_damaged_unpacked_zip_is_unpacked_again(tmp_path: Path, damage: str) -> None:
    path = write_zip(tmp_path / "data.zip", "Apple/1.jpg", "Pear/1.jpg", "Pear/2.jpg")
    dataset = load_dataset(path)
    photo = dataset.root / "Pear" / "2.jpg"
    if damage == "cut":
        photo.write_bytes(photo.read_bytes()[:5])
    elif damage == "gone":
        photo.unlink()
    elif damage == "added":
        write_photo(dataset.root / "Kiwi" / "1.jpg")
    else:
        shutil.rmtree(dataset.root)
        dataset.root.mkdir()
    assert load_dataset(path) == dataset


def test_zip_is_called_by_its_own_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", "Apple/1.jpg", "Pear/1.jpg")
    dataset = load_dataset(path)
    assert dataset.shown == str(path)
    with pytest.raises(DataError, match="no photo can be spared") as caught:
        split_dataset(dataset)
    assert str(caught.value).startswith(f"{path}: ")


def test_zip_with_names_in_an_unnamed_encoding(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", "ABCD/1.jpg", "EFGHIJ/1.jpg", "KLMN/1.jpg")
    data = path.read_bytes()
    for plain, raw in {b"ABCD": "香蕉".encode("gb2312"), b"EFGHIJ": "苹果".encode(), b"KLMN": b"\x8epfe"}.items():
        data = data.replace(plain + b"/", raw + b"/")
    path.write_bytes(data)
    tree = load_dataset(path).tree
    assert tree.names == ("\u00c4pfe", "苹果", "香蕉")


@pytest.mark.parametrize("name", ["../../evil.jpg", "/evil.jpg", "C:\\evil.jpg", "Apple\\..\\..\\evil.jpg"])
def test_zip_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "data.zip", "Apple/1.jpg", name)
    with pytest.raises(DataError, match="leads outside"):
        load_dataset(path)
    assert not list(cache_folder().rglob("evil.jpg"))


def test_zip_of_plain_bitmaps_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for label, colour in {"Lemon": "yellow", "Lime": "green"}.items():
            Image.new("RGB", (1000, 1000), colour).save(tmp_path / f"{label}.bmp")
            archive.write(tmp_path / f"{label}.bmp", f"{label}/1.bmp")
    assert 200 * path.stat().st_size < 6_000_000
    assert load_dataset(path).tree.names == ("Lemon", "Lime")


def test_zip_that_swells_past_a_gibibyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Apple/1.bmp", bytes(5_000_000))
    # What the zip says of itself decides, before anything is unpacked.
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", 5_000_000), struct.pack("<L", 2**30 + 1)))
    with pytest.raises(DataError, match=r"not safe: wanted at most 1,073,741,824 bytes .* got 1,073,741,825"):
        load_dataset(path)


def test_zips_that_cannot_be_used(tmp_path: Path) -> None:
    damaged = write_zip(tmp_path / "damaged.zip", "Apple/1.jpg", "Pear/1.jpg")
    damaged.write_bytes(damaged.read_bytes().replace(b"\xff\xd8\xffgpj", b"\xff\xd8\xffGPJ"))
    with pytest.raises(DataError, match="damaged"):
        load_dataset(damaged)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(write_zip(tmp_path / "whole.zip", "Apple/1.jpg").read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"):
        load_dataset(cut)
    assert not list((cache_folder() / "zips").glob(".*.partial"))


# --- photos to predict ------------------------------------------------------------------------------------------------


def test_find_photos_keeps_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, "b/10.jpg", "b/9.jpg", "b/deep/er/1.png", "b/.hidden.jpg", "a.jpg", "[1].jpg", "b/odd")
    (tmp_path / "b" / "notes.txt").write_text("notes")
    (tmp_path / "b" / "broken.jpg").touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "loop2").symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path)

    def found(*items: str | Path) -> list[str]:
        return [path.as_posix() for path in find_photos(items)]

    below = ["b/9.jpg", "b/10.jpg", "b/broken.jpg", "b/deep/er/1.png", "b/odd"]
    assert found("gone.jpg", "b", "a.jpg") == ["gone.jpg", *below, "a.jpg"]
    assert found("b/*.jpg") == ["b/9.jpg", "b/10.jpg", "b/broken.jpg"]
    assert found("**/*.jpg") == ["[1].jpg", "a.jpg", "b/9.jpg", "b/10.jpg", "b/broken.jpg"]
    assert found("b/**") == below
    assert found("b/**/*.png", Path("[1].jpg")) == ["b/deep/er/1.png", "[1].jpg"]
    assert found("*.tif", "b/notes.txt") == ["*.tif", "b/notes.txt"]
    assert [path.name for path in find_photos(tmp_path / "b" / "deep")] == ["1.png"]


def test_a_link_in_a_folder_named_with_a_slash_at_its_end(tmp_path: Path) -> None:
    real = write_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").symlink_to(real)
    assert [path.name for path in find_photos([f"{tmp_path / 'photos'}/"])] == ["a.png"]
