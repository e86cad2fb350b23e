"""Curves as SVG: loss and accuracy over epochs, loss over learning rates, and how often ways are right over their time.

In: rows of a run log; what a range test saw; spots; the words to write. Out: SVG text that stands alone or in a page.
Why: whether training should have gone on, or ended sooner, is seen at once in a picture. Grey is what was learnt from;
the one colour is what was held out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.drawing import (
    ACCENT,
    BAR,
    BOTTOM,
    INK,
    LEFT,
    MUTED,
    PANEL_HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    clip_parts,
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pomona.lr_range import RangeResult
    from pomona.run_log import Row

_SPOTS_WIDTH, _SPOTS_HEIGHT, _SPOTS_RIGHT = 760, 400, 170
_SHIFTS = (0.0, *(sign * 14.0 * step for step in range(1, 11) for sign in (1, -1)))
"""How far a name may stand above or below its spot."""

_N_DOTS = 40
_TOO_LARGE = 1e30
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class CurveLabels:
    """The words of the pictures, in one language."""

    loss: str = "Loss"
    accuracy: str = "Accuracy"
    train: str = "train"
    val: str = "validation"
    epoch: str = "epoch"
    lr: str = "learning rate"
    suggested: str = "suggested"
    no_rows: str = "nothing was measured"


ENGLISH = CurveLabels()
CHINESE = CurveLabels("损失", "准确率", "训练", "验证", "轮次", "学习率", "建议值", "没有测量结果")


class Spot(NamedTuple):
    """A way to learn, by what it takes and how often it is right.

    Parameters
    ----------
    name : str
        Written beside it.
    seconds : float
        Time, above 0.
    value, low, high : float
        Share right and its interval, 0-1.
    is_lead : bool
        Whether it has the one colour.
    """

    name: str
    seconds: float
    value: float
    low: float
    high: float
    is_lead: bool = False


class _Line(NamedTuple):
    """Points of one curve; `marked` is the place of the one whose number is written."""

    name: str
    points: list[tuple[float, float]]
    colour: str
    dashed: bool
    marked: int | None


def draw_learning_curves(rows: Sequence[Row], labels: CurveLabels = ENGLISH) -> str:
    """Draw loss and accuracy, of what was learnt from and of what was held out, over epochs.

    The smallest validation loss and the largest validation accuracy are marked with their numbers. What is missing, or
    not finite, is passed over; a panel without any number is left out.

    Parameters
    ----------
    rows : sequence of Row
        Of a run log, in order.
    labels : CurveLabels
        `ENGLISH` or `CHINESE`.

    Returns
    -------
    str
        An SVG, 360 units wide; it fills what it is put in, up to 520 pixels.
    """
    losses = _find_lines(rows, labels, ("train_loss", "val_loss"), min)
    shares = _find_lines(rows, labels, ("train_accuracy", "val_accuracy"), max)
    parts: list[str] = []
    for title, lines, percent in ((labels.loss, losses, False), (labels.accuracy, shares, True)):
        if lines:
            parts += _draw_panel(title, lines, labels, top=PANEL_HEIGHT * bool(parts), percent=percent)
    n_panels = bool(losses) + bool(shares)
    if not n_panels:
        return wrap_svg([write_text(WIDTH / 2, 30, labels.no_rows, anchor="middle")], 60, labels.loss)
    return wrap_svg(parts, n_panels * PANEL_HEIGHT, f"{labels.loss}, {labels.accuracy}")


def draw_lr_curve(result: RangeResult, labels: CurveLabels = ENGLISH) -> str:
    """Draw what a range test saw: losses over rates, a factor of ten a step, and the rate it suggests.

    Parameters
    ----------
    result : RangeResult
        Of `find_lr`.
    labels : CurveLabels
        `ENGLISH` or `CHINESE`.

    Returns
    -------
    str
        An SVG, 360 units wide.
    """
    first, last = (math.log10(lr) for lr in (min(result.lrs[0], result.suggested), result.lrs[-1]))
    # What broke would flatten all that was learnt, so the picture ends at twice the first or the best loss.
    ceiling = 2 * max(float(result.smoothed[0]), float(result.smoothed.min()))
    ticks = list_ticks(float(result.losses.min()), min(float(result.losses.max()), ceiling), 4)
    axes = Axes(TOP, PANEL_HEIGHT - TOP - BOTTOM, (first, max(last, first + 1e-9)), (ticks[0], ticks[-1]))
    powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    decades = [(float(power), "10" + str(power).translate(_SUPERSCRIPTS)) for power in powers]
    parts = [write_text(LEFT, 16, labels.loss, weight=600), *draw_grid(axes, ticks, percent=False)]
    parts += draw_foot(axes, decades, labels.lr)
    logs = np.log10(result.lrs)
    dots = [draw_dot(axes.x(at), axes.y(loss), 1.6, BAR) for at, loss in zip(logs, result.losses, strict=True)]
    curve = draw_curve(axes, list(zip(logs.tolist(), result.smoothed.tolist(), strict=True)), INK)
    parts.append(clip_parts(axes, [*dots, curve]))
    parts += _mark_lr(axes, result.suggested, labels)
    return wrap_svg(parts, PANEL_HEIGHT, f"{labels.loss}, {labels.lr}: {labels.suggested} {result.suggested:.2g}")


def _mark_lr(axes: Axes, suggested: float, labels: CurveLabels) -> list[str]:
    x = axes.x(math.log10(suggested))
    text = f"{labels.suggested} {suggested:.2g}"
    near_end = x > WIDTH / 2
    place = x - 6 if near_end else x + 6
    return [
        draw_line(f"M{x} {axes.top}V{axes.top + axes.height}", ACCENT),
        write_text(place, axes.top + 10, text, colour=ACCENT, anchor="end" if near_end else "start", weight=600),
    ]


# --- spots ----------------------------------------------------------------------------------------------------------


def draw_spots(spots: Sequence[Spot], title: str = "Right, of all photos kept apart", foot: str = "seconds") -> str:
    """Draw how often each of several ways is right over the time it takes, with intervals; names stand at the spots.

    Parameters
    ----------
    spots : sequence of Spot
        Any number.
    title : str
        What the height says.
    foot : str
        What the width says; its axis is logarithmic.

    Returns
    -------
    str
        An SVG, 760 units wide; it fills what it is put in, up to 1040 pixels.
    """
    logs = [math.log10(max(spot.seconds, 0.01)) for spot in spots] or [0.0]
    low, high = min(logs) - 0.1, max(max(logs) + 0.1, min(logs) + 1)
    axes = Axes(TOP, _SPOTS_HEIGHT - TOP - BOTTOM, (low, high), (0.0, 1.0), _SPOTS_WIDTH, _SPOTS_RIGHT)
    rounds = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high)) for factor in (1, 3)]
    ticks = [(math.log10(tick), f"{tick:g}") for tick in rounds if low <= math.log10(tick) <= high]
    parts = [write_text(LEFT, 16, title, weight=600), *draw_grid(axes, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], percent=True)]
    parts += draw_foot(axes, ticks, foot)
    marks = [
        _Mark(axes.x(log), axes.y(one.value), axes.y(one.high), axes.y(one.low), f"{one.name} {100 * one.value:.0f}%")
        for log, one in zip(logs, spots, strict=False)
    ]
    for mark, spot in zip(marks, spots, strict=True):
        colour = ACCENT if spot.is_lead else MUTED
        parts.append(f'<g opacity="0.45">{draw_line(f"M{mark.x} {mark.top}V{mark.bottom}", colour)}</g>')
    for mark, spot in zip(marks, spots, strict=True):
        parts.append(draw_dot(mark.x, mark.y, 4.5, ACCENT if spot.is_lead else MUTED))
    for mark, spot, (x, y, anchor) in zip(marks, spots, _place_names(marks), strict=True):
        parts.append(write_text(x, y, mark.text, colour=ACCENT if spot.is_lead else INK, anchor=anchor, weight=600))
    said = ", ".join(f"{mark.text} in {spot.seconds:.3g} s" for mark, spot in zip(marks, spots, strict=True))
    return wrap_svg(parts, _SPOTS_HEIGHT, f"{title}: {said}", _SPOTS_WIDTH, 1040)


class _Mark(NamedTuple):
    """A spot in the picture, the ends of its bar, and what is written beside it."""

    x: float
    y: float
    top: float
    bottom: float
    text: str


def _place_names(marks: Sequence[_Mark]) -> list[tuple[float, float, str]]:
    """Where each name goes: beside its spot, on the side and as near its height as what stands there leaves room."""
    taken: list[tuple[float, float, float]] = []
    found: dict[int, tuple[float, float, str]] = {}
    for i in sorted(range(len(marks)), key=lambda i: (marks[i].y, marks[i].x)):  # from the top
        mark = marks[i]
        width = 1.2 * measure_text(mark.text)  # bold, of whatever font there is
        others = [other for k, other in enumerate(marks) if k != i]
        tries = [
            (_count_hits((left, left + width, mark.y + 4 + shift), taken, others) + abs(shift) / 8, left, end, shift)
            for shift in _SHIFTS
            for left, end in ((mark.x + 10, False), (mark.x - 10 - width, True))
        ]
        _, left, is_end, shift = min(tries, key=lambda one: one[0])
        line = mark.y + 4 + shift
        taken.append((left, left + width, line))
        found[i] = (mark.x - 10, line, "end") if is_end else (mark.x + 10, line, "start")
    return [found[i] for i in range(len(marks))]


def _count_hits(
    name: tuple[float, float, float], taken: Sequence[tuple[float, float, float]], marks: Sequence[_Mark]
) -> float:
    """How much a name, from left to right on a line, would hide of other names and spots; most beside the picture."""
    left, right, line = name
    hits = 1000.0 * (left < LEFT or right > _SPOTS_WIDTH or not TOP < line < _SPOTS_HEIGHT - BOTTOM)
    hits += sum(200.0 for start, end, other in taken if left < end and start < right and abs(line - other) < 13)
    for mark in marks:
        if left - 6 < mark.x < right + 6:
            hits += 30.0 * (abs(line - 4 - mark.y) < 13) + 6.0 * (mark.top - 8 < line - 4 < mark.bottom + 8)
    return hits


# --- panels ---------------------------------------------------------------------------------------------------------


def _find_lines(
    rows: Sequence[Row], labels: CurveLabels, columns: tuple[str, str], best: Callable[[Iterable[float]], float]
) -> list[_Line]:
    """Curves of a pair of columns that have a finite number; the best of the second is marked."""
    lines = []
    for column, name, colour, held_out in zip(columns, (labels.train, labels.val), (BAR, ACCENT), (0, 1), strict=True):
        found = [(row.epoch, getattr(row, column)) for row in rows]
        points = [(epoch, value) for epoch, value in found if value is not None and abs(value) < _TOO_LARGE]
        if points:
            values = [value for _, value in points]
            marked = values.index(best(values)) if held_out else None
            lines.append(_Line(name, points, colour, not held_out, marked))
    return lines


def _draw_panel(title: str, lines: Sequence[_Line], labels: CurveLabels, *, top: int, percent: bool) -> list[str]:
    epochs = [epoch for line in lines for epoch, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    ticks = list_ticks(min(values), max(values), 4)
    low, high = min(epochs), max(epochs)
    if low == high:  # one point stands in the middle
        low, high = low - 0.5, high + 0.5
    axes = Axes(top + TOP, PANEL_HEIGHT - TOP - BOTTOM, (low, high), (ticks[0], ticks[-1]))
    whole = [tick for tick in list_ticks(low, high, 6, whole=True) if low <= tick <= high]
    parts = [write_text(LEFT, top + 16, title, weight=600), *_draw_key(lines, top + 16)]
    parts += draw_grid(axes, ticks, percent=percent)
    parts += draw_foot(axes, [(tick, f"{tick:g}") for tick in whole], labels.epoch)
    for line in lines:
        parts.append(draw_curve(axes, line.points, line.colour, dashed=line.dashed))
        if len(line.points) <= _N_DOTS:
            parts += [draw_dot(axes.x(epoch), axes.y(value), 2, line.colour) for epoch, value in line.points]
        if line.marked is not None:
            parts += _mark_best(axes, *line.points[line.marked], percent=percent)
    return parts


def _mark_best(axes: Axes, epoch: float, value: float, *, percent: bool) -> list[str]:
    """A ring, and the number on the side of it that has room: below a top, above a bottom."""
    x, y = axes.x(epoch), axes.y(value)
    text = f"{100 * value:.1f}%" if percent else f"{value:.3g}"
    below = y < axes.top + axes.height / 2
    place = min(max(x, LEFT + 20), WIDTH - RIGHT - 18)
    ring = f'<circle cx="{x}" cy="{y}" r="4.5" fill="none" style="stroke:{ACCENT}" stroke-width="1.5"/>'
    return [ring, write_text(place, y + (18 if below else -10), text, colour=ACCENT, anchor="middle", weight=600)]


def _draw_key(lines: Sequence[_Line], y: float) -> list[str]:
    parts: list[str] = []
    end: float = WIDTH - RIGHT
    for line in reversed(lines):
        parts.append(write_text(end, y, line.name, anchor="end"))
        start = end - measure_text(line.name) - 6
        parts.append(draw_line(f"M{start - 16:.1f} {y - 4}H{start:.1f}", line.colour, dashed=line.dashed))
        end = start - 30
    return parts
