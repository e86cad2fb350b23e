"""A linear head on features: multinomial logistic regression.

In: features and labels, and a part to choose the L2 strength on. Out: a `Head`: weights, bias, and how it was chosen.
Why: on frozen features a convex problem with one optimum, solved to convergence in a second, with nothing to tune but
the strength. Features are standardised for the fit and the scaling is folded into the weights, so the head that is kept
works on features as the network gives them.
"""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import FitError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

STRENGTHS: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)
"""L2 strengths tried, strongest first, as the weight of half the squared norm beside the mean log loss."""

# Relative decrease of the loss at which a fit ends: along the path, and for the head that is kept. The second leaves
# gradients below 4e-5 on the Grocery Store photos, under the 1e-4 that scikit-learn stops at.
_ROUGH, _FINE = 1e-4, 1e-5


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

    def predict_proba(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, C) of features (N, D)."""
        return softmax(vectors @ self.weights.T + self.bias)


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
        Evaluations of loss and gradient.
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


def fit_head(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]] = (),
    *,
    strengths: Sequence[float] = STRENGTHS,
    on_step: Callable[[], None] | None = None,
) -> tuple[Head, tuple[Fit, ...]]:
    """Fit a head, with the L2 strength that does best on held-out rows.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Features.
    labels : ndarray of shape (N,), int
        Class numbers 0 to n_classes - 1.
    n_classes : int
        C; each must have a row.
    folds : iterable of (ndarray, ndarray)
        Pairs of rows to fit on and rows to choose on. The head that is kept is fitted on the rows of the first
        pair where there is one pair (train and validation part), on all rows where there are several (cross-validation)
        or none (the middle strength is taken).
    strengths : sequence of float
        Strengths to try, 0 or more, in any order.
    on_step : callable, optional
        Called after each strength of each fold.

    Returns
    -------
    Head, tuple of Fit
        The head, and what each strength gave, averaged over the folds.

    Raises
    ------
    OptionError
        If there is no strength, or one is negative or not finite.
    FitError
        If features are not finite, a label is out of range, or a class has no row to be fitted on.
    """
    ordered = order_strengths(strengths)
    pairs = list(folds)
    rows = pairs[0][0] if len(pairs) == 1 else np.arange(len(labels))
    check_fit(vectors, labels, n_classes, rows)
    tried: tuple[Fit, ...] = ()
    best = ordered[len(ordered) // 2]
    problem: _Problem | None = None
    if pairs and len(ordered) > 1:
        paths = []
        for train, held_out in pairs:
            problem = _Problem(vectors[train], labels[train], n_classes)
            paths.append(_fit_path(problem, ordered, vectors[held_out], labels[held_out], on_step))
        tried = tuple(_average(fits) for fits in zip(*paths, strict=True))
        best = min(tried, key=lambda fit: fit.log_loss).l2
    if problem is None or len(pairs) > 1:
        problem = _Problem(vectors[rows], labels[rows], n_classes)
    problem.start_near(best)
    problem.solve(best, _FINE)
    return problem.to_head(best), tried


def order_strengths(strengths: Sequence[float]) -> list[float]:
    """Sort strengths from the strongest; an `OptionError` where there is none or one is negative or not finite."""
    if not strengths or not all(0 <= l2 < np.inf for l2 in strengths):
        raise OptionError(f"l2: wanted one strength or more, each a finite number from 0, got {list(strengths)}")
    return sorted(strengths, reverse=True)


def check_fit(vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int, rows: NDArray[np.intp]) -> None:
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


def _fit_path(
    problem: _Problem,
    strengths: Sequence[float],
    held_out: NDArray[np.float32],
    labels: NDArray[np.intp],
    on_step: Callable[[], None] | None,
) -> list[Fit]:
    """Fit from the strongest strength to the weakest, each from where the last ended."""
    fits = []
    for l2 in strengths:
        started_s = time.perf_counter()
        n_steps = problem.solve(l2, _ROUGH)
        probabilities = problem.to_head(l2).predict_proba(held_out)
        right = probabilities[np.arange(len(labels)), labels]
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        log_loss = float(-np.log(np.maximum(right, 1e-12)).mean())
        fits.append(Fit(l2, accuracy, log_loss, n_steps, time.perf_counter() - started_s))
        if on_step:
            on_step()
    return fits


def _average(fits: Sequence[Fit]) -> Fit:
    n = len(fits)
    return Fit(
        l2=fits[0].l2,
        accuracy=sum(fit.accuracy for fit in fits) / n,
        log_loss=sum(fit.log_loss for fit in fits) / n,
        n_steps=sum(fit.n_steps for fit in fits),
        seconds=sum(fit.seconds for fit in fits),
    )


class _Problem:
    """Penalised mean log loss of standardised features, with its current solution.

    Plain L-BFGS on standardised features: a Cholesky preconditioner and a rotation to principal axes were measured
    and needed more steps or more time. Products are float32, sums are float64.
    """

    def __init__(self, vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> None:
        # Sums over rows in float64: in float32 a constant column gets a deviation of rounding errors, and a huge gain.
        self.mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.x = vectors - self.mean
        deviation = np.sqrt(np.einsum("nd,nd->d", self.x, self.x, dtype=np.float64) / len(labels))
        varies = deviation > 1e-6 * np.abs(self.mean)
        self.gain = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies).astype(np.float32)
        self.x *= self.gain
        self.labels = labels
        self.n_classes = n_classes
        self.solution = np.zeros((vectors.shape[1] + 1) * n_classes, np.float32)
        self.path: dict[float, NDArray[np.float32]] = {}

    def solve(self, l2: float, tolerance: float) -> int:
        """Go on from the current solution until a step gains less than `tolerance`; returns the evaluations."""
        loss, self.solution, n_evaluations = minimise(lambda point: self.evaluate(point, l2), self.solution, tolerance)
        if not np.isfinite(loss):
            raise FitError(f"the fit at L2 strength {l2:g} did not stay finite; compute the features again")
        self.path[l2] = self.solution
        return n_evaluations

    def start_near(self, l2: float) -> None:
        """Begin the next solve at what this strength gave before, where it was tried."""
        self.solution = self.path.get(l2, self.solution)

    def evaluate(self, point: NDArray[np.float32], l2: float) -> tuple[float, NDArray[np.float32]]:
        """Loss and gradient at a flat point ((D + 1) * C,)."""
        table = point.reshape(-1, self.n_classes)
        weights, bias = table[:-1], table[-1]
        n = len(self.labels)
        logits = self.x @ weights
        logits += bias
        logits -= logits.max(axis=1, keepdims=True)
        rows = np.arange(n)
        picked = logits[rows, self.labels].sum(dtype=np.float64)
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)
        loss = (np.log(total).sum(dtype=np.float64) - picked) / n + l2 / 2 * float(np.vdot(weights, weights))
        logits /= total
        logits[rows, self.labels] -= 1
        logits /= n
        gradient = np.empty_like(table)
        np.matmul(self.x.T, logits, out=gradient[:-1])
        gradient[:-1] += np.float32(l2) * weights
        gradient[-1] = logits.sum(axis=0)
        return loss, gradient.ravel()

    def to_head(self, l2: float) -> Head:
        """Fold the standardisation into the weights."""
        table = self.solution.reshape(-1, self.n_classes).astype(np.float64)
        weights = table[:-1] * self.gain[:, None]
        bias = table[-1] - self.mean.astype(np.float64) @ weights
        return Head(np.ascontiguousarray(weights.T, np.float32), bias.astype(np.float32), l2)


def minimise(
    evaluate: Callable[[NDArray[np.float32]], tuple[float, NDArray[np.float32]]],
    start: NDArray[np.float32],
    tolerance: float,
    *,
    n_pairs: int = 10,
    max_steps: int = 1000,
) -> tuple[float, NDArray[np.float32], int]:
    """Find the minimum of a smooth convex function by L-BFGS with backtracking.

    Own code, for speed: with 150,000 unknowns SciPy's L-BFGS-B spends as long on its own bookkeeping, which allows
    for bounds, as on the function, and takes 0.6 s to import.

    Parameters
    ----------
    evaluate : callable
        Point (P,) to value and gradient (P,).
    start : ndarray of shape (P,), float32
        Where to begin.
    tolerance : float
        Ends when a step lowers the value by less than this share of it.
    n_pairs : int
        Steps that the curvature is estimated from.
    max_steps : int
        Ends here at the latest.

    Returns
    -------
    value, point, n_evaluations
        The smallest value found, where, and after how many evaluations.

    References
    ----------
    Nocedal and Wright, Numerical Optimization, 2nd edition, 2006: algorithms 7.4, 7.5 and 3.1.

    Examples
    --------
    >>> value, point, _ = minimise(lambda x: (float(x @ x - 2 * x.sum()), 2 * x - 2), np.zeros(3, np.float32), 1e-9)
    >>> point.round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    pairs: collections.deque[tuple[NDArray[np.float32], NDArray[np.float32], float]] = collections.deque(maxlen=n_pairs)
    point = start
    value, gradient = evaluate(point)
    n_evaluations = 1
    for _ in range(max_steps):
        direction = -_apply_inverse_hessian(gradient, pairs)
        slope = float(direction @ gradient)
        length = 1.0 if pairs else min(1.0, 1.0 / max(float(np.linalg.norm(gradient)), 1e-12))
        while True:
            new_point = point + np.float32(length) * direction
            new_value, new_gradient = evaluate(new_point)
            n_evaluations += 1
            if new_value <= value + 1e-4 * length * slope or length < 1e-6:
                break
            length /= 2
        if not new_value < value:  # float32 products resolve no further, or the function is not finite
            return (value if np.isfinite(new_value) else new_value), point, n_evaluations
        moved, turned = new_point - point, new_gradient - gradient
        if (curvature := float(moved @ turned)) > 0:
            pairs.append((moved, turned, curvature))
        gained = value - new_value
        point, value, gradient = new_point, new_value, new_gradient
        if gained <= tolerance * abs(value):
            break
    return value, point, n_evaluations


def _apply_inverse_hessian(
    gradient: NDArray[np.float32], pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32], float]]
) -> NDArray[np.float32]:
    """The two loops over the last steps; the identity, scaled, stands for what they do not tell."""
    result = gradient.copy()
    shares = []
    for moved, turned, curvature in reversed(pairs):
        share = np.float32(float(moved @ result) / curvature)
        result -= share * turned
        shares.append(share)
    if pairs:
        _, turned, curvature = pairs[-1]
        result *= np.float32(curvature / float(turned @ turned))
    for (moved, turned, curvature), share in zip(pairs, reversed(shares), strict=True):
        result += (share - np.float32(float(turned @ result) / curvature)) * moved
    return result
