"""Whether two small pictures show the same pixels, one perhaps resized, recompressed, cropped, mirrored or brightened.

In: gray thumbnails and pairs of them. Out: how well each pair agrees where it fits best, and what was done to it.
Why: features say that two photos show nearly the same; whether one was made from the other, only the pixels know. Two
shots of one tray a step apart agree less than a photo and its cropped copy, once both lie on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.engine import stream_ordered
from pomona.errors import MissingPackageError
from pomona.projection import iter_blocks

if TYPE_CHECKING:
    import contextlib

    from numpy.typing import NDArray

    _Block = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]

MAX_CROPPED = 0.12
"""Largest share of a side that is looked for: a tenth, and what rounding takes beside it."""

_MIDDLE_PX, _COARSE_PX, _ROUGH_PX = 32, 16, 8
_N_STEPS = 3  # crops of 0, 1/3, ... of the largest share, at each place they fit
_PIXELS_PER_BLOCK = 2**17  # what stays in a core's own memory
_ROUGH_SCORE = 0.65
"""Below this, at 8 pixels, no crop brings two pictures together."""

_N_ITERATIONS = 4
_CROP_NOTED = 0.015


@dataclass(frozen=True)
class Alignment:
    """How pairs of pictures lie on each other, P of them.

    Parameters
    ----------
    scores : ndarray of shape (P,), float32
        Normalised cross-correlation where they fit best, at most 1.
    mirrored : ndarray of shape (P,), bool
        Whether that is with one of them mirrored.
    cropped : ndarray of shape (P,), float32
        Share of the longer cropped side that one of them lacks.
    gains : ndarray of shape (P,), float32
        Contrast of the second over that of the first.
    """

    scores: NDArray[np.float32]
    mirrored: NDArray[np.bool_]
    cropped: NDArray[np.float32]
    gains: NDArray[np.float32]

    def describe(self, i: int) -> str:
        """What was done to one of a pair, in a few words."""
        parts = ["mirrored"] if self.mirrored[i] else []
        if self.cropped[i] > _CROP_NOTED:
            parts.append(f"cropped by {self.cropped[i]:.0%}")
        if not 1 / 1.12 < self.gains[i] < 1.12:
            parts.append("of another brightness")
        return " and ".join(parts) or "resized or saved anew"


def align_pairs(pictures: NDArray[np.float32], pairs: NDArray[np.intp], *, n_workers: int = 1) -> Alignment:
    """Lay the pictures of each pair on each other.

    Parameters
    ----------
    pictures : ndarray of shape (N, S, S), float32
        Gray thumbnails; S is 16 or a multiple of 32.
    pairs : ndarray of shape (P, 2), intp
        Rows of them.
    n_workers : int
        Threads.

    Returns
    -------
    Alignment
        Of each pair; pairs that are plainly different have the score of a rough look.

    References
    ----------
    Baker and Matthews, Lucas-Kanade 20 years on, IJCV 2004: the refinement, with a gain beside the window.
    """
    if not len(pairs):
        return Alignment(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.float32), np.ones(0, np.float32))
    blocks = list(iter_blocks(len(pairs), max(1, _PIXELS_PER_BLOCK // pictures.shape[1] ** 2)))

    def align(number: int) -> _Block:
        first, second = pairs[slice(*blocks[number])].T
        return _align_block(pictures[first], pictures[second])

    with _quiet_threads():
        parts = list(stream_ordered(align, len(blocks), n_threads=n_workers, n_ahead=2 * n_workers))
    scores, mirrored, cropped, gains = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Alignment(scores, mirrored, cropped, gains)


def _quiet_threads() -> contextlib.AbstractContextManager[object]:
    """One thread for each product of matrices: they are small, and waiting for each other takes longer than they do."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingPackageError("threadpoolctl", "train", "to find copies of photos") from error
    limits: contextlib.AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def _align_block(first: NDArray[np.float32], second: NDArray[np.float32]) -> _Block:
    rough_first, rough_second = (_normalise(_shrink(x, _ROUGH_PX)) for x in (first, second))
    straight = np.einsum("pij,pij->p", rough_first, rough_second)
    turned = np.einsum("pij,pij->p", rough_first, rough_second[:, :, ::-1])
    scores = np.maximum(straight, turned).astype(np.float32)
    mirrored, cropped, gains = turned > straight, np.zeros_like(scores), np.ones_like(scores)
    near = np.flatnonzero(scores > _ROUGH_SCORE)
    if len(near):
        found = _align_near(first[near], second[near])
        scores[near], mirrored[near], cropped[near], gains[near] = found
    return scores, mirrored, cropped, gains


def _align_near(first: NDArray[np.float32], second: NDArray[np.float32]) -> _Block:
    """Try every crop of either picture, straight and mirrored, and refine the best one."""
    windows, matrices = _list_windows(_COARSE_PX)
    small_first, small_second = _shrink(first, _COARSE_PX), _shrink(second, _COARSE_PX)
    choices = []
    for whole, part in ((small_first, small_second), (small_second, small_first)):
        crops = np.einsum("aij,pjk,bxk->pabix", matrices, whole, matrices, optimize=True)
        crops = crops.reshape(len(first), -1, _COARSE_PX**2)
        lengths = np.einsum("pwm,pwm->pw", crops, crops) - np.square(crops.sum(axis=2)) / _COARSE_PX**2
        lengths = np.sqrt(np.maximum(lengths, 1e-3))
        targets = (_normalise(target).reshape(len(first), -1, 1) for target in (part, part[:, :, ::-1]))
        choices += [np.matmul(crops, target)[..., 0] / lengths for target in targets]
    table = np.stack(choices, axis=1)  # (P, 4, windows of both axes): two crops of the first, two of the second
    table[:, :, 0] += 1e-4  # the whole picture, where crops of it look the same
    # Where little was cut, either picture may look like a crop of the other from afar: both are tried.
    tries = [_refine_best(first, second, table[:, :2], windows), _refine_best(second, first, table[:, 2:], windows)]
    swapped = tries[1][0] > tries[0][0]
    scores, mirrored, cropped, gains = (np.where(swapped, other, one) for one, other in zip(*tries, strict=True))
    return scores, mirrored, cropped, np.where(swapped, 1 / np.maximum(gains, 1e-3), gains).astype(np.float32)


