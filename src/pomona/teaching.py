"""Classes taught to a finished recogniser, or taken from it, without training again.

In: a run folder, and photos of one class. Out: the same run folder with a new head, put in place whole, and a line more
in its changes.csv.
Why: a head in closed form takes photos in or forgets them exactly, and the bundle's own graph computes their features:
neither the weights of the network nor the other photos are needed, and what `pomona.learnt` kept is enough.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pomona.bundle import (
    BUNDLE_FORMAT,
    HEAD_NAME,
    LEARNT_NAME,
    Bundle,
    list_classes,
    list_learnt,
    load_bundle,
    parse_manifest,
    save_tensors,
)
from pomona.class_names import match_class_names
from pomona.class_tree import ClassTree, show_text, split_label
from pomona.clock import Clock
from pomona.dataset import Skipped, find_photos
from pomona.engine import is_finite
from pomona.errors import (
    BundleError,
    DataError,
    FitError,
    NotFiniteError,
    OptionError,
    PhotoError,
)
from pomona.files import MANIFEST_NAME, PARTIAL_FILE, hash_bytes, new_folder, storage_errors, write_atomic
from pomona.learnt import Learnt, is_too_many, load_learnt, save_learnt
from pomona.learnt_bank import BANK_NAME, LearntBank, save_bank
from pomona.model_file import MODEL_NAME, replace_head
from pomona.photo import read_photo_bytes, read_unchanged
from pomona.ridge import MAX_BYTES
from pomona.run_folder import CHANGES_NAME, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pomona.bundle import ClassEntry, Manifest
    from pomona.clock import Progress, Stage
    from pomona.ridge import Ridge


@dataclass(frozen=True)
class TeachResult:
    """What `add_class` or `remove_class` did.

    Parameters
    ----------
    bundle : Bundle
        The recogniser as it is now.
    action : {"add", "remove"}
        What was done.
    label : str
        Name of the class; where it was removed, the one that it had.
    is_new : bool
        Whether the class was not known before.
    n_photos : int
        Photos learnt or forgotten; with none, nothing was changed.
    n_known : int
        Photos left out because they had been learnt as this class before, or were given twice.
    n_learnt : int
        Photos that the recogniser has learnt from now.
    skipped : tuple of Skipped
        Photos that cannot be used.
    notes : tuple of str
        What to know of it.
    stages : tuple of Stage
        Time of each step, in order.
    """

    bundle: Bundle
    action: Literal["add", "remove"]
    label: str
    is_new: bool
    n_photos: int
    n_known: int
    n_learnt: int
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]

    def describe(self) -> str:
        """What was done, in a sentence."""
        n_photos = "1 photo" if self.n_photos == 1 else f"{self.n_photos:,} photos"
        known = f", {self.n_known:,} learnt before" if self.n_known else ""
        skipped = f", {len(self.skipped):,} skipped" if self.skipped else ""
        whole = f"It knows {len(self.bundle.tree)} classes from {self.n_learnt:,} photos."
        if self.action == "remove":
            return f"Forgot {self.label} and {n_photos}. {whole}"
        if not self.n_photos:
            return f"Learnt nothing{known}{skipped}. {whole}"
        kind = "the new class " if self.is_new else "more of the class "
        return f"Learnt {kind}{self.label} from {n_photos}{known}{skipped}. {whole}"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        return {
            "output": str(self.bundle.folder),
            "action": self.action,
            "class": self.label,
            "is_new": self.is_new,
            "n_photos": self.n_photos,
            "n_known": self.n_known,
            "n_skipped": len(self.skipped),
            "n_classes": len(self.bundle.tree),
            "n_learnt": self.n_learnt,
            "notes": list(self.notes),
            "seconds": {stage.name: round(stage.seconds, 4) for stage in self.stages},
        }


# --- teaching -------------------------------------------------------------------------------------------------------


def add_class(
    run: str | Path,
    name: str,
    photos: str | Path | Iterable[str | Path],
    *,
    n_workers: int | None = None,
    on_progress: Progress | None = None,
) -> TeachResult:
    """Teach a recogniser a further class, or further photos of a class that it knows.

    The head is then what a fit of all photos with the same penalty would give, to rounding; penalty and temperature
    stay. What was measured before stays in the run folder, and is of before.

    Parameters
    ----------
    run : str or Path
        Run folder that `train` wrote on this machine.
    name : str
        Name of the class, or its path in the class tree, such as ``"Fruit/Apple/Elstar"``.
    photos : str, Path or iterable of them
        Files, folders and patterns. Those learnt before as this class are left out; so are those that cannot be used.
    n_workers : int, optional
        Threads for decoding and the network; every core where not given.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    TeachResult
        The recogniser, and what became of the photos.

    Raises
    ------
    OptionError
        If the name is empty.
    DataError
        If no photo can be used, or one was learnt as another class.
    BundleError
        If the recogniser cannot be used, or what it learnt from is not in the cache, or damaged.
    FitError
        If there are too many photos to learn on.
    StorageError
        If a file cannot be written; the recogniser is then as it was.
    """
    steps = Clock(on_progress)
    with steps.step("load"):
        bundle = load_bundle(run, n_workers=n_workers)
        path = split_label(name)
        if not path:
            raise OptionError(f"name: wanted the name of a class, got {name!r}")
        found = bundle.tree.index_of("/".join(path))
        learnt = load_learnt(bundle)
        tree = bundle.tree if found is not None else ClassTree.from_paths([*bundle.tree.paths, path])
    number = len(bundle.tree) if found is None else found
    label = tree.names[tree.paths.index(path) if found is None else found]
    with steps.step("read"):
        new, n_known, skipped = _sort_photos(find_photos(photos), learnt, number, bundle.tree, label)
    with steps.step("features", len(new)):
        vectors, new, failed = _extract_vectors(bundle, new, steps.count)
    skipped += failed
    if not new and not n_known:
        first = f"; the first: {skipped[0].name}: {skipped[0].detail}" if skipped else ""
        raise DataError(f"{label}: wanted photos to learn from, got none of {len(skipped)} that can be used{first}")
    if new:
        with steps.step("fit"):
            hashes = np.append(learnt.photos, [sha256 for _, sha256 in new])
            learnt = learnt.change(lambda ridge: _add(ridge, vectors, number, bundle.tree, tree), hashes)
        with steps.step("save"):
            bank = bundle.bank
            if bank is not None:
                own = tree.paths.index(path) if found is None else found
                names = tuple(show_text(photo.name) for photo, _ in new)
                bank = bank.renumber(bundle.tree, tree).add(vectors, own, names)
            bundle, renamed = _replace_bundle(bundle, tree, learnt, bank, ("add", label, len(new)))
    notes = renamed if new else (f"nothing was changed: what can be used of these photos was learnt as {label} before",)
    return TeachResult(
        bundle, "add", label, found is None, len(new), n_known, len(learnt.photos), skipped, notes, tuple(steps.stages)
    )


def remove_class(run: str | Path, name: str, *, on_progress: Progress | None = None) -> TeachResult:
    """Let a recogniser forget a class and its photos, as if it had never learnt them.

    Parameters
    ----------
    run : str or Path
        Run folder that `train` wrote on this machine.
    name : str
        Name of the class, its path, or an end of it that no other class shares.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    TeachResult
        The recogniser without the class.

    Raises
    ------
    OptionError
        If there is no such class.
    DataError
        If fewer than two classes would be left.
    BundleError
        If the recogniser cannot be used, or what it learnt from is not in the cache, or damaged.
    StorageError
        If a file cannot be written; the recogniser is then as it was.
    """
    steps = Clock(on_progress)
    with steps.step("load"):
        bundle = load_bundle(run)
        number = _find_class(bundle.tree, name)
        label = bundle.tree.names[number]
        if len(bundle.tree) < 3:
            raise DataError(
                f"{show_text(str(run))}: wanted two classes to be left without {label}, got "
                f"{len(bundle.tree) - 1}; add another class first"
            )
        learnt = load_learnt(bundle)
    with steps.step("fit"):
        paths = [path for c, path in enumerate(bundle.tree.paths) if c != number]
        tree = ClassTree.from_paths(paths)
        kept = learnt.photos[learnt.ridge.labels != number]
        n_forgotten = len(learnt.photos) - len(kept)
        order = np.array([tree.paths.index(path) for path in paths])
        learnt = learnt.change(lambda ridge: ridge.remove_class(number).renumber(order), kept)
    with steps.step("save"):
        bank = None if bundle.bank is None else bundle.bank.remove(number).renumber(bundle.tree, tree)
        bundle, renamed = _replace_bundle(bundle, tree, learnt, bank, ("remove", label, n_forgotten))
    return TeachResult(bundle, "remove", label, False, n_forgotten, 0, len(kept), (), renamed, tuple(steps.stages))


def _find_class(tree: ClassTree, name: str) -> int:
    label = "/".join(split_label(name))
    number = tree.index_of(label)
    if number is None:
        near = difflib.get_close_matches(label, tree.names, n=3) or tree.names[:6]
        raise OptionError(f"name: wanted one of the {len(tree)} classes, such as {', '.join(near)}; got {name!r}")
    return number


def _sort_photos(
    paths: Sequence[Path], learnt: Learnt, number: int, tree: ClassTree, label: str
) -> tuple[list[tuple[Path, str]], int, tuple[Skipped, ...]]:
    """Photos that are new, with their hashes; how many are known; those that cannot be read."""
    classes = dict(zip(learnt.photos.tolist(), learnt.ridge.labels.tolist(), strict=True))
    new: dict[str, Path] = {}
    skipped: list[Skipped] = []
    conflicts: list[tuple[Path, int]] = []
    for path in paths:
        try:
            sha256 = hash_bytes(read_photo_bytes(path))
        except PhotoError as error:
            skipped.append(_skip(path, error))
            continue
        if classes.get(sha256, number) != number:
            conflicts.append((path, classes[sha256]))
        elif sha256 not in classes:
            new.setdefault(sha256, path)
    if conflicts:
        path, other = conflicts[0]
        more = f" (and {len(conflicts) - 1} more like it)" if len(conflicts) > 1 else ""
        raise DataError(
            f"{show_text(str(path))}: wanted a photo of {label}, got one that was learnt as {tree.names[other]}{more}: "
            "take it out, or remove that class first"
        )
    return [(path, sha256) for sha256, path in new.items()], len(paths) - len(skipped) - len(new), tuple(skipped)


def _skip(path: Path, error: PhotoError) -> Skipped:
    return Skipped(show_text(str(path)), path, error.fault, str(error).removeprefix(f"{path}: "))


def _extract_vectors(
    bundle: Bundle, new: Sequence[tuple[Path, str]], count: Callable[[int, int], None]
) -> tuple[NDArray[np.float32], list[tuple[Path, str]], tuple[Skipped, ...]]:
    """Features (K, D) by the bundle's own graph of the photos that can be decoded, these photos, and the others."""
    if not new:
        return np.zeros((0, 0), np.float32), [], ()
    vectors, usable, skipped = [], [], []
    outcomes = bundle.whole_engine.stream(len(new), lambda i: bundle.preprocessing.read(read_unchanged(*new[i])))
    for n_done, (photo, outcome) in enumerate(zip(new, outcomes, strict=True), start=1):
        if isinstance(outcome, PhotoError):
            skipped.append(_skip(photo[0], outcome))
        elif not is_finite({"features": outcome["features"]}):
            raise NotFiniteError(f"{bundle.folder / MODEL_NAME} gave numbers that are not finite for {photo[0]}")
        else:
            vectors.append(outcome["features"])
            usable.append(photo)
        count(n_done, len(new))
    return np.array(vectors, np.float32), usable, tuple(skipped)


