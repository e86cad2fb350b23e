"""Classes taught to a finished recogniser, or taken from it, without training again.

In: a run folder, and photos of one class. Out: the same run folder with a new head, put in place whole, and a line more
in its changes.csv.
Why: a head in closed form takes photos in or forgets them exactly, and the bundle's own graph computes their features:
neither the weights of the network nor the other photos are needed, and what `pomona.learnt` kept is enough.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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
from pomona.dataset import Skipped, find_photos, name_some
from pomona.engine import is_finite
from pomona.errors import (
    BundleError,
    DataError,
    FitError,
    NotFiniteError,
    OptionError,
    PhotoError,
)
from pomona.files import MANIFEST_NAME, hash_bytes, new_folder, storage_errors, write_atomic
from pomona.learnt import Learnt, is_too_many, load_learnt, save_learnt
from pomona.learnt_bank import BANK_NAME, LearntBank, save_bank
from pomona.model_file import MODEL_NAME, replace_head
from pomona.photo import read_photo_bytes, read_unchanged
from pomona.ridge import MAX_BYTES
from pomona.run_folder import CHANGES_NAME, carry_over, list_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.bundle import ClassEntry, Manifest
    from pomona.class_tree import ClassPath
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
    number_in_tree = tree.paths.index(path) if found is None else found
    label = tree.names[number_in_tree]
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
            names = tuple(photo.name for photo, _ in new)
            lesson = Lesson(
                (tree.paths[number_in_tree],) * len(new), tuple(sha256 for _, sha256 in new), names, vectors
            )
            change = plan_lesson(bundle, learnt, lesson)
        with steps.step("save"):
            bundle, renamed = write_change(bundle, change)
            learnt = change.learnt
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
        change = _plan_removal(bundle, learnt, number)
    with steps.step("save"):
        bundle, renamed = write_change(bundle, change)
    n_kept, n_forgotten = len(change.learnt.photos), change.counts[label]
    return TeachResult(bundle, "remove", label, False, n_forgotten, 0, n_kept, (), renamed, tuple(steps.stages))


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


# --- what a bundle becomes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lesson:
    """Photos to be learnt together, of known classes and new ones.

    Parameters
    ----------
    paths : tuple of tuple of str, (K,)
        Path of the class of each photo.
    hashes : tuple of str, (K,)
        Of their content, all different and none learnt before.
    names : tuple of str, (K,)
        What the bundle calls them.
    vectors : ndarray of shape (K, D), float32
        Their features, by the bundle's own graph.
    """

    paths: tuple[ClassPath, ...]
    hashes: tuple[str, ...]
    names: tuple[str, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Change:
    """What a bundle becomes; nothing of it is written yet.

    Parameters
    ----------
    action : {"add", "remove"}
        What is done.
    tree : ClassTree
        The classes then.
    learnt : Learnt
        What it has learnt from then.
    bank : LearntBank or None
        The same in few numbers.
    counts : dict of str to int
        Photos learnt or forgotten, by the name of their class.
    """

    action: Literal["add", "remove"]
    tree: ClassTree
    learnt: Learnt
    bank: LearntBank | None
    counts: dict[str, int]

    def describe(self) -> str:
        """What is done, in a few words."""
        names = name_some(list(self.counts), 3)
        n_photos = sum(self.counts.values())
        if self.action == "remove":
            return f"forgot {names}"
        return f"taught {n_photos:,} photo{'' if n_photos == 1 else 's'} of {names}"


def plan_lesson(bundle: Bundle, learnt: Learnt, lesson: Lesson) -> Change:
    """Fit the head to further photos, of several classes at once, without writing anything.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    learnt : Learnt
        What it has learnt from.
    lesson : Lesson
        The photos, one or more.

    Returns
    -------
    Change
        For `write_change`; what it was given stays as it was.

    Raises
    ------
    FitError
        If there are too many photos to learn on, or these are too far from the others.
    BundleError
        If what it learnt from is damaged.
    """
    n_photos = len(learnt.photos) + len(lesson.hashes)
    if is_too_many(n_photos, lesson.vectors.shape[1]):
        raise FitError(
            f"wanted photos that can be learnt on in {MAX_BYTES / 1e9:g} GB, got {n_photos:,} in all; "
            "train again with these photos too"
        )
    old = bundle.tree
    fresh = [path for path in dict.fromkeys(lesson.paths) if path not in old.paths]
    tree = ClassTree.from_paths([*old.paths, *fresh]) if fresh else old
    order = [*old.paths, *fresh]  # new classes follow the known ones while they are learnt
    labels = np.array([order.index(path) for path in lesson.paths], np.intp)
    places = np.array([tree.paths.index(path) for path in order], np.intp)

    def learn(ridge: Ridge) -> Ridge:
        grown = ridge.add(lesson.vectors, labels, len(tree))
        return grown.renumber(places) if fresh else grown

    bank = bundle.bank
    if bank is not None:
        names = tuple(show_text(name) for name in lesson.names)
        bank = bank.renumber(old, tree).add(lesson.vectors, places[labels], names)
    counts = Counter(tree.names[number] for number in places[labels])
    return Change("add", tree, learnt.change(learn, np.append(learnt.photos, lesson.hashes)), bank, dict(counts))


def _plan_removal(bundle: Bundle, learnt: Learnt, number: int) -> Change:
    """Forget a class and its photos, without writing anything."""
    paths = [path for c, path in enumerate(bundle.tree.paths) if c != number]
    tree = ClassTree.from_paths(paths)
    kept = learnt.photos[learnt.ridge.labels != number]
    order = np.array([tree.paths.index(path) for path in paths])
    bank = None if bundle.bank is None else bundle.bank.remove(number).renumber(bundle.tree, tree)
    counts = {bundle.tree.names[number]: len(learnt.photos) - len(kept)}
    left = learnt.change(lambda ridge: ridge.remove_class(number).renumber(order), kept)
    return Change("remove", tree, left, bank, counts)


# --- the new bundle -------------------------------------------------------------------------------------------------


def write_change(bundle: Bundle, change: Change) -> tuple[Bundle, tuple[str, ...]]:
    """Write the run folder anew with another head, and what was learnt; in place whole, or not at all.

    Parameters
    ----------
    bundle : Bundle
        The recogniser that the change was planned for.
    change : Change
        What it becomes.

    Returns
    -------
    Bundle, tuple of str
        The recogniser as it is now, and what to know of its names.

    Raises
    ------
    BundleError
        If the run folder was changed by somebody else since it was opened.
    StorageError
        If a file cannot be written; the recogniser is then as it was.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    tree, learnt, bank = change.tree, change.learnt, change.bank
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
    manifest = _renew_manifest(bundle.manifest, change, now, contents)
    with new_folder(bundle.folder) as folder:
        with storage_errors(f"copy {bundle.folder}"):
            carry_over(bundle.folder.resolve(), folder, {*contents, MANIFEST_NAME, CHANGES_NAME})
            changes = list_changes(bundle.folder, [(now, change.action, *one) for one in change.counts.items()])
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


def _renew_manifest(manifest: Manifest, change: Change, now: str, contents: Mapping[str, bytes]) -> Manifest:
    from pomona import __version__

    n_taught = manifest.provenance.get("n_taught")
    counts = {
        "n_taught": (n_taught if isinstance(n_taught, int) else 0) + 1,
        "n_learnt": len(change.learnt.photos),
        "change": change.describe(),
    }
    return manifest.model_copy(
        update={
            "format": BUNDLE_FORMAT,
            "pomona_version": __version__,
            "created": now,
            "classes": _carry_names(manifest, change.tree),
            "provenance": {**manifest.provenance, **counts},
            "files": {**manifest.files, **{name: hash_bytes(content) for name, content in contents.items()}},
        }
    ).seal()


def _carry_names(manifest: Manifest, tree: ClassTree) -> tuple[ClassEntry, ...]:
    """Classes of a tree with the names that they had; a new one is looked up in the list of common produce."""
    known = {entry.path: entry for entry in manifest.classes}
    fresh = list_classes(tree, match_class_names(None, tree).names)
    return tuple(known[one.path].model_copy(update={"name": one.name}) if one.path in known else one for one in fresh)
