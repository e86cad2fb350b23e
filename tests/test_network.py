"""What is trained of any network: its features, its parameters in order, its names, and where it is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.backbone import PIXELS, choose_layer, find_backbone, list_layers
from pomona.embedding import Embedding, build_network, build_trunk
from pomona.engine import Engine
from pomona.errors import OptionError
from pomona.files import hash_bytes

torch = pytest.importorskip("torch", reason="gradients are torch's")

from pomona.network import choose_layer_to_cut, load_network_above, measure_rates  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite() -> Embedding:
    return Embedding((find_backbone("lite0", size_px=64),))


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Embedding]:
    """Networks of another package with random weights."""
    transformers = pytest.importorskip("transformers", reason="these networks are made by transformers")
    pytest.importorskip("onnxscript", reason="networks are written as ONNX by torch with onnxscript")
    folder = tmp_path_factory.mktemp("networks")
    transformers.logging.disable_progress_bar()
    vit = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16
    )
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1])
    torch.manual_seed(0)
    made = {"vit": transformers.ViTModel(vit), "resnet": transformers.ResNetModel(resnet)}
    found = {}
    for kind, network in made.items():
        network.save_pretrained(folder / kind)
        facts = '{"size": {"height": 64, "width": 64}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3]}'
        (folder / kind / "preprocessor_config.json").write_text(facts)
        found[kind] = Embedding((find_backbone(f"hf:{folder / kind}"),))
    return found


def _run(content: bytes, pixels: NDArray[np.uint8], folder: Path, output: str) -> NDArray[np.float32]:
    path = folder / f"{hash_bytes(content)[:12]}.onnx"
    path.write_bytes(content)
    return Engine(path, n_workers=1).run(pixels)[output]


# --- lite -----------------------------------------------------------------------------------------------------------


def test_pixels_are_scaled_as_the_network_wants_them(
    lite: Embedding, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    network = load_network_above(lite, PIXELS)
    assert (network.layer, network.kind, network.is_elastic) == (PIXELS, "map", True)
    share = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        got = network.module(network.scale_pixels(share)).numpy()
    wanted = _run(build_network(lite), pixels, tmp_path, "features")
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("layer", "moves"), [("stage5", False), (PIXELS, True)])
def test_depthwise_filters_are_trained_where_all_is(lite: Embedding, layer: str, moves: bool) -> None:
    network = load_network_above(lite, layer)
    trained = {id(p) for depth in network.list_depths() for p in depth}
    depthwise = [p for p in network.module.parameters() if p.ndim == 4 and p.shape[1] == 1]
    assert depthwise
    assert {id(p) in trained for p in depthwise} == {moves}


def test_both_number_formats_are_measured(lite: Embedding) -> None:
    rates = measure_rates(lite, "stage5", (112, 4, 4), n_photos=2)
    assert set(rates) == {"f32", "bf16"}
    assert min(rates.values()) > 0


def test_several_backbones_and_absent_devices_are_refused(lite: Embedding) -> None:
    two = Embedding((*lite.backbones, find_backbone("lite1", size_px=64)))
    with pytest.raises(OptionError, match=r"tune: wanted one backbone, got 2; name one with --backbone"):
        load_network_above(two, "stage3")
    with pytest.raises(OptionError, match=r"the nearest: .*stage3"):
        load_network_above(lite, "stage3.")
    if not torch.backends.mps.is_available():
        with pytest.raises(OptionError, match="device: wanted one that is here, got mps"):
            load_network_above(lite, "stage5", device="mps")


# --- networks of other packages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "activations", "is_elastic"), [("resnet", "map", True), ("vit", "tokens", False)])
def test_tail_of_any_network_gives_its_features(
    kind: str,
    activations: str,
    is_elastic: bool,
    small: dict[str, Embedding],
    pixels: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    embedding = small[kind]
    (backbone,) = embedding.backbones
    layer = "layers.0" if kind == "vit" else choose_layer_to_cut(backbone)
    network = load_network_above(embedding, layer)
    assert (network.kind, network.is_elastic) == (activations, is_elastic)
    x = _run(build_trunk(backbone, layer), pixels, tmp_path, "activations")
    with torch.no_grad():
        got = network.module(torch.from_numpy(x)).numpy()
    wanted = _run(build_network(embedding), pixels, tmp_path, "features")
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-4


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_weights_have_the_names_of_the_package_and_blocks_stand_in_order(
    kind: str, small: dict[str, Embedding]
) -> None:
    network = load_network_above(small[kind], PIXELS)
    names = [name for name, _ in network.module.named_parameters()]
    state = network.state()
    assert list(state) == names
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in state.values())
    depths = network.list_depths()
    assert sum(len(depth) for depth in depths) == len(names)
    place = {id(p): i for i, depth in enumerate(depths) for p in depth}
    parameters = dict(network.module.named_parameters())
    by_block = {"resnet": ("stages.0.", "stages.1."), "vit": (".0.", ".1.")}[kind]
    found = [{place[id(p)] for name, p in parameters.items() if block in name} for block in by_block]
    assert all(found)
    assert all(max(below) < min(above) for below, above in pairwise(found))
    assert all(len(places) == 1 for places in found)  # a block is one depth
    if kind == "vit":  # its modules are in another order than they are used in
        assert [place[id(parameters[name])] for name in ("embeddings.cls_token", "layernorm.weight")] == [0, 3]
        above = load_network_above(small[kind], "layers.0").list_depths()
        assert [len(depth) for depth in above] == [len(depth) for depth in depths[2:]]


def test_half_of_the_work_is_below_the_cut(small: dict[str, Embedding]) -> None:
    (backbone,) = small["resnet"].backbones
    layer = choose_layer_to_cut(backbone)
    cuts = [one.name for one in list_layers(backbone) if one.is_cut]
    assert choose_layer(backbone, layer).n_multiplications >= backbone.n_multiplications / 2
    below = cuts[: cuts.index(layer)]
    assert all(choose_layer(backbone, name).n_multiplications < backbone.n_multiplications / 2 for name in below)
    assert choose_layer_to_cut(find_backbone("lite2")) == "stage3"


def test_unknown_layer_of_any_network_is_refused(small: dict[str, Embedding]) -> None:
    with pytest.raises(OptionError, match=r"the nearest"):
        load_network_above(small["resnet"], "stages.7.nothing")


def test_features_of_smaller_windows_are_of_the_same_length(lite: Embedding) -> None:
    network = load_network_above(replace(lite), "stage3")
    with torch.no_grad():
        whole, part = (network.module(torch.zeros(1, 40, side, side)) for side in (8, 6))
    assert whole.shape == part.shape == (1, 1904)
