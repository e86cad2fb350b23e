"""Why an answer was given: where in the photo it comes from, and the photos learnt from that are nearest to it.

In: a bundle and photos. Out: an `Explanation` a photo, and a picture of it as PNG.
Why: a right answer for a wrong reason, the shelf behind the fruit, looks like any other in a table of scores. The map
is exact, not an estimate: it adds up to the score before it becomes a probability.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.errors import BundleError, NotFiniteError, OptionError, PhotoError, StorageError
from pomona.files import hash_file, make_folder, storage_errors, write_atomic
from pomona.heat_map import HEAT_MAP, paint_map
from pomona.lettering import draw_text, load_fonts, measure_units, shorten
from pomona.photo import decode_photo, read_photo_bytes
from pomona.run_folder import read_setting

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from pomona.bundle import Bundle
    from pomona.prediction import Prediction

_MARK = "pomona explain"
"""Stands in each picture, so that only these are replaced."""

_SIDE, _GAP, _THUMBNAIL, _HEAD, _FOOT = 416, 24, 112, 34, 96
_TEXT, _SMALL, _LARGE = 18, 15, 30
_INK, _MUTED, _PAPER, _LINE = (27, 28, 26), (99, 100, 94), (255, 255, 255), (222, 221, 214)
_OTHER_CLASS = (214, 48, 12)
_LEAST_SHOWN = 0.0005


@dataclass(frozen=True)
class Nearest:
    """A photo learnt from that is like another.

    Parameters
    ----------
    name : str
        What it is called in its data.
    label : str
        Its class.
    similarity : float
        Cosine of the features of both, as `LearntBank` keeps them, at most 1.
    path : Path or None
        Where it is; None where it is not there any more.
    """

    name: str
    label: str
    similarity: float
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        path = None if self.path is None else str(self.path)
        return {"name": self.name, "label": self.label, "similarity": self.similarity, "path": path}


FindNearest = Callable[["NDArray[np.float32]"], "list[Nearest]"]
"""Features (D,) of a photo to the photos learnt from that are nearest to it, the nearest first."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a photo was answered as it was.

    Parameters
    ----------
    prediction : Prediction
        The answer; where the photo could not be used, it says why, and nothing else is there.
    pixels : ndarray of shape (S, S, 3), uint8, or None
        The photo as the network sees it.
    heat_map : ndarray of shape (P, P), float32, or None
        What each position added to the logit of the answer, negative where it spoke against it.
    nearest : tuple of Nearest
        Photos learnt from that are nearest, the nearest first.
    """

    prediction: Prediction
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)
    heat_map: NDArray[np.float32] | None = field(default=None, repr=False)
    nearest: tuple[Nearest, ...] = ()

    def to_dict(self, picture: Path | None = None) -> dict[str, Any]:
        """As plain values for JSON, with the path of its picture; the map is in the picture alone."""
        nearest = [one.to_dict() for one in self.nearest]
        return {**self.prediction.to_dict(), "nearest": nearest, "picture": None if picture is None else str(picture)}


# --- finding reasons ------------------------------------------------------------------------------------------------


def explain_photos(
    bundle: Bundle,
    photos: Sequence[str | Path | bytes],
    *,
    n_top: int = 5,
    find_nearest: FindNearest | None = None,
) -> Generator[Explanation]:
    """Answer for each photo and say why, in the order given; a photo that cannot be used is an answer with an error.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    photos : sequence of str, Path or bytes, length N
        Files, or the content of files.
    n_top : int
        How many of the most probable classes to name.
    find_nearest : callable, optional
        Such as `load_neighbours` gives; without it no photos learnt from are named.

    Yields
    ------
    Explanation
        One per photo.

    Raises
    ------
    BundleError
        If the bundle has no heat map.
    NotFiniteError
        If the network gives numbers that are not finite.
    """
    engine = bundle.whole_engine
    if HEAT_MAP not in engine.outputs:
        raise BundleError(_say_no_map(bundle))
    seen: dict[int, NDArray[np.uint8]] = {}

    def load_pixels(i: int) -> NDArray[np.uint8]:
        photo = photos[i]
        data = photo if isinstance(photo, bytes) else read_photo_bytes(Path(photo))
        seen[i] = bundle.preprocessing.read(data)
        return seen[i]

    for i, outcome in enumerate(engine.stream(len(photos), load_pixels)):
        photo = photos[i]
        prediction = bundle.to_prediction("-" if isinstance(photo, bytes) else str(photo), outcome, n_top)
        if isinstance(outcome, PhotoError):
            yield Explanation(prediction)
            continue
        heat_map = outcome[HEAT_MAP]
        if not np.isfinite(heat_map).all():
            raise NotFiniteError(f"{bundle.folder} gave numbers that are not finite for {prediction.file}")
        nearest = tuple(find_nearest(outcome["features"])) if find_nearest else ()
        yield Explanation(prediction, seen.pop(i), heat_map, nearest)


def _say_no_map(bundle: Bundle) -> str:
    text = (
        f"{bundle.folder}: wanted a recogniser that can say why, this one was trained by a Pomona that could not yet; "
        "train again, which takes seconds where the features are in the cache"
    )
    if any(":" in one.name for one in bundle.manifest.embedding.backbones):
        text += ". If that does not help, its layer has no positions: name an earlier one with --layer"
    return text


def load_neighbours(bundle: Bundle, *, n_nearest: int = 3) -> FindNearest:
    """Open what a recogniser has learnt from, to find in it what is like a photo.

    The bundle holds it, in few numbers a photo; places of photos come from the data it was trained on, where that is
    still there.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    n_nearest : int
        Photos to find; fewer where it learnt from fewer.

    Returns
    -------
    callable
        Features (D,) to a list of `Nearest`.

    Raises
    ------
    BundleError
        If the bundle does not hold what it learnt from, or that is damaged.
    """
    bank = bundle.bank
    if bank is None:
        raise BundleError(
            f"{bundle.folder}: wanted what it learnt from in the bundle, got none: it is of an older format, or was "
            "trained by gradients alone"
        )
    names = bundle.tree.names

    def find(features: NDArray[np.float32]) -> list[Nearest]:
        found = bank.find_nearest(features, n_nearest)
        return [
            Nearest(bank.names[row], names[bank.bank.labels[row]], likeness, _find_photo(bundle, bank.names[row]))
            for row, likeness in found
        ]

    return find


def _find_photo(bundle: Bundle, name: str) -> Path | None:
    """Where a photo learnt from is; None where the data is not there any more, or another photo stands in its place."""
    data = read_setting(bundle.folder, "data")
    if not isinstance(data, str):
        return None
    path = (Path(data) if Path(data).is_dir() else Path(data).parent) / name
    try:
        return path if path.is_file() and hash_file(path) in bundle.learnt_from else None
    except OSError:
        return None


# --- pictures -------------------------------------------------------------------------------------------------------


def write_explanations(folder: Path, explanations: Iterable[Explanation]) -> Generator[tuple[Explanation, Path | None]]:
    """Write a picture for each explanation, named as its photo.

    Parameters
    ----------
    folder : Path
        Made where it is missing; pictures of earlier explanations in it are replaced.
    explanations : iterable of Explanation
        Drawn as they come.

    Yields
    ------
    explanation, path
        None where the photo could not be used.

    Raises
    ------
    StorageError
        If another file stands where a picture goes, or it cannot be written.
    """
    make_folder(folder)
    taken: set[str] = set()
    for explanation in explanations:
        if explanation.heat_map is None:
            yield explanation, None
            continue
        path = folder / f"{_choose_name(explanation.prediction.file, taken)}.png"
        _require_own(path)
        write_atomic(path, draw_explanation(explanation))
        yield explanation, path


def _choose_name(file: str, taken: set[str]) -> str:
    """The photo's name without its ending, and a number where there was one of that name."""
    stem = Path(file).stem if file != "-" else "photo"
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


