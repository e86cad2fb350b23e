"""Activations of a frozen trunk, computed once a photo and kept in a file that is mapped to memory.

In: a dataset, a backbone and a layer. Out: an `Activations`: one float16 map, list of tokens or vector a photo; at
`PIXELS` the 8-bit pixels themselves.
Why: training goes over the photos many times, and what is below the cut never changes. The file is on disk, so memory
holds what is being read, and it fills photo by photo, so a run that was stopped computes what is missing. Room for all
views is taken before the first photo, and a row counts as there once it is on disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.backbone import PIXELS, list_layers
from pomona.embedding import Embedding, build_trunk
from pomona.engine import Engine, count_cpus, is_finite, stream_ordered
from pomona.errors import NotFiniteError, PhotoError, StorageError
from pomona.files import cache_folder, hash_bytes, make_folder, storage_errors, write_atomic
from pomona.layers import find_layer
from pomona.photo import read_unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.augmentation import Step
    from pomona.backbone import Backbone
    from pomona.dataset import Dataset, Photo

ACTIVATIONS_FORMAT = 1
"""Counts up when the same key would give other activations."""

MAX_CACHE_BYTES = 20_000_000_000
"""Files of activations together; the ones not used for longest go first."""

_SPARE_BYTES = 500_000_000
_SETTLED_EVERY_S = 10.0
_PHOTOS_AHEAD = 2
_WAITING, _DONE, _FAILED = 0, 1, 2


@dataclass(frozen=True)
class View:
    """One way in which every photo is seen.

    Parameters
    ----------
    size_px : int
        Side of the square.
    augmentation : tuple of Step
        What is done to the pixels before, drawn once a photo.
    seed : int
        Decides the draws.
    """

    size_px: int
    augmentation: tuple[Step, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Activations:
    """Activations of the usable photos of a dataset in one view.

    Parameters
    ----------
    values : ndarray of shape (N, H, W, C), (N, T, C) or (N, D), float16 or uint8
        Mapped to memory; row i belongs to ``dataset.photos[i]`` through `rows`.
    rows : ndarray of shape (n,), int
        Row of each usable photo.
    dataset : Dataset
        The usable photos; those that could not be decoded have joined its ``skipped``.
    n_computed : int
        Photos that went through the trunk.
    """

    values: NDArray[np.float16] | NDArray[np.uint8]
    rows: NDArray[np.intp]
    dataset: Dataset
    n_computed: int


def extract_activations(
    dataset: Dataset,
    backbone: Backbone,
    layer: str,
    view: View,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Activations:
    """Compute the activations of every photo that the cache does not hold, in one view; see `extract_views`."""
    (found,) = extract_views(dataset, backbone, layer, [view], n_workers=n_workers, on_photo=on_photo)
    return found


def extract_views(
    dataset: Dataset,
    backbone: Backbone,
    layer: str,
    views: Sequence[View],
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> list[Activations]:
    """Compute the activations of every photo that the cache does not hold.

    Parameters
    ----------
    dataset : Dataset
        N photos.
    backbone : Backbone
        Its trunk up to `layer` is run, in its precision, at the size of each view.
    layer : str
        One of `list_layers`; `PIXELS` for the pixels themselves.
    views : sequence of View
        How photos are seen; what is kept of one never makes way for another of them.
    n_workers : int, optional
        Threads; every core where not given.
    on_photo : callable, optional
        Called with (photos done, photos in all), for one view after the other.

    Returns
    -------
    list of Activations
        Of the usable photos, in the order of the views.

    Raises
    ------
    DataError
        If no photo is usable.
    NotFiniteError
        If the trunk gives NaN or infinity, or numbers beyond float16.
    StorageError
        If there is no room on the disk, or they are more than `MAX_CACHE_BYTES`; it says how much is needed.
    """
    with storage_errors(f"keep activations in {cache_folder()}"):
        tables = [_Table(dataset.photos, _resize(backbone, view.size_px), layer, view) for view in views]
        _make_room(make_folder(cache_folder() / "activations"), tables)
        for table in tables:
            table.open()
        return [_fill(dataset, table, n_workers, on_photo) for table in tables]


def _resize(backbone: Backbone, size_px: int) -> Backbone:
    preprocessing = replace(backbone.preprocessing, size_px=size_px)
    if backbone.preprocessing.decode_px is not None:
        scale = backbone.preprocessing.decode_px / backbone.preprocessing.size_px
        preprocessing = replace(preprocessing, decode_px=round(scale * size_px))
    return replace(backbone, preprocessing=preprocessing)


def _fill(
    dataset: Dataset, table: _Table, n_workers: int | None, on_photo: Callable[[int, int], None] | None
) -> Activations:
    """Compute the rows of a table that are missing."""
    missing = np.flatnonzero(table.states == _WAITING)
    n_photos = len(dataset.photos)
    errors: dict[int, PhotoError] = {}
    if on_photo:
        on_photo(n_photos - len(missing), n_photos)
    try:
        with closing(_compute(missing, table, n_workers=n_workers)) as outcomes:
            for n_done, (i, outcome) in enumerate(outcomes, n_photos - len(missing) + 1):
                if isinstance(outcome, PhotoError):
                    errors[i] = outcome
                else:
                    table.put(i, outcome)
                if on_photo:
                    on_photo(n_done, n_photos)
    finally:
        table.settle()
    return _gather(dataset, table, errors, len(missing) - len(errors))


def _gather(dataset: Dataset, table: _Table, errors: dict[int, PhotoError], n_computed: int) -> Activations:
    rows = np.flatnonzero(table.states == _DONE)
    return Activations(table.values, rows, dataset.leave_out(errors), n_computed)


class _Table:
    """The file of one view, and which of its rows are there."""

    values: np.memmap[tuple[int, ...], np.dtype[Any]]
    states: np.memmap[tuple[int, ...], np.dtype[Any]]

    def __init__(self, photos: tuple[Photo, ...], backbone: Backbone, layer: str, view: View) -> None:
        self.photos, self.backbone, self.layer, self.view = photos, backbone, layer, view
        shape, kind = _find_shape(backbone, layer)
        embedding = Embedding((backbone,)) if backbone.precision == "int8" or backbone.is_embedded else None
        network = embedding.key if embedding else repr((backbone.weights_sha256, asdict(backbone.preprocessing)))
        steps = [repr(step) for step in view.augmentation]
        parts = [ACTIVATIONS_FORMAT, network, layer, steps, view.seed if steps else 0, shape]
        key = hash_bytes(repr([*parts, [photo.sha256 for photo in photos]]).encode())
        self.folder = cache_folder() / "activations" / key[:24]
        self._kind, self._shape = np.dtype(kind), (len(photos), *shape)
        self.n_bytes = int(np.prod(self._shape)) * self._kind.itemsize
        self._waiting: list[int] = []
        self._settled_s = time.monotonic()

    @property
    def is_there(self) -> bool:
        return _is_whole(self.folder / "values.npy", self._kind, self._shape)

    def open(self) -> None:
        make_folder(self.folder)
        values, states = self.folder / "values.npy", self.folder / "states.npy"
        if not self.is_there:
            states.unlink(missing_ok=True)  # of the rows that were lost
        self.values = _map(values, self._kind, self._shape)
        self.states = _map(states, np.dtype(np.uint8), self._shape[:1])
        write_atomic(self.folder / "used", str(time.time()))

    def put(self, row: int, values: NDArray[np.float16] | NDArray[np.uint8]) -> None:
        self.values[row] = values
        self._waiting.append(row)
        if time.monotonic() - self._settled_s >= _SETTLED_EVERY_S:
            self.settle()

    def settle(self) -> None:
        """Mark rows as there once they are on disk: where the power fails, no mark stands without its row."""
        if self._waiting:
            self.values.flush()
            self.states[self._waiting] = _DONE
            self.states.flush()
        self._waiting.clear()
        self._settled_s = time.monotonic()


def _map(path: Path, kind: np.dtype[np.generic], shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[Any]]:
    if _is_whole(path, kind, shape):
        return np.lib.format.open_memmap(path, "r+", kind, shape)
    mapped = np.lib.format.open_memmap(path, "w+", kind, shape)
    _reserve(path)
    return mapped


def _reserve(path: Path) -> None:
    """Take the room of a file on the disk: where it is found to be full as a page is written, the process dies."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    try:
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:  # a file system that cannot
            return
        path.unlink(missing_ok=True)
        raise