def _add(ridge: Ridge, vectors: NDArray[np.float32], number: int, old: ClassTree, tree: ClassTree) -> Ridge:
    """Learn photos of one class, and bring the classes into the order of the new tree."""
    n_photos = len(ridge.labels) + len(vectors)
    if is_too_many(n_photos, vectors.shape[1]):
        raise FitError(
            f"wanted photos that can be learnt on in {MAX_BYTES / 1e9:g} GB, got {n_photos:,} in all; "
            "train again with these photos too"
        )
    ridge = ridge.add(vectors, np.full(len(vectors), number), len(tree))
    if len(tree) == len(old):
        return ridge
    (path,) = set(tree.paths) - set(old.paths)
    return ridge.renumber(np.array([tree.paths.index(one) for one in (*old.paths, path)]))


# --- the new bundle -------------------------------------------------------------------------------------------------


def _replace_bundle(
    bundle: Bundle,
    tree: ClassTree,
    learnt: Learnt,
    bank: LearntBank | None,
    change: tuple[Literal["add", "remove"], str, int],
) -> tuple[Bundle, tuple[str, ...]]:
    """Write the run folder anew with another head, and what was learnt; in place whole, or not at all."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    head = learnt.ridge.to_head()
    with storage_errors(f"read {bundle.folder / MODEL_NAME}"):
        model = (bundle.folder / MODEL_NAME).read_bytes()
    trust = bundle.trust
    if trust.detector is not None and bank is not None:
        trust = replace(trust, detector=trust.detector.relearn(bank.bank))
    contents = {
        MODEL_NAME: replace_head(model, head, trust),
        HEAD_NAME: save_tensors({"weights": head.weights, "bias": head.bias}),
        LEARNT_NAME: list_learnt(set(learnt.photos.tolist())),
    }
    if bank is not None:
        contents[BANK_NAME] = save_bank(bank)
    manifest = _renew_manifest(bundle.manifest, tree, now, len(learnt.photos), contents)
    with new_folder(bundle.folder) as folder:
        with storage_errors(f"copy {bundle.folder}"):
            _carry_over(bundle.folder.resolve(), folder, {*contents, MANIFEST_NAME, CHANGES_NAME})
            changes = _list_changes(bundle.folder / CHANGES_NAME, (now, *change))
        for name, content in contents.items():
            write_atomic(folder / name, content)
        write_atomic(folder / CHANGES_NAME, changes)
        write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        save_learnt(manifest, learnt)
        if parse_manifest(bundle.folder).checksum != bundle.manifest.checksum:
            raise BundleError(f"{bundle.folder} was changed by somebody else in the meantime; run this again")
    old = dict(zip(bundle.tree.paths, bundle.tree.names, strict=True))
    pairs = [(old[path], name) for path, name in zip(tree.paths, tree.names, strict=True) if path in old]
    renamed = tuple(f"{before} is called {name} now, to tell it apart" for before, name in pairs if before != name)
    return Bundle(bundle.folder, manifest, bundle.n_workers), renamed


def _renew_manifest(
    manifest: Manifest, tree: ClassTree, now: str, n_learnt: int, contents: Mapping[str, bytes]
) -> Manifest:
    from pomona import __version__

    n_taught = manifest.provenance.get("n_taught")
    counts = {"n_taught": (n_taught if isinstance(n_taught, int) else 0) + 1, "n_learnt": n_learnt}
    return manifest.model_copy(
        update={
            "format": BUNDLE_FORMAT,
            "pomona_version": __version__,
            "created": now,
            "classes": _carry_names(manifest, tree),
            "provenance": {**manifest.provenance, **counts},
            "files": {**manifest.files, **{name: hash_bytes(content) for name, content in contents.items()}},
        }
    ).seal()


def _carry_names(manifest: Manifest, tree: ClassTree) -> tuple[ClassEntry, ...]:
    """Classes of a tree with the names that they had; a new one is looked up in the list of common produce."""
    known = {entry.path: entry for entry in manifest.classes}
    fresh = list_classes(tree, match_class_names(None, tree).names)
    return tuple(known[one.path].model_copy(update={"name": one.name}) if one.path in known else one for one in fresh)


def _carry_over(source: Path, target: Path, left_out: set[str]) -> None:
    """Take everything else in the folder along, whoever put it there: as links where the disk has them."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(
        source,
        target,
        symlinks=True,
        dirs_exist_ok=True,
        copy_function=link,
        ignore=lambda folder, names: (left_out | _find_partial(names)) if Path(folder) == source else set(),
    )


def _find_partial(names: Iterable[str]) -> set[str]:
    """Files that a killed process left half written."""
    return {name for name in names if PARTIAL_FILE.fullmatch(name)}


def _list_changes(path: Path, row: Sequence[object]) -> str:
    rows: list[Sequence[object]] = (
        list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []
    )
    return write_csv([*(rows or [("time", "action", "class", "n_photos")]), row])
