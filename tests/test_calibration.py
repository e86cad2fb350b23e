"""Ranges found on photos are those of the network's own activations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.backbone import find_backbone, list_blocks
from pomona.calibration import calibrate
from pomona.embedding import Embedding, load_network
from pomona.engine import Engine
from pomona.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_ranges_are_means_of_the_extremes_of_each_photo(tmp_path: Path) -> None:
    import onnx

    backbone = find_backbone("lite0", size_px=64)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    ranges = calibrate(backbone, iter(pixels), n_workers=1)
    names = [block.name for block in list_blocks("lite0")]
    assert [one.tensor for one in ranges] == names
    model = onnx.load(load_network(Embedding((backbone,))))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(model, tmp_path / "all.onnx")
    found = Engine(tmp_path / "all.onnx").run(pixels)
    for one in ranges:
        flat = found[one.tensor].reshape(len(pixels), -1)
        assert one.low == pytest.approx(float(flat.min(axis=1).mean()), abs=1e-3)
        assert one.high == pytest.approx(float(flat.max(axis=1).mean()), abs=1e-3)
    own = replace(backbone, precision="int8", ranges=ranges)
    embedding, shipped = Embedding((own,)), Embedding((replace(own, ranges=None),))
    assert embedding.key != shipped.key
    assert calibrate(own, pixels[:3]) == calibrate(backbone, pixels[:3])
    assert load_network(embedding) != load_network(shipped)


def test_no_photos_are_a_data_error() -> None:
    with pytest.raises(DataError, match="calibrate: wanted photos, got none"):
        calibrate(find_backbone("lite0", size_px=64), [])
