"""Factors, solutions and inverses by blocks are those of the whole matrix, of whatever size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.inverse import (
    BorderedInverse,
    FactoredTable,
    factor_symmetric,
    invert_factor,
    invert_symmetric,
    solve_factor,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = [1, 2, 64, 65, 191, 192, 193, 384, 385, 577]


def draw_matrix(n: int) -> NDArray[np.float64]:
    """Positive definite, with half of the eigenvalues very small."""
    rng = np.random.default_rng(n)
    factor = rng.normal(size=(n, n // 2 + 1))
    return np.asarray(factor @ factor.T + 1e-4 * np.eye(n))


@pytest.mark.parametrize("n", SIZES)
def test_an_inverse_by_blocks_is_the_inverse(n: int) -> None:
    table = draw_matrix(n)
    room = np.zeros((n + 1, n + 1))
    room[1:, 1:] = table
    invert_symmetric(room[1:, 1:])
    np.testing.assert_allclose(room[1:, 1:] @ table, np.eye(n), atol=1e-6)
    np.testing.assert_array_equal(room, room.T)
    assert not room[0].any()
    assert not room[:, 0].any()


@pytest.mark.parametrize("n", SIZES)
def test_only_the_lower_triangle_is_read(n: int) -> None:
    wanted, table = draw_matrix(n), np.tril(draw_matrix(n)) + np.triu(np.full((n, n), 7.0), 1)
    invert_symmetric(wanted)
    invert_symmetric(table)
    np.testing.assert_array_equal(table, wanted)


@pytest.mark.parametrize("n", SIZES)
def test_a_solution_by_blocks_solves(n: int) -> None:
    table = draw_matrix(n)
    columns = np.random.default_rng(0).normal(size=(n, 3))
    factor, kept = table.copy(), columns.copy()
    factor_symmetric(factor)
    np.testing.assert_allclose(table @ solve_factor(factor, columns), columns, atol=1e-7)
    np.testing.assert_array_equal(columns, kept)


@pytest.mark.parametrize("n", SIZES)
def test_the_inverse_of_the_factor_is_a_lower_triangle(n: int) -> None:
    table = draw_matrix(n)
    lower = table.copy()
    factor_symmetric(lower)
    invert_factor(lower)
    np.testing.assert_array_equal(lower, np.tril(lower))
    np.testing.assert_allclose(lower @ np.linalg.cholesky(table), np.eye(n), atol=1e-8)


def test_a_matrix_that_is_not_positive_definite_is_refused() -> None:
    for n, place in ((5, 4), (400, 10), (400, 399)):
        table = np.eye(n)
        table[place, place] = -1
        with pytest.raises(np.linalg.LinAlgError):
            invert_symmetric(table)


@pytest.mark.parametrize("is_inverse", [False, True])
def test_a_factor_stands_for_its_table(is_inverse: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 400))
    triangle = x @ x.T + 3 * np.eye(300)
    bordered = np.block([[np.zeros((1, 1)), np.ones((1, 300))], [np.ones((300, 1)), triangle]])
    factor_symmetric(triangle)
    ones = solve_factor(triangle, np.ones((300, 1)))[:, 0]
    if is_inverse:
        invert_factor(triangle)
    factored = FactoredTable(triangle, is_inverse, ones)
    wanted = np.linalg.inv(bordered)
    columns, rows = rng.standard_normal((301, 3)), np.array([0, 5, 300])
    assert len(factored) == 301
    np.testing.assert_allclose(factored @ columns, wanted @ columns, atol=1e-9)
    np.testing.assert_allclose(factored[rows], wanted[rows], atol=1e-9)
    np.testing.assert_allclose(factored.to_table(), wanted, atol=1e-9)
    inverse = BorderedInverse.wrap(factored, 301)
    np.testing.assert_allclose(inverse.apply(columns), wanted @ columns, atol=1e-9)
    np.testing.assert_allclose(inverse.take(rows), wanted[:, rows], atol=1e-9)
