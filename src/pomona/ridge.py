"""A ridge head on features, in closed form, that can learn on.

In: features and labels, and parts to choose the strength on. Out: a `Head`, and a `Ridge`: the state that takes further
photos or forgets some in milliseconds. Why: with thousands of dimensions a photo, one matrix inverse gives the fit, the
held-out scores of every fold, and the means to change it later, exactly as if it had been fitted anew.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pomona.errors import FitError, OptionError
from pomona.head import Fit, Head, check_fit, order_strengths, softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

RIDGE_STRENGTHS: tuple[float, ...] = (3e-2, 1e-2, 3e-3, 1e-3)
"""Strengths tried, strongest first: the penalty as a share of the mean squared distance of photos from their mean."""

MIN_STRENGTH = 1e-4
"""Weakest strength there may be: products of features in single precision resolve no weaker one."""

MAX_BYTES = 2_000_000_000
"""Memory that a solve may take beside the features it is given."""

N_CHOSEN_ON = 5_000
"""Photos that strength and temperature are chosen on where there are more."""

DEFAULT_TEMPERATURE = 0.1
"""Where no photo can be held out; a score of 1 against 0 is then a probability ratio of e to the 10th."""

# Rank of the corrections that an inverse carries before they are worked into its table.
_MAX_RANK = 256

# Rows and columns worked on at a time in the solve for many photos, and size below which a matrix is inverted at once.
_CHUNK_ROWS, _TILE, _SMALL = 4096, 1024, 128


def fit_ridge(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]] = (),
    *,
    strengths: Sequence[float] = RIDGE_STRENGTHS,
    on_step: Callable[[], None] | None = None,
) -> tuple[Head, tuple[Fit, ...], Ridge | None]:
    """Fit one ridge regression a class, with the strength and temperature that do best on held-out rows.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Features; may be a memory map, which is then read in parts.
    labels : ndarray of shape (N,), int
        Class numbers 0 to n_classes - 1.
    n_classes : int
        C; each must have a row.
    folds : iterable of (ndarray, ndarray)
        Pairs of rows to fit on and rows to choose on. With one pair the head is fitted on its first rows; with
        several (cross-validation) on all rows; with none on all rows, with the middle strength, and the temperature
        is chosen by leaving out each photo in turn.
    strengths : sequence of float
        Strengths to try, `MIN_STRENGTH` or more, in any order.
    on_step : callable, optional
        Called after each strength.

    Returns
    -------
    Head, tuple of Fit, Ridge or None
        The head, what each strength gave on all held-out rows together, and the state that learns on; None where
        there are too many photos to keep one.

    Raises
    ------
    OptionError
        If there is no strength, or one is too weak or not finite.
    FitError
        If features are not finite or all the same, a label is out of range, a class has no row to be fitted on, a
        fold holds out rows that it fits on, or photos and dimensions are both too many for the memory.

    References
    ----------
    Rifkin and Lippert, Notes on regularized least squares, MIT-CSAIL-TR-2007-025: held-out scores without refits.
    Guo et al., On calibration of modern neural networks, ICML 2017: the temperature.

    Examples
    --------
    >>> vectors = np.eye(4, 6, dtype=np.float32) + np.repeat(np.eye(2, 6, dtype=np.float32), 2, axis=0)
    >>> head, _, _ = fit_ridge(vectors, np.array([0, 0, 1, 1]), 2)
    >>> head.predict_proba(vectors).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    ordered = order_strengths(strengths)
    if ordered[-1] < MIN_STRENGTH:
        raise OptionError(f"l2: wanted ridge strengths of {MIN_STRENGTH:g} or more, got {ordered[-1]:g}")
    pairs = list(folds)
    rows = np.asarray(pairs[0][0]) if len(pairs) == 1 else np.arange(len(labels))
    sums = _check(vectors, labels, n_classes, pairs, rows)
    known = labels.astype(np.intp)
    learnt = _pick_rows(rows, sums)
    problem = _Problem(_read(vectors, learnt), known[learnt], n_classes)
    if len(pairs) == 1:
        trial = _try_rows(problem, vectors, known, _pick_rows(np.asarray(pairs[0][1]), sums))
    else:
        trial = _try_folds(problem, pairs, learnt, len(known)) if pairs else _try_each(problem)
    chosen, tried = _choose(trial, ordered if pairs else [ordered[len(ordered) // 2]], on_step if pairs else None)
    if len(learnt) == len(rows):
        ridge = problem.to_ridge(chosen)
        return ridge.to_head(), tried if pairs else (), ridge
    del problem, trial  # room for the fit on all rows
    chosen = chosen._replace(inverse=np.zeros((0, 0)))
    head, state = _refit(vectors, known, n_classes, rows, chosen)
    return head, tried if pairs else (), state


def solve_dual(vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int, penalty: float) -> Ridge:
    """Fit with a given penalty and temperature 1, through the (N, N) kernel; features are taken to be checked.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Features.
    labels : ndarray of shape (N,), intp
        Class numbers.
    n_classes : int
        C.
    penalty : float
        Weight of the squared norm of a class's weights beside the sum of squared errors, above 0.

    Returns
    -------
    Ridge
        The state; its head gives the scores themselves as logits.
    """
    problem = _Problem(np.array(vectors, np.float32), labels, n_classes)
    return problem.to_ridge(_Chosen(*problem.solve(penalty), penalty, 1.0, penalty / problem.spread))


def solve_primal(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    penalty: float,
    rows: NDArray[np.intp] | None = None,
) -> Head:
    """Fit with a given penalty and temperature 1, through the (D, D) covariance, a part of the rows at a time.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Features, taken to be checked; may be a memory map.
    labels : ndarray of shape (N,), intp
        Class numbers.
    n_classes : int
        C.
    penalty : float
        As for `solve_dual`, whose solution this is.
    rows : ndarray of intp, optional
        Rows to fit on; all where it is not given.

    Returns
    -------
    Head
        The scores themselves as logits.

    Raises
    ------
    FitError
        If the covariance would not fit in `MAX_BYTES`.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    dim = vectors.shape[1]
    if 12 * dim**2 + 8 * _CHUNK_ROWS * dim > MAX_BYTES:
        raise FitError(
            f"wanted photos and dimensions that can be solved in {MAX_BYTES / 1e9:g} GB, got {len(rows)} photos of "
            f"{dim} dimensions; use fewer photos or shorter features"
        )
    total = np.zeros(dim)
    for part in _chunk(rows):
        total += _read(vectors, part).sum(axis=0, dtype=np.float64)
    origin = (total / len(rows)).astype(np.float32)
    covariance, targets = _accumulate(vectors, labels, n_classes, rows, origin)
    covariance.flat[:: dim + 1] += penalty
    invert_symmetric(covariance)
    shares = np.bincount(labels[rows], minlength=n_classes) / len(rows)
    return _make_head((covariance @ targets).T.astype(np.float32), shares, origin, 1.0, penalty)


def fit_temperature(scores: NDArray[np.floating], labels: NDArray[np.intp]) -> float:
    """Find the temperature at which `softmax(scores / temperature)` has the smallest log loss.

    To the photos one is added that is equally likely of every class, so that a few that are all right do not make the
    model certain. The loss is convex in the inverse of the temperature; Newton's method, inside a bracket.

    Parameters
    ----------
    scores : ndarray of shape (N, C)
        Of held-out photos.
    labels : ndarray of shape (N,), int
        Their class numbers.

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
    gaps = (scores - scores.max(axis=1, keepdims=True)).astype(np.float32)
    blur = 1 / (len(labels) + 1)
    wanted = (1 - blur) * gaps[np.arange(len(labels)), labels] + blur * gaps.mean(axis=1)
    low, high, scale = 1e-3, 1e3, 1 / DEFAULT_TEMPERATURE
    for _ in range(60):
        shares = softmax(gaps * np.float32(scale))
        shares *= gaps
        means = shares.sum(axis=1)
        slope = float((means - wanted).mean(dtype=np.float64))
        low, high = (low, scale) if slope >= 0 else (scale, high)
        shares *= gaps
        curvature = float((shares.sum(axis=1) - means**2).mean(dtype=np.float64))
        proposed = scale - slope / curvature if curvature > 0 else 0.0
        moved = proposed if low < proposed < high else float(np.sqrt(low * high))
        if abs(moved - scale) <= 1e-5 * scale:
            break
        scale = moved
    return 1 / scale


def invert_symmetric(table: NDArray[np.float64]) -> None:
    """Put the inverse of a positive definite matrix (N, N) in its place, of which the lower triangle is read.

    By halves, so that nearly all the work is in products of matrices: less than half the time of `numpy.linalg.inv`,
    and room for half a matrix is enough. Through the Cholesky factor: block elimination without it loses all digits
    where photos are nearly alike.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite to rounding.

    References
    ----------
    Higham, Accuracy and stability of numerical algorithms, 2nd edition, 2002: chapter 14.

    Examples
    --------
    >>> table = np.array([[2.0, 1.0], [1.0, 1.0]])
    >>> invert_symmetric(table)
    >>> table.round(9).tolist()
    [[1.0, -1.0], [-1.0, 2.0]]
    """
    _invert_factor(table)
    _square_factor(table)


def _invert_factor(table: NDArray[np.float64]) -> None:
    """Put the inverse of the Cholesky factor in the place of a matrix."""
    half = len(table) // 2
    if len(table) <= _SMALL:
        table[...] = np.tril(np.linalg.inv(np.linalg.cholesky(table)))
        return
    first, last, corner = table[:half, :half], table[half:, half:], table[half:, :half]
    _invert_factor(first)
    factor = corner @ first.T
    last -= factor @ factor.T
    _invert_factor(last)
    np.matmul(last, -(factor @ first), out=corner)
    table[:half, half:] = 0


def _square_factor(table: NDArray[np.float64]) -> None:
    """Put ``table.T @ table`` in the place of a lower triangular matrix."""
    half = len(table) // 2
    if len(table) <= _SMALL:
        table[...] = table.T @ table
        return
    first, last, corner = table[:half, :half], table[half:, half:], table[half:, :half]
    _square_factor(first)
    first += corner.T @ corner
    corner[...] = last.T @ corner
    table[:half, half:] = corner.T
    _square_factor(last)


@dataclass(frozen=True, eq=False)
class BorderedInverse:
    """Inverse of ``[[0, 1'], [1, X X' + penalty I]]``: a table and corrections of low rank.

    The border is the intercept, which is not penalised: a photo that every photo has product 1 with. Photos that come
    or go are corrections, ``table + factors * signs @ factors.T``; the rows of those that went are zero.

    Parameters
    ----------
    table : ndarray of shape (M, M), float64
        For the intercept and the first photos.
    factors : ndarray of shape (N + 1, R), float64
        For the intercept and all photos.
    signs : ndarray of shape (R,), float64
        1 for photos that came and -1 for those that went.
    """

    table: NDArray[np.float64]
    factors: NDArray[np.float64]
    signs: NDArray[np.float64]

    def apply(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Times columns (N + 1, K)."""
        n = len(self.table)
        product = (self.factors * self.signs) @ (self.factors.T @ columns)
        product[:n] += self.table @ columns[:n]
        return np.asarray(product)

    def take(self, columns: NDArray[np.intp]) -> NDArray[np.float64]:
        """Columns (N + 1, K) by number."""
        taken = (self.factors * self.signs) @ self.factors[columns].T
        inside = np.flatnonzero(columns < len(self.table))
        taken[: len(self.table), inside] += self.table[columns[inside]].T
        return np.asarray(taken)

    def correct(self, columns: NDArray[np.float64], middle: NDArray[np.float64], sign: float) -> BorderedInverse:
        """Add ``sign * columns @ inv(middle) @ columns.T``, with as many rows more as the columns have."""
        try:
            lower = np.linalg.cholesky(middle)
        except np.linalg.LinAlgError as error:
            raise FitError("these photos are too far from what was learnt to change it; fit on all photos") from error
        grown = np.zeros((len(columns), self.factors.shape[1] + len(middle)))
        grown[: len(self.factors), : -len(middle)] = self.factors
        grown[:, -len(middle) :] = np.linalg.solve(lower, columns.T).T
        return BorderedInverse(self.table, grown, np.concatenate([self.signs, np.full(len(middle), sign)]))

    def to_table(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The inverse (K, K) at these rows and columns, in one table."""
        n = len(self.table)
        whole = (self.factors * self.signs) @ self.factors.T
        whole[:n, :n] += self.table
        return whole if len(rows) == len(whole) else np.ascontiguousarray(whole[np.ix_(rows, rows)])


@dataclass(frozen=True, eq=False)
class Ridge:
    """A ridge head with all that it takes to learn on: a new state each time, and the old one stays as it was.

    Every change gives what a fit of all photos with the same penalty would, to rounding. Temperature and penalty stay.

    Parameters
    ----------
    origin : ndarray of shape (D,), float32
        Taken off all features: their mean at the first fit. Any place would give the same head; this one rounds least.
    blocks : tuple of ndarray of shape (N_b, D), float32
        Features less the origin, in blocks as they came.
    rows : ndarray of shape (N,), intp
        Of the blocks put together, those of the photos that are still learnt from.
    labels : ndarray of shape (N,), intp
        Class numbers of these photos.
    inverse : BorderedInverse
        Of their kernel.
    duals : ndarray of shape (M + 1, C), float64
        What the intercept and each row of the blocks add to the scores.
    weights : ndarray of shape (C, D), float32
        Scores are ``(features - origin) @ weights.T + duals[0]``.
    penalty : float
        Weight of the squared norm beside the sum of squared errors.
    temperature : float
        Scores are divided by it.
    l2 : float
        Strength that was chosen; the penalty as a share of the mean squared distance.
    """

    origin: NDArray[np.float32]
    blocks: tuple[NDArray[np.float32], ...]
    rows: NDArray[np.intp]
    labels: NDArray[np.intp]
    inverse: BorderedInverse
    duals: NDArray[np.float64]
    weights: NDArray[np.float32]
    penalty: float
    temperature: float
    l2: float

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.weights)

    def to_head(self) -> Head:
        """Fold origin and temperature into weights and bias."""
        return _make_head(self.weights, self.duals[0], self.origin, self.temperature, self.l2)

    def add(self, vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> Ridge:
        """Learn further photos, of known classes or new ones.

        Parameters
        ----------
        vectors : ndarray of shape (K, D), float32
            Their features.
        labels : ndarray of shape (K,), int
            Their class numbers; new classes follow the known ones.
        n_classes : int
            With the new ones; each must have a photo.

        Raises
        ------
        FitError
            If features are not finite or of another length, a label is out of range, or a class has no photo.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.origin) or labels.shape != vectors.shape[:1]:
            raise FitError(
                f"wanted features (K, {len(self.origin)}) and labels (K,), got {vectors.shape} and {labels.shape}"
            )
        known = np.concatenate([self.labels, labels.astype(np.intp)])
        sums = np.concatenate([np.zeros(len(self.labels)), _sum_rows(vectors)])
        check_fit(sums[:, None], known, n_classes, np.arange(len(known)))
        return self._grow((vectors - self.origin).astype(np.float32), known, n_classes) if len(labels) else self

    def remove(self, rows: NDArray[np.intp]) -> Ridge:
        """Forget photos.

        Parameters
        ----------
        rows : ndarray of shape (K,), intp
            Their places in `labels`; the others keep their order.

        Raises
        ------
        FitError
            If there is no such photo, or a class would be left without one.
        """
        gone = np.unique(rows)
        if len(gone) and not 0 <= gone[0] <= gone[-1] < len(self.labels):
            raise FitError(f"wanted photos from 0 to {len(self.labels) - 1}, got {gone[0]} to {gone[-1]}")
        left = np.delete(np.arange(len(self.labels)), gone)
        empty = np.setdiff1d(np.arange(self.n_classes), self.labels[left])
        if len(empty):
            raise FitError(f"wanted a photo left of each class, got none of number {empty[0]}; remove the class")
        return self._shrink(gone, left) if len(gone) else self

    def remove_class(self, number: int) -> Ridge:
        """Forget a class and its photos; the classes after it move up by one.

        Raises
        ------
        FitError
            If there is no such class, or only one would be left.
        """
        if not 0 <= number < self.n_classes or self.n_classes < 3:
            raise FitError(f"wanted one of three classes or more to remove, got number {number} of {self.n_classes}")
        gone = self.labels == number
        ridge = self._shrink(np.flatnonzero(gone), np.flatnonzero(~gone))
        return replace(
            ridge,
            labels=ridge.labels - (ridge.labels > number),
            duals=np.delete(ridge.duals, number, axis=1),
            weights=np.delete(ridge.weights, number, axis=0),
        )

    def renumber(self, numbers: NDArray[np.intp]) -> Ridge:
        """Put the classes in another order: class c becomes ``numbers[c]``.

        Raises
        ------
        FitError
            If these are not the numbers 0 to C - 1.
        """
        if not np.array_equal(np.sort(numbers), np.arange(self.n_classes)):
            raise FitError(f"wanted the numbers 0 to {self.n_classes - 1}, each once, got {list(numbers)}")
        order = np.argsort(numbers)
        return replace(
            self,
            labels=numbers[self.labels],
            duals=self.duals[:, order],
            weights=np.ascontiguousarray(self.weights[order]),
        )

    def to_tensors(self) -> dict[str, NDArray[np.generic]]:
        """All that `from_tensors` needs, by name: arrays in one piece, without the photos that were forgotten."""
        ridge = self.settle()
        return {
            "origin": ridge.origin,
            "vectors": ridge.blocks[0],
            "labels": ridge.labels.astype(np.int64),
            "inverse": ridge.inverse.table,
            "penalty": np.array([ridge.penalty]),
            "temperature": np.array([ridge.temperature]),
            "l2": np.array([ridge.l2]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> Ridge:
        """Make the state of `to_tensors` again.

        Raises
        ------
        ValueError
            If an array is missing or its shape is not that of the others.
        """
        _check_tensors(tensors)
        x = np.ascontiguousarray(tensors["vectors"], np.float32)
        labels = tensors["labels"].astype(np.intp)
        table = np.asarray(tensors["inverse"], np.float64)
        duals = table[:, 1:] @ _one_hot(labels, int(labels.max()) + 1)
        return cls(
            origin=np.asarray(tensors["origin"], np.float32),
            blocks=(x,),
            rows=np.arange(len(x)),
            labels=labels,
            inverse=_wrap(table),
            duals=duals,
            weights=duals[1:].T.astype(np.float32) @ x,
            penalty=float(tensors["penalty"][0]),
            temperature=float(tensors["temperature"][0]),
            l2=float(tensors["l2"][0]),
        )

    def _grow(self, x: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> Ridge:
        """Border the inverse; what the old scores lack on the new photos is what these add."""
        n_new = n_classes - self.n_classes
        duals = np.pad(self.duals, ((0, 0), (0, n_new)))
        kernel = np.vstack([np.ones((1, len(x))), *(block @ x.T for block in self.blocks)])
        cross = self.inverse.apply(kernel)
        wide = x.astype(np.float64)
        middle = wide @ wide.T + self.penalty * np.eye(len(x)) - kernel.T @ cross
        columns = np.vstack([-cross, np.eye(len(x))])
        inverse = self.inverse.correct(columns, middle, 1.0)
        added = np.linalg.solve(middle, _one_hot(labels[-len(x) :], n_classes) - kernel.T @ duals)
        weights = np.pad(self.weights, ((0, n_new), (0, 0)))
        weights -= self._weigh(cross[1:], added)
        weights += added.T.astype(np.float32) @ x
        ridge = replace(
            self,
            blocks=(*self.blocks, x),
            rows=np.append(self.rows, len(cross) - 1 + np.arange(len(x))),
            labels=labels,
            inverse=inverse,
            duals=np.vstack([duals - cross @ added, added]),
            weights=weights,
        )
        return ridge.settle() if len(inverse.signs) > _MAX_RANK else ridge

    def _shrink(self, gone: NDArray[np.intp], left: NDArray[np.intp]) -> Ridge:
        """Take photos out of the inverse; their rows stay in the blocks, with nothing to add."""
        places = self.rows[gone] + 1
        columns = self.inverse.take(places)
        middle = columns[places]
        inverse = self.inverse.correct(columns, middle, -1.0)
        taken = np.linalg.solve(middle, self.duals[places])
        duals = self.duals - columns @ taken
        duals[places] = 0
        ridge = replace(
            self,
            rows=self.rows[left],
            labels=self.labels[left],
            inverse=inverse,
            duals=duals,
            weights=np.subtract(self.weights, self._weigh(columns[1:], taken)),
        )
        return ridge.settle() if len(inverse.signs) > _MAX_RANK else ridge

    def _weigh(self, columns: NDArray[np.float64], shares: NDArray[np.floating]) -> NDArray[np.float32]:
        """Weights (C, D) of duals ``columns @ shares``, in the order that reads the features with fewer columns."""
        if columns.shape[1] > shares.shape[1]:
            columns, shares = columns @ shares, np.eye(shares.shape[1])
        ends = np.cumsum([len(block) for block in self.blocks])[:-1]
        parts = np.split(columns.T.astype(np.float32), ends, axis=1)
        mixed = sum(part @ block for part, block in zip(parts, self.blocks, strict=True))
        return np.asarray(shares.T.astype(np.float32) @ mixed, np.float32)

    def settle(self) -> Ridge:
        """Work the corrections into one table, and leave forgotten photos behind."""
        if len(self.blocks) == 1 and not len(self.inverse.signs):
            return self
        places = np.append(0, self.rows + 1)
        x = self.blocks[0] if len(self.blocks) == 1 else np.concatenate(self.blocks)
        return replace(
            self,
            blocks=(x if len(self.rows) == len(x) else x[self.rows],),
            rows=np.arange(len(self.rows)),
            inverse=_wrap(self.inverse.to_table(places)),
            duals=self.duals[places],
        )


class _Chosen(NamedTuple):
    inverse: NDArray[np.float64]
    duals: NDArray[np.float64]
    penalty: float
    temperature: float
    l2: float


class _Problem:
    """Photos about their mean, in the array that they come in, and their kernel.

    Products are float32, and what is solved with them is float64.
    """

    def __init__(self, vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> None:
        self.origin = np.asarray(vectors.mean(axis=0, dtype=np.float64), np.float32)
        self.x = vectors
        self.x -= self.origin
        self.labels = labels
        self.n_classes = n_classes
        self.kernel = self.x @ self.x.T
        self.spread = float(self.kernel.diagonal().mean(dtype=np.float64))
        if not 0 < self.spread < np.inf:
            raise FitError(f"wanted features that differ between photos, got {len(labels)} photos all the same")

    def solve(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The bordered inverse (N + 1, N + 1) and the duals (N + 1, C) at a penalty."""
        table = np.empty((len(self.x) + 1, len(self.x) + 1))
        inner = table[1:, 1:]
        inner[...] = self.kernel
        inner.flat[:: len(self.x) + 1] += penalty
        try:
            invert_symmetric(inner)
        except np.linalg.LinAlgError as error:
            raise FitError(f"these features resolve no penalty as weak as {penalty:g}; take a stronger one") from error
        sums = inner.sum(axis=1)
        total = sums.sum()
        table[0, 0] = -1 / total
        table[0, 1:] = table[1:, 0] = sums / total
        for start in range(0, len(inner), _TILE):  # by parts, for there may be no room for another table
            inner[start : start + _TILE] -= np.outer(table[0, 1 + start : 1 + start + _TILE], sums)
        return table, table[:, 1:] @ _one_hot(self.labels, self.n_classes)

    def to_ridge(self, chosen: _Chosen) -> Ridge:
        return Ridge(
            origin=self.origin,
            blocks=(self.x,),
            rows=np.arange(len(self.x)),
            labels=self.labels,
            inverse=_wrap(chosen.inverse),
            duals=chosen.duals,
            weights=chosen.duals[1:].T.astype(np.float32) @ self.x,
            penalty=chosen.penalty,
            temperature=chosen.temperature,
            l2=chosen.l2,
        )


class _Trial(NamedTuple):
    """A problem, the labels (H,) of what it holds out, and how to score that (H, C) from its inverse and duals."""

    problem: _Problem
    labels: NDArray[np.intp]
    score: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.floating]]


def _try_rows(
    problem: _Problem, vectors: NDArray[np.float32], labels: NDArray[np.intp], rows: NDArray[np.intp]
) -> _Trial:
    """Hold out rows that are not in the problem."""
    cross = np.subtract(vectors[rows], problem.origin, dtype=np.float32) @ problem.x.T
    return _Trial(problem, labels[rows], lambda _, duals: cross @ duals[1:] + duals[0])


def _try_folds(
    problem: _Problem, pairs: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]], learnt: NDArray[np.intp], n: int
) -> _Trial:
    """Hold out rows of the problem, fold by fold, with all that the fold does not fit on."""
    places = np.full(n, -1)
    places[learnt] = np.arange(len(learnt))
    outs, helds = [], []
    for fitted, held_out in pairs:
        out, held = np.ones(len(learnt), bool), places[held_out]
        out[places[fitted][places[fitted] >= 0]] = False
        if not out.all() and (held >= 0).any():
            outs.append(np.flatnonzero(out))
            helds.append(held[held >= 0])
    known = _one_hot(problem.labels, problem.n_classes)

    def score(inverse: NDArray[np.float64], duals: NDArray[np.float64]) -> NDArray[np.floating]:
        scores = []
        for out, held in zip(outs, helds, strict=True):
            missed = np.linalg.solve(inverse[np.ix_(out + 1, out + 1)], duals[out + 1])
            scores.append(known[held] - missed[np.searchsorted(out, held)])
        return np.concatenate([np.zeros((0, problem.n_classes)), *scores])

    return _Trial(problem, problem.labels[np.concatenate([np.zeros(0, np.intp), *helds])], score)


