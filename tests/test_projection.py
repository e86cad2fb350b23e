"""Coordinates keep what is near near, whatever the order, the size of the blocks or the rank of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona import projection
from pomona.projection import iter_blocks, project_blocks, project_vectors, scale_rows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TABLES = st.tuples(st.integers(2, 24), st.integers(1, 30), st.integers(0, 99))
"""(photos, numbers of each, seed)."""


def draw_table(n_rows: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n_rows, dim)) * np.geomspace(4, 0.5, dim) + rng.normal(size=dim)
    return table.astype(np.float32)


def measure_distances(table: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = table.astype(np.float64)
    return np.linalg.norm(wide[:, None] - wide[None], axis=2)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_all_axes_together_keep_every_distance(drawn: tuple[int, int, int]) -> None:
    table = draw_table(*drawn)
    found = project_vectors(table, 100)
    assert found.dtype == np.float32
    assert found.shape[1] <= min(table.shape[0] - 1, table.shape[1])
    np.testing.assert_allclose(measure_distances(found), measure_distances(table), atol=1e-2)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(1, 6), st.randoms(use_true_random=False))
def test_permuting_photos_permutes_coordinates(drawn: tuple[int, int, int], dim: int, rng: object) -> None:
    table = draw_table(*drawn)
    order = list(range(len(table)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(project_vectors(table[order], dim), project_vectors(table, dim)[order], atol=0.02)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_the_axes_are_those_of_the_singular_values(drawn: tuple[int, int, int]) -> None:
    table = draw_table(*drawn)
    found = project_vectors(table, 100)
    values = np.linalg.svd(table - table.mean(axis=0, dtype=np.float64), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), values[: found.shape[1]], rtol=1e-3, atol=1e-2)
    assert (values[found.shape[1] :] <= 1e-3 * values[0]).all()  # what is left out is rounding


def test_a_few_axes_are_the_first_of_many() -> None:
    table = draw_table(30, 20)
    np.testing.assert_allclose(project_vectors(table, 4), project_vectors(table, 20)[:, :4], atol=1e-5)


def test_two_calls_give_the_same_bits() -> None:
    table = draw_table(1500, 12)  # a sample of them makes the axes
    np.testing.assert_array_equal(project_vectors(table, 8), project_vectors(table.copy(), 8))


def test_a_sample_speaks_for_a_large_set() -> None:
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 40))).astype(np.float32)
    found = project_vectors(table, 100)
    assert found.shape == (5000, 3)
    rows = rng.integers(0, 5000, 50)
    np.testing.assert_allclose(measure_distances(found[rows]), measure_distances(table[rows]), atol=1e-2)


def test_rows_are_read_once_each_and_a_sample_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_N_SAMPLED", 16)
    monkeypatch.setattr(projection.iter_blocks, "__defaults__", (10,))
    table = draw_table(37, 5)
    read = []

    def read_rows(rows: NDArray[np.intp] | slice) -> NDArray[np.float32]:
        read.append(np.arange(37)[rows].tolist())
        return table[rows]

    found = project_blocks(read_rows, 37, 3)
    assert found.shape == (37, 3)
    assert len(read[0]) == len(set(read[0])) == 16
    assert read[0] == sorted(read[0])
    assert [row for rows in read[1:] for row in rows] == list(range(37))
    assert [len(rows) for rows in read[1:]] == [10, 10, 10, 7]


@pytest.mark.parametrize("n_rows", [0, 1, 2, 50])
def test_photos_that_are_all_alike_have_no_axes(n_rows: int) -> None:
    same = np.full((n_rows, 7), 3, np.float32)
    assert project_vectors(same, 4).shape == (n_rows, 0)
    assert np.isfinite(project_vectors(draw_table(n_rows, 7), 4)).all()


def test_a_table_in_a_file_is_projected_as_one_in_memory(tmp_path: Path) -> None:
    table = draw_table(100, 12)
    file = np.memmap(tmp_path / "table", np.float32, "w+", shape=table.shape)
    file[:] = table
    np.testing.assert_array_equal(project_vectors(file, 6), project_vectors(table, 6))
    np.testing.assert_array_equal(file, table)


@given(st.integers(0, 300), st.integers(1, 50))
def test_blocks_cover_all_rows_once(n_rows: int, size: int) -> None:
    blocks = list(iter_blocks(n_rows, size))
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(n_rows))
    assert all(0 < stop - start <= size for start, stop in blocks)


def test_scaled_rows_have_norm_1_or_0() -> None:
    table = draw_table(20, 6) * np.geomspace(1e-6, 1e6, 20, dtype=np.float32)[:, None]
    table[3] = 0
    norms = np.linalg.norm(scale_rows(table), axis=1)
    np.testing.assert_allclose(np.delete(norms, 3), 1, rtol=1e-5)
    assert norms[3] == 0
    assert scale_rows(np.zeros((3, 0), np.float32)).shape == (3, 0)
