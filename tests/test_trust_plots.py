"""Plots of trust show what was measured, in any shape it comes in."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.conformal import NEVER, Nodes, Trade, trade_off
from pomona.data_curve import CurvePoint, DataCurve
from pomona.reliability import measure_reliability
from pomona.report_text import Words
from pomona.trust_plots import draw_data_curve, draw_reliability, draw_trades

ENGLISH, CHINESE = Words("en"), Words("zh")
SVG = "{http://www.w3.org/2000/svg}"


def _check(svg: str) -> ET.Element:
    """A whole picture with a name, all of whose numbers are finite and inside of it."""
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title") != ""
    assert not re.search(r"\b(nan|inf)\b", svg)
    width, height = (float(side) for side in root.get("viewBox", "").split()[2:])
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x", "-1")) <= width
        assert 0 <= float(text.get("y", "-1")) <= height
    for box in root.iter(f"{SVG}rect"):
        assert float(box.get("width", "-1")) >= 0
        assert float(box.get("height", "-1")) >= 0
    assert not re.search(r"(?:fill|stroke):(?!var\()", svg)  # every colour is one of the page's
    return root


def _list_texts(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_too_sure_is_marked_in_colour_and_too_careful_is_not() -> None:
    sureness = np.repeat([0.95, 0.65], 100)
    hits = np.concatenate([np.arange(100) < 60, np.arange(100) < 90])
    root = _check(draw_reliability(measure_reliability(sureness, hits), ENGLISH))
    boxes = [(box.get("style", ""), float(box.get("height", "0"))) for box in root.iter(f"{SVG}rect")]
    accent = [height for style, height in boxes if "accent" in style]
    muted = [height for style, height in boxes if "muted" in style]
    assert accent == [pytest.approx(0.35 * 190, abs=0.2)]
    assert muted == [pytest.approx(0.25 * 190, abs=0.2)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_any_sureness_can_be_drawn(answers: list[tuple[float, bool]]) -> None:
    found = measure_reliability(np.array([one[0] for one in answers]), np.array([one[1] for one in answers]))
    for words in (ENGLISH, CHINESE):
        _check(draw_reliability(found, words))


def _trade_off(paths: list[str]) -> tuple[Trade, ...]:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % len(paths)
    logits = rng.normal(0, 1, (200, len(paths)))
    logits[np.arange(200), labels] += 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return trade_off(shares, labels, Nodes.of(ClassTree.from_paths(paths)))


def test_the_chosen_trade_is_marked_with_its_number() -> None:
    trades = _trade_off(["a/1", "a/2", "b/3", "b/4"])
    chosen = trades[20]
    root = _check(draw_trades(trades, chosen.least, ENGLISH))
    assert f"chosen {100 * chosen.right:.0f}%" in _list_texts(root)
    assert "coarser" in _list_texts(root)
    assert f"{100 * chosen.share_exact:.0f}% answered with the class itself" in root.get("aria-label", "")


def test_nothing_is_marked_where_no_answer_is_sure() -> None:
    root = _check(draw_trades(_trade_off(["a", "b", "c"]), NEVER, ENGLISH))
    assert not [text for text in _list_texts(root) if text.startswith("chosen")]
    assert "coarser" not in _list_texts(root)  # no class is below another


_SHARES = st.floats(0, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(_SHARES, _SHARES, _SHARES), min_size=1, max_size=20), _SHARES)
def test_any_trades_can_be_drawn(found: list[tuple[float, float, float]], least: float) -> None:
    trades = [
        Trade(place / len(found), exact * 0.99, (1 - exact * 0.99) * coarse * 0.99, 0.0, right)
        for place, (exact, coarse, right) in enumerate(found)
    ]
    for words in (ENGLISH, CHINESE):
        _check(draw_trades(trades, least, words))


def test_the_forecast_is_dashed_and_has_its_number() -> None:
    points = tuple(CurvePoint(n, share, share - 0.05, share + 0.05) for n, share in ((5, 0.5), (10, 0.6), (20, 0.7)))
    svg = draw_data_curve(DataCurve(points, CurvePoint(40, 0.78, 0.7, 0.84)), ENGLISH)
    assert {"5", "10", "20", "40", "78%", "twice the photos"} <= set(_list_texts(_check(svg)))
    assert svg.count("stroke-dasharray") == 1
    assert "stroke-dasharray" not in draw_data_curve(DataCurve(points, None), ENGLISH)


@settings(max_examples=30, deadline=None)
@given(st.lists(_SHARES, min_size=1, max_size=6), st.booleans())
def test_any_curve_can_be_drawn(shares: list[float], is_known: bool) -> None:
    points = tuple(CurvePoint(2.0 ** (k / 2), one, one / 2, (1 + one) / 2) for k, one in enumerate(shares))
    twice = CurvePoint(2 * points[-1].n_per_class, shares[-1], 0.0, 1.0) if is_known else None
    for words in (ENGLISH, CHINESE):
        _check(draw_data_curve(DataCurve(points, twice), words))