def _is_whole(path: Path, kind: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
    try:
        found = np.lib.format.open_memmap(path, "r")  # to write, numpy would fill up with zeros what is cut off
    except (OSError, ValueError):
        return False
    return found.dtype == kind and found.shape == shape


def _make_room(folder: Path, tables: Sequence[_Table]) -> None:
    """Let the files go that were not used for longest, and refuse what cannot fit before any of them goes."""
    wanted, own = sum(table.n_bytes for table in tables), {table.folder for table in tables}
    advice = "take a smaller --imgsz, a later --layer or fewer photos"
    if wanted > MAX_CACHE_BYTES:
        raise StorageError(
            f"{folder}: wanted {wanted / 1e9:.1f} GB for activations, got {MAX_CACHE_BYTES / 1e9:.1f} GB at most that "
            f"are kept; {advice}"
        )
    kept = sorted((path for path in folder.iterdir() if path.is_dir() and path not in own), key=_find_last_use)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in kept}
    new = sum(table.n_bytes for table in tables if not table.is_there)
    free = shutil.disk_usage(folder).free + sum(sizes.values())
    if free < new + _SPARE_BYTES:
        raise StorageError(
            f"{folder}: wanted {(new + _SPARE_BYTES) / 1e9:.1f} GB for activations, got {free / 1e9:.1f} GB free; "
            f"make room, name another place with POMONA_CACHE, or {advice}"
        )
    while kept and (sum(sizes[path] for path in kept) + wanted > MAX_CACHE_BYTES or _lacks(folder, new)):
        shutil.rmtree(kept.pop(0), ignore_errors=True)


