"""What enhancement of one's own photos does to how often the answer is right.

In: a dataset, an embedding and steps. Out: `Effects`, each set of steps against none.
Why: a photo that looks better need not be easier for a network. So every set of steps answers for the same photos as no
step does, and the difference has an interval. The test part is not touched: choosing steps by it would spoil it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pomona.comparison import compare_answers
from pomona.enhancement import complete_steps, describe_step, enhance
from pomona.errors import DataError, OptionError
from pomona.features import extract_features
from pomona.parts import list_folds
from pomona.ridge import fit_ridge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.clock import Progress
    from pomona.comparison import Difference
    from pomona.dataset import Dataset
    from pomona.embedding import Embedding
    from pomona.features import Features

    Pair = tuple[NDArray[np.intp], NDArray[np.intp]]

_ROWS_PER_PART = 4096


@dataclass(frozen=True)
class Effect:
    """What a set of steps does to the answers.

    Parameters
    ----------
    steps : tuple of str
        As `pomona.enhancement.parse_enhancement` gives them.
    accuracy : float
        Share right with them, 0-1.
    difference : Difference
        Against none.
    """

    steps: tuple[str, ...]
    accuracy: float
    difference: Difference

    def to_dict(self) -> dict[str, Any]:
        """The effect as plain values for JSON."""
        found = self.difference
        return {
            "enhance": list(self.steps),
            "accuracy": self.accuracy,
            "difference": found.gain,
            "difference_interval": [found.low, found.high],
            "n_better": found.n_better,
            "n_worse": found.n_worse,
            "verdict": found.verdict,
        }


@dataclass(frozen=True)
class Effects:
    """What sets of steps do to the answers.

    Parameters
    ----------
    accuracy : float
        Share right without any, 0-1.
    n : int
        Photos that it was measured on.
    measured_on : str
        Which these are.
    features : str
        What the features were: the name of the embedding.
    effects : tuple of Effect
        One for each set.
    """

    accuracy: float
    n: int
    measured_on: str
    features: str
    effects: tuple[Effect, ...]

    def to_dict(self) -> dict[str, Any]:
        """The effects as plain values for JSON."""
        return {**vars(self), "effects": [effect.to_dict() for effect in self.effects]}

    def describe(self) -> str:
        """What there is to say, in a sentence or two."""
        verdicts = [one.difference.verdict for one in self.effects]
        better = [describe_steps(one.steps) for one in self.effects if one.difference.verdict == "better"]
        n_worse = verdicts.count("worse")
        if not better and not n_worse:
            return "No step makes a difference that can be told from chance."
        said = f"Right more often with {', or with '.join(better)}." if better else "No step helps."
        return (
            f"{said} {n_worse} of {len(verdicts)} tried {'does' if n_worse == 1 else 'do'} harm." if n_worse else said
        )


def list_variants(steps: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Each step on its own, and all together where there are several.

    Raises
    ------
    OptionError
        If there is no step, or one is none.

    Examples
    --------
    >>> list_variants(["clahe", "gamma=0.8"])
    (('clahe=2',), ('gamma=0.8',), ('clahe=2', 'gamma=0.8'))
    """
    full = complete_steps(steps)
    if not full:
        raise OptionError("enhance: wanted one step or more to look at, got none")
    return (*((step,) for step in full), *([full] if len(full) > 1 else []))


def describe_steps(steps: Sequence[str]) -> str:
    """Say a set of steps for people.

    Examples
    --------
    >>> describe_steps(("white-balance", "denoise=3")), describe_steps(())
    ('White balance + Denoise 3', 'As it is')
    """
    return " + ".join(describe_step(step) for step in steps) or "As it is"


# --- measuring ------------------------------------------------------------------------------------------------------


