"""Batches of gradient training: which photos come when, mixed with each other, cropped as activations.

In: labels, a seed and the number of an epoch or batch; activations or pixels of a batch and its targets. Out: rows in
the order they come; mixed batches; random windows.
Why: what a batch holds follows from the seed and its number alone, so a run that was stopped sees the same batches as
one that was not. Windows and mirrors are cut from activations as they lie in the cache, without a copy of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pomona.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, dtype

BalanceName = Literal["none", "class-weights", "sampling"]
"""What is done about classes with few photos: nothing, weights in the loss, or drawing them more often."""

MixName = Literal["none", "mixup", "cutmix", "both"]
"""How photos of a batch are mixed; `both` draws one of the two for each batch."""


def make_generator(seed: int, *counters: int) -> np.random.Generator:
    """Make the source of chance of one epoch or step: the same numbers give the same draws.

    Parameters
    ----------
    seed : int
        Of the run, 0 or more.
    *counters : int
        What tells this draw from others, such as the epoch and the step, 0 or more.

    Examples
    --------
    >>> make_generator(7, 3).random() == make_generator(7, 3).random() != make_generator(7, 4).random()
    True
    """
    return np.random.default_rng((seed, *counters))


def draw_epoch(labels: NDArray[np.intp], *, seed: int, epoch: int, balance: BalanceName = "none") -> NDArray[np.intp]:
    """Draw the order in which photos come in an epoch.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class numbers of the photos.
    seed, epoch : int
        The order depends on these alone.
    balance : BalanceName
        Under `sampling` each class that has photos comes equally often, to within one; its photos repeat, or some of
        them wait for another epoch. Otherwise each photo comes once.

    Returns
    -------
    ndarray of shape (N,), int
        Numbers of rows.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 0, 0, 1])
    >>> np.bincount(labels[draw_epoch(labels, seed=0, epoch=0, balance="sampling")]).tolist()
    [3, 3]
    """
    generator = make_generator(seed, epoch)
    if balance != "sampling":
        return generator.permutation(len(labels))
    classes = generator.permutation(np.unique(labels))
    n_each, n_more = divmod(len(labels), len(classes)) if len(classes) else (0, 0)
    drawn = [
        _draw_rows(np.flatnonzero(labels == label), n_each + (place < n_more), generator)
        for place, label in enumerate(classes)
    ]
    return generator.permutation(np.concatenate([np.zeros(0, np.intp), *drawn]))


def draw_batch(
    labels: NDArray[np.intp], *, seed: int, number: int, size: int, balance: BalanceName = "none"
) -> NDArray[np.intp]:
    """Draw the photos of a batch: batches are cut from epochs that follow one another, so none leaves photos out.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class numbers of the photos.
    seed, number : int
        The photos depend on these alone; batches are counted from 0.
    size : int
        Photos a batch, 1 or more.
    balance : BalanceName
        As of `draw_epoch`.

    Returns
    -------
    ndarray of shape (size,), int
        Numbers of rows.

    Examples
    --------
    >>> labels = np.zeros(5, np.intp)
    >>> two = np.concatenate([draw_batch(labels, seed=0, number=number, size=4) for number in (0, 1)])
    >>> sorted(two[:5].tolist()), len(two)
    ([0, 1, 2, 3, 4], 8)
    """
    begin, end, n = number * size, (number + 1) * size, len(labels)
    parts = []
    for epoch in range(begin // n, (end - 1) // n + 1):
        order = draw_epoch(labels, seed=seed, epoch=epoch, balance=balance)
        parts.append(order[max(0, begin - epoch * n) : end - epoch * n])
    return np.concatenate(parts)


def _draw_rows(rows: NDArray[np.intp], n_drawn: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Draw rows so that none comes twice more often than another."""
    n_rounds, n_rest = divmod(n_drawn, len(rows))
    return np.concatenate([np.tile(rows, n_rounds), generator.permutation(rows)[:n_rest]])


# --- mixing ---------------------------------------------------------------------------------------------------------


def mix(
    x: Tensor,
    targets: Tensor,
    *,
    kind: MixName,
    alpha: float,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix each photo of a batch with the one before it, and its target in the same shares.

    Mixup adds the two, in shares from a beta distribution. Cutmix puts a box of the other in the same place; shares are
    the areas. Batches come in random order, so the neighbour is a random photo.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W), (N, T, C) or (N, D)
        Pixels or activations; tokens and vectors know mixup alone, which `both` then is. Not changed.
    targets : Tensor of shape (N, K), float
        Rows are distributions, and stay so. Not changed.
    kind : MixName
        How.
    alpha : float
        Both parameters of the beta distribution: near 0 photos are hardly mixed, at 1 all shares are as likely.
    generator : numpy.random.Generator
        From `make_generator`.

    Returns
    -------
    x, targets : Tensor
        New ones of the same shapes; maps keep their memory format.

    Raises
    ------
    OptionError
        If `alpha` is not above 0, or tokens shall be cut.

    References
    ----------
    Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018. Yun et al., "CutMix", ICCV 2019.
    """
    import torch

    if kind == "none" or len(x) < 2:
        return x, targets
    if alpha <= 0:
        raise OptionError(f"mixing: wanted an alpha above 0, got {alpha:g}")
    if kind == "cutmix" and x.ndim != 4:
        raise OptionError("mixing: cutmix needs maps with a height and a width, and these are tokens; take mixup")
    cut = kind == "cutmix" or (kind == "both" and x.ndim == 4 and generator.random() < 0.5)
    shares = generator.beta(alpha, alpha, len(x))
    if cut:
        mixed, shares = _paste_boxes(x, shares, generator)
    else:
        mixed = _blend(x, shares)
    kept = torch.from_numpy(shares).to(targets)[:, None]
    return mixed, kept * targets + (1 - kept) * _shift(targets)


def _shift(x: Tensor) -> Tensor:
    """Each row's neighbour in its place; `roll` would forget the memory format."""
    import torch

    shifted = torch.empty_like(x)
    shifted[1:] = x[:-1]
    shifted[0] = x[-1]
    return shifted


