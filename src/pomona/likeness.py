"""Which photos are the same, nearly the same, or of one scene: pairs, and groups that no split may divide.

In: thumbnails and features. Out: a `Likeness`: pairs of copies, and a community for each photo.
Why: a random split puts a photo into train and its twin into val, and the numbers are then a memory test. Neighbours
are found in an index, never among all pairs. Copies are told by their pixels, once both lie on each other; shots of one
scene or turntable by their colours and features, as communities of the graph of nearest neighbours.

References
----------
Traag, Waltman and van Eck, From Louvain to Leiden: guaranteeing well-connected communities, Scientific Reports 2019.
Jarvis and Patrick, Clustering using a similarity measure based on shared near neighbors, IEEE ToC 1973.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pomona.alignment import align_pairs
from pomona.engine import count_cpus, stream_ordered
from pomona.errors import MissingPackageError, PhotoError
from pomona.photo import decode_photo, read_unchanged
from pomona.projection import iter_blocks, project_blocks, scale_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pomona.dataset import Photo

CopyKind = Literal["exact_duplicate", "same_pixels", "near_duplicate"]

LIKENESS_DIM = 128
"""Coordinates of colours and of features that neighbours are found by."""

_COLOUR_SHARE = 0.7  # of what makes two photos of one scene alike; features make the rest
_SCENE_SIMILARITY, _SHOT_SIMILARITY = 0.8, 0.92
_LINKS_PER_COMMUNITY = 8000.0  # total weight of links over resolution: what joins does not depend on the size of a set
_N_NEIGHBOURS, _N_COPIES = 10, 6
_COPY_SIMILARITY, _FEW_PHOTOS = 0.8, 1000
_THUMBNAIL_SCORE, _CLOSE_SCORE, _SAME_SCORE = 0.88, 0.965, 0.997
_CLOSE_PX, _N_CLOSE = 96, 2
_COLOUR_BINS = 16  # of 256 levels each
_PAIRS_PER_ROUND = 4096


@dataclass(frozen=True)
class Copy:
    """Two photos of which one was made from the other.

    Parameters
    ----------
    first, second : int
        Rows, ascending.
    kind : {"exact_duplicate", "same_pixels", "near_duplicate"}
        How much they are the same.
    score : float
        0-1; 1 where every pixel agrees.
    reason : str
        What was done, in a few words.
    """

    first: int
    second: int
    kind: CopyKind
    score: float
    reason: str


@dataclass(frozen=True)
class Likeness:
    """What is alike among N photos.

    Parameters
    ----------
    copies : tuple of Copy
        Each photo beside the first of its copies, at least.
    communities : ndarray of shape (N,), intp
        Photos of one scene, or of scenes that a recogniser could not tell apart, have one number.
    shots : ndarray of shape (M, 2), intp
        Pairs of rows so much alike that they are shots of one scene, a step or a moment apart.
    """

    copies: tuple[Copy, ...]
    communities: NDArray[np.intp]
    shots: NDArray[np.intp]


def find_likeness(
    photos: Sequence[Photo],
    thumbnails: NDArray[np.uint8],
    coordinates: NDArray[np.float32],
    *,
    n_workers: int | None = None,
    on_pair: Callable[[int, int], None] | None = None,
) -> Likeness:
    """Find copies and scenes among photos.

    Parameters
    ----------
    photos : sequence of Photo, length N
        Their content decides what an exact copy is; some are read again, to be compared closely.
    thumbnails : ndarray of shape (N, S, S, 3), uint8
        Of `pomona.photo_facts`.
    coordinates : ndarray of shape (N, K), float32
        Features as `pomona.projection.project_vectors` gives them; the first `LIKENESS_DIM` are used.
    n_workers : int, optional
        Threads; every core where not given.
    on_pair : callable, optional
        Called with (pairs compared closely, pairs in all).

    Returns
    -------
    Likeness
        Pairs and communities; the same on every machine and in every order of calls.

    Raises
    ------
    MissingPackageError
        If usearch, scikit-network or threadpoolctl is not installed.
    """
    n_workers = n_workers or count_cpus()
    first_of: dict[str, int] = {}
    firsts = np.array([first_of.setdefault(photo.sha256, row) for row, photo in enumerate(photos)], np.intp)
    copies = [
        Copy(int(first), row, "exact_duplicate", 1.0, "the same bytes")
        for row, first in enumerate(firsts)
        if first != row
    ]
    rows = np.flatnonzero(firsts == np.arange(len(firsts)))  # one of each content: copies would fill all neighbours
    features = scale_rows(coordinates[rows, :LIKENESS_DIM])
    pairs = rows[_list_candidates(features, n_workers)]
    copies += _compare_pixels(photos, thumbnails, pairs, n_workers, on_pair)
    colours = scale_rows(_describe_colours(thumbnails[rows]))
    mixed = np.concatenate([colours * np.sqrt(_COLOUR_SHARE), features * np.sqrt(1 - _COLOUR_SHARE)], axis=1)
    numbers, shots = _find_scenes(np.asarray(mixed, np.float32), n_workers)
    communities = np.empty(len(photos), np.intp)
    communities[rows] = numbers
    copies.sort(key=lambda one: (one.first, one.second))
    return Likeness(tuple(copies), communities[firsts], rows[shots])


# --- neighbours -----------------------------------------------------------------------------------------------------


def find_neighbours(
    table: NDArray[np.float32], n_neighbours: int, n_workers: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Nearest rows of each row by their product, approximately (HNSW); -1 where there are no more.

    Parameters
    ----------
    table : ndarray of shape (N, K), float32
        Rows of norm 1.
    n_neighbours : int
        How many for each.
    n_workers : int
        Threads of the search.

    Returns
    -------
    ndarray of shape (N, n), intp and ndarray of shape (N, n), float32
        Rows, and their products.

    Raises
    ------
    MissingPackageError
        If usearch is not installed.
    """
    try:
        from usearch.index import BatchMatches, Index
    except ImportError as error:
        raise MissingPackageError("usearch", "train", "to find photos that are alike") from error
    n_rows = len(table)
    found = np.full((n_rows, n_neighbours), -1, np.intp)
    products = np.full((n_rows, n_neighbours), -1, np.float32)
    if n_rows < 2 or not table.shape[1]:
        return found, products
    index = Index(ndim=table.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=64, expansion_search=64)
    keys = np.arange(n_rows)
    for start, stop in iter_blocks(n_rows):  # by one thread: the graph, and so every answer, is the same each time
        index.add(keys[start:stop], table[start:stop], threads=1)
    for start, stop in iter_blocks(n_rows):
        matches = index.search(table[start:stop], min(n_neighbours + 1, n_rows), threads=n_workers)
        near = np.asarray(matches.keys).reshape(stop - start, -1).astype(np.intp)
        # Of a block of one row there are matches of another type, without counts.
        counts = np.asarray(matches.counts) if isinstance(matches, BatchMatches) else np.array([len(matches)])
        near[np.arange(near.shape[1]) >= counts.reshape(-1, 1)] = -1
        near[near == keys[start:stop, None]] = -1
        near = np.take_along_axis(near, np.argsort(near < 0, axis=1, kind="stable"), axis=1)[:, :n_neighbours]
        values = np.einsum("ik,ijk->ij", table[start:stop], table[near])
        found[start:stop, : near.shape[1]] = near
        products[start:stop, : near.shape[1]] = np.where(near < 0, -1, values)
    return found, products


