"""Batches depend on the seed and their number alone; mixing keeps shares exact; windows are what slices give."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.batches import (
    MixName,
    Windows,
    centre_windows,
    crop_windows,
    draw_epoch,
    draw_windows,
    make_generator,
    mix,
)
from pomona.errors import OptionError

torch = pytest.importorskip("torch", reason="gradient training needs torch: pip install 'pomona[tune]'")

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(np.array)
SEEDS = st.integers(0, 2**31)


# --- epochs ---------------------------------------------------------------------------------------------------------


@given(LABELS, SEEDS)
def test_each_photo_comes_once_an_epoch(labels: np.ndarray, seed: int) -> None:
    for balance in ("none", "class-weights"):
        assert sorted(draw_epoch(labels, seed=seed, epoch=3, balance=balance)) == list(range(len(labels)))


@given(LABELS, SEEDS, st.integers(0, 5))
def test_sampling_draws_every_class_equally_often(labels: np.ndarray, seed: int, epoch: int) -> None:
    rows = draw_epoch(labels, seed=seed, epoch=epoch, balance="sampling")
    assert len(rows) == len(labels)
    drawn = np.bincount(labels[rows], minlength=7)[np.unique(labels)]
    assert drawn.max() - drawn.min() <= 1
    times = np.bincount(rows, minlength=len(labels))
    for label in np.unique(labels):  # nor does a photo come twice more often than another of its class
        assert np.ptp(times[labels == label]) <= 1


def test_an_epoch_depends_on_the_seed_and_its_number_alone() -> None:
    labels = np.repeat(np.arange(5), (40, 30, 20, 9, 1))
    for balance in ("none", "sampling"):
        first = draw_epoch(labels, seed=1, epoch=2, balance=balance)
        np.random.default_rng(0).random(7)
        np.testing.assert_array_equal(first, draw_epoch(labels, seed=1, epoch=2, balance=balance))
        for seed, epoch in ((1, 3), (2, 2), (2, 1)):
            assert not np.array_equal(first, draw_epoch(labels, seed=seed, epoch=epoch, balance=balance))
    assert draw_epoch(np.zeros(0, int), seed=0, epoch=0, balance="sampling").tolist() == []


def test_over_epochs_sampling_shows_every_photo_of_a_large_class() -> None:
    labels = np.repeat([0, 1, 2], (60, 3, 3))
    seen = {row for epoch in range(20) for row in draw_epoch(labels, seed=0, epoch=epoch, balance="sampling")}
    assert seen == set(range(66))


# --- mixing ---------------------------------------------------------------------------------------------------------


def batch(n: int = 6, n_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Maps whose numbers say which photo they are, and one-hot targets."""
    x = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 3, 9, 7)
    return x.contiguous(memory_format=torch.channels_last), torch.eye(n_classes)[torch.arange(n) % n_classes]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["mixup", "cutmix", "both"]), st.floats(0.05, 4))
