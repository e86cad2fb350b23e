"""Numbers in 8 bits: ranges of activations, rounding of weights, and what the rounding shifts.

In: float32 weights, and what is known of the activations they meet. Out: whole numbers with their steps, and means.
Why: int8 networks are more than twice as fast where the CPU multiplies bytes. Plain rounding costs more than it must:
errors of the nine weights of a depthwise filter add up over a smooth photo. Here each filter keeps the sum of its
weights, and the bias takes up what is left of the mean error; batch norms foretell it, so no photo is needed.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RELU6 = (0.0, 6.0)
"""What a ReLU6 can give, by definition."""

MAX_WEIGHT = 127
"""Largest whole number that stands for a weight; also the most that two weights of one sign make in a wide filter."""


class Range(NamedTuple):
    """What an activation is quantised to: 256 even steps.

    Parameters
    ----------
    tensor : str
        Name of the tensor in the network.
    low, high : float
        Values below and above are clipped.
    """

    tensor: str
    low: float
    high: float


def read_ranges(name: str) -> tuple[Range, ...]:
    """Read the shipped ranges of a backbone.

    Raises
    ------
    BackboneError
        If the file is not as `bench/calibrate.py` writes it.

    Examples
    --------
    >>> read_ranges("lite0")[0].tensor
    'stage1'
    """
    return parse_ranges(_read_text(), name)


@functools.cache
def _read_text() -> str:
    return (resources.files("pomona") / "ranges.json").read_text(encoding="utf-8")


def parse_ranges(text: str, name: str) -> tuple[Range, ...]:
    """Read the ranges of a backbone from JSON text.

    Raises
    ------
    BackboneError
        If the text holds no ranges of that name, or some that cannot be used.
    """
    try:
        entries = json.loads(text)["backbones"][name]
        ranges = tuple(Range(tensor, float(low), float(high)) for tensor, (low, high) in entries.items())
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BackboneError(
            f"wanted [low, high] of each block of {name} in ranges.json, got {error!r}; install Pomona again"
        ) from error
    check_ranges(ranges, [one.tensor for one in ranges])
    return ranges


def check_ranges(ranges: Sequence[Range], tensors: Sequence[str]) -> None:
    """Refuse ranges that are not one a tensor, in order, each of finite numbers around zero.

    Raises
    ------
    BackboneError
        If one cannot be used.
    """
    if [one.tensor for one in ranges] != list(tensors):
        raise BackboneError(f"ranges: wanted those of {', '.join(tensors)}, got {', '.join(r.tensor for r in ranges)}")
    for one in ranges:
        if not (math.isfinite(one.low) and math.isfinite(one.high) and one.low <= 0 <= one.high and one.low < one.high):
            raise BackboneError(
                f"ranges: wanted finite numbers low <= 0 <= high for {one.tensor}, got {one.low} to {one.high}"
            )


def find_step(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Step and whole number of zero when a range is cut into 256 values.

    Examples
    --------
    >>> find_step(-1.0, 0.9921875)
    (np.float32(0.0078125), np.uint8(128))
    """
    step = np.float32((high - low) / 255)
    return step, np.uint8(round(-low / float(step)))


def round_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round the weights of a convolution; each filter larger than 1 x 1 keeps its sum to half a step.

    Parameters
    ----------
    weight : ndarray of shape (C, C_in / groups, K, K), float32
        Filters.

    Returns
    -------
    values : ndarray of the same shape, int8
        Whole numbers.
    steps : ndarray of shape (C,), float32
        What one of them is worth in each filter.

    Notes
    -----
    Neighbouring pixels are much alike, so a filter answers most to the sum of its weights. The sum is kept as seats are
    shared out by largest remainder: all weights are rounded down, then those that lost most are raised by one.

    CPUs without VNNI add two products of a byte and a weight in 16 bits, which hold 255 x 128. So no two weights of one
    sign in a filter over several channels make more than that: every CPU then computes the same.

    Examples
    --------
    >>> values, steps = round_weight(np.array([[[[4, 0.6], [0.6, 0.6]]]], np.float32) * np.float32(127 / 4))
    >>> values.ravel().tolist(), steps.tolist()
    ([127, 19, 19, 19], [1.0])
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    steps = np.maximum(_find_reach(flat, n_summed=min(2, weight.shape[1])) / MAX_WEIGHT, np.finfo(np.float32).tiny)
    exact = flat / steps.astype(np.float32)[:, None]
    values = np.rint(exact)
    if weight.shape[-1] > 1:
        values = np.floor(exact)
        n_raised = np.rint((exact - values).sum(axis=1))
        places = np.argsort(np.argsort(values - exact, axis=1, kind="stable"), axis=1)
        values += places < n_raised[:, None]
    values = np.clip(values, -MAX_WEIGHT, MAX_WEIGHT)
    return values.astype(np.int8).reshape(weight.shape), steps.astype(np.float32)


def _find_reach(filters: NDArray[np.float64], n_summed: int) -> NDArray[np.float64]:
    """Sum of the `n_summed` largest weights of one sign in each filter, but at least its largest weight."""
    ordered = np.sort(filters, axis=1)
    positive = np.maximum(ordered[:, -n_summed:], 0).sum(axis=1)
    negative = np.maximum(-ordered[:, :n_summed], 0).sum(axis=1)
    return np.asarray(np.maximum(positive, negative))


def expect_relu6(mean: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of a normal variable after ReLU6.

    Parameters
    ----------
    mean, spread : ndarray of shape (C,)
        Mean and standard deviation before it.

    References
    ----------
    .. [1] Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.

    Examples
    --------
    >>> expect_relu6(np.array([-9.0, 3.0, 50.0]), np.array([1.0, 1.0, 1.0])).round(3).tolist()
    [0.0, 3.0, 6.0]
    """
    spread = np.maximum(spread, 1e-9)
    low, high = ((bound - mean) / spread for bound in RELU6)
    density = (np.exp(-(low**2) / 2) - np.exp(-(high**2) / 2)) / math.sqrt(2 * math.pi)
    inside = _share_below(high) - _share_below(low)
    return np.asarray(mean * inside + spread * density + RELU6[1] * (1 - _share_below(high)))


def _share_below(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in z.tolist()])
