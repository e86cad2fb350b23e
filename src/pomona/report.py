"""One self-contained HTML file that says how good a model is and what to look at next.

In: `ReportData`, everything already measured; thumbnails as JPEG bytes. Out: report.html; the confusion matrix as PNG.
Why: a file that can be mailed, printed and read in ten years asks for nothing from outside: the map of answers is
inline SVG (crisp, numbers on hover, a few milliseconds), the script sorts one table and nothing depends on it. The PNG
is drawn by Pillow, which every install has: matplotlib takes a second, and builds a font cache on first use.
Grey is what is right; the one colour marks what is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pomona.errors import MissingPackageError
from pomona.files import write_atomic
from pomona.findings import CHECKS
from pomona.lettering import draw_text, load_fonts, measure_units, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from jinja2 import Template
    from numpy.typing import NDArray
    from PIL import ImageDraw, ImageFont

    from pomona.clock import Stage
    from pomona.evaluation import ClassRow, Evaluation, Metric
    from pomona.findings import Audit
    from pomona.head import Fit


Language = Literal["en", "zh"]

N_CARDS = 24
"""Mistakes that are shown with their photos."""
_N_PAIRS = 10
_N_SKIPPED = 12
_N_ROWS_OPEN = 20
_LARGEST_THUMBNAIL = 80_000
_N_CLASSES_DRAWN = 100
_N_CLASSES_PICKED = 60
_N_CLASSES_COUNTED = 30
_LABEL_UNITS, _LABEL_UNITS_FEW = 32, 18
_HAN = ("\u2e80", "\u9fff")
_INK, _MUTED, _ACCENT, _GROUND = (27, 28, 26), (99, 100, 94), (200, 66, 13), (245, 244, 240)


@dataclass(frozen=True)
class ClassCount:
    """How many photos one class has.

    Parameters
    ----------
    name : str
        Name of the class.
    n_train, n_val : int
        Photos to learn from, photos held back.
    """

    name: str
    n_train: int
    n_val: int


@dataclass(frozen=True)
class MistakeCard:
    """One wrong answer with its photo.

    Parameters
    ----------
    name : str
        Name of the photo.
    said, was : str
        The answer and the label.
    score : float
        Probability of the wrong answer, 0-1.
    thumbnail_jpeg : bytes or None
        A small JPEG; one of more than 80 kB is left out, so that the report stays under 3 MB.
    """

    name: str
    said: str
    was: str
    score: float
    thumbnail_jpeg: bytes | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Parameters
    ----------
    title : str
        Heading and title of the page.
    evaluation : Evaluation or None
        None where nothing could be measured; `verdict_note` then says why.
    evaluated_on : str
        What was scored, as the end of "Right 71 of 100 times on 296 ...".
    verdict_note : str
        One or two sentences under the verdict.
    class_counts : sequence of ClassCount
        In any order; joined to the classes by name.
    mistakes : sequence of MistakeCard
        The surest first; 24 are shown, and how many more there are.
    skipped : sequence of (name, fault, detail)
        Photos that were left out; 12 are shown.
    notes : sequence of str
        What to know before trusting the numbers: leaks, conflicting labels, classes without photos, few photos.
    audit : Audit, optional
        What is wrong with the photos.
    stages : sequence of Stage
        In the order they ran.
    settings : mapping of str to object
        Resolved options.
    provenance : mapping of str to str
        Version, backbone, weights, dataset fingerprint, machine.
    fits : sequence of Fit
        Strengths that were tried.
    chosen_l2 : float or None
        The one that was chosen.
    curves : sequence of (title, text, svg)
        Pictures of the training, drawn by `pomona.curves`.
    """

    title: str
    evaluation: Evaluation | None = None
    evaluated_on: str = "photos it had not seen"
    verdict_note: str = ""
    class_counts: Sequence[ClassCount] = ()
    mistakes: Sequence[MistakeCard] = ()
    skipped: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    audit: Audit | None = None
    stages: Sequence[Stage] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    fits: Sequence[Fit] = ()
    chosen_l2: float | None = None
    curves: Sequence[tuple[str, str, str]] = ()


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one HTML file that needs nothing from outside.

    Parameters
    ----------
    path : Path
        Where the file goes; its folder exists.
    data : ReportData
        What it shows. Every text is escaped.

    Raises
    ------
    MissingPackageError
        If jinja2 is not installed.
    StorageError
        If the file cannot be written.
    """
    page = _load_template().render(_arrange(data))
    # A file name that is no valid text on its machine holds lone surrogates, which UTF-8 cannot write.
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


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


@dataclass(frozen=True)
class _Pair:
    was: str
    said: str
    n_photos: int
    n_shown: int


@dataclass(frozen=True)
class _ClassView:
    name: str
    score: ClassRow | None
    n_train: int | None
    n_val: int | None


def _load_template() -> Template:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("jinja2", "train", "to write a report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    filters: dict[str, Callable[..., str]] = {"percent": _write_percent, "interval": _write_interval}
    filters |= {"plural": _write_count, "seconds": _write_seconds, "plain": _write_plain}
    environment.filters.update(filters)
    environment.tests["chinese"] = _is_chinese
    return environment.from_string(_read_web("report.html.j2"))


def _read_web(name: str) -> str:
    return (resources.files("pomona") / "web" / name).read_text(encoding="utf-8")


def _arrange(data: ReportData) -> dict[str, Any]:
    script = _read_web("report.js")
    digest = hashlib.sha256(script.encode()).digest()
    cards = data.mistakes[:N_CARDS]
    content: dict[str, Any] = {
        "data": data,
        "evaluation": data.evaluation,
        "verdict": _state_verdict(data),
        "script": script,
        "script_hash": base64.b64encode(digest).decode(),
        "cards": [_arrange_card(card) for card in cards],
        "n_more_cards": max(len(data.mistakes), _count_wrong(data.evaluation)) - len(cards),
        "class_rows": _join_classes(data),
        "has_counts": bool(data.class_counts),
        "n_rows_open": _N_ROWS_OPEN,
        "skipped": _summarise_skipped(data.skipped),
        "checks": _list_checks(data.audit),
        "stages": _scale_stages(data.stages),
        "total_s": sum(stage.seconds for stage in data.stages),
    }
    if data.evaluation:
        pairs = _list_pairs(data.evaluation)
        content["metric_groups"] = _group_metrics(data.evaluation)
        repeated = [pair for pair in pairs if pair.n_photos > 1]
        shown = (repeated or pairs)[:_N_PAIRS]
        content["pairs"], content["n_more_pairs"] = shown, len(pairs) - len(shown)
        content["matrix"] = _lay_out_matrix(data.evaluation)
    return content


def _list_checks(audit: Audit | None) -> list[dict[str, Any]]:
    """What each check of an audit found, the most pressing first; unusable photos have a table of their own."""
    counts = audit.count() if audit else {}
    return [
        {"title": check.title, "advice": check.advice, "n_photos": counts[name], "is_note": check.family == "note"}
        for name, check in CHECKS.items()
        if name in counts and check.family != "unusable"
    ]


def _count_wrong(evaluation: Evaluation | None) -> int:
    return int(evaluation.confusion.sum() - evaluation.confusion.trace()) if evaluation else 0


def _state_verdict(data: ReportData) -> dict[str, str]:
    if data.evaluation is None:
        return {"answer": "How often it is right was not measured.", "doubt": ""}
    n_photos, accuracy = data.evaluation.n, data.evaluation.accuracy
    interval = f"{_write_hundredths(accuracy.low)}–{_write_hundredths(accuracy.high)}"
    if n_photos < 100:
        n_right = int(np.trace(data.evaluation.confusion))
        answer = f"Right on {n_right} of {n_photos} {data.evaluated_on}"
        return {"answer": answer, "doubt": f"(95% interval {interval} of 100)."}
    answer = f"Right {_write_hundredths(accuracy.value)} of 100 times"
    return {"answer": answer, "doubt": f"(95% interval {interval}) on {n_photos:,} {data.evaluated_on}."}


def _group_metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the table of metrics: the classes first, then the levels above them, coarsest first."""
    leaf = [("Accuracy", "right answers among all photos", evaluation.accuracy)]
    if len(evaluation.classes) > 5:
        leaf.append(("Top-5 accuracy", "the right class is among the five best guesses", evaluation.top5))
    leaf.append(("Balanced accuracy", "each class counts the same", evaluation.balanced_accuracy))
    leaf.append(("Macro F1", "mean F1, each class counts the same", evaluation.macro_f1))
    leaf.append(("Weighted F1", "mean F1, each photo counts the same", evaluation.weighted_f1))
    groups = [(_write_count(len(evaluation.classes), "class", "classes"), leaf)]
    for level in evaluation.levels[:-1]:
        rows = [("Accuracy", "", level.accuracy), ("Balanced accuracy", "", level.balanced_accuracy)]
        rows.append(("Macro F1", "", level.macro_f1))
        groups.append((f"{level.name}: {_write_count(level.n_classes, 'kind')}", rows))
    return [{"title": title, "rows": rows} for title, rows in groups]


def _list_pairs(evaluation: Evaluation) -> list[_Pair]:
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    shown = evaluation.confusion.sum(axis=1)
    places = sorted(np.argwhere(wrong).tolist(), key=lambda at: (-wrong[at[0], at[1]], shown[at[0]], at))
    names = evaluation.classes
    return [_Pair(names[row], names[said], int(wrong[row, said]), int(shown[row])) for row, said in places]


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


def _lay_out_matrix(evaluation: Evaluation) -> dict[str, Any]:
    chosen = _choose_classes(evaluation.confusion)
    names = [evaluation.classes[row] for row in chosen]
    cell = _fit_cell(len(chosen), (64, 46, 28), 900)
    font_size = min(13, max(9, cell - 2))
    # Few classes fit the width of a phone if their names do not take it all.
    labels = [shorten(name, _LABEL_UNITS_FEW if len(chosen) <= 6 else _LABEL_UNITS) for name in names]
    left = round(max(measure_units(label) for label in labels) * 0.58 * font_size) + 14
    side = cell * len(chosen)
    cells = []
    for found in _list_cells(evaluation.confusion, chosen):
        was, said = names[found.row], names[found.column]
        told = f"{was}: right" if found.right else f"{was} taken for {said}:"
        cells.append(
            {
                "x": left + found.column * cell,
                "y": left + found.row * cell,
                "right": found.right,
                "opacity": round(found.opacity, 2),
                "strong": found.opacity > 0.5,
                "n_photos": found.n_photos,
                "text": f"{told} {found.n_photos} of {_write_count(found.n_shown, 'photo')}",
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
        "note": _explain_choice(len(chosen), evaluation),
    }


def _explain_choice(n_drawn: int, evaluation: Evaluation) -> str:
    if n_drawn == len(evaluation.classes):
        return ""
    if len(evaluation.classes) > _N_CLASSES_DRAWN and n_drawn == _N_CLASSES_PICKED:
        return f"Only the {n_drawn} classes with the most mistakes are drawn."
    absent = _write_count(len(evaluation.classes) - n_drawn, "class", "classes")
    return f"Left out: {absent} that no photo showed and no answer named."


def _join_classes(data: ReportData) -> list[_ClassView]:
    counts = {count.name: count for count in data.class_counts}
    scores = {row.name: row for row in data.evaluation.per_class} if data.evaluation else {}
    views = []
    for name in dict.fromkeys(itertools.chain(scores, counts)):
        count = counts.get(name)
        n_train, n_val = (count.n_train, count.n_val) if count else (None, None)
        views.append(_ClassView(name, scores.get(name), n_train, n_val))
    if data.evaluation is None:
        return views
    return sorted(views, key=lambda view: view.score.f1 if view.score and view.score.support else 2.0)


def _summarise_skipped(skipped: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    counts = Counter(fault.replace("_", " ") for _, fault, _ in skipped)
    kept = skipped[:_N_SKIPPED]
    rows = [{"name": name, "fault": fault.replace("_", " "), "detail": detail} for name, fault, detail in kept]
    summary = ", ".join(f"{n_photos} {fault}" for fault, n_photos in counts.most_common())
    return {"rows": rows, "summary": summary, "n_more": len(skipped) - len(rows)}


def _scale_stages(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    longest = max((stage.seconds for stage in stages), default=0.0) or 1.0
    return [{**vars(stage), "share": stage.seconds / longest, "rate": _write_rate(stage)} for stage in stages]


def _arrange_card(card: MistakeCard) -> dict[str, Any]:
    file = card.name.replace("\\", "/").rsplit("/", 1)[-1]
    return {**vars(card), "file": file, "picture": _embed_jpeg(card.thumbnail_jpeg)}


def _embed_jpeg(thumbnail: bytes | None) -> str | None:
    if thumbnail is None or len(thumbnail) > _LARGEST_THUMBNAIL or not thumbnail.startswith(b"\xff\xd8"):
        return None
    return base64.b64encode(thumbnail).decode()


def _write_percent(share: float, n_decimals: int = 1) -> str:
    return f"{100 * share:.{n_decimals}f}%"


def _write_interval(metric: Metric) -> str:
    return f"{100 * metric.low:.1f}–{100 * metric.high:.1f}"


def _write_hundredths(share: float) -> str:
    """Write a share as so many of 100; never 0 or 100 where it is not."""
    if share in {0.0, 1.0} or 0.005 <= share < 0.995:
        return f"{100 * share:.0f}"
    return f"{min(99.9, max(0.1, 100 * share)):.1f}"


def _write_count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _write_seconds(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _write_rate(stage: Stage) -> str:
    if not stage.n_photos or stage.seconds <= 0:
        return ""
    rate = stage.n_photos / stage.seconds
    return f"{rate:,.0f} photos/s" if rate >= 10 else f"{rate:.1f} photos/s"


def _write_plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_write_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_chinese(text: str) -> bool:
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
