"""The photos of an inbox as a tree of class folders.

In: an inbox. Out: a folder that `pomona train` reads: hard links to the photos, copies where the disk has none.
Why: photos that people sent are the best there are to train anew on. Labels come from people and folder names go to
every system, so what a system cannot name is written otherwise, and said.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pomona.class_tree import natural_key
from pomona.errors import DataError, StorageError
from pomona.files import SYSTEM_FILES, hash_file, new_folder, storage_errors, write_atomic
from pomona.listing import match_split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pomona.class_tree import ClassPath
    from pomona.inbox.store import Inbox, InboxPhoto, PhotoState

MARKER_NAME = ".pomona-inbox"
"""File that makes a folder an export that may be replaced; it lists what is ours in it."""

_FORBIDDEN = re.compile(r'[<>:"|?*\\/\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)  # no names on Windows
_NO_PHOTOS = frozenset({"__macosx", "@eadir"})


@dataclass(frozen=True)
class ExportedTree:
    """What was written.

    Parameters
    ----------
    folder : Path
        Where.
    n_photos : int
        Photos in it.
    counts : dict of str to int
        Photos of each label.
    renamed : dict of str to str
        Labels that no folder can be called, and how their folders are called.
    """

    folder: Path
    n_photos: int
    counts: dict[str, int]
    renamed: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {"output": str(self.folder), "n_photos": self.n_photos, "labels": self.counts, "renamed": self.renamed}


def export_inbox(inbox: Inbox, folder: Path, *, state: PhotoState | None = None) -> ExportedTree:
    """Write the photos of an inbox as a data set, put in place whole.

    Parameters
    ----------
    inbox : Inbox
        Where the photos are.
    folder : Path
        Where they go. An earlier export that nobody changed is replaced; nothing else is.
    state : {"waiting", "taught"}, optional
        Only these; all but those taken back where not given.

    Returns
    -------
    ExportedTree
        What was written.

    Raises
    ------
    DataError
        If there is no such photo.
    StorageError
        If something that is not ours stands there, a photo file is lost, or it cannot be written.
    """
    photos = [one for one in inbox.list_photos(state) if one.state != "withdrawn" or state == "withdrawn"]
    if not photos:
        raise DataError(f"{inbox.shown}: wanted photos{f' that are {state}' if state else ''} to export, got none")
    if os.path.lexists(folder):
        _require_own(folder)
    names = name_folders([one.class_path for one in photos])
    listed = {f"{names[one.class_path]}/{one.path.name}": one for one in photos}
    with new_folder(folder) as staging, storage_errors(f"write {folder}"):
        for name, photo in listed.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(photo, target)
        write_atomic(staging / MARKER_NAME, json.dumps({"format": 1, "photos": sorted(listed)}, indent=0) + "\n")
    counts = Counter(one.label for one in photos)
    renamed = {"/".join(path): name for path, name in names.items() if "/".join(path) != name}
    return ExportedTree(folder, len(photos), dict(sorted(counts.items(), key=lambda one: natural_key(one[0]))), renamed)


def name_folders(paths: Sequence[ClassPath]) -> dict[ClassPath, str]:
    """Call a folder for each class, with ``/`` between its parts, as every system can.

    Parts that differ only in case, or only in what cannot be written, get a number.

    Examples
    --------
    >>> name_folders([("Apple",), ("apple",), ("Is it: ripe?",), ("Con",), ("train", "A")]).values()
    dict_values(['Apple', 'apple-2', 'Is it_ ripe_', 'Con_', 'train_/A'])
    """
    taken: dict[str, tuple[str, ...]] = {}
    names: dict[ClassPath, str] = {}
    for path in dict.fromkeys(paths):
        parts: list[str] = []
        for depth, part in enumerate(path, start=1):
            wanted = _clean_part(part)
            candidate, number = wanted, 1
            # One node of the tree, one folder: another node of the same spelling is another folder.
            while taken.setdefault("/".join((*parts, candidate)).casefold(), path[:depth]) != path[:depth]:
                number += 1
                candidate = f"{wanted}-{number}"
            parts.append(candidate)
        names[path] = "/".join(parts)
    return names


def _clean_part(part: str) -> str:
    clean = _FORBIDDEN.sub("_", part).strip().rstrip(". ") or "_"
    if clean.startswith("."):  # hidden, and so no class to `pomona train`
        clean = f"_{clean}"
    is_special = clean.casefold() in _NO_PHOTOS | SYSTEM_FILES or match_split(clean) is not None
    return f"{clean}_" if is_special or _DEVICES.fullmatch(clean) else clean


def _link(photo: InboxPhoto, target: Path) -> None:
    try:
        os.link(photo.path, target)
    except FileNotFoundError as error:
        raise StorageError(
            f"{photo.path}: wanted the file of a photo of the inbox, got none; it was removed"
        ) from error
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(photo.path, target)


def _require_own(folder: Path) -> None:
    """Refuse to replace a folder unless all in it is what an export wrote, unchanged."""
    if not folder.is_dir():
        raise StorageError(f"{folder}: wanted a place for a folder, got a file: move it or name another place")
    with storage_errors(f"read what stands in {folder}"):
        if not any(folder.iterdir()):
            return
        try:
            listed = set(json.loads((folder / MARKER_NAME).read_bytes())["photos"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{folder}: a folder that is no export stands there: name a new folder") from error
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name == MARKER_NAME or path.name.casefold() in SYSTEM_FILES or (path.is_dir() and not path.is_symlink()):
                continue
            if name not in listed or path.is_symlink() or not path.is_file() or hash_file(path) != path.stem:
                raise StorageError(
                    f"{folder}: {name} is not as it was exported and would be lost: move it or name a new folder"
                )
