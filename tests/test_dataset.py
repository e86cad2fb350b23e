"""Laws of splits and folds, and what folders and tables say about the photos in them."""

from __future__ import annotations

import re
import unicodedata
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.dataset import ClassTree, Dataset, Photo, iter_folds, load_dataset, split_dataset
from pomona.errors import DataError, OptionError
from pomona.parts import note_copies, plan_parts

if TYPE_CHECKING:
    import random


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


# --- splits and folds -----------------------------------------------------------------------------------------------


def dataset_of(labels: list[int], groups: list[str], splits: list[str | None] | None = None) -> Dataset:
    tree = ClassTree.from_paths(f"class {label}" for label in range(max(labels) + 1))
    photos = tuple(
        Photo(Path(f"{row}.jpg"), f"sha {row}", label, group, splits[row] if splits else None, f"{row}.jpg")  # type: ignore[arg-type]
        for row, (label, group) in enumerate(zip(labels, groups, strict=True))
    )
    return Dataset(photos, tree, (), 0, Path())


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=60)
"""(class, number of its group within the class) of each photo."""
MIXED_ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=60)
"""(class, number of its group) of each photo; a group may hold photos of several classes."""


def has_spare_group(dataset: Dataset) -> bool:
    groups_of: dict[int, set[str]] = {}
    for photo in dataset.photos:
        groups_of.setdefault(photo.label, set()).add(photo.group)
    return any(
        all(len(groups_of[p.label]) > 1 for p in dataset.photos if p.group == group)
        for group in {photo.group for photo in dataset.photos}
    )


@given(MIXED_ROWS, st.integers(0, 3), st.floats(0.05, 0.9))
def test_split_never_divides_a_group_and_leaves_each_class_in_train(
    rows: list[tuple[int, int]], seed: int, share: float
) -> None:
    dataset = dataset_of([row[0] for row in rows], [f"group {row[1]}" for row in rows])
    if not has_spare_group(dataset):
        with pytest.raises(DataError, match="no photo can be spared"):
            split_dataset(dataset, val_share=share, seed=seed)
        return
    done = split_dataset(dataset, val_share=share, seed=seed)
    assert [replace(photo, split=None) for photo in done.photos] == list(dataset.photos)
    splits_of: dict[str, set[str | None]] = {}
    for photo in done.photos:
        splits_of.setdefault(photo.group, set()).add(photo.split)
    assert all(len(splits) == 1 and splits <= {"train", "val"} for splits in splits_of.values())
    assert {photo.label for photo in done.part("train").photos} == {photo.label for photo in dataset.photos}
    assert done.part("val").photos


@given(ROWS, st.integers(0, 3), st.floats(0.05, 0.9))
def test_split_is_even_within_one_group(rows: list[tuple[int, int]], seed: int, share: float) -> None:
    dataset = dataset_of([label for label, _ in rows], [f"group {label} {number}" for label, number in rows])
    sizes = Counter(rows)
    if not has_spare_group(dataset):
        return
    val = split_dataset(dataset, val_share=share, seed=seed).part("val")
    for label in {label for label, _ in rows}:
        of_class = [size for (other, _), size in sizes.items() if other == label]
        n_val = sum(photo.label == label for photo in val.photos)
        if len(of_class) > 1:
            assert abs(n_val - share * sum(of_class)) <= max(of_class)
            assert n_val > 0
        else:
            assert n_val == 0


@given(ROWS, st.integers(0, 3), st.randoms())
def test_split_does_not_depend_on_the_order_of_photos(
    rows: list[tuple[int, int]], seed: int, rng: random.Random
) -> None:
    dataset = dataset_of([label for label, _ in rows], [f"group {label} {number}" for label, number in rows])
    if not has_spare_group(dataset):
        return
    shuffled = list(dataset.photos)
    rng.shuffle(shuffled)
    one = {photo.name: photo.split for photo in split_dataset(dataset, seed=seed).photos}
    other = {
        photo.name: photo.split for photo in split_dataset(replace(dataset, photos=tuple(shuffled)), seed=seed).photos
    }
    assert one == other


def test_another_seed_draws_other_photos() -> None:
    dataset = dataset_of([0] * 50 + [1] * 50, [str(row) for row in range(100)])
    drawn = {split_dataset(dataset, seed=seed).fingerprint for seed in range(5)}
    assert len(drawn) == 5
    assert split_dataset(dataset, seed=3) == split_dataset(dataset, seed=3)
    assert len(split_dataset(dataset).part("val").photos) == 20
    assert len(split_dataset(dataset_of([0] * 8, list("abcdefgh"))).part("val").photos) == 2


