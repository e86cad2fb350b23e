"""A learning rate, found by training a little at every one: the range test.

In: a function that takes one training step at a learning rate and returns its loss. Out: the rates, the losses, and
the rate to train with.
Why: the rate is the knob that matters most, and it differs by a factor of a thousand between optimizers and networks. A
sweep of 60 steps shows where learning breaks.

References
----------
Smith, "Cyclical learning rates for training neural networks", WACV 2017.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.errors import NotFiniteError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_DIVERGED = 4.0
_MEMORY = 0.7
_WIDTH_STEPS = 2.0
_MARGIN, _BREAK_MARGIN = 10.0, 60.0
_TOLERANCES = (0.02, 0.5)
_SMALLEST_LOSS = 1e-12


class RangeResult(NamedTuple):
    """What a range test saw.

    Parameters
    ----------
    lrs : ndarray of shape (K,), float64
        Rates that were tried, rising.
    losses : ndarray of shape (K,), float64
        The loss of each step, all finite.
    smoothed : ndarray of shape (K,), float64
        The same without most of the noise.
    suggested : float
        The rate to train with.
    reason : str
        Why this one, a sentence.
    """

    lrs: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggested: float
    reason: str


def find_lr(step: Callable[[float], float], *, low: float = 1e-6, high: float = 1.0, n_steps: int = 60) -> RangeResult:
    """Train at rates that rise from step to step, and suggest one.

    The sweep ends early where the loss is no number, or four times its best: a running mean of it, and two steps in a
    row, so that a hard batch is not taken for the end.

    The suggestion is a tenth of the largest rate at which the smoothed loss was as small as at its best, but for the
    noise. Where there is much to learn that is about a tenth of the rate at the minimum, a common rule. After a head
    that was fitted first there is little to learn in 60 steps, the loss is flat until it breaks, and the place of the
    minimum, or of the steepest fall, is chance; the end of the flat part is not. Noise is the median distance between
    losses and smoothed losses, as a factor; smoothing is geometric, over about five steps.

    A head that fits its photos well begins at its best, and rises from rates on that layers below it have not begun to
    learn at. So the suggestion is no less than a sixtieth of the rate at which learning broke.

    Parameters
    ----------
    step : callable
        Takes a learning rate, trains one step with it, returns the loss of its batch before the step. The caller
        puts weights and optimizer back afterwards.
    low, high : float
        First and last rate, above 0.
    n_steps : int
        Rates, 3 or more, a constant factor apart.

    Returns
    -------
    RangeResult
        Rates and losses up to where learning broke.

    Raises
    ------
    NotFiniteError
        If the loss is no number from the first step on.
    OptionError
        If the range cannot be used.

    Examples
    --------
    >>> weight = [1.0]  # a loss of weight^2 / 2 learns at any rate below 2
    >>> def step(lr):
    ...     loss = weight[0] ** 2 / 2
    ...     weight[0] -= lr * weight[0]
    ...     return loss
    >>> 0.1 < find_lr(step, high=10).suggested < 1
    True
    """
    if not (0 < low < high < math.inf and n_steps >= 3):
        raise OptionError(
            f"range test: wanted 0 < low < high and 3 steps or more, got {low:g} to {high:g} in {n_steps} steps"
        )
    lrs = np.geomspace(low, high, n_steps)
    losses = _sweep(step, lrs)
    if not len(losses):
        raise NotFiniteError(
            f"the loss was no number at the first step, at a learning rate of {low:g}: the network or a photo gives"
            " numbers that are not finite"
        )
    return _suggest(lrs[: len(losses)], losses, broke=len(losses) < n_steps)


def _sweep(step: Callable[[float], float], lrs: NDArray[np.float64]) -> NDArray[np.float64]:
    losses: list[float] = []
    total, best = 0.0, math.inf
    for lr in lrs.tolist():
        loss = float(step(lr))
        if not math.isfinite(loss):
            break
        losses.append(loss)
        total = _MEMORY * total + (1 - _MEMORY) * loss
        running = total / (1 - _MEMORY ** len(losses))
        best = min(best, running)
        if min(running, *losses[-2:]) > _DIVERGED * max(best, _SMALLEST_LOSS):
            break
    return np.array(losses)


def _suggest(lrs: NDArray[np.float64], losses: NDArray[np.float64], *, broke: bool) -> RangeResult:
    logs = np.log(np.maximum(losses, _SMALLEST_LOSS))
    smoothed = _smooth(logs)
    noise = float(np.clip(1.48 * np.median(np.abs(logs - smoothed)), *_TOLERANCES))
    last = int(np.flatnonzero(smoothed <= smoothed.min() + noise)[-1])
    end = f"the loss broke at {lrs[-1]:.2g}" if broke else f"the loss held up to {lrs[-1]:.2g}, where the test ended"
    reason = f"a tenth of {lrs[last]:.2g}, the largest rate at which the loss was still at its best; {end}"
    suggested = float(lrs[last]) / _MARGIN
    if broke and suggested < lrs[-1] / _BREAK_MARGIN:
        suggested = float(lrs[-1]) / _BREAK_MARGIN
        reason = f"a sixtieth of {lrs[-1]:.2g}, where the loss broke; it was at its best up to {lrs[last]:.2g}"
    return RangeResult(lrs, losses, np.exp(smoothed), suggested, reason)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of neighbours, weighted by a bell, so that nothing is shifted to later steps."""
    steps = np.arange(len(values))
    bell = np.exp(-0.5 * ((steps[:, None] - steps) / _WIDTH_STEPS) ** 2)
    return np.asarray(bell @ values / bell.sum(axis=1))
