"""Axes, lines and letters of pictures as SVG: what every plot of a report is drawn with.

In: numbers, and where they stand. Out: SVG text that stands alone or inside a page.
Why: a picture that is text needs no package, stays sharp in print, and takes the colours of the page it is in: dark at
night, black on paper. It is drawn at the width of a phone and grows from there, so its letters are never too small.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, PANEL_HEIGHT = 360, 208
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 46
PAPER, INK, MUTED, LINE, BAR, ACCENT = (
    f"var(--{name}, {colour})"
    for name, colour in (
        ("paper", "#fff"),
        ("ink", "#1b1c1a"),
        ("muted", "#63645e"),
        ("line", "#e3e2dc"),
        ("bar", "#85867f"),
        ("accent", "#c8420d"),
    )
)
_FONTS = "var(--sans, system-ui, 'Noto Sans', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif)"


class Axes(NamedTuple):
    """A rectangle in pixels and what its edges stand for."""

    top: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: float = WIDTH
    right: float = RIGHT

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (self.width - LEFT - self.right), 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y_range
        return round(self.top + self.height - (value - low) / (high - low) * self.height, 1)


def draw_grid(axes: Axes, ticks: Sequence[float], *, percent: bool) -> list[str]:
    """Lines across a panel, each with its number on the left."""
    parts = []
    for tick in ticks:
        y = axes.y(tick)
        parts.append(f'<path d="M{LEFT} {y}H{axes.width - axes.right}" style="stroke:{LINE}"/>')
        text = f"{100 * tick:.4g}%" if percent else f"{tick:.4g}"
        parts.append(write_text(LEFT - 6, y + 4, text, colour=MUTED, anchor="end"))
    return parts


def draw_foot(axes: Axes, ticks: Sequence[tuple[float, str]], title: str) -> list[str]:
    """Ticks below a panel, and below them what they count."""
    y = axes.top + axes.height + 17
    parts = [write_text(axes.x(place), y, text, colour=MUTED, anchor="middle") for place, text in ticks]
    return [*parts, write_text(axes.width - axes.right, y + 16, title, colour=MUTED, anchor="end")]


def list_ticks(low: float, high: float, n_ticks: int, *, whole: bool = False) -> list[float]:
    """Round numbers, about `n_ticks`, from at most `low` to at least `high`.

    Examples
    --------
    >>> list_ticks(0.13, 0.92, 4)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> list_ticks(1, 30, 6, whole=True)
    [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    """
    span = max(high - low, abs(high) * 1e-3, abs(low) * 1e-3, 1e-6)
    rough = span / n_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, float(math.ceil(step))) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def draw_curve(axes: Axes, points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    """A line through points, in the numbers of the axes."""
    path = "L".join(f"{axes.x(x)} {axes.y(y)}" for x, y in points)
    return draw_line(f"M{path}", colour, dashed=dashed)


def draw_line(path: str, colour: str, *, dashed: bool = False) -> str:
    """A line; dashes tell two apart where print has no colour."""
    dashes = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<path d="{path}" fill="none" style="stroke:{colour}" stroke-width="1.8" stroke-linejoin="round"{dashes}/>'


def draw_dot(x: float, y: float, radius: float, colour: str) -> str:
    """A filled circle."""
    return f'<circle cx="{x}" cy="{y}" r="{radius}" style="fill:{colour}"/>'


def clip_parts(axes: Axes, parts: Sequence[str]) -> str:
    """An SVG inside an SVG cuts off what is outside of it, and needs no name that two pictures could share."""
    width = WIDTH - LEFT - RIGHT
    box = f'x="{LEFT}" y="{axes.top}" width="{width}" height="{axes.height}"'
    return f'<svg {box} viewBox="{LEFT} {axes.top} {width} {axes.height}">{"".join(parts)}</svg>'


def write_text(x: float, y: float, text: str, *, colour: str = INK, anchor: str = "start", weight: int = 400) -> str:
    """Letters at a place in pixels."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    # A rim of paper keeps numbers legible on a curve.
    style = f"fill:{colour};paint-order:stroke;stroke:{PAPER};stroke-width:3px;stroke-linejoin:round"
    return f'<text {place} style="{style}">{escape(text)}</text>'


def measure_text(text: str) -> float:
    """About how wide a text is; a Chinese letter is as wide as it is high."""
    return sum(12.0 if letter >= "\u2e80" else 6.4 for letter in text)


def wrap_svg(parts: Sequence[str], height: int, title: str, width: int = WIDTH, max_px: int = 520) -> str:
    """A whole SVG that fills what it is put in, up to `max_px` pixels; `title` is what is read aloud."""
    style = f"display:block;max-width:{max_px}px;overflow:visible;font-family:{_FONTS}"
    head = f'viewBox="0 0 {width} {height}" width="100%" font-size="12" style="{style}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" role="img" aria-label="{escape(title)}" {head}>\n'
        f"<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )
