"""Faults planted in photos, each written down in an answer sheet before anything looks for it, and pairs to look at.

In: sound photos. Out: folders and tables with faults, a CSV beside each that says what was planted, a contact sheet.
Why: what finds faults is scored against what was planted, not against what it says of itself.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

CHANGES = ("resized", "recompressed", "cropped", "mirrored", "brightened")
COPY_KINDS = ("exact", *CHANGES, "combined")
QUALITY = 92
"""Of the JPEG of a copy that is not planted as recompressed."""

_SIDE_PX, _N_ACROSS = 200, 3


@dataclass(frozen=True)
class PlantedCopy:
    """One line of the answer sheet of copies: names are relative to the folder."""

    file_name: str
    kind: str
    source: str
    done: str


def plant_copies(photos: Path, folder: Path, *, n_per_kind: int, seed: int) -> tuple[PlantedCopy, ...]:
    """Copy a tree of photos, and plant copies of some, no two of one photo; `<folder>-answers.csv` says which."""
    shutil.copytree(photos, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    generator = np.random.default_rng([seed, 5])
    sources = generator.choice(len(names), n_per_kind * len(COPY_KINDS), replace=False)
    planted = []
    for i, source in enumerate(names[row] for row in sources):
        kind = COPY_KINDS[i % len(COPY_KINDS)]
        data, done = change_photo((folder / source).read_bytes(), kind, generator)
        name = (Path(source).parent / f"planted-{seed}-{kind}-{i // len(COPY_KINDS):03}.jpg").as_posix()
        (folder / name).write_bytes(data)
        planted.append(PlantedCopy(name, kind, source, done))
    write_sheet(folder.with_name(f"{folder.name}-answers.csv"), planted)
    return tuple(planted)


def change_photo(data: bytes, kind: str, generator: np.random.Generator) -> tuple[bytes, str]:
    """A changed copy of a photo, and what was done to it."""
    if kind == "exact":
        return data, "nothing"
    kinds = generator.choice(CHANGES, 2, replace=False).tolist() if kind == "combined" else [kind]
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    quality, done = QUALITY, []
    for one in kinds:
        if one == "recompressed":
            quality = int(generator.integers(30, 76))
            done.append(f"quality {quality}")
            continue
        image, what = _change_pixels(image, one, generator)
        done.append(what)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue(), " and ".join(done)


def _change_pixels(image: Image.Image, kind: str, generator: np.random.Generator) -> tuple[Image.Image, str]:
    if kind == "resized":
        scale = generator.uniform(0.4, 0.9)
        size_px = tuple(round(scale * side_px) for side_px in image.size)
        return image.resize(size_px, Image.Resampling.LANCZOS), f"to {scale:.2f} of its size"
    if kind == "cropped":
        shares = generator.uniform(0, 0.1, 2)
        starts = shares * generator.uniform(0, 1, 2)
        left, top = (round(start * side_px) for start, side_px in zip(starts, image.size, strict=True))
        width_px, height_px = (round((1 - share) * side_px) for share, side_px in zip(shares, image.size, strict=True))
        box = (left, top, left + width_px, top + height_px)
        return image.crop(box), f"width cut by {shares[0]:.3f}, height by {shares[1]:.3f}"
    if kind == "mirrored":
        return ImageOps.mirror(image), "left to right"
    factor = generator.uniform(1.15, 1.4) if generator.random() < 0.5 else generator.uniform(0.65, 0.87)
    return ImageEnhance.Brightness(image).enhance(factor), f"light times {factor:.2f}"


@dataclass(frozen=True)
class PlantedSwap:
    """One line of the answer sheet of labels."""

    file_name: str
    label: str
    planted_label: str


def swap_labels(labels: NDArray[np.intp], n_classes: int, share: float, seed: int) -> NDArray[np.intp]:
    """Labels of which a share, drawn at random, are those of another class, drawn at random."""
    generator = np.random.default_rng([seed, 7])
    rows = generator.choice(len(labels), round(share * len(labels)), replace=False)
    swapped = labels.copy()
    swapped[rows] = (labels[rows] + generator.integers(1, n_classes, len(rows))) % n_classes
    return swapped


@dataclass(frozen=True)
class HiddenFrame:
    """One line of the answer sheet of groups."""

    file_name: str
    variety: str
    source: str


def hide_varieties(photos: Path, folder: Path) -> tuple[HiddenFrame, ...]:
    """Copy `fruit/variety/frame` to `fruit/hash of the content`, so that only the photos tell what belongs together."""
    import hashlib

    frames = []
    for path in sorted(photos.rglob("*.jpg")):
        source = path.relative_to(photos)
        name = Path(source.parts[0]) / f"{hashlib.sha256(path.read_bytes()).hexdigest()}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        frames.append(HiddenFrame(name.as_posix(), source.parts[1], source.as_posix()))
    frames.sort(key=lambda frame: frame.file_name)
    write_sheet(folder.with_name(f"{folder.name}-answers.csv"), frames)
    return tuple(frames)


def shoot_scenes(scenes: Path, folder: Path, n_shots: int) -> None:
    """Several shots of each rendered scene: all of it, then parts that are too small to be crops, in other light."""
    for number, path in enumerate(sorted(scenes.rglob("*.jpg"))):
        place = folder / path.parent.relative_to(scenes)
        place.mkdir(parents=True, exist_ok=True)
        os.link(path, place / f"{path.stem}-0.jpg")
        image = Image.open(path)
        generator = np.random.default_rng([number, 11])
        for shot in range(1, n_shots):
            lengths = generator.uniform(0.65, 0.82, 2) * image.size
            left, top = generator.uniform(0, 1, 2) * (image.size - lengths)
            box = (left, top, left + lengths[0], top + lengths[1])
            seen = image.resize(image.size, Image.Resampling.BILINEAR, box=box)
            seen = ImageEnhance.Brightness(seen).enhance(generator.uniform(0.8, 1.2))
            seen.save(place / f"{path.stem}-{shot}.jpg", quality=85)


def link_some(source: Path, folder: Path, n_each: int) -> None:
    """Hard links to the first photos of each class folder."""
    for kind in sorted({path.parent for path in source.rglob("*.jpg")}):
        (folder / kind.relative_to(source)).mkdir(parents=True)
        for path in sorted(kind.glob("*.jpg"))[:n_each]:
            os.link(path, folder / path.relative_to(source))


def write_sheet(path: Path, lines: Sequence[Any]) -> None:
    """Write lines of one dataclass as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(field.name for field in fields(lines[0]))
        writer.writerows(astuple(line) for line in lines)


def draw_pairs(path: Path, pairs: Iterable[tuple[Path, Path, str]]) -> None:
    """Photos of each pair side by side, numbered, with a line of text."""
    rows = list(pairs)
    width_px, height_px = 2 * _SIDE_PX + 12, _SIDE_PX + 18
    sheet = Image.new("RGB", (_N_ACROSS * width_px, -(-len(rows) // _N_ACROSS) * height_px or 1), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (first, second, text) in enumerate(rows):
        left, top = i % _N_ACROSS * width_px, i // _N_ACROSS * height_px
        pen.text((left, top), f"{i + 1}. {text}"[:66], fill="black", font=font)
        for place, photo in enumerate((first, second)):
            small = ImageOps.exif_transpose(Image.open(photo)).convert("RGB").resize((_SIDE_PX, _SIDE_PX))
            sheet.paste(small, (left + place * (_SIDE_PX + 2), top + 16))
    path.parent.mkdir(exist_ok=True)
    sheet.save(path)