# --- copies ---------------------------------------------------------------------------------------------------------


def _list_candidates(features: NDArray[np.float32], n_workers: int) -> NDArray[np.intp]:
    """Pairs (P, 2) of rows whose features are near enough for one to be a copy of the other."""
    n_rows = len(features)
    if n_rows and not features.shape[1]:  # nothing tells them apart
        return np.stack([np.arange(n_rows - 1), np.arange(1, n_rows)], axis=1)
    near, products = find_neighbours(features, _N_COPIES, n_workers)
    # The mean of a few photos is near each of them: less it, a photo and its copy may point apart.
    least = _COPY_SIMILARITY if n_rows > _FEW_PHOTOS else -np.inf
    return _pair_up(near, products > least)


def _compare_pixels(
    photos: Sequence[Photo],
    thumbnails: NDArray[np.uint8],
    pairs: NDArray[np.intp],
    n_workers: int,
    on_pair: Callable[[int, int], None] | None,
) -> list[Copy]:
    """Copies among pairs: first by their thumbnails, then, of those that agree, by the photos themselves."""
    rounds = iter_blocks(len(pairs), _PAIRS_PER_ROUND)
    parts = [_align_some(thumbnails, pairs[start:stop], n_workers) for start, stop in rounds]
    scores = np.concatenate([np.zeros(0, np.float32), *parts])
    best = _keep_best(pairs, scores)
    copies = _compare_closely(photos, pairs[best], n_workers, on_pair)
    further = _keep_joining(pairs, scores, copies, best)
    return copies + _compare_closely(photos, pairs[further], n_workers, on_pair)


