"""Which photos are learnt from, which are chosen by, which the numbers are measured on, and what to know of it.

In: a dataset with or without splits. Out: the same with a split for every photo, a `PartPlan`, folds, notes.
Why: what is measured on photos that something was chosen on is too good, so who sees what is decided in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pomona.dataset import Dataset, Split, iter_folds, name_some, split_dataset
from pomona.errors import DataError
from pomona.ridge import RIDGE_STRENGTHS

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_FOLDS = 5
_FEW_PHOTOS = 100  # below this the interval of an accuracy is wider than about 15 points


@dataclass(frozen=True)
class PartPlan:
    """Which photos a head is fitted on, chosen by and reported on.

    Parameters
    ----------
    choose_on : {"val", None}
        Part that the L2 strength is chosen on, or that gradient training looks at; None: cross-validation inside train,
        or for gradient training nothing.
    report_on : {"val", "test"}
        Part that the headline is measured on.
    evaluated_on : str
        The same in words.
    notes : tuple of str
        What a reader must know of it.
    """

    choose_on: Split | None
    report_on: Split
    evaluated_on: str
    notes: tuple[str, ...] = ()


def plan_parts(
    dataset: Dataset, val_share: float, seed: int, *, tunes: bool = False, refits: bool = False
) -> tuple[Dataset, PartPlan]:
    """Decide what each photo is used for; photos that the data does not place are split.

    Parameters
    ----------
    dataset : Dataset
        With or without splits.
    val_share : float
        Share of photos to keep apart where there is no val and no test part.
    seed : int
        Decides which.
    tunes : bool
        Whether training is by gradients: it looks at photos while it runs, which are never those of the test part, and
        cannot cross-validate.
    refits : bool
        Whether a head is fitted in closed form after that.

    Returns
    -------
    Dataset, PartPlan
        Every photo with a split, and the plan.

    Raises
    ------
    DataError
        If there is a val or test part and nothing to learn from.
    """
    of_temperature = tunes and not refits
    present = {photo.split for photo in dataset.photos if photo.label >= 0}
    if present & {"val", "test"} and not present & {"train", None}:
        raise DataError(
            f"{dataset.shown}: wanted a train part to learn from, got only {', '.join(sorted(map(str, present)))}"
        )
    if not present & {"val", "test"}:
        kept_apart = split_dataset(dataset, val_share=val_share, seed=seed)
        n_kept = sum(photo.split == "val" and photo.label >= 0 for photo in kept_apart.photos)
        were = "was" if n_kept == 1 else "were"
        lost = _note_lost_parts(dataset, f"{_count_photos(n_kept)} {were} kept apart from train instead")
        notes = (*note_choice(is_apart=True, of_temperature=of_temperature), *lost)
        return kept_apart, PartPlan("val", "val", "photos kept apart", notes) if tunes else PartPlan(
            None, "val", "photos kept apart", lost
        )
    photos = tuple(photo if photo.split else replace(photo, split="train") for photo in dataset.photos)
    placed = replace(dataset, photos=photos)
    if "test" in present and tunes:
        return _plan_tuned_test(placed, val_share, seed)
    if "test" in present:
        lost = _note_lost_parts(dataset, "the L2 strength was chosen by cross-validation inside train instead")
        return placed, PartPlan("val" if "val" in present else None, "test", "photos of the test part", lost)
    if not tunes:  # folds of train choose as well, and val is then seen once, to report on it
        return placed, PartPlan(
            None,
            "val",
            "photos of the val part",
            _note_lost_parts(dataset, "the numbers are measured on the val part instead"),
        )
    note = note_choice(of_temperature=of_temperature)
    lost = _note_lost_parts(dataset, "the numbers are measured on the val part instead")
    return placed, PartPlan("val", "val", "photos of the val part", (*note, *lost))


def _plan_tuned_test(dataset: Dataset, val_share: float, seed: int) -> tuple[Dataset, PartPlan]:
    """With a test part: what training looks at is val, or a share of train."""
    if any(photo.split == "val" and photo.label >= 0 for photo in dataset.photos):
        return dataset, PartPlan("val", "test", "photos of the test part")
    try:
        dataset = split_dataset(dataset, val_share=val_share, seed=seed)
    except DataError:
        note = "No photo of train could be spared to look at while training; nothing was chosen by looking."
        return dataset, PartPlan(None, "test", "photos of the test part", (note,))
    n_kept = sum(photo.split == "val" and photo.label >= 0 for photo in dataset.photos)
    kept = _count_photos(n_kept)
    note = f"Training was looked at, and the temperature chosen, on {kept} that were kept apart from train."
    return dataset, PartPlan("val", "test", "photos of the test part", (note,))


def _note_lost_parts(dataset: Dataset, instead: str) -> tuple[str, ...]:
    """Say what was done instead of using the val and test parts that the data names and that have no usable photo."""
    present = {photo.split for photo in dataset.photos if photo.label >= 0}
    lost = [split for split in ("val", "test") if split in dataset.declared_splits and split not in present]
    if not lost:
        return ()
    parts = f"The {lost[0]} part has" if len(lost) == 1 else "The val and test parts have"
    return (f"{parts} no usable photo; {instead}.",)


def list_folds(
    labels: NDArray[np.intp], groups: NDArray[np.str_], *, seed: int, n_folds: int = N_FOLDS
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Grouped folds to choose a strength on, in which every class that is held out is also learnt.

    Parameters
    ----------
    labels : ndarray of intp, (N,)
        Class of each photo.
    groups : ndarray of str, (N,)
        Group of each photo.
    seed : int
        Another seed draws other folds.
    n_folds : int
        How many; fewer where there are fewer groups.

    Returns
    -------
    list of (train, held_out)
        Rows of each fold; held-out photos of a class that its train rows lack are left out. None at all where fewer
        than two folds are of use.
    """
    n_folds = min(n_folds, len(np.unique(groups)))
    folds = []
    for fitted, held_out in iter_folds(labels, groups, n_folds=n_folds, seed=seed) if n_folds > 1 else ():
        learnt = held_out[np.isin(labels[held_out], labels[fitted])]
        if len(learnt):
            folds.append((fitted, learnt))
    return folds if len(folds) > 1 else []  # of a single pair, only the first part would be fitted on


