"""Curves are valid SVG that stands alone, holds every point inside its frame, and marks the best."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pomona.curves import CHINESE, ENGLISH, CurveLabels, Spot, draw_learning_curves, draw_lr_curve, draw_spots
from pomona.lr_range import RangeResult, find_lr
from pomona.run_log import Row

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [
    Row(epoch, epoch, 1, 1, 2 / epoch, 0.5 + epoch / 40, 3 / epoch, 0.6 + 0.1 * (epoch == 7)) for epoch in range(1, 11)
]


def texts_of(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def points_of(svg: str, *, dashed: bool) -> list[list[tuple[float, float]]]:
    """Points of each curve: paths of lines alone."""
    paths = [node for node in ET.fromstring(svg).iter(f"{SVG}path") if node.get("stroke-linejoin")]
    kept = [node.get("d", "") for node in paths if (node.get("stroke-dasharray") is not None) == dashed]
    return [
        [tuple(float(number) for number in pair.split()) for pair in d[1:].split("L")]  # type: ignore[misc]
        for d in kept
        if "H" not in d and "V" not in d
    ]


def test_both_panels_hold_both_curves_and_mark_the_best() -> None:
    svg = draw_learning_curves(ROWS)
    words = texts_of(svg)
    assert words.count("train") == words.count("validation") == words.count("epoch") == 2
    assert "Loss" in words
    assert "Accuracy" in words
    assert "0.3" in words  # the smallest loss
    assert "70.0%" in words  # the largest accuracy, neither the first nor the last
    (train_loss, train_share), (loss, share) = points_of(svg, dashed=True), points_of(svg, dashed=False)
    assert [len(curve) for curve in (train_loss, train_share, loss, share)] == [10] * 4
    assert [y for _, y in loss] == sorted(y for _, y in loss)  # a falling loss: y grows downward
    assert min(range(10), key=lambda at: share[at][1]) == 6
    rings = [node for node in ET.fromstring(svg).iter(f"{SVG}circle") if node.get("fill") == "none"]
    assert [(float(node.get("cx", "")), float(node.get("cy", ""))) for node in rings] == [loss[9], share[6]]


def test_it_speaks_both_languages_and_no_other_page() -> None:
    words = texts_of(draw_learning_curves(ROWS, CHINESE))
    assert {"损失", "准确率", "训练", "验证", "轮次"} <= set(words)
    assert not {"Loss", "train", "epoch"} & set(words)
    svg = draw_learning_curves(ROWS, CurveLabels(loss='<script> & "quotes"'))
    assert '<script> & "quotes"' in texts_of(svg)
    assert "<script>" not in svg
    for text in (svg, draw_lr_curve(find_lr(lambda _lr: 1.0), ENGLISH)):
        assert re.findall(r"(?:href|src|url|id)\s*[=(]", text) == []
        assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


VALUES = st.one_of(st.none(), st.floats(), st.floats(0, 1), st.just(math.nan))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), max_size=60))
def test_any_log_can_be_drawn_inside_its_frame(values: list[tuple[float | None, ...]]) -> None:
    rows = [Row(at / 2, at, 1, 1, *four) for at, four in enumerate(values)]
    svg = draw_learning_curves(rows)
    root = ET.fromstring(svg)
    height = float(root.get("viewBox", "").split()[3])
    curves = points_of(svg, dashed=True) + points_of(svg, dashed=False)
    assert all(0 <= x <= 360 and 0 <= y <= height for curve in curves for x, y in curve)
    n_finite = sum(value is not None and abs(value) < 1e30 for four in values for value in four)
    assert sum(len(curve) for curve in curves) == n_finite
    if not n_finite:
        assert texts_of(svg) == ["nothing was measured"]


def test_long_runs_are_lines_without_dots() -> None:
    rows = [Row(at / 10, at, 1, 1, 1 / (1 + at), None) for at in range(500)]
    svg = draw_learning_curves(rows)
    assert "<circle" not in svg
    assert len(svg) < 12_000
    assert "Accuracy" not in texts_of(svg)


def test_the_range_test_is_drawn_with_its_suggestion() -> None:
    result = find_lr(lambda lr: 1 / (1 + 1e3 * lr) + 30 * lr**2)
    svg = draw_lr_curve(result)
    words = texts_of(svg)
    assert f"suggested {result.suggested:.2g}" in words
    assert "10⁻⁶" in words
    assert "10⁰" in words or len(result.lrs) < 60
    (curve,) = points_of(svg, dashed=False)
    assert len(curve) == len(result.lrs)
    steps = np.diff([x for x, _ in curve])
    assert steps.min() > 0
    assert np.ptp(steps) < 0.25  # the axis is logarithmic
    mark = re.search(r'd="M([\d.]+) [\d.]+V', svg)
    assert mark is not None
    nearest = int(np.abs(np.log(result.lrs / result.suggested)).argmin())
    assert float(mark[1]) == pytest.approx(curve[nearest][0], abs=6)


def test_what_broke_does_not_flatten_what_was_learnt() -> None:
    lrs = np.geomspace(1e-6, 1, 60)
    losses = np.where(lrs < 0.01, 1.0 - lrs * 50, 1e12)
    (curve,) = points_of(draw_lr_curve(RangeResult(lrs, losses, losses, 1e-3, "")), dashed=False)
    heights = [y for _, y in curve[:39]]
    assert max(heights) - min(heights) > 20


@pytest.mark.parametrize("n", [1, 2])
def test_a_sweep_of_a_step_or_two_is_drawn(n: int) -> None:
    values = np.ones(n)
    svg = draw_lr_curve(RangeResult(np.geomspace(1e-6, 1e-5, 2)[:n], values, values, 1e-7, ""))
    assert "suggested 1e-07" in texts_of(svg)


# --- spots ----------------------------------------------------------------------------------------------------------


def test_spots_stand_by_time_and_share_with_their_names() -> None:
    spots = [Spot("slow & poor", 100, 0.4, 0.3, 0.5), Spot("quick", 1, 0.8, 0.7, 0.9, True)]
    svg = draw_spots(spots)
    poor, quick = (
        (float(node.get("cx", "")), float(node.get("cy", ""))) for node in ET.fromstring(svg).iter(f"{SVG}circle")
    )
    assert quick[0] < poor[0]
    assert quick[1] < poor[1]
    assert {"slow & poor 40%", "quick 80%", "seconds", "10"} <= set(texts_of(svg))


@settings(deadline=None, max_examples=30)
@example([(11690.0, 0.0), (1166.0, 0.0), (10564.0, 0.0)])
@example([(1.0, 0.0)] * 7)
@example([(1.0, 1.0)] * 7)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1)), max_size=7))
def test_any_spots_are_drawn_inside_and_no_two_names_lie_on_each_other(values: list[tuple[float, float]]) -> None:
    svg = draw_spots([Spot(f"way {i}", seconds, value, value, value) for i, (seconds, value) in enumerate(values)])
    root = ET.fromstring(svg)
    width, height = (float(side) for side in root.get("viewBox", "").split()[2:])
    names = []
    for node in root.iter(f"{SVG}text"):
        text = "".join(node.itertext())
        if text.startswith("way "):
            x, y = float(node.get("x", "")), float(node.get("y", ""))
            left = x - 6 * len(text) if node.get("text-anchor") == "end" else x
            assert left >= 0
            assert left + 6 * len(text) <= width
            assert 0 < y < height
            names.append((left, y, 6 * len(text)))
    assert len(names) == len(values)
    for i, (left, y, length) in enumerate(names):
        for other_left, other_y, other_length in names[:i]:
            assert abs(y - other_y) >= 12 or left >= other_left + other_length or other_left >= left + length
