"""Which of two is right more often on the same photos, and whether that can be told from chance.

In: for each photo, whether the one and the other are right. Out: a `Difference` with its interval.
Why: two shares with an interval each overlap long before the two cannot be told apart: most photos both have right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pomona.errors import DataError
from pomona.evaluation import measure_design_effect

if TYPE_CHECKING:
    from numpy.typing import NDArray

Verdict = Literal["better", "worse", "no difference that can be told from chance"]

_Z = 1.959963984540054


@dataclass(frozen=True)
class Difference:
    """How much more often one of two is right on the same photos.

    Parameters
    ----------
    gain : float
        Share right of the second less that of the first, -1 to 1.
    low, high : float
        Ends of its 95 % interval.
    n_better, n_worse : int
        Photos that only the second, and only the first, has right.
    n : int
        Photos.

    References
    ----------
    McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12, 1947.
    """

    gain: float
    low: float
    high: float
    n_better: int
    n_worse: int
    n: int

    @property
    def p_value(self) -> float:
        """Chance of as large a difference, either way, if neither were better: McNemar's exact test, photo by photo."""
        n, least = self.n_better + self.n_worse, min(self.n_better, self.n_worse)
        if not n:
            return 1.0
        tail = math.fsum(
            math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
            for k in range(least + 1)
        )
        return min(1.0, 2 * tail)

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves zero out."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference that can be told from chance"

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain values for JSON."""
        return {
            "difference": self.gain,
            "difference_interval": [self.low, self.high],
            "n_better": self.n_better,
            "n_worse": self.n_worse,
            "p_value": self.p_value,
            "verdict": self.verdict,
        }


def compare_answers(
    before: NDArray[np.bool_], after: NDArray[np.bool_], groups: NDArray[np.str_] | None = None
) -> Difference:
    """Compare what two have right on the same photos.

    Parameters
    ----------
    before, after : ndarray of shape (N,), bool
        Whether the first, and the second, is right on each photo.
    groups : ndarray of shape (N,), optional
        Photos of one mark are not independent, which widens the interval.

    Returns
    -------
    Difference
        With the interval of Wald on counts that each have a half added, which keeps its promise for few photos and
        where no answer differs. It covers which photos were asked for, not which were learnt from.

    Raises
    ------
    DataError
        If there is no photo, or the lengths differ.

    References
    ----------
    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24, 2005.

    Examples
    --------
    >>> found = compare_answers(np.array([True, False] * 50), np.ones(100, bool))
    >>> found.n_better, found.n_worse, f"{found.gain:.2f} ({found.low:.2f} to {found.high:.2f})", found.verdict
    (50, 0, '0.50 (0.39 to 0.59)', 'better')
    """
    n = len(before)
    if not n or after.shape != before.shape or (groups is not None and len(groups) != n):
        raise DataError(f"wanted answers for the same photos, one or more, got {len(before)} and {len(after)}")
    change = after.astype(np.float64) - before
    n_better, n_worse = int((change > 0).sum()), int((change < 0).sum())
    middle = (n_better - n_worse) / (n + 2)
    variance = (n_better + n_worse + 1 - (n_better - n_worse) ** 2 / (n + 2)) / (n + 2) ** 2
    group_of = None if groups is None else np.unique(groups, return_inverse=True)[1].astype(np.int64)
    half = _Z * float(np.sqrt(variance * measure_design_effect(change, group_of)))
    return Difference(float(change.mean()), max(-1.0, middle - half), min(1.0, middle + half), n_better, n_worse, n)


def write_points(share: float) -> str:
    """Write a difference of shares in points of 100, with its sign.

    Examples
    --------
    >>> write_points(0.0123), write_points(-0.2), write_points(0.0)
    ('+1.2', '−20.0', '0.0')
    """
    text = f"{100 * abs(share):.1f}"
    return text if float(text) == 0 else f"{'−' if share < 0 else '+'}{text}"
