"""Factors and inverses of the positive definite matrices behind a ridge head.

In: a matrix, in the table that it comes in. Out: its Cholesky factor, solutions, its inverse, and a `BorderedInverse`:
the inverse with a border, which takes rows that come or go as corrections of low rank.
Why: NumPy has no triangular solve, and its inverse does not know that the matrix is symmetric. By blocks, nearly all
work is in products of matrices: several times as fast, and in little more room than the table.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows and columns of a block, below which a triangle is inverted at once, and of a part of a table.
_BLOCK, _SMALL, _TILE = 192, 64, 1024


def factor_symmetric(table: NDArray[np.float64]) -> None:
    """Put the Cholesky factor of a positive definite matrix (N, N) in its place, its blocks on the diagonal inverted.

    Only the lower triangle is read, and only blocks on and under the diagonal are written.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite to rounding.

    References
    ----------
    Higham, Accuracy and stability of numerical algorithms, 2nd edition, 2002: chapter 10.
    """
    for start in range(0, len(table), _BLOCK):
        end = start + _BLOCK
        table[start:, start:end] -= table[start:, :start] @ table[start:end, :start].T
        corner = np.asarray(np.linalg.cholesky(table[start:end, start:end]), np.float64)
        _invert_triangle(corner)
        table[start:end, start:end] = corner
        table[end:, start:end] = table[end:, start:end] @ corner.T


def solve_factor(factor: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve a system with columns (N, K) on its right, by what `factor_symmetric` made of its matrix.

    Examples
    --------
    >>> table = np.array([[4.0, 2.0], [2.0, 5.0]])
    >>> factor_symmetric(table)
    >>> solve_factor(table, np.array([[8.0], [12.0]])).round(9).tolist()
    [[1.0], [2.0]]
    """
    solved = columns.copy()
    for start in range(0, len(factor), _BLOCK):
        end = start + _BLOCK
        part = solved[start:end] - factor[start:end, :start] @ solved[:start]
        solved[start:end] = factor[start:end, start:end] @ part
    for start in reversed(range(0, len(factor), _BLOCK)):
        end = start + _BLOCK
        part = solved[start:end] - factor[end:, start:end].T @ solved[end:]
        solved[start:end] = factor[start:end, start:end].T @ part
    return solved


