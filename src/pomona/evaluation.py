"""How good a model is, in numbers that say how far they can be trusted.

In: probabilities, labels and class names, whatever made them. Out: an `Evaluation`: confusion, metrics with 95 %
intervals, a row per class, a row per level of the class tree.
Why: arrays only, so an exported or a served model is scored by the same code as a fresh one. Own numpy instead of
scikit-learn, which takes 2 s to import and is not in a bare install; the tests pin every metric to it. Nothing here is
random: the intervals are closed formulas, so the same arrays give the same report and no time goes into resampling.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_Z = 1.959963984540054
_CELLS_PER_BLOCK = 4_000_000
_ROUNDING = 1e-3
_TOP = 5


@dataclass(frozen=True)
class Metric:
    """A share with its 95 % interval.

    Parameters
    ----------
    value : float
        The share, 0-1; it lies within the interval.
    low, high : float
        Ends of the interval, 0-1.
    n : int
        Photos that it was measured on.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Level:
    """How often the answer is right at one level of the class tree.

    Parameters
    ----------
    name : str
        "level 1" is the coarsest; the last one is called "class".
    n_classes : int
        Nodes of the tree at this level.
    accuracy, balanced_accuracy, macro_f1 : Metric
        As in `Evaluation`, with the nodes in the place of the classes.
    """

    name: str
    n_classes: int
    accuracy: Metric
    balanced_accuracy: Metric
    macro_f1: Metric


