"""Features of photos, computed once each and cached.

In: a dataset and a backbone. Out: a float32 vector per usable photo, and the photos that could not be used.
Why: the network pass is the only slow step, so its result is kept per photo content. The cache is one SQLite file per
key (weights, preprocessing, cuts, precision, format number): a crash loses at most the batch in flight, several processes may
share it, and another key never reads it. A vector that does not match its checksum is computed again.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pomona.backbone import load_network
from pomona.dataset import Skipped
from pomona.engine import Engine
from pomona.errors import DataError, PhotoError, StorageError
from pomona.files import cache_folder, make_folder
from pomona.photo import decode_photo, read_photo_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.backbone import Backbone
    from pomona.dataset import Dataset

FEATURES_FORMAT = 1
"""Counts up when the same key would give other vectors."""

_PHOTOS_PER_COMMIT = 64
_SECONDS_PER_COMMIT = 2.0
_ROWS_PER_QUERY = 500


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
        Photos that went through the network, and that came from the cache.
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


def extract_features(
    dataset: Dataset,
    backbone: Backbone,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Features:
    """Compute the features of every photo that the cache does not hold.

    Parameters
    ----------
    dataset : Dataset
        N photos.
    backbone : Backbone
        The pretrained network.
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
    """
    photos = dataset.photos

    def load_photo(i: int) -> NDArray[np.uint8]:
        return decode_photo(read_photo_bytes(photos[i].path))

    vectors = extract_vectors([p.sha256 for p in photos], load_photo, backbone, n_workers=n_workers, on_photo=on_photo)
    usable = [i for i in range(len(photos)) if i not in vectors.errors]
    failed = [(photos[i], error) for i, error in sorted(vectors.errors.items())]
    skipped = tuple(Skipped(photo.name, photo.path, error.fault, str(error)) for photo, error in failed)
    if not usable:
        first = f"; the first: {skipped[0].name}: {skipped[0].detail}" if skipped else ""
        raise DataError(f"no photo of {dataset.root} can be used: {len(skipped)} failed{first}")
    clean = replace(dataset, photos=tuple(photos[i] for i in usable), skipped=dataset.skipped + skipped)
    values = vectors.values if len(usable) == len(photos) else vectors.values[usable]
    return Features(values, clean, vectors.n_computed, vectors.n_cached)


def extract_vectors(
    hashes: Sequence[str],
    load_photo: Callable[[int], NDArray[np.uint8]],
    backbone: Backbone,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Vectors:
    """Compute the features of photos that are known by their content hash.

    Parameters
    ----------
    hashes : sequence of str, length N
        Hash of each photo's content; photos of one content are computed once.
    load_photo : callable
        Photo number to upright RGB photo (H, W, 3) uint8; called from several threads; may raise `PhotoError`.
    backbone : Backbone
        The pretrained network.
    n_workers, on_photo
        As in `extract_features`.

    Returns
    -------
    Vectors
        One row per photo.
    """
    values = np.zeros((len(hashes), backbone.dim), np.float32)
    rows_of: dict[str, list[int]] = {}
    for i, digest in enumerate(hashes):
        rows_of.setdefault(digest, []).append(i)
    with closing(VectorCache(backbone)) as cache:
        for digest, vector in cache.read(list(rows_of)):
            values[rows_of[digest]] = vector
        missing = [digest for digest in rows_of if digest not in cache.found]
        n_done = n_cached = len(hashes) - sum(len(rows_of[digest]) for digest in missing)
        errors: dict[int, PhotoError] = {}
        if on_photo:
            on_photo(n_done, len(hashes))
        for digest, outcome in _compute(missing, lambda d: load_photo(rows_of[d][0]), backbone, n_workers):
            rows = rows_of[digest]
            if isinstance(outcome, PhotoError):
                errors.update(dict.fromkeys(rows, outcome))
            else:
                values[rows] = outcome
                cache.write(digest, outcome)
            n_done += len(rows)
            if on_photo:
                on_photo(n_done, len(hashes))
    return Vectors(values, errors, len(missing), n_cached)


def _compute(
    digests: Sequence[str], load_photo: Callable[[str], NDArray[np.uint8]], backbone: Backbone, n_workers: int | None
) -> Iterator[tuple[str, NDArray[np.float32] | PhotoError]]:
    if not digests:
        return
    engine = Engine(load_network(backbone), n_workers=n_workers)
    apply = backbone.preprocessing.apply
    outcomes = engine.stream(len(digests), lambda i: apply(load_photo(digests[i])))
    for digest, outcome in zip(digests, outcomes, strict=True):
        yield digest, outcome if isinstance(outcome, PhotoError) else outcome["features"]


class VectorCache:
    """Vectors by photo content hash, in one SQLite file per feature key.

    Parameters
    ----------
    backbone : Backbone
        Its key, the engine's precision and the format number name the file.

    Raises
    ------
    StorageError
        If the file cannot be opened or written, for example on a full disk.

    Notes
    -----
    A file that is not a database any more is moved aside and a new one is begun; nothing is deleted.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.dim = backbone.dim
        self.found: set[str] = set()
        self._n_waiting = 0
        self._committed_s = time.monotonic()
        folder = make_folder(cache_folder() / "features")
        self.path = folder / f"{backbone.slug}-{backbone.key[:16]}-{Engine.precision}-{FEATURES_FORMAT}.sqlite"
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(f"could not open the feature cache {self.path}: {error}") from error
            _move_aside(self.path)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (sha256 BLOB PRIMARY KEY, vector BLOB, crc INTEGER)")
            connection.commit()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the vectors (D,) that are there and whole; `found` then holds their hashes."""
        for start in range(0, len(digests), _ROWS_PER_QUERY):
            chunk = [bytes.fromhex(digest) for digest in digests[start : start + _ROWS_PER_QUERY]]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT sha256, vector, crc FROM vectors WHERE sha256 IN ({marks})"  # noqa: S608 - only marks
            try:
                rows = self._connection.execute(query, chunk).fetchall()
            except sqlite3.DatabaseError:
                self._begin_anew()
                return
            for key, blob, crc in rows:
                if isinstance(blob, bytes) and len(blob) == self.dim * 4 and zlib.crc32(blob) == crc:
                    self.found.add(key.hex())
                    yield key.hex(), np.frombuffer(blob, np.float32)

    def write(self, digest: str, vector: NDArray[np.float32]) -> None:
        """Keep a vector (D,); it is on disk after the next commit, at most 64 photos or 2 seconds later."""
        blob = np.ascontiguousarray(vector, np.float32).tobytes()
        row = (bytes.fromhex(digest), blob, zlib.crc32(blob))
        with self._storage_errors():
            self._connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", row)
        self._n_waiting += 1
        if self._n_waiting >= _PHOTOS_PER_COMMIT or time.monotonic() - self._committed_s > _SECONDS_PER_COMMIT:
            self._commit()

    def close(self) -> None:
        """Commit and close."""
        try:
            self._commit()
        finally:
            self._connection.close()

    def _commit(self) -> None:
        with self._storage_errors():
            self._connection.commit()
        self._n_waiting = 0
        self._committed_s = time.monotonic()

    def _begin_anew(self) -> None:
        self._connection.close()
        _move_aside(self.path)
        self._connection = self._open()

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StorageError(
                f"could not write the feature cache {self.path}: {error}; free some space, or name another folder in POMONA_CACHE"
            ) from error


def _move_aside(path: Path) -> None:
    """Rename a database that cannot be read, with its journal, so that a new one can begin."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(part.with_name(f"{part.name}.damaged-{stamp}"))
