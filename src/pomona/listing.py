"""The files that a path leads to, before anything is said about what they show.

In: a path, a pattern, or several. Out: a `Listing` of files that may be photos, those of a zip unpacked into the cache;
the hash of each that is one; for predicting, the photos alone.
Why: everything that can go wrong between a path and the bytes of a photo (links in circles, hidden and system files,
pipes, odd encodings, zips that are not safe) is met here once, so that `dataset` thinks about classes alone.
"""

# Paths are plain text in here: 100,000 more `Path` objects cost 50 MB.
# ruff: noqa: PTH100, PTH110, PTH111, PTH112, PTH114, PTH116, PTH118, PTH119, PTH120, PTH122, PTH207

from __future__ import annotations

import csv
import glob
import io
import itertools
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pomona.class_tree import natural_key, show_text, split_label
from pomona.errors import DataError, PhotoError
from pomona.files import (
    MANIFEST_NAME,
    SYSTEM_FILES,
    WINDOWS_FORBIDDEN,
    cache_folder,
    hash_bytes,
    hash_file,
    new_folder,
    storage_errors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pomona.class_tree import ClassPath

Split = Literal["train", "val", "test"]
"""Part of the data: learnt from, chosen by, measured on."""

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SYSTEM_FOLDERS = {"__macosx", "@eadir"}
_IMAGE_NAME = re.compile(
    r"\.(jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|hei[cf]|hif|avif|jxl|jp2|j2k|ico|p[bgnp]m|tga|psd|svg|"
    r"dng|cr[23]|nef|arw|orf|rw2)$",
    re.IGNORECASE,
)
"""Names that promise an image: such a file is reported when it is none."""

_TABLE_SUFFIXES = {".csv", ".tsv", ".tab"}
_LIST_SUFFIXES = {".txt", ".lst", ".list"}
_N_THREADS = 4
_READ_CHUNK = 32
_MAX_ZIP_BYTES = 20 * 2**30
_MAX_ZIP_RATIO = 100
_HARMLESS_ZIP_BYTES = 2**30
"""Unpacked whatever the ratio: plain-colour bitmaps shrink a thousandfold, and this much fills no disk."""

_MAX_TABLE_BYTES = 2**30
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file or folder that cannot be used.

    Parameters
    ----------
    name : str
        Path relative to the data's root with ``/``, fit to be shown.
    path : Path
        The file.
    fault : str
        A `pomona.errors.PhotoFault`, ``"no_label"`` or ``"no_split"``.
    detail : str
        What was wanted and what was found.
    """

    name: str
    path: Path
    fault: str
    detail: str


class ListedFile(NamedTuple):
    """A file that may be a photo; `folders` is its class path in a table, else where it lies below the root."""

    path: str
    folders: ClassPath
    split: Split | None = None
    group: str | None = None


@dataclass
class Listing:
    """What a path leads to, before any photo is read.

    Parameters
    ----------
    root : str
        Folder that names are relative to.
    shown : str
        What messages call it.
    is_table : bool
        Whether a table or list says what the files show; else their folders do.
    files : list of ListedFile
        Files that may be photos; `hash_photos` keeps those that are.
    skipped : list of Skipped
        Files and folders that cannot be used, in the order they were met.
    n_ignored : int
        Files that are no photos, neither by content nor by name, and all that lies in folders of runs.
    run_folders : list of str
        Folders of runs that were met, as they are shown; their pictures are no photos to learn from.
    unusable : list of ListedFile
        What was skipped, where it would have belonged.
    """

    root: str
    shown: str
    is_table: bool = False
    files: list[ListedFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    n_ignored: int = 0
    run_folders: list[str] = field(default_factory=list)
    unusable: list[ListedFile] = field(default_factory=list)

    def name(self, path: str) -> str:
        """Path relative to the root with ``/``, fit to be shown."""
        below = os.path.join(self.root, "")
        relative = path[len(below) :] if path.startswith(below) else _relative_path(path, self.root)
        return show_text(relative.replace(os.sep, "/"))

    def leave_out(self, folder: str, n_files: int) -> None:
        """Note the folder of a run and how many of its files are left out."""
        self.n_ignored += n_files
        if (shown := show_text(folder)) not in self.run_folders:
            self.run_folders.append(shown)

    def describe_runs(self) -> str:
        """Say that folders of runs were left out, as a part of an error; empty if there were none."""
        if not self.run_folders:
            return ""
        return f" (nothing in {self.run_folders[0]} is taken: it holds {MANIFEST_NAME}, so it is a run)"

    def skip(self, path: str, fault: str, detail: str) -> None:
        """Note a file or folder that cannot be used."""
        self.skipped.append(Skipped(self.name(path), Path(path), fault, detail))


def match_split(name: str) -> Split | None:
    """Find the split that a folder or cell names, in whatever case; None if it names none.

    Examples
    --------
    >>> match_split("Validation"), match_split("Apple")
    ('val', None)
    """
    return _SPLITS.get(name.casefold())


def list_files(data: str | Path | Sequence[str | Path]) -> Listing:
    """List the files that may be photos, of a folder, table, list, pattern or zip, or of several photos and folders.

    Raises
    ------
    DataError
        If there is nothing at `data`, or it cannot be understood.
    StorageError
        If a zip cannot be unpacked into the cache.
    """
    if not isinstance(data, str | Path):
        items = [os.path.expanduser(item) for item in data]
        if len(items) != 1:
            return _list_loose_photos(items)
        data = items[0]
    shown = show_text(str(data))
    path = os.path.expanduser(data)
    if not str(data):
        raise DataError("data: wanted a folder, table, list, pattern or zip, got an empty text")
    if os.path.isdir(path):
        return _walk_folder(os.path.abspath(path), shown)
    if os.path.exists(path):
        return _open_file(Path(os.path.abspath(path)), shown)
    if glob.has_magic(path):
        return _list_loose_photos([path])
    raise DataError(f"{shown}: wanted a folder, table, list, pattern or zip, there is nothing (seen from {Path.cwd()})")


def _open_file(path: Path, shown: str) -> Listing:
    from pomona.photo import sniff_format

    if not path.is_file():
        raise DataError(f"{shown}: wanted a folder, table, list or zip, got a pipe, socket or device")
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
        if head.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path):
            return _walk_folder(str(_unpack_zip(path, shown)), shown)
        if sniff_format(head[:32]) is not None:
            raise DataError(f"{shown}: wanted many photos, got one: name the folder that holds the class folders")
        if path.stat().st_size > _MAX_TABLE_BYTES or (b"\0" in head and not head.startswith(_UTF16_MARKS)):
            raise DataError(f"{shown}: wanted a folder, table, list or zip, got a file of another kind")
        return _read_table(path, path.read_bytes(), shown)
    except OSError as error:
        raise DataError(f"{shown}: it cannot be read: {error.strerror or error}") from error


# --- folders and patterns -------------------------------------------------------------------------------------------


def _walk_folder(root: str, shown: str) -> Listing:
    """List the files below a folder; real folders and files go before links to them, so each is reached once."""
    listing = Listing(root, shown)
    real_folders: dict[str, str] = {}
    reached: set[str] = set()
    links: list[ListedFile] = []
    queue: deque[tuple[str, ClassPath]] = deque([(root, ())])
    linked: deque[tuple[str, ClassPath]] = deque()
    while queue or linked:
        folder, parts = (queue or linked).popleft()
        real = os.path.realpath(folder)
        if real in reached:
            continue
        reached.add(real)
        real_folders[os.path.dirname(os.path.join(folder, "x"))] = real  # as its files name it: "photos/" is "photos"
        for entry in _list_folder(folder, parts, listing):
            if _is_folder(entry):
                (linked if entry.is_symlink() else queue).append((entry.path, (*parts, entry.name)))
            else:
                (links if entry.is_symlink() else listing.files).append(ListedFile(entry.path, parts))
    if links:
        reached = {
            os.path.join(real_folders[os.path.dirname(file.path)], os.path.basename(file.path))
            for file in listing.files
        }
    for file in links:
        real = os.path.realpath(file.path)
        if real not in reached:
            reached.add(real)
            listing.files.append(file)
    return listing


def _relative_path(path: str, root: str) -> str:
    try:
        return os.path.relpath(path, root)
    except ValueError:  # another drive of a Windows machine
        return path


def _list_folder(folder: str, parts: ClassPath, listing: Listing) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        fault = "no_permission" if isinstance(error, PermissionError) else "not_found"
        listing.skip(folder, fault, f"the folder cannot be opened: {error.strerror or error}")
        listing.unusable.append(ListedFile(folder, parts))
        return []
    if any(entry.name == MANIFEST_NAME for entry in found):
        listing.leave_out(folder, sum(len(names) for _, _, names in os.walk(folder)))
        return []
    listing.n_ignored += sum(entry.name.casefold() in SYSTEM_FILES for entry in found)
    return [entry for entry in found if not _is_hidden(entry.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM_FILES | _SYSTEM_FOLDERS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _list_loose_photos(items: Sequence[str]) -> Listing:
    """Photos of several paths or patterns; the folder of each is its class."""
    shown = ", ".join(show_text(item) for item in items[:3]) + (", ..." if len(items) > 3 else "")
    if not items:
        raise DataError("data: wanted at least one path, got an empty sequence")
    listing = Listing("", shown)
    paths: dict[str, None] = {}
    for item in items:
        if not os.path.lexists(item) and not glob.has_magic(item):
            raise DataError(f"{show_text(item)}: wanted a photo, folder or pattern, there is nothing")
        if os.path.splitext(item)[1].lower() in _TABLE_SUFFIXES | _LIST_SUFFIXES | {".zip"}:
            raise DataError(f"{show_text(item)}: wanted photos or folders where several paths are given: name it alone")
        paths.update((os.path.abspath(path), None) for path in _leave_out_runs(_expand_path(item, listing), listing))
    if not paths:
        raise DataError(
            f"{shown}: wanted photos, nothing matches{listing.describe_runs()}: see that the pattern is right and "
            "stands in quotes"
        )
    folders = {os.path.dirname(path) for path in paths}
    try:
        listing.root = os.path.commonpath(folders)
    except ValueError as error:
        raise DataError(f"{shown}: wanted paths on one drive: {error}") from error
    if listing.root in folders:
        listing.root = os.path.dirname(listing.root)
    below = {folder: Path(folder).relative_to(listing.root).parts for folder in folders}
    listing.files = [ListedFile(path, below[os.path.dirname(path)]) for path in paths]
    listing.skipped = [replace(one, name=listing.name(str(one.path))) for one in listing.skipped]
    return listing


def find_photos(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the photos that some paths lead to, for predicting.

    Parameters
    ----------
    paths : iterable of str or Path
        Files, folders (with all folders in them) and patterns (``"*.jpg"``, ``"**/*.jpg"``).

    Returns
    -------
    list of Path
        In the order given, in natural order within a folder or pattern. Hidden files, files that are no photos and
        repeats through links are left out. A file named itself always stays, so does one that does not exist: whoever
        reads it reports it in its place.
    """
    items = [paths] if isinstance(paths, str | Path) else paths
    return [Path(path) for item in items for path in _find_one(os.path.expanduser(item))]


def _find_one(item: str) -> list[str]:
    is_literal = os.path.lexists(item) and not os.path.isdir(item)
    found = [item] if is_literal else [path for path in _expand_path(item, None) if _may_be_photo(path)]
    return found or ([] if os.path.isdir(item) else [item])


def _may_be_photo(path: str) -> bool:
    return _IMAGE_NAME.search(path) is not None or _begins_like_photo(path)


def _expand_path(item: str, listing: Listing | None) -> list[str]:
    """Files that a path or pattern leads to, each once, in natural order."""
    if os.path.isdir(item):
        walked = _walk_folder(item, item)
        if listing is not None:
            listing.n_ignored += walked.n_ignored
            listing.skipped += walked.skipped
            listing.run_folders += walked.run_folders
        return sorted((file.path for file in walked.files), key=natural_key)
    if os.path.lexists(item) or not glob.has_magic(item):
        return [item]
    found: dict[str, str] = {}
    matches = _leave_out_runs(set(_match_pattern(item)), listing, base=_literal_base(item))
    for path in sorted(matches, key=lambda path: (os.path.islink(path), natural_key(path))):
        if not _is_hidden(os.path.basename(path)):
            for file in _expand_path(path, listing) if os.path.isdir(path) else [path]:
                found.setdefault(os.path.realpath(file), file)
    return sorted(found.values(), key=natural_key)


def _literal_base(pattern: str) -> str:
    """Folder of a pattern that no sign of it can change."""
    parts = Path(pattern).parts
    return os.path.join("", *itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1]))


def _leave_out_runs(paths: Iterable[str], listing: Listing | None, *, base: str | None = None) -> Iterator[str]:
    """Leave out what lies in the folder of a run; with `base`, also in one between it and the file."""
    run_of: dict[str, str | None] = {}

    def find_run(folder: str) -> str | None:
        if folder not in run_of:
            above = os.path.dirname(folder)
            is_run = os.path.lexists(os.path.join(folder, MANIFEST_NAME))
            is_top = base is None or os.path.normpath(folder) == os.path.normpath(base) or above == folder
            run_of[folder] = folder if is_run else None if is_top else find_run(above)
        return run_of[folder]

    for path in paths:
        if (run := find_run(os.path.dirname(path))) is None:
            yield path
        elif listing is not None:
            listing.leave_out(run or os.curdir, not os.path.isdir(path))


def _match_pattern(pattern: str) -> Iterator[str]:
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    # glob's own "**" follows links in circles; walking the folders here does not.
    at = parts.index("**")
    bases = list(_match_pattern(os.path.join(*parts[:at]))) if at else [os.curdir]
    rest = os.path.join(*parts[at + 1 :]) if parts[at + 1 :] else "*"
    for base in filter(os.path.isdir, bases):
        parts_of = {file.folders for file in _walk_folder(base, base).files}
        above = {parts[:depth] for parts in parts_of for depth in range(len(parts) + 1)}
        for folder in (os.path.join(base, *parts) for parts in above):
            for path in _match_pattern(os.path.join(glob.escape(folder), rest)):
                yield os.path.normpath(path)


