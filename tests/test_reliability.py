"""The calibration error is the plain one, its interval knows groups, and chance is told from fault."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import DataError
from pomona.reliability import N_BINS, measure_reliability

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _measure_plainly(sureness: NDArray[Any], hits: NDArray[Any], weights: NDArray[Any]) -> float:
    """Expected calibration error, photo by photo and bin by bin."""
    total = 0.0
    for number in range(N_BINS):
        inside = [
            i
            for i, sure in enumerate(sureness)
            if number / N_BINS <= sure and (sure < (number + 1) / N_BINS or number == N_BINS - 1)
        ]
        mass = sum(weights[i] for i in inside)
        if mass:
            right = sum(weights[i] * hits[i] for i in inside) / mass
            sure = sum(weights[i] * sureness[i] for i in inside) / mass
            total += mass / sum(weights) * abs(right - sure)
    return float(total)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
def test_the_error_is_that_of_a_plain_loop(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    sureness, hits, weights = rng.random(n), rng.random(n) < 0.6, rng.uniform(0.1, 3, n)
    sureness[rng.random(n) < 0.2] = 1.0
    sureness[rng.random(n) < 0.1] = 0.0
    found = measure_reliability(sureness, hits, weights=weights)
    assert found.ece == pytest.approx(_measure_plainly(sureness, hits, weights), abs=1e-9)
    assert 0 <= found.low <= found.ece <= found.high <= 1
    assert sum(found.share) == pytest.approx(1)
    assert len(found.sureness) == len(found.right) == len(found.share) <= N_BINS
    assert list(found.sureness) == sorted(found.sureness)


def test_where_sureness_is_kept_the_error_is_what_chance_makes() -> None:
    errors, chances, lows = [], [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        sureness = rng.uniform(0.3, 1, 300)
        found = measure_reliability(sureness, rng.random(300) < sureness, seed=seed)
        errors.append(found.ece)
        chances.append(found.by_chance)
        lows.append(found.low)
    assert np.mean(errors) == pytest.approx(np.mean(chances), rel=0.1)
    assert max(lows) < np.mean(chances)
    assert np.median(lows) < 0.01
    rng = np.random.default_rng(0)
    boasting = measure_reliability(np.full(400, 0.95), rng.random(400) < 0.7)
    assert boasting.low > 5 * boasting.by_chance


def test_photos_of_one_group_are_no_independent_witnesses() -> None:
    rng = np.random.default_rng(0)
    sureness, hits = np.full(300, 0.8), np.repeat(rng.random(20) < 0.6, 15)
    groups = np.repeat([f"shot {i}" for i in range(20)], 15)
    alone, grouped = measure_reliability(sureness, hits), measure_reliability(sureness, hits, groups=groups)
    assert grouped.ece == pytest.approx(alone.ece)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_a_weight_of_two_is_the_same_photo_twice() -> None:
    rng = np.random.default_rng(1)
    sureness, hits, weights = rng.random(60), rng.random(60) < 0.5, rng.integers(1, 4, 60)
    found = measure_reliability(sureness, hits, weights=weights)
    again = measure_reliability(np.repeat(sureness, weights), np.repeat(hits, weights))
    assert (found.ece, found.sureness, found.right, found.share) == (
        pytest.approx(again.ece),
        pytest.approx(again.sureness),
        pytest.approx(again.right),
        pytest.approx(again.share),
    )


def test_the_ends_of_the_range_have_their_bins() -> None:
    found = measure_reliability(np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, False, True, True]))
    assert (found.ece, found.by_chance, found.sureness, found.right) == (0, 0, (0, 1), (0, 1))
    wrong = measure_reliability(np.array([0.0, 1.0]), np.array([True, False]))
    assert (wrong.ece, wrong.n) == (1, 2)
    rounded = measure_reliability(np.array([1.0000001], np.float32), np.array([True]))
    assert rounded.ece < 1e-6


def test_it_is_written_as_plain_values() -> None:
    content = json.loads(json.dumps(measure_reliability(np.array([0.2, 0.9]), np.array([False, True])).to_dict()))
    assert content.keys() == {"ece", "ece_interval", "by_chance", "sureness", "right", "share", "n"}
    assert content["ece_interval"][0] <= content["ece"] <= content["ece_interval"][1]


@pytest.mark.parametrize(
    ("sureness", "hits", "message"),
    [
        ([], [], "wanted a sureness for each answer"),
        ([0.5], [True, False], "wanted a sureness for each answer"),
        ([[0.5]], [[True]], "wanted a sureness for each answer"),
        ([0.5, 1.2], [True, True], "wanted numbers from 0 to 1, got 0.5 to 1.2"),
        ([-0.1], [True], "wanted numbers from 0 to 1"),
        ([0.5, np.nan], [True, True], "wanted numbers from 0 to 1"),
    ],
)
def test_what_is_no_sureness_is_refused(sureness: list[Any], hits: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure_reliability(np.array(sureness), np.array(hits, bool))
