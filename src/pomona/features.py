"""Features of photos, computed once each and cached.

In: a dataset and an embedding. Out: a float32 vector per usable photo, and the photos that could not be used.
Why: the network pass is the only slow step, so its result is kept per photo content. The cache is one SQLite file per
key (weights, preprocessing, pooling, precision, format number): a crash loses at most the batch in flight, several
processes may share it, and another key never reads it. A vector that does not match its checksum is computed again.
"""

from __future__ import annotations

import mmap
import sqlite3
import tempfile
import time
import zlib
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pomona.dataset import Skipped
from pomona.embedding import load_network
from pomona.engine import Engine, is_finite
from pomona.errors import DataError, NotFiniteError, PhotoError, StorageError
from pomona.files import cache_folder, hash_bytes, make_folder, storage_errors
from pomona.photo import read_photo_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.dataset import Dataset, Photo
    from pomona.embedding import Embedding

FEATURES_FORMAT = 2
"""Counts up when the same key would give other vectors."""

MAX_TABLE_BYTES = 1_000_000_000
"""Features that are kept in memory; more of them are in a file."""

_PHOTOS_PER_COMMIT, _PHOTOS_PER_RELEASE = 64, 4096
_SECONDS_PER_COMMIT = 2.0
_ROWS_PER_QUERY = 500
_COLUMNS = [("sha256", "BLOB", 1), ("vector", "BLOB", 0), ("crc", "INTEGER", 0)]  # name, type, place in the key
_NO_PERMISSION = "make sure that you may read and write it and its folder"
_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "make sure that its disk works, and free some space",
    sqlite3.SQLITE_CANTOPEN: _NO_PERMISSION,
    sqlite3.SQLITE_PERM: _NO_PERMISSION,
    sqlite3.SQLITE_READONLY: _NO_PERMISSION,
    sqlite3.SQLITE_BUSY: "wait until other runs have ended",
}
"""What to do, by SQLite's result code."""


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
    usable = [i for i in range(len(photos)) if i not in vectors.errors]
    failed = [(photos[i], error) for i, error in sorted(vectors.errors.items())]
    skipped = tuple(Skipped(photo.name, photo.path, error.fault, str(error)) for photo, error in failed)
    if not usable:
        first = f"; the first: {skipped[0].name}: {skipped[0].detail}" if skipped else ""
        raise DataError(f"no photo of {dataset.shown} can be used: {len(skipped)} failed{first}")
    clean = replace(dataset, photos=tuple(photos[i] for i in usable), skipped=dataset.skipped + skipped)
    values = vectors.values if len(usable) == len(photos) else vectors.values[usable]
    return Features(values, clean, vectors.n_computed, vectors.n_cached)


def list_missing(dataset: Dataset, embedding: Embedding) -> tuple[Photo, ...]:
    """Photos of a dataset whose features the cache does not hold; those of one content once."""
    photos = {photo.sha256: photo for photo in dataset.photos}
    with closing(VectorCache(embedding)) as cache:
        held = cache.list_held(list(photos))
    return tuple(photo for digest, photo in photos.items() if digest not in held)