def note_choice(*, is_apart: bool = False, of_temperature: bool = False) -> tuple[str, ...]:
    """What a reader must know where something was chosen on the photos that are reported on."""
    strengths = f"The L2 strength, one of {len(RIDGE_STRENGTHS)}, and the temperature were"
    chosen = "The temperature was" if of_temperature else strengths
    if is_apart:
        return (f"{chosen} chosen on the same kept-apart photos that the numbers are measured on.",)
    return (f"{chosen} chosen on the same val photos that the numbers are measured on.",)


def note_copies(dataset: Dataset) -> tuple[str, ...]:
    """What a reader must know of identical photos and groups, where no audit looked for more."""
    notes = []
    if leaks := dataset.leaks:
        notes.append(f"Identical photos on both sides of a split: {len(leaks)}, the first {' and '.join(leaks[0])}.")
    if divided := dataset.divided_groups:
        notes.append(f"Groups with photos on both sides of a split: {len(divided)} ({name_some(divided)}).")
    if conflicts := dataset.conflicts:
        notes.append(
            f"Identical photos with different labels: {len(conflicts)}, the first {' and '.join(conflicts[0])}."
        )
    return tuple(notes)


def note_data(dataset: Dataset, n_evaluated: int) -> tuple[str, ...]:
    """What a reader must know of the data before trusting the numbers.

    Parameters
    ----------
    dataset : Dataset
        With splits.
    n_evaluated : int
        Photos that the headline is measured on.

    Returns
    -------
    tuple of str
        Sentences.
    """
    notes = []
    if dataset.unknown_labels:
        n_photos = sum(photo.label < 0 for photo in dataset.photos)
        notes.append(
            f"Left out, of classes that train lacks: {_count_photos(n_photos)} ({name_some(dataset.unknown_labels)})."
        )
    counts = np.bincount(dataset.part("train").labels.clip(0), minlength=len(dataset.tree))
    if single := [name for name, count in zip(dataset.tree.names, counts, strict=True) if count == 1]:
        notes.append(f"Learnt from one photo only: {name_some(single)}.")
    if any(name.casefold() == "unknown" for name in dataset.tree.names):
        notes.append(
            "A class is called unknown, as the answer for what was not learnt is: rename it to tell the two apart."
        )
    if n_evaluated < _FEW_PHOTOS:
        notes.append(f"Measured on {_count_photos(n_evaluated)} only, so the intervals are wide.")
    return tuple(notes)


def _count_photos(n_photos: int) -> str:
    return "1 photo" if n_photos == 1 else f"{n_photos:,} photos"
