"""A ridge head on features, in closed form, that can learn on.

In: features and labels, and parts to choose the strength on. Out: a `Head`, and a `Ridge`: the state that takes further
photos or forgets some in milliseconds. Why: with thousands of dimensions a photo, one triangle as large as there are
photos gives the fit, the held-out scores of every fold, and the means to change it later, exactly as if fitted anew.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.errors import FitError, OptionError
from pomona.features import release_pages
from pomona.head import (
    DEFAULT_TEMPERATURE,
    Fit,
    Head,
    check_fit,
    fit_temperature,
    order_strengths,
    softmax,
    sum_rows,
)
from pomona.inverse import (
    BorderedInverse,
    FactoredTable,
    factor_symmetric,
    invert_factor,
    invert_symmetric,
    solve_factor,
    square_factor,
)
from pomona.ridge_state import Ridge, make_head, one_hot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "MAX_BYTES",
    "MIN_STRENGTH",
    "N_CHOSEN_ON",
    "RIDGE_STRENGTHS",
    "BorderedInverse",
    "FactoredTable",
    "Ridge",
    "Study",
    "fit_ridge",
    "solve_dual",
    "solve_primal",
    "study_ridge",
]

RIDGE_STRENGTHS: tuple[float, ...] = (3e-2, 1e-2, 3e-3)
"""Strengths tried, strongest first: the penalty as a share of the mean squared distance of photos from their mean."""

MIN_STRENGTH = 1e-4
"""Weakest strength there may be: products of features in single precision resolve no weaker one."""

MAX_BYTES = 2_000_000_000
"""Memory that a solve may take beside the features it is given."""

N_CHOSEN_ON = 5_000
"""Photos that strength and temperature are chosen on where there are more."""

# Rows and columns worked on at a time in the solve for many photos.
_CHUNK_ROWS, _TILE = 4096, 1024


def fit_ridge(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]] = (),
    *,
    rows: NDArray[np.intp] | None = None,
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
        several (cross-validation) on `rows`; with none on `rows`, with the middle strength, and the temperature
        is chosen by leaving out each photo in turn.
    rows : ndarray of intp, optional
        Rows that the folds part, or all that there are; all of them where it is not given. Not for a single pair.
    strengths : sequence of float
        Strengths to try, `MIN_STRENGTH` or more, in any order.
    on_step : callable, optional
        Called after each strength.

    Returns
    -------
    Head, tuple of Fit, Ridge or None
        The head, what each strength gave on all held-out rows together, and the state that learns on, whose inverse
        is computed when it is first asked for; None where there are too many photos to keep one.

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
    head, tried, state, _ = study_ridge(
        vectors, labels, n_classes, folds, rows=rows, strengths=strengths, on_step=on_step
    )
    return head, tried, state


def study_ridge(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]] = (),
    *,
    rows: NDArray[np.intp] | None = None,
    strengths: Sequence[float] = RIDGE_STRENGTHS,
    on_step: Callable[[], None] | None = None,
) -> tuple[Head, tuple[Fit, ...], Ridge | None, Study]:
    """As `fit_ridge`, and the means to ask what the head would say of photos that it had not learnt.

    Returns
    -------
    Head, tuple of Fit, Ridge or None, Study
        As `fit_ridge`, and a `Study` of all photos learnt from or, where there are more, of `N_CHOSEN_ON`.
    """
    ordered = order_strengths(strengths)
    if ordered[-1] < MIN_STRENGTH:
        raise OptionError(f"l2: wanted ridge strengths of {MIN_STRENGTH:g} or more, got {ordered[-1]:g}")
    pairs = list(folds)
    if len(pairs) == 1:
        rows = np.asarray(pairs[0][0])
    elif rows is None:
        rows = np.arange(len(labels))
    sums = _check(vectors, labels, n_classes, pairs, rows)
    known = labels.astype(np.intp)
    learnt = _pick_rows(rows, sums, known)
    problem = _Problem(_read(vectors, learnt), known[learnt], n_classes)
    if len(pairs) == 1:
        trial = _try_rows(problem, vectors, known, _pick_rows(np.asarray(pairs[0][1]), sums))
    else:
        trial = _try_folds(problem, pairs, learnt, len(known)) if pairs else _try_each(problem)
    solution, chosen, tried = _choose(
        trial, ordered if pairs else [ordered[len(ordered) // 2]], on_step if pairs else None
    )
    study = Study(problem.kernel, problem.labels, learnt, solution, chosen)
    if len(learnt) == len(rows):
        ridge = problem.to_ridge(solution, chosen)
        return ridge.to_head(), tried if pairs else (), ridge, study
    del problem, trial, solution  # room for the fit on all rows: the study keeps no features
    head, state = _refit(vectors, known, n_classes, rows, chosen)
    return head, tried if pairs else (), state, study


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
    return problem.to_ridge(problem.solve(penalty), _Chosen(penalty, 1.0, penalty / problem.spread))


def solve_primal(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    penalty: float,
    rows: NDArray[np.intp] | None = None,
) -> Head:
    """Fit with a given penalty and temperature 1, through the (D, D) covariance, a part of the rows at a time.

    Where the covariance would not fit in `MAX_BYTES`, that of a sketch of the features is taken: each dimension is
    added, with a random sign, to one of fewer. The head is still one on the features themselves.

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

    References
    ----------
    Charikar, Chen and Farach-Colton, Finding frequent items in data streams, ICALP 2002: the count sketch.
    Weinberger et al., Feature hashing for large scale multitask learning, ICML 2009: products of sketches.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    sketch = Sketch.plan(vectors.shape[1], _find_largest_dim())
    total = np.zeros(vectors.shape[1])
    for part in _chunk(rows):
        total += _read(vectors, part).sum(axis=0, dtype=np.float64)
    origin = (total / len(rows)).astype(np.float32)
    parts = ((sketch.apply(_read(vectors, part) - origin), one_hot(labels[part], n_classes)) for part in _chunk(rows))
    covariance, targets = _accumulate(parts, len(sketch.starts), n_classes)
    covariance.flat[:: len(covariance) + 1] += penalty
    invert_symmetric(covariance)
    shares = np.bincount(labels[rows], minlength=n_classes) / len(rows)
    return make_head(sketch.spread((covariance @ targets).T.astype(np.float32)), shares, origin, 1.0, penalty)


