"""Photos in every format, orientation and colour come out upright in sRGB; damaged ones come out as `PhotoError`."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, TiffImagePlugin

from pomona import photo
from pomona.errors import OptionError, PhotoError
from pomona.photo import PhotoFormat, PhotoHeader, decode_photo, read_header, read_photo, read_photo_bytes, sniff_format

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pillow_heif = pytest.importorskip("pillow_heif")

WIDTH_PX, HEIGHT_PX = 48, 32
COLOURS = [(200, 30, 40), (40, 170, 60), (30, 60, 200), (230, 210, 50)]
PILLOW_NAMES: dict[PhotoFormat, str] = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "gif": "GIF",
    "tiff": "TIFF",
    "avif": "AVIF",
}
# How a scene is stored by a camera that notes this orientation, as the transposition to do to the upright scene.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def paint_scene() -> Image.Image:
    """Four quadrants of different colours, wider than high: no two orientations of it look the same."""
    scene = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    scene[:16, :24], scene[:16, 24:], scene[16:, :24], scene[16:, 24:] = COLOURS
    return Image.fromarray(scene)


def encode(image: Image.Image, photo_format: PhotoFormat, **options: Any) -> bytes:
    file = io.BytesIO()
    if photo_format == "heic":
        pillow_heif.from_pillow(image).save(file, quality=-1, chroma=444, **options)
    else:
        lossless = {"jpeg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}, "avif": {"quality": 100}}
        image.save(file, PILLOW_NAMES[photo_format], **lossless.get(photo_format, {}), **options)
    return file.getvalue()


def note_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def fault_of(data: bytes, **options: Any) -> str:
    with pytest.raises(PhotoError) as caught:
        decode_photo(data, **options)
    return caught.value.fault


def corner_colours(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.array([pixels[8, 12], pixels[8, -12], pixels[-8, 12], pixels[-8, -12]], np.int16)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def build_png(width_px: int, height_px: int, depth: int, colour: int, rows: bytes, *, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width_px, height_px, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def build_profile(space: bytes, curve: bytes, primaries: tuple[tuple[float, float, float], ...] = ()) -> bytes:
    """A matrix or gray ICC profile, version 2, with the primaries given for D50."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    text = b"made for a test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(12 + 67)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0" + text, b"wtpt": xyz(white)}
    if primaries:
        for name, primary in zip("rgb", primaries, strict=True):
            tags[f"{name}XYZ".encode()] = xyz(primary)
            tags[f"{name}TRC".encode()] = curve
    else:
        tags[b"kTRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ ", b"", b"acsp"
    )
    head += bytes(68 - len(head)) + struct.pack(">3i", *(round(value * 65536) for value in white))
    return head + bytes(128 - len(head)) + table + body


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def srgb_curve() -> bytes:
    shares = np.linspace(0, 1, 1024)
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.rint(linear * 65535).astype(int))


RED, GREEN, BLUE = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


# --- which format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo_format", get_args(PhotoFormat))
def test_format_is_known_by_content(photo_format: PhotoFormat, tmp_path: Path) -> None:
    data = encode(paint_scene(), photo_format)
    assert sniff_format(data[:32]) == photo_format
    assert read_header(data) == PhotoHeader(
        photo_format, WIDTH_PX, HEIGHT_PX, ("palette",) if photo_format == "gif" else ()
    )
    path = tmp_path / "wrongly named.txt"
    path.write_bytes(data)
    assert np.abs(corner_colours(read_photo(path)) - COLOURS).max() <= 4
    assert np.array_equal(read_photo(path), decode_photo(data))


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"BMW drives on", None),
        (b"", None),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", "heic"),
        (b"\0\0\0\x1cftypisom\0\0\0\0mp41", None),
        (b"MM\0*\0\0\0\x08", "tiff"),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
    ],
)
def test_sniffing_odd_heads(head: bytes, wanted: str | None) -> None:
    assert sniff_format(head) == wanted


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty"),
        (b"<html>not a photo</html>", "not_an_image"),
        (b"%PDF-1.7", "unsupported"),
        (b"\xff\x0a jpeg xl", "unsupported"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "truncated"),
    ],
)
def test_no_photo_says_why(data: bytes, fault: str) -> None:
    assert fault_of(data) == fault
    with pytest.raises(PhotoError) as caught:
        read_header(data)
    assert caught.value.fault == fault


# --- orientation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("photo_format", ["jpeg", "png", "webp", "tiff", "avif", "heic"])
def test_every_orientation_comes_out_upright(photo_format: PhotoFormat, orientation: int) -> None:
    transposition = STORED_AS[orientation]
    scene = paint_scene()
    stored = scene if transposition is None else scene.transpose(transposition)
    data = encode(stored, photo_format, exif=note_orientation(orientation))
    pixels = decode_photo(data)
    assert pixels.shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.abs(corner_colours(pixels) - COLOURS).max() <= 4
    header = read_header(data)
    assert (header.width_px, header.height_px) == (WIDTH_PX, HEIGHT_PX)
    assert ("rotated" in header.notes) == (orientation > 1)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", note_orientation(9), b"Exif\0\0"])
@pytest.mark.parametrize("photo_format", ["jpeg", "png", "webp"])
def test_broken_exif_is_ignored(photo_format: PhotoFormat, exif: bytes) -> None:
    data = encode(paint_scene(), photo_format, exif=exif)
    assert np.abs(corner_colours(decode_photo(data)) - COLOURS).max() <= 4
    assert read_header(data).notes == ()


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_in_both_byte_orders(order: str) -> None:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entries = struct.pack(f"{order}HHHIHH", 1, 274, 3, 1, 6, 0)
    tiff = head + struct.pack(f"{order}I", 8) + entries
    stored = paint_scene().transpose(Image.Transpose.ROTATE_90)
    assert decode_photo(encode(stored, "jpeg", exif=b"Exif\0\0" + tiff)).shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_first_of_two_exif_segments_counts() -> None:
    segments = [struct.pack(">BBH", 255, 225, len(exif) + 2) + exif for exif in map(note_orientation, (6, 3))]
    data = encode(paint_scene().transpose(Image.Transpose.ROTATE_90), "jpeg")
    pixels = decode_photo(data[:2] + b"".join(segments) + data[2:])
    assert np.abs(corner_colours(pixels) - COLOURS).max() <= 4


