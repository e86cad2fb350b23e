"""What a recogniser would become if it learnt the photos that wait, and whether that is better.

In: a bundle, what it has learnt from, waiting photos, and photos that it never learnt. Out: a `Proposal`, which nothing
is written of until it is confirmed.
Why: a photo with the wrong label makes a recogniser worse, and who sent it cannot see that. So the new head is held
against the old one on the same photos before it answers anybody, and a person decides. Between the old bundle and the
new one there is no other: the folder is exchanged whole, and what the inbox says follows from what was learnt.
"""

from __future__ import annotations

import csv
import secrets
import time
import unicodedata
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.comparison import compare_answers, write_points
from pomona.dataset import load_dataset, name_some
from pomona.engine import is_finite
from pomona.errors import BundleError, DataError, NotFiniteError, OptionError, PhotoError
from pomona.evaluation import measure_share
from pomona.files import hash_bytes
from pomona.model_file import MODEL_NAME
from pomona.novelty import sketch_vectors
from pomona.photo import read_unchanged
from pomona.projection import scale_rows
from pomona.row_cache import RowCache, stream_rows
from pomona.run_folder import read_setting
from pomona.teaching import Lesson, plan_lesson, write_change
from pomona.versions import keep_version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.class_names import ClassName
    from pomona.class_tree import ClassPath, ClassTree
    from pomona.comparison import Difference
    from pomona.evaluation import Metric
    from pomona.head import Head
    from pomona.inbox import Inbox, InboxPhoto
    from pomona.learnt import Learnt
    from pomona.teaching import Change
    from pomona.versions import Version

TWIN_FROM = 0.9999
"""Cosine of features from which two photos are one, saved twice: the same pixels but for rounding."""

