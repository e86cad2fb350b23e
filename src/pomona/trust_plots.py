"""Plots of how far answers can be trusted: reliability, exactness against safety, and what more photos would bring.

In: what was measured of trust, and the words of a language. Out: SVG text, as in `pomona.drawing`.
Why: each answers one question of whoever relies on the recogniser. Is it as often right as it says? What does being
right more often cost? Are more photos worth the work? Grey is what was measured, the one colour what is missing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pomona.drawing import (
    ACCENT,
    BAR,
    INK,
    LEFT,
    LINE,
    MUTED,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    draw_curve,
    draw_dot,
    draw_foot,
    draw_grid,
    draw_line,
    list_ticks,
    measure_text,
    wrap_svg,
    write_text,
)
from pomona.reliability import N_BINS
from pomona.report_text import write_hundredths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pomona.conformal import Trade
    from pomona.data_curve import CurvePoint, DataCurve
    from pomona.reliability import Reliability
    from pomona.report_text import Words

_FIFTHS = [place / 5 for place in range(6)]
_FOOT = 46
_MAIN, _STRIP = 190, 44
_SAME = 1e-3  # of least probabilities: a grid's step apart


def draw_reliability(found: Reliability, words: Words) -> str:
    """Draw how often answers were right by how sure they were, and below how many were how sure.

    Parameters
    ----------
    found : Reliability
        What was measured.
    words : Words
        Of the page.

    Returns
    -------
    str
        An SVG, 360 units wide.

    Examples
    --------
    >>> import numpy as np
    >>> from pomona.reliability import measure_reliability
    >>> from pomona.report_text import Words
    >>> found = measure_reliability(np.full(100, 0.75), np.arange(100) < 60)
    >>> draw_reliability(found, Words("en")).count("<rect")
    3
    """
    axes = Axes(TOP, _MAIN, (0, 1), (0, 1))
    below = Axes(TOP + _MAIN + 26, _STRIP, (0, 1), (0, max(found.share)))
    title = words.say("plot_reliability_label", ece=f"{100 * found.ece:.1f}")
    parts = [write_text(LEFT, 16, words.say("plot_reliability"), weight=600), *draw_grid(axes, _FIFTHS, percent=True)]
    for said, right, share in zip(found.sureness, found.right, found.share, strict=True):
        place = min(N_BINS - 1, int(said * N_BINS))
        x, width = axes.x(place / N_BINS) + 1, axes.x(1 / N_BINS) - LEFT - 2
        top, middle = axes.y(max(said, right)), axes.y(min(said, right))
        parts.append(_fill_box(x, middle, width, axes.y(0) - middle, BAR))
        parts.append(_fill_box(x, top, width, middle - top, ACCENT if said > right else MUTED))
        height = _STRIP * share / max(found.share)
        parts.append(_fill_box(x, below.top + _STRIP - height, width, height, BAR))
    parts.append(draw_curve(axes, [(0, 0), (1, 1)], INK, dashed=True))
    parts.append(write_text(LEFT, below.top - 8, words.say("plot_share"), colour=MUTED))
    parts.append(f'<path d="M{LEFT} {below.top + _STRIP}H{WIDTH - RIGHT}" style="stroke:{LINE}"/>')
    highest = f"{100 * max(found.share):.0f}%"
    parts.append(write_text(LEFT - 6, below.top + 8, highest, colour=MUTED, anchor="end"))
    parts += draw_foot(below, [(tick, f"{100 * tick:.0f}%") for tick in _FIFTHS], words.say("plot_said"))
    return wrap_svg(parts, round(below.top + _STRIP + _FOOT), title)


def draw_trades(trades: Sequence[Trade], least: float, words: Words) -> str:
    """Draw how right sure answers are by how many photos are answered with the class itself, and what the others get.

    Parameters
    ----------
    trades : sequence of Trade
        One a least probability.
    least : float
        The one that was chosen: it is marked.
    words : Words
        Of the page.

    Returns
    -------
    str
        An SVG, 360 units wide.
    """
    ordered = sorted((one for one in trades if one.share_open < 1), key=lambda one: one.share_exact)
    chosen = next((one for one in ordered if abs(one.least - least) < _SAME), None)
    ticks = list_ticks(min(one.right for one in ordered), 1.0, 4)
    axes = Axes(TOP, _MAIN - 60, (0, 1), (ticks[0], ticks[-1]))
    below = Axes(TOP + _MAIN - 60 + 42, _STRIP + 40, (0, 1), (0, 1))
    parts = [write_text(LEFT, 16, words.say("plot_right"), weight=600), *draw_grid(axes, ticks, percent=True)]
    parts.append(draw_curve(axes, [(one.share_exact, one.right) for one in ordered], INK))
    parts += _draw_rest(below, ordered, words)
    parts += draw_foot(below, [(tick, f"{100 * tick:.0f}%") for tick in _FIFTHS], words.say("plot_exact"))
    if chosen is not None:
        parts += _mark_trade(axes, chosen, below.top + below.height, words)
    shown = chosen or ordered[-1]
    texts = {"exact": write_hundredths(shown.share_exact), "right": write_hundredths(shown.right)}
    return wrap_svg(parts, round(below.top + below.height + _FOOT), words.say("plot_exact_label", **texts))


def _mark_trade(axes: Axes, chosen: Trade, bottom: float, words: Words) -> list[str]:
    """A line through both panels, and the number on the side of it that has room: the curve falls to the right."""
    x, y = axes.x(chosen.share_exact), axes.y(chosen.right)
    text = f"{words.say('plot_chosen')} {write_hundredths(chosen.right)}%"
    has_room = x - measure_text(text) - 12 > LEFT
    lower = y + 18 if has_room or y < axes.top + 20 else y - 9
    return [
        f'<path d="M{x} {axes.top}V{bottom}" style="stroke:{ACCENT}" stroke-dasharray="2 3"/>',
        draw_dot(x, y, 4, ACCENT),
        write_text(
            x - 8 if has_room else x + 8, lower, text, colour=ACCENT, anchor="end" if has_room else "start", weight=600
        ),
    ]


def _draw_rest(axes: Axes, ordered: Sequence[Trade], words: Words) -> list[str]:
    """What photos get that are not answered with the class itself, as areas one on the other."""
    parts = [write_text(LEFT, axes.top - 10, words.say("plot_rest"), weight=600)]
    coarse = [(one.share_exact, one.share_coarse) for one in ordered]
    both = [(one.share_exact, one.share_coarse + one.share_open) for one in ordered]
    if any(share > 0 for _, share in coarse):
        parts += _draw_key([(words.say("plot_coarse"), BAR), (words.say("plot_open"), LINE)], axes.top - 10)
    else:
        parts += _draw_key([(words.say("plot_open"), LINE)], axes.top - 10)
    floor = [(x, 0.0) for x, _ in coarse]
    parts += draw_grid(axes, [0, 0.5, 1], percent=True)
    return [*parts, _fill_band(axes, coarse, floor, BAR), _fill_band(axes, both, coarse, LINE)]


def draw_data_curve(curve: DataCurve, words: Words) -> str:
    """Draw how often answers are right by how many photos of a class were learnt, and what twice as many would bring.

    Parameters
    ----------
    curve : DataCurve
        What was measured.
    words : Words
        Of the page.

    Returns
    -------
    str
        An SVG, 360 units wide.
    """
    points = curve.points
    ahead = [curve.twice] if curve.twice else []
    shown = [*points, *ahead]
    ticks = [tick for tick in list_ticks(min(p.low for p in shown), max(p.high for p in shown), 4) if tick <= 1]
    steps = [math.log(point.n_per_class) for point in shown]
    first, last = min(steps), max(steps)
    room = 0.06 * (last - first) or 0.5
    axes = Axes(TOP, _MAIN, (first - room, last + room), (ticks[0], max(ticks[-1], *(p.high for p in shown))))
    parts = [write_text(LEFT, 16, words.say("plot_accuracy"), weight=600), *draw_grid(axes, ticks, percent=True)]
    parts.append(_fill_band(axes, _trace(points, "high"), _trace(points, "low"), BAR, opacity=0.45))
    line = _trace(points, "accuracy")
    parts.append(draw_curve(axes, line, INK))
    parts += [draw_dot(axes.x(x), axes.y(y), 2.6, INK) for x, y in line]
    for point in ahead:
        parts += _draw_forecast(axes, points[-1], point, words)
    wanted = [(math.log(point.n_per_class), f"{point.n_per_class:.0f}") for point in shown]
    parts += draw_foot(axes, _thin_out(axes, wanted), words.say("plot_photos"))
    title = words.say("plot_curve_label", n=f"{points[-1].n_per_class:.0f}", last=write_hundredths(points[-1].accuracy))
    return wrap_svg(parts, TOP + _MAIN + _FOOT, title)


def _draw_forecast(axes: Axes, last: CurvePoint, twice: CurvePoint, words: Words) -> list[str]:
    x, y = axes.x(math.log(twice.n_per_class)), axes.y(twice.accuracy)
    low, high = axes.y(twice.low), axes.y(twice.high)
    ends = "".join(f"M{x - 4} {end}H{x + 4}" for end in (low, high))
    dashes = [(math.log(last.n_per_class), last.accuracy), (math.log(twice.n_per_class), twice.accuracy)]
    return [
        draw_curve(axes, dashes, ACCENT, dashed=True),
        draw_line(f"M{x} {low}V{high}{ends}", ACCENT),
        draw_dot(x, y, 3.4, ACCENT),
        write_text(x - 10, axes.y(axes.y_range[0]) - 10, words.say("plot_twice"), colour=ACCENT, anchor="end"),
        write_text(x - 10, y + 22, f"{write_hundredths(twice.accuracy)}%", colour=ACCENT, anchor="end", weight=600),
    ]


def _trace(points: Sequence[CurvePoint], name: str) -> list[tuple[float, float]]:
    return [(math.log(point.n_per_class), getattr(point, name)) for point in points]


def _thin_out(axes: Axes, ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks without those that would run into the next, from the last one back."""
    kept: list[tuple[float, str]] = []
    for place, text in reversed(ticks):
        if not kept or axes.x(kept[-1][0]) - axes.x(place) > 8 + measure_text(text):
            kept.append((place, text))
    return kept


def _draw_key(entries: Sequence[tuple[str, str]], y: float) -> list[str]:
    """Names with the colours of their areas, at the right end of a line."""
    parts: list[str] = []
    end: float = WIDTH - RIGHT
    for name, colour in reversed(entries):
        parts.append(write_text(end, y, name, colour=MUTED, anchor="end"))
        start = end - measure_text(name) - 16
        parts.append(_fill_box(start, y - 9, 10, 10, colour))
        end = start - 12
    return parts


def _fill_box(x: float, y: float, width: float, height: float, colour: str, *, opacity: float = 1) -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect {size} style="fill:{colour}" fill-opacity="{opacity:g}"/>'


def _fill_band(
    axes: Axes,
    upper: Sequence[tuple[float, float]],
    lower: Sequence[tuple[float, float]],
    colour: str,
    *,
    opacity: float = 1,
) -> str:
    path = "L".join(f"{axes.x(x)} {axes.y(y)}" for x, y in [*upper, *reversed(lower)])
    return f'<path d="M{path}Z" style="fill:{colour}" fill-opacity="{opacity:g}"/>'
