"""The photos that stay after an audit, with their labels: a list or a tree of hard links.

In: an `Audit`; decisions of a person. Out: a `CleanPlan`, written as a table that
`load_dataset` reads or as a folder of links.
Why: no photo is ever changed, moved or deleted. What is dropped is only left out of a list, and deleting the list or
the tree undoes it all. Without being told, only that is dropped which teaches nothing (copies) or contradicts itself.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import stat
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.class_tree import natural_key, show_text, split_label
from pomona.dataset import name_some
from pomona.errors import DataError, OptionError, StorageError
from pomona.files import (
    MANIFEST_NAME,
    SYSTEM_FILES,
    WINDOWS_FORBIDDEN,
    make_folder,
    new_folder,
    storage_errors,
    write_atomic,
)
from pomona.findings import CHECKS
from pomona.listing import match_split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pomona.class_tree import ClassPath
    from pomona.dataset import Dataset, Photo
    from pomona.decisions import Decision
    from pomona.findings import Audit, Finding

LIST_COLUMNS = ("file_name", "label", "split", "group")
"""Columns of a clean list."""

DROP_CHECKS = tuple(name for name, check in CHECKS.items() if check.family in {"same", "leak", "label", "poor"})
"""Checks whose flagged photos may be dropped on request."""

MARKER_NAME = ".pomona-clean"
"""File that makes a folder a tree of links that may be replaced; it lists them."""

_COPIES = ("conflicting_label", "exact_duplicate", "same_pixels")
_TOGETHER = (*_COPIES, "near_duplicate", "leak")
"""Checks that are about several photos, of which one may stay."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_FILES = {".txt", ".lst", ".list", ".tab", ".json", ".zip", ".xlsx", ".xls", ".parquet", ".html"}
_RANKS = {"test": 0, "val": 1}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class CleanPhoto:
    """A photo that stays.

    Parameters
    ----------
    photo : Photo
        As it stands in the data.
    label : tuple of str
        Path of the class that it has from now on.
    """

    photo: Photo
    label: ClassPath


@dataclass(frozen=True, slots=True)
class DroppedPhoto:
    """A photo that does not stay.

    Parameters
    ----------
    photo : Photo
        As it stands in the data.
    why : str
        A check of `pomona.findings.CHECKS`; ``"decision"``; or ``"unknown_label"`` where the data does not say which
        class it shows.
    """

    photo: Photo
    why: str


@dataclass(frozen=True)
class CleanPlan:
    """Which photos stay, and which do not and why.

    Parameters
    ----------
    dataset : Dataset
        What it was made of.
    photos : tuple of CleanPhoto
        In the order of the data.
    dropped : tuple of DroppedPhoto
        In the order of the data.
    n_relabelled : int
        Photos that stay with another label than they had.
    new_classes : tuple of str
        Class paths with ``/`` that no photo of the data has.
    """

    dataset: Dataset
    photos: tuple[CleanPhoto, ...]
    dropped: tuple[DroppedPhoto, ...] = ()
    n_relabelled: int = 0
    new_classes: tuple[str, ...] = ()

    def count_dropped(self) -> dict[str, int]:
        """Photos by the reason that they were dropped for, decisions first, then in the order of `CHECKS`."""
        counts = Counter(one.why for one in self.dropped)
        return {why: counts[why] for why in ("decision", *CHECKS, "unknown_label") if why in counts}

    def list_lost(self) -> tuple[str, ...]:
        """Class paths with ``/`` of which no photo stays."""
        left = {one.label for one in self.photos}
        tree = self.dataset.tree
        had = {photo.label for photo in self.dataset.photos if photo.label >= 0}
        return tuple("/".join(tree.paths[label]) for label in sorted(had) if tree.paths[label] not in left)

    def describe(self) -> str:
        """Say in a few sentences what stays, what is dropped and what gets another label."""
        n_all = len(self.dataset.photos)
        said = [f"{len(self.photos):,} of {n_all:,} photos stay."]
        if self.dropped:
            parts = [f"{n:,} {_REASONS.get(why) or CHECKS[why].title}" for why, n in self.count_dropped().items()]
            said.append(f"Dropped: {'; '.join(parts)}.")
        if self.n_relabelled:
            said.append(f"Relabelled: {self.n_relabelled:,}.")
        if self.new_classes:
            said.append(f"New classes: {len(self.new_classes)} ({name_some(self.new_classes)}).")
        if lost := self.list_lost():
            said.append(f"Without any photo now: {name_some(lost)}.")
        return " ".join(said)