def test_fill_bytes_before_a_segment() -> None:
    exif = note_orientation(6)
    data = encode(paint_scene().transpose(Image.Transpose.ROTATE_90), "jpeg")
    padded = data[:2] + b"\xff" * 9 + b"\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert decode_photo(padded).shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_orientation_of_imagemagick_png() -> None:
    exif = note_orientation(6)
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    extra = png_chunk(b"tEXt", b"Raw profile type exif\0" + text)
    assert decode_photo(build_png(3, 2, 8, 0, b"\0abc\0def", extra=extra))[..., 0].tolist() == [
        [100, 97],
        [101, 98],
        [102, 99],
    ]


# --- place ----------------------------------------------------------------------------------------------------------


def note_place(tags: dict[int, Any], orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    exif[34853] = tags
    return exif.tobytes()


PLACE = {1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 17.8)}


@pytest.mark.parametrize("photo_format", ["jpeg", "png", "webp", "tiff", "avif", "heic"])
def test_a_place_is_noted_in_every_format_with_exif(photo_format: PhotoFormat) -> None:
    exif = note_place(PLACE, orientation=6)
    assert read_header(encode(paint_scene(), photo_format, exif=exif)).notes == ("rotated", "gps")


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ({}, ()),
        ({0: b"\2\3\0\0", 29: "2024:05:01"}, ()),
        ({2: PLACE[2]}, ("gps",)),
        ({0: b"\2\3\0\0", 4: PLACE[4]}, ("gps",)),
    ],
    ids=["empty", "version and day", "latitude", "version and longitude"],
)
def test_only_a_latitude_or_longitude_is_a_place(tags: dict[int, Any], wanted: tuple[str, ...]) -> None:
    assert read_header(encode(paint_scene(), "jpeg", exif=note_place(tags))).notes == wanted


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "at", "wanted"),
    [(4, 38, ("rotated", "gps")), (13, 38, ("rotated", "gps")), (3, 38, ("rotated",)), (4, 2**32 - 1, ("rotated",))],
    ids=["long", "directory", "of a wrong kind", "leads nowhere"],
)
def test_a_place_in_both_byte_orders(order: str, kind: int, at: int, wanted: tuple[str, ...]) -> None:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    entries = struct.pack(f"{order}HHHIHHHHIII", 2, 274, 3, 1, 6, 0, 34853, kind, 1, at, 0)
    place = struct.pack(f"{order}HHHII", 1, 2, 5, 3, 0)
    data = encode(paint_scene(), "jpeg", exif=b"Exif\0\0" + head + entries + place)
    assert read_header(data).notes == wanted


def test_a_tag_that_comes_twice_counts_once() -> None:
    tiff = b"II*\0" + struct.pack("<IHHHIHHHHIHH", 8, 2, 274, 3, 1, 6, 0, 274, 3, 1, 3, 0)
    header = read_header(encode(paint_scene(), "jpeg", exif=b"Exif\0\0" + tiff))
    assert (header.width_px, header.height_px) == (HEIGHT_PX, WIDTH_PX)


# --- modes ----------------------------------------------------------------------------------------------------------


def test_alpha_is_laid_on_white_exactly() -> None:
    colours = np.arange(256, dtype=np.uint8)
    grid = np.zeros((256, 256, 4), np.uint8)
    grid[..., 0], grid[..., 1], grid[..., 3] = colours[:, None], 255 - colours[:, None], colours[None, :]
    values, alpha = grid[..., :3].astype(float), grid[..., 3:].astype(float) / 255
    wanted = np.floor(values * alpha + 255 * (1 - alpha) + 0.5 + 1e-9)
    for photo_format in ("png", "tiff"):
        data = encode(Image.fromarray(grid), photo_format)
        assert np.array_equal(decode_photo(data), wanted)
        assert "alpha" in read_header(data).notes
    gray = Image.fromarray(np.ascontiguousarray(grid[..., [0, 3]]))
    assert gray.mode == "LA"
    assert np.array_equal(decode_photo(encode(gray, "png"))[..., 1], wanted[..., 0])


@pytest.mark.parametrize("photo_format", ["webp", "avif", "heic"])
def test_clear_pixels_are_white_in_every_format(photo_format: PhotoFormat) -> None:
    scene = paint_scene().convert("RGBA")
    scene.paste((10, 20, 30, 0), (0, 0, 24, 16))
    pixels = decode_photo(encode(scene, photo_format))
    assert np.abs(corner_colours(pixels) - [(255, 255, 255), *COLOURS[1:]]).max() <= 4


def test_palette_transparency_is_white() -> None:
    palette = paint_scene().quantize(4)
    index = palette.getpixel((0, 0))
    for photo_format in ("png", "gif"):
        pixels = decode_photo(encode(palette, photo_format, transparency=index))
        assert np.array_equal(corner_colours(pixels), [(255, 255, 255), *COLOURS[1:]]), photo_format
    half = decode_photo(encode(palette, "png", transparency=bytes([128] * 4)))
    assert np.abs(corner_colours(half) - (255 - (255 - np.array(COLOURS)) * 128 / 255)).max() <= 0.51
    assert read_header(encode(palette, "png", transparency=index)).notes == ("palette", "alpha")


def test_one_transparent_colour_of_png_is_white() -> None:
    clear = png_chunk(b"tRNS", struct.pack(">H", 7))
    assert decode_photo(build_png(2, 1, 8, 0, b"\0\x07\x08", extra=clear))[0, :, 0].tolist() == [255, 8]
    data = build_png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 7, 2570), extra=clear)
    assert decode_photo(data)[0, :, 0].tolist() == [255, 10]


def test_16_bit_gray_is_scaled_exactly() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = np.floor(levels / 257 + 0.5)
    for data in (encode(Image.fromarray(levels), "png"), encode(Image.fromarray(levels), "tiff")):
        pixels = decode_photo(data)
        assert all(np.array_equal(pixels[..., channel], wanted) for channel in range(3))
        assert read_header(data).notes == ("grayscale", "16-bit")


