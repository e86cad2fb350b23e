"""What a person decided about photos that an audit flagged, as the review page exports it.

In: a decisions file; the `Dataset` that it is about. Out: a `Decision` a photo, each matched by name and content.
Why: between the page and the clean list lies a file that Excel may have saved, that may be old, or of other photos. All
that can be wrong with it is said here, row by row, before anything is planned.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pomona.class_tree import show_text, split_label
from pomona.dataset import name_some
from pomona.errors import DataError
from pomona.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.dataset import Dataset, Photo

Action = Literal["keep", "drop", "relabel"]
"""What a person decides about a photo."""

DECISION_COLUMNS = ("file_name", "sha256", "decision", "label")
"""Columns of a decisions file."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_N_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about one photo.

    Parameters
    ----------
    name, sha256 : str
        Of the photo, as in `pomona.dataset.Photo`.
    action : {"keep", "drop", "relabel"}
        What to do with it.
    label : str
        Class path with ``/`` that it gets; empty unless it is relabelled.
    """

    name: str
    sha256: str
    action: Action
    label: str = ""


class _UnknownPhotoError(DataError):
    """A row is about a photo that the data lacks, or has with another content."""


def read_decisions(path: str | Path, dataset: Dataset) -> tuple[Decision, ...]:
    """Read a decisions file, as the review page exports it and Excel may have saved it.

    Every photo is matched by name and content; one that lies elsewhere by now is found by its content alone. A row
    without a decision says nothing.

    Parameters
    ----------
    path : str or Path
        CSV with the columns ``file_name,sha256,decision,label``, divided by commas, semicolons or tabs.
    dataset : Dataset
        The photos that were looked at.

    Returns
    -------
    tuple of Decision
        One a photo, in the order of the file; names are those of the dataset, labels those of its classes where it
        has them.

    Raises
    ------
    DataError
        If the file is no such table, is about other photos, or a row cannot be understood; all such rows are counted,
        the first few named.
    StorageError
        If it cannot be read.
    """
    path = Path(path)
    finder = _PhotoFinder(dataset)
    decisions: dict[tuple[str, str], Decision] = {}
    faults: list[str] = []
    n_rows = n_unknown = 0
    for number, row in _read_rows(path):
        n_rows += 1
        try:
            decision = _read_decision(row, finder)
            first = decisions.setdefault((decision.name, decision.sha256), decision)
            if first != decision:
                raise DataError(f"{decision.name} is there twice, with different decisions: leave one of them")
        except DataError as error:
            n_unknown += isinstance(error, _UnknownPhotoError)
            faults.append(f"row {number}: {error}")
    if n_rows and n_unknown == n_rows:
        raise DataError(
            f"{path}: decisions of another data set: none of its {n_rows} photos is in {dataset.shown} with the same "
            "content: name the data that they were made for"
        )
    if faults:
        more = f"; and {len(faults) - _N_FAULTS} more" if len(faults) > _N_FAULTS else ""
        raise DataError(f"{path}: {len(faults)} of {n_rows} rows cannot be used: {'; '.join(faults[:_N_FAULTS])}{more}")
    return tuple(decisions.values())


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows that hold a decision, by the columns of the header, numbered as a spreadsheet does."""
    with storage_errors(f"read the decisions in {path}"):
        data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted UTF-8 text, got other bytes: save it as CSV UTF-8") from error
    header = text.lstrip("\r\n").partition("\n")[0]
    for delimiter in ",;\t":
        columns = [cell.strip(' "\r').casefold() for cell in header.split(delimiter)]
        if set(DECISION_COLUMNS[:3]) <= set(columns):
            break
    else:
        raise DataError(f"{path}, row 1: wanted the columns {','.join(DECISION_COLUMNS)}, got {header.strip()[:80]!r}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, cells in enumerate(reader, start=1):
            row = dict(zip(columns, cells, strict=False))
            if number > 1 and row.get("decision", "").strip():
                yield number, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: wanted cells divided by {delimiter!r}: {error}") from error


class _PhotoFinder:
    """Finds the photo that a row is about, and the class that a label names."""

    def __init__(self, dataset: Dataset) -> None:
        self.tree = dataset.tree
        self.by_name: dict[str, list[Photo]] = defaultdict(list)
        self.by_content: dict[str, list[Photo]] = defaultdict(list)
        for photo in dataset.photos:
            self.by_name[photo.name].append(photo)
            self.by_content[photo.sha256].append(photo)

    def find_photo(self, name: str, sha256: str) -> Photo:
        shown = show_text(name)
        same_name = self.by_name.get(shown, [])
        for photo in same_name:
            if photo.sha256 == sha256:
                return photo
        same_content = self.by_content.get(sha256, [])
        if len({photo.name for photo in same_content}) == 1:  # it was moved or renamed
            return same_content[0]
        if same_content:
            places = name_some([photo.name for photo in same_content], 3)
            raise _UnknownPhotoError(f"{shown} is not in the data, and its content is there more than once: {places}")
        if same_name:
            raise _UnknownPhotoError(f"{shown} has another content now: decide on it anew")
        raise _UnknownPhotoError(f"{shown} is not in the data")

    def find_label(self, text: str) -> str:
        """Class path of a label; that of a new class where the data has none of that name."""
        index = self.tree.index_of(text.strip())
        parts = split_label(text)
        if index is None:
            index = self.tree.index_of("/".join(parts))
        if index is not None:
            return "/".join(self.tree.paths[index])
        if several := ["/".join(path) for path in self.tree.paths if parts and path[-len(parts) :] == parts]:
            raise DataError(f"{text.strip()!r} names more than one class: write {' or '.join(several[:3])}")
        return "/".join(parts)


def _read_decision(row: dict[str, str], finder: _PhotoFinder) -> Decision:
    sha256 = row.get("sha256", "").strip().lower()
    if not _SHA256.fullmatch(sha256):
        raise DataError(f"wanted 64 hexadecimal digits in sha256, got {row.get('sha256', '')[:80]!r}")
    photo = finder.find_photo(row.get("file_name", ""), sha256)
    word, text = row["decision"].strip().casefold(), row.get("label") or ""
    action = next((one for one in get_args(Action) if one == word), None)
    if action is None:
        raise DataError(f"wanted keep, drop or relabel as decision, got {row['decision'].strip()[:80]!r}")
    label = finder.find_label(text) if split_label(text) else ""
    if action == "relabel":
        if not label:
            raise DataError(f"{photo.name} shall be relabelled: wanted a class in label, got an empty cell")
        return Decision(photo.name, photo.sha256, action, label)
    if label and (photo.label < 0 or label != "/".join(finder.tree.paths[photo.label])):
        raise DataError(f"{photo.name}: {action} with another label, {label}: write relabel or empty the label")
    return Decision(photo.name, photo.sha256, action)