def test_targets_stay_distributions_and_say_what_is_in_the_picture(seed: int, kind: MixName, alpha: float) -> None:
    x, targets = batch()
    kept_x, kept_targets = x.clone(), targets.clone()
    mixed, soft = mix(x, targets, kind=kind, alpha=alpha, generator=make_generator(seed))
    assert torch.equal(x, kept_x)
    assert torch.equal(targets, kept_targets)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert (soft >= 0).all()
    for row in range(6):  # the mean of a photo is shared as its target is
        share = soft[row, row % 4].item()
        own, other = row + 1.0, (row - 1) % 6 + 1.0
        assert mixed[row].mean().item() == pytest.approx(share * own + (1 - share) * other, abs=1e-4)
        assert soft[row, (row - 1) % 6 % 4].item() == pytest.approx(1 - share, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_cutmix_pastes_one_box_and_counts_it_exactly(seed: int) -> None:
    x, targets = batch()
    mixed, soft = mix(x, targets, kind="cutmix", alpha=1.0, generator=make_generator(seed))
    for row in range(6):
        pasted = (mixed[row] != x[row]).numpy()
        assert (pasted == pasted[0]).all()
        assert np.array_equal(pasted[0], np.outer(pasted[0].any(1), pasted[0].any(0)))
        for side in (pasted[0].any(1), pasted[0].any(0)):  # its rows follow one another
            assert np.abs(np.diff(np.r_[0, side.astype(int), 0])).sum() <= 2
        assert soft[row, row % 4].item() == pytest.approx(1 - pasted[0].mean(), abs=1e-6)


def test_shares_follow_the_beta_distribution() -> None:
    x, targets = torch.zeros(4000, 1), torch.eye(2)[torch.arange(4000) % 2]
    for alpha in (0.2, 1.0, 3.0):
        _, soft = mix(x, targets, kind="mixup", alpha=alpha, generator=make_generator(0))
        shares = soft[torch.arange(4000), torch.arange(4000) % 2]
        assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_both_draws_either_and_tokens_are_only_mixed() -> None:
    x, targets = batch()
    kinds = [
        bool(torch.equal(mix(x, targets, kind="both", alpha=1.0, generator=make_generator(seed))[0] % 1, x * 0))
        for seed in range(40)
    ]
    assert 8 < sum(kinds) < 32
    tokens = torch.arange(6.0)[:, None, None].expand(6, 5, 2)
    mixed, _ = mix(tokens, targets, kind="both", alpha=1.0, generator=make_generator(0))
    assert (mixed == mixed[:, :1, :1]).all()
    with pytest.raises(OptionError, match="cutmix needs maps with a height and a width"):
        mix(tokens, targets, kind="cutmix", alpha=1.0, generator=make_generator(0))
    with pytest.raises(OptionError, match="wanted an alpha above 0, got 0"):
        mix(x, targets, kind="mixup", alpha=0.0, generator=make_generator(0))


def test_the_same_numbers_mix_alike_and_nothing_is_nothing() -> None:
    x, targets = batch()
    for kind in ("mixup", "cutmix", "both"):
        one, two, other = (
            mix(x, targets, kind=cast("MixName", kind), alpha=1.0, generator=make_generator(5, step))
            for step in (1, 1, 2)
        )
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[1], other[1])
    for few, kind in ((6, "none"), (1, "mixup")):
        same, soft = mix(x[:few], targets[:few], kind=cast("MixName", kind), alpha=1.0, generator=make_generator(0))
        assert torch.equal(same, x[:few])
        assert torch.equal(soft, targets[:few])


# --- windows --------------------------------------------------------------------------------------------------------


def cut(maps: Tensor, windows: Windows, rows: np.ndarray) -> Tensor:
    """The plain way: slices, one by one."""
    pieces = []
    for row, top, left, mirrored in zip(rows, windows.tops, windows.lefts, windows.mirrored, strict=True):
        piece = maps[row, :, top : top + windows.size, left : left + windows.size]
        pieces.append(piece.flip(2) if mirrored else piece)
    return torch.stack(pieces)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.data())
def test_windows_are_what_slices_give(seed: int, height: int, width: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(height, width)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    generator = make_generator(seed)
    maps = torch.from_numpy(generator.normal(size=(5, 3, height, width)).astype(np.float32)).to(dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    rows = generator.integers(0, 5, 8)
    windows = draw_windows(8, height, width, size, generator)
    found = crop_windows(maps, windows, rows=rows, dtype=torch.float32)
    assert torch.equal(found, cut(maps, windows, rows).float())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert crop_windows(maps, windows, rows=rows).dtype == dtype


def test_windows_reach_every_place_and_half_are_mirrored() -> None:
    windows = draw_windows(4000, 9, 7, 5, make_generator(0))
    assert set(windows.tops.tolist()) == set(range(5))
    assert set(windows.lefts.tolist()) == set(range(3))
    assert windows.mirrored.mean() == pytest.approx(0.5, abs=0.03)
    middle = centre_windows(2, 9, 7, 5)
    assert (middle.tops.tolist(), middle.lefts.tolist(), middle.mirrored.any()) == ([2, 2], [1, 1], False)


def test_windows_are_cut_from_a_file_in_memory(tmp_path: Path) -> None:
    values = make_generator(0).normal(size=(4, 6, 6, 3)).astype(np.float16)
    values.tofile(tmp_path / "maps")
    mapped = np.memmap(tmp_path / "maps", np.float16, "c", shape=(4, 6, 6, 3))
    maps = torch.from_numpy(mapped).permute(0, 3, 1, 2)
    windows = centre_windows(4, 6, 6, 2)
    assert torch.equal(crop_windows(maps, windows), torch.from_numpy(values[:, 2:4, 2:4]).permute(0, 3, 1, 2))


def test_windows_that_cannot_be_are_refused() -> None:
    for size in (0, 8):
        with pytest.raises(ValueError, match=f"wanted windows of 1 to 7 positions, got {size}"):
            draw_windows(1, 9, 7, size, make_generator(0))
    with pytest.raises(ValueError, match="wanted maps in channels_last"):
        crop_windows(torch.zeros(2, 3, 5, 5), centre_windows(2, 5, 5, 2))