def _require_own(path: Path) -> None:
    with storage_errors(f"read what stands at {path}"):
        if not path.exists():
            return
        with path.open("rb") as stream:
            head = stream.read(512)
    if _MARK.encode() not in head:
        raise StorageError(f"{path} is a file of another kind, such as a photo: name another folder with --output")


def draw_explanation(explanation: Explanation) -> bytes:
    """Draw a photo, what spoke for its answer and against it, and the nearest photos learnt from.

    Parameters
    ----------
    explanation : Explanation
        Of a photo that could be used.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    OptionError
        If the photo could not be used.
    """
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    if explanation.pixels is None or explanation.heat_map is None:
        raise OptionError(f"{explanation.prediction.file}: wanted an explanation to draw, got one of an unusable photo")
    has_nearest = bool(explanation.nearest)
    width = 3 * _GAP + 2 * _SIDE + (_GAP + 2 * _SIDE // 3 + 40 if has_nearest else 0)
    picture = Image.new("RGB", (width, 2 * _GAP + _HEAD + _SIDE + _FOOT), _PAPER)
    pen = _Pen(picture, explanation)
    left, top = _GAP, _GAP + _HEAD
    photo = Image.fromarray(explanation.pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pen.write("The photo, as it is seen", left, _GAP)
    picture.paste(photo, (left, top))
    left += _SIDE + _GAP
    pen.write("What the answer comes from", left, _GAP)
    picture.paste(Image.fromarray(paint_map(np.asarray(photo), explanation.heat_map)), (left, top))
    _draw_legend(picture, pen, left, top + _SIDE + 12)
    _draw_answer(pen, _GAP, top + _SIDE + 12)
    if has_nearest:
        _draw_nearest(picture, pen, explanation.nearest, left + _SIDE + _GAP, top)
    ImageDraw.Draw(picture).rectangle((0, 0, width - 1, picture.height - 1), outline=_LINE)
    note, content = PngInfo(), io.BytesIO()
    note.add_text("Software", _MARK)
    picture.save(content, "PNG", pnginfo=note)
    return content.getvalue()


class _Pen:
    """Writes on a picture, in three sizes."""

    def __init__(self, picture: Image.Image, explanation: Explanation) -> None:
        self.picture, self.explanation = picture, explanation
        answers = [answer.label for answer in explanation.prediction.top]
        texts = [*answers, *(one.label for one in explanation.nearest), *(one.name for one in explanation.nearest), "…"]
        self.fonts = {size: load_fonts(size, texts) for size in (_SMALL, _TEXT, _LARGE)}

    def write(
        self,
        text: str,
        left: int,
        top: int,
        *,
        size: int = _TEXT,
        ink: tuple[int, int, int] = _INK,
        limit: int = 60,
        otherwise: str = "#",
    ) -> int:
        """Write a line; gives where it ends."""
        mask = draw_text(shorten(text, limit), self.fonts[size], otherwise=otherwise)
        self.picture.paste(ink, (left, top - size // 2), mask)
        return left + mask.width


def _draw_legend(picture: Image.Image, pen: _Pen, left: int, top: int) -> None:
    from PIL import Image

    strengths = np.linspace(-1, 1, 120, dtype=np.float32)
    bar = paint_map(np.full((14, 120, 3), 190, np.uint8), np.tile(strengths, (120, 1)))
    end = pen.write("spoke against it", left, top + 8, size=_SMALL, ink=_MUTED)
    picture.paste(Image.fromarray(bar), (end + 10, top + 11))
    pen.write("spoke for it", end + 140, top + 8, size=_SMALL, ink=_MUTED)


def _draw_answer(pen: _Pen, left: int, top: int) -> None:
    prediction = pen.explanation.prediction
    first = prediction.answer or prediction.top[0]
    size, limit = (_LARGE, 20) if measure_units(first.label) <= 20 else (_TEXT, 36)
    end = pen.write(first.label, left, top + 18, size=size, limit=limit, otherwise="the answer")
    if not prediction.unknown:
        doubt = ", not sure" if prediction.sure is False else ""
        pen.write(f"{first.score:.1%}{doubt}", end + 14, top + 18 + (4 if size == _LARGE else 0), ink=_MUTED)
    rest = ", ".join(
        f"{shorten(one.label, 20)} {one.score:.1%}" for one in prediction.others if one.score >= _LEAST_SHOWN
    )
    if rest:
        lead = "nearest:" if prediction.unknown else "then"
        pen.write(f"{lead} {rest}", left, top + 62, size=_SMALL, ink=_MUTED, otherwise="then others")


def _draw_nearest(picture: Image.Image, pen: _Pen, nearest: Sequence[Nearest], left: int, top: int) -> None:
    step = (_SIDE - _THUMBNAIL) // 2
    pen.write("Nearest photos learnt from", left, _GAP)
    for place, one in enumerate(nearest[:3]):
        y = top + place * step
        thumbnail = _load_thumbnail(one)
        x = left + (_THUMBNAIL - thumbnail.width) // 2 if thumbnail else left
        if thumbnail:
            picture.paste(thumbnail, (x, y + (_THUMBNAIL - thumbnail.height) // 2))
        else:
            picture.paste(_LINE, (left, y, left + _THUMBNAIL, y + _THUMBNAIL))
            pen.write("not found", left + 22, y + 48, size=_SMALL, ink=_MUTED)
        same = one.label == pen.explanation.prediction.label
        for row, line in enumerate(_break_lines(one.label, 22)[:2]):
            pen.write(line, left + _THUMBNAIL + 14, y + 14 + 22 * row, ink=_INK if same else _OTHER_CLASS, limit=22)
        pen.write(f"similarity {one.similarity:.2f}", left + _THUMBNAIL + 14, y + 62, size=_SMALL, ink=_MUTED)
        name = one.name.rpartition("/")[2]
        name = name if measure_units(name) <= 24 else f"…{name[-22:]}"  # the end tells one from the other
        pen.write(name, left + _THUMBNAIL + 14, y + 84, size=_SMALL, ink=_MUTED, limit=26)


def _break_lines(text: str, limit: int) -> list[str]:
    """A name in lines, broken at spaces and hyphens."""
    lines = [""]
    for word in text.replace("-", "- ").split(" "):
        joint = "" if not lines[-1] or lines[-1].endswith("-") else " "
        if lines[-1] and measure_units(lines[-1] + joint + word) > limit:
            lines.append(word)
        else:
            lines[-1] += joint + word
    return lines


def _load_thumbnail(one: Nearest) -> Image.Image | None:
    from PIL import Image

    if one.path is None:
        return None
    try:
        photo = decode_photo(read_photo_bytes(one.path), at_least_px=2 * _THUMBNAIL)
    except PhotoError:  # it was there a moment ago
        return None
    picture = Image.fromarray(photo)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture
