"""Who sees which photos: those that are reported on are never learnt from, and what else looked at them is said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo
from pomona.errors import DataError
from pomona.parts import list_folds, note_copies, note_data, plan_parts

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.dataset import Split

TREE = ClassTree(("Apple", "Pear"), (("Apple",), ("Pear",)))
BOTH = pytest.mark.parametrize("tunes", [False, True])


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """40 photos of two classes, two a group, without splits."""
    photos = tuple(
        Photo(tmp_path / f"{i}.png", f"{i:064x}", i // 2 % 2, str(i // 2), None, f"{i}.png") for i in range(40)
    )
    return Dataset(photos, TREE, (), 0, tmp_path)


def _place(dataset: Dataset, *splits: Split | None) -> Dataset:
    """Groups are dealt out to the splits in turn, so that each has both classes."""
    photos = (replace(one, split=splits[i // 4 % len(splits)]) for i, one in enumerate(dataset.photos))
    return replace(dataset, photos=tuple(photos))


def _list_splits(dataset: Dataset) -> list[Split | None]:
    return [photo.split for photo in dataset.photos]


@BOTH
def test_without_parts_whole_groups_are_kept_apart(dataset: Dataset, tunes: bool) -> None:
    placed, plan = plan_parts(dataset, 0.25, 0, tunes=tunes)
    splits = _list_splits(placed)
    assert set(splits) == {"train", "val"}
    assert 6 <= splits.count("val") <= 14
    assert all(first == second for first, second in zip(splits[::2], splits[1::2], strict=True))
    assert (plan.report_on, plan.evaluated_on) == ("val", "photos kept apart")
    # Cross-validation inside train leaves them unseen; gradients look at them while they run, and that is said.
    assert plan.choose_on == ("val" if tunes else None)
    assert any("chosen on the same" in note for note in plan.notes) == tunes
    assert _list_splits(plan_parts(dataset, 0.25, 0, tunes=tunes)[0]) == splits
    assert _list_splits(plan_parts(dataset, 0.25, 1, tunes=tunes)[0]) != splits


@BOTH
def test_a_val_part_alone_is_reported_on_and_looked_at_by_gradients_alone(dataset: Dataset, tunes: bool) -> None:
    given = _place(dataset, None, "val")
    placed, plan = plan_parts(given, 0.25, 0, tunes=tunes)
    assert _list_splits(placed) == [split or "train" for split in _list_splits(given)]
    assert (plan.choose_on, plan.report_on) == ("val" if tunes else None, "val")
    assert any("chosen on the same val photos" in note for note in plan.notes) == tunes


@pytest.mark.parametrize(("refits", "said"), [(False, "The temperature was chosen"), (True, "The L2 strength, one of")])
def test_a_head_that_is_fitted_anew_chooses_its_strength_too(dataset: Dataset, refits: bool, said: str) -> None:
    assert plan_parts(_place(dataset, "train", "val"), 0.25, 0, tunes=True, refits=refits)[1].notes[0].startswith(said)


@BOTH
@pytest.mark.parametrize("has_val", [False, True])
def test_a_test_part_is_only_reported_on(dataset: Dataset, has_val: bool, tunes: bool) -> None:
    given = _place(dataset, *(("train", "val", "test") if has_val else ("train", "test")))
    placed, plan = plan_parts(given, 0.25, 0, tunes=tunes)
    for before, after in zip(_list_splits(given), _list_splits(placed), strict=True):
        assert (after == "test") == (before == "test")
    assert plan.report_on == "test"
    assert plan.choose_on == ("val" if has_val or tunes else None)
    if tunes and not has_val:  # what is looked at comes out of train
        assert "kept apart from train" in plan.notes[0]
        assert _list_splits(placed).count("val") + _list_splits(placed).count("train") == 20


def test_where_no_photo_of_train_can_be_spared_nothing_is_looked_at(dataset: Dataset) -> None:
    photos = [replace(one, split="test" if i >= 4 else "train") for i, one in enumerate(dataset.photos)]
    placed, plan = plan_parts(replace(dataset, photos=tuple(photos)), 0.25, 0, tunes=True)
    assert _list_splits(placed) == [photo.split for photo in photos]
    assert plan.choose_on is None
    assert "nothing was chosen by looking" in plan.notes[0]


def test_nothing_to_learn_from_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="wanted a train part to learn from, got only test, val"):
        plan_parts(_place(dataset, "val", "test"), 0.25, 0)


def test_folds_divide_no_group_and_hold_out_what_is_learnt(dataset: Dataset) -> None:
    folds = list_folds(dataset.labels, dataset.groups, seed=0)
    assert len(folds) == 5
    for fitted, held_out in folds:
        assert not set(dataset.groups[fitted]) & set(dataset.groups[held_out])
        assert set(dataset.labels[held_out]) <= set(dataset.labels[fitted])
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(40))
    assert list_folds(dataset.labels[:2], dataset.groups[:2], seed=0) == []  # a single group


def test_what_weakens_the_numbers_is_said(dataset: Dataset) -> None:
    photos = [replace(one, split="val" if i >= 30 else "train") for i, one in enumerate(dataset.photos)]
    photos[31] = replace(photos[31], sha256=photos[0].sha256)
    photos[1] = replace(photos[1], label=-1)
    weak = replace(dataset, photos=tuple(photos), unknown_labels=("Plum",))
    notes = note_data(weak, 10)
    assert any("both sides of a split: 1, the first 0.png and 31.png" in note for note in note_copies(weak))
    assert any("classes that train lacks: 1 photo (Plum)" in note for note in notes)
    assert notes[-1] == "Measured on 10 photos only, so the intervals are wide."
    assert note_data(replace(dataset, photos=tuple(replace(one, split="train") for one in dataset.photos)), 500) == ()
