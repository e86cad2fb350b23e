"""Features in a few hundred numbers: enough to find what is alike and what does not fit, and small enough for any set.

In: vectors (N, D). Out: their coordinates (N, K) along the axes in which a sample of them varies most.
Why: a hundred thousand photos of ten thousand numbers are four gigabytes; the checks look at all of them several times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pomona.features import release_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_N_SAMPLED = 1024
_ROWS_PER_BLOCK = 2048
_LEAST_SHARE = 1e-7  # of the largest variance; what is below is rounding


def project_vectors(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Coordinates of vectors along their principal axes, largest variance first.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Features; a table in a file is read block by block.
    dim : int
        Axes that are wanted.

    Returns
    -------
    ndarray of shape (N, K), float32
        Less the mean. K is `dim`, or as many axes as there are.

    Examples
    --------
    >>> line = np.array([[0, 0], [1, 1], [2, 2]], np.float32)
    >>> np.abs(project_vectors(line, 5)).round(2).tolist()
    [[1.409999966621399], [0.0], [1.409999966621399]]
    """

    def read_rows(rows: NDArray[np.intp] | slice) -> NDArray[np.float32]:
        block = np.array(vectors[rows])
        release_pages(vectors)  # block by block: a table in a file would count as memory as a whole
        return block

    return project_blocks(read_rows, len(vectors), dim)


def project_blocks(
    read_rows: Callable[[NDArray[np.intp] | slice], NDArray[np.float32]], n_rows: int, dim: int
) -> NDArray[np.float32]:
    """As `project_vectors`, of vectors that are made a block at a time: called with the rows that are wanted."""
    if not n_rows:
        return np.zeros((0, 0), np.float32)
    sample = read_rows(_pick_rows(n_rows))
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    sample = sample - mean
    variances, directions = np.linalg.eigh((sample @ sample.T).astype(np.float64))
    kept = np.flatnonzero(variances > _LEAST_SHARE * max(variances[-1], 1e-30))[::-1][:dim]
    axes = (sample.T @ (directions[:, kept] / np.sqrt(variances[kept]))).astype(np.float32)
    # The same photos give the same signs on every machine.
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(len(kept))] < 0, -1, 1).astype(np.float32)
    parts = [(read_rows(slice(start, stop)) - mean) @ axes for start, stop in iter_blocks(n_rows)]
    return np.concatenate(parts)


def iter_blocks(n_rows: int, size: int = _ROWS_PER_BLOCK) -> Iterator[tuple[int, int]]:
    """First row and row after the last of each block.

    Examples
    --------
    >>> list(iter_blocks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    return ((start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def _pick_rows(n_rows: int) -> NDArray[np.intp]:
    """Rows that stand for all: drawn, so that no order of the files matters, and the same each time."""
    if n_rows <= _N_SAMPLED:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(0).choice(n_rows, _N_SAMPLED, replace=False))


def scale_rows(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows at norm 1; a row of zeros stays one.

    Examples
    --------
    >>> scale_rows(np.array([[3, 4], [0, 0]], np.float32)).round(1).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return np.asarray(table / np.maximum(norms, 1e-12), np.float32)
