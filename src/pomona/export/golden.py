"""Golden photos: files of every kind, and what the bundle makes of them at each stage.

In: a bundle. Out: photos rendered from a seed and encoded in many ways, with their pixels, square and answers; the same
as files for other languages.
Why: what runs the recogniser elsewhere is held to them, and who writes such a thing can tell at which stage it is off.
"""

from __future__ import annotations

import functools
import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pomona.bundle import save_tensors
from pomona.errors import PhotoError
from pomona.export.trace import follow_bundle
from pomona.files import hash_bytes, make_folder, storage_errors
from pomona.samples import KINDS, render_other, render_photo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from pomona.bundle import Bundle

GOLDEN_NAME, TENSORS_NAME = "golden.json", "golden.safetensors"
GOLDEN_FORMAT = 1

_SEED = 2_000_000  # far from the seeds of photos that are learnt from
_RENDERED_PX = 256
_GRAIN = 6.0
_ORIENTATION = 274


@dataclass(frozen=True)
class GoldenPhoto:
    """One file, and what a bundle makes of it.

    Parameters
    ----------
    name : str
        Name of the file.
    content : bytes
        The file.
    pixels : ndarray of shape (H, W, 3), uint8
        Decoded, at a fraction of its size where the contract says so; upright, sRGB.
    square : ndarray of shape (S, S, 3), uint8
        What the network sees.
    outputs : mapping of str to ndarray, float32
        ``probabilities`` (C,), ``features`` (D,), ``unknown`` () and ``heat_map`` (P, P) where there are such.
    """

    name: str
    content: bytes = field(repr=False)
    pixels: NDArray[np.uint8] = field(repr=False)
    square: NDArray[np.uint8] = field(repr=False)
    outputs: Mapping[str, NDArray[np.float32]] = field(repr=False)


def make_golden(bundle: Bundle) -> list[GoldenPhoto]:
    """Render and encode golden photos, and let a bundle answer for them.

    Parameters
    ----------
    bundle : Bundle
        The recogniser; its sizes decide how large the photos are.

    Returns
    -------
    list of GoldenPhoto
        JPEG with colours at full and at half size, grey, turned, mirrored, progressive, of odd, tiny, tall and wide
        size and larger than is decoded whole; PNG of a palette, with transparency, of 16 bits, of one pixel; WebP.
    """
    files = encode_photos(bundle.preprocessing.size_px, bundle.preprocessing.decode_px)
    golden = []
    for (name, content), trace in zip(files, follow_bundle(bundle, [content for _, content in files]), strict=True):
        if isinstance(trace, PhotoError):  # what Pomona itself has encoded
            raise trace
        assert trace.pixels is not None
        assert trace.square is not None
        golden.append(GoldenPhoto(name, content, trace.pixels, trace.square, trace.outputs))
    return golden


@functools.lru_cache(maxsize=1)  # who exports in several formats renders once
def encode_photos(size_px: int, decode_px: int | None) -> tuple[tuple[str, bytes], ...]:
    """Names and contents of golden photos, the same in each process.

    Parameters
    ----------
    size_px : int
        Side of the square.
    decode_px : int, optional
        From twice this, a JPEG is decoded at a fraction.

    Examples
    --------
    >>> [name for name, _ in encode_photos(64, 64)][:2]
    ['jpeg-420.jpg', 'jpeg-444.jpg']
    """
    large_px = 2 * (decode_px or size_px)
    return tuple(
        (name, _encode(picture, kind, **settings)) for name, picture, kind, settings in _list(size_px, large_px)
    )


def _list(size_px: int, large_px: int) -> Iterator[tuple[str, Image.Image, str, dict[str, object]]]:
    draw = _Easel()
    wide, tall = (size_px * 3 // 2, size_px + 1), (size_px + 7, size_px * 2)
    yield "jpeg-420.jpg", draw(*wide), "JPEG", {"quality": 90, "subsampling": "4:2:0"}
    yield "jpeg-444.jpg", draw(*tall), "JPEG", {"quality": 95, "subsampling": "4:4:4"}
    yield "jpeg-square.jpg", draw(size_px, size_px), "JPEG", {"quality": 85}
    yield "jpeg-grey.jpg", draw(*tall).convert("L"), "JPEG", {"quality": 90}
    for orientation in (2, 3, 6, 8):
        yield f"jpeg-turned-{orientation}.jpg", draw(*wide), "JPEG", {"quality": 90, "exif": _turn(orientation)}
    yield "jpeg-progressive.jpg", draw(*wide), "JPEG", {"quality": 80, "progressive": True}
    yield "jpeg-odd.jpg", draw(size_px | 1, (size_px * 5 // 4) | 1), "JPEG", {"quality": 75, "subsampling": "4:2:0"}
    yield "jpeg-tiny.jpg", draw(7, 5), "JPEG", {"quality": 95}
    yield "jpeg-tall.jpg", draw(max(9, size_px // 6), size_px * 4), "JPEG", {"quality": 90}
    yield "jpeg-wide.jpg", draw(size_px * 4, max(9, size_px // 6)), "JPEG", {"quality": 90}
    yield "jpeg-large.jpg", draw(large_px * 4 // 3, large_px), "JPEG", {"quality": 85}
    yield "jpeg-large-odd.jpg", draw(large_px + 3, large_px + 111), "JPEG", {"quality": 85, "subsampling": "4:2:0"}
    yield "jpeg-larger.jpg", draw(2 * large_px, 2 * large_px + 9), "JPEG", {"quality": 70}
    yield "png.png", draw(*wide), "PNG", {}
    yield "png-palette.png", draw(*wide).quantize(64), "PNG", {}
    yield "png-alpha.png", _fade(draw(*tall)), "PNG", {}
    yield "png-16-bit.png", _deepen(draw(*wide)), "PNG", {}
    yield "png-one-pixel.png", draw(1, 1), "PNG", {}
    yield "webp.webp", draw(*wide), "WEBP", {"quality": 85}
    yield "webp-lossless.webp", draw(*tall), "WEBP", {"lossless": True}


class _Easel:
    """Draws another photo on each call: rendered, brought to a size, with grain that a resize must smooth."""

    def __init__(self) -> None:
        self._n_drawn = 0

    def __call__(self, width_px: int, height_px: int) -> Image.Image:
        from PIL import Image

        n = self._n_drawn
        self._n_drawn += 1
        seed, kind = _SEED + n, KINDS[n % len(KINDS)]
        rendered = (
            render_other(seed=seed, size_px=_RENDERED_PX)
            if n % 9 == 8
            else render_photo(kind, seed=seed, size_px=_RENDERED_PX)
        )
        picture = Image.fromarray(rendered).resize((width_px, height_px), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(seed).standard_normal((height_px, width_px, 1), np.float32) * _GRAIN
        return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def _turn(orientation: int) -> Image.Exif:
    from PIL import Image

    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


def _fade(picture: Image.Image) -> Image.Image:
    """The picture, ever more transparent to the right."""
    from PIL import Image

    width_px, height_px = picture.size
    across = np.broadcast_to(np.linspace(255, 0, width_px).astype(np.uint8), (height_px, width_px))
    faded = picture.copy()
    faded.putalpha(Image.fromarray(np.ascontiguousarray(across)))
    return faded


def _deepen(picture: Image.Image) -> Image.Image:
    """The picture in 16-bit grey."""
    from PIL import Image

    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def _encode(picture: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return stream.getvalue()


def write_golden(golden: Sequence[GoldenPhoto], folder: Path, *, has_pixels: bool = True) -> None:
    """Write golden photos and what is to come of them, for other languages.

    Parameters
    ----------
    golden : sequence of GoldenPhoto
        What `make_golden` gives.
    folder : Path
        Made where it is not there.
    has_pixels : bool
        Whether the squares are written, too; a square takes 3 S^2 bytes.

    Raises
    ------
    StorageError
        If it cannot be written.

    Notes
    -----
    `golden.json` names each photo, the sha256 of its decoded pixels with their size, and its probabilities;
    `golden.safetensors` holds under `NAME/square`, `NAME/features` and so on what they are.
    """
    make_folder(folder)
    tensors: dict[str, NDArray[np.float32]] = {}
    entries = []
    with storage_errors(f"write golden photos into {folder}"):
        for photo in golden:
            (folder / photo.name).write_bytes(photo.content)
            tensors |= {f"{photo.name}/{name}": np.atleast_1d(values) for name, values in photo.outputs.items()}
            if has_pixels:
                tensors[f"{photo.name}/square"] = photo.square  # type: ignore[assignment]  # uint8, which is kept
            height_px, width_px = photo.pixels.shape[:2]
            entries.append(
                {
                    "file": photo.name,
                    "sha256": hash_bytes(photo.content),
                    "width_px": width_px,
                    "height_px": height_px,
                    "pixels_sha256": hash_bytes(photo.pixels.tobytes()),
                    "square_sha256": hash_bytes(photo.square.tobytes()),
                    "probabilities": [float(p) for p in photo.outputs["probabilities"]],
                    "unknown": float(photo.outputs["unknown"]) if "unknown" in photo.outputs else None,
                }
            )
        text = json.dumps({"format": GOLDEN_FORMAT, "photos": entries}, indent=1)
        (folder / GOLDEN_NAME).write_text(f"{text}\n", encoding="utf-8")
        (folder / TENSORS_NAME).write_bytes(save_tensors(tensors))
