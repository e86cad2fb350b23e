"""How often the answer is right against the photos learnt from, and what twice as many would bring.

In: accuracies of heads that learnt parts of the photos. Out: a `DataCurve` with its forecast.
Why: whether to take more photos or to stop is the first question of whoever has to take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_FEWEST = 3  # points that a forecast stands on
_LARGEST_POWER = 1.0


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy at one number of photos.

    Parameters
    ----------
    n_per_class : float
        Photos a class, on average.
    accuracy : float
        Share right, 0-1.
    low, high : float
        Its 95 % interval.
    """

    n_per_class: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class DataCurve:
    """Accuracy against photos.

    Parameters
    ----------
    points : tuple of CurvePoint
        Fewest photos first; the last is all that there are, less what a fold holds out.
    twice : CurvePoint or None
        What twice the photos of the last point would bring, with an interval for the curve alone; None where too little
        was measured to say.
    """

    points: tuple[CurvePoint, ...]
    twice: CurvePoint | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        twice = None if self.twice is None else dict(vars(self.twice))
        return {"points": [dict(vars(point)) for point in self.points], "twice": twice}


def forecast_twice(n_per_class: Sequence[float], drawn: NDArray[np.floating]) -> tuple[float, float, float] | None:
    """What twice as many photos would bring, by a power law of the errors.

    Parameters
    ----------
    n_per_class : sequence of float, (P,)
        Photos a class at each point, fewest first.
    drawn : ndarray of shape (B, P)
        Accuracies: the first row as measured, the others drawn again from the groups of photos.

    Returns
    -------
    accuracy, low, high : float
        0-1; None where there are fewer than three points.

    References
    ----------
    Hestness et al., Deep learning scaling is predictable, empirically, 2017.
    Figueroa et al., Predicting sample size required for classification performance, BMC Medical Informatics 12, 2012.

    Examples
    --------
    >>> errors = 0.4 * np.array([1, 2, 4]) ** -0.5
    >>> found = forecast_twice([10, 20, 40], np.tile(1 - errors, (2, 1)))
    >>> round(found[0], 3), round(1 - 0.4 * 8**-0.5, 3)
    (0.859, 0.859)
    """
    if len(n_per_class) < _FEWEST:
        return None
    steps = np.log(np.asarray(n_per_class, np.float64))
    errors = np.log(np.clip(1 - drawn, 1e-4, 1))
    middle = steps.mean()
    slopes = (errors - errors.mean(axis=1, keepdims=True)) @ (steps - middle) / np.square(steps - middle).sum()
    slopes = np.clip(slopes, -_LARGEST_POWER, 0)
    # From the last point on: where the law bends, that is the one that counts.
    ahead = np.maximum(1 - np.exp(errors[:, -1] + slopes * np.log(2)), drawn[:, -1])  # nothing is below what there is
    low, high = np.quantile(ahead[1:], [0.025, 0.975]) if len(ahead) > 1 else (ahead[0], ahead[0])
    found = float(ahead[0])
    return found, min(found, float(low)), max(found, float(high))