@dataclass(frozen=True)
class ClassRow:
    """What one class gets right and what it is taken for.

    Parameters
    ----------
    name : str
        Name of the class.
    precision, recall, f1 : float
        Shares, 0-1; 0 where nothing was there to be counted.
    support : int
        Photos that show this class.
    most_confused_with : str or None
        The wrong answer given most often for this class; None if there was none.
    n_confused : int
        How many photos got that answer.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    most_confused_with: str | None
    n_confused: int


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured on one set of photos.

    Parameters
    ----------
    classes : tuple of str
        Names, in the order of the model's outputs.
    confusion : ndarray of int64, shape (C, C)
        Photos by what they show (rows) and what was said (columns).
    accuracy : Metric
        Share of right answers.
    balanced_accuracy : Metric
        Mean recall of the classes that the labels hold: each class counts the same.
    macro_f1 : Metric
        Mean F1 of the classes that the labels hold. A class that is said and never shown has no F1 of its own in the
        mean; it costs the classes whose photos it took.
    weighted_f1 : Metric
        Mean F1, each class by its number of photos.
    top5 : Metric
        Share of photos whose class is among the five most likely; always 1 for five classes or fewer.
    per_class : tuple of ClassRow
        One row a class, in the order of `classes`.
    levels : tuple of Level
        Coarsest first; the last is the classes themselves.
    n : int
        Photos.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    accuracy: Metric
    balanced_accuracy: Metric
    macro_f1: Metric
    weighted_f1: Metric
    top5: Metric
    per_class: tuple[ClassRow, ...]
    levels: tuple[Level, ...]
    n: int

    def to_dict(self, *, confusion: bool = False) -> dict[str, Any]:
        """Write it down in plain types that JSON knows.

        Parameters
        ----------
        confusion : bool
            Also give the class names and the whole confusion matrix.

        Returns
        -------
        dict
            Every metric as `name` and `name_interval` [low, high], 0-1; `n`, `levels`, `per_class`.
        """
        content: dict[str, Any] = {
            "n": self.n,
            "n_classes": len(self.classes),
            **_describe(self.accuracy, "accuracy"),
            **_describe(self.top5, "top5_accuracy"),
            **_describe(self.balanced_accuracy, "balanced_accuracy"),
            **_describe(self.macro_f1, "macro_f1"),
            **_describe(self.weighted_f1, "weighted_f1"),
            "levels": [_describe_level(level) for level in self.levels],
            "per_class": [dict(vars(row)) for row in self.per_class],
        }
        if confusion:
            content["classes"] = list(self.classes)
            content["confusion"] = self.confusion.tolist()
        return content


def evaluate(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    classes: Sequence[str],
    levels: Sequence[tuple[str, Sequence[str], NDArray[np.integer[Any]]]] = (),
    groups: NDArray[Any] | None = None,
) -> Evaluation:
    """Score answers against the truth.

    The answer is the most likely class, the first one of equals. At a level of the tree a node's probability is the sum
    of its classes' probabilities, and the answer is the most likely node: it need not be the parent of the leaf answer.

    Parameters
    ----------
    probabilities : ndarray of float, shape (N, C), 0-1
        One row a photo.
    labels : ndarray of int, shape (N,)
        Which class each photo shows, 0 to C-1. Photos of a class the model does not know are for the caller to drop.
    classes : sequence of str, length C
        Names of the classes.
    levels : sequence of (name, node names, node of each class), coarsest first
        The class tree above the leaves; the third part has shape (C,) and counts into the second.
    groups : ndarray, shape (N,), optional
        Photos with the same mark are not independent (frames of a video, shots of one fruit), which widens the
        intervals.

    Returns
    -------
    Evaluation
        Metrics, each with its interval.

    Raises
    ------
    DataError
        If the arrays do not fit together, a probability is not in 0-1, a label is not a class, or there is no photo.

    Notes
    -----
    Shares (accuracy, top-5) have Wilson's interval [1]_, which stays honest for few photos and for shares of 0 and 1.
    Grouped photos count for less: n is divided by the design effect [2]_, the variance of the groups' sums over that
    of independent photos, steadied by one wholly wrong group of typical size, so that no mistakes at all means one
    independent photo a group.
    The other metrics have Wilson's interval too, with the number of photos at which a share would be as uncertain as
    the metric is. Their variance is the delta method over independent rows of the confusion matrix [3]_; each row is
    first mixed with one independent photo that behaves like the average of all, so that a class with one right photo is
    not taken for certain.

    References
    ----------
    .. [1] E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22.
    .. [2] N. Dean, M. Pagano (2015), "Evaluating confidence interval methods for binomial proportions in clustered
       surveys", Journal of Survey Statistics and Methodology 3(4).
    .. [3] K. Takahashi, K. Yamamoto, A. Kuchiba, T. Koyama (2022), "Confidence interval for micro-averaged F1 and
       macro-averaged F1 scores", Applied Intelligence 52.

    Examples
    --------
    >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    >>> result = evaluate(sure, np.array([0, 1, 1, 1]), classes=["apple", "pear"])
    >>> shown = result.accuracy
    >>> f"{shown.value:.0%}, between {shown.low:.0%} and {shown.high:.0%} ({shown.n} photos)"
    '75%, between 30% and 95% (4 photos)'
    >>> result.per_class[1].most_confused_with
    'apple'
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    _check_scores(probabilities, labels)
    n_classes = probabilities.shape[1]
    if len(classes) != n_classes:
        raise DataError(f"classes: wanted {n_classes} names, one a column of probabilities, got {len(classes)}")
    group_of = _number_groups(groups, len(labels))
    trees = [_Tree(name, len(nodes), _check_tree(name, nodes, parents, n_classes)) for name, nodes, parents in levels]
    answers, ranks = _find_answers(probabilities, labels)
    leaf = _measure(labels, answers, n_classes, group_of)
    rows = [_measure_tree(probabilities, labels, tree, group_of) for tree in trees]
    leaf_level = Level("class", n_classes, leaf.accuracy, leaf.balanced_accuracy, leaf.macro_f1)
    return Evaluation(
        classes=tuple(classes),
        confusion=leaf.confusion,
        accuracy=leaf.accuracy,
        balanced_accuracy=leaf.balanced_accuracy,
        macro_f1=leaf.macro_f1,
        weighted_f1=leaf.weighted_f1,
        top5=_measure_share(ranks < _TOP, group_of),
        per_class=_list_classes(leaf.confusion, classes),
        levels=(*rows, leaf_level),
        n=len(labels),
    )


