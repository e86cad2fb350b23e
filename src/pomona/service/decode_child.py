"""The process that decodes: photo bytes in, the square that the network takes out.

In: requests on stdin. Out: replies on stdout, each with the number of its request.
Why: decoders are where hostile bytes do harm. Here they have a memory limit and no secrets, and whatever happens to
this process happens to it alone: `pomona.service.decode_worker` starts another.

It imports neither the engine nor the web framework, so that a new one is ready in a third of a second.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import mmap
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from pomona.backbone import Preprocessing
from pomona.errors import PhotoError, PomonaError
from pomona.photo import decode_photo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ASK = struct.Struct("<QcII")
"""Number of the request, what is wanted, lengths of the settings and of the photo that follow."""

REPLY = struct.Struct("<QcI")
"""Number of the request, what is given, length of what follows."""

SQUARE, THUMBNAIL = b"S", b"T"
PIXELS, SHARED, FAULT, FAILURE = b"P", b"M", b"F", b"X"
SHARED_BYTES = 4 * 2**20
THUMBNAIL_PX = 160

_AFTER_LIMIT_S = 2.0


def main() -> None:
    """Answer requests until there are no more."""
    memory_bytes, photo_s, shared_fd = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    # What a decoder prints belongs to nobody; the replies keep the real stdout for themselves.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    limit_memory(memory_bytes)
    # A square is handed over in memory that both processes see: through a pipe it cost as much as all of HTTP.
    shared = mmap.mmap(shared_fd, SHARED_BYTES) if shared_fd >= 0 else None
    with contextlib.suppress(BrokenPipeError):  # the service is gone
        _answer_all(sys.stdin.buffer, replies, shared, photo_s + _AFTER_LIMIT_S)


def limit_memory(n_bytes: int) -> None:
    """Let this process have no more memory than that, where the system can do so."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a photo has no business on the disk


def _answer_all(asked: BinaryIO, replies: BinaryIO, shared: mmap.mmap | None, limit_s: float) -> None:
    _send(replies, 0, PIXELS, b"")  # ready
    while len(head := asked.read(ASK.size)) == ASK.size:
        number, wanted, n_settings, n_photo = ASK.unpack(head)
        settings, photo = asked.read(n_settings), asked.read(n_photo)
        # The service ends a process that takes too long; this is for one whose service was killed meanwhile.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, limit_s)
        kind, content = answer(wanted, settings, photo)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if wanted == SQUARE and kind == PIXELS and shared is not None and len(content) <= SHARED_BYTES:
            shared[: len(content)] = content
            kind, content = SHARED, b""
        _send(replies, number, kind, content)


def _send(replies: BinaryIO, number: int, kind: bytes, content: bytes | memoryview) -> None:
    replies.write(REPLY.pack(number, kind, len(content)))
    left = memoryview(content)
    while left:
        left = left[replies.write(left) :]


def answer(wanted: bytes, settings: bytes, photo: bytes) -> tuple[bytes, bytes | memoryview]:
    """Do what is wanted with a photo.

    Parameters
    ----------
    wanted : {SQUARE, THUMBNAIL}
        The square that the network takes, or a small JPEG.
    settings : bytes
        JSON of `Preprocessing` and of the limits.
    photo : bytes
        Content of its file.

    Returns
    -------
    kind, content
        `PIXELS` with the square row by row or the JPEG; `FAULT` with fault and detail, or `FAILURE` with a message, as
        JSON.
    """
    try:
        preprocessing, max_pixels, max_scans = _read_settings(settings)
        if wanted == THUMBNAIL:
            pixels = decode_photo(photo, max_pixels=max_pixels, max_scans=max_scans, at_least_px=2 * THUMBNAIL_PX)
            return PIXELS, _draw_thumbnail(pixels)
        square = preprocessing.read(photo, max_pixels=max_pixels, max_scans=max_scans)
        return PIXELS, square.ravel().data.cast("B")
    except PhotoError as error:
        fault = "too_much_memory" if isinstance(error.__cause__, MemoryError) else error.fault
        return FAULT, json.dumps([fault, str(error)]).encode()
    except MemoryError:
        return FAULT, json.dumps(["too_much_memory", "wanted less memory than it takes to read it: shrink it"]).encode()
    except PomonaError as error:
        return FAILURE, json.dumps(str(error)).encode()


@functools.lru_cache(maxsize=4)
def _read_settings(settings: bytes) -> tuple[Preprocessing, int, int]:
    content = json.loads(settings)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content["read"].items()
    }
    return Preprocessing(**fields), content["max_pixels"], content["max_scans"]


def _draw_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture, content = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


if __name__ == "__main__":
    main()
