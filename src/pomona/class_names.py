"""What people call each class, and its code at a till.

In: a table with a row a class, and a class tree. Out: `ClassNames`: for each class its English and Chinese name, its
price look-up code (PLU) and further columns; from the table, and where that is silent from a list of common produce.
Why: folders are named for whoever sorted the photos. What a till or a customer reads has one owner, so that training,
teaching and renaming agree on it.

The list is `fruit_names.csv` beside this file. A code is in it only where the kind has one code, or one for the large
size: it is better to have none at a till than a wrong one.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import io
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from pomona.class_tree import show_text, split_label
from pomona.errors import DataError
from pomona.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pomona.class_tree import ClassPath, ClassTree

Language = Literal["en", "zh"]
"""Languages that a class may have a name in."""

TABLE_NAME = "classes.csv"
"""Table that is taken by itself where it lies in the folder of the photos."""

NONE_MARK = "-"
"""Cell that says: none, whatever the list of common produce has."""

_COLUMNS = ("name_en", "name_zh", "plu")
_PLU = re.compile(r"[0-9]{4,5}")
_MAX_BYTES = 2**24
_DELIMITERS = ",;\t"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NUMBER = re.compile(r"[\s_-]*[0-9]+\s*$")  # "Apple Braeburn 1": sets of photos count their varieties
_BETWEEN = re.compile(r"[\s_\-'’.]+")
_PROCESSED = frozenset({"juice", "juices", "dried", "canned", "frozen", "jam", "sauce", "milk", "yoghurt", "yogurt"})


@dataclass(frozen=True)
class ClassName:
    """What people call a class. In a table that was read, an empty text says that there is none.

    Parameters
    ----------
    name_en, name_zh : str, optional
        Its name in English and in Chinese.
    plu : str, optional
        Price look-up code, 4 or 5 digits.
    extra : mapping of str to str
        Further columns of the table.
    """

    name_en: str | None = None
    name_zh: str | None = None
    plu: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


_KINDS = {
    **dict.fromkeys(("fruit", "fruits", "水果"), ClassName("Fruit", "水果")),
    **dict.fromkeys(("vegetable", "vegetables", "蔬菜"), ClassName("Vegetables", "蔬菜")),
    **dict.fromkeys(("package", "packages", "packaged", "packagedgoods"), ClassName("Packaged goods", "包装食品")),
    **dict.fromkeys(("citrus", "citrusfruit", "柑橘"), ClassName("Citrus fruit", "柑橘")),
    **dict.fromkeys(("berry", "berries", "浆果"), ClassName("Berries", "浆果")),
    **dict.fromkeys(("nut", "nuts", "坚果"), ClassName("Nuts", "坚果")),
    **dict.fromkeys(("herb", "herbs", "香草"), ClassName("Herbs", "香草")),
    **dict.fromkeys(("juice", "juices", "果汁"), ClassName("Juice", "果汁")),
    **dict.fromkeys(("milk", "牛奶"), ClassName("Milk", "牛奶")),
    **dict.fromkeys(("yoghurt", "yogurt", "酸奶"), ClassName("Yoghurt", "酸奶")),
}
"""What nodes above classes are called where they are no produce themselves, by their names folded."""


class ClassNames(NamedTuple):
    """Names of the classes of a tree, in its order, and what to know of the table that they come from."""

    names: tuple[ClassName, ...]
    notes: tuple[str, ...]


class CommonName(NamedTuple):
    """A row of the list of common produce."""

    label: str
    name: ClassName
    aliases: tuple[str, ...]


# --- tables ---------------------------------------------------------------------------------------------------------


def read_class_names(path: Path) -> dict[str, ClassName]:
    """Read a table of names.

    Parameters
    ----------
    path : Path
        Text with a heading: `class`, of `name_en`, `name_zh` and `plu` what there is, and further columns. Divided by
        commas, semicolons or tabs; in UTF-8, UTF-16 with its mark, or GBK, as Excel writes it in China.

    Returns
    -------
    dict of str to ClassName
        By the name of the class as the table has it, in the order of the rows. An empty cell is None, and a ``-`` the
        empty text: none, whatever the list of common produce has.

    Raises
    ------
    DataError
        If the file cannot be read, is no such table, names a class twice or not at all, or has a code that is none.
    """
    shown = show_text(str(path))
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{shown}: wanted a table of names, it cannot be read: {error.strerror or error}") from error
    text = _decode(data)
    if text is None:
        raise DataError(
            f"{shown}: wanted a table of names as text, in UTF-8 or GBK, got something else: save it as CSV UTF-8"
        )
    table: dict[str, ClassName] = {}
    rows: dict[str, int] = {}
    for number, row in _read_rows(text, shown):
        label = "/".join(split_label(row.pop("class", "")))
        if not label:
            raise DataError(f"{shown}, row {number}: wanted the name of a class in the column class, got an empty cell")
        if label in rows:
            raise DataError(
                f"{shown}, row {number}: wanted each class once, got {label!r} again: row {rows[label]} has it"
            )
        rows[label] = number
        table[label] = _read_name(row, f"{shown}, row {number}")
    return table


def find_class_names(data: Path) -> Path | None:
    """Find the table of names in a folder of photos.

    Parameters
    ----------
    data : Path
        What is trained on.

    Returns
    -------
    Path or None
        `TABLE_NAME` in it, where its heading has `class` and a column for a name or a code; anything else of that name
        is left alone.
    """
    path = data / TABLE_NAME
    try:
        with path.open("rb") as stream:
            text = _decode(stream.readline(_MAX_BYTES))
    except OSError:
        return None
    columns, _ = _split_heading(text or "")
    return path if "class" in columns and set(_COLUMNS) & set(columns) else None


def write_class_names(path: Path, tree: ClassTree, names: Sequence[ClassName]) -> None:
    """Write a table that `read_class_names` and `match_class_names` make the same names of.

    It has a mark for its encoding, without which Excel takes Chinese for something else.

    Parameters
    ----------
    path : Path
        File to write.
    tree : ClassTree
        C classes.
    names : sequence of ClassName, length C
        In the order of the tree.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    more = list(dict.fromkeys(column for name in names for column in name.extra))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["class", *_COLUMNS, *more])
    for label, place, name in zip(tree.names, tree.paths, names, strict=True):
        common = find_common_name(place) or ClassName()
        cells = []
        for column in _COLUMNS:
            value, known = getattr(name, column), getattr(common, column)
            cells.append(value or (NONE_MARK if known else ""))
        writer.writerow([label, *cells, *(name.extra.get(column, "") for column in more)])
    write_atomic(path, "\ufeff" + lines.getvalue())


