"""Bytes of a photo file to upright sRGB pixels, or a reason why not.

In: the bytes or the path of one file, whatever its name says. Out: a uint8 array (H, W, 3), or a `PhotoError`.
Why: the only file that decodes an image, so that training, serving and the audit see the same pixels and no damaged,
huge or hostile file gets past it.

JPEG is decoded by libjpeg-turbo through `simplejpeg` where that is installed, everything else and every odd JPEG by
Pillow. Both give the same pixels; only the first notices damage in the middle of the data that libjpeg patches over.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from pomona.errors import OptionError, PhotoError, PhotoFault
from pomona.files import hash_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray
    from PIL import Image, ImageCms, ImageFile

PhotoFormat = Literal["jpeg", "png", "webp", "bmp", "gif", "tiff", "heic", "avif"]
"""File formats that can be decoded."""

DEFAULT_MAX_PIXELS = 60_000_000
"""Largest photo decoded unless another limit is named: more than cameras write as sold; its RGB takes 180 MB."""

DEFAULT_MAX_SCANS = 100
"""Most scans of a JPEG that is decoded unless another limit is named: cameras write up to ten, and each one costs a
walk over the whole photo, so that a small file of thousands keeps a core busy for minutes."""

MAX_FILE_BYTES = 2**30
"""Largest file that is read: more than any photo within the pixel limit needs, less than a machine's memory."""

MAX_PROFILE_BYTES = 2**22
"""Largest ICC profile that is used; those of printers take up to 3 MB, and the last ones used stay in memory."""

_FEW_PARTS = 2_000
_BYTES_PER_PART = {"jpeg": 2**10, "png": 2**9, "gif": 2**4}
"""A file may have the first number of segments, chunks or blocks, one more for so many bytes: empty ones cost time."""

_BAND_PIXELS = 2**21
"""Pixels that are brought to sRGB at once: the rest of a large photo waits as it was decoded."""

_PILLOW_NAMES: dict[PhotoFormat, str] = {
    "jpeg": "Jpeg",
    "png": "Png",
    "webp": "WebP",
    "bmp": "Bmp",
    "gif": "Gif",
    "tiff": "Tiff",
    "avif": "Avif",
}
_MAGICS: dict[PhotoFormat, tuple[bytes, ...]] = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "gif": (b"GIF87a", b"GIF89a"),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_STRANGERS = {
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"\x00\x00\x01\x00": "icon",
    b"%PDF": "PDF",
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_BMP_HEADER_SIZES = {12, 16, 40, 52, 56, 64, 108, 124}
_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_TAG_BITS, _TAG_PHOTOMETRIC, _TAG_ORIENTATION, _TAG_TILE_WIDTH, _TAG_TILE_HEIGHT = 258, 262, 274, 322, 323
_TAG_GPS = 34853
_GPS_PLACES = {2, 4}  # latitude and longitude in the directory that it leads to
_TRUNCATED = re.compile(
    r"truncat|premature|end of file|unexpected end|not enough|no more images|could not read|a buffer of", re.I
)
_NO_ROOM = re.compile(r"(out of|insufficient|not enough) memory|memory allocation", re.I)
_UNSUPPORTED = re.compile(r"cannot handle|unsupported|not (yet )?supported|unknown (pixel mode|compression)", re.I)
_JPEG_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])(..)", re.S)
"""Marker and length; fill bytes and the markers without a length are passed over."""
_PATCHED_OVER = re.compile(
    r"Corrupt JPEG data: (premature|bad Huffman|bad arith|found marker|\d+ extra.* marker 0xd[0-7])"
)
"""Warnings of libjpeg after which part of the photo is invented; stray bytes between whole segments are none."""


@dataclass(frozen=True)
class PhotoHeader:
    """What the first bytes of a photo say about it, read without decoding.

    Parameters
    ----------
    format : PhotoFormat
        By content, not by name.
    width_px, height_px : int
        Size after the EXIF orientation is applied.
    notes : tuple of str
        What is out of the ordinary, in this order: ``"cmyk"``, ``"palette"``, ``"grayscale"``, ``"alpha"``,
        ``"16-bit"``, ``"rotated"`` (or mirrored), ``"animated"`` (more than one frame or page), ``"icc"``, ``"gps"``
        (its EXIF says at which latitude or longitude it was taken).
    """

    format: PhotoFormat
    width_px: int
    height_px: int
    notes: tuple[str, ...] = ()


