"""Which labels the photos themselves speak against, which photos fit no class, and what a random split would promise.

In: features in few numbers, labels, groups. Out: a `Doubt` for each photo that somebody should look at; accuracies.
Why: a ridge on a few hundred coordinates is solved once, and then says of every photo what it would be called by all
the others: exactly, without fitting again. A photo of a burst is judged by its own neighbours, so a wrong name among
right ones stands out. A whole burst under one wrong name does not.

References
----------
Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels, JAIR 2021: the ranking.
Golub, Heath and Wahba, Generalized cross-validation as a method for choosing a good ridge parameter, Technometrics
1979: leaving one out in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import MissingPackageError
from pomona.projection import iter_blocks, scale_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DOUBT_DIM = 512
"""Coordinates that labels are judged by."""

_STRENGTH = 0.25  # of the mean squared norm of the coordinates
_SCALES = np.geomspace(3, 100, 16)
_FEWEST = 4  # photos of a class, for it to have a say
_LARGEST_SHARE = 0.25  # of a photo's own class, for it to be in doubt
SURE_SHARE = 0.03
"""Share of its own class below which a label is called wrong: with 5 % swapped, 0.96 of those flagged are, and 0.998 of
those swapped are flagged; at a quarter 0.76 are, and leaving the others out costs more than a few wrong labels."""

_N_NEAREST = 3
_N_COMPARED = 2000  # photos of a class that each photo is compared with, so that time grows with their number alone
_OUTLIER_LIMIT = 4.5  # deviations, by the median and the middle half


@dataclass(frozen=True)
class LabelDoubt:
    """A label that looks wrong.

    Parameters
    ----------
    row : int
        Of the photo.
    score : float
        Label quality, 0-1; 0 the worst.
    share, suggested_share : float
        Probability of its own class, and of the one it looks like.
    suggested : int
        That class.
    """

    row: int
    score: float
    share: float
    suggested_share: float
    suggested: int


@dataclass(frozen=True)
class Outlier:
    """A photo far from its class.

    Parameters
    ----------
    row : int
        Of the photo.
    score : float
        0-1; 0 the farthest, 0.5 at the limit.
    distance, usual : float
        Mean cosine distance to the nearest of its class, and that of the middle photo of the set.
    """

    row: int
    score: float
    distance: float
    usual: float


# --- a small ridge ---------------------------------------------------------------------------------------------------


def leave_one_out(coordinates: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> NDArray[np.float32]:
    """Scores of each photo by a ridge on all the others.

    Parameters
    ----------
    coordinates : ndarray of shape (N, K), float32
        Features less their mean.
    labels : ndarray of shape (N,), intp
        Classes from 0.
    n_classes : int
        Classes, C.

    Returns
    -------
    ndarray of shape (N, C), float32
        Nearly 1 for the class and 0 for others.

    Examples
    --------
    >>> line = np.array([[-1.0], [-0.9], [0.9], [1.0]], np.float32)
    >>> leave_one_out(line, np.array([0, 0, 1, 1]), 2).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    table, targets = _border(coordinates), np.eye(n_classes, dtype=np.float32)
    inverse = np.linalg.inv(_gram(table) + _penalty(coordinates))
    weights = inverse @ _moments(table, labels, n_classes)
    scores = np.empty((len(table), n_classes), np.float32)
    for start, stop in iter_blocks(len(table)):
        block = table[start:stop].astype(np.float64)
        leverage = np.einsum("nk,nk->n", block @ inverse, block)[:, None].clip(max=1 - 1e-6)
        scores[start:stop] = (block @ weights - leverage * targets[labels[start:stop]]) / (1 - leverage)
    return scores