def _decode(data: bytes) -> str | None:
    """Text of a table, without the mark of its encoding; None where it is no text."""
    if len(data) > _MAX_BYTES:
        return None
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError:
        text = _decode_gbk(data)
    return None if "\0" in text or not text else text


def _decode_gbk(data: bytes) -> str:
    """Text in GBK; empty where it is none. Latin letters with accents make rare signs of it, and no common ones."""
    try:
        text = data.decode("gbk")
    except UnicodeDecodeError:
        return ""
    signs = [sign for sign in text if not sign.isascii()]
    n_common = sum(bool(sign.encode("gb2312", "ignore")) for sign in signs)
    return text if 2 * n_common > len(signs) else ""


def _split_heading(text: str) -> tuple[list[str], str]:
    """Columns of the first line that is not empty, in lower case, and the sign between them; none where it has none."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in _DELIMITERS:
        columns = [cell.strip(' "\t').casefold() for cell in first.split(delimiter)]
        if "class" in columns:
            return columns, delimiter
    return [], ""


def _read_rows(text: str, shown: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each row by column; the columns that are known in lower case, the others as they are."""
    _, delimiter = _split_heading(text)
    if not delimiter:
        first = next((line for line in text.splitlines() if line.strip()), "")
        raise DataError(f"{shown}, row 1: wanted a column class, and name_en, name_zh or plu, got {first[:80]!r}")
    # Without `strict`, a quote that is never closed swallows the rest of the table unseen.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] | None = None
    try:
        for raw in reader:
            cells = [show_text(cell.strip()) for cell in raw]
            if not any(cells):
                continue
            if columns is None:
                known = {"class", *_COLUMNS}
                columns = [cell.casefold() if cell.casefold() in known else cell for cell in cells]
                if repeated := [one for i, one in enumerate(columns) if one and one in columns[:i]]:
                    raise DataError(f"{shown}, row 1: wanted each column once, got {repeated[0]!r} twice")
                continue
            width = len(columns)
            if any(cells[width:]) or any(cell and not name for cell, name in zip(cells, columns, strict=False)):
                raise DataError(f"{shown}, row {reader.line_num}: wanted cells under the heading alone, got {cells}")
            yield reader.line_num, {name: cell for name, cell in zip(columns, cells, strict=False) if name}
    except csv.Error as error:
        raise DataError(f"{shown}, row {reader.line_num}: wanted cells divided by {delimiter!r}: {error}") from error


def _read_name(row: dict[str, str], where: str) -> ClassName:
    known = {column: row.pop(column, "") for column in _COLUMNS}
    if known["plu"] not in {"", NONE_MARK} and not _PLU.fullmatch(known["plu"]):
        raise DataError(
            f"{where}: wanted a price look-up code of 4 or 5 digits in plu, or nothing, got {known['plu']!r}"
        )
    values = {column: "" if cell == NONE_MARK else cell or None for column, cell in known.items()}
    return ClassName(**values, extra={column: cell for column, cell in row.items() if cell})


# --- matching -------------------------------------------------------------------------------------------------------


