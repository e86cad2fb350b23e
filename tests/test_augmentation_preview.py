"""The preview shows each step and the whole list on real photos, in one file that asks for nothing from outside."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pomona.augmentation import PRESETS, Step, augment_pixels, describe_step, parse_augmentation, show_step
from pomona.augmentation_preview import MAX_PAGE_BYTES, preview_augmentation, write_preview
from pomona.backbone import Preprocessing
from pomona.errors import DataError, OptionError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch = pytest.importorskip("torch", reason="augmentation needs torch")
pytest.importorskip("kornia", reason="augmentation needs kornia")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small photos on several threads spend their time waiting for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


LISTS = ("none", "light", "standard", "strong", "erase=1@0.1,colour=0.2")


class _Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[np.ndarray]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2])))) for one in sources]


def _photos(rendered: Path, n_photos: int = 2) -> list[Path]:
    return sorted(rendered.rglob("*.jpg"))[:n_photos]


def _run(*arguments: object, code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-m", "pomona", "augment", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", LISTS)
def test_page_holds_every_step_in_both_languages_and_the_text_to_copy(
    rendered: Path, tmp_path: Path, text: str
) -> None:
    steps = parse_augmentation(text)
    assert write_preview(_photos(rendered), steps, tmp_path / "page.html", n_variants=3, size_px=64) == ()
    page = _Page(tmp_path / "page.html")
    for step in steps:
        for part in (show_step(step), describe_step(step), describe_step(step, "zh")):
            assert part in page.text
    assert f"--augment {text.replace('colour', 'color')}" in page.text
    assert len(page.pictures()) == 2 * (1 + len(steps) + 3)
    assert all(picture.shape == (64, 64, 3) for picture in page.pictures())


def test_page_asks_for_nothing_from_outside(rendered: Path, tmp_path: Path) -> None:
    write_preview(_photos(rendered), PRESETS["strong"], tmp_path / "page.html", size_px=64)
    page = _Page(tmp_path / "page.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    policy = next(one["content"] for tag, one in page.tags if one.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert all((one["src"] or "").startswith("data:image/jpeg;base64,") for tag, one in page.tags if tag == "img")
    without_pictures = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page.source)
    assert not re.search(r"https?:|//|url\(|@import", without_pictures)


def test_pictures_are_what_they_are_said_to_be(rendered: Path, tmp_path: Path) -> None:
    (path,) = _photos(rendered, 1)
    steps = [Step("flip", 1.0, 0.5), Step("blur", 1.0, 0.001)]
    write_preview([path], steps, tmp_path / "page.html", size_px=64, n_variants=8)
    own, flipped, blurred, *variants = (one.astype(int) for one in _Page(tmp_path / "page.html").pictures())
    photo = Preprocessing(64).read(path.read_bytes()).astype(int)

    def differ(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).mean())

    assert differ(own, photo) < 6  # JPEG
    assert differ(flipped, photo[:, ::-1]) < 6 < differ(flipped, photo)  # shown whatever its probability is
    edges = [float(np.abs(np.diff(one, axis=0)).mean()) for one in (blurred, own)]
    assert edges[0] < 0.9 * edges[1]
    nearest = [
        min(("own", "flipped"), key={"own": differ(one, own), "flipped": differ(one, flipped)}.get) for one in variants
    ]
    assert set(nearest) == {"own", "flipped"}  # as in training: only half of them are mirrored


def test_the_same_seed_writes_the_same_page(rendered: Path, tmp_path: Path) -> None:
    pages = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_preview(_photos(rendered), PRESETS["light"], tmp_path / name, seed=seed, n_variants=2, size_px=32)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_the_page_stays_small_whatever_is_asked_for(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    photos = [tmp_path / "noise.png"] * 20
    write_preview(photos, parse_augmentation("flip"), tmp_path / "page.html", n_variants=10, size_px=256)
    assert (tmp_path / "page.html").stat().st_size < MAX_PAGE_BYTES
    assert len(_Page(tmp_path / "page.html").pictures()) == 20 * 12
    with pytest.raises(OptionError, match=r"up to 1,000 pictures, got 100 of each photo, 2,040 in all"):
        write_preview(photos, parse_augmentation("flip"), tmp_path / "other.html", n_variants=100)


def test_names_are_escaped_and_unreadable_photos_are_skipped(rendered: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&" / "'x'.jpg"
    odd.parent.mkdir()
    shutil.copy(_photos(rendered)[0], odd)
    (tmp_path / "cut.jpg").write_bytes(odd.read_bytes()[:600])
    photos = [tmp_path / "cut.jpg", odd, tmp_path / "none.jpg"]
    skipped = write_preview(photos, PRESETS["light"], tmp_path / "page.html", size_px=32)
    assert [(one.path.name, one.fault) for one in skipped] == [("cut.jpg", "truncated"), ("none.jpg", "not_found")]
    page = _Page(tmp_path / "page.html")
    assert "<b>&/'x'.jpg" in page.text
    assert "<b>" not in page.source
    with pytest.raises(DataError, match=r"got none of 1 that can be read, the first: .*none\.jpg"):
        write_preview([tmp_path / "none.jpg"], PRESETS["light"], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_what_is_no_preview_is_never_replaced(rendered: Path, tmp_path: Path) -> None:
    place = tmp_path / "notes.html"
    for content in (b"", b"<html>mine</html>", b"x" * 5000 + b'<meta name="generator" content="pomona augment">'):
        place.write_bytes(content)
        with pytest.raises(StorageError, match="a file that is no preview stands there: move it"):
            write_preview(_photos(rendered), PRESETS["none"], place, size_px=32)
        assert place.read_bytes() == content
    with pytest.raises(StorageError, match="wanted a place for a page, got a folder"):
        write_preview(_photos(rendered), PRESETS["none"], tmp_path, size_px=32)
    dangling = tmp_path / "link.html"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="read what stands at"):
        write_preview(_photos(rendered), PRESETS["none"], dangling, size_px=32)
    new = tmp_path / "new" / "page.html"
    for _ in range(2):  # its own page it does replace
        write_preview(_photos(rendered), PRESETS["none"], new, size_px=32)


@pytest.mark.parametrize("size_px", [0, 7, 5000])
def test_sizes_out_of_range_are_refused(rendered: Path, tmp_path: Path, size_px: int) -> None:
    with pytest.raises(OptionError, match=f"imgsz: wanted 8 to 4096 pixels, got {size_px}"):
        write_preview(_photos(rendered), PRESETS["none"], tmp_path / "page.html", size_px=size_px)


# --- photos of a dataset --------------------------------------------------------------------------------------------


def test_page_among_the_photos_is_refused(rendered: Path, tmp_path: Path) -> None:
    place = rendered / "Citrus" / "page.html"
    with pytest.raises(OptionError, match="preview: wanted a place outside the photos"):
        preview_augmentation(rendered, place, PRESETS["light"])
    (tmp_path / "link").symlink_to(rendered)
    with pytest.raises(OptionError, match="preview: wanted a place outside the photos"):
        preview_augmentation(rendered, tmp_path / "link" / "page.html", PRESETS["light"])
    assert not place.exists()


def test_photos_are_left_as_they_are(rendered: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in rendered.rglob("*.jpg")}
    done = preview_augmentation(rendered, tmp_path / "page.html", PRESETS["light"], n_photos=4, size_px=32)
    assert (done.path, done.n_photos, done.skipped) == (tmp_path / "page.html", 4, ())
    assert {path: path.read_bytes() for path in rendered.rglob("*") if path.is_file()} == before


def test_real_photos_make_a_page_of_less_than_five_megabytes(shared: Path, tmp_path: Path) -> None:
    done = preview_augmentation(shared / "data" / "grocery" / "val", tmp_path / "page.html", PRESETS["strong"])
    assert done.n_photos == 8
    assert (tmp_path / "page.html").stat().st_size < MAX_PAGE_BYTES
    own = _Page(tmp_path / "page.html").pictures()[0]
    assert own.shape == augment_pixels(own, PRESETS["strong"], 0).shape == (224, 224, 3)


# --- command --------------------------------------------------------------------------------------------------------


def test_command_writes_the_page_and_names_bad_photos(rendered: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(rendered, data)
    broken = sorted(data.rglob("*.jpg"))[0]
    broken.write_bytes(broken.read_bytes()[:700])
    place = tmp_path / "new" / "page.html"
    arguments = ("--augment", "light,-rotate", "--photos", 24, "--imgsz", 32)
    stdout, stderr = _run(data, "--preview", place, *arguments)
    assert f"Page         {place}" in stdout
    assert "--augment flip,crop=0.3,color=0.2" in stdout
    assert f"note: {broken.parent.name}/{broken.name}: " in stderr
    assert len(_Page(place).pictures()) == 23 * (1 + 3 + 6)


def test_command_says_what_is_wrong(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, stderr = _run(tmp_path / "empty", "--preview", tmp_path / "page.html", code=1)
    assert "no photo found: it is empty" in stderr
    _, stderr = _run(rendered, "--preview", tmp_path / "page.html", "--augment", "rotat=0.3", code=2)
    assert "got 'rotat'; did you mean rotate?" in stderr
    assert not (tmp_path / "page.html").exists()