def test_photos_of_val_and_test_stay_there() -> None:
    dataset = dataset_of([0] * 6, ["a", "b", "c", "d", "d", "a"], ["train", "train", "train", "test", None, "train"])
    done = split_dataset(dataset, val_share=0.4)
    assert [photo.split for photo in done.photos[3:5]] == ["test", "test"]
    assert done.photos[0].split == done.photos[5].split
    leaky = split_dataset(dataset_of([0] * 4, ["a", "a", "b", "c"], ["test", "train", "train", "train"]))
    assert [photo.split for photo in leaky.photos[:2]] == ["test", "train"]


def test_split_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match="each of the 3 classes"):
        split_dataset(dataset_of([0, 1, 2, 2], ["a", "b", "c", "c"]))
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(OptionError, match="val_share"):
            split_dataset(dataset_of([0, 0], ["a", "b"]), val_share=share)


@given(MIXED_ROWS, st.integers(2, 5), st.integers(0, 3))
def test_folds_partition_and_never_divide_a_group(rows: list[tuple[int, int]], n_folds: int, seed: int) -> None:
    labels = np.array([label for label, _ in rows])
    groups = np.array([f"group {number}" for _, number in rows])
    if len(set(groups)) < n_folds:
        with pytest.raises(DataError, match=f"at least {n_folds} groups"):
            iter_folds(labels, groups, n_folds=n_folds, seed=seed)
        return
    folds = list(iter_folds(labels, groups, n_folds=n_folds, seed=seed))
    assert len(folds) == n_folds
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(rows)))
    for train, held_out in folds:
        assert len(held_out) > 0
        assert sorted([*train, *held_out]) == list(range(len(rows)))
        assert not set(groups[train]) & set(groups[held_out])


@given(ROWS, st.integers(2, 5), st.integers(0, 3))
def test_each_class_of_two_groups_is_in_each_train_part(rows: list[tuple[int, int]], n_folds: int, seed: int) -> None:
    labels = np.array([label for label, _ in rows])
    groups = np.array([f"group {label} {number}" for label, number in rows])
    if len(set(groups)) < n_folds:
        return
    wide = {label for label in labels if len(set(groups[labels == label])) > 1}
    largest = max(Counter(rows).values())
    for train, held_out in iter_folds(labels, groups, n_folds=n_folds, seed=seed):
        assert wide <= set(labels[train])
        for label in wide:
            assert (labels[held_out] == label).sum() <= (labels == label).sum() / n_folds + largest


@given(ROWS, st.randoms())
def test_folds_do_not_depend_on_the_order_of_photos(rows: list[tuple[int, int]], rng: random.Random) -> None:
    labels = np.array([label for label, _ in rows])
    groups = np.array([f"group {label} {number}" for label, number in rows])
    if len(set(groups)) < 3:
        return
    order = np.array(rng.sample(range(len(rows)), len(rows)))
    one = [sorted(held_out) for _, held_out in iter_folds(labels, groups, n_folds=3)]
    other = [sorted(order[held_out]) for _, held_out in iter_folds(labels[order], groups[order], n_folds=3)]
    assert one == other


def test_folds_keep_the_last_group_of_a_class_apart_from_its_others() -> None:
    labels, groups = np.array([1, 1, 0, 1, 0, 1]), np.array(["b", "c", "c", "d", "d", "b"])
    for train, _ in iter_folds(labels, groups, n_folds=2):
        assert set(labels[train]) == {0, 1}


def test_folds_refuse_what_they_cannot_do() -> None:
    with pytest.raises(OptionError, match="n_folds"):
        iter_folds(np.zeros(4, int), np.array(list("abcd")), n_folds=1)
    with pytest.raises(DataError, match="one for each of 4 labels, got 3"):
        iter_folds(np.zeros(4, int), np.array(list("abc")))


# --- folders --------------------------------------------------------------------------------------------------------


