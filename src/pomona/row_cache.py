"""Rows of bytes by photo content hash, on disk: what is computed once per content and never again.

In: content hashes, and rows of one length for them. Out: the rows that are there and whole; those missing are computed.
Why: features and facts of photos are kept alike. A cache is one SQLite file: a crash loses at most the batch in flight,
several processes may share it, and a row that does not match its checksum is computed again.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from pomona.errors import PhotoError, StorageError
from pomona.files import cache_folder, make_folder, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

_ROWS_PER_COMMIT = 64
_SECONDS_PER_COMMIT = 2.0
_ROWS_PER_QUERY = 500
# Named after the vectors that were its first rows: another name would lose what people's caches hold.
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

_Row = TypeVar("_Row")


class Keeper(Protocol[_Row]):
    """What `stream_rows` asks first, and gives what was computed: a `RowCache`, or what turns its bytes."""

    @property
    def found(self) -> Collection[str]:
        """Hashes that `read` gave a row for."""

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, _Row]]:
        """Yield the rows that are there."""

    def write(self, digest: str, row: _Row) -> None:
        """Keep a row."""


class Placed(NamedTuple, Generic[_Row]):
    """What became of the photos of one content.

    Parameters
    ----------
    numbers : list of int
        The photos, by their place among the hashes.
    outcome : row or PhotoError
        Their row, or why there is none.
    is_cached : bool
        Whether it was there before.
    """

    numbers: list[int]
    outcome: _Row | PhotoError
    is_cached: bool


def stream_rows(
    hashes: Sequence[str],
    cache: Keeper[_Row],
    compute: Callable[[Sequence[int]], Generator[_Row | PhotoError]],
    *,
    on_photo: Callable[[int, int], None] | None = None,
) -> Generator[Placed[_Row]]:
    """Rows of photos that are known by their content hash: those the cache holds first, then those it lacks.

    What is computed is given to the cache before it is yielded, so that an interrupted pass goes on where it was.

    Parameters
    ----------
    hashes : sequence of str, length N
        Hash of each photo's content; photos of one content are computed once.
    cache : Keeper
        Is asked first.
    compute : callable
        Numbers of photos to their rows, in that order, an error in the place of a row; not called for none. It is
        closed where the pass ends early.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Yields
    ------
    Placed
        Once a content.
    """
    numbers_of: dict[str, list[int]] = {}
    for i, digest in enumerate(hashes):
        numbers_of.setdefault(digest, []).append(i)
    for digest, row in cache.read(list(numbers_of)):
        yield Placed(numbers_of[digest], row, is_cached=True)
    missing = [digest for digest in numbers_of if digest not in cache.found]
    n_done = len(hashes) - sum(len(numbers_of[digest]) for digest in missing)
    if on_photo:
        on_photo(n_done, len(hashes))
    if not missing:
        return
    with closing(compute([numbers_of[digest][0] for digest in missing])) as outcomes:
        for digest, outcome in zip(missing, outcomes, strict=True):
            if not isinstance(outcome, PhotoError):
                cache.write(digest, outcome)
            numbers = numbers_of[digest]
            yield Placed(numbers, outcome, is_cached=False)
            n_done += len(numbers)
            if on_photo:
                on_photo(n_done, len(hashes))


class RowCache:
    """Rows of bytes by photo content hash, in one SQLite file.

    Parameters
    ----------
    folder : str
        Folder in the cache folder.
    name : str
        Name of the file without its ending; says all that a row depends on but the photo.
    n_bytes : int
        Length of a row.
    shown : str
        What messages call it.

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

    def __init__(self, folder: str, name: str, n_bytes: int, *, shown: str) -> None:
        self.found: set[str] = set()
        self._n_bytes = n_bytes
        self._shown = shown
        self._waiting: list[tuple[bytes, bytes, int]] = []
        self._committed_s = time.monotonic()
        self.path = make_folder(cache_folder() / folder) / f"{name}.sqlite"
        with self._storage_errors("open"):
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                _reraise_unless_damaged(error)
                self._move_aside()
                self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        if self.path.exists() and not self.path.is_file():
            raise sqlite3.DatabaseError("wanted a file, got something else")
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            connection.execute("PRAGMA page_size=16384")  # of a new file: a row would take several smaller ones
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

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the rows that are there and whole; `found` then holds their hashes."""
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
                if isinstance(blob, bytes) and len(blob) == self._n_bytes and zlib.crc32(blob) == crc:
                    self.found.add(key.hex())
                    yield key.hex(), blob

    def list_held(self, digests: Sequence[str]) -> set[str]:
        """Those of the hashes that there is a row for, whole or not."""
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
                    return set()  # reading the rows will find the damage, and begin anew
        return held

    def write(self, digest: str, row: bytes) -> None:
        """Keep a row; it is on disk after the next commit, at most 64 photos or 2 seconds later."""
        if len(row) != self._n_bytes:
            raise ValueError(f"row: wanted {self._n_bytes} bytes, got {len(row)}")
        self._waiting.append((bytes.fromhex(digest), row, zlib.crc32(row)))
        if len(self._waiting) >= _ROWS_PER_COMMIT or time.monotonic() - self._committed_s > _SECONDS_PER_COMMIT:
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
        self._move_aside()
        self._connection = self._open()

    def _move_aside(self) -> None:
        """Rename a database that cannot be read, with its journal, so that a new one can begin."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        with storage_errors(f"move the damaged {self._shown} {self.path} aside"):
            for suffix in ("", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.replace(part.with_name(f"{part.name}.damaged-{stamp}"))

    @contextmanager
    def _storage_errors(self, task: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            advice = _ADVICE.get(_read_code(error), "move it away")
            raise StorageError(
                f"could not {task} the {self._shown} {self.path}: {error}; {advice}, or name another folder in "
                "POMONA_CACHE"
            ) from error


def _reraise_unless_damaged(error: sqlite3.DatabaseError) -> None:
    """Let everything through that is not the file's content: a full disk, a lock, no permission."""
    if isinstance(error, sqlite3.OperationalError) and _read_code(error) != sqlite3.SQLITE_ERROR:  # other tables
        raise error


def _read_code(error: sqlite3.DatabaseError) -> int:
    """SQLite's result code without its extension; that of no error for one that is not SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)) & 0xFF
