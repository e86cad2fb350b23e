"""A network in an ONNX file gives the features that it gives elsewhere, from any tensor, whatever their names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pomona.backbone import choose_layer, find_backbone, list_layers
from pomona.embedding import Embedding, build_network
from pomona.engine import Engine
from pomona.errors import BackboneError, OptionError
from pomona.onnx_file import METADATA
from pomona.split import split_network

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _write(path: Path, *, shape: tuple[Any, ...] = ("batch", 3, 64, 64), opset: int = 13, metadata: str = "") -> Path:
    """A convolution, an average, a classifier; with the names that are taken in every network written here."""
    random = np.random.default_rng(0)
    weights = {
        "c0": random.standard_normal((5, 3, 3, 3)).astype(np.float32),
        "pixels": random.standard_normal((4, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "c0"], ["conv0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv0"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["average"]),
        helper.make_node("Flatten", ["average"], ["flat"]),
        helper.make_node("Gemm", ["flat", "pixels"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (shape[0], 4))],
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if metadata:
        helper.set_model_props(model, {METADATA: metadata, "license": "mit"})
    onnx.save(model, path)
    return path


def _compute_by_hand(path: Path, tensor: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    model.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    scaled = ((pixels / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2).astype(np.float32)
    found = np.asarray(ReferenceEvaluator(model).run([tensor], {"image": scaled})[0])
    table = found.mean(axis=(2, 3)) if found.ndim == 4 else found
    return np.asarray(table / np.linalg.norm(table, axis=1, keepdims=True))


@pytest.mark.parametrize(("tensor", "dim"), [("conv0", 5), ("features", 5), ("flat", 5), ("scores", 4)])
@pytest.mark.parametrize("opset", [11, 13, 18, 20])
def test_features_are_those_of_the_tensor(tmp_path: Path, tensor: str, dim: int, opset: int) -> None:
    path = _write(tmp_path / "small.onnx", opset=opset)
    backbone = find_backbone(f"onnx:{path}")
    assert [layer.name for layer in list_layers(backbone)] == ["conv0", "features", "average", "flat", "scores"]
    assert backbone.n_multiplications == 32 * 32 * 5 * 27 + 20
    embedding = Embedding((choose_layer(backbone, tensor),))
    assert embedding.dim == dim
    network = tmp_path / "network.onnx"
    network.write_bytes(build_network(embedding))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    got = Engine(network, n_workers=1).run(pixels)["features"]
    np.testing.assert_allclose(got, _compute_by_hand(path, tensor, pixels), rtol=1e-3, atol=1e-5)


def test_it_says_itself_how_photos_are_prepared(tmp_path: Path) -> None:
    facts = {"size_px": 96, "fit": "crop", "resample": "bicubic", "offset": [1, 2, 3], "scale": [4, 5, 6]}
    path = _write(tmp_path / "own.onnx", shape=("N", 3, "H", "H"), metadata=json.dumps(facts))
    backbone = find_backbone(f"onnx:{path}")
    found = backbone.preprocessing
    assert (found.size_px, found.fit, found.resample, found.offset) == (96, "crop", "bicubic", (1, 2, 3))
    assert backbone.licence == "mit"
    assert find_backbone(f"onnx:{path}", size_px=128).preprocessing.size_px == 128


def test_what_cannot_be_used_is_said_to_be(tmp_path: Path) -> None:
    path = _write(tmp_path / "small.onnx")
    with pytest.raises(OptionError, match=r"small\.onnx takes 64 pixels and no other, got 96"):
        find_backbone(f"onnx:{path}", size_px=96)
    with pytest.raises(OptionError, match="no module of torch"):
        split_network(find_backbone(f"onnx:{path}"), "conv0")
    with pytest.raises(OptionError, match=r"the nearest names are .*conv0"):
        choose_layer(find_backbone(f"onnx:{path}"), "conv")
    with pytest.raises(BackboneError, match="wanted an ONNX file, got: No such file"):
        find_backbone(f"onnx:{tmp_path / 'none.onnx'}")
    path.write_bytes(b"no network")
    with pytest.raises(BackboneError, match="wanted an ONNX network in one file"):
        find_backbone(f"onnx:{path}")
    with pytest.raises(BackboneError, match=r"wanted one input, float32 \(N, 3, S, S\)"):
        find_backbone(f"onnx:{_write(tmp_path / 'grey.onnx', shape=('N', 1, 64, 64))}")
    with pytest.raises(BackboneError, match=r"pomona\.preprocessing cannot be used"):
        find_backbone(f"onnx:{_write(tmp_path / 'odd.onnx', metadata='[1]')}")
