"""How a bundle does on labelled photos, alone or against another on the same photos.

In: a bundle, or two, and a dataset. Out: a `BundleScore`: metrics, whether promises hold, simple ways beside it, and
what is said of photos of classes that it does not know; a `Difference` between two.
Why: what runs here is the graph that predicts, so these are the numbers of what is in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.bundle import list_levels, say_fault
from pomona.comparison import compare_answers
from pomona.conformal import Nodes
from pomona.dataset import Skipped, load_dataset
from pomona.errors import DataError
from pomona.evaluation import Metric, evaluate, measure_share
from pomona.novelty import UNKNOWN_FROM
from pomona.trust import check_promise, measure_baselines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.bundle import Bundle, Measured
    from pomona.comparison import Difference
    from pomona.dataset import Dataset, Photo, Split
    from pomona.evaluation import Evaluation
    from pomona.trust import Baseline, Kept


@dataclass(frozen=True)
class BundleScore:
    """How a bundle does on a dataset.

    Parameters
    ----------
    evaluation : Evaluation
        Metrics of the photos that could be used and whose class the bundle knows.
    skipped : tuple of Skipped
        Photos that could not be used.
    n_unknown_class : int
        Photos whose class the bundle does not know; they are in no metric.
    unknown_labels : tuple of str
        Those classes.
    n_learnt : int
        Photos among those measured that the bundle was fitted on; they make the metrics too good.
    kept : Kept
        Whether what the bundle promises holds.
    baselines : tuple of Baseline
        What simple ways have right on the same photos.
    found_unknown : Metric or None
        Share of photos of unknown classes that are answered "unknown"; None where there is none, or the bundle cannot
        tell.
    hits : ndarray of shape (N,), bool
        Whether each photo that was measured is right.
    photos : tuple of Photo, (N,)
        These photos.
    """

    evaluation: Evaluation
    skipped: tuple[Skipped, ...]
    n_unknown_class: int
    unknown_labels: tuple[str, ...]
    n_learnt: int
    kept: Kept
    baselines: tuple[Baseline, ...]
    found_unknown: Metric | None
    hits: NDArray[np.bool_]
    photos: tuple[Photo, ...]

    def to_dict(self) -> dict[str, Any]:
        """The score as plain values for JSON."""
        found = self.found_unknown
        return {
            **self.evaluation.to_dict(),
            "n_skipped": len(self.skipped),
            "n_unknown_class": self.n_unknown_class,
            "unknown_classes": list(self.unknown_labels),
            "n_learnt": self.n_learnt,
            "kept": self.kept.to_dict(),
            "baselines": {one.name: one.to_dict() for one in self.baselines},
            "found_unknown": None if found is None else {"value": found.value, "interval": [found.low, found.high]},
        }


def load_labelled(bundle: Bundle, data: str | Path, *, split: Split | None = None) -> Dataset:
    """Load photos to evaluate a bundle on, with labels matched to its classes by name.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    data : str or Path
        Whatever `load_dataset` takes.
    split : {"train", "val", "test"}, optional
        Part to take. Where not given and the data has parts: test if there is one, else val.

    Raises
    ------
    DataError
        If there are no labelled photos, or not in the part that is wanted.
    """
    dataset = load_dataset(data, tree=bundle.tree, min_classes=1)
    present = {photo.split for photo in dataset.photos}
    wanted = split or next((part for part in ("test", "val") if part in present), None)
    if wanted is None and present == {None}:
        return dataset
    if wanted is None or wanted not in present:
        found = ", ".join(sorted(str(part) for part in present if part)) or "no parts"
        raise DataError(
            f"{dataset.shown}: wanted the {wanted or 'test or val'} part, got {found}; name another with --split"
        )
    return dataset.part(wanted)


def evaluate_bundle(
    bundle: Bundle, dataset: Dataset, *, on_photo: Callable[[int, int], None] | None = None
) -> BundleScore:
    """Run a bundle over labelled photos.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    dataset : Dataset
        Loaded with the bundle's class tree.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Raises
    ------
    DataError
        If no photo is left: none could be used, or the bundle knows none of their classes.
    """
    photos = dataset.photos
    found = bundle.measure([photo.path for photo in photos], on_photo=on_photo)
    usable = np.array([i not in found.errors for i in range(len(photos))], bool)
    known = np.array([photo.label >= 0 for photo in photos], bool)
    rows, strangers = np.flatnonzero(usable & known), np.flatnonzero(usable & ~known)
    if not len(rows):
        raise DataError(
            f"no photo of {dataset.shown} can be evaluated: {int((~known).sum())} have a class that the bundle does "
            f"not know, {len(found.errors) + len(dataset.skipped)} cannot be used"
        )
    failed = tuple(
        Skipped(photos[i].name, photos[i].path, error.fault, say_fault(str(photos[i].path), error))
        for i, error in sorted(found.errors.items())
    )
    labels, groups = dataset.labels[rows], dataset.groups[rows]
    probabilities = found.probabilities[rows]
    evaluation = evaluate(
        probabilities, labels, classes=bundle.tree.names, levels=list_levels(bundle.tree), groups=groups
    )
    is_strange = None if found.strangeness is None else found.strangeness >= UNKNOWN_FROM
    kept = check_promise(
        bundle.promise,
        probabilities,
        labels,
        groups,
        Nodes.of(bundle.tree),
        turned_away=None if is_strange is None else measure_share(is_strange[rows], groups),
    )
    return BundleScore(
        evaluation=evaluation,
        skipped=dataset.skipped + failed,
        n_unknown_class=int((~known).sum()),
        unknown_labels=dataset.unknown_labels,
        n_learnt=sum(photos[i].sha256 in bundle.learnt_from for i in rows),
        kept=kept,
        baselines=_measure_baselines(bundle, found, dataset, rows),
        found_unknown=None
        if is_strange is None or not len(strangers)
        else measure_share(is_strange[strangers], dataset.groups[strangers]),
        hits=probabilities.argmax(axis=1) == labels,
        photos=tuple(photos[i] for i in rows),
    )


def _measure_baselines(
    bundle: Bundle, found: Measured, dataset: Dataset, rows: NDArray[np.intp]
) -> tuple[Baseline, ...]:
    if bundle.bank is None or found.sketches is None:
        return ()
    bank = bundle.bank.bank
    return measure_baselines(bank.labels, bank, found.sketches[rows], dataset.labels[rows], dataset.groups[rows])


def compare_scores(score: BundleScore, other: BundleScore) -> Difference:
    """Tell which of two bundles is right more often on the photos that both were measured on.

    Parameters
    ----------
    score, other : BundleScore
        Of the one in question, and of the one it is held against.

    Returns
    -------
    Difference
        What the first gains over the other.

    Raises
    ------
    DataError
        If no photo is of a class that both know.
    """
    theirs = {photo.name: bool(hit) for photo, hit in zip(other.photos, other.hits, strict=True)}
    both = [(photo, bool(hit)) for photo, hit in zip(score.photos, score.hits, strict=True) if photo.name in theirs]
    if not both:
        raise DataError("wanted photos of classes that both recognisers know, got none")
    return compare_answers(
        np.array([theirs[photo.name] for photo, _ in both]),
        np.array([hit for _, hit in both]),
        np.array([photo.group for photo, _ in both]),
    )
