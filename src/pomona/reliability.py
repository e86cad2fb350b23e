"""Whether what is said with 80 per cent is right in 80 of 100: the reliability diagram and the calibration error.

In: how sure each answer was, and whether it was right. Out: a `Reliability`: bins, and the expected calibration error
with its interval. Arrays alone.
Why: a number behind an answer is of use where it is kept. The error of a few photos is never 0, so beside it stands
what a recogniser whose numbers hold would show on as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_BINS = 15
_N_DRAWN, _N_AT_ONCE = 400, 40


@dataclass(frozen=True)
class Reliability:
    """How far the sureness of answers can be believed.

    Parameters
    ----------
    ece : float
        Expected calibration error, 0-1: how far sureness and share of right answers are apart in a bin, on average.
    low, high : float
        Its 95 % interval.
    by_chance : float
        What it would be, on average, on as many photos if all sureness were exactly kept.
    sureness, right, share : tuple of float
        Of each bin that holds answers, in order: mean sureness, share of right answers, share of all answers.
    n : int
        Answers.
    """

    ece: float
    low: float
    high: float
    by_chance: float
    sureness: tuple[float, ...]
    right: tuple[float, ...]
    share: tuple[float, ...]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        content = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        content["ece_interval"] = [content.pop("low"), content.pop("high")]
        return content


def measure_reliability(
    sureness: NDArray[np.floating[Any]],
    hits: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    weights: NDArray[np.floating[Any]] | None = None,
    seed: int = 0,
) -> Reliability:
    """Measure how far sureness and right answers are apart.

    Parameters
    ----------
    sureness : ndarray of shape (N,), 0-1
        Probability of each answer.
    hits : ndarray of shape (N,), bool
        Whether it was right.
    groups : ndarray of shape (N,), optional
        Photos of one mark are drawn together for the interval.
    weights : ndarray of shape (N,), optional
        How much each counts.
    seed : int
        Decides what is drawn for the interval and for the error by chance.

    Raises
    ------
    DataError
        If there is no answer, the lengths differ, or a sureness is not in 0-1.

    Notes
    -----
    15 bins of equal width. The interval is the basic bootstrap's, over groups: it is mirrored about the error, which
    undoes the upward pull of a second drawing.

    References
    ----------
    Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
    Davison and Hinkley, Bootstrap methods and their application, 1997: the basic bootstrap, and that of clusters.

    Examples
    --------
    >>> found = measure_reliability(np.full(100, 0.75), np.arange(100) < 60)
    >>> round(found.ece, 3), found.right
    (0.15, (0.6,))
    """
    sureness, hits = np.asarray(sureness, np.float64), np.asarray(hits, bool)
    if not len(sureness) or sureness.ndim != 1 or hits.shape != sureness.shape:
        raise DataError(f"wanted a sureness for each answer, one or more, got {sureness.shape} and {hits.shape}")
    if not ((sureness >= 0) & (sureness <= 1 + 1e-6)).all():
        raise DataError(f"sureness: wanted numbers from 0 to 1, got {sureness.min():g} to {sureness.max():g}")
    weights = np.asarray(np.ones(len(hits)) if weights is None else weights, np.float64)
    bins = np.minimum((sureness * N_BINS).astype(np.intp), N_BINS - 1)
    marks = np.arange(len(hits)) if groups is None else np.unique(groups, return_inverse=True)[1]
    gaps = _sum_cells(marks, bins, np.asarray(weights * (hits - sureness), np.float64))
    masses = np.asarray(np.bincount(marks, weights, minlength=len(gaps)), np.float64)
    ece = float(np.abs(gaps.sum(axis=0)).sum() / masses.sum())
    random = np.random.default_rng(seed)
    again = np.concatenate([_draw_again(gaps, masses, random) for _ in range(_N_DRAWN // _N_AT_ONCE)])
    low, high = np.quantile(again, [0.025, 0.975])
    kept = (random.random(len(hits)) < sureness for _ in range(_N_DRAWN // 4))
    chance = [np.abs(np.bincount(bins, weights * (one - sureness), N_BINS)).sum() / weights.sum() for one in kept]
    mass = np.bincount(bins, weights, N_BINS)
    filled = np.flatnonzero(mass)

    def average(values: NDArray[Any]) -> tuple[float, ...]:
        return tuple((np.bincount(bins, weights * values, N_BINS)[filled] / mass[filled]).tolist())

    return Reliability(
        ece=ece,
        low=max(0.0, min(ece, 2 * ece - float(high))),
        high=min(1.0, max(ece, 2 * ece - float(low))),
        by_chance=float(np.mean(chance)),
        sureness=average(sureness),
        right=average(hits),
        share=tuple((mass[filled] / mass.sum()).tolist()),
        n=len(hits),
    )


def _draw_again(
    gaps: NDArray[np.float64], masses: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Errors of a few drawings of the groups; a few at a time, or many groups would take much memory."""
    drawn = random.multinomial(len(gaps), np.full(len(gaps), 1 / len(gaps)), size=_N_AT_ONCE).astype(np.float64)
    return np.asarray(np.abs(drawn @ gaps).sum(axis=1) / np.maximum(drawn @ masses, 1e-12))


def _sum_cells(marks: NDArray[np.intp], bins: NDArray[np.intp], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (G, B) by group and bin."""
    n_groups = int(marks.max()) + 1
    cells = np.bincount(marks * N_BINS + bins, values, minlength=n_groups * N_BINS)
    return np.asarray(cells.reshape(n_groups, N_BINS), np.float64)