def _try_each(problem: _Problem) -> _Trial:
    """Hold out each row in turn, but for those whose class has no other."""
    rows = np.flatnonzero(np.bincount(problem.labels)[problem.labels] > 1)
    labels = problem.labels[rows]

    def score(inverse: NDArray[np.float64], duals: NDArray[np.float64]) -> NDArray[np.floating]:
        return np.asarray(_one_hot(labels, problem.n_classes) - duals[rows + 1] / inverse[rows + 1, rows + 1, None])

    return _Trial(problem, labels, score)


def _choose(
    trial: _Trial, strengths: Sequence[float], on_step: Callable[[], None] | None
) -> tuple[_Chosen, tuple[Fit, ...]]:
    """Solve at each strength, and keep the one whose held-out scores say most once they have their temperature."""
    chosen, tried = None, []
    for l2 in strengths:
        started_s = time.perf_counter()
        penalty = l2 * trial.problem.spread
        inverse, duals = trial.problem.solve(penalty)
        scores = trial.score(inverse, duals)
        temperature = fit_temperature(scores, trial.labels) if len(scores) else DEFAULT_TEMPERATURE
        accuracy, log_loss = _judge(scores, trial.labels, temperature)
        if chosen is None or log_loss < min(fit.log_loss for fit in tried):
            chosen = _Chosen(inverse, duals, penalty, temperature, l2)
        tried.append(Fit(l2, accuracy, log_loss, 1, time.perf_counter() - started_s))
        if on_step:
            on_step()
    assert chosen is not None
    return chosen, tuple(tried)


