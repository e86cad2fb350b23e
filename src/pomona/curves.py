"""Curves of training as SVG: loss and accuracy over epochs, and loss over learning rates.

In: rows of a run log; what a range test saw; the words to write. Out: SVG text that stands alone or inside the report.
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
