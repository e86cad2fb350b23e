"""Features as they were made by hand before networks learnt them: colours, texture and shape of a photo.

In: photos. Out: three blocks of float32 numbers a photo: a histogram of colours, local binary patterns, and histograms
of oriented gradients.
Why: what transfer learning is worth shows against what was best without it. The blocks are the common ones, at the size
and with the normalisation that the literature found good, so that the comparison is fair.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pomona.backbone import Preprocessing
from pomona.errors import MissingPackageError, PhotoError
from pomona.photo import read_unchanged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from numpy.typing import NDArray

    from pomona.dataset import Dataset, Photo

BlockName = Literal["colour", "texture", "shape"]

SIZE_PX = 128
"""Side of the square that a photo is fitted into first."""

_PREPROCESSING = Preprocessing(SIZE_PX, decode_px=SIZE_PX)
_N_HUES, _N_SATURATIONS, _N_VALUES = 12, 4, 4
_RADII = (1, 2)
_N_PATTERNS = 59  # uniform patterns of 8 neighbours, and one bin for all others
_CELL_PX, _N_ORIENTATIONS = 16, 9


@dataclass(frozen=True)
class ClassicFeatures:
    """Blocks of features of N photos.

    Parameters
    ----------
    blocks : mapping of BlockName to ndarray of shape (N, D), float32
        Each row is of norm 1, or 0 where there is nothing to see.
    dataset : Dataset
        The usable photos, in the order of the rows.
    """

    blocks: Mapping[BlockName, NDArray[np.float32]]
    dataset: Dataset

    def join(self, names: tuple[BlockName, ...], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Some of the blocks side by side, (N, D), of some rows or all; each block weighs the same."""
        blocks = [self.blocks[name] for name in names]
        return np.concatenate(blocks if rows is None else [block[rows] for block in blocks], axis=1)


def measure_colours(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histogram of hue, saturation and value together, of the whole photo and of its middle.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
        Upright sRGB, at least 4 pixels high and wide.

    Returns
    -------
    ndarray of shape (384,), float32
        Square roots of shares, of norm 1: their distance is that of Hellinger.

    Raises
    ------
    MissingPackageError
        If scikit-image is not installed.

    References
    ----------
    Swain and Ballard, "Color indexing", IJCV 1991. Arandjelovic and Zisserman, "Three things everyone should know to
    improve object retrieval", CVPR 2012: square roots.

    Examples
    --------
    >>> red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    >>> measure_colours(red).shape, int(np.count_nonzero(measure_colours(red)))
    ((384,), 2)
    """
    hsv = _import_skimage("color").rgb2hsv(pixels)
    n_bins = np.array([_N_HUES, _N_SATURATIONS, _N_VALUES])
    hue, saturation, value = np.moveaxis(np.minimum((hsv * n_bins).astype(np.intp), n_bins - 1), 2, 0)
    bins = (hue * _N_SATURATIONS + saturation) * _N_VALUES + value
    height, width = bins.shape
    middle = bins[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return _take_roots([np.bincount(part.ravel(), minlength=int(n_bins.prod())) for part in (bins, middle)])


def measure_texture(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of local binary patterns at two radii, in each quarter of the photo.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
        Upright sRGB, at least 4 pixels high and wide.

    Returns
    -------
    ndarray of shape (472,), float32
        Square roots of shares, of norm 1.

    Raises
    ------
    MissingPackageError
        If scikit-image is not installed.

    References
    ----------
    Ojala, Pietikainen and Maenpaa, "Multiresolution gray-scale and rotation invariant texture classification with local
    binary patterns", PAMI 2002.

    Examples
    --------
    >>> measure_texture(np.zeros((16, 16, 3), np.uint8)).shape
    (472,)
    """
    feature = _import_skimage("feature")
    gray = np.rint(_import_skimage("color").rgb2gray(pixels) * 255).astype(np.uint8)
    counts = []
    for radius in _RADII:
        patterns = feature.local_binary_pattern(gray, 8, radius, "nri_uniform").astype(np.intp)
        for half in np.array_split(patterns, 2):
            counts += [np.bincount(cell.ravel(), minlength=_N_PATTERNS) for cell in np.array_split(half, 2, axis=1)]
    return _take_roots(counts)


def measure_shape(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of oriented gradients, of the strongest channel, in cells of 16 pixels.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
        Upright sRGB; of `SIZE_PX` on each side it gives 1,764 numbers.

    Returns
    -------
    ndarray of shape (D,), float32
        Of norm 1, or all 0 for a photo without an edge.

    Raises
    ------
    MissingPackageError
        If scikit-image is not installed.

    References
    ----------
    Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005.

    Examples
    --------
    >>> measure_shape(np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)).shape
    (1764,)
    """
    found = _import_skimage("feature").hog(
        pixels,
        orientations=_N_ORIENTATIONS,
        pixels_per_cell=(_CELL_PX, _CELL_PX),
        cells_per_block=(2, 2),
        channel_axis=-1,
    )
    norm = float(np.linalg.norm(found))
    return np.asarray(found / norm if norm else found, np.float32)


def extract_classic_features(dataset: Dataset, *, n_workers: int | None = None) -> ClassicFeatures:
    """Read photos and measure all three blocks of each.

    Parameters
    ----------
    dataset : Dataset
        N photos.
    n_workers : int, optional
        Threads that read and measure; as many as Python sees fit where not given.

    Returns
    -------
    ClassicFeatures
        Of the usable photos; the others have joined the ``skipped`` of its dataset.

    Raises
    ------
    DataError
        If no photo is usable.
    MissingPackageError
        If scikit-image is not installed.
    """
    _import_skimage("feature")  # said before the first photo is read
    pool = ThreadPoolExecutor(n_workers)
    try:
        outcomes = list(pool.map(_measure_photo, dataset.photos))
    finally:
        pool.shutdown(cancel_futures=True)
    errors = {i: one for i, one in enumerate(outcomes) if isinstance(one, PhotoError)}
    clean = dataset.leave_out(errors)
    rows = [one for one in outcomes if not isinstance(one, PhotoError)]
    names: tuple[BlockName, ...] = ("colour", "texture", "shape")
    return ClassicFeatures({name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}, clean)


def _measure_photo(photo: Photo) -> tuple[NDArray[np.float32], ...] | PhotoError:
    try:
        pixels = _PREPROCESSING.read(read_unchanged(photo.path, photo.sha256))
    except PhotoError as error:
        return error
    return measure_colours(pixels), measure_texture(pixels), measure_shape(pixels)


def _take_roots(counts: list[NDArray[np.intp]]) -> NDArray[np.float32]:
    """Shares of several histograms, together of sum 1, and their roots."""
    shares = np.concatenate([one / (one.sum() * len(counts)) for one in counts])
    return np.asarray(np.sqrt(shares), np.float32)


def _import_skimage(name: str) -> ModuleType:
    """A part of scikit-image, which takes a second to import and is in no other extra."""
    import importlib

    try:
        return importlib.import_module(f"skimage.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "skimage":
            raise
        raise MissingPackageError("scikit-image", "benchmark", "for features of colour, texture and shape") from error