# --- tables and lists -----------------------------------------------------------------------------------------------


def _read_table(path: Path, data: bytes, shown: str) -> Listing:
    text = _decode_table(data, shown, is_named=path.suffix.lower() in _TABLE_SUFFIXES | _LIST_SUFFIXES)
    listing = Listing(str(path.parent), shown, is_table=True)
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in ",\t;":
        columns = [cell.strip(' "\t').casefold() for cell in first_line.split(delimiter)]
        if {"file_name", "label"} <= set(columns):
            break
    else:
        if path.suffix.lower() in _TABLE_SUFFIXES:
            raise DataError(
                f"{shown}, row 1: wanted the columns file_name,label[,split,group], got {first_line[:80]!r}"
            )
        columns, delimiter = ["file_name", "label"], ""
    rows = _split_rows(text, delimiter, shown) if delimiter else _split_list(text, shown)
    seen: set[tuple[str, str, str]] = set()
    for number, cells in itertools.islice(rows, 1 if delimiter else 0, None):
        if len(cells) < len(columns) and any(name in columns[len(cells) :] for name in ("file_name", "label")):
            raise DataError(f"{shown}, row {number}: wanted file_name and label, got {len(cells)} cells: {cells}")
        row = dict(zip(columns, cells, strict=False))
        key = (row["file_name"], row["label"], row.get("split", ""))
        if key not in seen:
            seen.add(key)
            _add_row(listing, row, f"{shown}, row {number}")
    return listing


