"""Photos that belong together get one group, and what that says of a split.

In: a dataset, and what is alike in it. Out: the dataset with groups, photos on both sides of a split, the price of a
random split.
Why: a group is the one thing that splits and folds never divide, so whatever makes two photos belong together (their
bytes, their pixels, their scene, a word of the user) ends up there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from pomona.errors import MissingPackageError
from pomona.evaluation import measure_share
from pomona.findings import SplitGap
from pomona.label_doubts import measure_folds
from pomona.parts import list_folds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pomona.dataset import Dataset
    from pomona.likeness import Likeness

_NAME_DIGITS = 12


def group_photos(dataset: Dataset, likeness: Likeness) -> Dataset:
    """Put photos that are alike into one group.

    Groups that the data names stay together, and are joined where one holds a copy of a photo of the other; scenes are
    only looked for among photos of no named group.

    Parameters
    ----------
    dataset : Dataset
        N photos.
    likeness : Likeness
        Of the same photos.

    Returns
    -------
    Dataset
        The same photos in the same order. A group is called as the data does, or by the smallest hash in it, so that
        its name does not depend on the order of the files.

    Raises
    ------
    MissingPackageError
        If SciPy is not installed.
    """
    photos, n_photos = dataset.photos, dataset.n_photos
    is_named = np.array([photo.group != photo.sha256 for photo in photos], bool)
    given = np.unique(dataset.groups, return_inverse=True)[1] + n_photos
    links = [(row, int(group)) for row, group in enumerate(given)]
    links += [(copy.first, copy.second) for copy in likeness.copies]
    joined = _number_parts(links, 2 * n_photos)[:n_photos]
    # A copy of a photo of a named group belongs there, and brings no scene along that would join two such groups.
    is_free = ~np.isin(joined, joined[is_named])
    free = np.flatnonzero(is_free)
    numbers = np.where(is_free, 0, joined)
    numbers[free] = 2 * n_photos + _choose_scenes(joined[free], likeness.communities[free])
    numbers = np.unique(numbers, return_inverse=True)[1]
    names: dict[int, tuple[bool, str]] = {}
    sizes = np.bincount(numbers) if n_photos else numbers
    for photo, number, named in zip(photos, numbers.tolist(), is_named.tolist(), strict=True):
        call = (not named, photo.group if named or sizes[number] == 1 else f"scene-{photo.sha256[:_NAME_DIGITS]}")
        names[number] = min(names.get(number, call), call)
    grouped = (replace(photo, group=names[number][1]) for photo, number in zip(photos, numbers.tolist(), strict=True))
    return replace(dataset, photos=tuple(grouped))


def _choose_scenes(parts: NDArray[np.intp], scenes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Scene of each photo: that of most of its copies, so that a copy astray does not join two scenes."""
    pairs, counts = np.unique(np.stack([parts, scenes], axis=1), axis=0, return_counts=True)
    order = np.lexsort((-pairs[:, 1], counts))
    chosen = np.zeros(parts.max(initial=0) + 1, np.intp)
    chosen[pairs[order, 0]] = pairs[order, 1]  # the last one written stays: the most common, of those the smallest
    return chosen[parts]


def _number_parts(links: Sequence[tuple[int, int]], n_nodes: int) -> NDArray[np.intp]:
    """Number of the part that each node of a graph is in."""
    try:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise MissingPackageError("scipy", "train", "to group photos") from error
    ends = np.array(links, np.intp).reshape(-1, 2).T
    graph = coo_matrix((np.ones(ends.shape[1], bool), ends), shape=(n_nodes, n_nodes))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


@dataclass(frozen=True)
class Leak:
    """A photo that is measured on, and one of train that gives it away.

    Parameters
    ----------
    row, other : int
        The photo, and the one of train.
    why : {"copy", "shot", "group"}
        One was made from the other; they are shots of one scene; the data puts them into one group.
    """

    row: int
    other: int
    why: Literal["copy", "shot", "group"]


def list_leaks(dataset: Dataset, likeness: Likeness) -> tuple[Leak, ...]:
    """Photos of val and test that one of train gives away, copies first.

    That two photos are in one group because they are hard to tell apart does not make them a leak: a val part of
    another day may well show the same produce.

    Parameters
    ----------
    dataset : Dataset
        With the splits and groups that the data brings.
    likeness : Likeness
        Of the same photos.
    """
    photos = dataset.photos
    learnt: dict[str, int] = {}  # first row of train of each content, and of each group
    for row, photo in enumerate(photos):
        if photo.split == "train":
            learnt.setdefault(photo.sha256, row)
            learnt.setdefault(photo.group, row)
    # By content: of files with the same bytes, `Likeness` names the first alone, or each beside the first.
    copies = _list_twins(dataset, ((copy.first, copy.second) for copy in likeness.copies))
    shots = _list_twins(dataset, likeness.shots.tolist())
    leaks = []
    for row, photo in enumerate(photos):
        if photo.split not in {"val", "test"}:
            continue
        for why, twins in (
            ("copy", {photo.sha256} | copies.get(photo.sha256, set())),
            ("group", {photo.group}),
            ("shot", shots.get(photo.sha256, set())),
        ):
            if rows := [learnt[twin] for twin in twins if twin in learnt]:
                leaks.append(Leak(row, min(rows), why))  # type: ignore[arg-type]  # it is among them
                break
    return tuple(sorted(leaks, key=lambda leak: (("copy", "group", "shot").index(leak.why), leak.row)))


def _list_twins(dataset: Dataset, pairs: Iterable[Sequence[int]]) -> dict[str, set[str]]:
    """Contents that each content is paired with."""
    twins: dict[str, set[str]] = {}
    for pair in pairs:
        first, second = (dataset.photos[row].sha256 for row in pair)
        twins.setdefault(first, set()).add(second)
        twins.setdefault(second, set()).add(first)
    return twins


def measure_gap(dataset: Dataset, coordinates: NDArray[np.float32], *, seed: int = 0) -> SplitGap | None:
    """Measure what parting the photos at random would promise, and what holds for photos of other groups.

    Parameters
    ----------
    dataset : Dataset
        With the groups of `group_photos`.
    coordinates : ndarray of shape (N, K), float32
        Features in few numbers.
    seed : int
        Of the folds.

    Returns
    -------
    SplitGap or None
        Of the photos of classes that several groups hold; None where there are none, or no group of several photos.
    """
    labels, groups = dataset.labels, dataset.groups
    held = np.unique(np.stack([labels.astype(str), groups]), axis=1)[0] if len(labels) else labels
    several = [int(label) for label, n in zip(*np.unique(held, return_counts=True), strict=True) if n > 1]
    rows = np.flatnonzero(np.isin(labels, several) & (labels >= 0))
    kept, names = labels[rows], groups[rows]
    if len(np.unique(kept)) < 2 or len(np.unique(names)) == len(rows):
        return None
    table = coordinates[rows]
    alone = np.arange(len(rows)).astype(str)
    hits = []
    for marks in (alone, names):
        folds = list_folds(kept, marks, seed=seed)
        if not folds:
            return None
        right = measure_folds(table, kept, len(dataset.tree), folds)
        hits.append((right, names[np.concatenate([held_out for _, held_out in folds])]))
    return SplitGap(measure_share(hits[0][0]), measure_share(*hits[1]))