_REASONS = {"decision": "by decision", "unknown_label": "of a class that the data does not name"}


# --- the plan -------------------------------------------------------------------------------------------------------


def plan_clean(audit: Audit, decisions: Sequence[Decision] = (), drop: Sequence[str] = ()) -> CleanPlan:
    """Choose the photos that stay.

    A decision wins over everything. Without one, a photo is dropped if it is a copy (the same file, the same pixels)
    of one with the same label that stays: a copy in test goes before one in val, that before one in train, then the
    first by name, so that no copy is on two sides of a split. Copies with different labels are all dropped, unless
    decisions on them leave one label.

    Parameters
    ----------
    audit : Audit
        What was found.
    decisions : sequence of Decision
        What a person decided, from `pomona.decisions.read_decisions` with the same data.
    drop : sequence of str
        Further checks, some of `DROP_CHECKS`, whose flagged photos are dropped; of photos that are nearly the same one
        stays, and of those on both sides of a split the ones that are measured on.

    Raises
    ------
    OptionError
        If `drop` names something else.
    DataError
        If a decision is about a photo that the data lacks, or fewer than two classes are left to learn from.
    """
    if unknown := [name for name in drop if name not in DROP_CHECKS]:
        raise OptionError(f"drop: wanted some of {', '.join(DROP_CHECKS)}, got {unknown[0]!r}")
    planner = _Planner(audit, decisions)
    planner.drop_flagged(drop)
    planner.settle_copies()
    for check in ("near_duplicate", "leak"):
        if check in drop:
            planner.settle_alike(check)
    return planner.make_plan()


