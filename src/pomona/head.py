"""A linear head on features: what it is, what it may be fitted on, and how sure it may be.

In: features, labels and scores. Out: a `Head`: weights, bias, and the strength that was chosen; a temperature; refusals
of what no head can be fitted on.
Why: a head is the same whatever fits it. Probabilities come from scores by one number, found on photos held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import FitError, OptionError
from pomona.features import release_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DEFAULT_TEMPERATURE = 0.1
"""Where no photo can be held out; a score of 1 against 0 is then a probability ratio of e to the 10th."""

_CHUNK_ROWS = 4096
_WIDTHS = (0.5, 1.0, 1.5, 2.2, 4.0)
"""Tried, of logits that have their temperature."""


@dataclass(frozen=True)
class Head:
    """Logits of C classes from features: ``features @ weights.T + bias``.

    Parameters
    ----------
    weights : ndarray of shape (C, D), float32
        On features as the network gives them.
    bias : ndarray of shape (C,), float32
        Added to the logits.
    l2 : float
        Strength that was chosen.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    l2: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.bias.shape != self.weights.shape[:1]:
            raise ValueError(f"wanted weights (C, D) and bias (C,), got {self.weights.shape} and {self.bias.shape}")

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C) of features (N, D)."""
        return np.asarray(vectors @ self.weights.T + self.bias, np.float32)

    def predict_proba(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, C) of features (N, D)."""
        return softmax(self.score(vectors))


@dataclass(frozen=True)
class Fit:
    """One strength that was tried.

    Parameters
    ----------
    l2 : float
        The strength.
    accuracy : float
        Share 0-1 of held-out photos that were right.
    log_loss : float
        Mean negative log probability of the held-out photos' labels, in nats; the smallest wins.
    n_steps : int
        Solves that it took.
    seconds : float
        Time it took.
    """

    l2: float
    accuracy: float
    log_loss: float
    n_steps: int
    seconds: float


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits (N, C), each row shifted by its largest for range.

    Examples
    --------
    >>> softmax(np.zeros((1, 4), np.float32)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return np.asarray(shares)


@dataclass(frozen=True)
class Link:
    """What leads from the logits of a head to those that probabilities come from.

    Parameters
    ----------
    width : float or None
        Above 0: logits become ``asinh(logits / width)``, straight near 0 and a logarithm far from it. None: they stay.
    sharpness : float
        Above 0: what they are multiplied by then; the inverse of a temperature.

    Examples
    --------
    >>> Link(None, 2.0).apply(np.array([[1.0, 0.0]])).tolist()
    [[2.0, 0.0]]
    """

    width: float | None = None
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.sharpness < np.inf and (self.width is None or 0 < self.width < np.inf)):
            raise ValueError(f"wanted a width and a sharpness above 0, got {self.width} and {self.sharpness}")

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Logits (N, C) that a softmax makes probabilities of."""
        bent = logits if self.width is None else np.arcsinh(logits / np.float32(self.width))
        return np.asarray(bent * np.float32(self.sharpness), np.float32)


def fit_link(
    logits: NDArray[np.floating], labels: NDArray[np.intp], weights: NDArray[np.floating] | None = None
) -> Link:
    """Find the link at which held-out photos have the smallest log loss.

    Scores of a ridge are probabilities already, but for noise: their logarithm makes better ones than an exponential
    does. `asinh` is that logarithm where scores are far above the noise, and passes through 0 where they are not. It is
    taken where it gains more than a further number to fit may gain by chance.

    Parameters
    ----------
    logits : ndarray of shape (N, C)
        Of photos that were not learnt.
    labels : ndarray of shape (N,), int
        Their class numbers.
    weights : ndarray of shape (N,), optional
        How much each counts.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017: one temperature for all classes.
    Akaike, A new look at the statistical model identification, IEEE TAC 19, 1974: what a further number must gain.

    Examples
    --------
    >>> fit_link(np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]]), np.array([0, 0, 0, 1])).width is None
    True
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    tried: list[tuple[float, Link]] = []
    for width in (None, *_WIDTHS):
        bent = Link(width).apply(logits)
        link = Link(width, 1 / fit_temperature(bent, labels, weights))
        own = softmax(link.apply(logits))[np.arange(len(labels)), labels]
        tried.append((float(-np.average(np.log(np.maximum(own, 1e-12)), weights=weights)), link))
    straight, best = tried[0], min(tried[1:], key=lambda one: one[0])
    gain_by_chance = np.square(weights).sum() / weights.sum() ** 2  # one over how many photos the weights are worth
    return best[1] if best[0] < straight[0] - gain_by_chance else straight[1]


