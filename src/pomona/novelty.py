"""Whether a photo shows something that was not learnt: how strange it is, from what is known of the classes alone.

In: features and logits of photos that were learnt, and of the same photos where they, or their classes, were not.
Out: a `Detector`, the best of several by how well it tells classes that were left out, and its nodes for the graph.
Why: a recogniser that knows fruit alone calls a shoe the fruit that comes nearest, and is sure of it. How far features
are from all that was learnt says more than any probability.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.features import release_pages
from pomona.projection import iter_blocks, scale_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

SKETCH_DIM = 256
"""Numbers that features are added up to before distances are taken."""

UNKNOWN_FROM = 0.5
"""Strangeness from which on a photo is unknown."""

CANDIDATES: tuple[tuple[str, ...], ...] = (
    ("relative-mahalanobis", "energy"),
    ("mahalanobis", "energy"),
    ("nearest", "energy"),
    ("residual", "energy"),
    ("relative-mahalanobis",),
    ("mahalanobis",),
    ("nearest",),
    ("residual",),
    ("energy",),
)
"""Measures that are compared, alone and in sums; the first is taken where nothing can be compared."""

_AXES = 64  # of the subspace whose residual is taken
_STEADY = 1.0  # share of the mean variance that each direction is given more
_EPSILON = 1e-12
_LEAST_SPREAD = 1e-3
_MARGIN = 1e-5  # over the strangest photo that is kept, or it would be unknown: 0.5 is


@dataclass(frozen=True, eq=False)
class Bank:
    """What was learnt, in few numbers a photo.

    Parameters
    ----------
    vectors : ndarray of shape (N, K), float32
        Sketches of the features.
    labels : ndarray of shape (N,), intp
        Class of each.
    """

    vectors: NDArray[np.float32]
    labels: NDArray[np.intp]


def needs_bank(kind: Sequence[str]) -> bool:
    """Whether any of the measures is a distance from what was learnt."""
    return any(one != "energy" for one in kind)


def sketch_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add features (N, D) up, with fixed random signs, to `SKETCH_DIM` numbers (N, K); fewer stay as they are.

    Number k is the sum of features k, k + K, k + 2 K and so on. Products stay what they are on average.

    References
    ----------
    Weinberger et al., Feature hashing for large scale multitask learning, ICML 2009.
    """
    dim = vectors.shape[1]
    if dim <= SKETCH_DIM:
        return np.array(vectors, np.float32)
    signs, found = _draw_signs(dim), np.zeros((len(vectors), SKETCH_DIM), np.float32)
    for start, stop in iter_blocks(len(vectors)):
        for first in range(0, dim, SKETCH_DIM):
            part = slice(first, min(first + SKETCH_DIM, dim))
            found[start:stop, : part.stop - first] += vectors[start:stop, part] * signs[part]
        release_pages(vectors)
    return found


def _draw_signs(dim: int) -> NDArray[np.float32]:
    return np.random.default_rng(dim).choice(np.array([-1, 1], np.float32), dim)


class Measures(NamedTuple):
    """What distances are taken by; fitted on a bank.

    Parameters
    ----------
    mean : ndarray of shape (K,)
        Of the bank.
    within, total : ndarray of shape (K, K)
        What photos less the mean are multiplied by, so that their squared length is the distance by the covariance
        inside classes, or by that of all.
    centres : ndarray of shape (C, K)
        Means of the classes, less `mean`, times `within`.
    axes : ndarray of shape (K, A)
        Directions in which the bank varies most.
    """

    mean: NDArray[np.float32]
    within: NDArray[np.float32]
    total: NDArray[np.float32]
    centres: NDArray[np.float32]
    axes: NDArray[np.float32]