def invert_factor(factor: NDArray[np.float64]) -> None:
    """Put the inverse of the Cholesky factor, a lower triangle, in the place of what `factor_symmetric` made.

    Its transpose times it is the inverse of the matrix.
    """
    n_blocks = -(-len(factor) // _BLOCK)
    if n_blocks < 2:
        return
    half = n_blocks // 2 * _BLOCK
    first, last, corner = factor[:half, :half], factor[half:, half:], factor[half:, :half]
    invert_factor(first)
    invert_factor(last)
    inner = np.empty_like(corner)
    for start in range(0, half, _BLOCK):  # by strips, to leave out the zeros of the triangles
        end = start + _BLOCK
        np.matmul(corner[:, start:], first[start:, start:end], out=inner[:, start:end])
    np.negative(inner, out=inner)
    for start in range(0, len(last), _BLOCK):
        end = start + _BLOCK
        np.matmul(last[start:end, :end], inner[:end], out=corner[start:end])
    factor[:half, half:] = 0


def square_factor(lower: NDArray[np.float64]) -> None:
    """Put ``lower.T @ lower`` in the place of a lower triangle (N, N)."""
    half = len(lower) // 2
    if len(lower) <= _BLOCK:
        lower[...] = lower.T @ lower
        return
    first, last, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    square_factor(first)
    first += corner.T @ corner
    corner[...] = last.T @ corner
    lower[:half, half:] = corner.T
    square_factor(last)


def invert_symmetric(table: NDArray[np.float64]) -> None:
    """Put the inverse of a positive definite matrix (N, N) in its place, of which the lower triangle is read.

    Less than half the time of `numpy.linalg.inv`, and room for half a matrix is enough. Through the Cholesky factor:
    block elimination without it loses all digits where photos are nearly alike.

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
    factor_symmetric(table)
    invert_factor(table)
    square_factor(table)


def _invert_triangle(lower: NDArray[np.float64]) -> None:
    """Put the inverse of a small lower triangle in its place."""
    if len(lower) <= _SMALL:
        lower[...] = np.tril(np.linalg.inv(lower))
        return
    half = len(lower) // 2
    first, last, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_triangle(first)
    _invert_triangle(last)
    corner[...] = -(last @ (corner @ first))


class FactoredTable:
    """The table (N + 1, N + 1) of a `BorderedInverse`, as the factor that it would be made of.

    It multiplies and gives rows as the table would, at the same cost, and is made into one only when all of it is
    wanted: that costs as much as a second factor, and a head needs none.

    Parameters
    ----------
    triangle : ndarray of shape (N, N), float64
        What `factor_symmetric` made, or after it `invert_factor`.
    is_inverse : bool
        Whether it is the latter.
    ones : ndarray of shape (N,), float64
        What solves for ones.
    """

    def __init__(self, triangle: NDArray[np.float64], is_inverse: bool, ones: NDArray[np.float64]) -> None:
        self.triangle = triangle
        self.is_inverse = is_inverse
        self.ones = ones

    def __len__(self) -> int:
        return len(self.ones) + 1

    def __matmul__(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        inner = columns[1:]
        lower = self.triangle
        solved = lower.T @ (lower @ inner) if self.is_inverse else solve_factor(lower, inner)
        intercept = (self.ones @ inner - columns[0]) / self.ones.sum()
        return np.vstack([intercept, solved - np.outer(self.ones, intercept)])

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        columns = np.zeros((len(self), len(rows)))
        columns[rows, np.arange(len(rows))] = 1
        return (self @ columns).T

    def to_table(self) -> NDArray[np.float64]:
        """The table, (N + 1, N + 1)."""
        table = np.empty((len(self), len(self)))
        inner = table[1:, 1:]
        inner[...] = self.triangle
        if not self.is_inverse:
            invert_factor(inner)
        square_factor(inner)
        total = self.ones.sum()
        table[0, 0] = -1 / total
        table[0, 1:] = table[1:, 0] = self.ones / total
        for start in range(0, len(inner), _TILE):  # by parts, for there may be no room for another table
            inner[start : start + _TILE] -= np.outer(table[0, 1 + start : 1 + start + _TILE], self.ones)
        return table

    @cached_property
    def diagonal(self) -> NDArray[np.float64]:
        """Diagonal of the table, (N + 1,), at half of what the table would cost."""
        lower = self.triangle
        if not self.is_inverse:
            lower = np.array(lower)
            invert_factor(lower)
        inner = np.einsum("ij,ij->j", lower, lower)
        total = self.ones.sum()
        return np.append(-1 / total, inner - self.ones**2 / total)


class BorderedInverse:
    """Inverse of ``[[0, 1'], [1, X X' + penalty I]]``: a table and corrections of low rank.

    The border is the intercept, which is not penalised: a photo that every photo has product 1 with. Photos that come
    or go are corrections, ``table + factors * signs @ factors.T``; the rows of those that went are zero.

    Parameters
    ----------
    table : ndarray of shape (M, M), float64, or FactoredTable
        For the intercept and the first photos.
    factors : ndarray of shape (N + 1, R), float64
        For the intercept and all photos.
    signs : ndarray of shape (R,), float64
        1 for photos that came and -1 for those that went.
    """

    def __init__(
        self,
        table: NDArray[np.float64] | FactoredTable,
        factors: NDArray[np.float64],
        signs: NDArray[np.float64],
    ) -> None:
        self.table = table
        self.factors = factors
        self.signs = signs

    @classmethod
    def wrap(cls, table: NDArray[np.float64] | FactoredTable, n_rows: int) -> BorderedInverse:
        """A table (M, M) without corrections."""
        return cls(table, np.zeros((n_rows, 0)), np.zeros(0))

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

    def find_diagonal(self) -> NDArray[np.float64]:
        """Diagonal (N + 1,)."""
        diagonal = np.einsum("ij,ij,j->i", self.factors, self.factors, self.signs)
        diagonal[: len(self.table)] += (
            self.table.diagonal if isinstance(self.table, FactoredTable) else np.diagonal(self.table)
        )
        return np.asarray(diagonal)

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
        whole[:n, :n] += self.table.to_table() if isinstance(self.table, FactoredTable) else self.table
        return whole if len(rows) == len(whole) else np.ascontiguousarray(whole[np.ix_(rows, rows)])
