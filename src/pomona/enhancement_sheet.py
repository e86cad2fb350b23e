"""A page that shows what enhancement does to one's own photos, before and after each step.

In: photos of a dataset and steps of `pomona.enhancement`; `Effects` where they were measured. Out: one HTML file.
Why: whether a step spoils what tells fruits apart, only a look at one's own photos says. Each photo is shown as the
network sees it. The file asks for nothing from outside.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.comparison import write_points
from pomona.enhancement import measure_light
from pomona.enhancement_effect import describe_steps, list_variants
from pomona.errors import DataError, MissingPackageError, OptionError, PhotoError
from pomona.files import check_page_place, write_atomic
from pomona.photo import decode_photo, read_unchanged
from pomona.photo_order import draw_photos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pomona.backbone import Preprocessing
    from pomona.dataset import Dataset
    from pomona.enhancement_effect import Effects

MAX_SHOWN = 8
"""Photos that a sheet shows at most."""

_LUMA = np.array([0.299, 0.587, 0.114])
_N_BINS = 32
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class ShownPhoto:
    """A photo for a sheet.

    Parameters
    ----------
    label : str
        Its class.
    name : str
        Name of its file.
    pixels : ndarray of shape (H, W, 3), uint8
        Decoded.
    """

    label: str
    name: str
    pixels: NDArray[np.uint8]


def choose_photos(
    dataset: Dataset, preprocessing: Preprocessing, *, n_photos: int = MAX_SHOWN, seed: int = 0
) -> tuple[ShownPhoto, ...]:
    """Draw photos of as many classes as there are to be had.

    Parameters
    ----------
    dataset : Dataset
        Photos; those of the test part and those that cannot be decoded are passed over.
    preprocessing : Preprocessing
        How they are decoded.
    n_photos : int
        How many, 1 to `MAX_SHOWN`; fewer where there are fewer.
    seed : int
        Another seed draws others.

    Raises
    ------
    OptionError
        If `n_photos` is out of range.
    DataError
        If none can be decoded.
    """
    if not 1 <= n_photos <= MAX_SHOWN:
        raise OptionError(f"photos: wanted 1 to {MAX_SHOWN}, got {n_photos}")
    untested = replace(dataset, photos=tuple(photo for photo in dataset.photos if photo.split != "test"))
    shown: list[ShownPhoto] = []
    for photo in draw_photos(untested, seed=seed):
        try:
            data = read_unchanged(photo.path, photo.sha256)
            pixels = decode_photo(data, at_least_px=preprocessing.decode_px)
        except PhotoError:
            continue
        label = dataset.tree.names[photo.label] if photo.label >= 0 else ""
        shown.append(ShownPhoto(label, Path(photo.name).name, pixels))
        if len(shown) == n_photos:
            break
    if not shown:
        raise DataError(f"{dataset.shown}: wanted a photo to show, got none that can be decoded")
    return tuple(shown)


def write_sheet(
    path: Path,
    photos: Sequence[ShownPhoto],
    steps: Sequence[str],
    preprocessing: Preprocessing,
    *,
    title: str = "",
    effects: Effects | None = None,
) -> None:
    """Write one HTML page with each photo before and after each step, and after all of them.

    Parameters
    ----------
    path : Path
        Where the page goes, ``*.html``; its folder exists.
    photos : sequence of ShownPhoto
        Photos to show, one or more.
    steps : sequence of str
        Steps to show.
    preprocessing : Preprocessing
        How photos come to what a network sees, which is what is shown; its own enhancement is replaced.
    title : str
        What the photos are called.
    effects : Effects, optional
        What the steps do to the answers, for the table on top.

    Raises
    ------
    OptionError
        If the file has another ending, or there is no step, or one is none.
    MissingPackageError
        If jinja2, or OpenCV where a step needs it, is not installed.
    StorageError
        If a folder stands there, or the file cannot be written.
    """
    check_page_place(path)
    variants = ((), *list_variants(steps))
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("jinja2", "enhance", "to write a sheet") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = (resources.files("pomona") / "web" / "enhancement.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=title,
        rows=[_arrange_photo(photo, variants, preprocessing) for photo in photos],
        names=_name_variants(variants),
        n_steps=len(steps),
        size_px=preprocessing.size_px,
        effects=effects,
        lines=_arrange_effects(effects) if effects else [],
    )
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


def _name_variants(variants: Sequence[tuple[str, ...]]) -> list[str]:
    return ["All together" if len(steps) > 1 else describe_steps(steps) for steps in variants]


def _arrange_photo(
    photo: ShownPhoto, variants: Sequence[tuple[str, ...]], preprocessing: Preprocessing
) -> dict[str, Any]:
    squares = [replace(preprocessing, enhance=steps).apply(photo.pixels) for steps in variants]
    bins = [_count_tones(square) for square in squares]
    # One scale a photo, cut where a single tone would press the others flat.
    top = float(np.percentile(np.concatenate(bins), 97)) or 1.0
    pictures = [
        {
            "jpeg": _write_jpeg(square),
            "tones": _draw_tones(counts, top),
            "was": _draw_tones(bins[0], top) if steps else "",
            **measure_tone(square),
        }
        for steps, square, counts in zip(variants, squares, bins, strict=True)
    ]
    return {"label": photo.label, "name": photo.name, "pictures": pictures}


def measure_tone(photo: NDArray[np.uint8]) -> dict[str, float]:
    """Short figures of a photo, each 0-100.

    Parameters
    ----------
    photo : ndarray of shape (H, W, 3), uint8
        The photo.

    Returns
    -------
    dict
        ``light``: mean of the luma; ``contrast``: its standard deviation; ``cast``: between the strongest and the
        weakest channel of `pomona.enhancement.measure_light`.

    Examples
    --------
    >>> measure_tone(np.full((4, 4, 3), 255, np.uint8))
    {'light': 100.0, 'contrast': 0.0, 'cast': 0.0}
    """
    luma = photo @ _LUMA / 2.55
    figures = {"light": luma.mean(), "contrast": luma.std(), "cast": np.ptp(measure_light(photo)) / 2.55}
    return {name: round(float(value), 6) for name, value in figures.items()}


def _count_tones(photo: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the pixels in each of `_N_BINS` ranges of luma."""
    counts, _ = np.histogram(photo @ _LUMA, bins=_N_BINS, range=(0, 255))
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def _draw_tones(shares: NDArray[np.float64], top: float) -> str:
    """Outline of a histogram as an SVG path, `_N_BINS` wide and 10 high."""
    heights = (10 * (1 - (shares / top).clip(0, 1))).round(2)
    return "M0 10" + "".join(f"V{height:g}h1" for height in heights) + "V10z"


def _write_jpeg(photo: NDArray[np.uint8]) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(photo).save(content, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return base64.b64encode(content.getvalue()).decode()


def _arrange_effects(effects: Effects) -> list[dict[str, Any]]:
    """Rows of the table; the intervals are drawn on one scale that zero is on."""
    ends = [0.0, *(end for one in effects.effects for end in (one.difference.low, one.difference.high))]
    start, reach = min(ends), max(ends) - min(ends)
    return [
        {
            "name": describe_steps(one.steps),
            "accuracy": f"{one.accuracy:.1%}",
            "gain": write_points(one.difference.gain),
            "interval": f"{write_points(one.difference.low)} to {write_points(one.difference.high)}",
            "low": (one.difference.low - start) / reach,
            "high": (one.difference.high - start) / reach,
            "value": (one.difference.gain - start) / reach,
            "zero": -start / reach,
            "n_better": one.difference.n_better,
            "n_worse": one.difference.n_worse,
            "verdict": one.difference.verdict,
        }
        for one in effects.effects
    ]