class _Planner:
    """What is known of each photo while the plan is made; photos are called by their row."""

    def __init__(self, audit: Audit, decisions: Sequence[Decision]) -> None:
        self.audit = audit
        self.photos = audit.dataset.photos
        decided = {(one.name, one.sha256): one for one in decisions}
        self.decisions = [decided.get((photo.name, photo.sha256)) for photo in self.photos]
        if missing := decided.keys() - {(photo.name, photo.sha256) for photo in self.photos}:
            name = min(missing)[0]
            raise DataError(f"{audit.dataset.shown}: wanted decisions on its photos, got one on {name}: read them anew")
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.why: dict[int, str] = {}
        self.labels: list[ClassPath] = []
        for row, (photo, decision) in enumerate(zip(self.photos, self.decisions, strict=True)):
            self.rows[photo.name].append(row)
            label = _find_label(photo, audit.dataset)
            if decision is not None and decision.action == "relabel":
                label = split_label(decision.label)
            self.labels.append(label)
            if decision is not None and decision.action == "drop":
                self.why[row] = "decision"
            elif not label:
                self.why[row] = "unknown_label"

    def drop_flagged(self, checks: Sequence[str]) -> None:
        for one in self.audit.findings:
            if one.flagged and one.check in checks and one.check not in _TOGETHER:
                self._drop(self.rows.get(one.name, []), one.check)

    def settle_copies(self) -> None:
        for rows in self._join_rows(one for one in self.audit.findings if one.check in _COPIES):
            # What a person dropped contradicts nobody any more; what a check dropped still does.
            heard = [row for row in rows if self.why.get(row) != "decision"]
            if len({self.labels[row] for row in heard}) > 1:
                self._drop(heard, "conflicting_label")
                continue
            hashes = Counter(self.photos[row].sha256 for row in rows)
            best = self._choose_best(heard)
            for row in heard:
                if row != best:
                    twice = hashes[self.photos[row].sha256] > 1
                    self._drop([row], "exact_duplicate" if twice else "same_pixels")

    def settle_alike(self, check: str) -> None:
        flagged = [one for one in self.audit.findings if one.check == check and one.flagged]
        for rows in self._join_rows(flagged):
            left = [row for row in rows if row not in self.why]
            if len(rows) == 1:
                self._drop(left, check)
            elif check == "leak":
                first = min((self._rank(row) for row in left), default=0)
                self._drop([row for row in left if self._rank(row) > first], check)
            else:
                for label in {self.labels[row] for row in left}:
                    same = [row for row in left if self.labels[row] == label]
                    best = self._choose_best(same)
                    self._drop([row for row in same if row != best], check)

    def make_plan(self) -> CleanPlan:
        listed = set()
        for row, photo in enumerate(self.photos):
            line = (photo.path, self.labels[row], photo.split)
            if row not in self.why and line in listed:  # a table may list a photo twice, and a decision unite the two
                self.why[row] = "exact_duplicate"
            elif row not in self.why:
                listed.add(line)
        dataset = self.audit.dataset
        stay = [row for row in range(len(self.photos)) if row not in self.why]
        self._require_classes(stay)
        known = {*dataset.tree.paths, *(split_label(label) for label in dataset.unknown_labels)}
        new = {"/".join(self.labels[row]) for row in stay if self.labels[row] not in known}
        return CleanPlan(
            dataset,
            tuple(CleanPhoto(self.photos[row], self.labels[row]) for row in stay),
            tuple(DroppedPhoto(self.photos[row], self.why[row]) for row in sorted(self.why)),
            sum(self.labels[row] != _find_label(self.photos[row], dataset) for row in stay),
            tuple(sorted(new, key=natural_key)),
        )

    def _require_classes(self, stay: Sequence[int]) -> None:
        shown = self.audit.dataset.shown
        if not stay:
            raise DataError(f"{shown}: wanted photos that stay, got none: drop fewer, or keep some")
        # As `load_dataset` will ask of the list: classes are those of the train part where there is one.
        learnt = {self.labels[row] for row in stay if self.photos[row].split in {"train", None}}
        left = learnt or {self.labels[row] for row in stay}
        if len(left) < 2:
            names = ", ".join("/".join(path) for path in left)
            raise DataError(
                f"{shown}: wanted photos of at least two classes to learn from, got one ({names}) among the "
                f"{len(stay)} photos that stay: drop fewer, or keep some"
            )

    def _drop(self, rows: Iterable[int], why: str) -> None:
        for row in rows:
            if self.decisions[row] is None:
                self.why.setdefault(row, why)

    def _rank(self, row: int) -> int:
        return _RANKS.get(self.photos[row].split or "", len(_RANKS))

    def _choose_best(self, rows: Sequence[int]) -> int | None:
        """The one that stays: what a person kept, or what is measured on, or the first."""
        left = [row for row in rows if row not in self.why]
        return min(left, key=lambda row: (self.decisions[row] is None, self._rank(row), row), default=None)

    def _join_rows(self, findings: Iterable[Finding]) -> list[list[int]]:
        """Rows that findings link, directly or through others, each set ascending."""
        parents: dict[int, int] = {}

        def find_root(row: int) -> int:
            while (parent := parents.setdefault(row, row)) != row:
                parents[row] = parents[parent]
                row = parents[row]
            return row

        for one in findings:
            rows = [*self.rows.get(one.name, ()), *self.rows.get(one.other, ())]
            roots = [find_root(row) for row in rows]
            for root in roots:
                parents[find_root(root)] = find_root(min(roots))
        joined: dict[int, list[int]] = defaultdict(list)
        for row in sorted(parents):
            joined[find_root(row)].append(row)
        return list(joined.values())


def _find_label(photo: Photo, dataset: Dataset) -> ClassPath:
    """Path of a photo's class; that of a class which the train part lacks is told by its folders, or is empty."""
    if photo.label >= 0:
        return dataset.tree.paths[photo.label]
    unknown = [split_label(label) for label in dataset.unknown_labels]
    if len(unknown) == 1:
        return unknown[0]
    folders = tuple(photo.name.split("/")[:-1])
    fitting = [path for path in unknown if folders[-len(path) :] == path]
    return max(fitting, key=len, default=())


# --- writing --------------------------------------------------------------------------------------------------------


def write_clean(plan: CleanPlan, out: str | Path) -> None:
    """Write the photos that stay as a list, or as a tree of hard links.

    Parameters
    ----------
    plan : CleanPlan
        What stays.
    out : str or Path
        A name that ends in ``.csv`` or ``.tsv`` becomes a list with the columns `LIST_COLUMNS`, paths relative to its
        folder where the photos lie below it. Anything else becomes a folder ``OUT/[split/]class/photo`` of links: it
        takes no room, and deleting it leaves the photos as they are. A tree cannot say which photos belong together;
        the list does.

    Raises
    ------
    OptionError
        If `out` ends like another kind of file, or lies where the next look at the data would take its links for
        photos.
    DataError
        If a name cannot be written so that it is read back the same; the other form may hold it.
    StorageError
        If something else stands there, or the disk cannot hold such links or cannot be written to.
    """
    out = check_clean_place(plan.dataset, out)
    if out.suffix.lower() in _DELIMITERS:
        _write_list(plan, out)
    else:
        _write_tree(plan, out)