def _keep_best(pairs: NDArray[np.intp], scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Numbers of the pairs that are looked at closely: of either photo among its best, as turntables have many."""
    near = np.flatnonzero(scores > _THUMBNAIL_SCORE)
    order = near[np.argsort(-scores[near], kind="stable")]
    n_taken: Counter[int] = Counter()
    kept = []
    for number in order.tolist():
        first, second = pairs[number].tolist()
        if min(n_taken[first], n_taken[second]) < _N_CLOSE:
            kept.append(number)
            n_taken.update((first, second))
    return np.sort(np.array(kept, np.intp))


def _keep_joining(
    pairs: NDArray[np.intp], scores: NDArray[np.float32], copies: Sequence[Copy], looked_at: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Numbers of further pairs: those that may join copies of one photo which its best pairs left in several parts."""
    roots: dict[int, int] = {}

    def find_root(row: int) -> int:
        while roots[row] != row:
            roots[row] = roots[roots[row]]
            row = roots[row]
        return row

    def join(first: int, second: int) -> bool:
        one, other = find_root(first), find_root(second)
        roots[max(one, other)] = min(one, other)
        return one != other

    for copy in copies:
        roots.setdefault(copy.first, copy.first)
        roots.setdefault(copy.second, copy.second)
        join(copy.first, copy.second)
    near = np.setdiff1d(np.flatnonzero(scores > _THUMBNAIL_SCORE), looked_at)
    kept = []
    for number in near[np.argsort(-scores[near], kind="stable")].tolist():
        first, second = pairs[number].tolist()
        if first in roots and second in roots and join(first, second):
            kept.append(number)
    return np.sort(np.array(kept, np.intp))


def _align_some(thumbnails: NDArray[np.uint8], pairs: NDArray[np.intp], n_workers: int) -> NDArray[np.float32]:
    rows, places = np.unique(pairs, return_inverse=True)
    return align_pairs(_to_gray(thumbnails[rows]), places.reshape(pairs.shape), n_workers=n_workers).scores


def _to_gray(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)


def _compare_closely(
    photos: Sequence[Photo], pairs: NDArray[np.intp], n_workers: int, on_pair: Callable[[int, int], None] | None
) -> list[Copy]:
    """Copies among pairs, by the photos themselves."""
    copies: list[Copy] = []
    for start, stop in iter_blocks(len(pairs), _PAIRS_PER_ROUND):
        copies += _compare_round(photos, pairs[start:stop], n_workers)
        if on_pair:
            on_pair(stop, len(pairs))
    return copies


def _compare_round(photos: Sequence[Photo], pairs: NDArray[np.intp], n_workers: int) -> Iterator[Copy]:
    """At three times the size, what is a copy still agrees, and what is another shot no longer does."""
    rows, places = np.unique(pairs, return_inverse=True)
    pictures = np.zeros((len(rows), _CLOSE_PX, _CLOSE_PX), np.float32)
    read = stream_ordered(lambda i: _read_gray(photos[rows[i]]), len(rows), n_threads=n_workers, n_ahead=4 * n_workers)
    with closing(read):  # after an interrupt no thread goes on decoding
        for i, picture in enumerate(read):
            if picture is not None:
                pictures[i] = picture
    found = align_pairs(pictures, places.reshape(pairs.shape), n_workers=n_workers)
    for i in np.flatnonzero(found.scores > _CLOSE_SCORE).tolist():
        first, second = (int(row) for row in pairs[i])
        score = float(np.clip(found.scores[i], 0, 1))
        if score > _SAME_SCORE and not found.mirrored[i] and _have_same_pixels(photos[first], photos[second]):
            yield Copy(first, second, "same_pixels", 1.0, "the same pixels in another file")
        else:
            yield Copy(first, second, "near_duplicate", score, found.describe(i))


def _read_gray(photo: Photo) -> NDArray[np.float32] | None:
    from PIL import Image

    try:
        pixels = decode_photo(read_unchanged(photo.path, photo.sha256), at_least_px=2 * _CLOSE_PX)
    except PhotoError:  # it was there when it was measured
        return None
    gray = Image.fromarray(pixels).convert("L")
    # Enlarged by boxes, a small photo gets steps at other places than its copy of another size.
    how = Image.Resampling.BOX if min(gray.size) >= _CLOSE_PX else Image.Resampling.BILINEAR
    return np.asarray(gray.resize((_CLOSE_PX, _CLOSE_PX), how), np.float32)


def _have_same_pixels(first: Photo, second: Photo) -> bool:
    try:
        one, other = (decode_photo(read_unchanged(photo.path, photo.sha256)) for photo in (first, second))
    except PhotoError:
        return False
    return one.shape == other.shape and bool((one == other).all())


# --- scenes ---------------------------------------------------------------------------------------------------------


def _describe_colours(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of colours in CIELAB, their roots, in few numbers (N, K): how like two scenes are lit and coloured."""
    from PIL import Image

    n_pixels, n_bins = thumbnails.shape[1] * thumbnails.shape[2], _COLOUR_BINS**3

    def read_rows(rows: NDArray[np.intp] | slice) -> NDArray[np.float32]:
        some = thumbnails[rows]
        strip = Image.fromarray(some.reshape(-1, some.shape[2], 3)).convert("LAB")
        levels = (np.asarray(strip).reshape(len(some), n_pixels, 3) ^ np.array([0, 0x80, 0x80], np.uint8)) >> 4
        bins = levels.astype(np.int32) @ np.array([_COLOUR_BINS**2, _COLOUR_BINS, 1], np.int32)
        bins += n_bins * np.arange(len(some), dtype=np.int32)[:, None]
        counts = np.bincount(bins.ravel(), minlength=n_bins * len(some)).reshape(len(some), n_bins)
        return np.asarray(np.sqrt(counts / n_pixels), np.float32)

    return project_blocks(read_rows, len(thumbnails), LIKENESS_DIM)


def _find_scenes(table: NDArray[np.float32], n_workers: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number of the community of each row (N, K) among neighbours that share neighbours, and pairs of one scene."""
    near, products = find_neighbours(table, _N_NEIGHBOURS, n_workers)
    links = _pair_up(near, products > _SCENE_SIMILARITY)
    shots = _pair_up(near, products > _SHOT_SIMILARITY)
    if not len(links):
        return np.arange(len(table), dtype=np.intp), shots
    try:
        from scipy.sparse import coo_matrix
        from sknetwork.clustering import Leiden
    except ImportError as error:
        raise MissingPackageError("scikit-network", "train", "to find photos of one scene") from error
    weights = _share_neighbours(near, links)
    both = np.concatenate([links, links[:, ::-1]])
    graph = coo_matrix((np.tile(weights, 2), both.T), shape=(len(table), len(table))).tocsr()
    leiden = Leiden(resolution=graph.sum() / _LINKS_PER_COMMUNITY, random_state=0)
    return np.asarray(leiden.fit_predict(graph), np.intp), shots


def _pair_up(near: NDArray[np.intp], is_kept: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Pairs (P, 2) of each row and those of its neighbours that are kept, each pair once."""
    rows, columns = np.nonzero(is_kept & (near >= 0))
    return np.unique(np.sort(np.stack([rows, near[rows, columns]], axis=1), axis=1), axis=0)


def _share_neighbours(near: NDArray[np.intp], links: NDArray[np.intp]) -> NDArray[np.float64]:
    """Jaccard index of the neighbours of both ends of each link, each end among its own neighbours."""
    closed = np.concatenate([np.arange(len(near))[:, None], near], axis=1)
    parts = []
    for start, stop in iter_blocks(len(links), 8 * _PAIRS_PER_ROUND):
        one, other = closed[links[start:stop, 0]], closed[links[start:stop, 1]]
        n_shared = ((one[:, :, None] == other[:, None, :]) & (one[:, :, None] >= 0)).sum(axis=(1, 2))
        n_all = (one >= 0).sum(axis=1) + (other >= 0).sum(axis=1) - n_shared
        parts.append(n_shared / n_all)
    return np.concatenate(parts)