def sniff_format(head: bytes) -> PhotoFormat | None:
    """Format of a file by its first bytes, never by its name.

    Parameters
    ----------
    head : bytes
        First bytes of the file; 32 are enough.

    Returns
    -------
    PhotoFormat or None
        None if it is not one of the formats that can be decoded.

    Examples
    --------
    >>> sniff_format(bytes.fromhex("ffd8ffe0"))
    'jpeg'
    >>> sniff_format(b"<html>") is None
    True
    """
    for photo_format, magics in _MAGICS.items():
        if head.startswith(magics):
            return photo_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    return _sniff_brand(head) if head[4:8] == b"ftyp" else None


def _sniff_brand(head: bytes) -> PhotoFormat | None:
    box_end = min(int.from_bytes(head[:4], "big"), 32)
    major, compatible = head[8:12], {head[at : at + 4] for at in range(16, box_end, 4)}
    if major in _AVIF_BRANDS:
        return "avif"
    if major in _HEIC_BRANDS:
        return "heic"
    # The container brands say nothing about the codec; the compatible brands behind them do.
    if major in {b"mif1", b"msf1", b"miaf"}:
        return "avif" if compatible & _AVIF_BRANDS else "heic"
    return None


def read_header(data: bytes) -> PhotoHeader:
    """Format, size and oddities of a photo, without decoding it.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    PhotoHeader
        Its size is not checked against a pixel limit, and its pixels may still be damaged.

    Raises
    ------
    PhotoError
        If it is no photo or its header cannot be read.
    """
    photo_format = _require_format(data)
    with _photo_faults(data, photo_format):
        frame = _scan_jpeg(data) if photo_format == "jpeg" else None
        if frame is not None:
            return _jpeg_header(frame)
        with _QUIET_PILLOW:
            return _pillow_header(_open_image(data, photo_format), data, photo_format)


def decode_photo(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    at_least_px: int | None = None,
    max_scans: int = DEFAULT_MAX_SCANS,
) -> NDArray[np.uint8]:
    """Decode a photo to upright sRGB pixels.

    The EXIF orientation is applied, an ICC profile is converted to sRGB (relative colorimetric), CMYK, palette,
    16-bit and floating-point pixels become 8-bit RGB, and transparency is laid on white. Of an animation the first
    frame is taken. It may be called from several threads at once.

    Parameters
    ----------
    data : bytes
        The whole file.
    max_pixels : int
        Photos of more pixels are refused before anything is decoded, however small they would come out.
    at_least_px : int, optional
        A JPEG whose shorter side is at least 2, 4 or 8 times this comes out at a half, a quarter or an eighth of its
        size, rounded up; everything else, and all photos where it is not given, at full size.
    max_scans : int
        JPEGs of more scans are refused before anything is decoded.

    Returns
    -------
    NDArray[np.uint8], shape (H, W, 3)
        C-contiguous and writable.

    Raises
    ------
    PhotoError
        If it is no photo, too large, damaged or cut short, or of a kind that cannot be decoded.
    OptionError
        If `max_pixels`, `at_least_px` or `max_scans` is not positive.

    Notes
    -----
    A smaller JPEG is made of the low frequencies of each block of 8 x 8, which skips most of the work and is as good
    as the mean of 2 x 2, 4 x 4 or 8 x 8 pixels; all of the file is still read, so that damage is still seen.
    16-bit gray v becomes round(v / 257); of 16-bit colour the high byte is kept, at most one level beside it.
    Pillow refuses GIF, WebP and TIFF above twice its own `PIL.Image.MAX_IMAGE_PIXELS`, however high `max_pixels` is.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(file, "PNG")
    >>> photo = decode_photo(file.getvalue())
    >>> photo.shape, photo[0, 0].tolist()
    ((2, 3, 3), [255, 255, 255])
    """
    if max_pixels < 1:
        raise OptionError(f"max_pixels: wanted a positive number of pixels, got {max_pixels}")
    if at_least_px is not None and at_least_px < 1:
        raise OptionError(f"at_least_px: wanted a positive number of pixels, got {at_least_px}")
    if max_scans < 1:
        raise OptionError(f"max_scans: wanted a positive number of scans, got {max_scans}")
    photo_format = _require_format(data)
    with _photo_faults(data, photo_format):
        if photo_format == "jpeg":
            _require_scans(data, max_scans)
            return _decode_jpeg(data, max_pixels, at_least_px)
        with _QUIET_PILLOW:
            return _decode_pillow(data, photo_format, max_pixels)