def mistakes(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Find the wrong answers, the surest first.

    Parameters
    ----------
    probabilities : ndarray of float, shape (N, C), 0-1
        One row a photo.
    labels : ndarray of int, shape (N,)
        Which class each photo shows, 0 to C-1.

    Returns
    -------
    ndarray of int64, shape (n_mistakes,)
        Rows of `probabilities`, sorted by how likely the wrong answer was held to be.

    Raises
    ------
    DataError
        As in `evaluate`.

    Examples
    --------
    >>> mistakes(np.array([[0.6, 0.4], [0.9, 0.1], [0.9, 0.1]]), np.array([1, 0, 1]))
    array([2, 0])
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    _check_scores(probabilities, labels)
    answers, _ = _find_answers(probabilities, labels)
    wrong = np.flatnonzero(answers != labels)
    sureness = probabilities[wrong, answers[wrong]]
    return wrong[np.argsort(-sureness, kind="stable")].astype(np.int64)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score method.

    Parameters
    ----------
    share : float
        The share that was seen, 0-1.
    n : float
        Independent observations behind it; need not be whole.

    Returns
    -------
    low, high : float
        Ends of the interval, 0-1; the share lies within.

    References
    ----------
    E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22.

    Examples
    --------
    >>> low, high = wilson_interval(1.0, 5)
    >>> round(low, 3), high
    (0.566, 1.0)
    """
    spread = _Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * float(np.sqrt(share * (1 - share) / n + spread / (4 * n))) / (1 + spread)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True)
class _Tree:
    name: str
    n_nodes: int
    node_of_class: NDArray[np.int64]


@dataclass(frozen=True)
class _Measured:
    confusion: NDArray[np.int64]
    accuracy: Metric
    balanced_accuracy: Metric
    macro_f1: Metric
    weighted_f1: Metric


def _check_scores(probabilities: NDArray[Any], labels: NDArray[Any]) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] == 0:
        raise DataError(f"probabilities: wanted the shape (n_photos, n_classes), got {probabilities.shape}")
    n_photos, n_classes = probabilities.shape
    if labels.shape != (n_photos,):
        raise DataError(f"labels: wanted the shape ({n_photos},), one a row of probabilities, got {labels.shape}")
    if n_photos == 0:
        raise DataError("nothing to score: wanted at least one photo whose class the model knows, got none")
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels: wanted whole numbers, got {labels.dtype}")
    foreign = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if foreign.size:
        raise DataError(
            f"labels: wanted 0 to {n_classes - 1}, got {labels[foreign[0]]} in row {foreign[0]} ({foreign.size} such "
            "rows): drop the photos of classes that the model does not know"
        )
    _check_probabilities(probabilities)


def _check_probabilities(probabilities: NDArray[Any]) -> None:
    if probabilities.dtype.kind != "f":
        raise DataError(f"probabilities: wanted floating-point numbers, got {probabilities.dtype}")
    for rows in _split_rows(probabilities):
        block = probabilities[rows]
        within = (block >= -_ROUNDING) & (block <= 1 + _ROUNDING)
        if not within.all():
            row, column = np.argwhere(~within)[0]
            raise DataError(
                f"probabilities: wanted numbers from 0 to 1, got {block[row, column]} in row {rows.start + row}, "
                f"column {column}: a score that is no probability has to go through a softmax first"
            )


def _check_tree(name: str, nodes: Sequence[str], parents: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    node_of_class = np.asarray(parents)
    if node_of_class.shape != (n_classes,) or node_of_class.dtype.kind not in "iu":
        raise DataError(
            f"{name}: wanted one whole number a class, shape ({n_classes},), "
            f"got {node_of_class.dtype} of shape {node_of_class.shape}"
        )
    foreign = np.flatnonzero((node_of_class < 0) | (node_of_class >= len(nodes)))
    if foreign.size:
        raise DataError(
            f"{name}: wanted nodes 0 to {len(nodes) - 1}, got {node_of_class[foreign[0]]} for class {foreign[0]}"
        )
    return node_of_class.astype(np.int64)


def _number_groups(groups: NDArray[Any] | None, n_photos: int) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    marks = np.asarray(groups)
    if marks.shape != (n_photos,):
        raise DataError(f"groups: wanted the shape ({n_photos},), one mark a photo, got {marks.shape}")
    return np.unique(marks, return_inverse=True)[1].astype(np.int64)


def _split_rows(probabilities: NDArray[Any]) -> Iterator[slice]:
    """Yield blocks of rows: a whole-array comparison would need as much memory as the probabilities again."""
    n_photos, n_classes = probabilities.shape
    step = max(1, _CELLS_PER_BLOCK // n_classes)
    starts = range(0, n_photos, step)
    return (slice(start, min(start + step, n_photos)) for start in starts)


def _find_answers(probabilities: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    answers = np.empty(len(labels), np.int64)
    ranks = np.empty(len(labels), np.int64)
    for rows in _split_rows(probabilities):
        block, truth = probabilities[rows], labels[rows, np.newaxis].astype(np.int64)
        own = np.take_along_axis(block, truth, axis=1)
        earlier = np.arange(block.shape[1]) < truth
        answers[rows] = block.argmax(axis=1)
        ranks[rows] = ((block > own) | ((block == own) & earlier)).sum(axis=1)
    return answers, ranks


def _measure_tree(
    probabilities: NDArray[Any], labels: NDArray[Any], tree: _Tree, group_of: NDArray[np.int64] | None
) -> Level:
    member = np.zeros((len(tree.node_of_class), tree.n_nodes))
    member[np.arange(len(member)), tree.node_of_class] = 1
    answers = np.concatenate([(probabilities[rows] @ member).argmax(axis=1) for rows in _split_rows(probabilities)])
    measured = _measure(tree.node_of_class[labels], answers, tree.n_nodes, group_of)
    return Level(tree.name, tree.n_nodes, measured.accuracy, measured.balanced_accuracy, measured.macro_f1)


def _measure(
    labels: NDArray[Any], answers: NDArray[np.int64], n_classes: int, group_of: NDArray[np.int64] | None
) -> _Measured:
    pairs = np.bincount(labels.astype(np.int64) * n_classes + answers, minlength=n_classes**2)
    confusion = pairs.reshape(n_classes, n_classes).astype(np.int64)
    right = labels == answers
    shown = confusion.sum(axis=1)
    _, recall, f1 = _score_classes(confusion)
    equal = (shown > 0) / np.count_nonzero(shown)
    by_photos = shown / shown.sum()
    deff = measure_design_effect(right, group_of)
    plausible = _smooth_rows(confusion, deff)

    def with_interval(value: float, n_effective: float) -> Metric:
        return Metric(value, *wilson_interval(value, n_effective / deff), n=len(labels))

    return _Measured(
        confusion=confusion,
        accuracy=_measure_share(right, group_of),
        balanced_accuracy=with_interval(_mean(recall, equal), _recall_effective_n(plausible, shown, equal)),
        macro_f1=with_interval(_mean(f1, equal), _f1_effective_n(plausible, shown, equal)),
        weighted_f1=with_interval(_mean(f1, by_photos), _f1_effective_n(plausible, shown, by_photos)),
    )


def _mean(shares: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return min(1.0, float(shares @ weights))


def measure_share(
    hits: NDArray[np.bool_],
    groups: NDArray[Any] | None = None,
    *,
    weights: NDArray[np.floating[Any]] | None = None,
) -> Metric:
    """Share of photos on which something holds, with its interval.

    Parameters
    ----------
    hits : ndarray of shape (N,), bool
        At least one.
    groups : ndarray of shape (N,), optional
        Photos of one group count less than as many apart.
    weights : ndarray of shape (N,), optional
        How much each counts, 1 at most.
    """
    return _measure_share(hits, _number_groups(groups, len(hits)), weights)


def _measure_share(
    hits: NDArray[np.bool_],
    group_of: NDArray[np.int64] | None,
    weights: NDArray[np.floating[Any]] | None = None,
) -> Metric:
    mass = float(len(hits)) if weights is None else float(np.sum(weights))
    share = min(1.0, float(np.average(hits, weights=weights)))
    deff = measure_design_effect(hits, group_of, weights)
    return Metric(share, *wilson_interval(share, mass / deff), n=len(hits))


def measure_design_effect(
    values: NDArray[Any],
    group_of: NDArray[np.int64] | None,
    weights: NDArray[np.floating[Any]] | None = None,
) -> float:
    """How many grouped photos are worth one independent photo, from 1 to the typical size of a group.

    Parameters
    ----------
    values : ndarray of shape (N,)
        What is averaged over the photos.
    group_of : ndarray of shape (N,), int64, or None
        Group of each, from 0; without them each photo stands alone.
    weights : ndarray of shape (N,), optional
        How much each counts.
    """
    if group_of is None:
        return 1.0
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    sizes = np.bincount(group_of, weights)
    typical = float(np.square(sizes).sum() / sizes.sum())
    residual = values - np.average(values, weights=weights)
    sums = np.bincount(group_of, weights * residual)
    deff = float((sums @ sums + typical**2) / (weights @ np.square(residual) + typical))
    return min(max(deff, 1.0), max(1.0, typical))


def _score_classes(
    confusion: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class; 0 where the divisor is 0."""
    right = np.diag(confusion).astype(np.float64)
    shown, said = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = right / np.maximum(said, 1)
    recall = right / np.maximum(shown, 1)
    f1 = 2 * right / np.maximum(shown + said, 1)
    return precision, recall, f1


def _smooth_rows(confusion: NDArray[np.int64], n_added: float) -> NDArray[np.float64]:
    """Mix each row with photos that behave like the average of all, worth one independent photo; rows sum to 1."""
    n_photos, n_classes = int(confusion.sum()), len(confusion)
    if n_classes == 1:
        return np.ones((1, 1))
    share_right = (np.trace(confusion) + 0.5) / (n_photos + 1)
    popular = np.tile(confusion.sum(axis=0) + 1.0, (n_classes, 1))
    np.fill_diagonal(popular, 0)
    average = (1 - share_right) * popular / popular.sum(axis=1, keepdims=True)
    np.fill_diagonal(average, share_right)
    mixed: NDArray[np.float64] = (confusion + n_added * average) / (confusion.sum(axis=1, keepdims=True) + n_added)
    return mixed


def _recall_effective_n(
    plausible: NDArray[np.float64], shown: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    recall = np.diag(plausible)
    gradient = np.diag(weights / np.maximum(shown, 1))
    return _effective_n(float(weights @ recall), gradient, plausible, shown)


def _f1_effective_n(plausible: NDArray[np.float64], shown: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    right = shown * np.diag(plausible)
    size = np.where(weights > 0, shown + shown @ plausible, 1.0)
    gradient = np.tile(-weights * 2 * right / size**2, (len(shown), 1))
    gradient[np.diag_indices_from(gradient)] += weights * 2 / size
    return _effective_n(float(weights @ (2 * right / size)), gradient, plausible, shown)


def _effective_n(
    value: float, gradient: NDArray[np.float64], plausible: NDArray[np.float64], shown: NDArray[np.int64]
) -> float:
    """How many photos give a share of this value the variance that the metric has, by the delta method."""
    mean = (plausible * gradient).sum(axis=1)
    variance = float(shown @ ((plausible * gradient**2).sum(axis=1) - mean**2))
    return value * (1 - value) / variance if variance > 0 else float(shown.sum())


def _list_classes(confusion: NDArray[np.int64], classes: Sequence[str]) -> tuple[ClassRow, ...]:
    precision, recall, f1 = _score_classes(confusion)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    others, counts = wrong.argmax(axis=1), wrong.max(axis=1)
    return tuple(
        ClassRow(
            name=name,
            precision=float(precision[row]),
            recall=float(recall[row]),
            f1=float(f1[row]),
            support=int(confusion[row].sum()),
            most_confused_with=classes[others[row]] if counts[row] else None,
            n_confused=int(counts[row]),
        )
        for row, name in enumerate(classes)
    )


def _describe(metric: Metric, name: str) -> dict[str, Any]:
    return {name: metric.value, f"{name}_interval": [metric.low, metric.high]}


def _describe_level(level: Level) -> dict[str, Any]:
    metrics = ("accuracy", "balanced_accuracy", "macro_f1")
    described = [_describe(getattr(level, name), name).items() for name in metrics]
    return {"level": level.name, "n_classes": level.n_classes, **dict(itertools.chain(*described))}
