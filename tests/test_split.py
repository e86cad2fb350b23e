"""Trunk and tail are the network wherever it is cut, and a written network takes the weights it is given.

What each cut of each kind of network gives is compared with its package in test_pretrained.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona.backbone import PIXELS, Backbone, find_backbone, list_layers
from pomona.engine import Engine
from pomona.errors import BackboneError, OptionError
from pomona.graph import GraphWriter
from pomona.layers import FEATURES
from pomona.split import Split, split_network, write_network

torch = pytest.importorskip("torch", reason="networks of other packages need torch")
transformers = pytest.importorskip("transformers", reason="these networks are made by transformers")
pytest.importorskip("onnxscript", reason="networks are written as ONNX by torch with onnxscript")

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

SIZE_PX = 64
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def _save(network: Any, folder: Path) -> Backbone:
    for name, tensor in network.named_buffers():  # batch norms that have seen something
        if "running_var" in name:
            tensor.copy_(0.5 + torch.rand_like(tensor))
    network.save_pretrained(folder)
    facts = {"size": {"height": SIZE_PX, "width": SIZE_PX}, "image_mean": MEAN, "image_std": DEVIATION}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return find_backbone(f"hf:{folder}", size_px=SIZE_PX)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Batch norms and maps."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic")
    return _save(transformers.ResNetModel(config), tmp_path_factory.mktemp("networks") / "resnet")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Tokens, and half of all numbers dropped out in training."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    dropped = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    config = transformers.ViTConfig(**small, **dropped, image_size=SIZE_PX, patch_size=16)
    return _save(transformers.ViTModel(config), tmp_path_factory.mktemp("networks") / "vit")


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, SIZE_PX, SIZE_PX, 3), np.uint8)


def _run_split(split: Split, pixels: NDArray[np.uint8]) -> Tensor:
    with torch.no_grad():
        return split.tail(split.trunk(split.scale_pixels(torch.from_numpy(pixels))))


def _run_written(
    backbone: Backbone, last: str, pixels: NDArray[np.uint8], folder: Path, state: Mapping[str, Tensor] | None = None
) -> NDArray[np.float32]:
    graph = GraphWriter()
    preprocessing = backbone.preprocessing
    x = graph.scale("pixels", preprocessing.offset, preprocessing.scale)
    name, layer = write_network(graph, backbone, x, last, state=state)
    graph.add("Identity", [name], name="out")
    content = graph.to_bytes(("pixels", ("N", SIZE_PX, SIZE_PX, 3)), ("out", ("N", *layer.shape)))
    (folder / "network.onnx").write_bytes(content)
    (found,) = Engine(folder / "network.onnx", n_workers=1).run(pixels).values()
    return found


# --- cut ------------------------------------------------------------------------------------------------------------


def test_pixels_are_scaled_channel_by_channel(resnet: Backbone, pixels: NDArray[np.uint8]) -> None:
    wanted = ((pixels / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2)
    scaled = split_network(resnet, PIXELS).scale_pixels(torch.from_numpy(pixels))
    assert scaled.dtype == torch.float32
    np.testing.assert_allclose(scaled.numpy(), wanted, rtol=1e-5, atol=1e-5)
    # one number stands for all three channels
    plain = replace(resnet, preprocessing=replace(resnet.preprocessing, offset=10.0, scale=2.0))
    split = split_network(plain, PIXELS)
    assert (split.offset, split.scale) == ((10.0,) * 3, (2.0,) * 3)
    scaled = split.scale_pixels(torch.from_numpy(pixels))
    np.testing.assert_allclose(scaled.numpy(), (pixels.transpose(0, 3, 1, 2) - 10.0) / 2)


def test_at_the_pixels_all_is_tail(resnet: Backbone, vit: Backbone, pixels: NDArray[np.uint8]) -> None:
    for backbone in (resnet, vit):
        whole = split_network(backbone, PIXELS)
        assert (whole.kind, whole.shape) == ("map", (3, SIZE_PX, SIZE_PX))
        assert not whole.trunk.state_dict()
        cut = next(layer.name for layer in list_layers(backbone)[3:] if layer.is_cut)
        parts = split_network(backbone, cut)
        assert set(whole.tail.state_dict()) == set(parts.trunk.state_dict()) | set(parts.tail.state_dict())
        assert not set(dict(parts.trunk.named_parameters())) & set(dict(parts.tail.named_parameters()))
        torch.testing.assert_close(_run_split(whole, pixels), _run_split(parts, pixels), rtol=1e-4, atol=1e-5)


def test_a_tail_may_end_before_the_network_does(resnet: Backbone, pixels: NDArray[np.uint8]) -> None:
    end = "encoder.stages.0"
    maps = _run_split(split_network(resnet, "embedder", last=end, pooled=False), pixels)
    split = split_network(resnet, "embedder", last=end)
    assert (split.last.name, maps.shape[1:]) == (end, split.last.shape)
    means = maps.mean(dim=(2, 3))
    torch.testing.assert_close(_run_split(split, pixels), means / means.norm(dim=1, keepdim=True))
    assert not any("stages.1" in name for name in split.tail.state_dict())
    assert split_network(resnet, "embedder").last.name == FEATURES


def test_a_tail_trains_as_it_predicts(resnet: Backbone, vit: Backbone, pixels: NDArray[np.uint8]) -> None:
    for backbone in (resnet, vit):
        split = split_network(backbone, PIXELS)
        split.tail.train()
        before = {name: value.clone() for name, value in split.tail.named_buffers()}
        wanted = _run_split(split_network(backbone, PIXELS), pixels)
        for _ in range(2):
            found = split.tail(split.scale_pixels(torch.from_numpy(pixels)))
            assert found.requires_grad
            assert torch.equal(found, wanted)
        assert all(torch.equal(value, before[name]) for name, value in split.tail.named_buffers())
    assert "embedder.embedder.normalization.running_mean" in dict(split_network(resnet, PIXELS).tail.named_buffers())


def test_layers_that_do_not_exist_are_refused(resnet: Backbone) -> None:
    for layer, last in (("encoder.stages.9", FEATURES), ("embedder", "encoder.stages.9")):
        with pytest.raises(OptionError, match=r"there is no 'encoder\.stages\.9'; the nearest names are encoder\.stag"):
            split_network(resnet, layer, last=last)
    with pytest.raises(OptionError, match=r"there is no 'encoder\.stages\.9'"):
        write_network(GraphWriter(), resnet, "x", "encoder.stages.9")


def test_a_tail_that_ends_below_the_cut_is_refused(resnet: Backbone) -> None:
    with pytest.raises(OptionError, match="does not cut the network in two"):
        split_network(resnet, "encoder.stages.1", last="embedder")


def test_other_weights_than_the_backbone_had_are_refused(resnet: Backbone) -> None:
    changed = replace(resnet, weights_sha256="0" * 64)
    with pytest.raises(BackboneError, match=rf"weights changed: wanted sha256 0+, got {resnet.weights_sha256}"):
        split_network(changed, "embedder")
    with pytest.raises(BackboneError, match="the weights changed"):
        write_network(GraphWriter(), changed, "x", FEATURES)


# --- written --------------------------------------------------------------------------------------------------------


def test_weights_of_any_format_are_written_and_its_own_stay_as_they_are(
    resnet: Backbone, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    split = split_network(resnet, "encoder.stages.0", pooled=False)
    own = {name: value.clone() for name, value in split.tail.state_dict().items()}
    plain = _run_split(split, pixels).numpy()
    state = {}
    with torch.no_grad():
        for name, value in split.tail.state_dict().items():  # with the statistics of batch norms
            if "num_batches" not in name:
                changed = (value * (1 + 0.5 * torch.rand_like(value))).half()
                state[name] = changed.to(memory_format=torch.channels_last) if changed.ndim == 4 else changed
                value.copy_(changed)
    assert not all(value.is_contiguous() for value in state.values())
    wanted = _run_split(split, pixels).numpy()
    assert np.linalg.norm(wanted - plain) > 0.05 * np.linalg.norm(plain) > 0
    got = _run_written(resnet, FEATURES, pixels, tmp_path, state)
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, atol=1e-3 * np.abs(wanted).max())
    after = split_network(resnet, "encoder.stages.0").tail.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in after.items())


def test_weights_above_the_wanted_layer_change_nothing(
    resnet: Backbone, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    split = split_network(resnet, "encoder.stages.0")
    state = {name: torch.zeros_like(value) for name, value in split.tail.state_dict().items()}
    with torch.no_grad():
        wanted = split.trunk(split.scale_pixels(torch.from_numpy(pixels))).numpy()
    assert wanted.std() > 1e-2
    got = _run_written(resnet, "encoder.stages.0", pixels, tmp_path, state)
    np.testing.assert_allclose(got, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("head.weight", (2, 8), "that the network has"),
        ("embedder.embedder.convolution.weight", (4,), r"of shape \(4, 3, "),
    ],
)
def test_weights_that_do_not_fit_are_refused(resnet: Backbone, name: str, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(OptionError, match=rf"state: wanted weights {wanted}.*, got {name} of shape \({shape[0]},"):
        write_network(GraphWriter(), resnet, "x", FEATURES, state={name: torch.zeros(shape)})


def test_an_onnx_file_takes_no_weights_and_has_to_be_the_same(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    shapes = (("image", ("N", 3, SIZE_PX, SIZE_PX)), ("out", ("N", 3, 1, 1)))
    taken, given = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes)
    node = helper.make_node("GlobalAveragePool", ["image"], ["out"])
    model = helper.make_model(
        helper.make_graph([node], "small", [taken], [given]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(model, tmp_path / "small.onnx")
    backbone = find_backbone(f"onnx:{tmp_path / 'small.onnx'}")
    _, layer = write_network(GraphWriter(), backbone, "x", "out")
    assert (layer.name, layer.shape) == ("out", (3, 1, 1))
    for refused, state in ((backbone, {"weight": torch.zeros(1)}), (replace(backbone, weights_sha256="0" * 64), None)):
        with pytest.raises(BackboneError, match="the file changed, or other weights are to be put into it"):
            write_network(GraphWriter(), refused, "x", "out", state=state)
