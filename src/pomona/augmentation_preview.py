"""A page that shows what a list of random changes does to one's own photos.

In: photos and the steps of `pomona.augmentation`. Out: one HTML file: each photo as the network sees it, each step on
its own, and the whole list as training takes it.
Why: whether a step still leaves a fruit what it is, only a look at one's own photos tells. The file asks for nothing
from outside, reads on a phone and in print, and holds less than 5 MB whatever is asked for.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pomona.augmentation import Step, StepName, augment_pixels, describe_step, show_augmentation, show_step
from pomona.backbone import Preprocessing
from pomona.class_tree import show_text
from pomona.dataset import load_dataset
from pomona.errors import DataError, MissingPackageError, OptionError, PhotoError
from pomona.files import check_page_place, make_folder, write_atomic
from pomona.listing import Skipped
from pomona.photo import read_photo_bytes
from pomona.photo_order import draw_photos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template
    from numpy.typing import NDArray

    from pomona.clock import Progress

MAX_PAGE_BYTES = 5_000_000
MAX_PICTURES = 1_000
"""More would be too small on the page to see anything."""

_MARK = b'<meta name="generator" content="pomona augment">'
_N_DRAWS = 8
_SIDES_PX, _QUALITY = (256, 192, 128, 96, 64), 85
_WORDS: dict[StepName, tuple[str, str]] = {
    "rotate": ("turned", "旋转"),
    "crop": ("cut", "裁剪"),
    "flip": ("mirrored", "镜像"),
    "color": ("recoloured", "调色"),
    "blur": ("blurred", "模糊"),
    "noise": ("made grainy", "加噪点"),
    "erase": ("painted over in part", "部分遮挡"),
    "perspective": ("skewed", "透视"),
}


@dataclass(frozen=True)
class Preview:
    """A page that was written.

    Parameters
    ----------
    path : Path
        Where it is.
    n_photos : int
        Photos it shows.
    skipped : tuple of Skipped
        Photos that could not be read.
    """

    path: Path
    n_photos: int
    skipped: tuple[Skipped, ...]


def preview_augmentation(
    data: str | Path,
    path: Path,
    steps: Sequence[Step],
    *,
    n_photos: int = 8,
    seed: int = 0,
    size_px: int = 224,
    on_progress: Progress | None = None,
) -> Preview:
    """Write the page for some photos of a dataset, spread over its classes.

    Parameters
    ----------
    data : str or Path
        Folder, table, list, pattern or zip of labelled photos.
    path : Path
        Where the page goes, outside the photos; an earlier page there is replaced, anything else is not.
    steps : sequence of Step
        What happens to the photos.
    n_photos : int
        How many to show; fewer where there are fewer.
    seed : int
        Another seed shows other photos, changed otherwise.
    size_px : int
        Side of the square the network sees.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    Preview
        What was written.

    Raises
    ------
    DataError
        If there is no photo, or none that can be read.
    OptionError
        If the page would lie among the photos, or a number is out of its range.
    StorageError
        If another file stands at the place, or it cannot be written.
    MissingPackageError
        If torch, kornia or jinja2 is not installed.
    """
    if n_photos < 1:
        raise OptionError(f"photos: wanted 1 or more, got {n_photos}")
    folder = Path(data)
    if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        raise OptionError(f"preview: wanted a place outside the photos, got {path} in {data}; choose another --preview")
    check_page_place(path, mark=_MARK)

    def count(n_done: int, n_total: int) -> None:
        if on_progress:
            on_progress("read", n_done, n_total)

    dataset = load_dataset(data, min_classes=1, on_photo=count)
    photos = [photo.path for photo in draw_photos(dataset, seed=seed)[:n_photos]]
    n_variants = min(8, max(6, len(steps)))  # as many as there are steps above them, where they fit a row
    skipped = write_preview(photos, steps, path, seed=seed, n_variants=n_variants, size_px=size_px)
    return Preview(path, len(photos) - len(skipped), skipped)


def write_preview(
    photos: Sequence[Path],
    steps: Sequence[Step],
    path: Path,
    *,
    seed: int = 0,
    n_variants: int = 6,
    size_px: int = 224,
) -> tuple[Skipped, ...]:
    """Write the page for these photos.

    Parameters
    ----------
    photos : sequence of Path
        Files; those that cannot be read are left out.
    steps : sequence of Step
        What happens to them.
    path : Path
        Where the page goes; an earlier page there is replaced, anything else is not.
    seed : int
        Another seed changes the photos otherwise.
    n_variants : int
        How often each photo is shown with the whole list.
    size_px : int
        Side of the square the network sees.

    Returns
    -------
    tuple of Skipped
        Photos that could not be read.

    Raises
    ------
    DataError
        If none can be read.
    OptionError
        If a number is out of its range, or more than 1,000 pictures are asked for.
    StorageError
        If another file stands at the place, or it cannot be written.
    MissingPackageError
        If torch, kornia or jinja2 is not installed.
    """
    n_pictures = len(photos) * (1 + len(steps) + n_variants)
    if not 8 <= size_px <= 4096:
        raise OptionError(f"imgsz: wanted 8 to 4096 pixels, got {size_px}")
    if n_variants < 1 or n_pictures > MAX_PICTURES:
        raise OptionError(
            f"preview: wanted 1 variant or more and up to {MAX_PICTURES:,} pictures, got {n_variants} of each photo, "
            f"{n_pictures:,} in all; choose fewer --photos"
        )
    check_page_place(path, mark=_MARK)
    template = _load_template()
    rows, skipped = _show_photos(photos, steps, seed, n_variants, size_px)
    if not rows:
        raise DataError(f"wanted photos to show, got none of {len(photos)} that can be read{_name_first(skipped)}")
    page = _fit_page(template, rows, _describe(steps, n_variants, size_px))
    make_folder(path.parent)
    check_page_place(path, mark=_MARK)
    write_atomic(path, page)
    return skipped


class _Row(NamedTuple):
    name: str
    photo: NDArray[np.uint8]
    alone: list[NDArray[np.uint8]]
    variants: list[NDArray[np.uint8]]


def _name_first(skipped: Sequence[Skipped]) -> str:
    return f", the first: {skipped[0].detail}" if skipped else ""


def _show_photos(
    photos: Sequence[Path], steps: Sequence[Step], seed: int, n_variants: int, size_px: int
) -> tuple[list[_Row], tuple[Skipped, ...]]:
    rows, skipped = [], []
    for number, path in enumerate(photos):
        name = show_text("/".join(path.parts[-2:]))
        try:
            photo = Preprocessing(size_px).read(read_photo_bytes(path))
        except PhotoError as error:
            skipped.append(Skipped(name, path, error.fault, str(error)))
            continue
        seeds = range((seed * MAX_PICTURES + number) * MAX_PICTURES, (seed * MAX_PICTURES + number + 1) * MAX_PICTURES)
        alone = [_show_step(photo, step, seeds[:_N_DRAWS]) for step in steps]
        variants = [augment_pixels(photo, steps, one) for one in seeds[:n_variants]]
        rows.append(_Row(name, photo, alone, variants))
    return rows, tuple(skipped)


def _show_step(photo: NDArray[np.uint8], step: Step, seeds: Sequence[int]) -> NDArray[np.uint8]:
    """The draw that changes the photo most: a weak one would show nothing."""
    always = [Step(step.name, step.strength, 1.0)]
    draws = [augment_pixels(photo, always, seed) for seed in seeds]
    return max(draws, key=lambda drawn: float(np.abs(drawn.astype(np.int16) - photo).mean()))


# --- the page -------------------------------------------------------------------------------------------------------


def _load_template() -> Template:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("jinja2", "augment", "to write a preview") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = (resources.files("pomona") / "web" / "augmentation.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _describe(steps: Sequence[Step], n_variants: int, size_px: int) -> dict[str, Any]:
    """Everything on the page but the pictures, in both languages."""
    rows = [
        {
            "text": show_step(step),
            "strength": show_step(step).partition("@")[0],
            "en": describe_step(step),
            "zh": describe_step(step, "zh"),
            "often_en": _say_often(step.probability),
            "often_zh": _say_often_zh(step.probability),
            "careful": step.name == "color",
        }
        for step in steps
    ]
    words = [_WORDS[step.name] for step in steps]
    return {
        "mark": _MARK.decode(),
        "text": show_augmentation(steps),
        "headline_en": _join([english for english, _ in words]).capitalize() + "." if steps else "Nothing is changed.",
        "headline_zh": "、".join(chinese for _, chinese in words) + "。" if steps else "不作任何改变。",
        "steps": rows,
        "n_columns": min(8, max(4, len(steps), n_variants)),
        "n_draws": _N_DRAWS,
        "size_px": size_px,
    }


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _say_often(share: float) -> str:
    return {1.0: "every photo", 0.5: "half of the photos", 0.0: "no photo"}.get(share, f"{100 * share:.3g}% of photos")


def _say_often_zh(share: float) -> str:
    return {1.0: "每张照片", 0.5: "一半照片", 0.0: "没有照片"}.get(share, f"{100 * share:.3g}% 的照片")


def _fit_page(template: Template, rows: Sequence[_Row], words: dict[str, Any]) -> bytes:
    """The page with the largest pictures that keep it small enough; tiny ones always do."""
    for side_px in _SIDES_PX:
        pictures = [
            {
                "name": row.name,
                "photo": _embed(row.photo, side_px),
                "alone": [_embed(one, side_px) for one in row.alone],
                "variants": [_embed(one, side_px) for one in row.variants],
            }
            for row in rows
        ]
        page = template.render(rows=pictures, **words).encode("utf-8", "backslashreplace")
        if len(page) < MAX_PAGE_BYTES:
            break
    return page


def _embed(pixels: NDArray[np.uint8], side_px: int) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((side_px, side_px), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY)
    return base64.b64encode(content.getvalue()).decode()
