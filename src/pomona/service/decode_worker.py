"""A process that decodes photos, as its owner sees it: asked, watched, and replaced when it dies.

In: photo bytes. Out: the square that the network takes, or a `PhotoError`.
Why: one photo must never take more than itself down. A process that died is replaced and its photo tried again,
since another may have been to blame; one that takes too long is ended. Replies carry the number of their request, so
that none is ever taken for that of another photo.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import PhotoError, ServiceError
from pomona.photo import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SCANS
from pomona.service.decode_child import ASK, FAILURE, FAULT, REPLY, SHARED, SHARED_BYTES, SQUARE, THUMBNAIL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pomona.backbone import Preprocessing

_MB = 1_000_000
_CODE_MB = 64  # of a process's memory are its libraries, which the limit on data does not count
_PIPE_BYTES = 2**20
_START_S = 30.0
_STARTS = 5
_SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Memory of usual photos is kept from one to the next: asking the system for it each time took a tenth of decoding.
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
}
_NEEDED = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "WINDIR", "VIRTUAL_ENV"})
_NEEDED_PREFIXES = ("PYTHON", "LD_", "DYLD_", "LC_", "CONDA_")
_TRIES = 3  # the process may have been killed for another reason, even twice
_MODULE = "pomona.service.decode_child"


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one photo may take.

    Parameters
    ----------
    memory_mb : int
        Most memory of the process, its libraries among it.
    photo_s : float
        Longest time.
    max_pixels, max_scans : int
        As `pomona.photo.decode_photo` takes them.
    """

    memory_mb: int = 512
    photo_s: float = 5.0
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_scans: int = DEFAULT_MAX_SCANS

    def describe(self, preprocessing: Preprocessing) -> bytes:
        """What a process is told beside each photo."""
        content = {"read": asdict(preprocessing), "max_pixels": self.max_pixels, "max_scans": self.max_scans}
        return json.dumps(content, sort_keys=True).encode()


class _GoneError(Exception):
    """The process ended, or gave what nobody asked for."""


