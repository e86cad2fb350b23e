"""Photos as gradient training sees them: features, activations of a frozen trunk, or pixels, in one view or several.

In: a dataset, an embedding and the network that is trained. Out: an `Examples`: what a step trains on, drawn at random,
and each photo whole, as it is predicted with.
Why: what is below the cut runs once a photo and view. A window of a larger view stands for a crop, and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pomona.activations import Activations, View, extract_views
from pomona.augmentation import augment, parse_augmentation
from pomona.backbone import PIXELS
from pomona.batches import centre_windows, crop_windows, draw_windows
from pomona.errors import OptionError
from pomona.features import extract_features
from pomona.tuning import enlarge_side

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pomona.augmentation import Step
    from pomona.dataset import Dataset
    from pomona.embedding import Embedding
    from pomona.network import Network
    from pomona.tuning import TuneOptions

WINDOW_SHARE = 0.78
"""Side of the windows that are trained on, as a share of `imgsz`."""

_LARGER_PIXELS = 1.15


@dataclass(frozen=True)
class _Source:
    """One view: maps with the channels first, lists of tokens or vectors, and the row of each photo."""

    values: torch.Tensor
    rows: NDArray[np.intp]

    @property
    def is_map(self) -> bool:
        return self.values.ndim == 4

    @property
    def side(self) -> int:
        return int(self.values.shape[2])


@dataclass
class Examples:
    """Photos in the form that is trained on.

    Parameters
    ----------
    dataset : Dataset
        The usable photos; rows below are those of its photos.
    sources : tuple
        The views; the first is the one that is predicted with.
    is_elastic : bool
        Whether the network takes windows of them.
    is_pixels : bool
        Whether they are pixels.
    steps : tuple of Step
        Augmentation drawn anew each time, of pixels.
    dtype : torch.dtype
        Of what is given.
    """

    dataset: Dataset
    sources: tuple[_Source, ...]
    is_elastic: bool = False
    is_pixels: bool = False
    steps: tuple[Step, ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one photo as it is trained on."""
        first = self.sources[0]
        n_channels, *sides = first.values.shape[1:]
        return (n_channels, *(self._window(first) for _ in sides)) if first.is_map else (n_channels, *sides)

    def draw(self, rows: NDArray[np.intp], generator: np.random.Generator) -> torch.Tensor:
        """Photos as a step trains on them: in a view, and a window and a mirror of it, drawn at random.

        Parameters
        ----------
        rows : ndarray of intp, (N,)
            Photos.
        generator : numpy.random.Generator
            Decides the draws.

        Returns
        -------
        Tensor of shape (N, C, H, W), (N, T, C) or (N, D)
            Activations or features; pixels as shares 0-1.
        """
        source = self.sources[int(generator.integers(len(self.sources)))]
        places = source.rows[rows]
        if not source.is_map or not (self.is_elastic or self.is_pixels):
            return source.values[torch.from_numpy(places)].to(self.dtype)
        windows = draw_windows(len(places), source.side, source.side, self._window(source), generator)
        x = crop_windows(source.values, windows, rows=places, dtype=self.dtype)
        if not self.is_pixels:
            return x
        seeds = [int(seed) for seed in generator.integers(0, 1 << 48, len(x))] if self.steps else []
        return augment(x / 255, self.steps, seeds=seeds) if self.steps else x / 255

    def read(self, rows: NDArray[np.intp], *, mirrored: bool = False) -> torch.Tensor:
        """Photos whole, in the view that is predicted with; or the middle of the next one, mirrored."""
        source = self.sources[min(1, len(self.sources) - 1) if mirrored else 0]
        places = source.rows[rows]
        if not source.is_map:
            return source.values[torch.from_numpy(places)].to(self.dtype)
        size = self._window(source) if mirrored else source.side
        windows = centre_windows(len(rows), source.side, source.side, size)._replace(
            mirrored=np.full(len(rows), mirrored)
        )
        x = crop_windows(source.values, windows, rows=places, dtype=self.dtype)
        return x / 255 if self.is_pixels else x

    def _window(self, source: _Source) -> int:
        side = self.sources[0].side
        if self.is_pixels:
            return side
        return max(1, round(WINDOW_SHARE * side)) if self.is_elastic else source.side


def load_features(
    dataset: Dataset,
    embedding: Embedding,
    options: TuneOptions,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Examples:
    """Features of a frozen network, to train a head alone.

    Raises
    ------
    OptionError
        If photos shall be augmented.
    DataError, NotFiniteError, StorageError
        As `extract_features`.
    """
    if parse_augmentation(options.augment):
        raise OptionError(
            "augment: wanted none with --tune head, where features are computed once, got "
            f"{options.augment}; take --tune tail"
        )
    features = extract_features(dataset, embedding, n_workers=n_workers, on_photo=on_photo)
    rows = np.arange(len(features.dataset.photos))
    return Examples(features.dataset, (_Source(torch.from_numpy(np.asarray(features.vectors)), rows),))


def load_examples(
    dataset: Dataset,
    embedding: Embedding,
    network: Network,
    options: TuneOptions,
    *,
    n_workers: int | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Examples:
    """Activations that a network is trained on, or pixels; what is not in the cache is computed.

    Parameters
    ----------
    dataset : Dataset
        Photos.
    embedding : Embedding
        Of one backbone.
    network : Network
        What is trained.
    options : TuneOptions
        `augment` and `views` of them.
    n_workers, on_photo
        As of `extract_views`.

    Raises
    ------
    DataError, NotFiniteError, StorageError
        As `extract_views`.
    """
    (backbone,) = embedding.backbones
    steps = parse_augmentation(options.augment)
    views = _list_views(backbone.preprocessing.size_px, network, steps, options.views)
    found = extract_views(dataset, backbone, network.layer, views, n_workers=n_workers, on_photo=on_photo)
    fewest = min(found, key=lambda one: len(one.dataset.photos))
    usable = set.intersection(*({photo.name for photo in one.dataset.photos} for one in found))
    photos = tuple(photo for photo in fewest.dataset.photos if photo.name in usable)
    return Examples(
        replace(fewest.dataset, photos=photos),
        tuple(_arrange(one, [photo.name for photo in photos]) for one in found),
        is_elastic=network.is_elastic,
        is_pixels=network.layer == PIXELS,
        steps=steps,
    )


def _list_views(size_px: int, network: Network, steps: tuple[Step, ...], n_augmented: int) -> list[View]:
    """Views of each photo that are kept; the first is the one that the head trained along predicts with."""
    whole = View(size_px)
    if network.layer == PIXELS:
        return [whole, View(enlarge_side(size_px, _LARGER_PIXELS))] if network.is_elastic else [whole]
    second = View(enlarge_side(size_px)) if network.is_elastic else View(size_px, parse_augmentation("flip@1"))
    augmented = [View(size_px, steps, seed=1 + copy) for copy in range(n_augmented if steps else 0)]
    return [whole, second, *augmented]


def _arrange(one: Activations, names: list[str]) -> _Source:
    place = {photo.name: row for photo, row in zip(one.dataset.photos, one.rows, strict=True)}
    values = torch.from_numpy(one.values)
    rows = np.array([place[name] for name in names], np.intp)
    return _Source(values.permute(0, 3, 1, 2) if values.ndim == 4 else values, rows)