def measure_effects(
    dataset: Dataset,
    embedding: Embedding,
    step_sets: Sequence[Sequence[str]],
    *,
    part: Literal["val", "folds"] | None = None,
    seed: int = 0,
    n_workers: int | None = None,
    on_progress: Progress | None = None,
) -> Effects:
    """Train with each set of steps and without any, and compare the answers for the same photos.

    The head is the ridge head of `pomona.training`, its strength chosen by grouped folds inside what it learns from,
    anew for each set. Photos of a test part are left alone.

    Parameters
    ----------
    dataset : Dataset
        Labelled photos; those without a part are learnt from.
    embedding : Embedding
        What the features are; its own enhancement is replaced.
    step_sets : sequence of sequence of str
        What is compared with no step.
    part : {"val", "folds"}, optional
        Photos that are asked for: those of the val part, or all that are learnt from, a grouped fifth at a time by a
        head that learnt from the others; ``val`` where not given and there is one.
    seed : int
        Decides the folds.
    n_workers : int, optional
        Threads; every core where not given.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    Effects
        In the order of the sets.

    Raises
    ------
    OptionError
        If there is no set, or one of its steps is none.
    MissingPackageError
        If a step needs OpenCV and it is not installed.
    DataError
        If there is nothing to learn from or to be asked for, or a photo changed in between.
    """
    variants = [(), *(complete_steps(steps) for steps in step_sets)]
    if len(variants) == 1:
        raise OptionError("enhance: wanted a set of steps or more to compare with none, got none")
    for steps in variants:
        enhance(np.zeros((8, 8, 3), np.uint8), steps)  # a missing package shows before an hour of work
    asked_in, dataset = _keep_asked(dataset, part)
    n_photos = dataset.n_photos
    report = on_progress or (lambda _step, _done, _total: None)
    outcomes: list[NDArray[np.bool_]] = []
    learnt, groups = dataset, np.empty(0, np.str_)
    for number, steps in enumerate(variants):
        features = extract_features(
            dataset,
            _replace_enhancement(embedding, steps),
            n_workers=n_workers,
            on_photo=_count_on(report, "features", number * n_photos, len(variants) * n_photos),
        )
        if number and features.dataset.photos != learnt.photos:
            raise DataError(f"{dataset.shown}: photos changed while they were measured; run again")
        learnt = features.dataset
        pairs = _pair_rows(learnt, asked_in, seed)
        fits = _count_on(report, "fit", number * len(pairs), len(variants) * len(pairs))
        outcomes.append(_answer(features, pairs, seed, fits))
        groups = learnt.groups[np.concatenate([asked for _, asked in pairs])]
    before = outcomes[0]
    effects = tuple(
        Effect(steps, float(after.mean()), compare_answers(before, after, groups))
        for steps, after in zip(variants[1:], outcomes[1:], strict=True)
    )
    where = "photos of the val part" if asked_in == "val" else "photos of the train part, in grouped folds"
    plain = _replace_enhancement(embedding, ())
    return Effects(float(before.mean()), len(before), where, plain.slug, effects)


def _keep_asked(dataset: Dataset, part: Literal["val", "folds"] | None) -> tuple[Literal["val", "folds"], Dataset]:
    """Decide which photos are asked for, and leave out those that are not needed."""
    known = [photo for photo in dataset.photos if photo.label >= 0]
    learnt_from = ("train", None)
    if not any(photo.split in learnt_from for photo in known):
        raise DataError(f"{dataset.shown}: wanted a train part to learn from, got none")
    has_val = any(photo.split == "val" for photo in known)
    if part == "val" and not has_val:
        raise DataError(f"{dataset.shown}: wanted a val part to measure on, got none; measure on folds")
    asked_in = part or ("val" if has_val else "folds")
    wanted = (*learnt_from, "val") if asked_in == "val" else learnt_from
    return asked_in, replace(dataset, photos=tuple(photo for photo in known if photo.split in wanted))


def _pair_rows(dataset: Dataset, asked_in: Literal["val", "folds"], seed: int) -> list[Pair]:
    """Rows to learn from and rows to ask for, of classes that are learnt."""
    labels, groups = dataset.labels, dataset.groups
    is_val = np.array([photo.split == "val" for photo in dataset.photos])
    rows = np.flatnonzero(~is_val)
    if asked_in == "val":
        asked = np.flatnonzero(is_val & np.isin(labels, labels[rows]))
        pairs = [(rows, asked)] if len(asked) else []
    else:
        folds = list_folds(labels[rows], groups[rows], seed=seed)
        pairs = [(rows[fitted], rows[asked]) for fitted, asked in folds]
    if not pairs:
        raise DataError(f"{dataset.shown}: wanted photos to measure on, of classes that others teach; got none")
    return pairs


def _answer(
    features: Features, pairs: Sequence[Pair], seed: int, on_fit: Callable[[int, int], None]
) -> NDArray[np.bool_]:
    """Whether each photo that is asked for is named rightly, pair after pair."""
    labels, groups = features.dataset.labels, features.dataset.groups
    right = []
    for number, (rows, asked) in enumerate(pairs):
        classes, own = np.unique(labels[rows], return_inverse=True)
        known = np.zeros(len(labels), np.intp)
        known[rows] = own
        folds = [(rows[fitted], rows[held_out]) for fitted, held_out in list_folds(own, groups[rows], seed=seed)]
        head, _, _ = fit_ridge(features.vectors, known, len(classes), folds, rows=rows)
        for some in np.array_split(asked, -(-len(asked) // _ROWS_PER_PART)):
            answers = classes[head.predict_proba(features.vectors[some]).argmax(axis=1)]
            right.append(answers == labels[some])
        on_fit(number + 1, len(pairs))
    return np.concatenate(right)


def _replace_enhancement(embedding: Embedding, steps: tuple[str, ...]) -> Embedding:
    preprocessing = replace(embedding.preprocessing, enhance=steps)
    return replace(embedding, backbones=tuple(replace(one, preprocessing=preprocessing) for one in embedding.backbones))


def _count_on(report: Progress, step: str, n_before: int, n_all: int) -> Callable[[int, int], None]:
    return lambda n_done, _n_total: report(step, n_before + n_done, n_all)
