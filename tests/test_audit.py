"""Everything that was planted into a set is found by its check, and nothing in the user's folder changes."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pomona import shortcut
from pomona.audit import audit_photos, settle_audit
from pomona.clock import Clock
from pomona.dataset import Dataset, Skipped, iter_folds, load_dataset, split_dataset
from pomona.effort import plan_embedding
from pomona.errors import DataError
from pomona.features import Features, extract_features
from pomona.files import hash_file
from pomona.findings import CHECKS, COLUMNS, Audit, list_rows
from pomona.samples import KINDS, render_photo

if TYPE_CHECKING:
    from collections.abc import Iterator

if TYPE_CHECKING:
    from pathlib import Path

KINDS_USED = KINDS[1:4]
NAMES = [kind.name for kind in KINDS_USED]


def render(kind: int, seed: int) -> Image.Image:
    return Image.fromarray(render_photo(KINDS_USED[kind], seed=seed, size_px=72))


def write_set(folder: Path, n_photos: int, *, seed: int = 0, split: str = "") -> Path:
    for kind, name in enumerate(NAMES):
        target = folder / split / name
        target.mkdir(parents=True, exist_ok=True)
        for i in range(n_photos):
            render(kind, 1000 * seed + 100 * kind + i).save(target / f"{i}.jpg", quality=92)
    return folder


def compute(folder: Path) -> Features:
    dataset = load_dataset(folder, min_classes=1, needs_labels=False)
    return extract_features(dataset, plan_embedding("instant", size_px=64, precision="f32"))


def find(audit: Audit, check: str) -> dict[str, tuple[str, str]]:
    return {one.name: (one.other, one.reason) for one in audit.findings if one.check == check}


def look_at_files(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Content, time of change and rights of everything in a folder."""
    return {
        str(path): (hash_file(path) if path.is_file() else "", path.stat().st_mtime_ns, path.stat().st_mode)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    """A small forest answers as a large one does, and sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcut, "_N_TREES", 4)
        yield


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds in train and val, with one of every fault."""
    folder = tmp_path_factory.mktemp("audit") / "fruit"
    write_set(folder, 9, split="train")
    write_set(folder, 4, seed=1, split="val")
    train, val = folder / "train", folder / "val"
    shutil.copy(train / NAMES[0] / "0.jpg", val / NAMES[0] / "leak.jpg")
    Image.open(train / NAMES[1] / "1.jpg").resize((60, 60)).save(val / NAMES[1] / "small.jpg", quality=80)
    shutil.copy(train / NAMES[0] / "2.jpg", train / NAMES[1] / "other name.jpg")
    shutil.copy(train / NAMES[2] / "3.jpg", train / NAMES[2] / "3 again.jpg")
    render(0, 77).save(train / NAMES[2] / "swapped.jpg")
    render(1, 78).filter(ImageFilter.GaussianBlur(5)).save(train / NAMES[1] / "blurred.jpg")
    render(2, 79).save(train / NAMES[2] / "really a png.jpg", "PNG")
    whole = (train / NAMES[0] / "5.jpg").read_bytes()
    (train / NAMES[0] / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (train / NAMES[0] / "empty.jpg").touch()
    (train / "notes.txt").write_text("of the market")
    return folder


@pytest.fixture(scope="module")
def features(spoiled: Path) -> Features:
    return compute(spoiled)


@pytest.fixture(scope="module")
def full(features: Features) -> Audit:
    return audit_photos(features, "full")


# --- what is found --------------------------------------------------------------------------------------------------


def test_every_planted_fault_is_found_by_its_check(full: Audit) -> None:
    assert full.level == "full"
    a, b, c = NAMES
    assert {name: reason.split(":")[0] for name, (_, reason) in find(full, "unusable").items()} == {
        f"train/{a}/cut.jpg": "truncated",
        f"train/{a}/empty.jpg": "empty",
    }
    assert {name: other for name, (other, _) in find(full, "exact_duplicate").items()} == {
        f"train/{c}/3.jpg": f"train/{c}/3 again.jpg",
        f"val/{a}/leak.jpg": f"train/{a}/0.jpg",
    }
    assert find(full, "conflicting_label") == {
        f"train/{b}/other name.jpg": (f"train/{a}/2.jpg", f"the same bytes; called {b}, the other {a}")
    }
    assert find(full, "near_duplicate") == {f"val/{b}/small.jpg": (f"train/{b}/1.jpg", "resized or saved anew")}
    copied = "it is in val, and a copy of it is in train"  # rendered scenes may be alike beside that
    assert {name: other for name, (other, reason) in find(full, "leak").items() if reason == copied} == {
        f"val/{a}/leak.jpg": f"train/{a}/0.jpg",
        f"val/{b}/small.jpg": f"train/{b}/1.jpg",
    }
    assert list(find(full, "blurry")) == [f"train/{b}/blurred.jpg"]
    assert list(find(full, "wrong_extension")) == [f"train/{c}/really a png.jpg"]
    assert full.dataset.n_ignored == 1


def test_a_wrong_label_is_shown_beside_its_nearest(full: Audit) -> None:
    name = f"train/{NAMES[2]}/swapped.jpg"
    doubts = [one for one in full.findings if one.check == "wrong_label"]
    swapped = next(one for one in doubts if one.name == name)
    assert swapped.suggested == NAMES[0]
    assert swapped.reason.startswith(f"looks like {NAMES[0]} (")
    nearest = full.nearest[name]
    assert len(nearest.own) == len(nearest.suggested) == 3
    assert all(f"/{NAMES[2]}/" in one and one != name for one in nearest.own)
    assert all(f"/{NAMES[0]}/" in one for one in nearest.suggested)
    assert set(full.nearest) == {one.name for one in full.findings if one.check in {"wrong_label", "outlier"}}


def test_findings_are_in_order_and_name_photos_of_the_set(full: Audit) -> None:
    order = list(CHECKS)
    keys = [(order.index(one.check), not one.flagged, one.score) for one in full.findings]
    assert keys == sorted(keys)
    names = {photo.name for photo in full.dataset.photos}
    for one in full.findings:
        assert one.name in names or one.check == "unusable"
        assert not one.other or one.other in names
        assert not one.suggested or one.suggested in full.dataset.tree.names
        assert one.reason
    assert len(list(list_rows(full))) == len(full.findings)
    assert all(len(row) == len(COLUMNS) for row in list_rows(full))


def test_groups_hold_copies_and_no_split_divides_them(full: Audit) -> None:
    groups = {photo.name: photo.group for photo in full.dataset.photos}
    for check in ("exact_duplicate", "near_duplicate", "conflicting_label", "leak"):
        assert all(groups[name] == groups[other] for name, (other, _) in find(full, check).items())
    assert full.n_groups >= 4
    assert full.n_grouped >= 8
    unsplit = replace(full.dataset, photos=tuple(replace(photo, split=None) for photo in full.dataset.photos))
    assert split_dataset(unsplit).divided_groups == ()
    for train, held_out in iter_folds(unsplit.labels, unsplit.groups):
        assert not set(unsplit.groups[train]) & set(unsplit.groups[held_out])


def test_the_gap_is_measured_and_shortcuts_are_tried(full: Audit) -> None:
    assert full.gap is not None
    assert 0 < full.gap.grouped.value <= 1
    assert [one.check for one in full.remarks].count("shortcut") >= 1


# --- levels ---------------------------------------------------------------------------------------------------------


def test_none_tells_what_cannot_be_used_alone(features: Features, full: Audit) -> None:
    audit = audit_photos(features, "none")
    assert audit == Audit(features.dataset, "none", tuple(one for one in full.findings if one.check == "unusable"))


def test_quick_finds_what_full_does_save_labels_and_shortcuts(features: Features, full: Audit) -> None:
    audit = audit_photos(features, "quick")
    left_out = {"wrong_label", "outlier"}
    assert audit.findings == tuple(one for one in full.findings if one.check not in left_out)
    assert audit.remarks == tuple(one for one in full.remarks if one.check != "shortcut")
    assert (audit.gap, audit.dataset, audit.nearest) == (full.gap, full.dataset, {})


def test_two_audits_say_the_same_with_any_number_of_threads(features: Features, full: Audit) -> None:
    assert audit_photos(features, "full", n_workers=1) == full
    other = audit_photos(features, "full", n_workers=3, seed=1)
    assert other.findings == full.findings


def test_the_steps_are_timed_and_progress_is_told(features: Features) -> None:
    told: list[tuple[str, int, int]] = []
    clock = Clock(lambda *step: told.append(step))
    audit_photos(features, "full", clock=clock)
    assert [stage.name for stage in clock.stages] == ["look", "compare", "split", "labels", "shortcuts"]
    n_photos = features.dataset.n_photos
    assert ("look", n_photos, n_photos) in told
    assert all(done <= n for _, done, n in told)


# --- odd sets -------------------------------------------------------------------------------------------------------


def test_photos_without_labels_are_looked_at_too(tmp_path: Path) -> None:
    for i in range(22):
        render(i % 3, 500 + i).save(tmp_path / f"{i}.jpg")
    shutil.copy(tmp_path / "0.jpg", tmp_path / "0 copy.jpg")
    (tmp_path / "empty.jpg").touch()
    audit = audit_photos(compute(tmp_path), "full")
    assert Counter(one.check for one in audit.findings) == {"unusable": 1, "exact_duplicate": 1}
    assert (audit.remarks, audit.gap, audit.nearest) == ((), None, {})
    assert len(audit.dataset.tree) == 0
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in list_rows(audit)]
    assert {row["label"] for row in rows} == {""}


def test_photos_without_labels_in_splits_leak_too(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for i in range(3):
            render(i, 900 + i + 10 * (split == "val")).save(tmp_path / split / f"{i}.jpg")
    shutil.copy(tmp_path / "train" / "1.jpg", tmp_path / "val" / "9.jpg")
    audit = audit_photos(compute(tmp_path), "quick")
    assert {name: other for name, (other, _) in find(audit, "leak").items()} == {"val/9.jpg": "train/1.jpg"}


@pytest.mark.parametrize("n_photos", [1, 2])
def test_a_set_of_few_photos_a_class_is_no_error(tmp_path: Path, n_photos: int) -> None:
    audit = audit_photos(compute(write_set(tmp_path, n_photos, seed=4)), "full")
    if n_photos == 1:
        assert not find(audit, "wrong_label")
    assert not find(audit, "outlier")
    balance = next(one for one in audit.remarks if one.check == "balance")
    assert balance.flagged
    assert balance.text.startswith(f"{n_photos} to {n_photos} photos a class")


def test_one_class_and_one_photo_are_no_error(tmp_path: Path) -> None:
    folder = tmp_path / NAMES[0]
    folder.mkdir()
    render(0, 600).save(folder / "1.jpg")
    alone = audit_photos(compute(tmp_path), "full")
    assert (alone.findings, alone.gap) == ((), None)
    for i in range(2, 6):
        render(0, 600 + i).save(folder / f"{i}.jpg")
    audit = audit_photos(compute(tmp_path), "full")
    assert (audit.gap, audit.remarks) == (None, ())
    assert not find(audit, "wrong_label")


def test_a_set_of_one_photo_many_times_is_no_error(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        for i in range(5):
            render(0, 700).save(tmp_path / name / f"{i}.jpg")
    audit = audit_photos(compute(tmp_path), "full")
    assert len(set(audit.dataset.groups)) == 1
    assert len(find(audit, "conflicting_label")) == 10
    assert len(find(audit, "exact_duplicate")) == 4
    assert audit.gap is None


def test_a_class_that_fewer_photos_and_one_scene_show_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, 6, seed=6)
    rare = tmp_path / "Rare"
    rare.mkdir()
    for i in range(3):
        render(0, 800).resize((72 + i, 72 + i)).save(rare / f"{i}.jpg")
    texts = [one.text for one in audit_photos(compute(tmp_path), "quick").remarks if one.flagged]
    assert texts == [
        f"3 to 6 photos a class, 6 in the middle one; fewest of Rare, {NAMES[0]}, {NAMES[1]}.",
        "Photos of one scene alone: Rare. How they are recognised elsewhere cannot be measured.",
    ]


def test_a_class_without_photos_to_measure_on_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, 5, seed=7, split="train")
    write_set(tmp_path, 1, seed=8, split="val")
    shutil.rmtree(tmp_path / "val" / NAMES[1])
    texts = [one.text for one in audit_photos(compute(tmp_path), "quick").remarks if one.flagged]
    assert texts == [f"1 class has no photo in val: {NAMES[1]}."]


# --- photos that go away --------------------------------------------------------------------------------------------


def test_photos_that_went_away_after_their_features_were_computed(tmp_path: Path) -> None:
    features = compute(write_set(tmp_path, 4, seed=9))
    gone, changed = (tmp_path / NAMES[0] / name for name in ("1.jpg", "2.jpg"))
    gone.unlink()
    changed.write_bytes((tmp_path / NAMES[1] / "0.jpg").read_bytes())
    audit = audit_photos(features, "full")
    assert set(find(audit, "unusable")) == {f"{NAMES[0]}/1.jpg", f"{NAMES[0]}/2.jpg"}
    assert audit.dataset.n_photos == 10
    kept = [row for row, photo in enumerate(features.dataset.photos) if photo.path not in (gone, changed)]
    smaller = replace(
        features.dataset, photos=tuple(features.dataset.photos[row] for row in kept), skipped=audit.dataset.skipped
    )
    wanted = audit_photos(replace(features, vectors=features.vectors[kept], dataset=smaller), "full")
    assert audit == wanted  # no photo has the features of another


def test_where_all_photos_went_away_it_says_so(tmp_path: Path) -> None:
    features = compute(write_set(tmp_path, 1, seed=10))
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"no photo of .* can be used: 3 failed; the first: .*0.jpg"):
        audit_photos(features, "full")