_FORMAT = 1  # counts up when the same key would give other features
_N_NAMED = 3


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Photos that a recogniser never learnt, with their features.

    Parameters
    ----------
    vectors : ndarray of shape (N, D), float32
        By the bundle's own graph.
    paths : tuple of tuple of str, (N,)
        Path of the class of each.
    hashes : tuple of str, (N,)
        Of their content.
    groups : ndarray of shape (N,), str
        Photos of one mark count less than as many apart.
    """

    vectors: NDArray[np.float32]
    paths: tuple[ClassPath, ...]
    hashes: tuple[str, ...]
    groups: NDArray[np.str_]

    def keep(self, rows: NDArray[np.bool_]) -> HeldOut:
        """Only some of them."""
        chosen = np.flatnonzero(rows)
        paths, hashes = tuple(self.paths[i] for i in chosen), tuple(self.hashes[i] for i in chosen)
        return HeldOut(self.vectors[chosen], paths, hashes, self.groups[chosen])


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a recogniser would become, and how it compares with what it is.

    Parameters
    ----------
    number : str
        Its name, by which it is confirmed.
    before, after : Metric or None
        Share right of the photos that both were asked for; None where there is none.
    difference : Difference or None
        The same, paired photo by photo.
    basis : str
        Which photos these are, as a sentence.
    labels : dict of str to int
        Photos to be learnt, by the name of their class.
    new_classes : tuple of str
        Names of those that are new.
    notes : tuple of str
        What to know before confirming.
    seconds : float
        How long it took.
    change : Change
        What is written when it is confirmed.
    photos : tuple of (str, str)
        Hash and label of each photo of the inbox that it is made of.
    checksum : str
        Of the manifest of the bundle that it was made for.
    """

    number: str
    before: Metric | None
    after: Metric | None
    difference: Difference | None
    basis: str
    labels: dict[str, int]
    new_classes: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    change: Change
    photos: tuple[tuple[str, str], ...]
    checksum: str

    @property
    def n_photos(self) -> int:
        """Photos to be learnt."""
        return sum(self.labels.values())

    def to_dict(self) -> dict[str, Any]:
        """The proposal as plain values for JSON."""
        found = self.difference
        return {
            "id": self.number,
            "before": _describe(self.before),
            "after": _describe(self.after),
            "difference": None if found is None else found.gain,
            "difference_interval": None if found is None else [found.low, found.high],
            "n_photos": self.n_photos,
            "labels": self.labels,
            "new_classes": list(self.new_classes),
            "basis": self.basis,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


def _describe(metric: Metric | None) -> dict[str, float] | None:
    return None if metric is None else {"share": metric.value, "low": metric.low, "high": metric.high, "n": metric.n}


# --- which class a label means --------------------------------------------------------------------------------------


def find_class(tree: ClassTree, names: Sequence[ClassName], path: ClassPath) -> ClassPath:
    """Find the class that a label means, or the path of a new one.

    Parameters
    ----------
    tree : ClassTree
        C known classes.
    names : sequence of ClassName, length C
        What people call them.
    path : tuple of str
        The label: a name, a path, an end of a path that no other class shares, or what people call a class in English
        or Chinese, in whatever case.

    Returns
    -------
    tuple of str
        Path of the class.

    Raises
    ------
    OptionError
        If it may mean several classes, names a group of classes, or would put a class under another.

    Examples
    --------
    >>> from pomona.class_tree import ClassTree
    >>> tree = ClassTree.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Pear"])
    >>> find_class(tree, (), ("gala",)), find_class(tree, (), ("Fruit", "Plum"))
    (('Fruit', 'Apple', 'Gala'), ('Fruit', 'Plum'))
    """
    label = "/".join(path)
    found = tree.index_of(label)
    if found is not None:
        return tree.paths[found]
    folded = _fold(label)
    called = {
        number
        for number, one in enumerate(names)
        for said in (one.name_en, one.name_zh)
        if said and _fold(said) == folded
    }
    spelt = {
        number
        for number, known in enumerate(tree.paths)
        for start in range(len(known))
        if _fold("/".join(known[start:])) == folded
    }
    for numbers in filter(None, (spelt, called)):
        if len(numbers) > 1:
            several = name_some(["/".join(tree.paths[number]) for number in sorted(numbers)], 4)
            raise OptionError(
                f"label: wanted one class, got {label}, which may be any of {several}: send the whole path"
            )
        return tree.paths[min(numbers)]
    below = [name for name, known in zip(tree.names, tree.paths, strict=True) if path in _list_groups(known)]
    if below:
        raise OptionError(f"label: wanted a class, got {label}, which is a group of classes: {name_some(below, 4)}")
    above = [name for name, known in zip(tree.names, tree.paths, strict=True) if known == path[: len(known)]]
    if above:
        raise OptionError(f"label: wanted a class beside {above[0]}, got {label}, which lies under it")
    return path


def _list_groups(path: ClassPath) -> set[ClassPath]:
    """Every way to name a node above a class: from any folder down to any other above the class."""
    return {path[start:stop] for start in range(len(path)) for stop in range(start + 1, len(path))}


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("-", " ").replace("_", " ")


# --- features -------------------------------------------------------------------------------------------------------


def compute_features(
    bundle: Bundle,
    hashes: Sequence[str],
    read: Callable[[int], bytes],
    *,
    on_photo: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float32], dict[int, PhotoError]]:
    """Features of photos by a bundle's own graph; those that were computed once are in the cache.

    Parameters
    ----------
    bundle : Bundle
        Its graph computes.
    hashes : sequence of str, length N
        Of the content of each photo.
    read : callable
        Number to content; called from several threads for those that the cache lacks; may raise `PhotoError`.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Returns
    -------
    ndarray of shape (N, D), float32, and dict of int to PhotoError
        Features, zero where a photo failed, and why.

    Raises
    ------
    NotFiniteError
        If the graph gives NaN or infinity.
    """
    dim, key = _find_key(bundle)
    vectors = np.zeros((len(hashes), dim), np.float32)
    errors: dict[int, PhotoError] = {}

    def compute(numbers: Sequence[int]) -> Generator[bytes | PhotoError]:
        pixels = bundle.engine.stream(len(numbers), lambda i: bundle.preprocessing.read(read(numbers[i])))
        for i, outcome in zip(numbers, pixels, strict=True):
            if isinstance(outcome, PhotoError):
                yield outcome
            elif is_finite({"features": outcome["features"]}):
                yield outcome["features"].astype(np.float32).tobytes()
            else:
                raise NotFiniteError(f"{bundle.folder / MODEL_NAME} gave numbers that are not finite for {hashes[i]}")

    cache = RowCache("features", f"graph-{key}-{_FORMAT}", dim * 4, shown="feature cache")
    with closing(cache), closing(stream_rows(hashes, cache, compute, on_photo=on_photo)) as rows:
        for numbers, outcome, _ in rows:
            if isinstance(outcome, PhotoError):
                errors.update(dict.fromkeys(numbers, outcome))
            else:
                vectors[numbers] = np.frombuffer(outcome, np.float32)
    return vectors, errors


