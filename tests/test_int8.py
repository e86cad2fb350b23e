"""Ranges are finite or refused; rounded weights keep their sums and never saturate 16 bits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pomona.backbone import BACKBONES, list_blocks
from pomona.errors import BackboneError
from pomona.int8 import Range, check_ranges, expect_relu6, find_step, parse_ranges, read_ranges, round_weight

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6), *[st.shared(st.sampled_from([1, 3, 5]), key="kernel")] * 2)
WEIGHTS = hnp.arrays(
    np.float32, SHAPES, elements=st.floats(-20, 20, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
)


@given(WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_rounded_weights_stay_near_keep_their_sum_and_fit_16_bits(weight: np.ndarray) -> None:
    values, steps = round_weight(weight)
    assert values.dtype == np.int8
    assert values.shape == weight.shape
    error = values * steps[:, None, None, None] - weight
    tolerance = 1 if weight.shape[-1] > 1 else 0.5
    assert (np.abs(error) <= (tolerance + 1e-3) * steps[:, None, None, None]).all()
    if weight.shape[-1] > 1:
        assert (np.abs(error.sum(axis=(1, 2, 3))) <= 0.51 * steps).all()
    if weight.shape[1] > 1:
        ordered = np.sort(values.reshape(len(values), -1).astype(int), axis=1)
        assert 255 * max(ordered[:, -2:].sum(axis=1).max(), -ordered[:, :2].sum(axis=1).min()) < 2**15


def test_a_depthwise_filter_uses_all_of_its_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(50, 1, 3, 3)).astype(np.float32)
    values, _ = round_weight(weight)
    np.testing.assert_array_equal(np.abs(values.astype(int)).max(axis=(1, 2, 3)), 127)


@given(st.floats(-100, 0), st.floats(0, 100))
def test_zero_is_met_exactly(low: float, high: float) -> None:
    if high - low > 1e-3:
        step, zero = find_step(low, high)
        assert 0 <= zero <= 255
        assert abs((0 - float(zero)) * step - low) <= step * 0.51
        assert abs((255 - float(zero)) * step - high) <= step * 0.51


def test_the_mean_after_relu6_is_that_of_many_samples() -> None:
    mean, spread = np.array([-3.0, -0.5, 0.0, 2.0, 5.0, 6.5]), np.array([1.0, 2.0, 0.1, 4.0, 1.0, 3.0])
    samples = np.random.default_rng(0).normal(mean, spread, (400_000, 6)).clip(0, 6).mean(axis=0)
    np.testing.assert_allclose(expect_relu6(mean, spread), samples, atol=0.02)
    np.testing.assert_allclose(expect_relu6(np.array([2.0, -1.0]), np.zeros(2)), [2.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_shipped_ranges_fit_their_backbone(backbone: object) -> None:
    name = backbone.name  # type: ignore[attr-defined]
    check_ranges(read_ranges(name), [block.name for block in list_blocks(name)])


@pytest.mark.parametrize("bad", ["[NaN, 1]", "[-1, Infinity]", "[-Infinity, 1]", "[0, 0]", "[1, 2]", "[-2, -1]"])
def test_a_range_that_is_not_finite_around_zero_is_refused(bad: str) -> None:
    text = f'{{"backbones": {{"lite0": {{"stage1": [-1, 1], "stage2.1": {bad}}}}}}}'
    with pytest.raises(BackboneError, match=r"ranges: wanted finite numbers low <= 0 <= high for stage2\.1, got"):
        parse_ranges(text, "lite0")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"backbones": {}}', '{"backbones": {"lite0": 3}}', '{"backbones": {"lite0": {"stage1": [1]}}}',
     '{"backbones": {"lite0": {"stage1": ["a", 2]}}}'],
)  # fmt: skip
def test_a_damaged_file_of_ranges_is_a_backbone_error(text: str) -> None:
    with pytest.raises(BackboneError, match=r"wanted \[low, high\] of each block of lite0 in ranges.json, got"):
        parse_ranges(text, "lite0")


def test_ranges_of_other_tensors_are_refused() -> None:
    one = Range("stage1", -1.0, 1.0)
    assert parse_ranges(json.dumps({"backbones": {"x": {"stage1": [-1, 1]}}}), "x") == (one,)
    for wanted in ([], ["stage2"], ["stage1", "stage2"]):
        with pytest.raises(BackboneError, match=r"ranges: wanted those of .*, got stage1"):
            check_ranges([one], wanted)
