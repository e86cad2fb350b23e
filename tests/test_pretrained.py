"""Networks of other packages: read without running anything, prepared as they say, the same numbers in the engine."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona import pretrained
from pomona.backbone import Backbone, Preprocessing, Tuned, choose_layer, find_backbone, list_layers
from pomona.embedding import Embedding, build_network, build_trunk, load_network
from pomona.engine import Engine
from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import cache_folder, hash_bytes
from pomona.split import split_network

torch = pytest.importorskip("torch", reason="networks of other packages need torch")
transformers = pytest.importorskip("transformers", reason="these networks are made by transformers")
pytest.importorskip("onnxscript", reason="networks are written as ONNX by torch with onnxscript")

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE_PX = {"vit": 64, "dinov2": 70, "siglip": 64, "convnext": 64, "resnet": 64}


def _save(kind: str, folder: Path, seed: int = 0) -> Path:
    """A small network of a real kind with random weights, saved as its package saves it."""
    torch.manual_seed(seed)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit = {**small, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
    make = {
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**vit)),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=70, patch_size=14)),
        "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vit)),
        "convnext": lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)
        ),
        "resnet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1])
        ),
    }
    network = make[kind]()
    for name, tensor in network.named_buffers():  # batch norms that have seen something
        if "running_var" in name:
            tensor.copy_(0.5 + torch.rand_like(tensor))
        elif "running_mean" in name:
            tensor.copy_(0.1 * torch.randn_like(tensor))
    network.save_pretrained(folder)
    side = {"height": SIZE_PX[kind], "width": SIZE_PX[kind]}
    facts = {"size": side, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [vision]\n---\n# A small network\n")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = {kind: _save(kind, folder / kind) for kind in SIZE_PX}
    transformers.logging.set_verbosity(verbosity)
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Real photos where they are here; rendered ones elsewhere."""
    folder = Path(__file__).parents[1] / ".." / "shared" / "data" / "grocery"
    found = sorted(folder.resolve().rglob("*.jpg"))[:300:100]
    if not found:
        from pomona.samples import SampleOptions, write_samples

        folder = tmp_path_factory.mktemp("rendered") / "fruit"
        write_samples(folder, SampleOptions(n_per_kind=1, size_px=96, n_workers=1))
        found = sorted(folder.rglob("*.*g"))[:3]
    return [path.read_bytes() for path in found]


def _find(small: dict[str, Path], kind: str, **options: Any) -> Backbone:
    return find_backbone(f"hf:{small[kind]}", **options)


