"""What stays is what was decided, it is read back as planned, and nothing of the user's is ever lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.clean_list import MARKER_NAME, CleanPlan, check_clean_place, plan_clean, write_clean
from pomona.dataset import Dataset, Photo, load_dataset
from pomona.decisions import Decision
from pomona.errors import DataError, OptionError, StorageError
from pomona.files import hash_bytes
from pomona.findings import Audit, Finding


def _make_tree(folder: Path, names: dict[str, str]) -> Dataset:
    """Files that begin like a JPEG, by name and what tells their content apart; nothing here decodes them."""
    for name, content in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff" + content.encode())
    return load_dataset(folder)


@pytest.fixture
def fruit(tmp_path: Path) -> Dataset:
    names = {
        f"{split}/{kind}/{i}.jpg": f"{split}{kind}{i}" for split in ("train", "val") for kind in "AB" for i in (1, 2)
    }
    return _make_tree(tmp_path / "fruit", names)


def _find(check: str, name: str, other: str = "", *, flagged: bool = True) -> Finding:
    return Finding(name, check, 0.5, flagged, "because", other)


def _decide(dataset: Dataset, name: str, action: str, label: str = "") -> Decision:
    photo = next(photo for photo in dataset.photos if photo.name == name)
    return Decision(name, photo.sha256, action, label)  # type: ignore[arg-type]


def _dropped(plan: CleanPlan) -> dict[str, str]:
    return {one.photo.name: one.why for one in plan.dropped}


# --- the plan -------------------------------------------------------------------------------------------------------


def test_without_findings_all_stay(fruit: Dataset) -> None:
    plan = plan_clean(Audit(fruit))
    assert [one.photo for one in plan.photos] == list(fruit.photos)
    assert plan.describe() == "8 of 8 photos stay."


def test_of_copies_the_first_stays_and_of_copies_across_a_split_the_measured_one(fruit: Dataset) -> None:
    twice = Audit(fruit, findings=(_find("exact_duplicate", "train/A/2.jpg", "train/A/1.jpg"),))
    assert _dropped(plan_clean(twice)) == {"train/A/2.jpg": "same_pixels"}
    across = Audit(fruit, findings=(_find("same_pixels", "val/A/2.jpg", "train/A/1.jpg"),))
    assert _dropped(plan_clean(across)) == {"train/A/1.jpg": "same_pixels"}


def test_copies_with_the_same_bytes_are_called_so(tmp_path: Path) -> None:
    data = _make_tree(tmp_path / "d", {"A/1.jpg": "x", "A/2.jpg": "x", "B/1.jpg": "y"})
    audit = Audit(data, findings=(_find("exact_duplicate", "A/2.jpg", "A/1.jpg"),))
    assert _dropped(plan_clean(audit)) == {"A/2.jpg": "exact_duplicate"}


def test_a_kept_copy_lets_the_others_go(fruit: Dataset) -> None:
    audit = Audit(fruit, findings=(_find("exact_duplicate", "train/A/2.jpg", "train/A/1.jpg"),))
    assert list(_dropped(plan_clean(audit, [_decide(fruit, "train/A/2.jpg", "keep")]))) == ["train/A/1.jpg"]
    assert list(_dropped(plan_clean(audit, [_decide(fruit, "train/A/1.jpg", "drop")]))) == ["train/A/1.jpg"]
    both = [_decide(fruit, f"train/A/{i}.jpg", "keep") for i in (1, 2)]
    assert not plan_clean(audit, both).dropped


def test_photos_with_two_labels_are_all_dropped_until_one_label_is_left(fruit: Dataset) -> None:
    audit = Audit(fruit, findings=(_find("conflicting_label", "train/A/1.jpg", "train/B/1.jpg"),))
    assert _dropped(plan_clean(audit)) == dict.fromkeys(["train/A/1.jpg", "train/B/1.jpg"], "conflicting_label")
    assert _dropped(plan_clean(audit, [_decide(fruit, "train/B/1.jpg", "drop")])) == {"train/B/1.jpg": "decision"}
    one = plan_clean(audit, [_decide(fruit, "train/B/1.jpg", "relabel", "A")])
    assert _dropped(one) == {"train/A/1.jpg": "same_pixels"}
    assert one.n_relabelled == 1
    assert _dropped(plan_clean(audit, [_decide(fruit, "train/B/1.jpg", "keep")])) == {
        "train/A/1.jpg": "conflicting_label"
    }


def test_a_check_does_not_settle_which_label_is_right(fruit: Dataset) -> None:
    findings = (_find("conflicting_label", "train/A/1.jpg", "train/B/1.jpg"), _find("blurry", "train/A/1.jpg"))
    assert set(_dropped(plan_clean(Audit(fruit, findings=findings), drop=("blurry",)))) == {
        "train/A/1.jpg",
        "train/B/1.jpg",
    }


def test_further_checks_drop_what_they_flagged_unless_it_is_kept(fruit: Dataset) -> None:
    findings = (
        _find("wrong_label", "train/A/1.jpg"),
        _find("blurry", "train/A/1.jpg"),
        _find("blurry", "val/A/2.jpg"),
        _find("blurry", "train/B/1.jpg", flagged=False),
    )
    audit = Audit(fruit, findings=findings)
    assert not plan_clean(audit).dropped
    plan = plan_clean(audit, drop=("blurry", "wrong_label"))
    assert _dropped(plan) == {"train/A/1.jpg": "wrong_label", "val/A/2.jpg": "blurry"}
    assert "Dropped: 1 Label may be wrong; 1 Blurred." in plan.describe()
    kept = plan_clean(audit, [_decide(fruit, "train/A/1.jpg", "keep")], ("blurry", "wrong_label"))
    assert list(_dropped(kept)) == ["val/A/2.jpg"]


def test_of_near_duplicates_one_stays_and_of_leaks_the_measured_one(fruit: Dataset) -> None:
    near = (
        _find("near_duplicate", "train/A/1.jpg", "train/A/2.jpg"),
        _find("near_duplicate", "train/A/2.jpg", "train/A/1.jpg"),
    )
    assert _dropped(plan_clean(Audit(fruit, findings=near), drop=("near_duplicate",))) == {
        "train/A/2.jpg": "near_duplicate"
    }
    leak = (_find("leak", "val/A/1.jpg", "train/A/2.jpg"),)
    assert _dropped(plan_clean(Audit(fruit, findings=leak), drop=("leak",))) == {"train/A/2.jpg": "leak"}


def test_a_new_class_is_said(fruit: Dataset) -> None:
    plan = plan_clean(Audit(fruit), [_decide(fruit, "train/A/1.jpg", "relabel", "Citrus/Kiwi")])
    assert plan.new_classes == ("Citrus/Kiwi",)
    assert plan.describe() == "8 of 8 photos stay. Relabelled: 1. New classes: 1 (Citrus/Kiwi)."


def test_a_class_that_only_the_measured_part_has_keeps_its_name(tmp_path: Path) -> None:
    names = {"train/A/1.jpg": "1", "train/B/1.jpg": "2", "val/C/1.jpg": "3", "val/D/1.jpg": "4", "val/D/E/1.jpg": "5"}
    plan = plan_clean(Audit(_make_tree(tmp_path / "d", names)))
    assert {"/".join(one.label) for one in plan.photos if one.photo.label < 0} == {"C", "D", "D/E"}
    assert not plan.new_classes


@pytest.mark.parametrize("drop", ["notes", "gps", "unusable", "shortcut"])
def test_an_unknown_check_is_refused(fruit: Dataset, drop: str) -> None:
    with pytest.raises(OptionError, match=f"drop: wanted some of conflicting_label, .*blurry.*, got '{drop}'"):
        plan_clean(Audit(fruit), drop=(drop,))


def test_too_little_left_is_refused(fruit: Dataset) -> None:
    drops = [_decide(fruit, photo.name, "drop") for photo in fruit.photos]
    with pytest.raises(DataError, match="wanted photos that stay, got none"):
        plan_clean(Audit(fruit), drops)
    # B is left in val alone: nothing could be learnt of it.
    only = [one for one in drops if one.name.startswith("train/B")]
    with pytest.raises(DataError, match=r"at least two classes to learn from, got one \(A\) among the 6 photos"):
        plan_clean(Audit(fruit), only)


def test_a_decision_on_a_photo_of_other_data_is_refused(fruit: Dataset) -> None:
    with pytest.raises(DataError, match=r"got one on gone\.jpg"):
        plan_clean(Audit(fruit), [Decision("gone.jpg", "0" * 64, "drop")])


# --- a list ---------------------------------------------------------------------------------------------------------


def test_a_list_is_relative_where_it_can_be(fruit: Dataset, tmp_path: Path) -> None:
    plan = plan_clean(Audit(fruit))
    write_clean(plan, tmp_path / "clean.csv")
    rows = list(csv.reader((tmp_path / "clean.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["file_name", "label", "split", "group"]
    assert rows[1] == ["fruit/train/A/1.jpg", "A", "train", fruit.photos[0].sha256]
    write_clean(plan, tmp_path / "elsewhere" / "clean.tsv")
    second = (tmp_path / "elsewhere" / "clean.tsv").read_text(encoding="utf-8").split("\n")[1]
    assert second.split("\t")[0] == str(fruit.photos[0].path)
    assert load_dataset(tmp_path / "elsewhere" / "clean.tsv").n_photos == 8


def test_a_photo_that_a_table_lists_twice_stays_once_where_a_decision_unites_the_two(tmp_path: Path) -> None:
    _make_tree(tmp_path / "d", {"A/1.jpg": "1", "B/1.jpg": "2"})
    (tmp_path / "t.csv").write_text("file_name,label\nd/A/1.jpg,A\nd/A/1.jpg,B\nd/B/1.jpg,B\n")
    data = load_dataset(tmp_path / "t.csv")
    assert len(plan_clean(Audit(data)).photos) == 3
    plan = plan_clean(Audit(data), [_decide(data, "d/A/1.jpg", "relabel", "A")])
    assert sorted(one.photo.name for one in plan.photos) == ["d/A/1.jpg", "d/B/1.jpg"]


def test_only_a_clean_list_is_replaced(fruit: Dataset, tmp_path: Path) -> None:
    plan = plan_clean(Audit(fruit))
    out = tmp_path / "clean.csv"
    write_clean(plan, out)
    before = out.read_bytes()
    write_clean(replace(plan, photos=plan.photos[1:]), out)
    assert len(out.read_bytes()) < len(before)
    for content in (b"file_name,label\n", b"my notes", b"", b"\xff\xd8\xff"):
        out.write_bytes(content)
        with pytest.raises(StorageError, match="no clean list stands there"):
            check_clean_place(fruit, out)
        with pytest.raises(StorageError, match="no clean list stands there"):
            write_clean(plan, out)
        assert out.read_bytes() == content


def test_the_table_that_was_looked_at_is_never_replaced(fruit: Dataset, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    write_clean(plan_clean(Audit(fruit)), table)
    before = table.read_bytes()
    with pytest.raises(StorageError, match="that is the data itself"):
        write_clean(plan_clean(Audit(load_dataset(table))), table)
    assert table.read_bytes() == before


def test_a_list_refuses_what_it_cannot_hold_and_the_tree_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    bad = os.fsdecode(b"A/caf\xe9.jpg")
    data = _make_tree(folder, {bad: "1", "A/blank.jpg ": "2", "B/3.jpg": "3", "A/4.jpg": "4"})
    assert data.n_photos == 4
    plan = plan_clean(Audit(data))
    with pytest.raises(DataError, match=r"2 photos have a path.*name a folder as OUT instead") as caught:
        write_clean(plan, tmp_path / "clean.csv")
    str(caught.value).encode("utf-8")
    assert not (tmp_path / "clean.csv").exists()
    write_clean(plan, tmp_path / "clean")
    assert load_dataset(tmp_path / "clean").n_photos == 4


def test_a_class_with_a_slash_in_its_name_is_refused(fruit: Dataset, tmp_path: Path) -> None:
    tree = ClassTree(("A/x", "B"), (("A/x",), ("B",)))
    plan = plan_clean(Audit(replace(fruit, tree=tree)))
    with pytest.raises(DataError, match="4 photos have a path, class"):
        write_clean(plan, tmp_path / "clean.csv")
    with pytest.raises(DataError, match="cannot be named as the class 'A/x'"):
        write_clean(plan, tmp_path / "clean")


@pytest.mark.parametrize("name", ["clean.txt", "clean.XLSX", "clean.zip"])
def test_other_files_are_refused(fruit: Dataset, tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"ends in \.csv or \.tsv, or a folder"):
        write_clean(plan_clean(Audit(fruit)), tmp_path / name)


def test_a_folder_named_as_a_list_is_refused(fruit: Dataset, tmp_path: Path) -> None:
    (tmp_path / "clean.csv").mkdir()
    with pytest.raises(StorageError, match="got a folder"):
        write_clean(plan_clean(Audit(fruit)), tmp_path / "clean.csv")


_LETTERS = st.sampled_from(list("ab,\"'\n\r\t ;\u00e9\u67e0\U0001f34b\u05d0\u2028#=\\"))
_FILES = st.text(_LETTERS, min_size=1, max_size=8).map(lambda text: f"x{text}x.jpg")
_CLASSES = st.sampled_from(["Apple/Gala", "Apple/Red", "Pear", "柠檬", 'Nut "W", wal', "Citrus;x"])
_ROWS = st.lists(
    st.tuples(
        _FILES,
        _CLASSES,
        st.sampled_from(["train", "train", "val", "test", None]),
        st.sampled_from(["g1", 'g,"2"', "g\n3", "组", None]),
        st.sampled_from(["keep", "keep", "drop", "Pear", "New/Kiwi", ""]),
        st.integers(0, 6),
    ),
    min_size=3,
    max_size=10,
    unique_by=lambda row: row[0],
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=_ROWS,
    links=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["exact_duplicate", "conflicting_label"])),
        max_size=4,
    ),
    suffix=st.sampled_from([".csv", ".tsv"]),
)
def test_a_list_is_read_back_as_it_was_planned(
    rows: list[tuple[str, str, str | None, str | None, str, int]], links: list[tuple[int, int, str]], suffix: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        dataset, decisions = _write_rows(folder, rows)
        if dataset is None:
            return
        names = [photo.name for photo in dataset.photos]
        findings = tuple(_find(check, names[a % len(names)], names[b % len(names)]) for a, b, check in links)
        try:
            plan = plan_clean(Audit(dataset, findings=findings), decisions)
        except DataError:
            return
        write_clean(plan, folder / f"clean{suffix}")
        back = load_dataset(folder / f"clean{suffix}")
    assert not back.skipped
    assert {(p.path, p.sha256, p.split, p.group) for p in back.photos} == {
        (one.photo.path, one.photo.sha256, one.photo.split, one.photo.group) for one in plan.photos
    }
    learnt = {one.label for one in plan.photos if one.photo.split in {"train", None}}
    learnt = learnt or {one.label for one in plan.photos}
    planned = {(one.photo.path, one.photo.split): one.label for one in plan.photos}
    for photo in back.photos:
        label = planned[photo.path, photo.split]
        if label in learnt:  # folders above all classes tell nothing, and are not read back
            assert label[-len(back.tree.paths[photo.label]) :] == back.tree.paths[photo.label]
        else:
            assert photo.label == -1
    assert len(back.tree) == len(learnt)


def _write_rows(
    folder: Path, rows: list[tuple[str, str, str | None, str | None, str, int]]
) -> tuple[Dataset | None, list[Decision]]:
    lines = [("file_name", "label", "split", "group")]
    decisions = {}
    for name, label, split, group, action, content in rows:
        data = b"\xff\xd8\xff" + str(content).encode()
        (folder / name).write_bytes(data)
        lines.append((name, label, split or "", group or ""))
        decisions[folder / name] = action
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(lines)
    try:
        dataset = load_dataset(folder / "table.csv")
    except DataError:
        return None, []
    made = {}
    for photo in dataset.photos:
        action = decisions[photo.path]
        if action in {"keep", "drop"}:
            made[photo.name, photo.sha256] = Decision(photo.name, photo.sha256, action)  # type: ignore[arg-type]
        elif action:
            made[photo.name, photo.sha256] = Decision(photo.name, photo.sha256, "relabel", action)
    return dataset, list(made.values())


# --- a tree ---------------------------------------------------------------------------------------------------------


def test_a_tree_is_links_and_its_removal_leaves_the_photos(fruit: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    write_clean(plan_clean(Audit(fruit), [_decide(fruit, "train/A/1.jpg", "relabel", "B")]), out)
    assert (out / "train/B/1.jpg").samefile(tmp_path / "fruit/train/A/1.jpg")
    back = load_dataset(out)
    assert sorted(photo.name for photo in back.photos) == [
        *(f"train/{name}.jpg" for name in ("A/2", "B/1-2", "B/1", "B/2")),
        *(f"val/{name}.jpg" for name in ("A/1", "A/2", "B/1", "B/2")),
    ]
    write_clean(plan_clean(Audit(fruit)), out)  # its own earlier tree is replaced
    assert load_dataset(out).fingerprint == replace(fruit, shown=str(out)).fingerprint
    assert len(list((tmp_path / "fruit").rglob("*.jpg"))) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "fruit"]


def test_a_tree_of_links_to_links_holds_the_photos(tmp_path: Path) -> None:
    _make_tree(tmp_path / "real", {"A/1.jpg": "1", "B/1.jpg": "2"})
    for kind in "AB":
        (tmp_path / "data" / kind).mkdir(parents=True)
        (tmp_path / "data" / kind / "1.jpg").symlink_to(Path("../../real") / kind / "1.jpg")
    write_clean(plan_clean(Audit(load_dataset(tmp_path / "data"))), tmp_path / "deep" / "clean")
    assert not (tmp_path / "deep/clean/A/1.jpg").is_symlink()
    assert (tmp_path / "deep/clean/A/1.jpg").samefile(tmp_path / "real/A/1.jpg")


@pytest.mark.parametrize("place", [".", "clean", "train/A/deeper"])
def test_a_tree_in_the_data_is_refused(fruit: Dataset, tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "fruit")
    for root in ("fruit", "link"):
        with pytest.raises(OptionError, match=r"outside of the data"):
            write_clean(plan_clean(Audit(fruit)), tmp_path / root / place)


def test_a_tree_around_the_photos_of_a_table_is_refused(fruit: Dataset, tmp_path: Path) -> None:
    write_clean(plan_clean(Audit(fruit)), tmp_path / "table.csv")
    table = load_dataset(tmp_path / "table.csv")
    with pytest.raises(OptionError, match="that none of the photos is in"):
        check_clean_place(table, tmp_path / "fruit" / "train")
    write_clean(plan_clean(Audit(table)), tmp_path / "clean")  # beside the table there is nothing to be read twice
    assert load_dataset(tmp_path / "clean").n_photos == 8


def test_nothing_of_the_users_is_lost_with_an_earlier_tree(fruit: Dataset, tmp_path: Path) -> None:
    plan = plan_clean(Audit(fruit))
    out = tmp_path / "clean"
    write_clean(plan, out)
    (out / ".DS_Store").write_bytes(b"")
    write_clean(plan, out)
    (out / "train/A/mine.jpg").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"would be lost .1.: train/A/mine\.jpg"):
        write_clean(plan, out)
    assert (out / "train/A/mine.jpg").read_bytes() == b"mine"
    (out / "train/A/mine.jpg").unlink()
    (out / "train/A/1.jpg").unlink()
    (out / "train/A/1.jpg").write_bytes(b"edited here")
    with pytest.raises(StorageError, match=r"train/A/1\.jpg"):
        write_clean(plan, out)
    (out / "train/A/1.jpg").unlink()
    (out / "mine too.jpg").hardlink_to(tmp_path / "fruit/train/A/1.jpg")
    with pytest.raises(StorageError, match=r"mine too\.jpg"):
        write_clean(plan, out)
    (out / "mine too.jpg").unlink()
    (out / "folder").symlink_to(tmp_path)
    with pytest.raises(StorageError, match=r"would be lost .1.: folder:"):
        write_clean(plan, out)


def test_a_photo_that_is_nowhere_else_is_not_lost(fruit: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    plan = plan_clean(Audit(fruit))
    write_clean(plan, out)
    (tmp_path / "fruit/val/B/2.jpg").unlink()
    with pytest.raises(StorageError, match=r"would be lost .1.: val/B/2\.jpg"):
        check_clean_place(fruit, out)


@pytest.mark.parametrize("marker", [None, "{}", "nonsense", '{"links": 3}'])
def test_a_folder_of_the_users_is_not_replaced(fruit: Dataset, tmp_path: Path, marker: str | None) -> None:
    out = tmp_path / "clean"
    out.mkdir()
    write_clean(plan_clean(Audit(fruit)), out)  # an empty one may be filled
    (out / MARKER_NAME).unlink()
    if marker is not None:
        (out / MARKER_NAME).write_text(marker)
    with pytest.raises(StorageError, match="no clean tree stands there"):
        write_clean(plan_clean(Audit(fruit)), out)


def test_a_file_in_the_way_of_a_tree_is_not_replaced(fruit: Dataset, tmp_path: Path) -> None:
    (tmp_path / "clean").write_bytes(b"mine")
    with pytest.raises(StorageError, match="got a file"):
        write_clean(plan_clean(Audit(fruit)), tmp_path / "clean")
    assert (tmp_path / "clean").read_bytes() == b"mine"


def test_a_disk_without_links_is_said_and_nothing_is_copied(
    fruit: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"write a list instead: name an OUT that ends in \.csv"):
        write_clean(plan_clean(Audit(fruit)), tmp_path / "clean")
    assert [path.name for path in tmp_path.iterdir()] == ["fruit"]


def test_photos_of_one_name_get_a_number(tmp_path: Path) -> None:
    data = _make_tree(
        tmp_path / "d", {"x/A/1.JPG": "1", "y/A/1.jpg": "2", "y/B/1.jpg": "3", "y/B/C/1.jpg": "4", "y/B/c": "5"}
    )
    tree = ClassTree.from_paths(["A", "B", "B/C"])
    labels = {"x/A/1.JPG": 0, "y/A/1.jpg": 0, "y/B/1.jpg": 1, "y/B/C/1.jpg": 2, "y/B/c": 1}
    photos = tuple(replace(photo, label=labels[photo.name]) for photo in data.photos)
    write_clean(plan_clean(Audit(replace(data, photos=photos, tree=tree))), tmp_path / "clean")
    listed = json.loads((tmp_path / "clean" / MARKER_NAME).read_text())["links"]
    assert sorted(listed) == ["A/1-2.jpg", "A/1.JPG", "B/1.jpg", "B/C/1.jpg", "B/c-2"]
    assert len({name.casefold() for name in listed}) == 5


@pytest.mark.parametrize("label", ["../up", ".hidden", "train", "a/__MACOSX"])
def test_a_class_that_no_folder_can_be_is_refused(tmp_path: Path, label: str) -> None:
    data = _make_tree(tmp_path / "d", {"A/1.jpg": "1", "B/1.jpg": "2", "B/2.jpg": "3"})
    plan = plan_clean(Audit(data), [_decide(data, "B/2.jpg", "relabel", label)])
    with pytest.raises(DataError, match="cannot be named as the class"):
        write_clean(plan, tmp_path / "clean")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_tree_cannot_say_that_a_photo_is_of_no_split(fruit: Dataset, tmp_path: Path) -> None:
    photos: tuple[Photo, ...] = (replace(fruit.photos[0], split=None), *fruit.photos[1:])
    with pytest.raises(DataError, match="some photos are of no split"):
        write_clean(plan_clean(Audit(replace(fruit, photos=photos))), tmp_path / "clean")


def test_photos_that_look_hidden_are_seen_in_a_tree(tmp_path: Path) -> None:
    _make_tree(tmp_path / "d", {"A/1.jpg": "1", "B/1.jpg": "2", "A/.h.jpg": "3"})
    (tmp_path / "t.csv").write_text("file_name,label\nd/A/1.jpg,A\nd/B/1.jpg,B\nd/A/.h.jpg,A\n")
    write_clean(plan_clean(Audit(load_dataset(tmp_path / "t.csv"))), tmp_path / "clean")
    assert load_dataset(tmp_path / "clean").n_photos == 3


def test_no_photo_is_changed(fruit: Dataset, tmp_path: Path) -> None:
    before = {
        photo.path: (hash_bytes(photo.path.read_bytes()), photo.path.stat().st_mtime_ns) for photo in fruit.photos
    }
    plan = plan_clean(Audit(fruit), [_decide(fruit, "train/A/1.jpg", "drop")])
    for out in ("clean", "clean.csv", "clean"):
        write_clean(plan, tmp_path / out)
    assert before == {p: (hash_bytes(p.read_bytes()), p.stat().st_mtime_ns) for p in before}
