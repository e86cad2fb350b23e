"""Features of photos, computed once each and cached.

In: a dataset and an embedding. Out: a float32 vector per usable photo, and the photos that could not be used.
Why: the network pass is the only slow step, so its result is kept per photo content. The cache is one `RowCache`
per key (weights, preprocessing, pooling, precision, format number): another key never reads it.
"""

from __future__ import annotations

import mmap
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pomona.embedding import load_network
from pomona.engine import Engine, is_finite
from pomona.errors import NotFiniteError, PhotoError
from pomona.files import cache_folder, make_folder, storage_errors
from pomona.photo import read_unchanged
from pomona.row_cache import RowCache, stream_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from pomona.dataset import Dataset, Photo
    from pomona.embedding import Embedding

FEATURES_FORMAT = 2
"""Counts up when the same key would give other vectors."""

MAX_TABLE_BYTES = 1_000_000_000
"""Features that are kept in memory; more of them are in a file."""

_PHOTOS_PER_RELEASE = 4096


@dataclass(frozen=True)
class Vectors:
    """Features of N photos, with what went wrong in their place.

    Parameters
    ----------
    values : ndarray of shape (N, D), float32
        Rows of photos that failed are zero.
    errors : dict of int to PhotoError
        Photo number to its error.
    n_computed, n_cached : int
        Contents that went through the network, and photos that came from the cache.
    """

    values: NDArray[np.float32]
    errors: dict[int, PhotoError]
    n_computed: int
    n_cached: int


@dataclass(frozen=True)
class Features:
    """Features of the usable photos of a dataset.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        Row i belongs to ``dataset.photos[i]``.
    dataset : Dataset
        The usable photos; those that could not be decoded have joined its ``skipped``.
    n_computed, n_cached : int
        Photos that went through the network, and that came from the cache.
    """

    vectors: NDArray[np.float32]
    dataset: Dataset
    n_computed: int
    n_cached: int

    def __post_init__(self) -> None:
        wanted = (len(self.dataset.photos),)
        if self.vectors.ndim != 2 or self.vectors.shape[:1] != wanted:
            raise ValueError(f"vectors: wanted shape ({wanted[0]}, D), got {self.vectors.shape}")

    def part(self, split: str) -> Features:
        """Only the photos of one split, in the same order."""
        rows = [i for i, photo in enumerate(self.dataset.photos) if photo.split == split]
        photos = tuple(self.dataset.photos[i] for i in rows)
        return replace(self, vectors=self.vectors[rows], dataset=replace(self.dataset, photos=photos))

    def keep(self, dataset: Dataset) -> Features:
        """Only the photos that a dataset still holds, with its labels, groups and splits; it has them in this order."""
        left = {photo.path for photo in dataset.photos}
        rows = [i for i, photo in enumerate(self.dataset.photos) if photo.path in left]
        vectors = self.vectors if len(rows) == len(self.vectors) else self.vectors[rows]
        return replace(self, vectors=vectors, dataset=dataset)


