"""Rendered photos of fruit: the embedded default that needs no download.

In: a kind, a seed and a size, or a folder to fill. Out: RGB photos, an ImageFolder tree, a sheet of planted faults.
Why: everybody can run `pomona demo` at once, and what finds faults in photos can be scored against known ones.
"""

from __future__ import annotations

import colorsys
import csv
import functools
import hashlib
import io
import itertools
import math
import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pomona.errors import DataError, OptionError
from pomona.files import new_folder, storage_errors, write_atomic
from pomona.samples.fruit import draw_fruits
from pomona.samples.other import draw_other
from pomona.samples.scene import develop_photo, open_scene
from pomona.samples.solid import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pomona.samples.scene import Colour

__all__ = [
    "KINDS",
    "FaultPlan",
    "Kind",
    "Planted",
    "SampleOptions",
    "make_kinds",
    "render_other",
    "render_photo",
    "write_samples",
]

MIN_SIZE_PX, MAX_SIZE_PX = 32, 1024
_FINE_PX = 112

# fmt: off
# A table reads better with its columns in rows of its own.
KINDS: tuple[Kind, ...] = (
    Kind("Apple-Red", "Apple", ((0.70, 0.05, 0.08), (0.88, 0.42, 0.18), (0.95, 0.72, 0.45)), outline="apple",
         blush=0.3, streak=0.8, specks=0.4, gloss=0.7, lying=0.25, cut="core", cut_share=0.10,
         flesh=((0.97, 0.93, 0.78), (0.25, 0.13, 0.06))),
    Kind("Apple-Green", "Apple", ((0.52, 0.72, 0.16), (0.72, 0.80, 0.30), (0.88, 0.93, 0.62)), outline="apple",
         blush=0.4, streak=0.15, specks=0.6, gloss=0.75, lying=0.25, cut="core", cut_share=0.10,
         flesh=((0.96, 0.96, 0.82), (0.25, 0.13, 0.06))),
    Kind("Banana", "Tropical", ((0.97, 0.80, 0.16), (0.80, 0.80, 0.22), (0.36, 0.22, 0.08)), form="banana",
         n_fruits=(1, 4), specks=0.5, gloss=0.25, top="none"),
    Kind("Orange", "Citrus", ((0.97, 0.52, 0.04), (0.99, 0.64, 0.10), (0.90, 0.42, 0.03)), outline="orange",
         blush=0.4, pores=1.0, gloss=0.5, top="button", lying=0.5, cut="citrus", cut_share=0.3,
         flesh=((0.99, 0.62, 0.10), (0.99, 0.90, 0.68))),
    Kind("Lemon", "Citrus", ((0.98, 0.84, 0.12), (0.94, 0.88, 0.28), (0.85, 0.68, 0.05)), outline="lemon", scale=0.95,
         blush=0.4, pores=0.8, gloss=0.5, top="scar", lying=1.0, cut="citrus", cut_share=0.25,
         flesh=((0.97, 0.90, 0.45), (0.99, 0.97, 0.82))),
    Kind("Lime", "Citrus", ((0.22, 0.50, 0.10), (0.50, 0.68, 0.18), (0.15, 0.38, 0.06)), outline="lime", scale=0.85,
         blush=0.5, pores=0.7, gloss=0.6, top="scar", lying=1.0, cut="citrus", cut_share=0.35,
         flesh=((0.72, 0.84, 0.36), (0.93, 0.97, 0.78))),
    Kind("Pear", "Pear", ((0.70, 0.74, 0.22), (0.86, 0.76, 0.30), (0.48, 0.40, 0.16)), outline="pear", scale=0.85,
         blush=0.6, specks=0.9, gloss=0.35, lying=0.3, cut="core", cut_share=0.10,
         flesh=((0.97, 0.95, 0.84), (0.25, 0.13, 0.06))),
    Kind("Strawberry", "Berry", ((0.85, 0.06, 0.07), (0.93, 0.25, 0.13), (0.97, 0.80, 0.30)), outline="strawberry",
         scale=0.92, blush=0.35, gloss=0.8, pattern="seeds", top="cap", lying=0.8, cut="berry", cut_share=0.15,
         flesh=((0.93, 0.28, 0.22), (0.99, 0.86, 0.78))),
    Kind("Grapes", "Berry", ((0.30, 0.08, 0.26), (0.45, 0.10, 0.22), (0.62, 0.60, 0.78)), form="bunch",
         n_fruits=(16, 30), stretch=1.12, bloom=0.6, gloss=0.6, top="none"),
    Kind("Watermelon", "Melon", ((0.42, 0.62, 0.22), (0.58, 0.72, 0.34), (0.06, 0.24, 0.08)), outline="ball",
         stretch=1.18, scale=1.2, n_fruits=(1, 2), blush=0.4, gloss=0.4, pattern="stripes", top="scar", lying=0.9,
         cut="melon", cut_share=0.6, flesh=((0.92, 0.20, 0.20), (0.08, 0.04, 0.03))),
    Kind("Kiwi", "Tropical", ((0.40, 0.31, 0.15), (0.50, 0.42, 0.20), (0.28, 0.18, 0.08)), outline="ball",
         stretch=1.22, scale=0.9, n_fruits=(2, 5), blush=0.5, fuzz=1.0, gloss=0.04, top="scar", lying=1.0, cut="kiwi",
         cut_share=0.7, flesh=((0.50, 0.72, 0.12), (0.93, 0.94, 0.74))),
    Kind("Plum", "Stone", ((0.30, 0.08, 0.24), (0.52, 0.10, 0.20), (0.64, 0.62, 0.80)), outline="plum", stretch=1.12,
         scale=0.9, blush=0.7, specks=0.25, bloom=0.85, gloss=0.45, lying=0.5, cut="stone", cut_share=0.3,
         flesh=((0.93, 0.66, 0.22), (0.45, 0.26, 0.12))),
    Kind("Mango", "Tropical", ((0.96, 0.68, 0.14), (0.86, 0.22, 0.12), (0.40, 0.58, 0.16)), outline="mango",
         scale=0.95, n_fruits=(1, 3), blush=1.0, specks=0.7, gloss=0.4, top="scar", lying=1.0, cut="stone",
         cut_share=0.0, flesh=((0.99, 0.74, 0.16), (0.93, 0.86, 0.62))),
    Kind("Peach", "Stone", ((0.98, 0.60, 0.29), (0.82, 0.16, 0.16), (0.98, 0.80, 0.48)), outline="plum", blush=1.0,
         fuzz=0.25, gloss=0.06, top="scar", lying=0.3, cut="stone", cut_share=0.25,
         flesh=((0.99, 0.80, 0.42), (0.55, 0.20, 0.12))),
    Kind("Cherry", "Stone", ((0.62, 0.02, 0.06), (0.80, 0.06, 0.08), (0.90, 0.40, 0.30)), outline="cherry", scale=0.8,
         n_fruits=(2, 4), blush=0.5, gloss=1.0, lying=0.0),
    Kind("Blueberry", "Berry", ((0.16, 0.19, 0.42), (0.24, 0.29, 0.55), (0.56, 0.63, 0.84)), form="bunch",
         n_fruits=(9, 22), bloom=1.0, gloss=0.15, top="none", pattern="seeds"),
)
"""Every base kind; the first twelve are the demo's."""
# fmt: on

