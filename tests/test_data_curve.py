"""What twice the photos would bring follows the law of the errors, and is not said where little was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.data_curve import CurvePoint, DataCurve, forecast_twice


@given(st.floats(0.02, 0.9), st.floats(0, 1), st.floats(1, 100), st.integers(3, 6))
def test_a_power_law_is_recovered(error: float, power: float, first: float, n_points: int) -> None:
    counts = first * 2.0 ** np.arange(n_points)
    errors = error * (counts / first) ** -power
    found = forecast_twice(counts.tolist(), np.tile(1 - errors, (3, 1)))
    wanted = 1 - error * (2 * counts[-1] / first) ** -power
    assert found == pytest.approx((wanted, wanted, wanted), abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_more_photos_are_forecast_neither_to_harm_nor_to_halve_the_errors_twice(seed: int) -> None:
    drawn = np.random.default_rng(seed).random((50, 4))
    drawn[:, 3] = np.where(np.random.default_rng(seed).random(50) < 0.3, 1, drawn[:, 3])
    found = forecast_twice([5, 10, 20, 40], drawn)
    assert found is not None
    accuracy, low, high = found
    assert 0 <= low <= accuracy <= high <= 1
    assert drawn[0, -1] <= accuracy <= (1 + drawn[0, -1]) / 2 + 1e-3


def test_its_interval_holds_what_comes() -> None:
    n_held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        errors = 0.5 * np.array([10, 20, 40, 80]) ** -0.4
        measured = 1 - rng.binomial(400, errors) / 400
        again = 1 - rng.binomial(400, 1 - measured, (300, 4)) / 400
        found = forecast_twice([10, 20, 40, 80], np.vstack([measured, again]))
        assert found is not None
        n_held += found[1] <= 1 - 0.5 * 160**-0.4 <= found[2]
    assert n_held / 200 > 0.85


def test_two_points_forecast_nothing() -> None:
    assert forecast_twice([5, 10], np.full((9, 2), 0.5)) is None
    assert forecast_twice([], np.zeros((9, 0))) is None
    point = CurvePoint(5, 0.5, 0.4, 0.6)
    assert DataCurve((point,), None).to_dict() == {"points": [vars(point)], "twice": None}
    assert DataCurve((), point).to_dict()["twice"]["n_per_class"] == 5