def _find_key(bundle: Bundle) -> tuple[int, str]:
    """Length of the features, and what names the network of a graph: what it makes of one square of noise.

    Teaching exchanges the head and leaves the network as it is, and so must the name.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, *bundle.engine.shape), dtype=np.uint8)
    features = bundle.engine.run(noise)["features"][0]
    preprocessing = bundle.manifest.preprocessing.model_dump_json()
    return len(features), hash_bytes(features.tobytes() + preprocessing.encode())[:16]


def load_held_out(bundle: Bundle, *, on_photo: Callable[[int, int], None] | None = None) -> HeldOut:
    """Find the photos that the numbers of a run were measured on, and compute their features.

    Parameters
    ----------
    bundle : Bundle
        The recogniser, in its run folder.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Returns
    -------
    HeldOut
        Those that are still there, are of a class that it knows, and were not learnt.

    Raises
    ------
    DataError
        If none is left; the message says why.
    """
    folder = bundle.folder
    data = read_setting(folder, "data")
    names = _list_reported(folder / "predictions.csv")
    if not isinstance(data, str) or not names:
        raise DataError(f"the run does not say which photos it was measured on: {folder}")
    dataset = load_dataset(data, tree=bundle.tree, min_classes=1)
    photos = [
        photo
        for photo in dataset.photos
        if photo.name in names and photo.label >= 0 and photo.sha256 not in bundle.learnt_from
    ]
    if not photos:
        raise DataError(f"none of the {len(names)} photos that it was measured on is in {dataset.shown} any more")
    vectors, errors = compute_features(
        bundle,
        [photo.sha256 for photo in photos],
        lambda i: read_unchanged(photos[i].path, photos[i].sha256),
        on_photo=on_photo,
    )
    if len(errors) == len(photos):
        raise DataError(f"none of the {len(photos)} photos that it was measured on can be used any more")
    found = HeldOut(
        vectors,
        tuple(bundle.tree.paths[photo.label] for photo in photos),
        tuple(photo.sha256 for photo in photos),
        np.array([photo.group for photo in photos]),
    )
    return found.keep(np.array([i not in errors for i in range(len(photos))]))


def _list_reported(path: Path) -> set[str]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return {row["file_name"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, csv.Error):
        return set()


# --- the proposal ---------------------------------------------------------------------------------------------------


def make_proposal(
    bundle: Bundle, learnt: Learnt, photos: Sequence[InboxPhoto], held_out: HeldOut | None, *, why_none: str = ""
) -> Proposal:
    """Fit the head to the photos that wait, and hold it against the one that there is; nothing is written.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    learnt : Learnt
        What it has learnt from.
    photos : sequence of InboxPhoto
        Those to be learnt.
    held_out : HeldOut or None
        What both are asked for; where there is none, each photo learnt from is left out in turn.
    why_none : str
        Why there is none, as the end of a sentence.

    Returns
    -------
    Proposal
        For `confirm_proposal`.

    Raises
    ------
    DataError
        If nothing is left to be learnt, or a photo was learnt, or waits, as two classes.
    OptionError
        If a label means a group of classes.
    BundleError
        If what it has learnt from is damaged.
    FitError
        If there are too many photos to learn on.
    """
    started_s = time.perf_counter()
    wanted = [(photo, find_class(bundle.tree, bundle.names, photo.class_path)) for photo in photos]
    fresh, notes = _leave_out_known(bundle, learnt, wanted)
    vectors, errors = compute_features(
        bundle,
        [photo.sha256 for photo, _ in fresh],
        lambda i: read_unchanged(fresh[i][0].path, fresh[i][0].sha256),
    )
    for i, error in sorted(errors.items()):
        notes.append(f"{_name(fresh[i][0])} cannot be used and is left out: {error.fault.replace('_', ' ')}")
    usable = [i for i in range(len(fresh)) if i not in errors]
    if not usable:
        raise DataError(f"wanted photos to learn from, got none that is new: {'; '.join(notes) or 'nothing waits'}")
    fresh, vectors = [fresh[i] for i in usable], vectors[usable]
    paths = tuple(path for _, path in fresh)
    _refuse_twins(bundle, fresh, vectors)
    hashes = tuple(photo.sha256 for photo, _ in fresh)
    names = tuple(f"inbox/{photo.path.name}" for photo, _ in fresh)
    change = plan_lesson(bundle, learnt, Lesson(paths, hashes, names, vectors))
    old, new = learnt.ridge.to_head(), change.learnt.ridge.to_head()
    if held_out is not None:
        left, n_out = _take_out(held_out, bundle, hashes, vectors)
        if n_out:
            notes.append(f"{n_out} of the photos kept apart are to be learnt now, or were learnt: they measure nothing")
        asked, basis = _ask_held_out(bundle, change, (old, new), left)
    else:
        asked, basis = _ask_left_out(bundle, learnt, change, why_none)
    known = set(bundle.tree.paths)
    new_classes = tuple(
        change.tree.names[change.tree.paths.index(path)] for path in dict.fromkeys(paths) if path not in known
    )
    if new_classes:
        notes.append(
            f"no photo was kept apart of {name_some(new_classes)}: how often it is right there is not measured"
        )
    notes += _list_missed(change.tree, new, fresh, vectors)
    difference = compare_answers(asked.before, asked.after, asked.groups) if asked is not None else None
    if asked is not None and difference is not None:
        notes += _list_worse(asked, change.tree)
        if difference.verdict != "better":
            gain = write_points(difference.gain)
            kind = "it is worse" if difference.verdict == "worse" else "that cannot be told from chance"
            notes.append(f"{gain} points on {difference.n} photos: {kind}")
    return Proposal(
        number=secrets.token_hex(8),
        before=None if asked is None else measure_share(asked.before, asked.groups),
        after=None if asked is None else measure_share(asked.after, asked.groups),
        difference=difference,
        basis=basis,
        labels=change.counts,
        new_classes=new_classes,
        notes=tuple(notes),
        seconds=time.perf_counter() - started_s,
        change=change,
        photos=tuple((photo.sha256, photo.label) for photo, _ in fresh),
        checksum=bundle.manifest.checksum,
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """What two heads have right on the same photos."""

    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    groups: NDArray[np.str_] | None
    numbers: NDArray[np.intp]  # of their classes in the new tree


def _name(photo: InboxPhoto) -> str:
    return f"the photo {photo.sha256[:12]} ({photo.label})"


def _list_learnt_as(bundle: Bundle, learnt: Learnt) -> dict[str, ClassPath]:
    """Class of each photo that was learnt, by its hash."""
    pairs = zip(learnt.photos.tolist(), learnt.ridge.labels.tolist(), strict=True)
    return {sha256: bundle.tree.paths[label] for sha256, label in pairs}


def _leave_out_known(
    bundle: Bundle, learnt: Learnt, wanted: Sequence[tuple[InboxPhoto, ClassPath]]
) -> tuple[list[tuple[InboxPhoto, ClassPath]], list[str]]:
    learnt_as = _list_learnt_as(bundle, learnt)
    fresh = []
    for photo, path in wanted:
        known = learnt_as.get(photo.sha256)
        if known is not None and known != path:
            raise DataError(
                f"{_name(photo)} was learnt as {'/'.join(known)} before: take it back, or bring the version before "
                "that back first"
            )
        if known is None:
            fresh.append((photo, path))
    n_known = len(wanted) - len(fresh)
    return fresh, [f"{n_known} of the photos were learnt before"] if n_known else []


def _refuse_twins(bundle: Bundle, fresh: Sequence[tuple[InboxPhoto, ClassPath]], vectors: NDArray[np.float32]) -> None:
    """Refuse photos that are another one, saved anew, of another class."""
    likeness = scale_rows(vectors) @ scale_rows(vectors).T
    for i, j in zip(*np.nonzero(np.triu(likeness >= TWIN_FROM, 1)), strict=True):
        if fresh[i][1] != fresh[j][1]:
            raise DataError(f"{_name(fresh[i][0])} and {_name(fresh[j][0])} are the same: take one of them back")
    if bundle.bank is None:
        return
    bank = bundle.bank.bank
    likeness = scale_rows(sketch_vectors(vectors)) @ scale_rows(bank.vectors).T
    for i, j in zip(*np.nonzero(likeness >= TWIN_FROM), strict=True):
        path = bundle.tree.paths[bank.labels[j]]
        if fresh[i][1] != path:
            raise DataError(
                f"{_name(fresh[i][0])} is the same as one that was learnt as {'/'.join(path)} "
                f"({bundle.bank.names[j]}): take it back"
            )


def _take_out(
    held_out: HeldOut, bundle: Bundle, hashes: Sequence[str], vectors: NDArray[np.float32]
) -> tuple[HeldOut, int]:
    """Without what is to be learnt, was learnt, or is of a class that is gone; and how many were learnt."""
    seen = {*bundle.learnt_from, *hashes}
    is_seen = np.array([one in seen for one in held_out.hashes], bool)
    is_seen |= (scale_rows(held_out.vectors) @ scale_rows(vectors).T >= TWIN_FROM).any(axis=1)
    known = set(bundle.tree.paths)
    is_known = np.array([path in known for path in held_out.paths], bool)
    return held_out.keep(~is_seen & is_known), int(is_seen.sum())


def _ask_held_out(
    bundle: Bundle, change: Change, heads: tuple[Head, Head], held_out: HeldOut
) -> tuple[_Asked | None, str]:
    n = len(held_out.hashes)
    if not n:
        return None, "None of the photos that were kept apart is left to be asked for, so nothing was measured."
    hits = []
    for head, tree in zip(heads, (bundle.tree, change.tree), strict=True):
        numbers = np.array([tree.paths.index(path) for path in held_out.paths])
        hits.append(head.score(held_out.vectors).argmax(axis=1) == numbers)
    basis = f"Measured on {n:,} photo{'' if n == 1 else 's'} that were kept apart when it was trained; none was learnt."
    return _Asked(hits[0], hits[1], held_out.groups, numbers), basis


def _ask_left_out(bundle: Bundle, learnt: Learnt, change: Change, why: str) -> tuple[_Asked | None, str]:
    """Ask for each photo learnt, by what learnt all the others."""
    n = len(learnt.photos)
    order = np.array([change.tree.paths.index(path) for path in bundle.tree.paths])
    numbers = order[learnt.ridge.labels]
    before = learnt.ridge.leave_each_out().argmax(axis=1) == learnt.ridge.labels
    after = change.learnt.ridge.leave_each_out()[:n].argmax(axis=1) == numbers
    reason = f", for those kept apart are not at hand ({why})" if why else ""
    basis = (
        f"Measured on the {n:,} photos that it learnt from, each left out in turn{reason}. Photos of one series help "
        "each other there, so both shares are high, and the difference says more."
    )
    return _Asked(before, after, None, numbers), basis


def _list_missed(
    tree: ClassTree, head: Head, fresh: Sequence[tuple[InboxPhoto, ClassPath]], vectors: NDArray[np.float32]
) -> list[str]:
    answers = head.score(vectors).argmax(axis=1)
    missed = [
        f"{photo.sha256[:12]} ({tree.names[tree.paths.index(path)]}, answered {tree.names[answer]})"
        for (photo, path), answer in zip(fresh, answers.tolist(), strict=True)
        if tree.paths[answer] != path
    ]
    if not missed:
        return []
    return [f"{len(missed)} of the {len(fresh)} photos would still be wrong: {name_some(missed, _N_NAMED)}"]


def _list_worse(asked: _Asked, tree: ClassTree) -> list[str]:
    change = asked.after.astype(int) - asked.before
    losses = Counter({int(c): int(-change[asked.numbers == c].sum()) for c in np.unique(asked.numbers)})
    worse = []
    for c, loss in losses.most_common():
        if loss > 0:
            own = asked.numbers == c
            right = (
                f"{int(asked.before[own].sum())} right of {int(own.sum())} before, {int(asked.after[own].sum())} now"
            )
            worse.append(f"{tree.names[c]} ({right})")
    return [f"worse than before: {name_some(worse, _N_NAMED)}"] if worse else []


# --- from the proposal to the bundle --------------------------------------------------------------------------------


def confirm_proposal(bundle: Bundle, proposal: Proposal, inbox: Inbox) -> tuple[Bundle, Version]:
    """Let a recogniser become what was proposed.

    The version before is kept first, then the run folder is exchanged whole, then the version after is kept, and last
    the inbox is told. A crash between any two leaves the old bundle or the new one, and `settle_inbox` does the rest.

    Parameters
    ----------
    bundle : Bundle
        The recogniser that the proposal was made for.
    proposal : Proposal
        What it shall become.
    inbox : Inbox
        Where the photos came from.

    Returns
    -------
    Bundle, Version
        The recogniser as it is now, and the version that this is.

    Raises
    ------
    BundleError
        If the recogniser was changed since the proposal was made.
    DataError
        If a photo was taken back or got another label since.
    StorageError
        If it cannot be written: the recogniser is then as it was; or it is the new one where only what comes after the
        exchange could not be written, the version or the inbox, which the next start makes good.
    """
    waiting = {(photo.sha256, photo.label) for photo in inbox.list_photos("waiting")}
    if gone := [one for one in proposal.photos if one not in waiting]:
        raise DataError(
            f"the photo {gone[0][0][:12]} ({gone[0][1]}) was taken back or got another label since this was proposed: "
            "ask for another proposal"
        )
    if bundle.manifest.checksum != proposal.checksum:
        raise BundleError(f"{bundle.folder} was changed since this was proposed: ask for another proposal")
    keep_version(bundle.folder)
    after, _ = write_change(bundle, proposal.change)
    version = keep_version(after.folder)
    settle_inbox(inbox, after, proposal.change.learnt, version.number)
    return after, version


def settle_inbox(inbox: Inbox, bundle: Bundle, learnt: Learnt | None, version: int) -> int:
    """Hold the inbox together with what a recogniser has learnt, after teaching, going back, or a crash in between.

    Parameters
    ----------
    inbox : Inbox
        Photos that people sent.
    bundle : Bundle
        The recogniser as it is.
    learnt : Learnt or None
        What it has learnt from; where that is gone, the hashes in the bundle have to do.
    version : int
        Which version it is.

    Returns
    -------
    int
        Photos whose state was changed.
    """
    if learnt is None:
        return inbox.settle(lambda photo: photo.sha256 in bundle.learnt_from, version)
    learnt_as = _list_learnt_as(bundle, learnt)

    def is_learnt(photo: InboxPhoto) -> bool:
        known = learnt_as.get(photo.sha256)
        if known is None:
            return False
        try:
            return known == find_class(bundle.tree, bundle.names, photo.class_path)
        except OptionError:
            return False

    return inbox.settle(is_learnt, version)