def _find_largest_dim() -> int:
    """Dimensions whose covariance, with a part of the rows, fits in `MAX_BYTES`."""
    return int((np.sqrt((4 * _CHUNK_ROWS) ** 2 + 12 * MAX_BYTES) - 4 * _CHUNK_ROWS) / 12)


class Sketch(NamedTuple):
    """Features added up, with random signs, to fewer dimensions; products stay what they are on average.

    Parameters
    ----------
    order : ndarray of shape (D,), intp
        Dimensions, those that are added up side by side.
    starts : ndarray of shape (M,), intp
        Where each sum begins in that order.
    signs : ndarray of shape (D,), float32
        1 or -1 of each dimension, in that order.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    signs: NDArray[np.float32]

    @classmethod
    def plan(cls, dim: int, limit: int) -> Sketch:
        """A sketch to `limit` dimensions at most; one that changes nothing where there are no more."""
        if dim <= limit:
            return cls(np.arange(dim), np.arange(dim), np.ones(dim, np.float32))
        random = np.random.default_rng(dim)
        starts = np.arange(limit) * dim // limit
        return cls(random.permutation(dim), starts, random.choice(np.array([-1, 1], np.float32), dim))

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sketch (N, M) of features (N, D)."""
        if len(self.starts) == len(self.order):
            return vectors
        return np.add.reduceat(vectors[:, self.order] * self.signs, self.starts, axis=1)

    def spread(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights (C, D) of the features from weights (C, M) of their sketch."""
        lengths = np.diff(self.starts, append=len(self.order))
        spread = np.empty((len(weights), len(self.order)), np.float32)
        spread[:, self.order] = np.repeat(weights, lengths, axis=1) * self.signs
        return spread


class _Chosen(NamedTuple):
    penalty: float
    temperature: float
    l2: float


class _Solution(NamedTuple):
    """What a penalty gives.

    The Cholesky factor (N, N) of the penalised kernel as `factor_symmetric` makes it, or its inverse; what solves for
    ones (N,); and the duals (N + 1, C), the intercept first.
    """

    triangle: NDArray[np.float64]
    is_inverse: bool
    ones: NDArray[np.float64]
    duals: NDArray[np.float64]


class Study:
    """What a ridge says of its own photos where it has not learnt them, without fitting it anew.

    Photos go by their places in it, from 0.

    Parameters
    ----------
    kernel : ndarray of shape (N, N), float32
        Products of the photos.
    labels : ndarray of shape (N,), intp
        Class of each.
    rows : ndarray of shape (N,), intp
        Row of each in the features that were given.
    solution, chosen
        What was fitted on them.
    """

    def __init__(
        self,
        kernel: NDArray[np.float32],
        labels: NDArray[np.intp],
        rows: NDArray[np.intp],
        solution: _Solution,
        chosen: _Chosen,
    ) -> None:
        self.labels, self.n_classes, self.rows = labels, solution.duals.shape[1], rows
        self._kernel, self._solution, self._chosen = kernel, solution, chosen

    def hold_out(self, places: NDArray[np.intp]) -> NDArray[np.float64]:
        """Logits (K, C) of photos by a head that learnt all others.

        References
        ----------
        Rifkin and Lippert, Notes on regularized least squares, MIT-CSAIL-TR-2007-025.
        """
        ones = self._solution.ones[places]
        block = self._inverse[np.ix_(places, places)] - np.outer(ones / self._solution.ones.sum(), ones)
        missed = np.linalg.solve(block, self._solution.duals[places + 1])
        return (one_hot(self.labels[places], self.n_classes) - missed) / self._chosen.temperature

    def learn_some(self, learnt: NDArray[np.intp], asked: NDArray[np.intp]) -> NDArray[np.float64]:
        """Logits (K, C) of photos by a head that learnt only some others."""
        factor = self._kernel[np.ix_(learnt, learnt)].astype(np.float64)
        factor.flat[:: len(factor) + 1] += self._chosen.penalty
        factor_symmetric(factor)
        targets = np.hstack([one_hot(self.labels[learnt], self.n_classes), np.ones((len(learnt), 1))])
        duals = _border(factor, False, solve_factor(factor, targets)).duals
        scores = self._kernel[np.ix_(asked, learnt)] @ duals[1:] + duals[0]
        return np.asarray(scores / self._chosen.temperature)

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        """Of the penalised kernel, (N, N)."""
        table = self._solution.triangle.copy()
        if not self._solution.is_inverse:
            invert_factor(table)
        square_factor(table)
        return table


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
        with np.errstate(over="ignore", invalid="ignore"):
            self.kernel = self.x @ self.x.T
        self.spread = float(self.kernel.diagonal().mean(dtype=np.float64))
        if not np.isfinite(self.spread):
            raise FitError(
                f"wanted features below 1e15 or so, got up to {float(np.abs(self.x).max()):.1g}; compute them again"
            )
        if not self.spread:
            raise FitError(
                f"wanted photos that differ, got {len(labels)} photos that look the same to the network; check "
                "that they are not copies of one picture, or all black"
            )

    def solve(self, penalty: float) -> _Solution:
        """Duals and the factor that they are solved with."""
        factor = self._factor(penalty)
        return _border(factor, False, solve_factor(factor, self._list_targets()))

    def invert(self, penalty: float) -> _Solution:
        """Duals and the inverse of the factor, which tells also what parts of the inverse are."""
        lower = self._factor(penalty)
        invert_factor(lower)
        return _border(lower, True, lower.T @ (lower @ self._list_targets()))

    def to_ridge(self, solution: _Solution, chosen: _Chosen) -> Ridge:
        return Ridge(
            origin=self.origin,
            blocks=(self.x,),
            rows=np.arange(len(self.x)),
            labels=self.labels,
            inverse=BorderedInverse.wrap(
                FactoredTable(solution.triangle, solution.is_inverse, solution.ones), len(solution.duals)
            ),
            duals=solution.duals,
            weights=solution.duals[1:].T.astype(np.float32) @ self.x,
            penalty=chosen.penalty,
            temperature=chosen.temperature,
            l2=chosen.l2,
        )

    def _factor(self, penalty: float) -> NDArray[np.float64]:
        table = self.kernel.astype(np.float64)
        table.flat[:: len(table) + 1] += penalty
        try:
            factor_symmetric(table)
        except np.linalg.LinAlgError as error:
            raise FitError(
                f"l2: wanted a strength that tells photos as alike as these apart, got {penalty / self.spread:.1g}; "
                "take a stronger one"
            ) from error
        return table

    def _list_targets(self) -> NDArray[np.float64]:
        """A column a class, and one of ones, (N, C + 1)."""
        return np.hstack([one_hot(self.labels, self.n_classes), np.ones((len(self.labels), 1))])


def _border(triangle: NDArray[np.float64], is_inverse: bool, solved: NDArray[np.float64]) -> _Solution:
    """Make duals of what solves for the targets without an intercept, (N, C + 1)."""
    ones = solved[:, -1].copy()
    intercept = solved[:, :-1].sum(axis=0) / ones.sum()
    return _Solution(triangle, is_inverse, ones, np.vstack([intercept, solved[:, :-1] - np.outer(ones, intercept)]))


class _Trial(NamedTuple):
    """A problem, the labels (H,) of what it holds out, and the solution and scores (H, C) of that at a penalty."""

    problem: _Problem
    labels: NDArray[np.intp]
    score: Callable[[float], tuple[_Solution, NDArray[np.floating]]]


def _try_rows(
    problem: _Problem, vectors: NDArray[np.float32], labels: NDArray[np.intp], rows: NDArray[np.intp]
) -> _Trial:
    """Hold out rows that are not in the problem."""
    cross = np.subtract(vectors[rows], problem.origin, dtype=np.float32) @ problem.x.T

    def score(penalty: float) -> tuple[_Solution, NDArray[np.floating]]:
        solution = problem.solve(penalty)
        return solution, cross @ solution.duals[1:] + solution.duals[0]

    return _Trial(problem, labels[rows], score)


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
    known = one_hot(problem.labels, problem.n_classes)

    def score(penalty: float) -> tuple[_Solution, NDArray[np.floating]]:
        solution = problem.invert(penalty)
        total = solution.ones.sum()
        scores = [np.zeros((0, problem.n_classes))]
        for out, held in zip(outs, helds, strict=True):
            columns, ones = solution.triangle[:, out], solution.ones[out]
            missed = np.linalg.solve(columns.T @ columns - np.outer(ones / total, ones), solution.duals[out + 1])
            scores.append(known[held] - missed[np.searchsorted(out, held)])
        return solution, np.concatenate(scores)

    return _Trial(problem, problem.labels[np.concatenate([np.zeros(0, np.intp), *helds])], score)


def _try_each(problem: _Problem) -> _Trial:
    """Hold out each row in turn, but for those whose class has no other."""
    rows = np.flatnonzero(np.bincount(problem.labels)[problem.labels] > 1)
    labels = problem.labels[rows]

    def score(penalty: float) -> tuple[_Solution, NDArray[np.floating]]:
        solution = problem.invert(penalty)
        diagonal = np.einsum("ij,ij->j", solution.triangle, solution.triangle)
        diagonal -= np.square(solution.ones) / solution.ones.sum()
        return solution, one_hot(labels, problem.n_classes) - solution.duals[rows + 1] / diagonal[rows, None]

    return _Trial(problem, labels, score)


def _choose(
    trial: _Trial, strengths: Sequence[float], on_step: Callable[[], None] | None
) -> tuple[_Solution, _Chosen, tuple[Fit, ...]]:
    """Solve at each strength, and keep the one whose held-out scores say most once they have their temperature."""
    kept: tuple[_Solution, _Chosen] | None = None
    tried: list[Fit] = []
    for l2 in strengths:
        started_s = time.perf_counter()
        penalty = l2 * trial.problem.spread
        solution, scores = trial.score(penalty)
        temperature = fit_temperature(scores, trial.labels) if len(scores) else DEFAULT_TEMPERATURE
        accuracy, log_loss = _judge(scores, trial.labels, temperature)
        if kept is None or log_loss < min(fit.log_loss for fit in tried):
            kept = solution, _Chosen(penalty, temperature, l2)
        tried.append(Fit(l2, accuracy, log_loss, 1, time.perf_counter() - started_s))
        if on_step:
            on_step()
    assert kept is not None
    return *kept, tuple(tried)


def _judge(scores: NDArray[np.floating], labels: NDArray[np.intp], temperature: float) -> tuple[float, float]:
    """Accuracy and log loss of held-out scores."""
    if not len(scores):
        return np.nan, np.nan
    right = softmax(scores / temperature)[np.arange(len(labels)), labels]
    return float((scores.argmax(axis=1) == labels).mean()), float(-np.log(np.maximum(right, 1e-12)).mean())


def fits_kernel(n_photos: int, dim: int) -> bool:
    """Whether the kernel of photos and their features fit in `MAX_BYTES`, so that their head can learn on."""
    return 16 * n_photos**2 + 4 * n_photos * dim <= MAX_BYTES


def _refit(
    vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int, rows: NDArray[np.intp], chosen: _Chosen
) -> tuple[Head, Ridge | None]:
    """Fit on all rows what was chosen on some: through the kernel where there is room, to be able to learn on."""
    n, dim = len(rows), vectors.shape[1]
    if fits_kernel(n, dim):
        problem = _Problem(_read(vectors, rows), labels[rows], n_classes)
        ridge = problem.to_ridge(problem.solve(chosen.penalty), chosen)
        return ridge.to_head(), ridge
    plain = solve_primal(vectors, labels, n_classes, chosen.penalty, rows)
    scale = np.float32(1 / chosen.temperature)
    return Head(plain.weights * scale, plain.bias * scale, chosen.l2), None


def _accumulate(
    parts: Iterable[tuple[NDArray[np.float32], NDArray[np.float64]]], dim: int, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over rows of ``x x'`` (D, D), its lower triangle, and ``x y'`` (D, C), in float64."""
    covariance, targets = np.zeros((dim, dim)), np.zeros((dim, n_classes))
    for x, y in parts:
        targets += x.T @ y.astype(np.float32)
        for start in range(0, dim, _TILE):
            end = start + _TILE
            covariance[start:end, :end] += x[:, start:end].T @ x[:, :end]
    return covariance, targets


def _chunk(rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), _CHUNK_ROWS):
        yield rows[start : start + _CHUNK_ROWS]