def _read(backbone: Backbone, photos: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([backbone.preprocessing.read(photo) for photo in photos])


def _compute(embedding: Embedding, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Engine(load_network(embedding), n_workers=1).run(pixels)["features"]


def _run(content: bytes, pixels: NDArray[np.uint8], folder: Path) -> dict[str, NDArray[np.float32]]:
    (folder / "network.onnx").write_bytes(content)
    return dict(Engine(folder / "network.onnx", n_workers=1).run(pixels))


def _unit(table: NDArray[Any]) -> NDArray[Any]:
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def _assert_close(got: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert got.shape == wanted.shape
    assert np.linalg.norm(got - wanted) <= 1e-3 * np.linalg.norm(wanted)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3  # the photos are told apart, or all of this proves nothing


def _compute_by_hand(folder: Path, kind: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What transformers gives for the pixels, pooled by numpy."""
    network = transformers.AutoModel.from_pretrained(folder).eval()
    mean, deviation = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.2, 0.3])
    scaled = ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        result = network(pixel_values=torch.from_numpy(scaled))
    last = result.last_hidden_state.numpy()
    if kind in {"vit", "dinov2"}:
        return np.concatenate([_unit(last[:, 0]), _unit(last[:, 1:].mean(axis=1))], axis=1)
    return _unit(result.pooler_output.numpy().reshape(len(pixels), -1))


# --- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIZE_PX)
def test_features_are_those_of_the_package(small: dict[str, Path], photos: list[bytes], kind: str) -> None:
    backbone = _find(small, kind)
    embedding = Embedding((backbone,))
    assert (backbone.preprocessing.size_px, backbone.preprocessing.resample) == (SIZE_PX[kind], "bicubic")
    assert backbone.licence == "apache-2.0"
    assert backbone.n_multiplications > 1e4
    pixels = _read(backbone, photos)
    wanted = _compute_by_hand(small[kind], kind, pixels)
    assert wanted.shape[1] == embedding.dim == backbone.dim
    _assert_close(_compute(embedding, pixels), wanted)


def test_the_network_holds_no_place_of_a_file(small: dict[str, Path]) -> None:
    content = build_network(Embedding((_find(small, "resnet"),)))
    for text in (b"site-packages", b".py", str(small["resnet"]).encode()):
        assert text not in content


def test_another_size_moves_the_positions_of_a_transformer(small: dict[str, Path], photos: list[bytes]) -> None:
    backbone = _find(small, "vit", size_px=96)
    pixels = _read(backbone, photos)
    assert pixels.shape[1:] == (96, 96, 3)
    split = split_network(backbone, "layers.0")
    network = transformers.AutoModel.from_pretrained(small["vit"]).eval()
    with torch.no_grad():
        scaled = split.scale_pixels(torch.from_numpy(pixels))
        last = network(pixel_values=scaled, interpolate_pos_encoding=True).last_hidden_state.numpy()
        got = split.tail(split.trunk(scaled)).numpy()
    assert last.shape[1] == 37
    _assert_close(got, np.concatenate([_unit(last[:, 0]), _unit(last[:, 1:].mean(axis=1))], axis=1))


def test_the_image_tower_of_two_is_taken(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**vision, "vocab_size": 50, "max_position_embeddings": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config={**vision, "image_size": 64, "patch_size": 16})
    torch.manual_seed(1)
    both = transformers.SiglipModel(config).eval()
    both.save_pretrained(tmp_path / "both")
    backbone = find_backbone(f"hf:{tmp_path / 'both'}")
    assert backbone.preprocessing.offset == (127.5, 127.5, 127.5)
    split = split_network(backbone, "encoder.layers.0")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = both.vision_model(pixel_values=x).pooler_output.numpy()
        got = split.tail(split.trunk(x)).numpy()
    _assert_close(got, _unit(wanted))


def test_a_layer_is_read_where_it_is(small: dict[str, Path], photos: list[bytes]) -> None:
    backbone = choose_layer(_find(small, "resnet"), "encoder.stages.1.layers.0.layer.1.convolution")
    embedding = Embedding((backbone,))
    whole = _find(small, "resnet")
    assert embedding.dim == 6
    assert embedding.key != Embedding((whole,)).key
    assert embedding.n_multiplications < whole.n_multiplications
    seen = {}
    network = transformers.AutoModel.from_pretrained(small["resnet"]).eval()
    layer = network.get_submodule(backbone.pooled[0])
    layer.register_forward_hook(lambda _module, _inputs, output: seen.update(output=output.detach().numpy().copy()))
    pixels = _read(backbone, photos)
    with torch.no_grad():
        network(pixel_values=split_network(whole, "embedder").scale_pixels(torch.from_numpy(pixels)))
    _assert_close(_compute(embedding, pixels), _unit(seen["output"].mean(axis=(2, 3))))


def test_a_layer_that_does_not_exist_offers_the_nearest(small: dict[str, Path]) -> None:
    backbone = _find(small, "vit")
    with pytest.raises(OptionError, match=r"layer: there is no 'layer\.1'; the nearest names are .*layers\.1"):
        choose_layer(backbone, "layer.1")
    with pytest.raises(OptionError, match="stage5"):
        choose_layer(find_backbone("lite0"), "stag5")


def test_second_moments_and_int8_are_refused(small: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="wanted averages in f32"):
        Embedding((_find(small, "vit"),), "second-order")


def test_other_weights_have_another_key(small: dict[str, Path], tmp_path: Path) -> None:
    key = Embedding((_find(small, "vit"),)).key
    assert Embedding((find_backbone(f"hf:{_save('vit', tmp_path / 'same')}"),)).key == key
    assert Embedding((find_backbone(f"hf:{_save('vit', tmp_path / 'other', seed=1)}"),)).key != key
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "same" / "model.safetensors")
    assert Embedding((find_backbone(f"hf:{tmp_path / 'same'}"),)).key != key  # what was loaded before is not taken


# --- cut in two -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet"])
def test_tail_after_trunk_is_the_network_at_every_cut(small: dict[str, Path], photos: list[bytes], kind: str) -> None:
    backbone = _find(small, kind)
    pixels = _read(backbone, photos)
    wanted = _compute(Embedding((backbone,)), pixels)
    cuts = [layer for layer in list_layers(backbone) if layer.is_cut]
    assert len(cuts) >= 8
    for layer in cuts[:: len(cuts) // 4]:
        split = split_network(backbone, layer.name)
        with torch.no_grad():
            activations = split.trunk(split.scale_pixels(torch.from_numpy(pixels)))
            assert activations.shape == (len(pixels), *split.shape)
            assert split.shape == layer.shape
            _assert_close(split.tail(activations).numpy(), wanted)
            one = split.tail(activations[:1]).numpy()
        np.testing.assert_allclose(one, wanted[:1], atol=1e-5)


def test_every_weight_of_the_tail_learns_and_none_of_the_cached_network(small: dict[str, Path]) -> None:
    for kind, layer in (("resnet", "encoder.stages.1"), ("dinov2", "encoder.layer.0")):
        backbone = _find(small, kind)
        split = split_network(backbone, layer)
        before = {name: value.clone() for name, value in split.tail.state_dict().items()}
        x = torch.randn(4, *split.shape)
        target = torch.randn(4, backbone.dim)
        optimizer = torch.optim.SGD(split.tail.parameters(), lr=0.5)
        ((split.tail(x) - target) ** 2).sum().backward()
        for name, value in split.tail.named_parameters():
            assert value.grad is not None, name
            assert torch.isfinite(value.grad).all(), name
            if "k_proj.bias" not in name and "key.bias" not in name:  # which no attention depends on
                assert value.grad.abs().max() > 0, name
        optimizer.step()
        assert all(not torch.equal(before[n], p) for n, p in split.tail.named_parameters() if "key.bias" not in n)
        for name, value in split_network(backbone, layer).tail.state_dict().items():
            assert torch.equal(value, before[name]), name
        names = set(split.trunk.state_dict()) | set(split.tail.state_dict())
        package = transformers.AutoModel.from_pretrained(small[kind]).state_dict()
        assert {name for name in package if "num_batches" not in name and "mask_token" not in name} <= names


def test_a_convolutional_tail_takes_other_sizes(small: dict[str, Path]) -> None:
    split = split_network(_find(small, "resnet"), "encoder.stages.0")
    with torch.no_grad():
        small_map = split.trunk(torch.randn(3, 3, 96, 128))
        assert small_map.shape == (3, 16, 24, 32)
        assert split.tail(small_map[:, :, 3:10, 5:20]).shape == (3, 40)


def test_activations_may_be_wanted_instead_of_features(small: dict[str, Path]) -> None:
    split = split_network(_find(small, "resnet"), "encoder.stages.1", last="encoder", pooled=False)
    with torch.no_grad():
        assert split.tail(torch.randn(2, *split.shape)).shape == (2, 40, 2, 2)
    assert (split.last.kind, split.last.shape) == ("map", (40, 2, 2))


def test_a_skip_over_the_cut_names_the_nearest_cuts(small: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match=r"does not cut .* are encoder\.stages\.0.* and encoder\.stages\.1$"):
        split_network(_find(small, "resnet"), "encoder.stages.1.layers.0.layer.1.convolution")
    with pytest.raises(OptionError, match="no module of torch"):
        split_network(find_backbone("lite0"), "stage5")


def test_tuned_weights_are_in_the_written_network(small: dict[str, Path], photos: list[bytes], tmp_path: Path) -> None:
    backbone = _find(small, "dinov2")
    pixels = _read(backbone, photos)
    split = split_network(backbone, "encoder.layer.0")
    with torch.no_grad():
        for value in split.tail.parameters():
            value.add_(0.1 * torch.randn_like(value))
        wanted = split.tail(split.trunk(split.scale_pixels(torch.from_numpy(pixels)))).numpy()
    got = _run(_write_tuned(backbone, dict(split.tail.named_parameters()), tmp_path), pixels, tmp_path)["features"]
    _assert_close(got, wanted)
    assert np.abs(got - _compute(Embedding((backbone,)), pixels)).max() > 1e-2
    with pytest.raises(OptionError, match="that the network has, got nowhere"):
        _write_tuned(backbone, {"nowhere": torch.zeros(3)}, tmp_path)
    with pytest.raises(OptionError, match=r"of shape \(32,\), got layernorm.weight of shape \(3,\)"):
        _write_tuned(backbone, {"layernorm.weight": torch.zeros(3)}, tmp_path)


def _write_tuned(backbone: Backbone, state: dict[str, Any], folder: Path) -> bytes:
    from safetensors.torch import save

    content = save({name: value.detach().contiguous() for name, value in state.items()})
    (folder / "tuned.safetensors").write_bytes(content)
    tuned = Tuned("encoder.layer.0", folder / "tuned.safetensors", hash_bytes(content))
    return build_network(Embedding((replace(backbone, tuned=tuned),)))


def test_the_trunk_alone_runs_in_the_engine(small: dict[str, Path], photos: list[bytes], tmp_path: Path) -> None:
    backbone = _find(small, "convnext")
    pixels = _read(backbone, photos)
    split = split_network(backbone, "encoder.stages.1")
    with torch.no_grad():
        wanted = split.trunk(split.scale_pixels(torch.from_numpy(pixels))).numpy()
    _assert_close(_run(build_trunk(backbone, "encoder.stages.1"), pixels, tmp_path)["activations"], wanted)


# --- files that cannot be used --------------------------------------------------------------------------------------


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import builtins; builtins.sprung = True",))


def test_a_pickle_is_never_run(small: dict[str, Path], tmp_path: Path) -> None:
    import builtins

    folder = tmp_path / "trap"
    shutil.copytree(small["vit"], folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": _Trap()}))
    with pytest.raises(BackboneError, match="cannot be read"):
        find_backbone(f"hf:{folder}")
    torch.save({"weight": _Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be read"):
        find_backbone(f"hf:{folder}")
    assert not hasattr(builtins, "sprung")


def test_a_pickle_brought_by_hand_is_never_run(tmp_path: Path) -> None:
    import builtins

    torch.save({"weight": _Trap()}, tmp_path / "trap.pth")
    with pytest.raises(BackboneError, match=r"trap\.pth: wanted a table of tensors, got: "):
        pretrained._read_state(tmp_path / "trap.pth")
    assert not hasattr(builtins, "sprung")
    torch.save({"state_dict": {"weight": torch.ones(3)}}, tmp_path / "sound.pth")
    assert pretrained._read_state(tmp_path / "sound.pth")["weight"].tolist() == [1, 1, 1]


def test_old_files_with_tensors_alone_are_read(small: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "old"
    shutil.copytree(small["vit"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert find_backbone(f"hf:{folder}").weights_sha256 == _find(small, "vit").weights_sha256


def test_damaged_files_are_said_to_be(small: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(small["vit"], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("layers.1.attention.q_proj.weight" if "layers.1.attention.q_proj.weight" in tensors else min(tensors))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="lack 1 tensors; the first: "):
        find_backbone(f"hf:{folder}")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BackboneError, match="cannot be read"):
        find_backbone(f"hf:{folder}")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match="wanted a network that takes photos, got bert"):
        find_backbone(f"hf:{folder}")
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"wanted a folder with config\.json and model\.safetensors"):
        find_backbone(f"hf:{folder}")


def test_offline_it_says_which_files_to_bring_and_where(
    small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    place = cache_folder() / "backbones" / "hf" / "nobody" / "nothing"
    with pytest.raises(BackboneError) as caught:
        find_backbone("hf:nobody/nothing")
    assert "bring config.json, preprocessor_config.json and model.safetensors from" in str(caught.value)
    assert str(place) in str(caught.value)
    shutil.copytree(small["vit"], place)
    assert find_backbone("hf:nobody/nothing").weights_sha256 == _find(small, "vit").weights_sha256


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, extra in (("torchvision", "torchvision"), ("timm", "timm")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(BackboneError, match=rf"{package} is needed .*: pip install {extra}$"):
            find_backbone(f"{package}:resnet50")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript is needed .*'pomona\[hub\]'"):
        find_backbone("hf:facebook/dinov2-small")


# --- torchvision and timm -------------------------------------------------------------------------------------------


def _check_peer(name: str, photos: list[bytes], layer: str) -> Backbone:
    backbone = find_backbone(name)
    assert next(one for one in list_layers(backbone) if one.name == layer).is_cut
    pixels = _read(backbone, photos)
    split = split_network(backbone, layer)
    with torch.no_grad():
        wanted = split.tail(split.trunk(split.scale_pixels(torch.from_numpy(pixels)))).numpy()
    _assert_close(_compute(Embedding((backbone,)), pixels), wanted)
    return backbone


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, if it can be loaded beside this torch, an empty cache, and no network."""
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    found = pytest.importorskip("torchvision", exc_type=RuntimeError)
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _refuse_download)
    return found


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm is not installed")
    found = pytest.importorskip("timm", exc_type=RuntimeError)
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return found


def _refuse_download(*_args: object, **_options: object) -> None:
    raise OSError("no network")


def _place_torchvision(torchvision: Any, name: str) -> None:
    """Random weights where a user would bring the published ones."""
    place = cache_folder() / "backbones" / "torchvision"
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    network = torchvision.models.get_model(name, weights=None)
    torch.save(_enliven(network).state_dict(), place / f"{name}@{weights.name}.pth")


def _place_timm(timm: Any, name: str) -> None:
    from safetensors.torch import save_file

    place = cache_folder() / "backbones" / "timm"
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(_enliven(timm.create_model(name)).state_dict(), place / f"{name}.safetensors")


def _enliven(network: Any) -> Any:
    """Batch norms that have seen something, and branches that count: or all photos would give about the same."""
    for name, parameter in network.named_parameters():
        if "gamma" in name or "layer_scale" in name:
            parameter.data.fill_(0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 224, 224))
    return network


def test_a_network_of_torchvision(torchvision: Any, photos: list[bytes]) -> None:
    with pytest.raises(BackboneError, match=r"bring https.*resnet18.* and put it at .*resnet18@IMAGENET1K_V1\.pth"):
        find_backbone("torchvision:resnet18")
    _place_torchvision(torchvision, "resnet18")
    backbone = _check_peer("hub:pytorch/vision:resnet18", photos, "layer2")
    assert (backbone.name, backbone.dim) == ("torchvision:resnet18", 512)
    assert backbone.preprocessing == Preprocessing(
        224, "crop", "bilinear", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 512, crop_share=0.875
    )
    with pytest.raises(OptionError, match="torchvision has no weights for torchvision:resnet18@NONE"):
        find_backbone("torchvision:resnet18@NONE")


@pytest.mark.parametrize(
    ("name", "layer", "dim", "n_blocks"),
    [
        ("resnet50", "layer3.0", 2048, 17),
        ("vit_b_16", "encoder.layers.encoder_layer_5", 768, 14),
        ("convnext_tiny", "features.5.2", 768, 23),
        ("mobilenet_v3_large", "features.9", 1280, 17),
    ],
)
def test_every_kind_of_torchvision_is_cut_by_block(
    name: str, layer: str, dim: int, n_blocks: int, torchvision: Any, photos: list[bytes]
) -> None:
    _place_torchvision(torchvision, name)
    backbone = _check_peer(f"torchvision:{name}", photos, layer)
    assert backbone.dim == dim
    split = split_network(backbone, layer)
    assert len(split.blocks) == n_blocks
    assert {one for block in split.blocks for one in block} >= {one for one, _ in split.tail.named_parameters()}


def test_a_network_of_one_size_says_which(torchvision: Any) -> None:
    _place_torchvision(torchvision, "vit_b_16")
    with pytest.raises(OptionError, match=r"imgsz: torchvision:vit_b_16 takes 224 pixels, got 96: .*Expected 224"):
        find_backbone("torchvision:vit_b_16", size_px=96)


def test_a_network_of_timm(timm: Any, photos: list[bytes]) -> None:
    _place_timm(timm, "resnet18.a1_in1k")
    backbone = _check_peer("timm:resnet18.a1_in1k", photos, "layer2")
    assert (backbone.dim, backbone.licence, backbone.preprocessing.crop_share) == (512, "apache-2.0", 0.95)
    with pytest.raises(OptionError, match=r"timm has no weights for 'resnet18\.none'"):
        find_backbone("timm:resnet18.none")


@pytest.mark.parametrize(
    ("name", "layer", "dim"),
    [
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", "blocks.5", 384),
        ("convnext_tiny.in12k_ft_in1k", "stages.2.blocks.2", 768),
    ],
)
def test_every_kind_of_timm_is_cut_by_block(name: str, layer: str, dim: int, timm: Any, photos: list[bytes]) -> None:
    _place_timm(timm, name)
    assert _check_peer(f"timm:{name}", photos, layer).dim == dim