def measure_folds(
    coordinates: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> NDArray[np.bool_]:
    """Whether a ridge on the other folds is right on each photo held out.

    Parameters
    ----------
    coordinates, labels, n_classes
        As `leave_one_out`.
    folds : sequence of (train, held_out)
        Rows.

    Returns
    -------
    ndarray of shape (M,), bool
        Of the photos held out, fold by fold.
    """
    table, penalty = _border(coordinates), _penalty(coordinates)
    right = []
    for fitted, held_out in folds:
        rows = table[fitted]
        weights = np.linalg.solve(_gram(rows) + penalty, _moments(rows, labels[fitted], n_classes))
        right.append((table[held_out] @ weights.astype(np.float32)).argmax(axis=1) == labels[held_out])
    return np.concatenate(right) if right else np.zeros(0, bool)


def _border(coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([coordinates, np.ones((len(coordinates), 1), np.float32)], axis=1)


def _penalty(coordinates: NDArray[np.float32]) -> NDArray[np.float64]:
    """Diagonal (K + 1, K + 1); next to none on the border, which is the mean of each class."""
    strength = _STRENGTH * float(np.square(coordinates, dtype=np.float64).sum() / max(1, len(coordinates)))
    return np.diag(np.append(np.full(coordinates.shape[1], strength + 1e-9), 1e-6))


def _gram(table: NDArray[np.float32]) -> NDArray[np.float64]:
    total = np.zeros((table.shape[1], table.shape[1]))
    for start, stop in iter_blocks(len(table)):
        block = table[start:stop]
        total += block.T @ block
    return total


def _moments(table: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> NDArray[np.float64]:
    """Sum of the rows of each class (K, C)."""
    order = np.argsort(labels, kind="stable")
    total = np.zeros((n_classes, table.shape[1]))
    present, starts = np.unique(labels[order], return_index=True)
    total[present] = np.add.reduceat(table[order], starts, axis=0, dtype=np.float64) if len(order) else 0
    return total.T


def to_probabilities(scores: NDArray[np.float32], labels: NDArray[np.intp]) -> NDArray[np.float32]:
    """Softmax of scores (N, C), at the scale under which the labels are likeliest."""
    rows = np.arange(len(labels))
    sample = rows[:: max(1, len(rows) // 20_000)]

    def fit(scale: float) -> float:
        logits = scores[sample] * scale
        logits = logits - logits.max(axis=1, keepdims=True)
        return float((logits[np.arange(len(sample)), labels[sample]] - np.log(np.exp(logits).sum(axis=1))).mean())

    shares = scores * np.float32(max(_SCALES, key=fit))
    shares -= shares.max(axis=1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


# --- doubts -----------------------------------------------------------------------------------------------------------


def find_label_doubts(
    coordinates: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int
) -> tuple[LabelDoubt, ...]:
    """Photos that all the others together would call by another name, the surest first.

    Parameters
    ----------
    coordinates, labels, n_classes
        As `leave_one_out`. Of a class of three photos or fewer nothing can be said.

    Returns
    -------
    tuple of LabelDoubt
        Ranked by cleanlab's self-confidence.

    Raises
    ------
    MissingPackageError
        If cleanlab is not installed.
    """
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise MissingPackageError("cleanlab", "audit", "to rank labels that may be wrong") from error
    if len(np.unique(labels)) < 2:
        return ()
    shares = to_probabilities(leave_one_out(coordinates, labels, n_classes), labels)
    quality = get_label_quality_scores(_number_present(labels), shares[:, np.unique(labels)], method="self_confidence")
    own = shares[np.arange(len(labels)), labels]
    suggested = shares.argmax(axis=1)
    counts = np.bincount(labels, minlength=n_classes)
    doubted = np.flatnonzero((suggested != labels) & (own < _LARGEST_SHARE) & (counts[labels] >= _FEWEST))
    return tuple(
        LabelDoubt(
            row,
            float(np.clip(quality[row], 0, 1)),
            float(own[row]),
            float(shares[row, suggested[row]]),
            int(suggested[row]),
        )
        for row in doubted[np.argsort(quality[doubted], kind="stable")].tolist()
    )


def _number_present(labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Labels numbered anew, without gaps."""
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.intp)


def find_outliers(coordinates: NDArray[np.float32], labels: NDArray[np.intp]) -> tuple[Outlier, ...]:
    """Photos that are far from every photo of their class, the farthest first.

    Parameters
    ----------
    coordinates, labels
        As `leave_one_out`.

    Returns
    -------
    tuple of Outlier
        Those whose mean distance to the three nearest of their class is far beyond what is usual in the set.
    """
    table = scale_rows(coordinates)
    distances = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > _N_NEAREST:
            distances[rows] = _measure_distances(table, rows)
    known = np.flatnonzero(np.isfinite(distances))
    if len(known) < 20:
        return ()
    usual, quarter, most = np.quantile(distances[known], [0.5, 0.25, 0.75])
    limit = usual + _OUTLIER_LIMIT * max(most - quarter, 1e-3) / 1.349
    far = known[distances[known] > limit]
    return tuple(
        Outlier(row, float(limit / (limit + distances[row])), float(distances[row]), float(usual))
        for row in far[np.argsort(-distances[far], kind="stable")].tolist()
    )


def _measure_distances(table: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    compared = _thin_out(rows)
    parts = []
    for start, stop in iter_blocks(len(rows)):
        block = rows[start:stop]
        products = table[block] @ table[compared].T
        products[block[:, None] == compared] = -np.inf
        nearest = np.partition(products, -_N_NEAREST, axis=1)[:, -_N_NEAREST:]
        parts.append(1 - nearest.mean(axis=1, dtype=np.float64))
    return np.concatenate(parts)


def _thin_out(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _N_COMPARED)).astype(np.intp)]


def list_nearest(coordinates: NDArray[np.float32], labels: NDArray[np.intp], row: int, label: int) -> tuple[int, ...]:
    """Rows of the three photos of a class that are most like a photo, itself left out."""
    rows = _thin_out(np.flatnonzero(labels == label))
    rows = rows[rows != row]
    products = scale_rows(coordinates[rows]) @ scale_rows(coordinates[row : row + 1])[0]
    return tuple(rows[np.argsort(-products, kind="stable")[:_N_NEAREST]].tolist())