def check_clean_place(dataset: Dataset, out: str | Path) -> Path:
    """Refuse a place for a list or tree where something else would be lost, before the work begins.

    Returns
    -------
    Path
        The place, absolute.

    Raises
    ------
    OptionError, StorageError
        As `write_clean` does.
    """
    place = Path(os.path.abspath(Path(out).expanduser()))  # noqa: PTH100 - a link as OUT stays one
    suffix = place.suffix.lower()
    if suffix in _DELIMITERS:
        _check_list_place(dataset, place)
    elif suffix in _OTHER_FILES:
        raise OptionError(f"out: wanted a list that ends in .csv or .tsv, or a folder, got {place.name}")
    else:
        _check_tree_place(dataset, place)
    return place


# --- a list ---------------------------------------------------------------------------------------------------------


def _write_list(plan: CleanPlan, out: Path) -> None:
    rows = []
    unfit = []
    for one in plan.photos:
        photo = one.photo
        cells = (_write_path(photo.path, out.parent), "/".join(one.label), photo.split or "", photo.group)
        if not all(_is_writable(cell) for cell in cells) or split_label(cells[1]) != one.label:
            unfit.append(photo.name if split_label(cells[1]) == one.label else f"{photo.name} of class {cells[1]!r}")
        rows.append(cells)
    if unfit:
        raise DataError(
            f"{out}: {len(unfit)} photos have a path, class or group that a list cannot hold (bytes that are no text, "
            f"blanks at an end, a class with / in its name): {name_some(unfit, 3)}: name a folder as OUT instead"
        )
    delimiter = _DELIMITERS[out.suffix.lower()]
    make_folder(out.parent)
    write_atomic(out, "".join(_write_row(cells, delimiter) for cells in (LIST_COLUMNS, *rows)))


def _check_list_place(dataset: Dataset, out: Path) -> None:
    if out.is_dir():
        raise StorageError(f"{out}: wanted a place for a list, got a folder: name a file in it")
    if not os.path.lexists(out):
        return
    with contextlib.suppress(OSError, ValueError):
        if out.samefile(Path(dataset.shown).expanduser()):
            raise StorageError(f"{out}: that is the data itself, which is never changed: name another place")
    with storage_errors(f"read what stands at {out}"), out.open("rb") as stream:
        head = stream.read(200).decode("utf-8-sig", "replace")
    if head.splitlines()[:1] != [_DELIMITERS[out.suffix.lower()].join(LIST_COLUMNS)]:
        raise StorageError(f"{out}: a file that is no clean list stands there: move it or name another place")


def _write_path(path: Path, base: Path) -> str:
    full = Path(os.path.abspath(path))  # noqa: PTH100 - links on the way stay as the user named them
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full)


def _is_writable(cell: str) -> bool:
    """Whether a cell is the same after it was written as UTF-8 and read without blanks at its ends."""
    return cell == cell.strip() and cell.encode("utf-8", "replace").decode("utf-8") == cell


def _write_row(cells: Sequence[str], delimiter: str) -> str:
    # Only with both signs as the end of a line does the writer quote cells that hold one of them.
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


# --- a tree ---------------------------------------------------------------------------------------------------------


def _write_tree(plan: CleanPlan, out: Path) -> None:
    links = _name_links(plan, out)
    with new_folder(out) as folder, storage_errors(f"write {out}"):
        for name, photo in links.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(photo, target, out)
        write_atomic(folder / MARKER_NAME, json.dumps({"format": 1, "links": list(links)}, indent=0) + "\n")