def _decode_table(data: bytes, shown: str, *, is_named: bool) -> str:
    encoding = "utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if is_named:
            row = data.count(b"\n", 0, error.start) + 1
            raise DataError(f"{shown}, row {row}: wanted UTF-8 text, got other bytes: save it as CSV UTF-8") from error
        text = "\0"
    if "\0" in text:
        raise DataError(f"{shown}: wanted a folder, table, list or zip, got a file of another kind")
    return text


def _split_rows(text: str, delimiter: str, shown: str) -> Iterator[tuple[int, list[str]]]:
    # Without `strict`, a quote that is never closed swallows the rest of the table unseen.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"{shown}, row {reader.line_num}: wanted cells divided by {delimiter!r}: {error}") from error


def _split_list(text: str, shown: str) -> Iterator[tuple[int, list[str]]]:
    lines = [line for line in text.splitlines() if line.strip()]
    for delimiter in "\t,":
        if all(delimiter in line for line in lines):
            yield from _split_rows(text, delimiter, shown)
            return
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if cells and len(cells) != 2:
            raise DataError(
                f"{shown}, row {number}: wanted a list of 'path label' lines (or a table, folder or zip), got "
                f"{line[:80]!r}: where a path or a label holds spaces, put a comma between them in every row"
            )
        if cells:
            yield number, cells