def _refine_best(
    whole: NDArray[np.float32], part: NDArray[np.float32], table: NDArray[np.float32], windows: NDArray[np.float64]
) -> _Block:
    """Refine the best of the crops of `whole` (P, 2, windows), to which `part` was held straight and mirrored."""
    kind, place = np.divmod(table.reshape(len(whole), -1).argmax(axis=1), table.shape[2])
    mirrored = kind == 1
    part = np.where(mirrored[:, None, None], part[:, :, ::-1], part)
    rows, columns = np.divmod(place, len(windows))
    window = np.concatenate([windows[rows], windows[columns]], axis=1)
    if whole.shape[1] > _MIDDLE_PX:  # from afar first: fine patterns lead astray from a few pixels on
        _, window, _ = _refine(_shrink(whole, _MIDDLE_PX), _shrink(part, _MIDDLE_PX), window)
    scores, window, gains = _refine(whole, part, window)
    return scores, mirrored, np.maximum(0, 1 - window[:, (1, 3)].min(axis=1)).astype(np.float32), gains


def _list_windows(side_px: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Windows along a side as (start, length), in shares of it, and the matrix (W, S, S) that samples each."""
    step = MAX_CROPPED / _N_STEPS
    windows = np.array([(i * step, 1 - n * step) for n in range(_N_STEPS + 1) for i in range(n + 1)])
    return windows, _sample_lines(windows[:, 0], windows[:, 1], side_px)


def _sample_lines(start: NDArray[np.float64], length: NDArray[np.float64], side_px: int) -> NDArray[np.float32]:
    """Matrices (P, S, S) that sample a line of S pixels at S places of a window, linearly, the border repeated."""
    place = side_px * start[:, None] + length[:, None] * (np.arange(side_px) + 0.5) - 0.5
    place = place.clip(0, side_px - 1)
    left = np.minimum(place.astype(np.intp), side_px - 2)
    share = (place - left).astype(np.float32)
    matrices = np.zeros((len(start), side_px, side_px), np.float32)
    rows, columns = np.ogrid[: len(start), :side_px]
    matrices[rows, columns, left] = 1 - share
    matrices[rows, columns, left + 1] += share
    return matrices


def _refine(
    whole: NDArray[np.float32], part: NDArray[np.float32], window: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
    """Move the window of `whole` (top, height, left, width) until it agrees with `part`, by Gauss-Newton."""
    side_px = whole.shape[1]
    down, across = np.gradient(whole, axis=(1, 2))
    place = ((np.arange(side_px) + 0.5) / side_px).astype(np.float32)
    target = _centre(part.reshape(len(part), 1, -1)).transpose(0, 2, 1)
    best, best_window = np.full(len(whole), -1, np.float32), window.copy()
    gains = np.ones(len(whole), np.float32)
    for _ in range(_N_ITERATIONS):
        vertical = _sample_lines(window[:, 0], window[:, 1], side_px)
        horizontal = _sample_lines(window[:, 2], window[:, 3], side_px).transpose(0, 2, 1)
        seen, seen_down, seen_across = (vertical @ x @ horizontal for x in (whole, down, across))
        scores = np.einsum("pij,pij->p", _normalise(seen), _normalise(part)).astype(np.float32)
        better = scores > best
        best_window[better] = window[better]
        best = np.maximum(best, scores)
        columns_of = [seen, seen_down, seen_down * place[:, None], seen_across, seen_across * place]
        # Less their means, a bias need not be fitted: damped like the others, it would draw the gain to the means.
        design = _centre(np.stack([x.reshape(len(whole), -1) for x in columns_of], axis=1))
        normal = (design @ design.transpose(0, 2, 1)).astype(np.float64)
        normal += (1e-4 * np.einsum("pii->p", normal)[:, None, None] / 5 + 1e-3) * np.eye(5)
        solved = np.linalg.solve(normal, (design @ target).astype(np.float64))[..., 0]
        gains = np.where(better, solved[:, 0], gains).astype(np.float32)
        moves = solved[:, 1:] / np.where(np.abs(solved[:, :1]) > 0.1, solved[:, :1], 1) / side_px
        window = window + np.clip(moves, -0.03, 0.03)
        window[:, (1, 3)] = window[:, (1, 3)].clip(1 - 1.5 * MAX_CROPPED, 1.02)
        window[:, (0, 2)] = window[:, (0, 2)].clip(-0.02, 1.02 - window[:, (1, 3)])
    return best, best_window, gains


def _centre(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows - rows.mean(axis=-1, keepdims=True), np.float32)


def _shrink(pictures: NDArray[np.float32], side_px: int) -> NDArray[np.float32]:
    n = pictures.shape[1] // side_px
    return np.asarray(pictures.reshape(len(pictures), side_px, n, side_px, n).mean(axis=(2, 4)), np.float32)


def _normalise(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pictures of mean 0 and norm 1, over the last two axes; one tone gives zeros."""
    centred = pictures - pictures.mean(axis=(-1, -2), keepdims=True)
    norms = np.sqrt(np.square(centred).sum(axis=(-1, -2), keepdims=True))
    return np.asarray(centred / np.maximum(norms, 1e-3), np.float32)
