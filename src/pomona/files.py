"""Where files are and how they are written so that a crash never leaves half of one.

In: bytes and paths. Out: whole files, content hashes, the cache folder.
Why: the one file that knows where the cache is, and the one that turns an `OSError` on writing into a `StorageError`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.errors import OptionError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST_NAME = "pomona.json"
"""File that makes a folder a run; nothing in such a folder is a photo to learn from."""

SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
"""Files that file managers put into folders, in lower case."""

WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]+$')
"""What no name of a file may hold on Windows."""

PARTIAL_FILE = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
"""What `write_atomic` calls a file until it is whole; a killed process may leave one."""

_PAGE_ENDINGS = frozenset({".html", ".htm"})
_MARK_WITHIN = 1000
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ABANDONED_S = 24 * 3600


def cache_folder() -> Path:
    """Folder of everything that can be computed again.

    `POMONA_CACHE` names it; otherwise it is the platform's user cache folder.

    Returns
    -------
    Path
        The folder; it exists.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    if named := os.environ.get("POMONA_CACHE"):
        folder = Path(named).expanduser()
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "pomona" / "cache"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "pomona"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pomona"
    return make_folder(folder)


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and return it.

    Raises
    ------
    StorageError
        If it cannot be made: no permission, a file in the way, a full disk.
    """
    with storage_errors(f"make the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def storage_errors(task: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that says what failed and what to do.

    Parameters
    ----------
    task : str
        What was being done, as the end of "could not ...".
    """
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space, or name another place",
            errno.EDQUOT: "the disk quota is used up: free some space, or name another place",
            errno.EFBIG: "the file is larger than this system allows: free some space, or name another place",
            errno.EACCES: "no permission: choose a folder you may write to",
            errno.EROFS: "the file system is read-only: name another place",
            errno.EEXIST: "a file of that name is in the way: move it or name another place",
            errno.ENOTDIR: "a file stands where a folder was wanted: move it or name another place",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"could not {task}: {advice}") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one, whole.

    Parameters
    ----------
    path : Path
        Where the file goes; its folder exists.
    content : bytes or str
        Text is written as UTF-8 with unchanged newlines.

    Raises
    ------
    StorageError
        If it cannot be written; nothing is left behind.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with storage_errors(f"write {path}"):
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def check_page_place(path: Path, *, mark: bytes | None = None) -> None:
    """Refuse a place for a page where something else would be lost, before the work begins.

    Parameters
    ----------
    path : Path
        Where the page shall go.
    mark : bytes, optional
        What an earlier page has among its first 1,000 bytes: it may be replaced, whatever its name, and nothing else
        may. Without one the name has to tell a page from a photo, and the folder has to be there.

    Raises
    ------
    OptionError
        If there is no mark, and the file has another ending than ``.html`` or ``.htm``, or its folder is missing.
    StorageError
        If a folder stands there, or a file without the mark, or one that cannot be read.
    """
    if mark is None and path.suffix.lower() not in _PAGE_ENDINGS:
        raise OptionError(f"preview: wanted a file that ends in .html, got {path}")
    if mark is None and not path.parent.is_dir():
        raise OptionError(f"preview: wanted a file in a folder that exists, got {path}; make {path.parent} first")
    if path.is_dir():
        raise StorageError(f"{path}: wanted a place for a page, got a folder; name a file in it")
    if mark is not None and os.path.lexists(path):
        with storage_errors(f"read what stands at {path}"), path.open("rb") as stream:
            head = stream.read(_MARK_WITHIN)
        if mark not in head:
            raise StorageError(f"{path}: a file that is no preview stands there: move it or name another place")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Build a folder beside its final place and put it there whole at the end.

    A folder that stands at `target` is replaced in one step (Linux: `renameat2` with `RENAME_EXCHANGE`; elsewhere two
    renames) and removed after. If the block raises, `target` is as it was.

    Parameters
    ----------
    target : Path
        Where the folder shall stand; a link is followed.

    Yields
    ------
    Path
        An empty folder on the same file system to fill.

    Raises
    ------
    StorageError
        If it cannot be made or moved.
    """
    target = target.resolve()  # a link stays a link, and the folder behind it is replaced
    parent = make_folder(target.parent)
    _bring_back(parent, target)
    with build_folder(parent, target.name) as staging:
        yield staging
        with storage_errors(f"put {target} in place"):
            _replace_folder(staging, target)


@contextlib.contextmanager
def build_folder(parent: Path, name: str) -> Iterator[Path]:
    """Build a folder under a hidden name, locked as long as it is being built; whoever wants to keep it renames it.

    What killed processes left of the same name is removed first, and what is still there at the end is removed too.

    Parameters
    ----------
    parent : Path
        Where it is built; it exists.
    name : str
        What it is to be called.

    Yields
    ------
    Path
        An empty folder to fill.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    remove_abandoned(parent, re.escape(name))
    staging = parent / f".{name}.{secrets.token_hex(4)}.partial"
    with storage_errors(f"make the folder {staging}"):
        lock = _make_locked(staging)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def _make_locked(staging: Path) -> int:
    """Make a folder that is locked as long as this process lives; its descriptor. On Windows it is not."""
    if sys.platform == "win32":
        staging.mkdir()
        return os.open(os.devnull, os.O_RDONLY)
    # Under another name until it is locked: nobody else may think it was abandoned.
    making = staging.with_suffix(".making")
    making.mkdir()
    lock = os.open(making, os.O_RDONLY)
    _lock_folder(lock)
    making.rename(staging)
    return lock


def _lock_folder(descriptor: int) -> bool | None:
    """Whether a folder is ours from now on; None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in {errno.EWOULDBLOCK, errno.EACCES} else None
    return True


def remove_abandoned(parent: Path, name: str) -> None:
    """Remove what killed processes left of folders they were building.

    Parameters
    ----------
    parent : Path
        Where they were building.
    name : str
        What the folders were to be called, as a regular expression.

    Notes
    -----
    Who builds a folder holds a lock on it, which the system lets go of when the process ends, however it ends. Where
    there are no locks, and in the instant before there is one, a day is longer than any try takes.
    """
    left = re.compile(rf"\.(?:{name})\.[0-9a-f]{{8}}\.(?:partial|making)")
    with contextlib.suppress(OSError):  # another process may be doing the same
        for path in parent.iterdir():
            if left.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = None if sys.platform == "win32" else os.open(path, os.O_RDONLY)
    try:
        is_ours = None if descriptor is None or path.suffix == ".making" else _lock_folder(descriptor)
        if is_ours or (is_ours is None and time.time() - path.stat().st_mtime > _ABANDONED_S):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _bring_back(parent: Path, target: Path) -> None:
    """Put a folder back that a killed process had moved aside, where the system cannot exchange two at once."""
    left = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.partial\.old")
    with contextlib.suppress(OSError):
        for path in parent.iterdir():
            if left.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                if target.exists():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.rename(target)


def _replace_folder(new: Path, target: Path) -> None:
    if not target.exists():
        try:
            new.rename(target)
        except OSError as error:  # another process was quicker: its folder is replaced as an older one is
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
    if not target.is_dir():  # an exchange would succeed, and hide the user's file
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            done = libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
            if done == 0:
                return
    aside = new.with_name(f"{new.name}.old")
    target.rename(aside)
    new.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def hash_bytes(data: bytes) -> str:
    """Content hash of some bytes.

    Returns
    -------
    str
        sha256 as 64 hexadecimal digits.

    Examples
    --------
    >>> hash_bytes(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Content hash of a file, read in blocks.

    Returns
    -------
    str
        sha256 as 64 hexadecimal digits.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