def fit_temperature(
    scores: NDArray[np.floating], labels: NDArray[np.intp], weights: NDArray[np.floating] | None = None
) -> float:
    """Find the temperature at which `softmax(scores / temperature)` has the smallest log loss.

    To the photos one is added that is equally likely of every class, so that a few that are all right do not make the
    model certain. The loss is convex in the inverse of the temperature; Newton's method, inside a bracket.

    Parameters
    ----------
    scores : ndarray of shape (N, C)
        Of held-out photos.
    labels : ndarray of shape (N,), int
        Their class numbers.
    weights : ndarray of shape (N,), optional
        How much each counts; all the same where not given.

    Returns
    -------
    float
        From 0.001 to 1000.

    References
    ----------
    Platt, Probabilistic outputs for support vector machines, 1999: targets a little short of certain.

    Examples
    --------
    >>> scores = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    >>> round(fit_temperature(np.tile(scores, (1000, 1)), np.zeros(4000, int)), 2)  # odds of 3 to 1: 1 / log 3
    0.91
    """
    shares_of = None if weights is None else np.asarray(weights / np.mean(weights), np.float64)

    def average(values: NDArray[np.floating]) -> float:
        return float((values if shares_of is None else values * shares_of).mean(dtype=np.float64))

    gaps = (scores - scores.max(axis=1, keepdims=True)).astype(np.float32)
    blur = 1 / ((len(labels) if weights is None else float(np.sum(weights))) + 1)
    wanted = (1 - blur) * gaps[np.arange(len(labels)), labels] + blur * gaps.mean(axis=1)
    low, high, scale = 1e-3, 1e3, 1 / DEFAULT_TEMPERATURE
    for _ in range(60):
        shares = softmax(gaps * np.float32(scale))
        shares *= gaps
        means = shares.sum(axis=1)
        slope = average(means - wanted)
        low, high = (low, scale) if slope >= 0 else (scale, high)
        shares *= gaps
        curvature = average(shares.sum(axis=1) - means**2)
        proposed = scale - slope / curvature if curvature > 0 else 0.0
        moved = proposed if low < proposed < high else float(np.sqrt(low * high))
        if abs(moved - scale) <= 1e-5 * scale:
            break
        scale = moved
    return 1 / scale


def order_strengths(strengths: Sequence[float]) -> list[float]:
    """Sort strengths from the strongest; an `OptionError` where there is none or one is negative or not finite."""
    if not strengths or not all(0 <= l2 < np.inf for l2 in strengths):
        raise OptionError(f"l2: wanted one strength or more, each a finite number from 0, got {list(strengths)}")
    return sorted(strengths, reverse=True)


def check_fit(vectors: NDArray[np.floating], labels: NDArray[np.intp], n_classes: int, rows: NDArray[np.intp]) -> None:
    """Refuse features or labels that no head can be fitted on, with a `FitError`; `rows` are those fitted on."""
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise FitError(f"wanted features (N, D) and labels (N,), got {vectors.shape} and {labels.shape}")
    if n_classes < 2:
        raise FitError(f"wanted two classes or more, got {n_classes}")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise FitError(f"wanted finite features, got {bad} photos with NaN or infinity; compute the features again")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise FitError(f"wanted labels from 0 to {n_classes - 1}, got {labels.min()} to {labels.max()}")
    empty = np.flatnonzero(np.bincount(labels[rows], minlength=n_classes) == 0)
    if len(empty):
        raise FitError(
            f"wanted a photo of each class to fit on, got none of {len(empty)} classes, the first number {empty[0]}"
        )


def sum_rows(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums (N,), float64, of rows; not finite where the row is not."""
    sums = np.zeros(len(vectors))
    with np.errstate(invalid="ignore"):
        for start in range(0, len(vectors), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            sums[rows] = vectors[rows].sum(axis=1, dtype=np.float64)
            release_pages(vectors)
    return sums