def match_class_names(table: Mapping[str, ClassName] | None, tree: ClassTree) -> ClassNames:
    """Find the names of classes: in a table, and where that is silent in the list of common produce.

    Parameters
    ----------
    table : mapping of str to ClassName, or None
        What `read_class_names` gave; its classes are found by `ClassTree.index_of`.
    tree : ClassTree
        C classes.

    Returns
    -------
    ClassNames
        C names, and how many classes have no row and rows no class.

    Raises
    ------
    DataError
        If two rows are of one class.

    Examples
    --------
    >>> from pomona.class_tree import ClassTree
    >>> tree = ClassTree.from_paths(["Apple/Royal-Gala", "Apple/Our best"])
    >>> names, notes = match_class_names({"Our best": ClassName("Our best apple", plu="4131")}, tree)
    >>> [(name.name_en, name.plu) for name in names]
    [('Our best apple', '4131'), ('Royal Gala apple', '4174')]
    >>> notes
    ('1 class has no row in the table of names: Royal-Gala.',)
    """
    rows: dict[int, str] = {}
    strange = []
    for label in table or {}:
        index = tree.index_of(label)
        if index is None:
            strange.append(label)
        elif index in rows:
            raise DataError(
                f"table of names: wanted one row for the class {tree.names[index]}, got two: {rows[index]!r}, {label!r}"
            )
        else:
            rows[index] = label
    names = tuple(
        _complete(table[rows[c]] if table and c in rows else ClassName(), find_common_name(path))
        for c, path in enumerate(tree.paths)
    )
    notes = []
    missing = [name for c, name in enumerate(tree.names) if c not in rows]
    if table is not None and missing:
        count = "1 class has" if len(missing) == 1 else f"{len(missing):,} classes have"
        notes.append(f"{count} no row in the table of names: {_name_some(missing)}.")
    if strange:
        count = "1 row of the table of names is" if len(strange) == 1 else f"{len(strange):,} rows of the table are"
        notes.append(f"{count} of no class here: {_name_some(strange)}.")
    return ClassNames(names, tuple(notes))


def _name_some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")


def _complete(said: ClassName, common: ClassName | None) -> ClassName:
    known = common or ClassName()
    values = {}
    for column in _COLUMNS:
        value = getattr(said, column)
        values[column] = (getattr(known, column) if value is None else value) or None
    return ClassName(**values, extra=dict(said.extra))


# --- common produce -------------------------------------------------------------------------------------------------


@functools.cache
def list_common_names() -> tuple[CommonName, ...]:
    """The list of common produce that comes with the package."""
    resource = importlib.resources.files("pomona") / "fruit_names.csv"
    rows = []
    for number, row in _read_rows(resource.read_text(encoding="utf-8"), resource.name):
        label, aliases = row.pop("class"), row.pop("aliases").split("|")
        name = _read_name(row, f"{resource.name}, row {number}")
        rows.append(CommonName(label, name, tuple(filter(None, aliases))))
    return tuple(rows)


def find_common_name(path: ClassPath) -> ClassName | None:
    """Look a class up in the list of common produce, whatever its case, hyphens, spaces and number at the end.

    Parameters
    ----------
    path : tuple of str
        Where it stands in the class tree, from the root down. The longest end that is known counts, in either order:
        ``Tomato/Cherry`` is a cherry tomato.

    Returns
    -------
    ClassName or None
        None where it is not known, or is known as something else than the folders above it: an orange under ``Juice``
        is none.

    Examples
    --------
    >>> find_common_name(("Fruit", "apple_royal gala 2")).name_zh
    '皇家嘎啦苹果'
    >>> find_common_name(("Tomato", "Cherry")).name_en, find_common_name(("Juice", "Banana"))
    ('Cherry tomato', None)
    """
    known = _index_common()
    for start in range(len(path)):
        parts = path[start:]
        found = known.get(_fold(" ".join(parts))) or known.get(_fold(" ".join(reversed(parts))))
        if found:
            return found if all(_agrees(folder, found) for folder in path[:start]) else None
    return None


def find_node_name(path: ClassPath) -> ClassName | None:
    """Look up what people call a node above classes: produce as a class is looked up, or a kind of goods.

    Examples
    --------
    >>> find_node_name(("Fruit", "Apple")).name_zh, find_node_name(("Fruit",)).name_zh, find_node_name(("Shelf 7",))
    ('苹果', '水果', None)
    """
    return find_common_name(path) or _KINDS.get(_fold(path[-1]))


def _agrees(folder: str, found: ClassName) -> bool:
    """Whether a class may lie in a folder: not that of another fruit, nor of what is made of fruit."""
    folded = _fold(folder)
    above = _index_common().get(folded)
    if folded in _PROCESSED or above is None:
        return folded not in _PROCESSED
    whole = _fold(found.name_en or "")
    return all(_fold(word) in whole for word in (above.name_en or "").split())  # a watermelon is a melon


@functools.cache
def _index_common() -> dict[str, ClassName]:
    """The list by every name that a row has, folded."""
    return {
        _fold(label): row.name
        for row in list_common_names()
        for label in (row.label, row.name.name_en, row.name.name_zh, *row.aliases)
        if label
    }


def _fold(text: str) -> str:
    """Label without what spellings differ in; empty where nothing is left."""
    return _BETWEEN.sub("", _NUMBER.sub("", unicodedata.normalize("NFKC", text).casefold()))
