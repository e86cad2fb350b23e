"""Labels as people send them, refused where no class can be called so.

In: text from outside. Out: the path of a class.
Why: a label becomes a class name, a folder name and a line on many screens, so what spoils any of these is refused
before it is kept, with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pomona.class_tree import split_label
from pomona.errors import OptionError

if TYPE_CHECKING:
    from pomona.class_tree import ClassPath

MAX_PARTS = 8
"""Parts of a path, from the root of the class tree to the class."""

MAX_PART_CHARS = 80
"""Characters of one part: in UTF-8 they fit a file name on every system, at three bytes each."""

_JOINERS = "\u200c\u200d"  # unprintable to Python, and needed to write Persian and Hindi


def parse_label(text: str) -> ClassPath:
    """Read a label such as ``"Fruit/Apple/Elstar"``.

    Parameters
    ----------
    text : str
        Parts from the root down with ``/`` between them; blanks around parts and empty parts are dropped.

    Returns
    -------
    tuple of str
        Path of the class, in Unicode normal form C.

    Raises
    ------
    OptionError
        If nothing is left, a part is too long, is ``.`` or ``..``, or holds control characters, or there are too many.

    Examples
    --------
    >>> parse_label(" Fruit / Apple/Elstar")
    ('Fruit', 'Apple', 'Elstar')
    """
    if any(not (sign.isprintable() or sign in _JOINERS) for sign in text):
        raise OptionError(f"label: wanted text without control characters, got {text[:80]!a}")
    path = split_label(text)
    if not path:
        raise OptionError(f"label: wanted the name of a class, or its path such as Fruit/Apple/Elstar, got {text!r}")
    if len(path) > MAX_PARTS:
        raise OptionError(f"label: wanted {MAX_PARTS} parts at most, got {len(path)}")
    for part in path:
        if len(part) > MAX_PART_CHARS:
            raise OptionError(f"label: wanted parts of {MAX_PART_CHARS} characters at most, got one of {len(part)}")
        if part in {".", ".."}:
            raise OptionError(f"label: wanted names of classes, got the part {part!r}")
    return path