def _add_row(listing: Listing, row: Mapping[str, str], where: str) -> None:
    if not row["file_name"]:
        raise DataError(f"{where}: wanted the path of a photo in file_name, got an empty cell")
    split_cell = row.get("split", "")
    split = match_split(split_cell)
    if split_cell and split is None:
        raise DataError(f"{where}: wanted train, val or test (or nothing) as split, got {split_cell!r}")
    path = os.path.normpath(os.path.join(listing.root, row["file_name"]))
    if os.sep == "/" and "\\" in path and not os.path.lexists(path):
        path = os.path.normpath(path.replace("\\", "/"))
    label = split_label(row["label"])
    if label:
        listing.files.append(ListedFile(path, label, split, row.get("group") or None))
    else:
        listing.skip(path, "no_label", f"{where}: wanted a label, got an empty cell")
        listing.unusable.append(ListedFile(path, label, split))


# --- zips -----------------------------------------------------------------------------------------------------------


def _unpack_zip(path: Path, shown: str) -> Path:
    """Unpack a zip into the cache, once for each content."""
    target = cache_folder() / "zips" / hash_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _list_members(archive, path.stat().st_size, shown)
            if _is_unpacked(members, target):
                return target
            with new_folder(target) as folder:
                for member, parts in members:
                    _unpack_member(archive, member, folder.joinpath(*parts))
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{shown}: the zip is damaged or of a kind that cannot be read: {error}: zip it anew"
        ) from error
    return target


def _is_unpacked(members: Sequence[tuple[zipfile.ZipInfo, ClassPath]], target: Path) -> bool:
    """Tell whether a folder holds what a zip lists, no file more or less, each as long as it should be."""
    sizes = {parts: member.file_size for member, parts in members}
    if not target.is_dir() or sum(len(names) for _, _, names in os.walk(target)) != len(sizes):
        return False
    try:
        return all(target.joinpath(*parts).stat().st_size == n_bytes for parts, n_bytes in sizes.items())
    except OSError:
        return False