@pytest.mark.parametrize("big_endian", [False, True])
def test_16_bit_gray_tiff_in_both_byte_orders(big_endian: bool) -> None:
    levels = np.array([[0, 257, 65535, 32896]], np.uint16)
    image = Image.frombytes("I;16B", (4, 1), levels.astype(">u2").tobytes()) if big_endian else Image.fromarray(levels)
    data = encode(image, "tiff")
    assert data[:2] == (b"MM" if big_endian else b"II")
    assert decode_photo(data)[0, :, 0].tolist() == [0, 1, 255, 128]


def test_16_bit_gray_tiff_with_white_at_zero() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    data = encode(Image.fromarray(np.array([[0, 65535]], np.uint16)), "tiff", tiffinfo=tags)
    data = (
        data
        if struct.pack("<HHIH", 262, 3, 1, 0) in data
        else data.replace(struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0))
    )
    assert decode_photo(data)[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(("colour", "n_channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_png(colour: int, n_channels: int) -> None:
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    channels = [levels.T, levels[::-1], levels[:, ::-1]][: 3 if n_channels > 2 else 1]
    if n_channels in {2, 4}:
        channels.append(np.full_like(levels, 65535))
    rows = np.stack(channels, axis=-1).astype(">u2")
    data = build_png(64, 64, 16, colour, b"".join(b"\0" + row.tobytes() for row in rows))
    pixels = decode_photo(data)
    wanted = np.rint(np.stack((channels[:3] if n_channels > 2 else channels[:1] * 3), axis=-1) / 257)
    assert np.abs(pixels - wanted).max() <= 1
    assert "16-bit" in read_header(data).notes


def test_16_bit_colour_tiff() -> None:
    levels = (np.arange(6 * 4 * 3, dtype=np.uint16) * 257 * 3).reshape(4, 6, 3)
    tags = {256: 6, 257: 4, 262: 2, 277: 3, 278: 4, 279: levels.nbytes}
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = {**{tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}}
    entries[258] = struct.pack("<HHII", 258, 3, 3, offset)
    entries[273] = struct.pack("<HHII", 273, 4, 1, offset + 6)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    data += bytes(4) + struct.pack("<3H", 16, 16, 16) + levels.astype("<u2").tobytes()
    assert np.array_equal(decode_photo(data), levels // 257)
    assert read_header(data).notes == ("16-bit",)


def test_float_tiff_is_stretched() -> None:
    values = np.array([[-1.0, 0.0, 1.0, np.nan, np.inf]], np.float32)
    assert decode_photo(encode(Image.fromarray(values), "tiff"))[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    assert not decode_photo(encode(Image.fromarray(np.full((2, 2), 7, np.float32)), "tiff")).any()
    widest = np.array([[-3e38, 3e38]], np.float32)
    assert decode_photo(encode(Image.fromarray(widest), "tiff"))[0, :, 0].tolist() == [0, 255]


def test_one_bit_and_gray() -> None:
    gray = paint_scene().convert("L")
    for photo_format in ("png", "bmp", "tiff", "gif"):
        assert np.array_equal(decode_photo(encode(gray, photo_format)), np.asarray(gray.convert("RGB")))
        bits = gray.convert("1", dither=Image.Dither.NONE)
        assert np.array_equal(decode_photo(encode(bits, photo_format)), np.asarray(bits.convert("RGB")))
    assert read_header(encode(gray, "jpeg")).notes == ("grayscale",)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), "black")]
    for photo_format in ("gif", "webp", "png", "avif", "tiff"):
        data = encode(
            paint_scene(), photo_format, save_all=True, append_images=[frames[0].resize((WIDTH_PX, HEIGHT_PX))]
        )
        assert np.abs(corner_colours(decode_photo(data)) - COLOURS).max() <= 4, photo_format
        assert "animated" in read_header(data).notes, photo_format


@pytest.mark.parametrize("photo_format", ["jpeg", "tiff"])
def test_cmyk_is_close_to_the_inks(photo_format: PhotoFormat) -> None:
    data = encode(paint_scene().convert("CMYK"), photo_format)
    assert np.abs(corner_colours(decode_photo(data)) - COLOURS).max() <= 6
    assert read_header(data).notes == ("cmyk",)


# --- colour profiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo_format", ["jpeg", "png", "webp", "tiff", "avif", "heic"])
def test_profile_changes_pixels_the_right_way(photo_format: PhotoFormat) -> None:
    swapped = build_profile(b"RGB ", srgb_curve(), (GREEN, RED, BLUE))
    data = encode(paint_scene(), photo_format, icc_profile=swapped)
    wanted = np.array(COLOURS)[:, [1, 0, 2]]
    assert np.abs(corner_colours(decode_photo(data)) - wanted).max() <= 5
    assert read_header(data).notes == ("icc",)


def test_display_p3_makes_colours_stronger() -> None:
    scene = Image.new("RGB", (8, 8), (200, 100, 100))
    pixels = decode_photo(encode(scene, "png", icc_profile=build_profile(b"RGB ", srgb_curve(), P3)))
    # Reference: linear P3 (0.5776, 0.1274, 0.1274) by the published matrix P3 -> sRGB, then the sRGB curve.
    assert np.abs(pixels[0, 0].astype(int) - (215, 93, 97)).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [
        build_profile(b"RGB ", srgb_curve(), (RED, GREEN, BLUE)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"not a profile at all",
        build_profile(b"RGB ", srgb_curve(), (GREEN, RED, BLUE))[:200],
        build_profile(b"CMYK", srgb_curve(), (GREEN, RED, BLUE)),
        build_profile(b"GRAY", gamma_curve(1.0)),
    ],
    ids=["srgb", "littlecms srgb", "junk", "cut", "of other inks", "of gray"],
)
@pytest.mark.parametrize("photo_format", ["jpeg", "png"])
def test_profile_without_effect_keeps_pixels(photo_format: PhotoFormat, profile: bytes) -> None:
    texture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    plain, tagged = encode(texture, photo_format), encode(texture, photo_format, icc_profile=profile)
    assert np.array_equal(decode_photo(tagged), decode_photo(plain))


@pytest.mark.parametrize("photo_format", ["jpeg", "png", "tiff"])
def test_gray_profile(photo_format: PhotoFormat) -> None:
    linear = build_profile(b"GRAY", gamma_curve(1.0))
    for mode in ("L", "LA") if photo_format == "png" else ("L",):
        data = encode(Image.new(mode, (8, 8), 55 if mode == "L" else (55, 255)), photo_format, icc_profile=linear)
        # Linear 55/255 is 0.2157, which sRGB writes as 0.502.
        assert np.abs(decode_photo(data).astype(int) - 128).max() <= 2


def test_gray_profile_of_16_bit_gray_with_alpha() -> None:
    linear = png_chunk(b"iCCP", b"gray\0\0" + zlib.compress(build_profile(b"GRAY", gamma_curve(1.0))))
    level = struct.pack(">HH", 55 * 257, 65535)
    pixels = decode_photo(build_png(1, 1, 16, 4, b"\0" + level, extra=linear))
    assert np.abs(pixels.astype(int) - 128).max() <= 2


def test_profile_of_a_palette_photo() -> None:
    swapped = build_profile(b"RGB ", srgb_curve(), (GREEN, RED, BLUE))
    data = encode(paint_scene().quantize(4), "png", icc_profile=swapped)
    assert np.abs(corner_colours(decode_photo(data)) - np.array(COLOURS)[:, [1, 0, 2]]).max() <= 5


def test_profile_in_several_segments() -> None:
    profile = build_profile(b"RGB ", srgb_curve(), (GREEN, RED, BLUE)) + bytes(100_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    data = encode(paint_scene(), "jpeg", icc_profile=profile)
    assert data.count(b"ICC_PROFILE\0") == 2
    assert np.abs(corner_colours(decode_photo(data)) - np.array(COLOURS)[:, [1, 0, 2]]).max() <= 5
    second = data.index(b"ICC_PROFILE\0", data.index(b"ICC_PROFILE\0") + 1)
    lost = data[:second] + b"ICC_PROFILX\0" + data[second + 12 :]
    assert np.abs(corner_colours(decode_photo(lost)) - COLOURS).max() <= 4


def test_profile_is_converted_before_transparency_and_turning() -> None:
    swapped = build_profile(b"RGB ", srgb_curve(), (GREEN, RED, BLUE))
    stored = paint_scene().convert("RGBA")
    stored.paste((10, 20, 30, 0), (0, 0, 24, 16))
    stored = stored.transpose(Image.Transpose.ROTATE_90)
    pixels = decode_photo(encode(stored, "png", icc_profile=swapped, exif=note_orientation(6)))
    wanted = [(255, 255, 255), *np.array(COLOURS)[1:, [1, 0, 2]]]
    assert np.abs(corner_colours(pixels) - wanted).max() <= 2


# --- the two JPEG decoders ------------------------------------------------------------------------------------------


@pytest.fixture
def without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    photo._simplejpeg.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    yield
    photo._simplejpeg.cache_clear()


def ordinary_jpegs() -> Iterator[bytes]:
    noise = np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    texture = Image.fromarray(noise).resize((101, 77), Image.Resampling.BICUBIC)
    for mode in ("RGB", "L"):
        for progressive in (False, True):
            for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
                for quality in (40, 90):
                    file = io.BytesIO()
                    texture.convert(mode).save(
                        file, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
                    )
                    yield file.getvalue()


def decode_both(
    data: bytes, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    fast = decode_photo(data, **options)
    with monkeypatch.context() as patch:
        patch.setattr(photo, "_simplejpeg", lambda: None)
        return fast, decode_photo(data, **options)


def test_both_decoders_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert photo._simplejpeg() is not None
    for data in ordinary_jpegs():
        fast, slow = decode_both(data, monkeypatch)
        assert np.array_equal(fast, slow)


def test_both_decoders_give_the_same_grocery_photos(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((shared / "data/grocery/train").rglob("*.jpg"))[::44]
    assert len(paths) >= 60
    for path in paths:
        fast, slow = decode_both(path.read_bytes(), monkeypatch)
        assert np.array_equal(fast, slow), path


@pytest.mark.usefixtures("without_simplejpeg")
def test_photos_decode_without_simplejpeg() -> None:
    assert photo._simplejpeg() is None
    stored = paint_scene().transpose(Image.Transpose.ROTATE_90)
    data = encode(stored, "jpeg", exif=note_orientation(6))
    assert np.abs(corner_colours(decode_photo(data)) - COLOURS).max() <= 4


def test_heic_without_pillow_heif_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(paint_scene(), "heic")
    photo._plugin.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PhotoError, match=r"pip install 'pomona\[photo\]'") as caught:
        decode_photo(data)
    assert caught.value.fault == "unsupported"


def test_heic_is_not_registered_with_pillow() -> None:
    decode_photo(encode(paint_scene(), "heic"))
    assert "HEIF" not in Image.OPEN


def test_a_plain_jpeg_needs_no_pillow() -> None:
    data = encode(paint_scene(), "jpeg", exif=note_orientation(3))
    script = (
        "import sys; from pomona.photo import decode_photo, read_header; data = sys.stdin.buffer.read();"
        "decode_photo(data); read_header(data); print('PIL' in sys.modules, 'simplejpeg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"True"]


# --- smaller JPEGs --------------------------------------------------------------------------------------------------


def smooth_jpeg(width_px: int, height_px: int, **options: Any) -> bytes:
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 256, (9, 13, 3), dtype=np.uint8))
    smooth = noise.resize((width_px, height_px), Image.Resampling.BICUBIC)
    return encode(smooth.convert(options.pop("mode", "RGB")), "jpeg", **options)


@pytest.mark.parametrize(
    ("at_least_px", "height_px", "width_px"),
    [(None, 201, 333), (101, 201, 333), (100, 101, 167), (51, 101, 167), (50, 51, 84), (25, 26, 42), (1, 26, 42)],
)
@pytest.mark.parametrize("turbo", [True, False], ids=["turbo", "pillow"])
def test_a_large_jpeg_comes_out_at_half_a_quarter_or_an_eighth(
    turbo: bool, monkeypatch: pytest.MonkeyPatch, at_least_px: int | None, height_px: int, width_px: int
) -> None:
    if not turbo:
        monkeypatch.setattr(photo, "_simplejpeg", lambda: None)
    data = smooth_jpeg(333, 201)
    whole, pixels = decode_photo(data), decode_photo(data, at_least_px=at_least_px)
    assert pixels.shape == (height_px, width_px, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    if pixels.shape == whole.shape:
        assert np.array_equal(pixels, whole)
    divisor = round(333 / width_px)
    inner = whole[: 201 // divisor * divisor, : 333 // divisor * divisor].astype(float)
    means = inner.reshape(201 // divisor, divisor, 333 // divisor, divisor, 3).mean(axis=(1, 3))
    assert np.abs(pixels[: means.shape[0], : means.shape[1]] - means).mean() < 1.5


def test_both_decoders_give_the_same_smaller_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in ordinary_jpegs():
        for at_least_px in (8, 16, 38, 39):
            fast, slow = decode_both(data, monkeypatch, at_least_px=at_least_px)
            assert fast.shape[0] == {8: 10, 16: 20, 38: 39, 39: 77}[at_least_px]
            assert np.array_equal(fast, slow)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_a_smaller_jpeg_is_never_too_small(width_px: int, height_px: int, at_least_px: int) -> None:
    pixels = decode_photo(smooth_jpeg(width_px, height_px), at_least_px=at_least_px)
    divisor = round(width_px / pixels.shape[1]) if width_px > 8 else None
    assert min(pixels.shape[:2]) >= min(at_least_px, width_px, height_px)
    assert (pixels.shape[:2] == (height_px, width_px)) == (min(width_px, height_px) < 2 * at_least_px or divisor == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_jpeg_comes_out_upright(orientation: int) -> None:
    transposition = STORED_AS[orientation]
    scene = paint_scene().resize((192, 128), Image.Resampling.NEAREST)
    stored = scene if transposition is None else scene.transpose(transposition)
    pixels = decode_photo(encode(stored, "jpeg", exif=note_orientation(orientation)), at_least_px=32)
    assert pixels.shape == (32, 48, 3)
    assert np.abs(corner_colours(pixels) - COLOURS).max() <= 4


def test_a_smaller_jpeg_keeps_its_colours() -> None:
    swapped = build_profile(b"RGB ", srgb_curve(), (GREEN, RED, BLUE))
    scene = paint_scene().resize((192, 128), Image.Resampling.NEAREST)
    tagged = decode_photo(encode(scene, "jpeg", icc_profile=swapped), at_least_px=32)
    assert np.abs(corner_colours(tagged) - np.array(COLOURS)[:, [1, 0, 2]]).max() <= 5
    cmyk = decode_photo(encode(scene.convert("CMYK"), "jpeg"), at_least_px=32)
    assert cmyk.shape == tagged.shape == (32, 48, 3)
    assert np.abs(corner_colours(cmyk) - COLOURS).max() <= 6


@pytest.mark.parametrize("photo_format", sorted(set(get_args(PhotoFormat)) - {"jpeg"}))
def test_other_formats_stay_whole(photo_format: PhotoFormat) -> None:
    data = encode(paint_scene(), photo_format)
    assert np.array_equal(decode_photo(data, at_least_px=4), decode_photo(data))


def test_the_pixel_limit_counts_the_whole_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    data = smooth_jpeg(64, 48)
    for _ in range(2):
        assert decode_photo(data, max_pixels=64 * 48, at_least_px=6).shape == (6, 8, 3)
        assert fault_of(data, max_pixels=64 * 48 - 1, at_least_px=6) == "too_many_pixels"
        monkeypatch.setattr(photo, "_simplejpeg", lambda: None)


def test_at_least_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="at_least_px: wanted a positive number of pixels, got 0"):
        decode_photo(smooth_jpeg(8, 8), at_least_px=0)


def fault_or_shape(data: bytes, **options: Any) -> str | tuple[int, ...]:
    try:
        return decode_photo(data, **options).shape
    except PhotoError as error:
        return error.fault


@pytest.mark.parametrize("turbo", [True, False], ids=["turbo", "pillow"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["jpeg", "progressive jpeg", "cmyk jpeg"]), st.floats(0, 1), st.integers(0, 255), st.booleans())
def test_damage_is_seen_at_every_size(
    turbo: bool, monkeypatch: pytest.MonkeyPatch, name: str, share: float, value: int, cut: bool
) -> None:
    data = bytearray(SOURCES[name])
    at = int(share * (len(data) - 1))
    data[at:] = b"" if cut else bytes([value]) + data[at + 1 :]
    with monkeypatch.context() as patch:
        if not turbo:
            patch.setattr(photo, "_simplejpeg", lambda: None)
        whole = fault_or_shape(bytes(data))
        for at_least_px in (3, 6, 12):
            smaller = fault_or_shape(bytes(data), at_least_px=at_least_px)
            assert smaller == whole if isinstance(whole, str) else isinstance(smaller, tuple)


def test_dirty_files_fare_the_same_at_every_size(shared: Path) -> None:
    folder = shared / "data/dirty_images"
    n_smaller = 0
    for name, verdict in VERDICTS.items():
        data = (folder / name).read_bytes()
        for at_least_px in (16, 64, 100):
            got = fault_or_shape(data, at_least_px=at_least_px)
            if isinstance(verdict, str):
                assert got == verdict, name
            elif sniff_format(data[:32]) != "jpeg":
                assert got == (*verdict, 3), name
            else:
                divisor = next((n for n in (8, 4, 2) if min(verdict) >= n * at_least_px), 1)
                assert got == (-(-verdict[0] // divisor), -(-verdict[1] // divisor), 3), name
                n_smaller += divisor > 1
    assert n_smaller >= 25


def test_a_resized_photo_hardly_shows_how_it_was_decoded(shared: Path) -> None:
    folder = shared / "data/dirty_images"
    for name in ("exif_orientation/Landscape_6.jpg", "exif_orientation/Portrait_3.jpg", "sharp/Landscape_6.jpg"):
        data = (folder / name).read_bytes()
        for at_least_px in (64, 128, 200):
            square = (at_least_px, at_least_px)
            whole, smaller = (
                np.asarray(Image.fromarray(pixels).resize(square, Image.Resampling.BILINEAR), np.int16)
                for pixels in (decode_photo(data), decode_photo(data, at_least_px=at_least_px))
            )
            assert np.abs(whole - smaller).mean() < 2.5, (name, at_least_px)


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo_format", get_args(PhotoFormat))
def test_pixel_limit_is_inclusive(photo_format: PhotoFormat) -> None:
    data = encode(paint_scene(), photo_format)
    assert decode_photo(data, max_pixels=WIDTH_PX * HEIGHT_PX).shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert fault_of(data, max_pixels=WIDTH_PX * HEIGHT_PX - 1) == "too_many_pixels"


@pytest.mark.parametrize("photo_format", get_args(PhotoFormat))
def test_pixel_limit_comes_before_decoding(photo_format: PhotoFormat) -> None:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, photo_format)
    cut = data[: len(data) * 3 // 4] if photo_format not in {"webp", "tiff", "avif"} else data
    assert fault_of(cut, max_pixels=64) == "too_many_pixels"
    if cut != data:
        assert fault_of(cut) in {"truncated", "corrupt"}


def test_large_photo_raises_no_warning_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for photo_format in PILLOW_NAMES:
        data = encode(paint_scene(), photo_format)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH_PX * HEIGHT_PX * 2 // 3)
        assert decode_photo(data).shape == (HEIGHT_PX, WIDTH_PX, 3)
        monkeypatch.undo()


def test_huge_png_is_refused_by_its_header() -> None:
    assert fault_of(build_png(2**30, 2**30, 8, 0, b"")) == "too_many_pixels"
    assert fault_of(build_png(0, 5, 8, 0, b"")) == "no_pixels"
    assert fault_of(encode(paint_scene(), "gif")[:6] + bytes(2) + encode(paint_scene(), "gif")[8:]) == "no_pixels"


@pytest.mark.parametrize("photo_format", ["jpeg", "bmp", "tiff"])
def test_zero_width(photo_format: PhotoFormat) -> None:
    data = bytearray(encode(paint_scene(), photo_format))
    if photo_format == "jpeg":
        at = data.index(b"\xff\xc0") + 7
        data[at : at + 2] = bytes(2)
    elif photo_format == "bmp":
        data[18:22] = bytes(4)
    else:
        at = data.index(struct.pack("<HHI", 256, 4, 1) if data[10:12] != b"\0\x01" else b"\0\x01")
        data[at + 8 : at + 12] = bytes(4)
    assert fault_of(bytes(data)) == "no_pixels"


def test_tile_larger_than_the_image_is_refused() -> None:
    entries = [(256, 4), (257, 4), (258, 8), (259, 5), (262, 1), (322, 2**15), (323, 2**15), (324, 8), (325, 4)]
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    assert fault_of(data) == "too_many_pixels"


def test_limit_that_is_no_limit() -> None:
    with pytest.raises(OptionError, match="max_pixels"):
        decode_photo(encode(paint_scene(), "png"), max_pixels=0)


# --- damage ---------------------------------------------------------------------------------------------------------


def damaged_sources() -> dict[str, bytes]:
    noise = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    texture = Image.fromarray(noise)
    sources: dict[str, bytes] = {name: encode(texture, name) for name in get_args(PhotoFormat)}
    sources["progressive jpeg"] = encode(texture, "jpeg", progressive=True, exif=note_orientation(6))
    sources["cmyk jpeg"] = encode(texture.convert("CMYK"), "jpeg")
    sources["palette png"] = encode(texture.quantize(16), "png", transparency=3)
    sources["lzw tiff"] = encode(texture, "tiff", compression="tiff_lzw")
    sources["profile webp"] = encode(texture, "webp", icc_profile=build_profile(b"RGB ", srgb_curve(), P3))
    return sources


SOURCES = damaged_sources()


@pytest.mark.parametrize("turbo", [True, False], ids=["turbo", "pillow"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SOURCES)), st.floats(0, 1))
def test_a_cut_photo_is_whole_or_refused(turbo: bool, monkeypatch: pytest.MonkeyPatch, name: str, share: float) -> None:
    data = SOURCES[name]
    cut = data[: min(int(share * len(data)), len(data) - 1)]
    with monkeypatch.context() as patch:
        if not turbo:
            patch.setattr(photo, "_simplejpeg", lambda: None)
        try:
            pixels = decode_photo(cut)
        except PhotoError as error:
            assert error.fault in {"truncated", "corrupt", "empty", "not_an_image"}  # noqa: PT017
        else:
            assert np.array_equal(pixels, decode_photo(data))


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "png", "bmp", "gif", "webp", "avif", "lzw tiff"])
def test_half_a_photo_is_called_truncated(name: str) -> None:
    data = SOURCES[name]
    assert fault_of(data[: len(data) // 2]) == "truncated"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SOURCES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(1, 4)), min_size=1, max_size=6),
    st.booleans(),
)
def test_mutated_bytes_raise_nothing_but_photo_errors(
    name: str, mutations: list[tuple[float, int, int]], near_start: bool
) -> None:
    data = bytearray(SOURCES[name])
    for share, value, length in mutations:
        at = int(share * (min(len(data), 200) if near_start else len(data) - 1))
        data[at : at + length] = bytes([value]) * length
    for read in (decode_photo, read_header):
        try:
            result = read(bytes(data))
        except PhotoError:
            continue
        assert isinstance(result, PhotoHeader) or (result.dtype == np.uint8 and result.shape[2] == 3)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(SOURCES)), st.binary(max_size=200))
def test_junk_behind_a_true_beginning(name: str, junk: bytes) -> None:
    for read in (decode_photo, read_header):
        try:
            read(SOURCES[name][:20] + junk)
        except PhotoError as error:
            assert str(error)  # noqa: PT017


def test_jpeg_closed_too_early_is_truncated() -> None:
    for name in ("jpeg", "progressive jpeg"):
        data = SOURCES[name]
        assert fault_of(data[: len(data) // 2] + b"\xff\xd9") == "truncated"


def test_stray_bytes_at_the_end_of_a_jpeg_do_no_harm() -> None:
    data = SOURCES["jpeg"]
    assert np.array_equal(decode_photo(data + b"trailer"), decode_photo(data))
    assert np.array_equal(decode_photo(data[:-2] + bytes(5) + data[-2:]), decode_photo(data))


@pytest.mark.parametrize("n_rows", [1, 5, 9])
def test_png_whose_data_end_too_soon(n_rows: int) -> None:
    row = b"\0" + bytes([200] * 24)
    assert decode_photo(build_png(8, 10, 8, 2, row * 10)).min() == 200
    assert fault_of(build_png(8, 10, 8, 2, row * n_rows)) == "truncated"


def test_black_png_is_whole() -> None:
    assert not decode_photo(build_png(8, 10, 8, 2, bytes(25 * 10))).any()
    for mode in ("RGB", "L", "1", "RGBA", "LA"):
        assert decode_photo(encode(Image.new(mode, (9, 5)), "png")).shape == (5, 9, 3)


def test_interlaced_png_whole_and_cut() -> None:
    # Adam7 of 5 x 5 gray pixels: the columns and rows of its seven passes; the last pass does not touch the last row.
    passes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2)]
    rows = b"".join((b"\0" + bytes([200] * n_columns)) * n_rows for n_columns, n_rows in passes)
    for n_lost in (0, 1, 12):
        data = bytearray(build_png(5, 5, 8, 0, rows[: len(rows) - n_lost]))
        data[28] = 1
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        if n_lost:
            assert fault_of(bytes(data)) == "truncated"
        else:
            assert decode_photo(bytes(data)).tolist() == [[[200] * 3] * 5] * 5


def test_png_with_changed_pixels_is_corrupt() -> None:
    file = io.BytesIO()
    paint_scene().save(file, "PNG", compress_level=0)
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 1
    assert fault_of(bytes(data)) == "corrupt"


def test_strange_but_honest_jpegs_are_called_unsupported() -> None:
    data = SOURCES["jpeg"]
    at = data.index(b"\xff\xc0")
    assert fault_of(data[: at + 4] + b"\x0c" + data[at + 5 :]) == "unsupported"


# --- warnings and threads -------------------------------------------------------------------------------------------


def warning_png() -> bytes:
    """A PNG that calls itself an animation of no frames: Pillow warns and takes the picture."""
    return build_png(2, 1, 8, 0, b"\0\x07\x08", extra=png_chunk(b"acTL", bytes(8)))


def test_pillow_warnings_do_not_escape() -> None:
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(warning_png()))
    filters = list(warnings.filters)
    assert decode_photo(warning_png())[0, :, 0].tolist() == [7, 8]
    assert read_header(warning_png()).width_px == 2
    assert list(warnings.filters) == filters
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode_photo(warning_png())
        assert not seen
        warnings.simplefilter("error")
        decode_photo(warning_png())
        with photo._QUIET_PILLOW, pytest.raises(UserWarning, match="of the host"):
            warnings.warn("of the host", stacklevel=1)


def test_threads_give_the_same_pixels() -> None:
    sources = [
        *SOURCES.values(),
        warning_png(),
        encode(paint_scene(), "jpeg", icc_profile=build_profile(b"RGB ", srgb_curve(), P3)),
    ]
    filters = list(warnings.filters)
    photo._srgb_transform.cache_clear()
    wanted = [decode_photo(data) for data in sources]
    photo._srgb_transform.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        for pixels, index in zip(pool.map(decode_photo, sources * 8), list(range(len(sources))) * 8, strict=True):
            assert np.array_equal(pixels, wanted[index])
    assert list(warnings.filters) == filters


# --- files ----------------------------------------------------------------------------------------------------------


def file_fault(path: Path) -> tuple[str, str]:
    with pytest.raises(PhotoError) as caught:
        read_photo_bytes(path)
    assert str(path) in str(caught.value)
    with pytest.raises(PhotoError) as again:
        read_photo(path)
    assert str(again.value) == str(caught.value)
    return caught.value.fault, str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert file_fault(empty)[0] == "empty"
    assert file_fault(tmp_path / "missing.jpg")[0] == "not_found"
    assert file_fault(tmp_path)[0] == "not_an_image"
    assert file_fault(empty / "below a file.jpg")[0] == "not_found"
    assert file_fault(tmp_path / ("long" * 100))[0] == "not_found"
    assert file_fault(tmp_path / "zero\0byte")[0] == "not_found"
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    assert file_fault(loop)[0] == "not_found"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in the file system")
def test_pipes_and_devices_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert file_fault(tmp_path / "pipe.jpg")[0] == "not_an_image"
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    assert file_fault(tmp_path / "device.jpg")[0] == "not_an_image"
    with pytest.raises(PhotoError, match="pipe"):
        photo._read_regular_file(tmp_path / "pipe.jpg")


def test_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as stream:
        stream.truncate(photo.MAX_FILE_BYTES + 1)
    assert file_fault(path)[0] == "too_many_pixels"


def test_permission_and_disk_faults(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    assert photo._file_fault(path, PermissionError(errno.EACCES, "denied"))[0] == "no_permission"
    assert photo._file_fault(path, OSError(errno.EIO, "broken"))[0] == "corrupt"
    if os.name == "posix" and os.geteuid():
        path.write_bytes(b"x")
        path.chmod(0)
        assert file_fault(path)[0] == "no_permission"


def test_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(SOURCES["jpeg"][:400])
    with pytest.raises(PhotoError, match=r"half\.jpg: this JPEG file cannot be decoded"):
        read_photo(path)
    assert read_photo_bytes(path) == SOURCES["jpeg"][:400]


# --- real files -----------------------------------------------------------------------------------------------------

VERDICTS: dict[str, tuple[int, int] | str] = {
    "exif_orientation/Landscape_1.jpg": (1200, 1800),
    "exif_orientation/Landscape_6.jpg": (1200, 1800),
    "exif_orientation/Landscape_8.jpg": (1200, 1800),
    "exif_orientation/Portrait_3.jpg": (1800, 1200),
    "heif/heif/RGB_8__128x128.heif": (128, 128),
    "heif/heif/zPug_3.heic": (64, 64),
    "heif/heif_corrupted/corrupted.heic": "corrupt",
    "heif/heif_corrupted/empty.heic": "empty",
    "heif/heif_truncated/truncated.heic": (16, 16),  # its second picture is cut off, its photo is whole
    "pillow/apng/mode_16bit.png": (64, 128),
    "pillow/avif/exif.avif": (512, 512),
    "pillow/broken.png": "corrupt",
    "pillow/broken_data_stream.png": "corrupt",
    "pillow/decompression_bomb.gif": "too_many_pixels",
    "pillow/exif_typeerror.jpg": (531, 800),
    "pillow/hopper.bmp": (128, 128),
    "pillow/hopper.gif": (128, 128),
    "pillow/hopper.webp": (128, 128),
    "pillow/hopper_16bit_qtables.jpg": (128, 128),
    "pillow/hopper_gray.jpg": (128, 128),
    "pillow/hopper_orientation_6.jpg": (128, 128),
    "pillow/hopper_orientation_6.webp": (128, 128),
    "pillow/invalid-exif.jpg": (200, 200),
    "pillow/pil123p.png": (150, 162),
    "pillow/pil_sample_cmyk.jpg": (100, 100),
    "pillow/sugarshack_bad_mpo_header.jpg": (480, 640),
    "pillow/tiff_16bit_RGB.tiff": (40, 100),
    "pillow/transparent.png": (150, 200),
    "pillow/truncated_app14.jpg": (100, 100),
    "pillow/truncated_image.png": "truncated",
    "pillow/truncated_jpeg.jpg": "truncated",
    "pillow/zero_width.gif": "no_pixels",
    "sharp/16-bit-grey-alpha.png": (96, 109),
    "sharp/Channel_digital_image_CMYK_color.jpg": (333, 500),
    "sharp/Landscape_6.jpg": (450, 600),
    "sharp/big-height.webp": (169, 13),
    "sharp/corrupt-header.jpg": "truncated",
    "sharp/giant-image.jpg": "too_many_pixels",
    "sharp/truncated.jpg": "truncated",
    "sharp/truncated.png": "truncated",
}


def test_verdict_on_every_dirty_file(shared: Path) -> None:
    folder = shared / "data/dirty_images"
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("LICENSE")]
    got: dict[str, tuple[int, ...] | str] = {}
    for path in files:
        try:
            got[path.relative_to(folder).as_posix()] = read_photo(path).shape[:2]
        except PhotoError as error:
            got[path.relative_to(folder).as_posix()] = error.fault
    assert got == VERDICTS


def mean_difference(one: Path, other: Path) -> float:
    return float(np.abs(read_photo(one).astype(np.int16) - read_photo(other)).mean())


def test_dirty_files_that_show_the_same_scene(shared: Path) -> None:
    folder = shared / "data/dirty_images"
    landscapes = folder / "exif_orientation"
    for name in ("Landscape_6.jpg", "Landscape_8.jpg"):
        assert mean_difference(landscapes / "Landscape_1.jpg", landscapes / name) < 8
    hopper = folder / "pillow/hopper.bmp"
    for name in ("hopper.gif", "hopper.webp", "hopper_orientation_6.jpg", "hopper_orientation_6.webp"):
        assert mean_difference(hopper, folder / "pillow" / name) < 12, name


def test_dirty_files_have_the_right_colours(shared: Path) -> None:
    folder = shared / "data/dirty_images"
    red = read_photo(folder / "pillow/pil_sample_cmyk.jpg")[2, 8]
    assert red[0] > 200
    assert red[1:].max() < 60
    assert read_photo(folder / "pillow/apng/mode_16bit.png")[0, 0].tolist() == [255, 0, 0]
    assert read_photo(folder / "pillow/transparent.png")[0, 0].tolist() == [255, 255, 255]
    red, green, blue = read_photo(folder / "sharp/Channel_digital_image_CMYK_color.jpg")[200:230, 30:60].mean(
        axis=(0, 1)
    )
    assert green > red > blue  # a lawn
    rainbow = read_photo(folder / "heif/heif/RGB_8__128x128.heif")
    assert rainbow[5, 5].argmax() == 2
    assert rainbow[-5, 5].argmax() == 0


def test_fruit_boxes_all_decode(shared: Path) -> None:
    paths = sorted((shared / "data/fruit_boxes/train").glob("*.jpg"))
    headers = {path: read_header(path.read_bytes()) for path in paths}
    odd = [path for path, header in headers.items() if header.format != "jpeg" or header.notes]
    assert sum(headers[path].format == "png" for path in odd) == 33
    for path in odd:
        header = headers[path]
        assert read_photo(path).shape == (header.height_px, header.width_px, 3), path


MEASURE = """
import json, os, sys
from pathlib import Path
from pomona.errors import PhotoError
from pomona.photo import read_photo
peaks = {}
for path in map(Path, json.load(sys.stdin)):
    child = os.fork()
    if not child:
        try:
            read_photo(path)
        except PhotoError:
            pass
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    peaks[str(path)] = usage.ru_maxrss * 1024 if status == 0 else -1
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_no_dirty_file_takes_a_gigabyte(shared: Path) -> None:
    paths = [str(shared / "data/dirty_images" / name) for name in VERDICTS]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=json.dumps(paths), capture_output=True, text=True, check=True
    )
    peaks = json.loads(done.stdout)
    assert len(peaks) == len(VERDICTS)
    assert min(peaks.values()) > 0
    assert max(peaks.values()) < 500_000_000, max(peaks, key=lambda name: peaks[name])