def _lacks(folder: Path, n_bytes: int) -> bool:
    return shutil.disk_usage(folder).free < n_bytes + _SPARE_BYTES


def _find_last_use(path: Path) -> float:
    try:
        return float((path / "used").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0.0


def _find_shape(backbone: Backbone, layer: str) -> tuple[tuple[int, ...], type[np.uint8 | np.float16]]:
    """Shape of one photo's activations as they are kept, maps with the channels last."""
    size_px = backbone.preprocessing.size_px
    if layer == PIXELS:
        return (size_px, size_px, 3), np.uint8
    found = find_layer(list_layers(backbone), layer)
    if found.kind != "map" or found.is_turned:
        return tuple(found.shape), np.float16
    n_channels, height, width = found.shape
    return (height, width, n_channels), np.float16


def _compute(
    missing: NDArray[np.intp], table: _Table, *, n_workers: int | None
) -> Generator[tuple[int, NDArray[np.float16] | NDArray[np.uint8] | PhotoError]]:
    """Rows of a table, and what they shall hold."""
    if not len(missing):
        return
    backbone, layer = table.backbone, table.layer

    def load_pixels(i: int) -> NDArray[np.uint8]:
        return _read_pixels(table.photos[missing[i]], backbone, table.view)

    if layer == PIXELS:
        with closing(_decode(len(missing), load_pixels, n_workers or count_cpus())) as decoded:
            yield from zip(missing.tolist(), decoded, strict=True)
        return
    engine = Engine(_load_trunk(backbone, layer), n_workers=n_workers)
    is_map = find_layer(list_layers(backbone), layer).kind == "map"
    with closing(engine.stream(len(missing), load_pixels)) as outcomes:
        for row, outcome in zip(missing.tolist(), outcomes, strict=True):
            if isinstance(outcome, PhotoError):
                yield row, outcome
                continue
            values = outcome["activations"]
            with np.errstate(over="ignore"):  # said below, and of which photo
                narrow = (np.moveaxis(values, 0, -1) if is_map else values).astype(np.float16)
            if not (is_finite(outcome) and np.isfinite(narrow).all()):
                name = table.photos[row].name
                raise NotFiniteError(f"{backbone.name} gave numbers beyond float16 at {layer} for {name}")
            yield row, narrow


def _read_pixels(photo: Photo, backbone: Backbone, view: View) -> NDArray[np.uint8]:
    pixels = backbone.preprocessing.read(read_unchanged(photo.path, photo.sha256))
    if not view.augmentation:
        return pixels
    from pomona.augmentation import augment_pixels

    return augment_pixels(pixels, view.augmentation, _draw_seed(photo.sha256, view.seed))


def _decode(
    n_photos: int, load_pixels: Callable[[int], NDArray[np.uint8]], n_threads: int
) -> Generator[NDArray[np.uint8] | PhotoError]:
    """Pixels of each photo, in their order, from several threads; few of them wait at a time."""

    def load(i: int) -> NDArray[np.uint8] | PhotoError:
        try:
            return load_pixels(i)
        except PhotoError as error:
            return error

    return stream_ordered(load, n_photos, n_threads=n_threads, n_ahead=n_threads * _PHOTOS_AHEAD)


def _draw_seed(sha256: str, seed: int) -> int:
    return int(hash_bytes(f"{sha256} {seed}".encode())[:12], 16)


def _load_trunk(backbone: Backbone, layer: str) -> Path:
    content = build_trunk(backbone, layer)
    path = make_folder(cache_folder() / "networks") / f"trunk-{hash_bytes(content)[:24]}.onnx"
    if not path.is_file() or hash_bytes(path.read_bytes()) != hash_bytes(content):
        write_atomic(path, content)
    return path
