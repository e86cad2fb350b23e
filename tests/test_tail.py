"""The trainable tail gives the features of the network that predicts, before and after its weights were changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.backbone import PIXELS, Backbone, Tuned, find_backbone, list_layers
from pomona.embedding import Embedding, build_network, build_trunk
from pomona.engine import Engine
from pomona.errors import OptionError
from pomona.files import hash_bytes

torch = pytest.importorskip("torch", reason="gradients are torch's")

from safetensors.numpy import save  # noqa: E402 - it comes with torch

from pomona.tail import LiteTail, _activate, _Depthwise, _pad_same  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CASES = [
    ("lite0", 64, "stage3", "average"),
    ("lite0", 64, "stage3", "second-order"),
    ("lite0", 75, "stage3", "second-order"),  # 75, 38, 19, 10, 5, 3: odd sides at both kinds of stride
    ("lite0", 75, "stage1", "average"),
    ("lite0", 64, "stage4", "second-order"),  # its first cut is what comes in
    ("lite0", 64, PIXELS, "average"),
    ("lite0", 75, PIXELS, "second-order"),
    ("lite2", 64, "stage3", "second-order"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def photos(rendered: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(rendered.rglob("*_0001.jpg"))]


def _embed(name: str, size_px: int, pooling: str = "average", precision: str = "f32") -> Embedding:
    return Embedding((replace(find_backbone(name, size_px=size_px), precision=precision),), pooling)  # type: ignore[arg-type]


def _read(backbone: Backbone, photos: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([backbone.preprocessing.read(photo) for photo in photos])


def _run(content: bytes, pixels: NDArray[np.uint8], folder: Path, output: str) -> NDArray[np.float32]:
    path = folder / f"{hash_bytes(content)[:12]}.onnx"
    path.write_bytes(content)
    return Engine(path, n_workers=1).run(pixels)[output]


def _feed(backbone: Backbone, layer: str, pixels: NDArray[np.uint8], folder: Path) -> torch.Tensor:
    """What the tail takes: activations of the frozen trunk, or scaled pixels."""
    if layer == PIXELS:
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    return torch.from_numpy(_run(build_trunk(backbone, layer), pixels, folder, "activations"))


def _assert_close(got: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float = 1e-5) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2 * np.abs(wanted).max()  # or all of this proves nothing


def _step(tail: LiteTail, x: torch.Tensor, lr: float) -> None:
    """Change every trainable weight once."""
    optimizer = torch.optim.Adam([p for p in tail.parameters() if p.requires_grad], lr=lr)
    features = tail(x)
    (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()  # norms of parts of them are fixed
    optimizer.step()


# --- the same features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size_px", "layer", "pooling"), CASES)
def test_tail_gives_the_features_of_the_network(
    name: str, size_px: int, layer: str, pooling: str, photos: list[bytes], tmp_path: Path
) -> None:
    embedding = _embed(name, size_px, pooling)
    (backbone,) = embedding.backbones
    pixels = _read(backbone, photos)
    with torch.no_grad():
        got = LiteTail(embedding, layer, trains_depthwise=layer == PIXELS)(_feed(backbone, layer, pixels, tmp_path))
    _assert_close(got.numpy(), _run(build_network(embedding), pixels, tmp_path, "features"))


def test_features_in_bfloat16_are_about_the_same(photos: list[bytes], tmp_path: Path) -> None:
    embedding = _embed("lite0", 64)
    (backbone,) = embedding.backbones
    pixels = _read(backbone, photos)
    x = _feed(backbone, "stage3", pixels, tmp_path)
    with torch.no_grad():
        got = LiteTail(embedding, "stage3", dtype=torch.bfloat16)(x).numpy()
    assert got.dtype == np.float32
    wanted = _run(build_network(embedding), pixels, tmp_path, "features")
    assert 0 < np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("layer", "pooling", "precision"),
    [
        ("stage3", "average", "f32"),
        ("stage3", "second-order", "f32"),
        (PIXELS, "average", "f32"),
        ("stage3", "average", "int8"),
        ("stage5", "average", "int8"),
        ("stage5.1", "average", "int8"),  # within a stage
        ("stage4.2", "second-order", "f32"),
    ],
)
def test_changed_weights_give_the_same_features_where_they_predict(
    layer: str, pooling: str, precision: str, photos: list[bytes], tmp_path: Path
) -> None:
    embedding = _embed("lite0", 64, pooling, precision)
    (backbone,) = embedding.backbones
    pixels = _read(backbone, photos)
    x = _feed(backbone, layer, pixels, tmp_path)
    tail = LiteTail(embedding, layer, trains_depthwise=layer == PIXELS)
    with torch.no_grad():
        before = tail(x).numpy()
    _step(tail, x, 1e-2)
    with torch.no_grad():
        after = tail(x).numpy()
    assert np.linalg.norm(after - before) > 1e-2 * np.linalg.norm(before)
    content = save(tail.state())
    (tmp_path / "tail.safetensors").write_bytes(content)
    tuned = replace(backbone, tuned=Tuned(layer, tmp_path / "tail.safetensors", hash_bytes(content)))
    changed = replace(embedding, backbones=(tuned,))
    _assert_close(_run(build_network(changed), pixels, tmp_path, "features"), after)
    # And training can go on from there.
    with torch.no_grad():
        _assert_close(LiteTail(changed, layer)(x).numpy(), after)


# --- what is trained ------------------------------------------------------------------------------------------------


def test_depthwise_filters_stay_as_they_are_and_all_else_moves(photos: list[bytes], tmp_path: Path) -> None:
    embedding = _embed("lite0", 64)
    (backbone,) = embedding.backbones
    tail = LiteTail(embedding, "stage5")
    before = {name: value.copy() for name, value in tail.state().items()}
    _step(tail, _feed(backbone, "stage5", _read(backbone, photos), tmp_path), 1e-3)
    moved = {name for name, value in tail.state().items() if not np.array_equal(value, before[name])}
    frozen = {name for name in before if "depthwise" in name and name.endswith(".weight")}
    assert len(frozen) == 5  # blocks of stages 6 and 7
    assert moved == set(before) - frozen


@pytest.mark.parametrize("layer", ["stage5", PIXELS])
def test_depths_hold_each_trainable_parameter_once_from_input_to_output(layer: str) -> None:
    tail = LiteTail(_embed("lite0", 64), layer, trains_depthwise=layer == PIXELS)
    depths = tail.list_depths()
    listed = [id(parameter) for depth in depths for parameter in depth]
    assert sorted(listed) == sorted(id(p) for p in tail.parameters() if p.requires_grad)
    assert len(set(listed)) == len(listed)
    assert len(depths) == (6 if layer == "stage5" else 18)  # blocks above, the head, the stem
    assert depths[-1][0].shape == (1280, 320, 1, 1)
    assert depths[0][0].shape == ((32, 3, 3, 3) if layer == PIXELS else (672, 112, 1, 1))


@pytest.mark.parametrize("name", ["lite0", "lite2"])
def test_every_layer_that_is_listed_as_a_cut_can_be_cut_at(name: str) -> None:
    backbone = replace(find_backbone(name, size_px=64), pooled=("head",))
    *below, _head = list_layers(backbone)
    assert all(layer.is_cut for layer in below)
    for layer in below[::3]:
        tail = LiteTail(Embedding((backbone,)), layer.name)
        assert tail(torch.zeros(1, *layer.shape)).shape == (1, 1280)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (9, 6), (3, 4), (1, 2)])
def test_gradient_of_frozen_filters_is_that_of_autograd(stride: int, size: int, sides: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(size + stride)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    x, weight, bias = draw(2, 6, *sides), draw(6, 1, size, size), draw(6)
    grads = []
    for own in (True, False):
        leaf, shift = x.clone().requires_grad_(), bias.clone().requires_grad_()
        padded, pad = (leaf, size // 2) if stride == 1 else (_pad_same(leaf, size, stride), 0)
        if own:
            y = _Depthwise.apply(padded, weight, shift, stride, pad)
        else:
            y = torch.nn.functional.conv2d(padded, weight, shift, stride, pad, 1, 6)
        assert y.shape[2:] == tuple(-(-side // stride) for side in sides)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        grads.append((leaf.grad, shift.grad))
    for got, wanted in zip(*grads, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
        assert wanted.abs().max() > 0.1


def test_gradients_under_autocast_are_about_those_without() -> None:
    tail = LiteTail(_embed("lite0", 64), "stage4")
    x = torch.rand(2, 80, 4, 4)

    def measure(enabled: bool) -> torch.Tensor:
        tail.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = tail(x).float()
        features.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in tail.parameters() if p.grad is not None])

    wanted = measure(enabled=False)
    assert 0 < float((measure(enabled=True) - wanted).norm()) < 0.1 * float(wanted.norm())


@pytest.mark.parametrize(
    ("side", "size", "stride", "before", "after"),
    [(8, 3, 2, 0, 1), (7, 3, 2, 1, 1), (8, 5, 2, 1, 2), (7, 5, 2, 2, 2), (7, 5, 1, 2, 2), (1, 3, 2, 1, 1)],
)
def test_odd_padding_goes_to_the_right_and_below(side: int, size: int, stride: int, before: int, after: int) -> None:
    got = _pad_same(torch.ones(1, 1, side, 9), size, stride)
    rows = got[0, 0].sum(1) > 0
    assert rows.tolist() == [False] * before + [True] * side + [False] * after


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "nearest"), [("stage33", "stage3"), ("pixel", "pixels"), ("head", "stage")])
def test_unknown_layer_is_refused_and_the_nearest_are_named(layer: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=rf"layer: lite0 has no '{layer}' to cut at; the nearest: .*{nearest}"):
        LiteTail(_embed("lite0", 64), layer)


@pytest.mark.parametrize(("layer", "pooling"), [("stage5", "second-order"), ("stage6", "average")])
def test_cut_above_what_is_pooled_is_refused(layer: str, pooling: str) -> None:
    with pytest.raises(OptionError, match=f"layer: wanted one at or below stage[45].*got {layer}"):
        LiteTail(_embed("lite0", 64, pooling), layer)


def test_what_relu6_is_given_is_overwritten_only_where_no_gradient_is_wanted() -> None:
    given = torch.tensor([-1.0, 3.0, 9.0])
    assert _activate(given).data_ptr() == given.data_ptr()
    assert given.tolist() == [0, 3, 6]
    trained = torch.tensor([-1.0, 3.0, 9.0], requires_grad=True)
    _activate(trained * 1).sum().backward()
    assert trained.grad.tolist() == [0, 1, 0]