def read_photo(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Read and decode a photo file; see `decode_photo`.

    Parameters
    ----------
    path : Path
        A regular file; its extension does not matter.
    max_pixels : int
        Photos of more pixels are refused before anything is decoded.

    Returns
    -------
    NDArray[np.uint8], shape (H, W, 3)
        Upright sRGB pixels.

    Raises
    ------
    PhotoError
        If it cannot be read or decoded; the message names the file.
    """
    data = read_photo_bytes(path)
    try:
        return decode_photo(data, max_pixels=max_pixels)
    except PhotoError as error:
        raise PhotoError(error.fault, f"{path}: {error}") from error


def read_photo_bytes(path: Path) -> bytes:
    """Read the bytes of a photo file without looking into them.

    Folders, pipes and devices are refused without being opened, so a folder of photos with a pipe in it never hangs.

    Parameters
    ----------
    path : Path
        A regular file.

    Returns
    -------
    bytes
        At least one byte.

    Raises
    ------
    PhotoError
        If it cannot be read, is no regular file, or is empty; the message names the file.
    """
    try:
        _require_regular_file(path, path.stat())
        data = _read_regular_file(path)
    except (OSError, ValueError) as error:
        raise PhotoError(*_file_fault(path, error)) from error
    except MemoryError as error:
        raise PhotoError("too_many_pixels", f"{path}: not enough memory to read it") from error
    if not data:
        raise PhotoError("empty", f"{path}: wanted a photo, the file has no bytes")
    return data


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


def _read_regular_file(path: Path) -> bytes:
    # The path may have become a pipe since it was looked at: not blocking on open makes that harmless.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        _require_regular_file(path, status)
        return b"".join(iter(lambda: os.read(descriptor, status.st_size + 2**16), b""))
    finally:
        os.close(descriptor)


def _require_regular_file(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise PhotoError("not_an_image", f"{path}: wanted a photo file, got a folder")
    if not stat.S_ISREG(status.st_mode):
        raise PhotoError("not_an_image", f"{path}: wanted a regular file, got a pipe, socket or device")
    if status.st_size > MAX_FILE_BYTES:
        raise PhotoError(
            "too_many_pixels", f"{path}: wanted at most {MAX_FILE_BYTES:,} bytes, got {status.st_size:,}: shrink it"
        )


def _file_fault(path: Path, error: OSError | ValueError) -> tuple[PhotoFault, str]:
    code = error.errno if isinstance(error, OSError) else None
    if code in {errno.EACCES, errno.EPERM}:
        return "no_permission", f"{path}: no permission to read it: change its access rights"
    if code in {errno.EIO, errno.ESTALE}:
        return "corrupt", f"{path}: the disk could not read it: {os.strerror(code or 0)}"
    reason = os.strerror(code) if code else str(error)
    return "not_found", f"{path}: wanted a photo file, it cannot be opened: {reason}"


def _require_format(data: bytes) -> PhotoFormat:
    if not data:
        raise PhotoError("empty", "wanted a photo, got no bytes")
    photo_format = sniff_format(data[:32])
    if photo_format is not None:
        return photo_format
    for magic, name in _STRANGERS.items():
        if data.startswith(magic):
            raise PhotoError("unsupported", f"{name} files cannot be decoded: convert it to JPEG or PNG")
    raise PhotoError(
        "not_an_image", f"wanted JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC or AVIF, the file begins with {data[:12]!r}"
    )


# --- faults ---------------------------------------------------------------------------------------------------------


class _QuietPillow:
    """Hides the warnings of Pillow's modules while at least one thread is inside.

    `warnings.catch_warnings` swaps the host program's whole filter list and is not safe with threads, and a host that
    turns warnings into errors would see them as decoding failures. One filter that names only the decoders, put in by
    the first thread and taken out by the last, leaves every other warning alone.
    """

    def __init__(self) -> None:
        self._filter = ("ignore", None, Warning, re.compile(r"(PIL|pillow_heif)(\.|$)"), 0)
        self._lock = threading.Lock()
        self._n_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._n_inside += 1
            # Looked up anew each time: leaving `catch_warnings` elsewhere in the program replaces the list.
            if self._filter not in warnings.filters:
                cast("list[Any]", warnings.filters).insert(0, self._filter)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside and self._filter in warnings.filters:
                cast("list[Any]", warnings.filters).remove(self._filter)


_QUIET_PILLOW = _QuietPillow()


@contextlib.contextmanager
def _photo_faults(data: bytes, photo_format: PhotoFormat) -> Iterator[None]:
    """Turn whatever a decoder raises into a `PhotoError`."""
    try:
        yield
    except PhotoError:
        raise
    # Third-party decoders on hostile bytes raise nearly every class there is, and which one changes between versions;
    # nothing but decoding happens inside, so no fault of Pomona's own can hide here from its tests.
    except Exception as error:
        fault = _fault_of(error, data, photo_format)
        reason = str(error).strip() or type(error).__name__
        if fault == "too_many_pixels":
            reason = "its header asks for more pixels than there is room for: shrink it"
        raise PhotoError(fault, f"this {photo_format.upper()} file cannot be decoded: {reason}") from error


def _fault_of(error: Exception, data: bytes, photo_format: PhotoFormat) -> PhotoFault:
    reason = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "DecompressionBombError" or _NO_ROOM.search(reason):
        return "too_many_pixels"
    if isinstance(error, ImportError):
        return "unsupported"
    if _TRUNCATED.search(reason) or isinstance(error, EOFError) or _ends_early(data, photo_format):
        return "truncated"
    if reason == "not identified by this driver":  # Pillow's words for a width or height of zero, or none at all
        return "no_pixels" if photo_format in {"bmp", "tiff"} else "truncated" if photo_format == "jpeg" else "corrupt"
    return "unsupported" if _UNSUPPORTED.search(reason) else "corrupt"


def _ends_early(data: bytes, photo_format: PhotoFormat) -> bool:
    """Whether a container says that it is longer than the data; its decoder says only that it failed."""
    if photo_format == "webp":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if photo_format == "tiff":
        return int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 2 > len(data)
    if photo_format not in {"heic", "avif"}:
        return False
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8 or not data[at + 4 : at + 8].isascii() or b"\0" in data[at + 4 : at + 8]:
            return False  # no box: what it says of its length says nothing
        at += size
    return at > len(data)


def _require_size(size_px: tuple[int, int], max_pixels: int) -> None:
    width_px, height_px = size_px
    if width_px < 1 or height_px < 1:
        raise PhotoError("no_pixels", f"wanted a photo, it is {width_px} x {height_px} pixels")
    if width_px * height_px > max_pixels:
        raise PhotoError(
            "too_many_pixels",
            f"wanted at most {max_pixels:,} pixels, it has {width_px} x {height_px} = {width_px * height_px:,}: "
            "shrink it",
        )


def _require_few(n_parts: int, data: bytes, photo_format: PhotoFormat, what: str) -> None:
    """Refuse a file that is made of so many parts, most of them empty, that reading them is all the work."""
    if n_parts > _FEW_PARTS and n_parts > _FEW_PARTS + len(data) // _BYTES_PER_PART[photo_format]:
        raise PhotoError("corrupt", f"this {photo_format.upper()} file has {n_parts:,} {what} or more: save it anew")


# --- orientation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Exif:
    """What matters of an EXIF block; what cannot be read is as if it were not there."""

    orientation: int = 1
    has_place: bool = False


def _read_exif(exif: bytes) -> _Exif:
    """Orientation 1-8 and whether there is a place, from an EXIF block with or without its ``Exif`` prefix."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return _Exif()
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        entries = _read_directory(tiff, order, at)
        return _Exif(_find_orientation(tiff, order, entries), _find_place(tiff, order, entries))
    except struct.error:
        return _Exif()


def _read_directory(tiff: bytes, order: str, at: int) -> dict[int, tuple[int, int]]:
    """Kind and offset of the value by tag, as far as there are bytes; of a tag that comes twice the first counts."""
    (n_entries,) = struct.unpack_from(f"{order}H", tiff, at)
    entries: dict[int, tuple[int, int]] = {}
    for entry in range(at + 2, min(at + 2 + 12 * n_entries, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        entries.setdefault(tag, (kind, entry + 8))
    return entries


def _find_orientation(tiff: bytes, order: str, entries: dict[int, tuple[int, int]]) -> int:
    kind, at = entries.get(_TAG_ORIENTATION, (0, 0))
    if kind not in {3, 4}:
        return 1
    value: int = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", tiff, at)[0]
    return value if 1 <= value <= 8 else 1


def _find_place(tiff: bytes, order: str, entries: dict[int, tuple[int, int]]) -> bool:
    """Whether there is a latitude or longitude; cameras write a version or a time alone where the place is withheld."""
    kind, at = entries.get(_TAG_GPS, (0, 0))
    if kind not in {4, 13}:
        return False
    (at,) = struct.unpack_from(f"{order}I", tiff, at)
    if at + 2 > len(tiff):
        return False
    return not _GPS_PLACES.isdisjoint(_read_directory(tiff, order, at))


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo how the camera was held.

    References
    ----------
    CIPA DC-008 (Exif 2.32), 4.6.4.A, tag 274: which sides of the scene row 0 and column 0 stand for.
    """
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.require(pixels, requirements=["C", "W"])


# --- JPEG -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _JpegFrame:
    width_px: int
    height_px: int
    n_components: int
    n_bits: int
    exif: _Exif
    profile: bytes | None


def _scan_jpeg(data: bytes) -> _JpegFrame | None:
    """Segments of a JPEG before its pixel data; None if no frame header is among them.

    A quarter of the time of Pillow's parser, and a plain photo is decoded without importing Pillow.
    """
    exif: _Exif | None = None
    profile_parts: list[bytes] = []
    frame: bytes | None = None
    at, n_segments = 2, 0
    while (found := _JPEG_SEGMENT.search(data, at)) and found[1] not in {b"\xd9", b"\xda"}:
        n_segments += 1
        _require_few(n_segments, data, "jpeg", "segments")
        marker, body = found[1][0], found.end()
        at = body - 2 + int.from_bytes(found[2], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            frame = frame or data[body:at]
        elif marker == 0xE1 and exif is None and data.startswith(b"Exif\0\0", body):
            exif = _read_exif(data[body:at])
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", body):
            profile_parts.append(data[body + 12 : at])
    if frame is None:
        return None
    n_bits, height_px, width_px, n_components = struct.unpack_from(">BHHB", frame)
    return _JpegFrame(width_px, height_px, n_components, n_bits, exif or _Exif(), _join_profile(profile_parts))


def _require_scans(data: bytes, max_scans: int) -> None:
    """Refuse a JPEG of too many scans.

    The two bytes of a scan's marker may stand in a thumbnail or in a film behind the photo too, so that only more of
    them than are allowed is a reason to walk from segment to segment, which is slower.
    """
    if data.count(b"\xff\xda") <= max_scans:
        return
    at, n_scans, n_segments = 2, 0, 0
    while (found := _JPEG_SEGMENT.search(data, at)) and found[1] != b"\xd9":
        n_segments += 1
        _require_few(n_segments, data, "jpeg", "segments")
        at = found.end() - 2 + int.from_bytes(found[2], "big")
        n_scans += found[1] == b"\xda"
        if n_scans > max_scans:
            raise PhotoError(
                "too_many_scans", f"wanted a JPEG of at most {max_scans:,} scans, it has more: save it as a plain JPEG"
            )


def _join_profile(parts: list[bytes]) -> bytes | None:
    """ICC profile from its numbered parts; None if there is none, a part is missing, or it is too large.

    References
    ----------
    ICC.1:2022, annex B.4: sequence number, number of parts, then the bytes.
    """
    parts = sorted(part for part in parts if len(part) > 2)
    if not parts or [part[0] for part in parts] != list(range(1, parts[0][1] + 1)):
        return None
    profile = b"".join(part[2:] for part in parts)
    return profile if len(profile) <= MAX_PROFILE_BYTES else None


def _jpeg_header(frame: _JpegFrame) -> PhotoHeader:
    _require_size((frame.width_px, frame.height_px), 2**32)
    noted = {
        "cmyk": frame.n_components == 4,
        "grayscale": frame.n_components == 1,
        "16-bit": frame.n_bits == 16,
        "rotated": frame.exif.orientation > 1,
        "icc": frame.profile is not None,
        "gps": frame.exif.has_place,
    }
    width_px, height_px = frame.width_px, frame.height_px
    if frame.exif.orientation >= 5:
        width_px, height_px = height_px, width_px
    return PhotoHeader("jpeg", width_px, height_px, tuple(note for note, holds in noted.items() if holds))


def _decode_jpeg(data: bytes, max_pixels: int, at_least_px: int | None) -> NDArray[np.uint8]:
    frame = _scan_jpeg(data)
    if frame is not None:
        _require_size((frame.width_px, frame.height_px), max_pixels)
        pixels = _decode_turbo(data, frame, at_least_px)
        if pixels is not None:
            if frame.profile is not None:
                _correct_colours(pixels, frame)
            return pixels if frame.exif.orientation == 1 else _turn_upright(pixels, frame.exif.orientation)
    with _QUIET_PILLOW:
        return _decode_pillow(data, "jpeg", max_pixels, at_least_px)


def _smallest_size(height_px: int, width_px: int, at_least_px: int | None) -> tuple[int, int]:
    """Height and width that a JPEG is decoded to; the choice and the rounding are those of Pillow's `draft`."""
    n_times = min(height_px, width_px) // at_least_px if at_least_px else 1
    divisor = next((n for n in (8, 4, 2) if n_times >= n), 1)
    return -(-height_px // divisor), -(-width_px // divisor)


def _decode_turbo(data: bytes, frame: _JpegFrame, at_least_px: int | None) -> NDArray[np.uint8] | None:
    """Pixels by libjpeg-turbo; None where Pillow shall decide."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None or frame.n_bits != 8 or frame.n_components not in {1, 3}:
        return None
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (frame.height_px, frame.width_px):
            return None
        height_px, width_px = _smallest_size(frame.height_px, frame.width_px, at_least_px)
        # It takes the smallest of its sizes, eighths of the whole, that is not below these.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height_px, min_width=width_px)
        return cast("NDArray[np.uint8]", pixels)
    except ValueError as error:
        if _PATCHED_OVER.match(str(error)):
            raise
        return None


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except (ImportError, ValueError):  # ValueError: built for another numpy
        return None
    return cast("ModuleType", simplejpeg)


def _correct_colours(pixels: NDArray[np.uint8], frame: _JpegFrame) -> None:
    """Bring pixels to sRGB in place by the profile of their file, if that can be used."""
    from PIL import Image

    mode = "L" if frame.n_components == 1 else "RGB"
    if _srgb_transform(frame.profile or b"", mode) is None:
        return
    for rows in _list_bands(*pixels.shape[:2]):
        band = np.ascontiguousarray(pixels[rows, :, 0] if mode == "L" else pixels[rows])
        pixels[rows] = np.asarray(_convert_to_srgb(Image.fromarray(band), frame.profile))


def _list_bands(height_px: int, width_px: int) -> Iterator[slice]:
    """Rows of a photo, as many at once as have `_BAND_PIXELS`."""
    n_rows = max(1, _BAND_PIXELS // width_px)
    for top in range(0, height_px, n_rows):
        yield slice(top, min(top + n_rows, height_px))


# --- everything else, through Pillow --------------------------------------------------------------------------------


def _open_image(data: bytes, photo_format: PhotoFormat) -> ImageFile.ImageFile:
    """Parse the header of an image.

    The plugin of the one format is called directly: `PIL.Image.open` would try others, warn about large images by a
    limit that belongs to the host program, and see HEIC only after a registration that the host program would notice.
    """
    # Pillow does not tell a size of zero from other faults in these.
    if photo_format == "gif" or (photo_format == "png" and data[12:16] == b"IHDR"):
        size_px = struct.unpack_from("<6xHH" if photo_format == "gif" else ">16xII", data)
        _require_size(cast("tuple[int, int]", size_px), 2**64)
    if photo_format == "png":
        for n_chunks, _ in enumerate(_png_chunks(data), start=1):
            _require_few(n_chunks, data, "png", "chunks")
    elif photo_format == "gif":
        _require_few_blocks(data)
    return _plugin(photo_format)(io.BytesIO(data))


@functools.cache
def _plugin(photo_format: PhotoFormat) -> type[ImageFile.ImageFile]:
    if photo_format != "heic":
        name = _PILLOW_NAMES[photo_format]
        module = importlib.import_module(f"PIL.{name}ImagePlugin")
        return cast("type[ImageFile.ImageFile]", getattr(module, f"{name}ImageFile"))
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise PhotoError(
            "unsupported", "HEIC photos need pillow-heif, which is not installed: pip install 'pomona[photo]'"
        ) from error
    return cast("type[ImageFile.ImageFile]", HeifImageFile)


def _image_orientation(image: ImageFile.ImageFile, data: bytes, photo_format: PhotoFormat) -> int:
    """Orientation that is still to be applied after the image is loaded."""
    if photo_format in {"tiff", "heic"}:
        return 1  # Pillow turns a TIFF on loading, libheif a HEIC
    return _image_exif(image, data, photo_format).orientation


def _image_exif(image: ImageFile.ImageFile, data: bytes, photo_format: PhotoFormat) -> _Exif:
    if photo_format == "jpeg":
        frame = _scan_jpeg(data)
        return frame.exif if frame else _Exif()
    if photo_format == "tiff":
        return _read_exif(data)  # an EXIF block has the build of a TIFF, and here is the file
    exif = image.info.get("exif")
    if exif is None and isinstance(text := image.info.get("Raw profile type exif"), str):
        with contextlib.suppress(ValueError):  # ImageMagick's EXIF in a PNG: two lines of heading, then hexadecimal
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return _read_exif(exif) if isinstance(exif, bytes) else _Exif()


def _pillow_header(image: ImageFile.ImageFile, data: bytes, photo_format: PhotoFormat) -> PhotoHeader:
    orientation = _image_orientation(image, data, photo_format)
    tags = getattr(image, "tag_v2", {})
    noted = {
        "cmyk": image.mode == "CMYK",
        "palette": image.mode in {"P", "PA"},
        "grayscale": image.mode in _GRAY_MODES,
        "alpha": image.has_transparency_data,
        "16-bit": 16 in (tags.get(_TAG_BITS) or ()) or "16B" in str([tile.args for tile in image.tile]),
        "rotated": 1 < max(orientation, tags.get(_TAG_ORIENTATION, 1), image.info.get("original_orientation") or 1) < 9,
        "animated": bool(getattr(image, "is_animated", False)),
        "icc": bool(image.info.get("icc_profile")),
        "gps": _image_exif(image, data, photo_format).has_place,
    }
    width_px, height_px = image.size if orientation < 5 else image.size[::-1]
    return PhotoHeader(photo_format, width_px, height_px, tuple(note for note, holds in noted.items() if holds))


def _decode_pillow(
    data: bytes, photo_format: PhotoFormat, max_pixels: int, at_least_px: int | None = None
) -> NDArray[np.uint8]:
    if photo_format == "webp":
        _require_size(_webp_canvas(data), max_pixels)  # Pillow takes room for it twice before it tells its size
    image = _open_image(data, photo_format)
    _require_size(image.size, max_pixels)
    if photo_format == "tiff":
        tags = cast("Any", image).tag_v2  # a tile is allocated whole, and may be larger than the image
        _require_size((tags.get(_TAG_TILE_WIDTH, 1), tags.get(_TAG_TILE_HEIGHT, 1)), max_pixels)
    orientation = _image_orientation(image, data, photo_format)
    if at_least_px is not None:
        cast("Any", image).draft(None, (at_least_px, at_least_px))
    image.load()
    if photo_format == "png":
        _check_png_rows(image, data)
    if photo_format in {"webp", "avif"}:
        vars(image).pop("_decoder", None)  # it holds every pixel of its own
    pixels = _flatten(image)
    del image  # turning takes a copy of the pixels: there are never three
    return _turn_upright(pixels, orientation)


@dataclass(frozen=True)
class _Look:
    """What is to be known of a whole image before it is brought to sRGB band by band."""

    profile: bytes | None
    is_clear: bool
    is_gray: bool
    white: int
    is_inverted: bool
    clear_level: int | None
    limits: tuple[float, float] | None


def _flatten(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) in sRGB, transparency laid on white."""
    width_px, height_px = image.size
    look = _look_at(image)
    pixels = np.empty((height_px, width_px, 3), np.uint8)
    for rows in _list_bands(height_px, width_px):
        pixels[rows] = np.asarray(_flatten_band(_take_band(image, rows), look))
    return pixels


def _take_band(image: Image.Image, rows: slice) -> Image.Image:
    return image.crop((0, rows.start, image.size[0], rows.stop))


def _look_at(image: ImageFile.ImageFile) -> _Look:
    tags = getattr(image, "tag_v2", {})
    profile, clear_level = image.info.get("icc_profile"), image.info.get("transparency")
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        profile = None
    return _Look(
        profile=profile,
        is_clear=image.has_transparency_data,
        is_gray=_is_gray(image, profile),
        white=2 ** int((tags.get(_TAG_BITS) or (16,))[0]) - 1,
        is_inverted=tags.get(_TAG_PHOTOMETRIC) == 0,
        clear_level=clear_level if isinstance(clear_level, int) else None,
        limits=_find_limits(image) if image.mode in {"I", "F"} else None,
    )


def _flatten_band(band: Image.Image, look: _Look) -> Image.Image:
    from PIL import Image

    is_clear = look.is_clear
    if band.mode.startswith("I;16"):
        band, is_clear = Image.fromarray(_scale_16_bit(np.asarray(band), look)), False
    elif look.limits is not None:
        band, is_clear = Image.fromarray(_stretch(np.asarray(band), *look.limits)), False
    if not is_clear:
        return _convert_to_srgb(band, look.profile, is_gray=look.is_gray)
    opaque = "L" if band.mode in _GRAY_MODES else "RGB"
    band = band.convert(f"{opaque}A")
    paper = Image.new("RGB", band.size, "white")
    picture = _convert_to_srgb(band.convert(opaque), look.profile, is_gray=look.is_gray)
    paper.paste(picture, mask=band.getchannel("A"))
    return paper


def _scale_16_bit(levels: NDArray[Any], look: _Look) -> NDArray[np.uint8]:
    white = look.white
    gray: NDArray[np.uint8] = ((np.minimum(levels, white).astype(np.uint32) * 255 + white // 2) // white).astype(
        np.uint8
    )
    if look.is_inverted:  # zero is white, which Pillow honours in 8 bits only
        gray = 255 - gray
    if look.clear_level is not None:
        gray[levels == look.clear_level] = 255
    return gray


def _find_limits(image: ImageFile.ImageFile) -> tuple[float, float]:
    """Smallest and largest number of an image without a fixed range; the same twice where it has none."""
    low, high = np.inf, -np.inf
    for rows in _list_bands(image.size[1], image.size[0]):
        values = np.asarray(_take_band(image, rows))
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low < high else (0.0, 0.0)


def _stretch(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Gray from numbers without a fixed range: their own smallest to black, their largest to white."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    shares = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (high - low)
    return cast("NDArray[np.uint8]", np.rint(shares * 255).astype(np.uint8))


# --- PNG ------------------------------------------------------------------------------------------------------------


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk."""
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, view[at + 8 : at + 8 + size]
        at += size + 12


def _check_png_rows(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse pixel data that ends properly but too soon; Pillow leaves the missing rows at zero."""
    width_px, height_px = image.size
    interlaced = data[28] == 1
    if not interlaced and image.crop((0, height_px - 1, width_px, height_px)).getbbox() is not None:
        return
    n_wanted, n_found = _png_data_size(data), 0
    inflater = zlib.decompressobj()
    for kind, content in _png_chunks(data):
        waiting: bytes | memoryview = content if kind == b"IDAT" else b""
        while waiting and n_found < n_wanted:
            n_found += len(inflater.decompress(waiting, min(n_wanted - n_found, _BAND_PIXELS)))
            waiting = inflater.unconsumed_tail
    if n_found < n_wanted:
        raise PhotoError("truncated", f"this PNG file holds {n_found:,} of the {n_wanted:,} bytes of its pixel data")


def _png_data_size(data: bytes) -> int:
    """Bytes of the filtered rows of a PNG before compression.

    References
    ----------
    ISO/IEC 15948 (PNG), 8.2: the seven passes of Adam7 as first column, first row, step of columns and of rows.
    """
    width_px, height_px, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    n_bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    n_bytes = 0
    for left, top, step_x, step_y in adam7 if interlaced else ((0, 0, 1, 1),):
        n_columns, n_rows = -((left - width_px) // step_x), -((top - height_px) // step_y)
        if n_columns > 0 and n_rows > 0:
            n_bytes += n_rows * (1 + (n_columns * n_bits + 7) // 8)
    return n_bytes


# --- GIF and WebP -----------------------------------------------------------------------------------------------------


def _require_few_blocks(data: bytes) -> None:
    """Refuse a GIF with too many blocks, or bytes between blocks, before its first frame."""
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10:11] >= b"\x80" else 0)
    n_blocks = 0
    while at < len(data) and data[at] != 0x2C:
        n_blocks += 1
        _require_few(n_blocks, data, "gif", "blocks")
        is_extension = data[at] == 0x21
        at += 2 if is_extension else 1
        while is_extension and at < len(data) and data[at]:
            n_blocks += 1
            _require_few(n_blocks, data, "gif", "blocks")
            at += 1 + data[at]
        at += is_extension


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP; 1 x 1 where its first chunk does not say.

    References
    ----------
    RFC 9649, 2.7 (VP8X), 3.4 (VP8L); RFC 6386, 9.1 (VP8).
    """
    head = data[12:30]
    if head[:4] == b"VP8X" and len(head) == 18:
        return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
    if head[:4] == b"VP8L" and len(head) > 12:
        bits = int.from_bytes(head[9:13], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[:4] == b"VP8 " and len(head) == 18:
        width_px, height_px = struct.unpack_from("<HH", head, 14)
        return width_px & 0x3FFF, height_px & 0x3FFF
    return 1, 1


# --- colour ---------------------------------------------------------------------------------------------------------


def _convert_to_srgb(image: Image.Image, profile: bytes | None, *, is_gray: bool = False) -> Image.Image:
    """RGB image, by its ICC profile if it has one that fits it, else by the plain formula."""
    space = profile[16:20] if profile else b""
    source: Image.Image | None = None
    if space == b"GRAY" and image.mode in _GRAY_MODES:
        source = image.convert("L")
    elif space == b"GRAY" and image.mode == "RGB" and is_gray:
        source = image.getchannel(0)
    elif (space == b"CMYK") == (image.mode == "CMYK") and space in {b"RGB ", b"CMYK"}:
        source = image if image.mode in {"CMYK", "RGB"} else image.convert("RGB")
    transform = None if source is None else _srgb_transform(cast("bytes", profile), source.mode)
    if source is None or transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply(source)


def _is_gray(image: ImageFile.ImageFile, profile: bytes | None) -> bool:
    """Whether an image with a gray profile has only grays; Pillow reads 16-bit gray with alpha as colour."""
    if profile is None or profile[16:20] != b"GRAY" or image.mode in _GRAY_MODES:
        return False
    for rows in _list_bands(image.size[1], image.size[0]):
        levels = np.asarray(_take_band(image, rows).convert("RGB"))
        if (levels[..., :1] != levels[..., 1:]).any():
            return False
    return True


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Conversion to sRGB; None if the profile cannot be used or converts nothing.

    The cache finds a profile by its hash; photos of one camera share one profile.
    """
    from PIL import ImageCms

    if profile[16:20] != {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}[mode]:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return None if mode != "CMYK" and _converts_nothing(transform, mode) else transform


def _converts_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a profile is sRGB in all but rounding; its name would be a weaker witness than its colours."""
    from PIL import Image

    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    levels = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    lattice = Image.fromarray(levels if mode == "RGB" else levels[..., 0])
    before = np.asarray(lattice.convert("RGB"), dtype=np.int16)
    return bool(np.abs(np.asarray(transform.apply(lattice), dtype=np.int16) - before).max() <= 2)