def extract_features(
    dataset: Dataset,
    embedding: Embedding,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Features:
    """Compute the features of every photo that the cache does not hold.

    Parameters
    ----------
    dataset : Dataset
        N photos.
    embedding : Embedding
        What the features are.
    n_workers : int, optional
        Threads; every core where not given.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Returns
    -------
    Features
        Vectors of the usable photos.

    Raises
    ------
    DataError
        If no photo is usable.
    NotFiniteError
        If the network gives NaN or infinity.
    """
    photos = dataset.photos

    def load_pixels(i: int) -> NDArray[np.uint8]:
        return embedding.preprocessing.read(read_unchanged(photos[i].path, photos[i].sha256))

    hashes = [photo.sha256 for photo in photos]
    vectors = extract_vectors(hashes, load_pixels, embedding, n_workers=n_workers, on_photo=on_photo)
    clean = dataset.leave_out(vectors.errors)
    usable = [i for i in range(len(photos)) if i not in vectors.errors]
    values = vectors.values if len(usable) == len(photos) else vectors.values[usable]
    return Features(values, clean, vectors.n_computed, vectors.n_cached)


def list_missing(dataset: Dataset, embedding: Embedding) -> tuple[Photo, ...]:
    """Photos of a dataset whose features the cache does not hold; those of one content once."""
    photos = {photo.sha256: photo for photo in dataset.photos}
    with closing(VectorCache(embedding)) as cache:
        held = cache.list_held(list(photos))
    return tuple(photo for digest, photo in photos.items() if digest not in held)


def extract_vectors(
    hashes: Sequence[str],
    load_pixels: Callable[[int], NDArray[np.uint8]],
    embedding: Embedding,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Vectors:
    """Compute the features of photos that are known by their content hash.

    Parameters
    ----------
    hashes : sequence of str, length N
        Hash of each photo's content; photos of one content are computed once.
    load_pixels : callable
        Photo number to preprocessed pixels (S, S, 3) uint8; called from several threads; may raise `PhotoError`.
    embedding : Embedding
        What the features are.
    n_workers, on_photo
        As in `extract_features`.

    Returns
    -------
    Vectors
        One row per photo.
    """
    values = _make_table(len(hashes), embedding.dim)
    errors: dict[int, PhotoError] = {}
    n_computed = n_cached = 0

    def compute(numbers: Sequence[int]) -> Generator[NDArray[np.float32] | PhotoError]:
        return _compute([hashes[i] for i in numbers], lambda i: load_pixels(numbers[i]), embedding, n_workers)

    # Closed here, not when an exception lets go of it: no thread goes on decoding after an interrupt.
    with (
        closing(_NoCache() if embedding.is_tuned else VectorCache(embedding)) as cache,
        closing(stream_rows(hashes, cache, compute, on_photo=on_photo)) as outcomes,
    ):
        for number, (rows, outcome, is_cached) in enumerate(outcomes, start=1):
            if number % _PHOTOS_PER_RELEASE == 0:
                release_pages(values)
            if isinstance(outcome, PhotoError):
                errors.update(dict.fromkeys(rows, outcome))
                continue
            values[rows] = outcome
            n_computed += not is_cached
            n_cached += len(rows) * is_cached
    return Vectors(values, errors, n_computed, n_cached)


def _make_table(n_rows: int, dim: int) -> NDArray[np.float32]:
    """Zeros (N, D), in memory or, where they are too many, in a file that goes with the table."""
    if n_rows * dim * 4 <= MAX_TABLE_BYTES:
        return np.zeros((n_rows, dim), np.float32)
    with storage_errors(f"make room for {n_rows * dim * 4 / 1e9:.1f} GB of features in {cache_folder()}"):
        file = tempfile.TemporaryFile(dir=make_folder(cache_folder() / "features"))  # noqa: SIM115 - the table keeps it
        return np.memmap(file, np.float32, "w+", shape=(n_rows, dim))


def release_pages(table: NDArray[np.float32]) -> None:
    """Let the pages of a table in a file go, which count as memory of the process; the file keeps its content."""
    mapped: object = table
    while isinstance(mapped, np.ndarray):
        if isinstance(mapped, np.memmap) and mapped.mode == "c":
            return  # what was written there is in no file
        mapped = mapped.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _compute(
    digests: Sequence[str], load_pixels: Callable[[int], NDArray[np.uint8]], embedding: Embedding, n_workers: int | None
) -> Generator[NDArray[np.float32] | PhotoError]:
    engine = Engine(load_network(embedding), n_workers=n_workers)
    with closing(engine.stream(len(digests), load_pixels)) as outcomes:
        for digest, outcome in zip(digests, outcomes, strict=True):
            if isinstance(outcome, PhotoError):
                yield outcome
            elif is_finite(outcome):
                yield outcome["features"]
            else:
                raise NotFiniteError(f"{embedding.slug} gave numbers that are not finite for the photo {digest[:16]}")


class VectorCache:
    """Vectors by photo content hash, in one SQLite file per feature key.

    Parameters
    ----------
    embedding : Embedding
        Its key and the format number name the file.

    Raises
    ------
    StorageError
        If the file cannot be opened or written, for example on a full disk.
    """

    def __init__(self, embedding: Embedding) -> None:
        name = f"{embedding.slug}-{embedding.key[:16]}-{FEATURES_FORMAT}"
        self._rows = RowCache("features", name, embedding.dim * 4, shown="feature cache")
        self.path = self._rows.path
        self.found = self._rows.found

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the vectors (D,) that are there and whole; `found` then holds their hashes."""
        for digest, row in self._rows.read(digests):
            yield digest, np.frombuffer(row, np.float32)

    def list_held(self, digests: Sequence[str]) -> set[str]:
        """Those of the hashes that there is a vector for, whole or not."""
        return self._rows.list_held(digests)

    def write(self, digest: str, vector: NDArray[np.float32]) -> None:
        """Keep a vector (D,); see `RowCache.write`."""
        self._rows.write(digest, np.ascontiguousarray(vector, np.float32).tobytes())

    def close(self) -> None:
        """Commit and close."""
        self._rows.close()


class _NoCache:
    """For networks that were tuned: the next training makes others, and would leave a file behind each time."""

    found: frozenset[str] = frozenset()

    def read(self, _digests: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        return iter(())

    def write(self, digest: str, vector: NDArray[np.float32]) -> None:
        pass

    def close(self) -> None:
        pass
