"""What belongs together is in one group, no split or fold divides a group, and a leak names the right photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo, iter_folds, split_dataset
from pomona.errors import DataError
from pomona.evaluation import measure_share
from pomona.files import hash_bytes
from pomona.grouping import Leak, group_photos, list_leaks, measure_gap
from pomona.likeness import Copy, Likeness

if TYPE_CHECKING:
    import random

NO_PAIRS = np.zeros((0, 2), np.intp)
TREE = ClassTree.from_paths([("Apple",), ("Pear",), ("Plum",)])


def make_photo(name: str, content: object, label: int = 0, group: str = "", split: str | None = None) -> Photo:
    sha256 = hash_bytes(str(content).encode())
    return Photo(Path(name), sha256, label, group or sha256, split, name)  # type: ignore[arg-type]


def make_dataset(*photos: Photo) -> Dataset:
    return Dataset(photos, TREE, (), 0, Path())


def make_likeness(dataset: Dataset, copies: list[tuple[int, int]] | None = None, scenes: list[int] | None = None):
    """Copies of other bytes beside those of the same bytes; photos of the same bytes are of one scene."""
    first: dict[str, int] = {}
    found = []
    firsts = [first.setdefault(photo.sha256, row) for row, photo in enumerate(dataset.photos)]
    for row, one in enumerate(firsts):
        if row != one:
            found.append(Copy(one, row, "exact_duplicate", 1.0, ""))
    for one, other in copies or []:
        if dataset.photos[one].sha256 != dataset.photos[other].sha256:
            found.append(Copy(min(one, other), max(one, other), "near_duplicate", 0.98, ""))
    communities = np.array(scenes if scenes is not None else range(dataset.n_photos), np.intp)[firsts]
    return Likeness(tuple(found), communities.reshape(-1), NO_PAIRS)


def list_parts(dataset: Dataset) -> set[frozenset[str]]:
    parts: dict[str, set[str]] = {}
    for photo in dataset.photos:
        parts.setdefault(photo.group, set()).add(photo.name)
    return {frozenset(names) for names in parts.values()}


@st.composite
def draw_sets(draw: st.DrawFn) -> tuple[Dataset, Likeness]:
    """Photos of few contents, some in named groups, with copies and scenes among them."""
    n_photos = draw(st.integers(1, 14))
    numbers = st.integers(0, n_photos - 1)
    contents = draw(st.lists(st.integers(0, 20), min_size=n_photos, max_size=n_photos))
    named = draw(st.dictionaries(st.integers(0, 20), st.sampled_from(["A", "B", "C"]), max_size=5))
    labels = draw(st.lists(st.integers(0, 2), min_size=n_photos, max_size=n_photos))
    dataset = make_dataset(
        *(
            make_photo(f"{row}.jpg", content, label, named.get(content, ""))
            for row, (content, label) in enumerate(zip(contents, labels, strict=True))
        )
    )
    copies = [pair for pair in draw(st.lists(st.tuples(numbers, numbers), max_size=4)) if pair[0] != pair[1]]
    scenes = draw(st.lists(st.integers(0, n_photos - 1), min_size=n_photos, max_size=n_photos))
    return dataset, make_likeness(dataset, copies, scenes)


# --- laws -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(draw_sets())
def test_what_belongs_together_is_in_one_group(drawn: tuple[Dataset, Likeness]) -> None:
    dataset, likeness = drawn
    grouped = group_photos(dataset, likeness)
    assert [replace(photo, group="") for photo in grouped.photos] == [
        replace(photo, group="") for photo in dataset.photos
    ]
    groups = [photo.group for photo in grouped.photos]
    assert all(groups[copy.first] == groups[copy.second] for copy in likeness.copies)
    for one, two, group, other in zip(dataset.photos, dataset.photos[1:], groups, groups[1:], strict=False):
        if one.group == two.group:
            assert group == other
    copied = {row for copy in likeness.copies for row in (copy.first, copy.second)}
    free = [row for row in range(len(groups)) if not is_named(groups[row]) and row not in copied]
    for row in free:
        for other in free:
            if likeness.communities[row] == likeness.communities[other]:
                assert groups[row] == groups[other]
    assert group_photos(dataset, likeness) == grouped


def test_a_copy_astray_does_not_join_two_scenes() -> None:
    dataset = make_dataset(*(make_photo(f"{i}.jpg", i) for i in range(8)))
    grouped = group_photos(dataset, make_likeness(dataset, [(0, 1), (0, 4)], [0, 0, 0, 0, 1, 1, 1, 1]))
    assert list_parts(grouped) == {frozenset(f"{i}.jpg" for i in part) for part in ((0, 1, 2, 3, 4), (5, 6, 7))}


def is_named(group: str) -> bool:
    return group in {"A", "B", "C"}


@settings(max_examples=200, deadline=None)
@given(draw_sets())
def test_named_groups_are_joined_by_copies_alone(drawn: tuple[Dataset, Likeness]) -> None:
    dataset, likeness = drawn
    parts = list_parts(group_photos(dataset, likeness))
    apart = replace(likeness, communities=np.arange(dataset.n_photos))
    by_copies = list_parts(group_photos(dataset, apart))
    named = {photo.name for photo in dataset.photos if is_named(photo.group)}
    assert {part for part in parts if part & named} == {part for part in by_copies if part & named}


@settings(max_examples=100, deadline=None)
@given(draw_sets(), st.randoms(use_true_random=False))
def test_groups_and_their_names_do_not_depend_on_the_order(drawn: tuple[Dataset, Likeness], rng: random.Random) -> None:
    dataset, likeness = drawn
    order = list(range(dataset.n_photos))
    rng.shuffle(order)
    place = {row: i for i, row in enumerate(order)}
    mixed = replace(dataset, photos=tuple(dataset.photos[row] for row in order))
    copies = tuple(replace(one, first=place[one.first], second=place[one.second]) for one in likeness.copies)
    found = group_photos(mixed, Likeness(copies, likeness.communities[order], NO_PAIRS))
    wanted = {photo.name: photo.group for photo in group_photos(dataset, likeness).photos}
    assert {photo.name: photo.group for photo in found.photos} == wanted


@settings(max_examples=100, deadline=None)
@given(draw_sets(), st.integers(0, 3))
def test_no_split_and_no_fold_divides_a_group(drawn: tuple[Dataset, Likeness], seed: int) -> None:
    grouped = group_photos(*drawn)
    try:
        split = split_dataset(grouped, val_share=0.3, seed=seed)
    except DataError:  # no group can be spared
        split = None
    if split:
        assert split.divided_groups == ()
        assert split.leaks == ()
        assert list_leaks(split, drawn[1]) == ()
    if len(set(grouped.groups)) > 1:
        for train, held_out in iter_folds(grouped.labels, grouped.groups, n_folds=2, seed=seed):
            assert not set(grouped.groups[train]) & set(grouped.groups[held_out])
            contents = np.array([photo.sha256 for photo in grouped.photos])
            assert not set(contents[train]) & set(contents[held_out])


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_photo_alone_keeps_its_group_and_several_get_a_name() -> None:
    dataset = make_dataset(*(make_photo(f"{i}.jpg", i) for i in range(4)))
    grouped = group_photos(dataset, make_likeness(dataset, [(0, 2)]))
    smallest = min(dataset.photos[0].sha256, dataset.photos[2].sha256)
    assert grouped.groups.tolist() == [
        f"scene-{smallest[:12]}",
        dataset.photos[1].sha256,
        f"scene-{smallest[:12]}",
        dataset.photos[3].sha256,
    ]


def test_joined_groups_are_called_by_the_first_name_of_the_user() -> None:
    photos = [make_photo(f"{i}.jpg", i, group=group) for i, group in enumerate(["tray 2", "tray 1", "", ""])]
    dataset = make_dataset(*photos)
    grouped = group_photos(dataset, make_likeness(dataset, [(0, 1), (1, 2)]))
    assert grouped.groups.tolist() == ["tray 1", "tray 1", "tray 1", photos[3].sha256]


def test_a_scene_does_not_join_what_the_user_named_apart() -> None:
    photos = [make_photo(f"{i}.jpg", i, group=group) for i, group in enumerate(["tray 1", "tray 2", "", "", ""])]
    dataset = make_dataset(*photos)
    likeness = make_likeness(dataset, [(0, 2), (1, 3)], [0, 0, 0, 0, 0])
    groups = group_photos(dataset, likeness).groups.tolist()
    assert groups == ["tray 1", "tray 2", "tray 1", "tray 2", photos[4].sha256]


def test_no_photos_have_no_groups() -> None:
    dataset = make_dataset()
    assert group_photos(dataset, Likeness((), np.zeros(0, np.intp), NO_PAIRS)) == dataset


def test_groups_of_a_set_are_the_same_once_it_is_read_again() -> None:
    dataset = make_dataset(*(make_photo(f"{i}.jpg", i) for i in range(5)))
    likeness = make_likeness(dataset, [(0, 2)], [0, 1, 2, 1, 4])
    once = group_photos(dataset, likeness)
    assert group_photos(once, likeness) == once


# --- leaks ----------------------------------------------------------------------------------------------------------


def test_a_leak_names_its_twin_in_train_copies_before_groups_before_shots() -> None:
    photos = [
        make_photo("test/a.jpg", 0, split="test"),
        make_photo("train/x.jpg", 1, split="train"),
        make_photo("train/y.jpg", 2, split="train"),
        make_photo("val/b.jpg", 3, split="val"),
        make_photo("val/c.jpg", 4, split="val", group="tree 1"),
        make_photo("train/z.jpg", 5, split="train", group="tree 1"),
        make_photo("val/d.jpg", 6, split="val"),
    ]
    dataset = make_dataset(*photos)
    likeness = replace(
        make_likeness(dataset, [(2, 3)], [0, 0, 0, 3, 4, 5, 0]), shots=np.array([[0, 1], [1, 3], [0, 6]])
    )
    assert list_leaks(dataset, likeness) == (Leak(3, 2, "copy"), Leak(4, 5, "group"), Leak(0, 1, "shot"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_files_of_the_same_bytes_leak_as_copies_whichever_is_named_first(order: tuple[int, ...]) -> None:
    photos = [
        make_photo("one.jpg", 0, split="test"),
        make_photo("two.jpg", 0, split="val"),
        make_photo("three.jpg", 0, split="train"),
    ]
    dataset = make_dataset(*(photos[i] for i in order))
    learnt = order.index(2)
    leaks = list_leaks(dataset, make_likeness(dataset))
    assert leaks == tuple(Leak(row, learnt, "copy") for row in range(3) if row != learnt)


def test_a_near_copy_of_a_file_that_is_there_twice_leaks_as_a_copy() -> None:
    photos = [
        make_photo("test/a.jpg", 0, split="test"),
        make_photo("train/a.jpg", 0, split="train"),
        make_photo("val/a small.jpg", 1, split="val"),
    ]
    dataset = make_dataset(*photos)
    leaks = list_leaks(dataset, make_likeness(dataset, [(0, 2)]))
    assert leaks == (Leak(0, 1, "copy"), Leak(2, 1, "copy"))


def test_val_and_test_do_not_leak_into_each_other_and_photos_without_a_split_do_not_at_all() -> None:
    for splits in (("val", "test"), (None, None), ("train", None), ("train", "train")):
        photos = [make_photo(f"{i}.jpg", 0, split=split) for i, split in enumerate(splits)]
        dataset = make_dataset(*photos)
        assert list_leaks(dataset, make_likeness(dataset)) == ()


# --- the price of a random split ------------------------------------------------------------------------------------


def draw_turntables(n_tables: int, n_shots: int, seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """Objects of three classes, each shot several times; shots of one object are all but equal, objects are not."""
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(3, 30)) * 0.25
    photos, rows = [], []
    for table in range(n_tables):
        label = table % 3
        middle = classes[label] + rng.normal(size=30)
        for shot in range(n_shots):
            photos.append(make_photo(f"{table}-{shot}.jpg", (table, shot), label, f"table {table}"))
            rows.append(middle + rng.normal(size=30) * 0.05)
    table = np.array(rows)
    return make_dataset(*photos), np.asarray(table - table.mean(axis=0), np.float32)


def test_a_random_split_promises_more_than_holds_on_other_objects() -> None:
    dataset, coordinates = draw_turntables(24, 8)
    gap = measure_gap(dataset, coordinates)
    assert gap is not None
    assert gap.random.value > 0.95
    assert gap.grouped.value < 0.8
    assert gap.random.n == gap.grouped.n == 192
    apart = measure_share(np.arange(192) < round(192 * gap.grouped.value))
    assert gap.grouped.value == pytest.approx(apart.value)
    assert gap.grouped.high - gap.grouped.low > 1.5 * (apart.high - apart.low)  # shots of an object are one witness
    assert measure_gap(dataset, coordinates) == gap


def test_classes_of_one_group_are_not_measured() -> None:
    dataset, coordinates = draw_turntables(7, 4)
    lonely = make_photo("p.jpg", "p", 2, "table 2")
    photos = tuple(photo for photo in dataset.photos if photo.label < 2 or photo.group == "table 2")
    rows = [row for row, photo in enumerate(dataset.photos) if photo in photos]
    smaller = replace(dataset, photos=(*photos, lonely))
    table = np.concatenate([coordinates[rows], coordinates[:1]])
    gap = measure_gap(smaller, table)
    assert gap is not None
    assert gap.random.n == sum(photo.label < 2 for photo in photos)


def test_where_nothing_can_be_measured_there_is_no_gap() -> None:
    dataset, coordinates = draw_turntables(12, 3)
    one_class = replace(dataset, photos=tuple(replace(photo, label=0) for photo in dataset.photos))
    unlabelled = replace(dataset, photos=tuple(replace(photo, label=-1) for photo in dataset.photos))
    no_groups = replace(dataset, photos=tuple(replace(photo, group=photo.sha256) for photo in dataset.photos))
    one_group = replace(dataset, photos=tuple(replace(photo, group="all") for photo in dataset.photos))
    for other in (one_class, unlabelled, no_groups, one_group):
        assert measure_gap(other, coordinates) is None
    assert measure_gap(make_dataset(), np.zeros((0, 3), np.float32)) is None


def test_photos_without_a_label_are_left_out_of_the_gap() -> None:
    dataset, coordinates = draw_turntables(12, 3)
    photos = (*dataset.photos, *(make_photo(f"u{i}.jpg", f"u{i}", -1, "more") for i in range(5)))
    more = np.concatenate([coordinates, np.full((5, 30), 9, np.float32)])
    assert measure_gap(replace(dataset, photos=photos), more) == measure_gap(dataset, coordinates)
