"""Photos damaged on purpose, and a process that decodes them and says how each fared.

In: a range of numbers. Out: a line of JSON a photo; where the process dies, the last number that it began.
Why: decoders are C, so the process that meets hostile bytes is one that may die, and what it says must be on the disk
before it does. A number is always the same photo, so that what is found once can be looked at again.

    python tests/mutated_photos.py numbers RESULTS.jsonl FIRST COUNT
    python tests/mutated_photos.py bombs RESULTS.jsonl MB
    python tests/mutated_photos.py files RESULTS.jsonl AT_LEAST_PX FILE...

Seeds are made here, in every format and its variants. Mutations know how files are built: segments, chunks, boxes,
directories and blocks are doubled, dropped, moved and filled with extremes, checksums are mended where there are any,
scans and pixel data are multiplied; beside that there are flipped bits, noise, cuts and splices.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import struct
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms

from pomona.backbone import Preprocessing
from pomona.errors import PhotoError
from pomona.photo import decode_photo, read_header, sniff_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mutation = Callable[[bytes, random.Random], bytes]
    Span = tuple[int, int]

HANG_S = 10
"""A photo that takes so much processor time ends the process by SIGPROF, also inside a decoder."""

MAX_DATA_BYTES = 464_000_000
"""Memory of the process, as a decode process of the service has it: with its libraries it is 512 MB."""

MAX_FILE_BYTES, MAX_ROW_BYTES = 2**20, 2**24
EXTREMES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 2000, 7000, 0x7FFF, 0x8000, 60000, 0xFFFF)
EXTREMES += (10**6, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

# --- seeds ----------------------------------------------------------------------------------------------------------


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    if kind == "HEIF":
        from pillow_heif import HeifFile

        file = HeifFile()
        for one in (image, *options.pop("append_images", ())):
            file.add_from_pillow(one)
        file.save(stream, **options)
    else:
        image.save(stream, kind, **options)
    return stream.getvalue()


def _note(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def make_seeds() -> dict[str, bytes]:
    """One photo of each kind; the same on every call."""
    noise = np.random.default_rng(5).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    yy, xx = np.mgrid[0:96, 0:128]
    smooth = np.stack([yy * 2 % 256, xx * 2 % 256, (xx + yy) % 256], axis=-1).astype(np.uint8)
    rough, photo = Image.fromarray(noise), Image.fromarray(smooth)
    clear = photo.copy()
    clear.putalpha(Image.fromarray((xx * 2 % 256).astype(np.uint8)))
    deep = Image.fromarray((xx * 500 % 65536).astype(np.uint16))
    real = Image.fromarray((xx / 7.0 - yy).astype(np.float32))
    frames = [photo.rotate(90 * turn).resize((64, 48)) for turn in range(4)]
    film: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 40, "loop": 0}
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    seeds = {
        "jpeg": _save(photo, "JPEG", quality=92, subsampling=0),
        "jpeg 4:2:0": _save(photo, "JPEG", quality=60, subsampling=2, restart_marker_blocks=4),
        "jpeg noise": _save(rough, "JPEG", quality=99),
        "jpeg progressive": _save(photo, "JPEG", progressive=True),
        "jpeg grey": _save(photo.convert("L"), "JPEG"),
        "jpeg grey progressive": _save(photo.convert("L"), "JPEG", progressive=True),
        "jpeg cmyk": _save(photo.convert("CMYK"), "JPEG"),
        "jpeg cmyk progressive": _save(photo.convert("CMYK"), "JPEG", progressive=True),
        "jpeg exif": _save(photo, "JPEG", exif=_note(6), comment=b"a comment"),
        "jpeg icc": _save(photo, "JPEG", icc_profile=icc, exif=_note(3)),
        "jpeg lab icc": _save(photo, "JPEG", icc_profile=lab),
        "png": _save(photo, "PNG"),
        "png palette": _save(photo.quantize(16), "PNG", transparency=3),
        "png alpha": _save(clear, "PNG", icc_profile=icc, exif=_note(8)),
        "png 16 bit": _save(deep, "PNG"),
        "png grey": _save(photo.convert("L"), "PNG"),
        "png one bit": _save(photo.convert("1"), "PNG"),
        "png interlaced": make_interlaced_png(57, 43),
        "png animated": _save(frames[0], "PNG", **film),
        "webp": _save(photo, "WEBP", quality=70, exif=_note(5)),
        "webp lossless": _save(clear, "WEBP", lossless=True),
        "webp alpha": _save(clear, "WEBP", quality=50, icc_profile=icc),
        "webp animated": _save(frames[0], "WEBP", **film),
        "gif": _save(photo.quantize(32), "GIF"),
        "gif animated": _save(frames[0], "GIF", comment=b"words " * 60, **film),
        "gif clear": _save(photo.quantize(8), "GIF", transparency=2, interlace=1),
        "tiff": _save(photo, "TIFF"),
        "tiff lzw": _save(photo, "TIFF", compression="tiff_lzw", tiffinfo={278: 16}),
        "tiff deflate": _save(clear, "TIFF", compression="tiff_adobe_deflate", icc_profile=icc),
        "tiff jpeg": _save(photo, "TIFF", compression="jpeg"),
        "tiff packbits": _save(photo.convert("L"), "TIFF", compression="packbits"),
        "tiff group4": _save(photo.convert("1"), "TIFF", compression="group4"),
        "tiff 16 bit": _save(deep, "TIFF"),
        "tiff float": _save(real, "TIFF", compression="tiff_adobe_deflate"),
        "tiff pages": _save(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "tiff big": _save(photo, "TIFF", big_tiff=True),
        "tiff tiles": make_tiled_tiff(smooth),
        "bmp": _save(photo, "BMP"),
        "bmp palette": _save(photo.quantize(16), "BMP"),
        "avif": _save(photo, "AVIF", quality=60, speed=10, exif=_note(7)),
        "avif alpha": _save(clear.resize((64, 48)), "AVIF", quality=90, speed=10),
        "avif animated": _save(frames[0], "AVIF", speed=10, **film),
    }
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return seeds
    seeds |= {
        "heic": _save(photo, "HEIF", quality=60, exif=_note(6)),
        "heic alpha": _save(clear.resize((64, 64)), "HEIF", quality=-1),
        "heic pages": _save(frames[0], "HEIF", save_all=True, append_images=frames[1:]),
    }
    return seeds


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def make_interlaced_png(width_px: int, height_px: int) -> bytes:
    """Grey noise in the seven passes of Adam7, which Pillow does not write."""
    noise = np.random.default_rng(6).integers(0, 256, (height_px, width_px), dtype=np.uint8)
    rows = b""
    for left, top, step_x, step_y in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in noise[top::step_y, left::step_x])
    head = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 1)
    chunks = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def make_tiled_tiff(pixels: np.ndarray) -> bytes:
    """RGB in tiles of 32 x 32, deflated, which Pillow does not write."""
    height_px, width_px = pixels.shape[:2]
    tiles = [
        zlib.compress(pixels[y : y + 32, x : x + 32].tobytes())
        for y in range(0, height_px, 32)
        for x in range(0, width_px, 32)
    ]
    n = len(tiles)
    end = 8 + 2 + 12 * 11 + 4
    bits_at, offsets_at, counts_at = end, end + 6, end + 6 + 4 * n
    body_at = counts_at + 4 * n
    starts = [body_at + sum(map(len, tiles[:i])) for i in range(n)]
    entries = [
        (256, 4, 1, width_px), (257, 4, 1, height_px), (258, 3, 3, bits_at), (259, 3, 1, 8), (262, 3, 1, 2),
        (277, 3, 1, 3), (284, 3, 1, 1), (322, 4, 1, 32), (323, 4, 1, 32), (324, 4, n, offsets_at),
        (325, 4, n, counts_at),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0"
    tables = struct.pack("<3H", 8, 8, 8) + struct.pack(f"<{n}I", *starts) + struct.pack(f"<{n}I", *map(len, tiles))
    return head + tables + b"".join(tiles)


# --- how files are built --------------------------------------------------------------------------------------------


def find_parts(data: bytes) -> list[Span]:
    """Spans of the parts that a file is made of, by its format; whole lines of 64 bytes where that is not known."""
    found = {"jpeg": _jpeg_parts, "png": _png_parts, "webp": _riff_parts, "gif": _gif_parts, "tiff": _tiff_parts}
    kind = sniff_format(data[:32])
    parts = _box_parts(data, 0, len(data)) if kind in {"heic", "avif"} else found.get(kind or "", lambda _: [])(data)
    return [part for part in parts if part[0] < part[1] <= len(data)] or [
        (at, min(at + 64, len(data))) for at in range(0, len(data), 64)
    ]


def _jpeg_parts(data: bytes) -> list[Span]:
    parts, at = [], 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:  # a scan goes to the next marker
            while end + 1 < len(data) and not (data[end] == 0xFF and data[end + 1] not in {0, *range(0xD0, 0xD8)}):
                end += 1
        parts.append((at, end))
        at = max(end, at + 2)
    return parts


def _png_parts(data: bytes) -> list[Span]:
    parts, at = [], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts.append((at, end))
        at = end
    return parts


def _riff_parts(data: bytes) -> list[Span]:
    parts, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((at, at + 8 + size + size % 2))
        at = parts[-1][1]
    return parts


def _gif_parts(data: bytes) -> list[Span]:
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    parts = [(0, at)]
    while at < len(data) and data[at] in {0x21, 0x2C}:
        start = at
        if data[at] == 0x21:
            at += 2
        else:
            flags = data[at + 9] if at + 9 < len(data) else 0
            at += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        parts.append((start, at))
    return parts


def _tiff_parts(data: bytes) -> list[Span]:
    order = "<" if data[:1] == b"I" else ">"
    if len(data) < 16 or data[2:4] not in {b"*\0", b"\0*"}:
        return []
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    if at + 2 > len(data):
        return []
    (n,) = struct.unpack_from(f"{order}H", data, at)
    return [(at + 2 + 12 * i, at + 14 + 12 * i) for i in range(min(n, 100))]


def _box_parts(data: bytes, at: int, end: int, depth: int = 0) -> list[Span]:
    parts = []
    while at + 8 <= end:
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:
            break
        parts.append((at, at + size))
        kind = data[at + 4 : at + 8]
        if depth < 4 and kind in {b"meta", b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iinf"}:
            inner = at + 8 + {b"meta": 4, b"iinf": 6}.get(kind, 0)
            parts += _box_parts(data, inner, min(at + size, end), depth + 1)
        at += size
    return parts


# --- mutations ------------------------------------------------------------------------------------------------------


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    near = draw.random() < 0.5
    for _ in range(draw.choice((1, 1, 2, 4, 16, 64))):
        at = draw.randrange(min(len(out), 300) if near else len(out))
        out[at] ^= 1 << draw.randrange(8)
    return bytes(out)


def add_noise(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    at, n = draw.randrange(len(out)), draw.choice((1, 2, 8, 64, 512))
    out[at : at + n] = draw.randbytes(len(out[at : at + n]))
    return bytes(out)


def set_field(data: bytes, draw: random.Random) -> bytes:
    """A number of 1, 2, 4 or 8 bytes anywhere becomes an extreme one."""
    out = bytearray(data)
    size, order = draw.choice((1, 2, 2, 4, 4, 8)), draw.choice(("big", "little"))
    at = draw.randrange(min(len(out), 200) if draw.random() < 0.6 else len(out))
    value = draw.choice(EXTREMES) + draw.choice((-1, 0, 0, 1))
    out[at : at + size] = (value % 256**size).to_bytes(size, order)
    return bytes(out[: len(data)])


def set_part_field(data: bytes, draw: random.Random) -> bytes:
    """The same at the head of a part, where lengths and dimensions are."""
    start, end = draw.choice(find_parts(data))
    out = bytearray(data)
    size, order = draw.choice((1, 2, 2, 4, 4)), draw.choice(("big", "little"))
    at = start + draw.randrange(min(end - start, 28))
    value = draw.choice(EXTREMES) + draw.choice((-1, 0, 0, 1))
    out[at : at + size] = (value % 256**size).to_bytes(size, order)
    return bytes(out[: len(data)])


def fill_part(data: bytes, draw: random.Random) -> bytes:
    start, end = draw.choice(find_parts(data))
    head = min(start + draw.choice((4, 8, 12)), end)
    fill = draw.choice((b"\0", b"\xff", b"\x80", None))
    return data[:head] + (draw.randbytes(end - head) if fill is None else fill * (end - head)) + data[end:]


def double_part(data: bytes, draw: random.Random) -> bytes:
    start, end = draw.choice(find_parts(data))
    n = draw.choice((1, 1, 2, 10, 100, 2000))
    n = max(1, min(n, MAX_FILE_BYTES // (end - start)))
    return data[:end] + data[start:end] * n + data[end:]


def drop_part(data: bytes, draw: random.Random) -> bytes:
    start, end = draw.choice(find_parts(data))
    return data[:start] + data[end:]


def swap_parts(data: bytes, draw: random.Random) -> bytes:
    (a, b), (c, d) = sorted((draw.choice(find_parts(data)), draw.choice(find_parts(data))))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, len(data))]


def drop_bytes(data: bytes, draw: random.Random) -> bytes:
    at, n = draw.randrange(len(data)), draw.choice((1, 2, 16, 256))
    return data[:at] + data[at + n :]


def insert_bytes(data: bytes, draw: random.Random) -> bytes:
    at, n = draw.randrange(len(data)), draw.choice((1, 2, 16, 256, 5000))
    return data[:at] + (draw.randbytes(n) if draw.random() < 0.5 else draw.choice((b"\0", b"\xff")) * n) + data[at:]


def splice(data: bytes, draw: random.Random) -> bytes:
    other = draw.choice(list(SEEDS.values()))
    if draw.random() < 0.5:  # a part of the other file among the parts of this one
        start, end = draw.choice(find_parts(other))
        at = draw.choice(find_parts(data))[draw.randrange(2)]
        return data[:at] + other[start:end] + data[at:]
    return data[: draw.randrange(1, len(data))] + other[draw.randrange(len(other)) :]


def add_scans(data: bytes, draw: random.Random) -> bytes:
    """A JPEG with one of its scans many times; other formats get a part many times."""
    scans = (
        [part for part in _jpeg_parts(data) if data[part[0] + 1 : part[0] + 2] == b"\xda"]
        if data[:2] == b"\xff\xd8"
        else []
    )
    if not scans:
        return double_part(data, draw)
    start, end = draw.choice(scans)
    n = max(1, min(draw.choice((2, 20, 90, 300, 3000)), MAX_FILE_BYTES // (end - start)))
    scan = data[start:end] if draw.random() < 0.5 else data[start : min(start + 14, end)]
    return data[:end] + scan * n + data[end:]


def change_rows(data: bytes, draw: random.Random) -> bytes:
    """A PNG whose rows, uncompressed, are damaged, and whose header says something else; checksums are right."""
    if data[:4] != b"\x89PNG":
        return set_part_field(data, draw)
    parts = _png_parts(data)
    body = b"".join(data[a + 8 : b - 4] for a, b in parts if data[a + 4 : a + 8] == b"IDAT")
    try:
        rows = bytearray(zlib.decompressobj().decompress(body, MAX_ROW_BYTES))
    except zlib.error:
        return data
    if not rows:
        return data
    for _ in range(draw.choice((0, 1, 10))):
        rows[draw.randrange(len(rows))] = draw.randrange(256)
    rows = (rows[: draw.choice((len(rows), draw.randrange(len(rows)) + 1))] * draw.choice((1, 1, 1, 2, 100)))[
        :MAX_ROW_BYTES
    ]
    head = bytearray(data[16:29])
    if draw.random() < 0.6:
        at = draw.choice((0, 4, 8, 9, 10, 11, 12))
        value = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 60, 255, 70000, 2**31 - 1))
        head[at : at + (4 if at < 8 else 1)] = value.to_bytes(4, "big") if at < 8 else bytes([value % 256])
    others = [
        png_chunk(data[a + 4 : a + 8], data[a + 8 : b - 4])
        for a, b in parts[1:]
        if data[a + 4 : a + 8] not in {b"IDAT", b"IEND"}
    ]
    content = [png_chunk(b"IHDR", bytes(head)), *others, png_chunk(b"IDAT", zlib.compress(bytes(rows)))]
    return data[:8] + b"".join(content) + png_chunk(b"IEND", b"")


def mend_checksums(data: bytes) -> bytes:
    """A PNG with the right checksum behind every chunk, so that damage inside gets further than that."""
    if data[:4] != b"\x89PNG":
        return data
    out = bytearray(data)
    for a, b in _png_parts(data):
        if b <= len(out):
            out[b - 4 : b] = struct.pack(">I", zlib.crc32(out[a + 4 : b - 4]))
    return bytes(out)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, add_noise, set_field, set_part_field, set_part_field, fill_part, double_part, drop_part, swap_parts, cut,
    drop_bytes, insert_bytes, splice, add_scans, change_rows,
)  # fmt: skip
SEEDS: dict[str, bytes] = {}


def make_photo(number: int) -> tuple[str, str, bytes]:
    """Name of the seed, names of the mutations and content of one photo; seeds and first mutations take turns."""
    SEEDS.update(SEEDS or make_seeds())
    draw = random.Random(f"hostile {number}")
    names = list(SEEDS)
    name = names[number % len(names)]
    first = MUTATIONS[number // len(names) % len(MUTATIONS)]
    steps = [first, *(draw.choice(MUTATIONS) for _ in range(draw.choice((0, 0, 0, 1, 2, 4))))]
    data = SEEDS[name]
    for step in steps:
        data = step(data, draw)[: 2 * MAX_FILE_BYTES].ljust(2, b"\0")
    if draw.random() < 0.8:
        data = mend_checksums(data)
    return name, "+".join(step.__name__ for step in steps), data


# --- bombs ----------------------------------------------------------------------------------------------------------


def make_bombs(mb: int) -> Iterator[tuple[str, bytes]]:
    """Files that ask for more than they hold: memory, time or both; those that must be large have so many MB."""
    seeds = make_seeds()
    yield "png of 65,000 x 65,000", _build_png(65000, 65000, b"")
    bomb = zlib.compress(bytes(12_000_000 * mb))
    yield "png with pixel data for more", _build_png(8, 8, bomb)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        yield f"png with {kind.decode()} twelve times as large", _build_png(8, 8, b"", png_chunk(kind, head + bomb))
    for kind in (b"tEXt", b"abCd", b"IDAT"):
        yield (
            f"png of many {kind.decode()}",
            _build_png(8, 8, zlib.compress(bytes(200)), png_chunk(kind, b"") * (80_000 * mb)),
        )
    gif = seeds["gif"]
    at, frame = 13 + 3 * 2 ** ((gif[10] & 7) + 1), gif.index(b"\x2c", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    gifs = {
        "gif with a long comment": b"\x21\xfe" + (b"\xff" + b"a" * 255) * (4_000 * mb) + b"\0",
        "gif of many extensions": b"\x21\xf9\0" * (300_000 * mb),
        "gif of many comments": b"\x21\xfe\x01a\0" * (200_000 * mb),
        "gif of many pieces": b"\x21\xfe" + b"\x01a" * (500_000 * mb) + b"\0",
        "gif with much between": bytes(1_000_000 * mb),
    }
    for name, blocks in gifs.items():
        yield name, gif[:at] + blocks + gif[at:]
    yield "gif with a far frame", gif[: frame + 1] + struct.pack("<4H", 60000, 60000, 5000, 5000) + gif[frame + 9 :]
    yield "gif with a wide frame", gif[: frame + 1] + struct.pack("<4H", 0, 0, 65535, 900) + gif[frame + 9 :]
    yield "gif of many frames", gif[:-1] + gif[frame:-1] * (1_000_000 * mb // len(gif[frame:-1])) + b";"
    plain = _save(Image.new("RGB", (500, 500)), "JPEG")
    cmyk = _save(Image.new("CMYK", (500, 500)), "JPEG")
    yield "jpeg of many segments", plain[:2] + b"\xff\xfe\0\2" * (250_000 * mb) + plain[2:]
    yield "jpeg of many segments without length", plain[:2] + b"\xff\xfe\0\0" * (250_000 * mb) + plain[2:]
    yield "jpeg of many segments, cmyk", cmyk[:2] + b"\xff\xfe\0\2" * (250_000 * mb) + cmyk[2:]
    yield "jpeg with much fill", plain[:2] + b"\xff" * (1_000_000 * mb) + plain[2:]
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for n in range(3):
        yield (
            f"jpeg with a large profile, {n}",
            _save(Image.new("RGB", (50, 50)), "JPEG", icc_profile=icc + bytes(1_000_000 * mb + n)),
        )
    for side, n in ((500, 8000), (2000, 3000)):
        scans = _save(Image.new("RGB", (side, side), (90, 30, 20)), "JPEG", progressive=True, subsampling=0)
        start, end = [part for part in _jpeg_parts(scans) if scans[part[0] + 1] == 0xDA][-1]
        yield f"jpeg of {n:,} scans", scans[:end] + scans[start:end] * n + scans[end:]
        comment = b"\xff\xfe\0\2" * 100_000
        yield f"jpeg of {n:,} scans and empty segments", scans[:end] + comment + scans[start:end] * n + scans[end:]
    yield (
        "tiff of many strips",
        _build_tiff(
            1,
            4_000_000,
            [(273, 4, 250_000 * mb, 200), (278, 4, 1, 1), (279, 4, 250_000 * mb, 200)],
            b"\1\0\0\0" * (250_000 * mb),
        ),
    )
    many = [(40_000 + i, 7, 1_000_000 * mb, 8) for i in range(2_000)]
    yield (
        "tiff of 2,000 tags of all its bytes",
        _build_tiff(8, 8, [(273, 4, 1, 8), (279, 4, 1, 64), *many], bytes(1_000_000 * mb)),
    )
    yield (
        "tiff of 65,535 samples",
        _build_tiff(
            8, 8, [(258, 3, 65535, 8), (273, 4, 1, 8), (277, 3, 1, 65535), (279, 4, 1, 64)], b"\x08\0" * 70_000
        ),
    )
    loop = bytearray(seeds["tiff pages"])
    (start,) = struct.unpack_from("<I", loop, 4)
    (n,) = struct.unpack_from("<H", loop, start)
    struct.pack_into("<I", loop, start + 2 + 12 * n, start)
    yield "tiff whose pages go in a circle", bytes(loop)
    tiles = bytearray(seeds["tiff tiles"])
    for entry in (8 + 2 + 12 * 7, 8 + 2 + 12 * 8):
        struct.pack_into("<I", tiles, entry + 8, 60_000)
    yield "tiff with tiles of 60,000 x 60,000", bytes(tiles)
    webp = seeds["webp animated"]
    canvas, film = webp.index(b"VP8X") + 12, webp.index(b"ANMF")
    yield "webp of 16,384 x 16,384", webp[:canvas] + b"\xff\x3f\0" * 2 + webp[canvas + 6 :]
    yield "webp of 16 million x 16 million", webp[:canvas] + b"\xff" * 6 + webp[canvas + 6 :]
    shot = webp[film : film + 8 + int.from_bytes(webp[film + 4 : film + 8], "little")]
    for name, part in (
        ("frames", shot * (1_000_000 * mb // len(shot))),
        ("empty chunks", b"abcd\0\0\0\0" * (125_000 * mb)),
    ):
        long = webp[:film] + part + webp[film:]
        yield f"webp of many {name}", long[:4] + struct.pack("<I", len(long) - 8) + long[8:]
    for name in ("heic", "avif"):
        if name in seeds:
            large = _save(
                Image.new("RGB", (80 * mb, 80 * mb), (90, 30, 20)),
                "HEIF" if name == "heic" else "AVIF",
                **({} if name == "heic" else {"speed": 10}),
            )
            size = large.index(b"ispe") + 8
            yield f"{name} that says 64 x 64", large[:size] + struct.pack(">II", 64, 64) + large[size + 8 :]
    bmp = bytearray(seeds["bmp palette"])
    struct.pack_into("<I", bmp, 46, 2**31)
    yield "bmp with a palette of 2 billion", bytes(bmp)


def _build_png(width_px: int, height_px: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def _build_tiff(width_px: int, height_px: int, more: list[tuple[int, int, int, int]], tail: bytes) -> bytes:
    """A grey TIFF with the tags that are needed, those given, and bytes behind them."""
    tags = {
        256: (4, 1, width_px),
        257: (4, 1, height_px),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        277: (3, 1, 1),
    }
    tags |= {tag: (kind, count, value) for tag, kind, count, value in more}
    directory = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + b"\0\0\0\0" + tail


# --- the process ----------------------------------------------------------------------------------------------------


def read_peak_mb() -> float:
    """Most memory held since the last call."""
    with open("/proc/self/status", "rb") as stream:  # noqa: PTH123
        peak = next(int(line.split()[1]) for line in stream if line.startswith(b"VmHWM:"))
    with open("/proc/self/clear_refs", "wb") as stream:  # noqa: PTH123
        stream.write(b"5")
    return peak * 1024 / 1e6


def try_photo(data: bytes, number: int, at_least_px: int | None = None) -> str:
    """How a photo fares: the fault, ``"decoded"``, or what is wrong."""
    try:
        if number % 3 == 0:
            side_px = (None, 8, 24)[number // 3 % 3] if at_least_px is None else at_least_px or None
            pixels = decode_photo(data, at_least_px=side_px)
            good = pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape) > 0 and pixels.flags.c_contiguous
        elif number % 3 == 1:
            pixels = Preprocessing(64, fit=("squash", "crop", "pad")[number // 3 % 3], decode_px=64).read(data)
            good = pixels.shape == (64, 64, 3)
        else:
            header = read_header(data)
            return "header" if header.width_px > 0 and header.height_px > 0 else f"wrong: {header}"
    except PhotoError as error:
        return str(error.fault)
    except Exception as error:  # noqa: BLE001 - which ones get past `decode_photo` is the question
        return f"raised: {type(error).__name__}: {error}"
    return "decoded" if good and pixels.dtype == np.uint8 else f"wrong: {pixels.shape} {pixels.dtype}"


def list_photos(arguments: list[str]) -> Iterator[tuple[int, str, str, bytes, int | None]]:
    """Number, seed, steps, content and the least side that is wanted, None for all there is to try."""
    kind, *rest = arguments
    if kind == "numbers":
        first, count = map(int, rest)
        for number in range(first, first + count):
            yield (number, *make_photo(number), None)
    elif kind == "bombs":
        for number, (name, data) in enumerate(make_bombs(int(rest[0]))):
            yield number, name, "bomb", data, 0
    else:
        for number, path in enumerate(rest[1:]):
            with open(path, "rb") as stream:  # noqa: PTH123
                yield number, path, "file", stream.read(), int(rest[0])


def main() -> None:
    kind, place, *rest = sys.argv[1:]
    if kind != "files":
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff tells of every fault there
    with open(place, "a", buffering=1) as results:  # noqa: PTH123
        for number, name, steps, data, at_least_px in list_photos([kind, *rest]):
            results.write(f"{number}\n")
            read_peak_mb()
            signal.setitimer(signal.ITIMER_PROF, HANG_S)
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            outcome = try_photo(data, number if at_least_px is None else 0, at_least_px)
            cpu_s, wall_s = time.process_time() - started_cpu_s, time.perf_counter() - started_s
            signal.setitimer(signal.ITIMER_PROF, 0)
            row = {"number": number, "seed": name, "steps": steps, "outcome": outcome, "bytes": len(data)}
            cost = {"wall_s": round(wall_s, 4), "cpu_s": round(cpu_s, 4), "peak_mb": round(read_peak_mb(), 1)}
            results.write(json.dumps(row | cost) + "\n")


if __name__ == "__main__":
    main()