def _link(photo: Photo, target: Path, out: Path) -> None:
    try:
        # A link to a link would be one, and lead nowhere from another folder.
        os.link(os.path.realpath(photo.path), target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        raise StorageError(
            f"could not link {photo.name} into {out}: {error.strerror}: hard links need one disk that knows them; "
            "write a list instead: name an OUT that ends in .csv"
        ) from error


def _name_links(plan: CleanPlan, out: Path) -> dict[str, Photo]:
    """Where each photo goes below the tree, with ``/``; what would be read back otherwise is refused."""
    splits = {one.photo.split for one in plan.photos}
    if None in splits and len(splits) > 1:
        raise DataError(f"{out}: some photos are of no split, which no tree can say: name an OUT that ends in .csv")
    labels = {one.label for one in plan.photos}
    for label in sorted(labels):
        if not all(_is_folder_name(part, is_unsplit=splits == {None}) for part in label):
            raise DataError(
                f"{out}: a folder cannot be named as the class {'/'.join(label)!r} and be read as one: name an OUT "
                "that ends in .csv"
            )
    folders = {(*([one.photo.split] if one.photo.split else []), *one.label) for one in plan.photos}
    taken = {_fold("/".join(parts[:n])) for parts in folders for n in range(1, len(parts) + 1)}
    links: dict[str, Photo] = {}
    for one in plan.photos:
        name = one.photo.path.name
        if name.startswith(".") or name.casefold() in {*SYSTEM_FILES, MANIFEST_NAME}:  # such files are no photos there
            name = f"_{name}"
        folder = "/".join((*([one.photo.split] if one.photo.split else []), *one.label))
        links[_take_name(folder, name, taken)] = one.photo
    return links


def _is_folder_name(part: str, *, is_unsplit: bool) -> bool:
    is_forbidden = WINDOWS_FORBIDDEN.search(part) is not None if os.name == "nt" else False
    is_hidden = part.startswith(".") or part.casefold() in {"__macosx", "@eadir"}
    is_split = is_unsplit and match_split(part) is not None
    return not (is_forbidden or is_hidden or is_split or "/" in part or part.strip() != part)


def _fold(name: str) -> str:
    """A name as a disk sees it that tells neither case nor Unicode forms apart."""
    return show_text(name).casefold()


def _take_name(folder: str, name: str, taken: set[str]) -> str:
    stem, dot, ending = name.rpartition(".")
    stem, ending = (stem, dot + ending) if stem else (name, "")
    candidate, number = f"{folder}/{name}", 1
    while _fold(candidate) in taken:
        number += 1
        candidate = f"{folder}/{stem}-{number}{ending}"
    taken.add(_fold(candidate))
    return candidate


def _check_tree_place(dataset: Dataset, out: Path) -> None:
    real = out.resolve()
    if not _is_file(dataset.shown) and real.is_relative_to(dataset.root.resolve()):
        raise OptionError(
            f"out: wanted a folder outside of the data, got {out}: its links would be read as photos the next time"
        )
    if any(Path(os.path.realpath(photo.path)).is_relative_to(real) for photo in dataset.photos):
        raise OptionError(f"out: wanted a folder that none of the photos is in, got {out}: name another")
    if os.path.lexists(out):
        if not out.is_dir():
            raise StorageError(f"{out}: wanted a place for a folder, got a file: move it or name another place")
        with storage_errors(f"read what stands in {out}"):
            _require_own_tree(out)


def _is_file(text: str) -> bool:
    with contextlib.suppress(OSError):  # several paths together may be too long for one
        return Path(text).expanduser().is_file()
    return False


def _require_own_tree(out: Path) -> None:
    """Refuse to replace a folder unless all in it is links that we made, of photos that lie elsewhere too."""
    if not any(out.iterdir()):
        return
    try:
        listed = set(json.loads((out / MARKER_NAME).read_bytes())["links"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{out}: a folder that is no clean tree stands there: name a new folder") from error
    foreign: list[str] = []
    names: dict[tuple[int, int], list[str]] = defaultdict(list)
    n_links: dict[tuple[int, int], int] = {}
    for path in _walk_files(out):
        name = path.relative_to(out).as_posix()
        status = path.lstat()
        if name == MARKER_NAME or path.name.casefold() in SYSTEM_FILES:
            continue
        if name not in listed or not stat.S_ISREG(status.st_mode):
            foreign.append(name)
        key = status.st_dev, status.st_ino
        names[key].append(name)
        n_links[key] = status.st_nlink
    # The photo may be gone from where it was, and be nowhere but here.
    foreign += [name for key, inside in names.items() if n_links[key] <= len(inside) for name in inside]
    if foreign:
        raise StorageError(
            f"{out}: files that are no links to photos elsewhere would be lost ({len(set(foreign))}): "
            f"{name_some(sorted({show_text(name) for name in foreign}), 3)}: name a new folder"
        )


def _walk_files(folder: Path) -> Iterator[Path]:
    """Files below a folder, and links to folders, which are not followed; a folder that cannot be opened is a fault."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk_files(path)
        else:
            yield path