def _blend(x: Tensor, shares: NDArray[np.float64]) -> Tensor:
    import torch

    kept = torch.from_numpy(shares).to(x).reshape(-1, *(1,) * (x.ndim - 1))
    return _shift(x).lerp_(x, kept)


def _paste_boxes(
    x: Tensor, shares: NDArray[np.float64], generator: np.random.Generator
) -> tuple[Tensor, NDArray[np.float64]]:
    """Paste boxes around random places, cut off at the edge; shares become what is left of each photo."""
    sides = np.array(x.shape[2:])
    centres = generator.integers(0, sides, size=(len(x), 2))
    halves = np.sqrt(1 - shares)[:, None] * sides / 2
    starts = np.clip(np.rint(centres - halves), 0, sides).astype(int)
    ends = np.clip(np.rint(centres + halves), 0, sides).astype(int)
    mixed = x.clone()
    for row, ((top, left), (bottom, right)) in enumerate(zip(starts, ends, strict=True)):
        mixed[row, :, top:bottom, left:right] = x[row - 1, :, top:bottom, left:right]
    return mixed, 1 - (ends - starts).prod(axis=1) / sides.prod()


# --- windows --------------------------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Where each sample of a batch is cropped.

    Parameters
    ----------
    tops, lefts : ndarray of shape (N,), int
        First row and column.
    mirrored : ndarray of shape (N,), bool
        Whether left and right change places.
    size : int
        Height and width.
    """

    tops: NDArray[np.intp]
    lefts: NDArray[np.intp]
    mirrored: NDArray[np.bool_]
    size: int


def draw_windows(n: int, height: int, width: int, size: int, generator: np.random.Generator) -> Windows:
    """Draw a random window for each of `n` samples; half of them are mirrored.

    Parameters
    ----------
    n : int
        Samples.
    height, width : int
        Of the maps.
    size : int
        Side of the windows, at most that of the maps.
    generator : numpy.random.Generator
        From `make_generator`.

    Raises
    ------
    ValueError
        If the windows are larger than the maps.
    """
    if not 0 < size <= min(height, width):
        raise ValueError(f"wanted windows of 1 to {min(height, width)} positions, got {size}")
    tops = generator.integers(0, height - size + 1, n)
    lefts = generator.integers(0, width - size + 1, n)
    return Windows(tops, lefts, generator.random(n) < 0.5, size)


def centre_windows(n: int, height: int, width: int, size: int) -> Windows:
    """The middle window of each of `n` samples, none mirrored."""
    tops, lefts = (np.full(n, (side - size) // 2) for side in (height, width))
    return Windows(tops, lefts, np.zeros(n, np.bool_), size)


def crop_windows(
    maps: Tensor, windows: Windows, *, rows: NDArray[np.intp] | None = None, dtype: dtype | None = None
) -> Tensor:
    """Cut a window from each sample.

    Parameters
    ----------
    maps : Tensor of shape (M, C, H, W), channels_last
        Activations; a file mapped to memory as (M, H, W, C) and permuted is one, and only what is asked for is read.
    windows : Windows
        N of them.
    rows : ndarray of shape (N,), int, optional
        The sample of each window; None where N is M and all come in order.
    dtype : torch.dtype, optional
        Of the result; None is that of `maps`.

    Returns
    -------
    Tensor of shape (N, C, size, size), channels_last
        The windows.

    Raises
    ------
    ValueError
        If the maps do not lie as channels_last.

    Notes
    -----
    All positions are gathered as rows of C numbers by one `index_select`, which torch spreads over its threads:
    36 x 36 x 48 to 28 x 28 takes 14 us a sample on one thread, where a loop over slices takes 18 to 25.
    """
    import torch

    if not maps.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("wanted maps in channels_last, where positions lie one after another; convert them once")
    _, n_channels, height, width = maps.shape
    samples = np.arange(len(windows.tops)) if rows is None else rows
    steps = np.arange(windows.size)
    across = np.where(windows.mirrored[:, None], windows.size - 1 - steps, steps) + windows.lefts[:, None]
    lines = samples[:, None] * height + windows.tops[:, None] + steps
    places = torch.from_numpy((lines[:, :, None] * width + across[:, None, :]).reshape(-1)).to(maps.device)
    cut = maps.permute(0, 2, 3, 1).reshape(-1, n_channels).index_select(0, places)
    return cut.to(dtype or maps.dtype).view(-1, windows.size, windows.size, n_channels).permute(0, 3, 1, 2)
