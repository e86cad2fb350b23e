"""What becomes of a photo on its way from bytes to an answer, stage by stage.

In: a bundle, and the content of photos. Out: a `Trace` each. What runs an export gives the same, as far as it can show.
Why: two that answer differently can be laid beside each other at every stage, and the first that differs is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from pomona.errors import PhotoError
from pomona.photo import decode_photo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle

StageName = Literal["decode", "resize", "scale", "network", "head"]
STAGES: tuple[StageName, ...] = ("decode", "resize", "scale", "network", "head")
"""From bytes to an answer, in order."""


@dataclass(frozen=True)
class Trace:
    """One photo at each stage; None where a stage is not shown.

    Parameters
    ----------
    outputs : mapping of str to ndarray, float32
        By name: ``probabilities`` (C,), ``features`` (D,), ``unknown`` () and ``heat_map`` (P, P) where there are such.
    pixels : ndarray of shape (H, W, 3), uint8, optional
        Decoded, upright, sRGB.
    square : ndarray of shape (S, S, 3), uint8, optional
        Resized.
    scaled : ndarray of shape (3, S, S), float32, optional
        As the first convolution takes it.
    """

    outputs: Mapping[str, NDArray[np.float32]]
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)
    square: NDArray[np.uint8] | None = field(default=None, repr=False)
    scaled: NDArray[np.float32] | None = field(default=None, repr=False)


class Runner(Protocol):
    """What runs an export on photos, in the runtime that it is for."""

    @property
    def name(self) -> str:
        """Runtime and version, such as ``ONNX Runtime 1.32.0``."""
        ...

    @property
    def is_native(self) -> bool:
        """Whether it computes in 8 bits as the bundle itself does, so that both agree in int8, too."""
        ...

    def follow(self, photos: Sequence[bytes], *, shows_stages: bool) -> Iterator[Trace | PhotoError]:
        """Answer for the content of photo files, in order.

        Parameters
        ----------
        photos : sequence of bytes
            Content of files.
        shows_stages : bool
            Whether pixels, square and scaled pixels are wanted, too.
        """
        ...


def follow_bundle(bundle: Bundle, photos: Sequence[bytes]) -> Iterator[Trace | PhotoError]:
    """What a bundle makes of photos: what an export is held against.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    photos : sequence of bytes
        Content of files.

    Yields
    ------
    Trace or PhotoError
        All but the scaled pixels, in order; or why a photo could not be used.
    """
    kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    preprocessing = bundle.preprocessing

    def load_pixels(i: int) -> NDArray[np.uint8]:
        pixels = decode_photo(photos[i], at_least_px=preprocessing.decode_px)
        kept[i] = pixels, preprocessing.apply(pixels)
        return kept[i][1]

    for i, outputs in enumerate(bundle.whole_engine.stream(len(photos), load_pixels)):
        if isinstance(outputs, PhotoError):
            yield outputs
        else:
            pixels, square = kept.pop(i)
            yield Trace(outputs, pixels, square)


def scale_square(bundle: Bundle, square: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scaled pixels (3, S, S) of a square (S, S, 3), by the bundle's contract."""
    preprocessing = bundle.preprocessing
    offset, scale = (np.float32(np.broadcast_to(v, 3)) for v in (preprocessing.offset, preprocessing.scale))
    return np.ascontiguousarray(((square.astype(np.float32) - offset) / scale).transpose(2, 0, 1))