def _read(vectors: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """A copy of rows."""
    part = np.asarray(vectors[rows], np.float32)
    release_pages(vectors)
    return part


def _check(
    vectors: NDArray[np.float32],
    labels: NDArray[np.intp],
    n_classes: int,
    pairs: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    rows: NDArray[np.intp],
) -> NDArray[np.float64]:
    """What `check_fit` checks, with little memory, and the folds; the sums (N,) of rows tell photos apart later."""
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        check_fit(vectors, labels, n_classes, rows)
    sums = sum_rows(vectors)
    check_fit(sums[:, None], labels, n_classes, rows)
    for fitted, held_out in pairs:
        if len(np.intersect1d(fitted, held_out)):
            raise FitError("wanted folds that hold out no row that they fit on, got one that does")
    if pairs and not any(len(held_out) for _, held_out in pairs):
        raise FitError("wanted rows to choose on in a fold, got none in any; give no folds")
    return sums


def _pick_rows(
    rows: NDArray[np.intp], sums: NDArray[np.float64], labels: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """`N_CHOSEN_ON` rows, by a hash of what they hold: the same photos in whatever order they come.

    With labels, a class of which none would be among them brings its first one.
    """
    if len(rows) <= N_CHOSEN_ON:
        return rows
    hashes = sums[rows].view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(hashes, kind="stable")
    picked = order[:N_CHOSEN_ON]
    if labels is not None:
        classes, first = np.unique(labels[rows[order]], return_index=True)
        picked = np.union1d(picked, order[first[~np.isin(classes, labels[rows[picked]])]])
    return rows[np.sort(picked)]