def _list_members(archive: zipfile.ZipFile, zip_bytes: int, shown: str) -> list[tuple[zipfile.ZipInfo, ClassPath]]:
    members = []
    for member in archive.infolist():
        parts = _split_member(member)
        if ".." in parts or re.match(r"[/\\]|[A-Za-z]:[/\\]", member.filename):
            raise DataError(f"{shown}: the zip is not safe: {member.filename!r} leads outside of its folder")
        if member.flag_bits & 1:
            raise DataError(f"{shown}: the zip is locked with a password: unpack it and name the folder")
        if (
            not member.filename.endswith(("/", "\\"))
            and parts
            and not any(_is_hidden(part) and part.casefold() not in SYSTEM_FILES for part in parts)
        ):
            members.append((member, parts))
    n_bytes = sum(member.file_size for member, _ in members)
    limit_bytes = min(_MAX_ZIP_BYTES, max(_HARMLESS_ZIP_BYTES, _MAX_ZIP_RATIO * zip_bytes))
    if n_bytes > limit_bytes:
        raise DataError(
            f"{shown}: the zip is not safe: wanted at most {limit_bytes:,} bytes unpacked from {zip_bytes:,}, got "
            f"{n_bytes:,}: if you trust it, unpack it and name the folder"
        )
    return members


def _split_member(member: zipfile.ZipInfo) -> ClassPath:
    name = member.filename
    if not member.flag_bits & 0x800:
        raw = member.orig_filename.encode("cp437", "replace")
        # A zip that does not say how its names are written: UTF-8 and GB 2312 are recognised, both fail on other text.
        name = next((text for text in (_try_decode(raw, "utf-8"), _try_decode(raw, "gb2312")) if text), name)
    parts = tuple(part for part in re.split(r"[/\\]", name) if part not in {"", "."})
    return tuple(WINDOWS_FORBIDDEN.sub("_", part) for part in parts) if os.name == "nt" else parts


def _try_decode(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with storage_errors(f"unpack {show_text(member.filename)} to {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as packed, path.open("wb") as stream:
            shutil.copyfileobj(packed, stream, 2**20)


# --- reading --------------------------------------------------------------------------------------------------------


def hash_photos(listing: Listing, on_photo: Callable[[int, int], None] | None) -> list[str]:
    """Read every file once, keep those that are photos in the listing, and hash them.

    Parameters
    ----------
    listing : Listing
        Changed in place: what is no photo leaves `files` and is counted as ignored, or skipped where it should be one.
    on_photo : callable, optional
        Called with (files read, files to read).

    Returns
    -------
    list of str
        sha256 of each of the files that stay, in their order.
    """
    kept: list[ListedFile] = []
    hashes: list[str] = []
    total = len(listing.files)
    for number, (file, result) in enumerate(zip(listing.files, _read_files(listing), strict=True), start=1):
        if isinstance(result, str):
            kept.append(file)
            hashes.append(result)
        elif result is None:
            listing.n_ignored += 1
        else:
            listing.skip(file.path, *result)
            listing.unusable.append(file)
        if on_photo is not None:
            on_photo(number, total)
    listing.files = kept
    return hashes


def _read_files(listing: Listing) -> Iterator[str | tuple[str, str] | None]:
    paths = [file.path for file in listing.files]
    chunks = [paths[start : start + _READ_CHUNK] for start in range(0, len(paths), _READ_CHUNK)]
    pool = ThreadPoolExecutor(_N_THREADS)
    try:
        yield from itertools.chain.from_iterable(
            pool.map(lambda chunk: [_read_file(path, listing.is_table) for path in chunk], chunks)
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _read_file(path: str, is_listed: bool) -> str | tuple[str, str] | None:
    """Hash of a photo, fault and detail of a file that should be one, or None for a file that has no claim to be."""
    from pomona.photo import read_photo_bytes, sniff_format

    is_claimed = is_listed or _IMAGE_NAME.search(path) is not None
    if not is_claimed and not _begins_like_photo(path):
        return None
    try:
        data = read_photo_bytes(Path(path))
    except PhotoError as error:
        return error.fault, show_text(str(error))
    if sniff_format(data[:32]) is None:
        return "not_an_image", f"wanted an image of a format that can be read, the file begins with {data[:12]!r}"
    return hash_bytes(data)


def _begins_like_photo(path: str) -> bool:
    from pomona.photo import sniff_format

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with Path(path).open("rb") as stream:
            return sniff_format(stream.read(32)) is not None
    except OSError:
        return False