Fault = Literal[
    "exact_duplicate",
    "near_duplicate_reencoded",
    "near_duplicate_resized",
    "near_duplicate_brightened",
    "near_duplicate_cropped",
    "near_duplicate_mirrored",
    "truncated",
    "wrong_label",
    "dark",
    "blurred",
    "not_fruit",
]
"""What can be wrong with a planted photo."""

_NEAR: tuple[Fault, ...] = (
    "near_duplicate_reencoded",
    "near_duplicate_resized",
    "near_duplicate_brightened",
    "near_duplicate_cropped",
    "near_duplicate_mirrored",
)


@dataclass(frozen=True)
class FaultPlan:
    """How many faulty photos to plant beside the sound ones; every photo has at most one fault.

    Parameters
    ----------
    n_exact_duplicates : int
        Byte copies of another photo of the class.
    n_near_duplicates : int
        Re-encoded, resized, brightened, cropped and mirrored copies, in turn.
    n_truncated : int
        Files whose end is missing.
    n_wrong_labels : int
        Photos in the folder of another class.
    n_dark, n_blurred : int
        Photos at 8-16 % of their light, and out of focus.
    n_not_fruit : int
        Photos of a mug, a phone, a ball, keys or a book.
    """

    n_exact_duplicates: int = 0
    n_near_duplicates: int = 0
    n_truncated: int = 0
    n_wrong_labels: int = 0
    n_dark: int = 0
    n_blurred: int = 0
    n_not_fruit: int = 0


@dataclass(frozen=True)
class Planted:
    """One line of the answer sheet.

    Parameters
    ----------
    file_name : str
        Path from the samples folder, with forward slashes.
    fault : Fault
        What is wrong.
    label : str
        Class whose folder holds the file.
    other : str
        Source photo of a duplicate, true label of a wrong one, else empty.
    """

    file_name: str
    fault: Fault
    label: str
    other: str


@dataclass(frozen=True)
class SampleOptions:
    """What `write_samples` renders.

    Parameters
    ----------
    n_per_kind : int
        Sound photos of each kind; planted faults come on top.
    kinds : sequence of Kind
        Classes, with names of their own.
    size_px : int
        Side of a photo, 32-1024.
    seed : int
        The same seed gives the same bytes.
    faults : FaultPlan or None
        Faults to plant; None plants none and writes no answer sheet.
    n_workers : int or None
        Processes; None takes one for up to 200 photos and else one a processor. More than one needs the usual
        ``if __name__ == "__main__":`` guard in a script.
    """

    n_per_kind: int = 40
    kinds: Sequence[Kind] = field(default=KINDS[:12])
    size_px: int = 224
    seed: int = 0
    faults: FaultPlan | None = None
    n_workers: int | None = None


class _Job(NamedTuple):
    """One file to write: which photo, and what is done to it."""

    file_name: str
    kind: Kind | None
    seed: int
    size_px: int
    fault: Fault | None = None
    fault_seed: int = 0


def make_kinds(n_kinds: int) -> tuple[Kind, ...]:
    """Kinds for any number of classes: the base kinds, then variants of other hue, length and skin.

    Parameters
    ----------
    n_kinds : int
        How many, at least 1.

    Returns
    -------
    tuple of Kind
        Names are unique; a variant of `Apple-Red` is `Apple-Red-02`, in the same family.

    Raises
    ------
    OptionError
        If `n_kinds` is not positive.

    Examples
    --------
    >>> [kind.name for kind in make_kinds(18)[-3:]]
    ['Blueberry', 'Apple-Red-02', 'Apple-Green-02']
    """
    if n_kinds < 1:
        raise OptionError(f"n_kinds: wanted at least 1, got {n_kinds}")
    return tuple(_vary_kind(KINDS[i % len(KINDS)], i // len(KINDS)) for i in range(n_kinds))


def _vary_kind(kind: Kind, round_number: int) -> Kind:
    if round_number == 0:
        return kind
    # The golden angle keeps the hues of any number of rounds apart.
    turn = (round_number * 0.381966) % 1.0
    rng = np.random.default_rng([round_number, zlib.crc32(kind.name.encode())])
    dim = rng.uniform(0.75, 1.1)
    first, second, third = (_turn_hue(colour, turn, dim) for colour in kind.colours)
    return replace(
        kind,
        name=f"{kind.name}-{round_number + 1:02d}",
        colours=(first, second, third),
        flesh=(_turn_hue(kind.flesh[0], turn * 0.5, 1.0), kind.flesh[1]),
        stretch=kind.stretch * rng.uniform(0.8, 1.3),
        blush=min(1.0, kind.blush * rng.uniform(0.4, 1.6)),
        streak=float(rng.choice([kind.streak, 0.0, 0.9])),
        specks=float(rng.choice([kind.specks, 0.0, 0.9])),
    )


def _turn_hue(colour: Colour, turn: float, dim: float) -> Colour:
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, min(1.0, value * dim))


def render_photo(kind: Kind, *, seed: int, size_px: int = 224) -> NDArray[np.uint8]:
    """Render one photo of a kind.

    Parameters
    ----------
    kind : Kind
        Recipe.
    seed : int
        Not negative; chooses everything that varies.
    size_px : int
        Side, 32-1024.

    Returns
    -------
    ndarray of uint8, shape (size_px, size_px, 3)
        sRGB.

    Raises
    ------
    OptionError
        If the seed is negative or the size is out of range.

    Examples
    --------
    >>> photo = render_photo(KINDS[0], seed=1, size_px=64)
    >>> photo.shape, photo.dtype.name
    ((64, 64, 3), 'uint8')
    """
    return _render(kind, seed, size_px)


def render_other(*, seed: int, size_px: int = 224) -> NDArray[np.uint8]:
    """Render one photo of something that is not a fruit; parameters and result are those of `render_photo`.

    Examples
    --------
    >>> render_other(seed=1, size_px=32).shape
    (32, 32, 3)
    """
    return _render(None, seed, size_px)


def _render(kind: Kind | None, seed: int, size_px: int) -> NDArray[np.uint8]:
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise OptionError(f"size_px: wanted {MIN_SIZE_PX} to {MAX_SIZE_PX}, got {size_px}")
    if seed < 0:
        raise OptionError(f"seed: wanted 0 or more, got {seed}")
    finer = -(-_FINE_PX // size_px)
    rng = np.random.default_rng([seed, zlib.crc32(kind.name.encode()) if kind else 0])
    scene = open_scene(rng, size_px * finer)
    if kind is None:
        draw_other(scene)
    else:
        draw_fruits(scene, kind)
    photo = develop_photo(scene)
    if finer > 1:
        blocks = photo.reshape(size_px, finer, size_px, finer, 3).mean(axis=(1, 3), dtype=np.float32)
        photo = np.round(blocks).astype(np.uint8)
    return photo


def write_samples(
    folder: Path, options: SampleOptions | None = None, *, on_photo: Callable[[int], None] | None = None
) -> tuple[Planted, ...]:
    """Render a folder of photos: `folder/family/kind/kind_0001.jpg`.

    The folder appears whole or not at all. With `options.faults`, the answer sheet `<folder>-answers.csv` is written
    beside it, with the columns file_name, fault, label, other.

    Parameters
    ----------
    folder : Path
        New or empty.
    options : SampleOptions, optional
        What to render; by default the demo's 12 kinds, 40 photos each.
    on_photo : callable, optional
        Called with the number of photos done so far.

    Returns
    -------
    tuple of Planted
        The planted faults, in the order of the answer sheet.

    Raises
    ------
    DataError
        If the folder has something in it.
    OptionError
        If an option cannot be used.
    StorageError
        If a file cannot be written.
    """
    options = options or SampleOptions()
    _check_options(options)
    with storage_errors(f"look into {folder}"):
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: wanted a new or empty folder, it has files in it: name another one or empty it")
    jobs, planted = _plan_jobs(options)
    with new_folder(folder) as staging:
        for name in sorted({str(Path(job.file_name).parent) for job in jobs}):
            with storage_errors(f"make the folder {staging / name}"):
                (staging / name).mkdir(parents=True, exist_ok=True)
        for done, _ in enumerate(_run_jobs(staging, jobs, options.n_workers), start=1):
            if on_photo is not None:
                on_photo(done)
    if options.faults is not None:
        write_atomic(folder.with_name(f"{folder.name}-answers.csv"), _answer_sheet(planted))
    return planted


def _check_options(options: SampleOptions) -> None:
    names = [kind.name for kind in options.kinds]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"kinds: wanted at least one kind and no name twice, got {names}")
    if options.n_per_kind < 1:
        raise OptionError(f"n_per_kind: wanted at least 1, got {options.n_per_kind}")
    if not MIN_SIZE_PX <= options.size_px <= MAX_SIZE_PX:
        raise OptionError(f"size_px: wanted {MIN_SIZE_PX} to {MAX_SIZE_PX}, got {options.size_px}")
    if options.seed < 0:
        raise OptionError(f"seed: wanted 0 or more, got {options.seed}")
    if options.n_workers is not None and options.n_workers < 1:
        raise OptionError(f"n_workers: wanted at least 1, got {options.n_workers}")
    for item in fields(FaultPlan):
        if options.faults is not None and getattr(options.faults, item.name) < 0:
            raise OptionError(f"{item.name}: wanted 0 or more, got {getattr(options.faults, item.name)}")
    if options.faults is not None and options.faults.n_wrong_labels and len(names) < 2:
        raise OptionError("n_wrong_labels: a wrong label needs a second kind, got one kind")


def _derive_seed(*parts: object) -> int:
    """Seed of one photo from the seed of all and its place, so that no photo depends on how many there are."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def _sound_job(options: SampleOptions, kind: Kind, number: int) -> _Job:
    seed = _derive_seed(options.seed, kind.name, number)
    return _Job(f"{kind.family}/{kind.name}/{kind.name}_{number:04d}.jpg", kind, seed, options.size_px)


def _plan_jobs(options: SampleOptions) -> tuple[list[_Job], tuple[Planted, ...]]:
    """List every file; a planted one takes the next free number of its class."""
    jobs = [_sound_job(options, kind, n + 1) for kind in options.kinds for n in range(options.n_per_kind)]
    planted: list[Planted] = []
    taken = dict.fromkeys((kind.name for kind in options.kinds), options.n_per_kind)
    for fault, count in _fault_counts(options.faults or FaultPlan()):
        job, line = _plan_fault(options, fault, count, taken)
        jobs.append(job)
        planted.append(line)
    return jobs, tuple(planted)


def _fault_counts(plan: FaultPlan) -> Iterator[tuple[Fault, int]]:
    for i in range(plan.n_exact_duplicates):
        yield "exact_duplicate", i
    for i in range(plan.n_near_duplicates):
        yield _NEAR[i % len(_NEAR)], i
    rest: tuple[tuple[Fault, int], ...] = (
        ("truncated", plan.n_truncated),
        ("wrong_label", plan.n_wrong_labels),
        ("dark", plan.n_dark),
        ("blurred", plan.n_blurred),
        ("not_fruit", plan.n_not_fruit),
    )
    for fault, n_faults in rest:
        yield from zip(itertools.repeat(fault, n_faults), itertools.count())


def _plan_fault(options: SampleOptions, fault: Fault, count: int, taken: dict[str, int]) -> tuple[_Job, Planted]:
    fault_seed = _derive_seed(options.seed, fault, count)
    rng = np.random.default_rng(fault_seed)
    place = int(rng.integers(len(options.kinds)))
    kind, shown = options.kinds[place], options.kinds[place]
    taken[kind.name] += 1
    job = _sound_job(options, kind, taken[kind.name])._replace(fault=fault, fault_seed=fault_seed)
    other = ""
    if "duplicate" in fault:
        source = _sound_job(options, kind, int(rng.integers(options.n_per_kind)) + 1)
        job, other = job._replace(seed=source.seed), source.file_name
    elif fault == "wrong_label":
        shown = options.kinds[(place + int(rng.integers(1, len(options.kinds)))) % len(options.kinds)]
        other = shown.name
    seed = job.seed if "duplicate" in fault else _derive_seed(options.seed, fault, count, "photo")
    job = job._replace(kind=None if fault == "not_fruit" else shown, seed=seed)
    return job, Planted(job.file_name, fault, kind.name, other)


def _answer_sheet(planted: Sequence[Planted]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([item.name for item in fields(Planted)])
    writer.writerows((line.file_name, line.fault, line.label, line.other) for line in planted)
    return text.getvalue()


def _run_jobs(folder: Path, jobs: Sequence[_Job], n_workers: int | None) -> Iterator[None]:
    """Write the files, here or in processes, which start in about half a second each."""
    if n_workers is None:
        n_workers = min(os.cpu_count() or 1, 1 + len(jobs) // 200)
    write = functools.partial(_write_job, folder)
    if n_workers == 1:
        yield from map(write, jobs)
        return
    try:
        with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(write, jobs, chunksize=8)
    except BrokenProcessPool as error:
        raise OptionError(
            f"n_workers: wanted {n_workers} processes, one ended early: in a script, call this under "
            "`if __name__ == '__main__':`, or use n_workers=1"
        ) from error


def _write_job(folder: Path, job: _Job) -> None:
    data = _photo_bytes(job)
    with storage_errors(f"write {folder / job.file_name}"):
        (folder / job.file_name).write_bytes(data)


def _photo_bytes(job: _Job) -> bytes:
    """JPEG of one job; a copy keeps its source's seed and so its quality."""
    photo = _render(job.kind, job.seed, job.size_px)
    quality = int(np.random.default_rng([job.seed, 1]).integers(70, 96))
    if job.fault is None or job.fault in ("exact_duplicate", "wrong_label", "not_fruit"):
        return _encode(photo, quality)
    rng = np.random.default_rng([job.fault_seed, 1])
    if job.fault == "truncated":
        data = _encode(photo, quality)
        return data[: int(len(data) * rng.uniform(0.3, 0.8))]
    if job.fault == "near_duplicate_reencoded":
        quality = int(rng.integers(35, 60))
    return _encode(_spoil(photo, job.fault, rng), quality)


def _spoil(photo: NDArray[np.uint8], fault: Fault, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply one fault to pixels (H, W, 3)."""
    from PIL import Image, ImageFilter

    size_px, result = len(photo), photo
    if fault == "near_duplicate_mirrored":
        result = photo[:, ::-1]
    elif fault == "near_duplicate_brightened":
        result = np.clip(photo * rng.uniform(1.06, 1.16) + 4.0, 0.0, 255.0).astype(np.uint8)
    elif fault == "near_duplicate_cropped":
        edge = math.ceil(size_px * rng.uniform(0.02, 0.06))
        result = photo[edge:-edge, edge:-edge]
    elif fault == "near_duplicate_resized":
        side = round(size_px * rng.uniform(0.6, 0.85))
        result = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS))
    elif fault == "dark":
        result = np.round(photo * rng.uniform(0.08, 0.16)).astype(np.uint8)
    elif fault == "blurred":
        soft = ImageFilter.GaussianBlur(size_px * rng.uniform(0.02, 0.035))
        result = np.asarray(Image.fromarray(photo).filter(soft))
    return result


def _encode(photo: NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(photo)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