def _judge(scores: NDArray[np.floating], labels: NDArray[np.intp], temperature: float) -> tuple[float, float]:
    """Accuracy and log loss of held-out scores."""
    if not len(scores):
        return np.nan, np.nan
    right = softmax(scores / temperature)[np.arange(len(labels)), labels]
    return float((scores.argmax(axis=1) == labels).mean()), float(-np.log(np.maximum(right, 1e-12)).mean())


def _refit(
    vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int, rows: NDArray[np.intp], chosen: _Chosen
) -> tuple[Head, Ridge | None]:
    """Fit on all rows what was chosen on some: through the kernel where there is room, to be able to learn on."""
    n, dim = len(rows), vectors.shape[1]
    if 16 * n**2 + 4 * n * dim <= MAX_BYTES:
        problem = _Problem(_read(vectors, rows), labels[rows], n_classes)
        inverse, duals = problem.solve(chosen.penalty)
        ridge = problem.to_ridge(chosen._replace(inverse=inverse, duals=duals))
        return ridge.to_head(), ridge
    plain = solve_primal(vectors, labels, n_classes, chosen.penalty, rows)
    scale = np.float32(1 / chosen.temperature)
    return Head(plain.weights * scale, plain.bias * scale, chosen.l2), None


def _accumulate(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    rows: NDArray[np.intp],
    origin: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over rows of ``x x'`` (D, D), its lower triangle, and ``x y'`` (D, C), about the origin, in float64."""
    dim = len(origin)
    covariance, targets = np.zeros((dim, dim)), np.zeros((dim, n_classes))
    for part in _chunk(rows):
        x = _read(vectors, part)
        x -= origin
        targets += x.T @ _one_hot(labels[part], n_classes).astype(np.float32)
        for start in range(0, dim, _TILE):
            end = start + _TILE
            covariance[start:end, :end] += x[:, start:end].T @ x[:, :end]
    return covariance, targets


def _make_head(
    weights: NDArray[np.float32],
    intercept: NDArray[np.float64],
    origin: NDArray[np.float32],
    temperature: float,
    l2: float,
) -> Head:
    scaled = np.ascontiguousarray(weights / np.float32(temperature), np.float32)
    bias = intercept / temperature - scaled.astype(np.float64) @ origin.astype(np.float64)
    return Head(scaled, bias.astype(np.float32), l2)


def _wrap(table: NDArray[np.float64]) -> BorderedInverse:
    return BorderedInverse(table, np.zeros((len(table), 0)), np.zeros(0))


def _one_hot(labels: NDArray[np.intp], n_classes: int) -> NDArray[np.float64]:
    known = np.zeros((len(labels), n_classes))
    known[np.arange(len(labels)), labels] = 1
    return known


def _chunk(rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), _CHUNK_ROWS):
        yield rows[start : start + _CHUNK_ROWS]


def _read(vectors: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """A copy of rows."""
    part = np.array(vectors[rows], np.float32)
    _release(vectors)
    return part


def _release(vectors: NDArray[np.float32]) -> None:
    """Let the pages of a memory map go: they count as memory of the process."""
    mapped: object = vectors.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and not vectors.flags.writeable:
        mapped.madvise(mmap.MADV_DONTNEED)


def _check(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    pairs: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    rows: NDArray[np.intp],
) -> NDArray[Any]:
    """What `check_fit` checks, with little memory, and the folds; the sums (N,) of rows tell photos apart later."""
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        check_fit(vectors, labels, n_classes, rows)
    sums = _sum_rows(vectors)
    check_fit(sums[:, None], labels, n_classes, rows)
    for fitted, held_out in pairs:
        if len(np.intersect1d(fitted, held_out)):
            raise FitError("wanted folds that hold out no row that they fit on, got one that does")
    if pairs and not any(len(held_out) for _, held_out in pairs):
        raise FitError("wanted rows to choose on in a fold, got none in any; give no folds")
    return sums


def _sum_rows(vectors: NDArray[np.float32]) -> NDArray[Any]:
    """Sums (N,), float64, of rows; not finite where the row is not."""
    sums = np.zeros(len(vectors))
    with np.errstate(invalid="ignore"):
        for start in range(0, len(vectors), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            sums[rows] = vectors[rows].sum(axis=1, dtype=np.float64)
            _release(vectors)
    return sums


def _pick_rows(rows: NDArray[np.intp], sums: NDArray[np.float64]) -> NDArray[np.intp]:
    """At most `N_CHOSEN_ON` rows, by a hash of what they hold: the same photos in whatever order they come."""
    if len(rows) <= N_CHOSEN_ON:
        return rows
    hashes = sums[rows].view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return rows[np.sort(np.argsort(hashes, kind="stable")[:N_CHOSEN_ON])]


def _check_tensors(tensors: Mapping[str, NDArray[np.generic]]) -> None:
    shape = np.shape(tensors["vectors"]) if "vectors" in tensors else ()
    n, dim = shape if len(shape) == 2 else (0, 0)
    single = (1,)
    wanted = {"origin": (dim,), "vectors": (n, dim), "labels": (n,), "inverse": (n + 1, n + 1)}
    wanted |= {"penalty": single, "temperature": single, "l2": single}
    got = {name: np.shape(tensors[name]) if name in tensors else None for name in wanted}
    if got != wanted or not n:
        raise ValueError(f"wanted the tensors of a ridge, of shapes {wanted}, got {got}")