def read_unchanged(path: Path, sha256: str) -> bytes:
    """Read a photo that still is what its hash was taken of: a cache keyed by content must not learn otherwise.

    Raises
    ------
    PhotoError
        If it cannot be read, or its content changed in between.
    """
    data = read_photo_bytes(path)
    if hash_bytes(data) != sha256:
        raise PhotoError(
            "corrupt", f"wanted the content with sha256 {sha256}, got another: it changed since; run again"
        )
    return data


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
    rows_of: dict[str, list[int]] = {}
    for i, digest in enumerate(hashes):
        rows_of.setdefault(digest, []).append(i)
    with closing(_NoCache() if embedding.is_tuned else VectorCache(embedding)) as cache:
        for digest, vector in cache.read(list(rows_of)):
            values[rows_of[digest]] = vector
        missing = [digest for digest in rows_of if digest not in cache.found]
        n_done = n_cached = len(hashes) - sum(len(rows_of[digest]) for digest in missing)
        errors: dict[int, PhotoError] = {}
        n_computed = 0
        if on_photo:
            on_photo(n_done, len(hashes))
        # Closed here, not when an exception lets go of it: no thread goes on decoding after an interrupt.
        with closing(_compute(missing, lambda d: load_pixels(rows_of[d][0]), embedding, n_workers)) as outcomes:
            for digest, outcome in outcomes:
                rows = rows_of[digest]
                if isinstance(outcome, PhotoError):
                    errors.update(dict.fromkeys(rows, outcome))
                else:
                    values[rows] = outcome
                    cache.write(digest, outcome)
                    n_computed += 1
                n_done += len(rows)
                if n_computed % _PHOTOS_PER_RELEASE == 0:
                    release_pages(values)
                if on_photo:
                    on_photo(n_done, len(hashes))
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
    digests: Sequence[str], load_pixels: Callable[[str], NDArray[np.uint8]], embedding: Embedding, n_workers: int | None
) -> Generator[tuple[str, NDArray[np.float32] | PhotoError]]:
    if not digests:
        return
    engine = Engine(load_network(embedding), n_workers=n_workers)
    with closing(engine.stream(len(digests), lambda i: load_pixels(digests[i]))) as outcomes:
        for digest, outcome in zip(digests, outcomes, strict=True):
            if isinstance(outcome, PhotoError):
                yield digest, outcome
            elif is_finite(outcome):
                yield digest, outcome["features"]
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

    Notes
    -----
    A file that is not a whole database any more is moved aside and a new one is begun; nothing is deleted. Rows wait in
    memory and are written in one short transaction, so that another process never waits for the lock while photos
    are computed.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.dim = embedding.dim
        self.found: set[str] = set()
        self._waiting: list[tuple[bytes, bytes, int]] = []
        self._committed_s = time.monotonic()
        folder = make_folder(cache_folder() / "features")
        self.path = folder / f"{embedding.slug}-{embedding.key[:16]}-{FEATURES_FORMAT}.sqlite"
        with self._storage_errors("open"):
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                _reraise_unless_damaged(error)
                _move_aside(self.path)
                self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        if self.path.exists() and not self.path.is_file():
            raise sqlite3.DatabaseError("wanted a file, got something else")
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            connection.execute("PRAGMA page_size=16384")  # of a new file: a vector takes several pages
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (sha256 BLOB PRIMARY KEY, vector BLOB, crc INTEGER)")
            connection.commit()
            columns = connection.execute("SELECT name, type, pk FROM pragma_table_info('vectors')").fetchall()
            if columns != _COLUMNS:
                raise sqlite3.DatabaseError(f"wanted the columns {_COLUMNS}, got {columns}")
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
            with self._storage_errors("read"):
                try:
                    rows = self._connection.execute(query, chunk).fetchall()
                except sqlite3.DatabaseError as error:
                    _reraise_unless_damaged(error)
                    self._begin_anew()
                    return
            for key, blob, crc in rows:
                if isinstance(blob, bytes) and len(blob) == self.dim * 4 and zlib.crc32(blob) == crc:
                    self.found.add(key.hex())
                    yield key.hex(), np.frombuffer(blob, np.float32)

    def list_held(self, digests: Sequence[str]) -> set[str]:
        """Those of the hashes that there is a vector for, whole or not."""
        held: set[str] = set()
        for start in range(0, len(digests), _ROWS_PER_QUERY):
            chunk = [bytes.fromhex(digest) for digest in digests[start : start + _ROWS_PER_QUERY]]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT sha256 FROM vectors WHERE sha256 IN ({marks})"  # noqa: S608 - only marks
            with self._storage_errors("read"):
                try:
                    held |= {key.hex() for (key,) in self._connection.execute(query, chunk)}
                except sqlite3.DatabaseError as error:
                    _reraise_unless_damaged(error)
                    return set()  # reading the vectors will find the damage, and begin anew
        return held

    def write(self, digest: str, vector: NDArray[np.float32]) -> None:
        """Keep a vector (D,); it is on disk after the next commit, at most 64 photos or 2 seconds later."""
        blob = np.ascontiguousarray(vector, np.float32).tobytes()
        self._waiting.append((bytes.fromhex(digest), blob, zlib.crc32(blob)))
        if len(self._waiting) >= _PHOTOS_PER_COMMIT or time.monotonic() - self._committed_s > _SECONDS_PER_COMMIT:
            self._commit()

    def close(self) -> None:
        """Commit and close."""
        try:
            self._commit()
        finally:
            self._connection.close()

    def _commit(self) -> None:
        try:
            with self._storage_errors("write"):
                try:
                    self._insert(self._waiting)
                except sqlite3.DatabaseError as error:
                    _reraise_unless_damaged(error)
                    self._begin_anew()
                    self._insert(self._waiting)
        except StorageError:
            self._waiting.clear()  # so that closing does not fail a second time
            raise
        self._waiting.clear()
        self._committed_s = time.monotonic()

    def _insert(self, rows: Sequence[tuple[bytes, bytes, int]]) -> None:
        if rows:
            with self._connection:  # commits, or rolls back
                self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def _begin_anew(self) -> None:
        self._connection.close()
        _move_aside(self.path)
        self._connection = self._open()

    @contextmanager
    def _storage_errors(self, task: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            advice = _ADVICE.get(_read_code(error), "move it away")
            raise StorageError(
                f"could not {task} the feature cache {self.path}: {error}; {advice}, or name another folder in "
                "POMONA_CACHE"
            ) from error


class _NoCache:
    """For networks that were tuned: the next training makes others, and would leave a file behind each time."""

    found: frozenset[str] = frozenset()

    def read(self, _digests: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        return iter(())

    def write(self, digest: str, vector: NDArray[np.float32]) -> None:
        pass

    def close(self) -> None:
        pass


def _reraise_unless_damaged(error: sqlite3.DatabaseError) -> None:
    """Let everything through that is not the file's content: a full disk, a lock, no permission."""
    if isinstance(error, sqlite3.OperationalError) and _read_code(error) != sqlite3.SQLITE_ERROR:  # other tables
        raise error


def _read_code(error: sqlite3.DatabaseError) -> int:
    """SQLite's result code without its extension; that of no error for one that is not SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)) & 0xFF


def _move_aside(path: Path) -> None:
    """Rename a database that cannot be read, with its journal, so that a new one can begin."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with storage_errors(f"move the damaged feature cache {path} aside"):
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.replace(part.with_name(f"{part.name}.damaged-{stamp}"))
