"""The map of answers: what photos show against what was said, as a PNG and laid out for the page.

In: an `Evaluation`; the words of a language. Out: PNG bytes; places, tones and texts of the cells.
Why: which classes are taken for which is seen at one look where it would be read for minutes. The PNG is drawn by
Pillow, which every install has: matplotlib takes a second, and builds a font cache on first use. Grey is what is right;
the one colour marks what is wrong.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.lettering import draw_text, load_fonts, measure_units, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from PIL import ImageDraw, ImageFont

    from pomona.evaluation import Evaluation
    from pomona.report_text import Words

_N_CLASSES_DRAWN = 100
_N_CLASSES_PICKED = 60
_N_CLASSES_COUNTED = 30
_LABEL_UNITS, _LABEL_UNITS_FEW = 32, 18
_HAN = ("\u2e80", "\u9fff")
_INK, _MUTED, _ACCENT, _GROUND = (27, 28, 26), (99, 100, 94), (200, 66, 13), (245, 244, 240)


def draw_confusion(evaluation: Evaluation) -> bytes:
    """Draw the confusion matrix.

    Rows are what the photos show, columns what was said; the tone is the share of the row, grey where it is right and
    red where it is wrong. Up to 30 classes each cell holds its count. Beyond 100 classes the 60 with the most mistakes
    are drawn. A name that no font at hand can write loses its accents, or becomes the number of its
    class, counted from 0.

    Parameters
    ----------
    evaluation : Evaluation
        Its confusion is drawn.

    Returns
    -------
    bytes
        A PNG file.
    """
    from PIL import Image, ImageDraw

    chosen = _choose_classes(evaluation.confusion)
    cell = _fit_cell(len(chosen), (72, 52, 36), 1600)
    names = [evaluation.classes[row] for row in chosen]
    fonts = load_fonts(min(20, max(8, cell - 4)), names)
    labels = [
        draw_text(shorten(name, _LABEL_UNITS), fonts, otherwise=f"#{row}")
        for name, row in zip(names, chosen, strict=True)
    ]
    margin, side = max(label.width for label in labels) + 32, cell * len(chosen)
    picture = Image.new("RGB", (margin + side + 24, margin + side + 24), "white")
    canvas = ImageDraw.Draw(picture)
    canvas.rectangle((margin, margin, margin + side - 1, margin + side - 1), fill=_GROUND)
    for found in _list_cells(evaluation.confusion, chosen):
        _paint_cell(canvas, found, cell, margin, fonts[0] if len(chosen) <= _N_CLASSES_COUNTED else None)
    for place, label in enumerate(labels):
        middle = margin + place * cell + (cell - label.height) // 2
        upright = label.transpose(Image.Transpose.ROTATE_90)
        picture.paste(_INK, (margin - 10 - label.width, middle), label)
        picture.paste(_INK, (middle, margin - 10 - label.width), upright)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


@dataclass(frozen=True)
class _Cell:
    row: int
    column: int
    n_photos: int
    n_shown: int

    @property
    def right(self) -> bool:
        return self.row == self.column

    @property
    def opacity(self) -> float:
        """Errors start stronger: a single one has to be seen among right answers."""
        share = self.n_photos / self.n_shown
        return 0.12 + 0.5 * share if self.right else 0.3 + 0.7 * share


def _choose_classes(confusion: NDArray[np.int64]) -> list[int]:
    """Classes that are worth a row: shown or said, and beyond a hundred those with the most mistakes."""
    used = confusion.sum(axis=0) + confusion.sum(axis=1)
    if np.count_nonzero(used) <= _N_CLASSES_DRAWN:
        return [int(row) for row in np.flatnonzero(used)]
    n_wrong = used - 2 * np.diag(confusion)
    return sorted(int(row) for row in np.argsort(-n_wrong, kind="stable")[:_N_CLASSES_PICKED])


def _list_cells(confusion: NDArray[np.int64], chosen: Sequence[int]) -> Iterator[_Cell]:
    shown = confusion.sum(axis=1)
    part = confusion[np.ix_(chosen, chosen)]
    for row, column in np.argwhere(part).tolist():
        yield _Cell(row, column, int(part[row, column]), int(shown[chosen[row]]))


def _fit_cell(n_classes: int, sizes: tuple[int, int, int], side: int) -> int:
    """Side of a cell in pixels: one of three comfortable sizes, or what makes many classes fit `side`."""
    for limit, size in zip((6, 12, _N_CLASSES_COUNTED), sizes, strict=True):
        if n_classes <= limit:
            return size
    return min(sizes[-1] - 4, side // n_classes)


def lay_out_map(evaluation: Evaluation, words: Words) -> dict[str, Any]:
    """Places, tones and texts of the cells and names, in pixels, for the page to draw.

    Parameters
    ----------
    evaluation : Evaluation
        Its confusion is laid out; of many classes those with the most mistakes.
    words : Words
        Of the page.
    """
    chosen = _choose_classes(evaluation.confusion)
    names = [words.name(evaluation.classes[row]) for row in chosen]
    cell = _fit_cell(len(chosen), (64, 46, 28), 900)
    font_size = min(13, max(9, cell - 2))
    # Few classes fit the width of a phone if their names do not take it all.
    labels = [shorten(name, _LABEL_UNITS_FEW if len(chosen) <= 6 else _LABEL_UNITS) for name in names]
    left = round(max(measure_units(label) for label in labels) * 0.58 * font_size) + 14
    side = cell * len(chosen)
    cells = []
    for found in _list_cells(evaluation.confusion, chosen):
        was, said = names[found.row], names[found.column]
        photos = words.say("photos", n=found.n_shown)
        told = "map_cell_right" if found.right else "map_cell_wrong"
        cells.append(
            {
                "x": left + found.column * cell,
                "y": left + found.row * cell,
                "right": found.right,
                "opacity": round(found.opacity, 2),
                "strong": found.opacity > 0.5,
                "n_photos": found.n_photos,
                "text": words.say(told, was=was, said=said, n=found.n_photos, photos=photos),
            }
        )
    steps = range(0, side + 1, cell)
    middles = [left + (place + 0.5) * cell for place in range(len(chosen))]
    return {
        "cell": cell,
        "left": left,
        "top": left,
        "side": side,
        "width": left + side + 1,
        "height": left + side + 1,
        "font_size": font_size,
        "counted": len(chosen) <= _N_CLASSES_COUNTED,
        "cells": cells,
        "grid": "".join(f"M{left + at} {left}v{side}M{left} {left + at}h{side}" for at in steps),
        "labels": [
            {"text": label, "full": name, "middle": at, "shown": evaluation.confusion[row].any()}
            for label, name, at, row in zip(labels, names, middles, chosen, strict=True)
        ],
        "note": _explain_choice(len(chosen), evaluation, words),
    }


def _explain_choice(n_drawn: int, evaluation: Evaluation, words: Words) -> str:
    if n_drawn == len(evaluation.classes):
        return ""
    if len(evaluation.classes) > _N_CLASSES_DRAWN and n_drawn == _N_CLASSES_PICKED:
        return words.say("map_picked", n=n_drawn)
    return words.say("map_absent", classes=words.say("classes", n=len(evaluation.classes) - n_drawn))


def is_chinese(text: str) -> bool:
    """Whether a text has a Chinese letter, and wants Chinese fonts."""
    return any(_HAN[0] <= letter <= _HAN[1] for letter in text)


def _paint_cell(
    canvas: ImageDraw.ImageDraw,
    found: _Cell,
    cell: int,
    margin: int,
    font: ImageFont.FreeTypeFont | None,
) -> None:
    x, y, opacity = margin + found.column * cell, margin + found.row * cell, found.opacity
    tone = _INK if found.right else _ACCENT
    mixed = tuple(round(opacity * over + (1 - opacity) * under) for over, under in zip(tone, _GROUND, strict=True))
    gap = 1 if cell > 4 else 0
    canvas.rectangle((x, y, x + cell - 1 - gap, y + cell - 1 - gap), fill=mixed)
    if font is not None:
        fill = "white" if opacity > 0.5 else _INK
        canvas.text((x + cell / 2, y + cell / 2), str(found.n_photos), fill=fill, font=font, anchor="mm")
