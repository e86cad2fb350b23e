"""The inbox itself: photos as files by content, and rows that say what they show.

In: bytes and a label; what a recogniser has learnt. Out: `InboxPhoto` rows, and the paths of their files.
Why: the file is written before its row, so a crash between the two leaves a file that nobody names, which the next
try takes up. Whether a photo is taught is told by what the recogniser has learnt, never by what was intended: a crash
in the midst of teaching heals the next time that the two are held together.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pomona.errors import DataError, MissingPackageError, OptionError, PhotoError, StorageError
from pomona.files import MANIFEST_NAME, hash_bytes, hash_file, make_folder, storage_errors, write_atomic
from pomona.inbox.label import parse_label
from pomona.photo import sniff_format

try:
    from sqlalchemy import create_engine, event, select
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.orm import Session

    from pomona.inbox.migration import upgrade_database
    from pomona.inbox.schema import PhotoRow
except ImportError as error:
    raise MissingPackageError(str(error.name or "sqlalchemy"), "teach", "to keep an inbox") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy import Connection, Engine

    from pomona.class_tree import ClassPath
    from pomona.photo import PhotoFormat

PhotoState = Literal["waiting", "taught", "withdrawn"]
"""Still to be learnt; learnt by the recogniser as it is now; taken back by a person."""

STATES: tuple[PhotoState, ...] = get_args(PhotoState)

DATABASE_NAME = "inbox.sqlite"
PHOTOS_NAME = ".photos"
"""Hidden, so that a data set around it never takes the photos of an inbox for its own."""

_BUSY_S = 30
_CONNECT_S = 10  # a host that is down says nothing, and a system waits two minutes for it


@dataclass(frozen=True)
class InboxPhoto:
    """One photo of an inbox.

    Parameters
    ----------
    sha256 : str
        Hash of its content.
    path : Path
        Its file.
    label : str
        Path of the class that it shows, with ``/`` between its parts.
    added : datetime
        When it came, UTC.
    state : {"waiting", "taught", "withdrawn"}
        What became of it.
    version : int or None
        Version of the recogniser that was found to have learnt it.
    n_bytes : int
        Size of its file.
    format : str
        File format, told by its content.
    """

    sha256: str
    path: Path
    label: str
    added: datetime
    state: PhotoState
    version: int | None
    n_bytes: int
    format: PhotoFormat

    @property
    def class_path(self) -> ClassPath:
        """Path of the class, from the root down."""
        return tuple(self.label.split("/"))

    def to_dict(self) -> dict[str, Any]:
        """The photo as plain values for JSON."""
        return {
            "photo": self.sha256,
            "label": self.label,
            "added": self.added.isoformat(timespec="seconds"),
            "state": self.state,
            "version": self.version,
            "n_bytes": self.n_bytes,
            "format": self.format,
            "file": str(self.path),
        }


def find_inbox_folder(run: Path) -> Path:
    """Folder of the inbox that belongs to a run: beside it, under its name.

    Examples
    --------
    >>> find_inbox_folder(Path("/shop/scale")).name
    'scale.inbox'
    """
    real = run.resolve()
    return real.with_name(f"{real.name}.inbox")


def open_inbox(place: str | Path, *, photos: str | Path | None = None, create: bool = True) -> Inbox:
    """Open an inbox, and bring its tables to their newest form.

    Parameters
    ----------
    place : str or Path
        A run folder, whose inbox is beside it; the folder of an inbox; or the URL of a database, such as
        ``postgresql://shop@host/pomona``.
    photos : str or Path, optional
        Folder of the photo files; needed beside a URL of PostgreSQL.
    create : bool
        Whether to begin one where there is none.

    Returns
    -------
    Inbox
        To be closed, or used as a context.

    Raises
    ------
    OptionError
        If the URL cannot be read, or no folder is named beside it.
    StorageError
        If there is none and none shall be begun, the database cannot be reached, is none, or is newer than this Pomona.
    MissingPackageError
        If the driver of PostgreSQL is not installed.
    """
    if isinstance(place, str) and "://" in place:
        url, folder = _read_url(place, photos)
    else:
        folder = _find_folder(Path(place).expanduser())
        url = URL.create("sqlite", database=str(folder / DATABASE_NAME))
        folder = Path(photos) if photos is not None else folder / PHOTOS_NAME
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    if file is not None and not create and not file.is_file():
        raise StorageError(f"{place}: wanted an inbox, got none: there is no {file}; nobody sent a photo yet")
    if file is not None:
        make_folder(file.parent)
    return Inbox(url, make_folder(folder))


def _find_folder(path: Path) -> Path:
    if (path / DATABASE_NAME).is_file():
        return path
    if (path / MANIFEST_NAME).is_file() or find_inbox_folder(path).is_dir():
        return find_inbox_folder(path)
    if path.name.endswith(".inbox"):
        return path
    raise OptionError(f"{path}: wanted a run folder, the folder of an inbox or the URL of a database, got none of them")


def _read_url(text: str, photos: str | Path | None) -> tuple[URL, Path]:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # its message would show the password
        raise OptionError("inbox: wanted a URL such as postgresql://user@host/database, got another text") from error
    if url.host and "@" in url.host:  # a part of the password, which messages would show
        raise OptionError("inbox: wanted a URL whose password has %40 for each @, got one with several @")
    if "password" in url.query:  # as messages show it
        raise OptionError("inbox: wanted the password in PGPASSWORD or before the host, got one after the ?")
    is_file = url.database not in {None, "", ":memory:"} and "mode" not in url.query
    if url.drivername in {"sqlite", "sqlite+pysqlite"} and is_file and url.database:
        return url, Path(photos) if photos is not None else Path(url.database).parent / PHOTOS_NAME
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg":
        raise OptionError(f"inbox: wanted sqlite:///FILE or postgresql://..., got {url.drivername}://")
    if photos is None:
        raise OptionError(f"inbox: wanted the folder of the photo files beside {url.render_as_string()}, got none")
    return url, Path(photos).expanduser()


class Inbox:
    """Photos with labels; safe to use from several threads and processes.

    Parameters
    ----------
    url : URL
        Where the rows are.
    folder : Path
        Where the files are; it exists.
    """

    def __init__(self, url: URL, folder: Path) -> None:
        self.folder = folder
        self.shown = str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string()
        try:
            self._engine = _make_engine(url)
        except (ImportError, NoSuchModuleError) as error:
            raise MissingPackageError("psycopg", "postgres", "to keep an inbox in PostgreSQL") from error
        self._writer = self._engine.execution_options(begins="IMMEDIATE")
        try:
            with self._storage_errors("open"):
                upgrade_database(self._writer, shown=self.shown)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Inbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def add(self, data: bytes, label: str) -> InboxPhoto:
        """Keep a photo: its file first, then its row.

        The same photo again changes nothing; with another label it waits under that one.

        Parameters
        ----------
        data : bytes
            Content of a photo file; whether it can be decoded is for the caller to find out before.
        label : str
            Name or path of the class that it shows.

        Returns
        -------
        InboxPhoto
            As it is kept now.

        Raises
        ------
        PhotoError
            If it begins like no photo.
        OptionError
            If the label cannot be used.
        DataError
            If the photo was learnt under another label.
        StorageError
            If it cannot be written.
        """
        wanted = "/".join(parse_label(label))
        found = sniff_format(data[:32])
        if found is None:
            raise PhotoError("not_an_image" if data else "empty", "wanted a photo, got a file of another kind")
        sha256 = hash_bytes(data)
        path = self._place(sha256, found)
        if not _holds(path, sha256, len(data)):
            write_atomic(path, data)
        for _ in range(2):  # another process may have added it meanwhile: then it is there the second time
            with self._storage_errors("write"), contextlib.suppress(IntegrityError), self._write() as session:
                row = session.get(PhotoRow, sha256, with_for_update=True)
                if row is None:
                    row = PhotoRow(sha256=sha256, state="waiting", n_bytes=len(data), format=found, version=None)
                    row.label, row.added = wanted, datetime.now(UTC)
                    session.add(row)
                elif row.state == "taught" and row.label != wanted:
                    raise DataError(
                        f"{sha256[:16]}: wanted a photo that may show {wanted}, got one that was learnt as {row.label} "
                        f"in version {row.version}: bring the version before it back first"
                    )
                elif row.label != wanted or row.state == "withdrawn":
                    row.label, row.state, row.added = wanted, "waiting", datetime.now(UTC)
                session.flush()
                photo = self._read_row(row)
                session.commit()
                return photo
        raise StorageError(f"could not write {self.shown}: the photo {sha256[:16]} was changed by others: try again")

    def find(self, sha256: str) -> InboxPhoto | None:
        """One photo by its hash; None where there is none."""
        with self._storage_errors("read"), Session(self._engine) as session:
            row = session.get(PhotoRow, sha256)
            return None if row is None else self._read_row(row)

    def list_photos(self, state: PhotoState | None = None) -> list[InboxPhoto]:
        """Photos in one state, or all, the first that came first."""
        query = select(PhotoRow).order_by(PhotoRow.added, PhotoRow.sha256)
        if state is not None:
            query = query.where(PhotoRow.state == state)
        with self._storage_errors("read"), Session(self._engine) as session:
            return [self._read_row(row) for row in session.scalars(query)]

    def withdraw(self, sha256: str) -> InboxPhoto:
        """Take a waiting photo back: it is not learnt, and its file and row stay.

        Raises
        ------
        OptionError
            If there is no such photo.
        DataError
            If it was learnt already.
        """
        with self._storage_errors("write"), self._write() as session:
            row = session.get(PhotoRow, sha256, with_for_update=True)
            if row is None:
                raise OptionError(f"photo: wanted the sha256 of a photo of the inbox, got {sha256[:64]!a}")
            if row.state == "taught":
                raise DataError(
                    f"{sha256[:16]}: wanted a photo that waits, got one that was learnt as {row.label} in version "
                    f"{row.version}: bring the version before it back first"
                )
            row.state = "withdrawn"
            session.flush()
            photo = self._read_row(row)
            session.commit()
        return photo

    def settle(self, is_learnt: Callable[[InboxPhoto], bool], version: int) -> int:
        """Hold the inbox together with what a recogniser has learnt.

        A waiting photo that was learnt under its label is taught; a taught one that is not learnt any more waits again.

        Parameters
        ----------
        is_learnt : callable
            Whether the recogniser has learnt a photo, as what its label says.
        version : int
            Version of the recogniser.

        Returns
        -------
        int
            Photos whose state was changed.
        """
        n_changed = 0
        with self._storage_errors("write"), self._write() as session:
            query = select(PhotoRow).where(PhotoRow.state != "withdrawn").with_for_update()
            for row in session.scalars(query):
                learnt = is_learnt(self._read_row(row))
                if learnt == (row.state == "taught"):
                    continue
                row.state, row.version = ("taught", version) if learnt else ("waiting", None)
                n_changed += 1
            session.commit()
        return n_changed

    def list_lost(self) -> list[InboxPhoto]:
        """Photos whose file is not there, or not as it was: none, unless somebody meddled with the folder."""
        return [one for one in self.list_photos() if not _holds(one.path, one.sha256, one.n_bytes)]

    def _place(self, sha256: str, photo_format: str) -> Path:
        return self.folder / f"{sha256}.{'jpg' if photo_format == 'jpeg' else photo_format}"

    def _read_row(self, row: PhotoRow) -> InboxPhoto:
        return InboxPhoto(
            row.sha256,
            self._place(row.sha256, row.format),
            row.label,
            row.added,
            cast("PhotoState", row.state),
            row.version,
            row.n_bytes,
            cast("PhotoFormat", row.format),
        )

    def _write(self) -> Session:
        return Session(self._writer, expire_on_commit=False)

    @contextlib.contextmanager
    def _storage_errors(self, task: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()
            raise StorageError(
                f"could not {task} the inbox {self.shown}: {reason[0] if reason else type(error).__name__}"
            ) from error


def _holds(path: Path, sha256: str, n_bytes: int) -> bool:
    """Whether a file is the photo, whole."""
    with storage_errors(f"read {path}"):
        try:
            return path.stat().st_size == n_bytes and hash_file(path) == sha256
        except FileNotFoundError:
            return False


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        settings = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_S}
        return create_engine(url, pool_pre_ping=True, connect_args=settings)
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, tables changed within them too
        _begin_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # One that reads first and writes then would be refused where another wrote between the two.
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begins', 'DEFERRED')}")

    return engine


def _begin_wal(connection: Any) -> None:
    """Let readers and a writer work at once; a change of the mode does not wait for others as everything else does."""
    until_s = time.monotonic() + _BUSY_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)
        else:
            return  # one that cannot, as on some network disks, says so by its answer alone and goes on as it was