class DecodeWorker:
    """One process that decodes, and those that come after it.

    Parameters
    ----------
    limits : DecodeLimits
        What a photo may take.

    Notes
    -----
    It belongs to one thread, but for `end_overdue` and `close`.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self.n_restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_closed = False
        self._number = 0
        self._due_s: float | None = None
        self._is_overdue = False
        self._lock = threading.Lock()
        self._shared_fd, self._shared = _share_memory()

    @property
    def pid(self) -> int | None:
        """Number of the process that decodes now."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process without waiting for it."""
        with self._lock:
            if self._process is not None or self._is_closed:
                return
            memory_bytes = (self.limits.memory_mb - _CODE_MB) * _MB
            command = [sys.executable, "-m", _MODULE, str(memory_bytes), str(self.limits.photo_s), str(self._shared_fd)]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this Python, and numbers
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # what a decoder says of a photo is no line of the log
                    bufsize=0,
                    env={**_list_harmless(os.environ), **_SETTINGS},
                    pass_fds=() if self._shared_fd < 0 else (self._shared_fd,),
                    start_new_session=True,  # Ctrl-C is for the service, which ends it in its own time
                )
            except OSError as error:
                raise ServiceError(f"a process to decode photos could not be started: {error.strerror}") from error
            self._is_ready = False
            for pipe in (self._process.stdin, self._process.stdout):
                _widen(pipe)

    def read(self, preprocessing: Preprocessing, photo: bytes) -> NDArray[np.uint8]:
        """The square that the network takes.

        Parameters
        ----------
        preprocessing : Preprocessing
            How a photo becomes one.
        photo : bytes
            Content of its file.

        Returns
        -------
        ndarray of shape (size_px, size_px, 3), uint8
            To be used before the next photo is read: it may lie in memory that the process writes to.

        Raises
        ------
        PhotoError
            If it cannot be used, takes too long or too much memory, or ended the process each time.
        ServiceError
            If no process can be started, or lacks a package.
        """
        side = preprocessing.size_px
        content = self._ask_again(SQUARE, self.limits.describe(preprocessing), photo, 3 * side * side)
        return np.frombuffer(content, np.uint8, 3 * side * side).reshape(side, side, 3)

    def draw_thumbnail(self, preprocessing: Preprocessing, photo: bytes) -> bytes:
        """A small JPEG of a photo; see `read`."""
        return bytes(self._ask_again(THUMBNAIL, self.limits.describe(preprocessing), photo, None))

    def _ask_again(self, wanted: bytes, settings: bytes, photo: bytes, n_bytes: int | None) -> bytearray | mmap.mmap:
        for _ in range(_TRIES):
            self._await_ready()
            try:
                return self._ask(wanted, settings, photo, n_bytes)
            except _GoneError:
                was_overdue = self._is_overdue
                self._replace()
                if was_overdue:
                    raise PhotoError(
                        "took_too_long", f"wanted a photo that is read in {self.limits.photo_s:g} s, it takes longer"
                    ) from None
        raise PhotoError(
            "corrupt", "reading it ended the process that does so, again and again: it is damaged or hostile"
        )

    def _await_ready(self) -> None:
        for _ in range(_STARTS):
            if self._is_closed:
                break
            self.start()
            if self._is_ready:
                return
            self._watch(_START_S)
            try:
                self._read_reply(0)
            except _GoneError:
                self._replace()
            else:
                self._is_ready = True
                return
            finally:
                self._due_s = None
        raise ServiceError("a process to decode photos does not begin; there may be too little memory for it")

    def _ask(self, wanted: bytes, settings: bytes, photo: bytes, n_bytes: int | None) -> bytearray | mmap.mmap:
        self._number += 1
        self._watch(self.limits.photo_s)
        try:
            self._write(ASK.pack(self._number, wanted, len(settings), len(photo)) + settings)
            self._write(photo)
            kind, content = self._read_reply(self._number)
        finally:
            self._due_s = None
        if kind == FAULT:
            fault, detail = json.loads(content)
            raise PhotoError(fault, detail)
        if kind == FAILURE:
            raise ServiceError(json.loads(content))
        if kind == SHARED and self._shared is not None:
            return self._shared
        if n_bytes is not None and len(content) != n_bytes:
            raise _GoneError
        return content

    def _write(self, content: bytes) -> None:
        pipe = self._process.stdin if self._process else None
        left = memoryview(content)
        try:
            while left:
                if pipe is None:
                    raise _GoneError
                left = left[pipe.write(left) :]
        except (OSError, ValueError) as error:
            raise _GoneError from error

    def _read_reply(self, number: int) -> tuple[bytes, bytearray]:
        found, kind, n_bytes = REPLY.unpack(self._read_bytes(REPLY.size))
        if found != number:
            raise _GoneError
        return kind, self._read_bytes(n_bytes)

    def _read_bytes(self, n_bytes: int) -> bytearray:
        pipe = self._process.stdout if self._process else None
        content = bytearray(n_bytes)
        left = memoryview(content)
        try:
            while left:
                n_read = pipe.readinto(left) if pipe is not None else 0  # type: ignore[attr-defined]
                if not n_read:
                    raise _GoneError
                left = left[n_read:]
        except (OSError, ValueError) as error:
            raise _GoneError from error
        return content

    def _watch(self, limit_s: float) -> None:
        self._is_overdue = False
        self._due_s = time.monotonic() + limit_s

    def end_overdue(self) -> None:
        """End the process if its photo takes too long; its owner then starts another."""
        due_s, process = self._due_s, self._process
        if due_s is not None and process is not None and time.monotonic() > due_s:
            self._is_overdue = True
            process.kill()

    def _replace(self) -> None:
        self.n_restarts += 1
        self._drop()
        self.start()

    def _drop(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()

    def close(self) -> None:
        """End the process for good; the thread it belongs to then gets a `PhotoError` for what is under way."""
        self._is_closed = True
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def clear(self) -> None:
        """Give back what the process held; for the thread it belongs to, when it ends."""
        self._is_closed = True
        self._drop()
        if self._shared_fd >= 0:
            os.close(self._shared_fd)
            self._shared_fd = -1


def _list_harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """What Python needs of an environment; tokens and passwords in it are nothing to a process that reads photos."""
    return {
        name: value
        for name, value in environment.items()
        if name.upper() in _NEEDED or name.upper().startswith(_NEEDED_PREFIXES)
    }


def _share_memory() -> tuple[int, mmap.mmap | None]:
    """Memory that a process started later can see, where the system has such; -1 and None elsewhere."""
    if not hasattr(os, "memfd_create"):
        return -1, None
    try:
        shared_fd = os.memfd_create("pomona-square")
        os.ftruncate(shared_fd, SHARED_BYTES)
        return shared_fd, mmap.mmap(shared_fd, SHARED_BYTES)
    except OSError:
        return -1, None


def _widen(pipe: object) -> None:
    """Let a pipe hold a whole photo, so that its reader and its writer wake up once."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[attr-defined]
