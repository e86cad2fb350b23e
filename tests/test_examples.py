"""Photos as training sees them: the views are as different as they are meant to be."""

from __future__ import annotations

import numpy as np
import pytest

from pomona.augmentation import augment_pixels

torch = pytest.importorskip("torch", reason="gradients are torch's")

from pomona.examples import Examples, _list_views, _Source  # noqa: E402
from pomona.network import Network  # noqa: E402


def test_second_view_of_a_network_of_fixed_sizes_is_always_mirrored() -> None:
    pytest.importorskip("kornia", reason="augmentation is kornia's")
    network = Network(torch.nn.Identity(), "layer1", "tokens", False, (0.0,) * 3, (1.0,) * 3)
    whole, second = _list_views(8, network, (), 1)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert not whole.augmentation
    for seed in range(8):
        assert np.array_equal(augment_pixels(pixels, second.augmentation, seed), pixels[:, ::-1])


def test_photos_are_read_whole_or_as_the_middle_of_the_larger_view_mirrored() -> None:
    maps = [torch.from_numpy(np.random.default_rng(side).random((3, side, side, 2), np.float32)) for side in (9, 11)]
    sources = tuple(_Source(one.permute(0, 3, 1, 2), np.array([2, 0])) for one in maps)
    examples = Examples(None, sources, is_elastic=True)  # type: ignore[arg-type] - reading asks nothing of it
    rows = np.array([1, 0])
    assert torch.equal(examples.read(rows), maps[0][[0, 2]].permute(0, 3, 1, 2))
    middle = maps[1][[0, 2], 2:9, 2:9].permute(0, 3, 1, 2)  # 0.78 of 9 are 7
    assert torch.equal(examples.read(rows, mirrored=True), middle.flip(3))