def fit_measures(bank: Bank) -> Measures:
    """Fit the measures of distance on a bank.

    Covariances are mixed with a round one of the same mean variance, so that a few photos are enough.
    """
    classes = np.unique(bank.labels)
    mean = bank.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    table = bank.vectors - mean
    centres = np.stack([table[bank.labels == label].mean(axis=0) for label in classes])
    inside = table - centres[np.searchsorted(classes, bank.labels)]
    total = (table.T @ table).astype(np.float64) / len(table)
    within = _find_root((inside.T @ inside).astype(np.float64) / len(table))
    n_axes = min(_AXES, len(table) // 4, len(total) // 4)
    axes = np.linalg.eigh(total)[1][:, len(total) - n_axes :]
    return Measures(mean, within, _find_root(total), centres.astype(np.float32) @ within, axes.astype(np.float32))


def _find_root(covariance: NDArray[np.float64]) -> NDArray[np.float32]:
    """A root (K, K) of the inverse: its product with its transpose is the inverse."""
    steady = covariance + np.eye(len(covariance)) * max(_STEADY * np.trace(covariance) / len(covariance), _EPSILON)
    return np.asarray(np.linalg.inv(np.linalg.cholesky(steady)).T, np.float32)


def measure_energy(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Less the logarithm of the summed exponentials of logits (N, C): high where no class is likely.

    References
    ----------
    Liu, Wang, Owens and Li, Energy-based out-of-distribution detection, NeurIPS 2020.
    """
    top = logits.max(axis=1)
    return np.asarray(-(top + np.log(np.exp(logits - top[:, None]).sum(axis=1))), np.float32)


def measure_part(
    kind: str, measures: Measures, bank: Bank, asked: NDArray[np.float32], logits: NDArray[np.floating]
) -> NDArray[np.float32]:
    """How strange photos are by one measure; higher is stranger.

    Parameters
    ----------
    kind : str
        ``energy``, ``nearest`` (cosine distance to the nearest photo of the bank), ``mahalanobis`` (squared, to the
        nearest centre), ``relative-mahalanobis`` (the same less that to the mean of all) or ``residual`` (squared
        distance from the subspace in which the bank varies most).
    measures, bank
        What was learnt.
    asked : ndarray of shape (N, K), float32
        Sketches of the photos.
    logits : ndarray of shape (N, C)
        Of the photos.

    References
    ----------
    Lee, Lee, Lee and Shin, A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018.
    Ren et al., A simple fix to Mahalanobis distance for improving near-OOD detection, 2021.
    Sun, Ming, Zhu and Li, Out-of-distribution detection with deep nearest neighbors, ICML 2022.
    Wang, Li, Feng and Zhang, ViM: out-of-distribution with virtual-logit matching, CVPR 2022.
    """
    if kind == "energy":
        return measure_energy(logits)
    if kind == "nearest":
        return np.asarray(1 - (scale_rows(asked) @ scale_rows(bank.vectors).T).max(axis=1), np.float32)
    moved = (asked - measures.mean).astype(np.float64)
    if kind == "residual":
        return np.asarray(np.square(moved).sum(axis=1) - np.square(moved @ measures.axes).sum(axis=1), np.float32)
    placed = moved @ measures.within
    lengths = np.square(placed).sum(axis=1)
    to_centres = np.square(measures.centres, dtype=np.float64).sum(axis=1) - 2 * placed @ measures.centres.T
    distances = lengths + to_centres.min(axis=1)
    if kind == "relative-mahalanobis":
        distances -= np.square(moved @ measures.total).sum(axis=1)
    return np.asarray(distances, np.float32)


@dataclass(frozen=True, eq=False)
class Detector:
    """What tells photos of something unknown.

    Parameters
    ----------
    kind : tuple of str
        Its measures, which are added up.
    middles, spreads : tuple of float
        Of each measure, on known photos that were not learnt: taken off it, and divided by.
    threshold : float
        Sums above it are answered "unknown".
    bank : Bank or None
        What was learnt; None where the only measure is the energy.
    """

    kind: tuple[str, ...]
    middles: tuple[float, ...]
    spreads: tuple[float, ...]
    threshold: float
    bank: Bank | None = None

    def relearn(self, bank: Bank) -> Detector:
        """The same with another bank, after classes came or went."""
        return replace(self, bank=bank if self.bank is not None else None)

    def measure(self, asked: NDArray[np.float32], logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """How strange photos are, 0-1; from 0.5 on they are unknown.

        Parameters
        ----------
        asked : ndarray of shape (N, K), float32
            Sketches of their features.
        logits : ndarray of shape (N, C)
            Of the photos, after the link.
        """
        bank = self.bank or Bank(np.zeros((1, 1), np.float32), np.zeros(1, np.intp))
        measures = fit_measures(bank)
        parts = [measure_part(kind, measures, bank, asked, logits) for kind in self.kind]
        return to_strangeness(self.add_up(parts), self.threshold)

    def add_up(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Sum of the measures, each about its middle and over its spread."""
        return add_parts(parts, self.middles, self.spreads)


def add_parts(
    parts: Sequence[NDArray[np.float32]], middles: Sequence[float], spreads: Sequence[float]
) -> NDArray[np.float32]:
    """Sum of measures (N,), each about its middle and over its spread."""
    scaled = [(part - middle) / spread for part, middle, spread in zip(parts, middles, spreads, strict=True)]
    return np.asarray(np.sum(scaled, axis=0), np.float32)


def to_strangeness(sums: NDArray[np.floating], threshold: float) -> NDArray[np.float32]:
    """From sums to 0-1, with 0.5 at the threshold.

    Examples
    --------
    >>> to_strangeness(np.array([-50.0, 2.0, 50.0]), 2.0).round(3).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.asarray(1 / (1 + np.exp(np.clip(threshold - sums, -60, 60))), np.float32)


# --- choosing ---------------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """Measures of photos by what was learnt without them: by name, arrays (N,)."""

    known: Mapping[str, NDArray[np.float32]]
    strange: Mapping[str, NDArray[np.float32]]


def measure_all(bank: Bank, asked: NDArray[np.float32], logits: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
    """Every single measure of photos, by name."""
    measures = fit_measures(bank)
    kinds = dict.fromkeys(kind for candidate in CANDIDATES for kind in candidate)
    return {kind: measure_part(kind, measures, bank, asked, logits) for kind in kinds}


def score_candidates(trials: Sequence[Trial]) -> dict[tuple[str, ...], float]:
    """How well each candidate tells known from strange: the area under its ROC curve, the mean of the trials.

    Parameters
    ----------
    trials : sequence of Trial
        In each, other classes were left out.

    Returns
    -------
    dict of tuple of str to float
        In the order of `CANDIDATES`; 0.5 is chance.
    """
    found = {}
    for candidate in CANDIDATES:
        areas = []
        for known, strange in trials:
            middles, spreads = fit_scales([known[kind] for kind in candidate])
            inside, outside = (
                add_parts([table[kind] for kind in candidate], middles, spreads) for table in (known, strange)
            )
            areas.append(measure_auroc(inside, outside))
        found[candidate] = float(np.mean(areas))
    return found


def fit_scales(parts: Sequence[NDArray[np.float32]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each measure; what hardly varies is not blown up to what rounding makes of it."""
    middles = tuple(float(part.mean(dtype=np.float64)) for part in parts)
    deviations = [float(part.std(dtype=np.float64)) for part in parts]
    spreads = tuple(max(one, _LEAST_SPREAD * max(1.0, abs(m))) for one, m in zip(deviations, middles, strict=True))
    return middles, spreads


def fit_threshold(
    sums: NDArray[np.floating], turned_away: float, *, n_groups: int, weights: NDArray[np.floating] | None = None
) -> float:
    """Sum that no more than a share of known photos is at or above; one group more is counted, above any.

    Parameters
    ----------
    sums : ndarray of shape (N,)
        Of known photos that were not learnt.
    turned_away : float
        The share, 0-1.
    n_groups : int
        Groups that they are of.
    weights : ndarray of shape (N,), optional
        How much each counts.

    Examples
    --------
    >>> round(fit_threshold(np.arange(100.0), 0.05, n_groups=100), 2)
    95.0
    """
    order = np.argsort(sums, kind="stable")
    shares = np.full(len(sums), 1 / len(sums)) if weights is None else np.asarray(weights)[order] / np.sum(weights)
    wanted = (1 - turned_away) * (1 + 1 / n_groups)
    place = int(np.searchsorted(np.cumsum(shares), wanted - 1e-9))
    # With too few groups to say where such a share begins: beyond all that were seen, by as much as they are spread.
    least = float(np.asarray(sums)[order[place]] if place < len(sums) else np.max(sums) + np.std(sums))
    return least + _MARGIN * max(1.0, abs(least))


def measure_auroc(known: NDArray[np.floating], strange: NDArray[np.floating]) -> float:
    """How often something strange is held to be stranger than something known; a tie counts half.

    Examples
    --------
    >>> measure_auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    values, places = np.unique(np.concatenate([known, strange]), return_inverse=True)
    inside = np.bincount(places[: len(known)], minlength=len(values))
    outside = np.bincount(places[len(known) :], minlength=len(values))
    below = np.cumsum(inside) - inside / 2
    return float((below * outside).sum() / (len(known) * len(strange)))


def measure_false_known(known: NDArray[np.floating], strange: NDArray[np.floating], *, kept: float = 0.95) -> float:
    """Share of strange photos that are taken for known where a share of the known is kept.

    Examples
    --------
    >>> measure_false_known(np.arange(100.0), np.array([10.0, 200.0]))
    0.5
    """
    return float((strange <= np.quantile(known, kept)).mean())


def part_classes(bank: Bank, n_parts: int = 5) -> list[NDArray[np.intp]]:
    """Part the classes into kinds that look alike, to be left out together.

    Leaving out one variety of many asks whether it is told from its sisters; leaving out all that looks like it asks
    what a detector is for. The part that is spread most is halved along the direction in which the means of its classes
    vary most, until there are enough.

    Returns
    -------
    list of ndarray of intp
        Classes of each part; fewer parts where there are few classes, and none where there are fewer than three.

    References
    ----------
    Boley, Principal direction divisive partitioning, Data Mining and Knowledge Discovery 2, 1998.
    """
    classes = np.unique(bank.labels)
    if len(classes) < 3:
        return []
    means = np.stack([bank.vectors[bank.labels == label].mean(axis=0, dtype=np.float64) for label in classes])
    parts = [np.arange(len(classes))]
    while len(parts) < min(n_parts, len(classes)):
        spreads = [np.square(means[part] - means[part].mean(axis=0)).sum() if len(part) > 1 else -1 for part in parts]
        part = parts.pop(int(np.argmax(spreads)))
        moved = means[part] - means[part].mean(axis=0)
        along = moved @ np.linalg.svd(moved, full_matrices=False)[2][0]
        order = np.argsort(along, kind="stable")
        n_first = min(max(1, int((along < 0).sum())), len(part) - 1)
        parts += [part[order[:n_first]], part[order[n_first:]]]
    return [classes[np.sort(part)] for part in parts]


# --- the graph --------------------------------------------------------------------------------------------------------


def write_detector(
    add: Callable[..., str],
    constant: Callable[[NDArray[np.generic]], str],
    detector: Detector,
    dim: int,
    names: tuple[str, str],
) -> str:
    """Add the nodes of a detector to a graph.

    Parameters
    ----------
    add : callable
        ``add(kind, inputs, **attributes)`` gives the name of the node's output.
    constant : callable
        From an array to the name of a constant.
    detector : Detector
        What is written.
    dim : int
        Length of the features, D.
    names : tuple of str
        Of the features (N, D) and of the logits (N, C), after the link.

    Returns
    -------
    str
        Name of the output (N,), 0-1.
    """
    features, logits = names

    def number(value: float) -> str:
        return constant(np.array(value, np.float32))

    last = constant(np.array([1]))
    asked = moved = ""
    if detector.bank is not None and needs_bank(detector.kind):
        asked = _write_sketch(add, constant, features, dim)
        measures = fit_measures(detector.bank)
        moved = add("Sub", [asked, constant(measures.mean)])
    total = number(-detector.threshold)
    for kind, middle, spread in zip(detector.kind, detector.middles, detector.spreads, strict=True):
        if kind == "energy":
            part = add("Neg", [add("ReduceLogSumExp", [logits, last], keepdims=0)])
        elif kind == "nearest":
            assert detector.bank is not None
            length = add("Max", [add("ReduceL2", [asked, last], keepdims=1), number(_EPSILON)])
            bank = constant(np.ascontiguousarray(scale_rows(detector.bank.vectors).T))
            near = add("MatMul", [add("Div", [asked, length]), bank])
            part = add("Sub", [number(1.0), add("ReduceMax", [near, last], keepdims=0)])
        elif kind == "residual":
            whole = add("ReduceSumSquare", [moved, last], keepdims=0)
            inside = add("MatMul", [moved, constant(measures.axes)])
            part = add("Sub", [whole, add("ReduceSumSquare", [inside, last], keepdims=0)])
        else:
            placed = add("Unsqueeze", [add("MatMul", [moved, constant(measures.within)]), last])
            # Gaps first, then squares: the other order would take small distances from large numbers.
            gaps = add("Sub", [placed, constant(measures.centres[None])])
            squares = add("ReduceSumSquare", [gaps, constant(np.array([2]))], keepdims=0)
            part = add("ReduceMin", [squares, last], keepdims=0)
            if kind == "relative-mahalanobis":
                whole = add("ReduceSumSquare", [add("MatMul", [moved, constant(measures.total)]), last], keepdims=0)
                part = add("Sub", [part, whole])
        scaled = add("Div", [add("Sub", [part, number(middle)]), number(spread)])
        total = add("Add", [total, scaled])
    return add("Sigmoid", [total])


def _write_sketch(
    add: Callable[..., str], constant: Callable[[NDArray[np.generic]], str], features: str, dim: int
) -> str:
    """Add the nodes of `sketch_vectors`."""
    if dim <= SKETCH_DIM:
        return features
    n_strips = -(-dim // SKETCH_DIM)
    signed = add("Mul", [features, constant(_draw_signs(dim))])
    padded = add("Pad", [signed, constant(np.array([0, 0, 0, n_strips * SKETCH_DIM - dim]))])
    strips = add("Reshape", [padded, constant(np.array([0, n_strips, SKETCH_DIM]))])
    return add("ReduceSum", [strips, constant(np.array([1]))], keepdims=0)