# --- nothing changes ------------------------------------------------------------------------------------------------


def test_nothing_in_the_folder_of_the_user_changes(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "fruit", 3, seed=11)
    shutil.copy(folder / NAMES[0] / "0.jpg", folder / NAMES[1] / "copy.jpg")
    (folder / NAMES[0] / "empty.jpg").touch()
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)  # root may write all the same
    before = look_at_files(folder)
    try:
        for level in ("none", "quick", "full"):
            audit_photos(compute(folder), level)
        assert look_at_files(folder) == before
    finally:
        for path in paths:
            path.chmod(0o755)


def test_an_audit_changes_neither_features_nor_dataset(features: Features) -> None:
    vectors, dataset = features.vectors.copy(), features.dataset
    audit = audit_photos(features, "full")
    np.testing.assert_array_equal(features.vectors, vectors)
    assert features.dataset is dataset
    assert isinstance(audit.dataset, Dataset)
    assert [replace(photo, group="") for photo in audit.dataset.photos] == [
        replace(photo, group="") for photo in dataset.photos
    ]


def test_photos_that_fail_after_the_audit_are_told_too(features: Features) -> None:
    audit = audit_photos(features, "none")
    lost, *rest = features.dataset.photos
    failed = Skipped(lost.name, lost.path, "corrupt", "wanted the content it had")
    used = replace(features.dataset, photos=tuple(rest), skipped=(*features.dataset.skipped, failed))
    settled = settle_audit(audit, used)
    assert settled.dataset == used
    told = {one.name for one in settled.findings if one.check == "unusable"}
    assert told == {one.name for one in audit.findings} | {lost.name}
    assert settle_audit(settled, used) == settled
