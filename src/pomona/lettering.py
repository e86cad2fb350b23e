"""Words in pictures: fonts that can write them, how wide they are, and what to do where no font can.

In: text, and a size. Out: fonts at hand, and masks to be painted through.
Why: Pillow's own font knows plain Latin alone, and every machine has others. A class may be called by any name.
"""

from __future__ import annotations

import contextlib
import itertools
import unicodedata
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image, ImageFont

_LATIN_FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")
_CJK_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Medium.ttc",
    "msyh.ttc",
    "simhei.ttf",
)


def measure_units(text: str) -> int:
    """Width of a text in Latin letters; a Chinese one is as wide as two.

    Examples
    --------
    >>> measure_units("Kiwi"), measure_units("苹果")
    (4, 4)
    """
    return sum(_letter_units(letter) for letter in text)


def _letter_units(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shorten(text: str, limit: int) -> str:
    """Cut a text that is wider than so many Latin letters.

    Examples
    --------
    >>> shorten("Golden Delicious", 9)
    'Golden D…'
    """
    if measure_units(text) <= limit:
        return text
    widths = itertools.accumulate(_letter_units(letter) for letter in text)
    return "".join(letter for letter, width in zip(text, widths, strict=True) if width < limit) + "…"


def load_fonts(size_px: int, texts: Sequence[str]) -> list[ImageFont.FreeTypeFont]:
    """Pillow's own font, which knows plain Latin, and what this machine has for texts that need more.

    Parameters
    ----------
    size_px : int
        Height of the letters.
    texts : sequence of str
        What is to be written.

    Returns
    -------
    list of FreeTypeFont
        The first is always there.
    """
    from PIL import ImageFont

    fonts = [cast("ImageFont.FreeTypeFont", ImageFont.load_default(size_px))]
    if all(text.isascii() for text in texts):
        return fonts
    for family in (_LATIN_FONTS, _CJK_FONTS):
        for name in family:
            with contextlib.suppress(OSError):
                fonts.append(ImageFont.truetype(name, size_px))
                break
    return fonts


def draw_text(text: str, fonts: Sequence[ImageFont.FreeTypeFont], *, otherwise: str) -> Image.Image:
    """Draw a line of text as a mask.

    Parameters
    ----------
    text : str
        What to write.
    fonts : sequence of FreeTypeFont
        Of one size; the first that can write it does.
    otherwise : str
        What is written where none can, even without accents; plain Latin.

    Returns
    -------
    Image
        In 256 steps; all of one size are as high as each other, so that texts in a row share a baseline.
    """
    from PIL import Image, ImageDraw

    plain = "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    choices = [(one, font) for one in (text, plain) for font in fonts if _can_write(font, one)]
    text, font = choices[0] if choices else (otherwise, fonts[0])
    height = round(2 * font.size)
    mask = Image.new("L", (max(1, round(font.getlength(text))), height))
    ImageDraw.Draw(mask).text((0, round(0.68 * height)), text, fill=255, font=font, anchor="ls")
    return mask


def _can_write(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether no letter of the text is drawn as the font's box for a missing one."""
    missing = bytes(font.getmask("\U0010fffd"))
    return all(
        letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text) if not letter.isascii()
    )