def test_nested_tree_with_splits(tmp_path: Path) -> None:
    write_tree(tmp_path, "Training/Fruit/Apple/2.jpg", "Training/Fruit/Apple/10.jpg", "Training/Fruit/3.jpg")
    write_tree(tmp_path, "Training/Box/Milk/1.jpg", "Test/Fruit/Apple/5.jpg", "VALID/Box/Milk/6.jpg")
    dataset = load_dataset(tmp_path)
    assert labelled(dataset) == {
        "Test/Fruit/Apple/5.jpg": "Fruit/Apple",
        "Training/Box/Milk/1.jpg": "Box/Milk",
        "Training/Fruit/3.jpg": "Fruit",
        "Training/Fruit/Apple/2.jpg": "Fruit/Apple",
        "Training/Fruit/Apple/10.jpg": "Fruit/Apple",
        "VALID/Box/Milk/6.jpg": "Box/Milk",
    }
    assert [photo.split for photo in dataset.photos] == ["test", "train", "train", "train", "train", "val"]
    assert [photo.name for photo in dataset.photos][3:5] == [
        "Training/Fruit/Apple/2.jpg",
        "Training/Fruit/Apple/10.jpg",
    ]
    assert dataset.tree.names == ("Apple", "Fruit", "Milk")
    assert dataset.counts().tolist() == [3, 1, 2]
    assert dataset.part("test").labels.tolist() == [0]
    assert all(photo.group == photo.sha256 for photo in dataset.photos)


def test_classes_match_by_name_where_val_lacks_one(tmp_path: Path) -> None:
    write_tree(tmp_path, "train/Apple/1.jpg", "train/Pear/1.jpg", "val/Pear/2.jpg", "val/Kiwi/2.jpg")
    dataset = load_dataset(tmp_path)
    assert labelled(dataset.part("val")) == {"val/Pear/2.jpg": "Pear", "val/Kiwi/2.jpg": "?"}
    assert dataset.unknown_labels == ("Kiwi",)
    assert dataset.tree.names == ("Apple", "Pear")
    alone = load_dataset(tmp_path / "val", tree=dataset.tree, min_classes=1)
    assert labelled(alone) == {"Pear/2.jpg": "Pear", "Kiwi/2.jpg": "?"}


def test_given_tree_matches_by_path_and_then_by_name(tmp_path: Path) -> None:
    tree = ClassTree.from_paths(["Pepper/Red", "Apple/Red", "Apple/Gala"])
    write_tree(tmp_path, "Shop/Apple/Red/1.jpg", "Shop/Pepper/Red/1.jpg", "Gala/1.jpg", "Red/1.jpg")
    dataset = load_dataset(tmp_path, tree=tree)
    assert set(labelled(dataset).values()) == {"Apple/Red", "Pepper/Red", "Apple/Gala", "?"}
    assert dataset.unknown_labels == ("Red",)
    assert dataset.tree is tree


def test_photos_that_nothing_is_said_of_are_taken_where_no_labels_are_needed(tmp_path: Path) -> None:
    flat = write_tree(tmp_path / "flat", "1.jpg", "2.jpg")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as file:
        for path in flat.iterdir():
            file.write(path, path.name)
    for data in (flat, tmp_path / "flat.zip"):
        with pytest.raises(DataError, match="no class folders: 2 photos"):
            load_dataset(data)
        dataset = load_dataset(data, needs_labels=False)
        assert labelled(dataset) == {"1.jpg": "?", "2.jpg": "?"}
        assert (len(dataset.tree), dataset.unknown_labels, dataset.counts().tolist()) == (0, (), [])
    split = load_dataset(write_tree(tmp_path / "split", "train/1.jpg", "valid/2.jpg"), needs_labels=False)
    assert [(photo.label, photo.split) for photo in split.photos] == [(-1, "train"), (-1, "val")]
    tree = ClassTree.from_paths(["Apple", "Pear"])
    assert set(load_dataset(flat, tree=tree, needs_labels=False).labels) == {-1}


@pytest.mark.parametrize(
    "beside", [[], ["3.jpg"], ["Apple/Gala/4.jpg"], ["val/Kiwi/1.jpg", "train/Apple/2.jpg", "train/Pear/2.jpg"]]
)
def test_where_labels_are_they_count_whether_needed_or_not(tmp_path: Path, beside: list[str]) -> None:
    write_tree(tmp_path, "Apple/1.jpg", "Pear/2.jpg", *beside)
    assert load_dataset(tmp_path, needs_labels=False) == load_dataset(tmp_path)


def test_photos_of_one_class_are_too_few_even_where_no_labels_are_needed(tmp_path: Path) -> None:
    write_tree(tmp_path, "Apple/1.jpg")
    with pytest.raises(DataError, match="wanted photos of at least 2 classes, got 1"):
        load_dataset(tmp_path, needs_labels=False)
    assert labelled(load_dataset(tmp_path, min_classes=1, needs_labels=False)) == {"Apple/1.jpg": "Apple"}
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no photo found: it is empty"):
        load_dataset(tmp_path / "none", needs_labels=False)


def test_folder_of_another_parent_is_an_unknown_class(tmp_path: Path) -> None:
    tree = ClassTree.from_paths(["Apple/Red", "Apple/Green", "Pepper/Yellow"])
    write_tree(tmp_path, "Pepper/Red/1.jpg", "Pepper/Yellow/1.jpg", "Green/1.jpg")
    dataset = load_dataset(tmp_path, tree=tree)
    assert labelled(dataset) == {
        "Green/1.jpg": "Apple/Green",
        "Pepper/Red/1.jpg": "?",
        "Pepper/Yellow/1.jpg": "Pepper/Yellow",
    }
    assert dataset.unknown_labels == ("Pepper/Red",)


@pytest.mark.parametrize("wrapper", ["", "grocery/", "a/b/"])
def test_wrapping_folder_is_stepped_through(tmp_path: Path, wrapper: str) -> None:
    write_tree(tmp_path, *(f"{wrapper}{name}" for name in ("train/Apple/1.jpg", "train/Pear/1.jpg", "val/Pear/2.jpg")))
    dataset = load_dataset(tmp_path)
    assert dataset.tree.names == ("Apple", "Pear")
    assert len(dataset.part("val").photos) == 1


def test_level_of_a_single_node_is_dropped(tmp_path: Path) -> None:
    write_tree(tmp_path, "data/Fruit/Apple/1.jpg", "data/Fruit/Pear/1.jpg")
    assert load_dataset(tmp_path).tree.paths == (("Apple",), ("Pear",))
    assert load_dataset(tmp_path / "data" / "Fruit").tree.paths == (("Apple",), ("Pear",))


@pytest.mark.parametrize("beside", ["", "icons/1.jpg"])
def test_part_without_a_usable_photo_is_declared(tmp_path: Path, beside: str) -> None:
    write_tree(tmp_path, "train/Apple/1.jpg", "train/Pear/1.jpg", *filter(None, [beside]))
    assert load_dataset(tmp_path / "train").declared_splits == frozenset()
    (tmp_path / "val" / "Apple").mkdir(parents=True)
    (tmp_path / "val" / "Apple" / "2.jpg").write_text("<html>")
    dataset = load_dataset(tmp_path)
    assert dataset.tree.names == ("Apple", "Pear")
    assert dataset.declared_splits == {"train", "val"}
    write_photo(tmp_path / "test" / "3.jpg")
    assert load_dataset(tmp_path).declared_splits == {"train", "val", "test"}
    assert {photo.split for photo in dataset.photos} == {"train"}


def test_table_declares_parts_of_rows_that_cannot_be_used(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "t.csv").write_text(
        "file_name,label,split\na.jpg,Apple,train\nb.jpg,Pear,train\ngone.jpg,Pear,val\na.jpg,,test\n"
    )
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.declared_splits == {"train", "val", "test"}
    assert {photo.split for photo in dataset.photos} == {"train"}


def test_class_called_train_is_a_class(tmp_path: Path) -> None:
    write_tree(tmp_path, "car/1.jpg", "plane/1.jpg", "train/1.jpg")
    assert load_dataset(tmp_path).tree.names == ("car", "plane", "train")


def test_photos_beside_the_folders_are_reported(tmp_path: Path) -> None:
    write_tree(
        tmp_path, "train/Apple/1.jpg", "train/Pear/1.jpg", "val/Pear/2.jpg", "cover.jpg", "icons/x.jpg", "val/y.jpg"
    )
    dataset = load_dataset(tmp_path)
    assert {one.name: one.fault for one in dataset.skipped} == {
        "cover.jpg": "no_label",
        "icons/x.jpg": "no_split",
        "val/y.jpg": "no_label",
    }
    assert dataset.n_photos == 3


def test_unicode_forms_of_folders_match(tmp_path: Path) -> None:
    write_tree(tmp_path, unicodedata.normalize("NFC", "train/Açaí/1.jpg"), "train/Pear/1.jpg")
    write_tree(tmp_path, unicodedata.normalize("NFD", "val/Açaí/2.jpg"))
    assert load_dataset(tmp_path).unknown_labels == ()


def test_duplicates_share_a_group_and_are_exposed(tmp_path: Path) -> None:
    for name in ("train/Apple/1.jpg", "train/Pear/2.jpg", "val/Apple/3.jpg"):
        write_photo(tmp_path / name, "same")
    write_tree(tmp_path, "train/Apple/4.jpg")
    dataset = load_dataset(tmp_path)
    assert len(set(dataset.groups[[0, 2, 3]])) == 1
    assert dataset.leaks == (("train/Apple/1.jpg", "val/Apple/3.jpg"),)
    assert dataset.conflicts == (("train/Apple/1.jpg", "train/Pear/2.jpg"),)


def test_fingerprint_sees_every_field_and_not_the_place(tmp_path: Path) -> None:
    for root in ("a", "b"):
        for name in ("Apple/1.jpg", "Pear/1.jpg"):
            write_photo(tmp_path / root / name, name)
    one, other = load_dataset(tmp_path / "a"), load_dataset(tmp_path / "b")
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint == replace(one, photos=one.photos[::-1]).fingerprint
    for change in ({"sha256": "0"}, {"label": 1}, {"label": -1}, {"group": "x"}, {"split": "val"}, {"name": "y"}):
        changed = replace(one, photos=(replace(one.photos[0], **change), *one.photos[1:]))
        assert changed.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no photo found: it is empty"),
        (("1.jpg", "2.jpg"), "no class folders: 2 photos"),
        (("train/1.jpg", "val/2.jpg"), "no class folders: 2 photos"),
        (("Apple/1.jpg", "Apple/2.jpg"), r"at least 2 classes, got 1 \(Apple\)"),
        (("train/Apple/1.jpg", "val/Pear/2.jpg"), r"at least 2 classes, got 1 \(Apple\)"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    write_tree(tmp_path, *names)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_class_is_enough_to_evaluate(tmp_path: Path) -> None:
    write_tree(tmp_path, "Apple/1.jpg")
    assert load_dataset(tmp_path, min_classes=1).tree.names == ("Apple",)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_table_groups_that_share_a_photo_become_one(tmp_path: Path) -> None:
    for name, content in {"a": "1", "b": "1", "c": "2", "d": "2", "e": "3", "f": "4"}.items():
        write_photo(tmp_path / name, content)
    rows = ["a,X,g1", "b,X,g2", "c,Y,g2", "d,Y,g3", "e,Y,g3", "f,Y,g4"]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,label,group", *rows]))
    assert load_dataset(tmp_path / "t.csv").groups.tolist() == ["g1"] * 5 + ["g4"]


def test_groups_that_the_given_split_divides_are_told(tmp_path: Path) -> None:
    for name, content in {"a": "1", "b": "2", "c": "3", "d": "4", "e": "4"}.items():
        write_photo(tmp_path / name, content)
    rows = ["a,X,train,g10", "b,X,val,g10", "c,Y,train,g9", "d,Y,train,", "e,Y,val,"]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,label,split,group", *rows]))
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.divided_groups == ("g10",)
    assert dataset.leaks == (("d", "e"),)
    placed = replace(dataset, photos=tuple(replace(photo, split=None) for photo in dataset.photos))
    assert split_dataset(placed, val_share=0.5).divided_groups == placed.divided_groups == ()


def test_same_photo_with_two_labels_is_a_conflict(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg Apple\na.jpg Pear\n")
    assert load_dataset(tmp_path / "list.txt").conflicts == (("a.jpg", "a.jpg"),)


# --- what training makes of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "declared", "evaluated_on", "note"),
    [
        ([None] * 8, "val", "photos kept apart", "The val part has no usable photo; 2 photos were kept apart"),
        (["train"] * 8, "val test", "photos kept apart", "The val and test parts have no usable photo; 2 photos were"),
        (["train"] * 6 + ["test"] * 2, "val", "photos of the test part", "The val part .*; the L2 strength was chosen"),
        (["train"] * 6 + ["val"] * 2, "test", "photos of the val part", "The test part .*; the numbers are measured"),
    ],
)
def test_a_part_without_a_usable_photo_is_told(
    splits: list[str | None], declared: str, evaluated_on: str, note: str
) -> None:
    dataset = dataset_of([0, 1] * 4, list("abcdefgh"), splits)
    parts = frozenset(declared.split()) | {split for split in splits if split}
    placed, plan = plan_parts(replace(dataset, declared_splits=parts), 0.25, 0)  # type: ignore[arg-type]
    assert re.match(note, plan.notes[-1])
    assert plan.evaluated_on == evaluated_on
    assert {photo.split for photo in placed.photos} == {"train", plan.report_on}
    assert not any("no usable photo" in text for text in plan_parts(dataset, 0.25, 0)[1].notes)


def test_divided_groups_are_told() -> None:
    dataset = dataset_of([0, 0, 1, 1], ["tree 1", "tree 1", "b", "c"], ["train", "val", "train", "val"])
    told = "Groups with photos on both sides of a split: 1 (tree 1)."
    assert note_copies(dataset) == (told,)
    assert note_copies(replace(dataset, photos=dataset.photos[1:])) == ()


def test_errors_call_the_data_what_the_user_called_it() -> None:
    dataset = dataset_of([0, 1], ["a", "b"], ["val", "val"])
    with pytest.raises(DataError, match=r"^\.: wanted a train part"):
        plan_parts(dataset, 0.2, 0)
    with pytest.raises(DataError, match=r"^my photos\.zip: wanted a train part"):
        plan_parts(replace(dataset, shown="my photos.zip"), 0.2, 0)


# --- real photos ----------------------------------------------------------------------------------------------------


def test_grocery(shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "grocery")
    train, val = dataset.part("train"), dataset.part("val")
    assert (train.n_photos, val.n_photos, len(dataset.tree), dataset.tree.n_levels) == (2640, 296, 81, 3)
    assert (len(set(train.labels)), len(set(val.labels)), dataset.unknown_labels) == (81, 60, ())
    assert dataset.tree.level(1)[0] == ("Fruit", "Packages", "Vegetables")
    assert len(dataset.tree.level(2)[0]) == 43
    assert (dataset.leaks, dataset.skipped, dataset.n_ignored) == ((), (), 4)
    assert dataset.tree.index_of("Fruit/Apple/Granny-Smith") == dataset.tree.index_of("Granny-Smith")
    alone = load_dataset(shared / "data" / "grocery" / "val", tree=dataset.tree, min_classes=1)
    assert alone.labels.tolist() == val.labels.tolist()
    split = split_dataset(train)
    assert abs(len(split.part("val").photos) - 528) <= 10
    assert set(split.part("val").labels) == set(split.part("train").labels) == set(range(81))


def test_grocery_list_agrees_with_its_folders(shared: Path) -> None:
    listed = load_dataset(shared / "data" / "grocery" / "train.txt")
    tree = load_dataset(shared / "data" / "grocery").part("train")
    assert [photo.name for photo in listed.photos] == [photo.name for photo in tree.photos]
    pairs = {(a.label, b.label) for a, b in zip(listed.photos, tree.photos, strict=True)}
    assert len(pairs) == len(listed.tree) == 81
    assert listed.tree.names[:2] == ("0", "1")


def test_other_real_folders(shared: Path) -> None:
    turntable = load_dataset(shared / "data" / "fruits360_3body")
    assert (turntable.n_photos, turntable.tree.n_levels, turntable.tree.level(1)[0]) == (
        2126,
        2,
        ("Apple", "Cherry", "Tomato"),
    )
    assert {photo.split for photo in turntable.photos} == {"train"}
    with pytest.raises(DataError, match="no class folders: 240 photos"):
        load_dataset(shared / "data" / "fruit_boxes")
    dirty = load_dataset(shared / "data" / "dirty_images")
    assert {one.name.rsplit("/", 1)[-1]: one.fault for one in dirty.skipped} == {"empty.heic": "empty"}
    assert dirty.n_photos > 35


def test_strangers_have_no_label(shared: Path) -> None:
    tree = ClassTree.from_paths(["Apple", "Pear"])
    dataset = load_dataset(shared / "data" / "not_fruit", tree=tree, min_classes=1)
    assert set(dataset.labels) == {-1}
    assert "dress" in dataset.unknown_labels
    assert dataset.counts().tolist() == [0, 0]
