"""The heat map adds up to the logit of the answer, whatever the features are made of, and lies where it belongs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.backbone import Preprocessing, Tuned, choose_layer, find_backbone
from pomona.effort import RECIPES, plan_embedding
from pomona.embedding import (
    N_PROJECTED,
    SECOND_ORDER_CUTS,
    Composition,
    Embedding,
    Part,
    Source,
    _write_layer,
    build_network,
    load_network,
    make_window,
    read_statistics,
)
from pomona.engine import Engine, open_core
from pomona.files import hash_bytes
from pomona.graph import GraphWriter
from pomona.head import Head
from pomona.heat_map import find_places, spread_positions
from pomona.layers import Layer
from pomona.model_file import build_model
from pomona.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SIZE_PX = 80
"""Not a multiple of the strides: 5 positions a side at stage 5, 3 at the head."""
N_CLASSES = 7


def make_pixels(n_photos: int, size_px: int = SIZE_PX, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise: of white noise, which no photo looks like, activations would be nearly all alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n_photos, 9, 9, 3), dtype=np.uint8)
    return np.stack([Preprocessing(size_px).apply(photo) for photo in coarse])


def make_head(dim: int, seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    weights, bias = random.standard_normal((N_CLASSES, dim)), random.standard_normal(N_CLASSES)
    return Head(weights.astype(np.float32), bias.astype(np.float32), l2=0)


def build(embedding: Embedding, folder: Path, head: Head | None = None, network: bytes | None = None) -> Engine:
    """A graph of the embedding with a head, which is random where none is given."""
    path = load_network(embedding) if network is None else folder / "network.onnx"
    if network is not None:
        path.write_bytes(network)
    (folder / "model.onnx").write_bytes(build_model(path, head or make_head(embedding.dim), Trust()))
    return Engine(folder / "model.onnx", n_workers=1)


def assert_adds_up(outputs: Mapping[str, NDArray[np.float32]], head: Head, side: int) -> None:
    logits = outputs["features"].astype(float) @ head.weights.T.astype(float) + head.bias
    best = logits.argmax(axis=1)
    maps = outputs["heat_map"].astype(float)
    assert maps.shape == (len(best), side, side)
    parts = np.abs(maps).sum(axis=(1, 2)) + np.abs(head.bias[best])
    off = maps.sum(axis=(1, 2)) + head.bias[best] - logits[np.arange(len(best)), best]
    assert (np.abs(off) <= 2e-5 * parts).all(), (off, parts)
    assert maps.std(axis=(1, 2)).min() > 1e-3 * np.abs(maps).max()  # a flat map would add up too


# --- the law --------------------------------------------------------------------------------------------------------


def embed(*names: str, size_px: int = SIZE_PX, precision: Any = "f32", **options: Any) -> Embedding:
    backbones = (replace(find_backbone(name, size_px=size_px), precision=precision) for name in names)
    return Embedding(tuple(backbones), **{"pooling": "second-order", **options})


EMBEDDINGS = {
    "second-order": (embed("lite0"), 5),
    "int8": (embed("lite0", precision="int8"), 5),
    "averages": (embed("lite1", pooling="average"), 5),
    "averages, mirrored": (embed("lite0", pooling="average", mirrored=True, precision="int8"), 5),
    "19 and 10 positions": (embed("lite0", size_px=299), 19),
    "one layer": (Embedding((choose_layer(find_backbone("lite0", size_px=SIZE_PX), "stage3.1"),)), 10),
    "one layer, mirrored": (
        Embedding((choose_layer(find_backbone("lite0", size_px=SIZE_PX), "head"),), mirrored=True),
        3,
    ),
    **{effort: (plan_embedding(effort), -(-recipe.size_px // 16)) for effort, recipe in RECIPES.items()},
    "best, f32": (plan_embedding("best", size_px=SIZE_PX, precision="f32"), 5),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_the_map_and_the_bias_are_the_logit(name: str, tmp_path: Path) -> None:
    embedding, side = EMBEDDINGS[name]
    size_px = embedding.preprocessing.size_px
    outputs = build(embedding, tmp_path).run(make_pixels(3, size_px))
    assert_adds_up(outputs, make_head(embedding.dim), side)


@pytest.fixture(scope="module")
def second_order(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build(embed("lite0", mirrored=True, precision="int8"), tmp_path_factory.mktemp("second order"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["smooth", "white", "flat", "half"]))
def test_it_is_the_logit_for_any_photo(second_order: Engine, seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    pixels = make_pixels(1, seed=seed)
    if kind == "white":
        pixels = random.integers(0, 256, pixels.shape, dtype=np.uint8)
    if kind == "flat":
        pixels[:] = random.integers(0, 256, 3)
    if kind == "half":
        pixels[:, : SIZE_PX // 2] = 0
    assert_adds_up(second_order.run(pixels), make_head(embed("lite0").dim), 5)


def test_a_tuned_tail_is_explained_too(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="a tail is tuned by torch")
    from safetensors.numpy import save

    from pomona.tail import LiteTail

    embedding = embed("lite0")
    state = {name: 1.1 * value for name, value in LiteTail(embedding, "stage3").state().items()}
    content = save(state)
    (tmp_path / "tail.safetensors").write_bytes(content)
    tuned = Tuned("stage3", tmp_path / "tail.safetensors", hash_bytes(content))
    changed = replace(embedding, backbones=(replace(embedding.backbones[0], tuned=tuned),))
    outputs = build(changed, tmp_path, network=build_network(changed)).run(make_pixels(2))
    assert_adds_up(outputs, make_head(embedding.dim), 5)
    frozen = build(embedding, tmp_path).run(make_pixels(2))
    assert np.abs(outputs["heat_map"] - frozen["heat_map"]).max() > 1e-2


# --- networks of other packages -------------------------------------------------------------------------------------


def write_network(path: Path) -> Path:
    """A convolution, also as tokens with a class token and without, as a crooked map, and averaged."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "kernel": random.standard_normal((5, 3, 8, 8)).astype(np.float32),
        "flat": np.array([0, 5, 64]),
        "class": random.standard_normal((1, 1, 5)).astype(np.float32),
        **{name: np.array([value]) for name, value in {"zero": 0, "one": 1, "two": 2, "six": 6, "seven": 7}.items()},
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["convolved"], strides=[8, 8]),
        helper.make_node("Relu", ["convolved"], ["map"]),
        helper.make_node("Slice", ["map", "zero", "six", "two"], ["crooked"]),
        helper.make_node("Reshape", ["map", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["class", "patches"], ["tokens"], axis=1),
        helper.make_node("Slice", ["patches", "zero", "seven", "one"], ["row"]),
        helper.make_node("GlobalAveragePool", ["map"], ["average"]),
        helper.make_node("Flatten", ["average"], ["vector"]),
    ]
    last = [("vector", (1, 5)), ("tokens", (1, 65, 5)), ("crooked", (1, 5, 6, 8))]
    last.append(("row", (1, 7, 5)))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 64, 64))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in last],
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def explain_layer(folder: Path, layer: str, head: Head | None = None) -> dict[str, NDArray[np.float32]]:
    backbone = find_backbone(f"onnx:{write_network(folder / 'small.onnx')}")
    embedding = Embedding((choose_layer(backbone, layer),))
    network = build_network(embedding)
    return dict(build(embedding, folder, head, network).run(make_pixels(3, 64)))


@pytest.mark.parametrize("layer", ["map", "patches", "tokens", "crooked"])
def test_layers_of_other_packages_add_up(layer: str, tmp_path: Path) -> None:
    outputs = explain_layer(tmp_path, layer)
    assert_adds_up(outputs, make_head(10 if layer == "tokens" else 5), 8)


def test_patches_have_the_map_of_the_layer_that_they_are_made_of(tmp_path: Path) -> None:
    wanted, got = (explain_layer(tmp_path, layer)["heat_map"] for layer in ("map", "patches"))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_layer_whose_channels_come_last_has_the_same_map(tmp_path: Path) -> None:
    embedding = embed("lite0", size_px=64)  # of which the preprocessing alone is used
    found = []
    for is_turned in (False, True):
        graph = GraphWriter()
        x = graph.scale("pixels", 100.0, 50.0)
        kernel = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
        x = graph.add("Relu", [graph.add("Conv", [x, graph.constant(kernel)], strides=[8, 8])])
        x = graph.add("Transpose", [x], perm=[0, 2, 3, 1]) if is_turned else x
        (part,) = _write_layer(graph, x, Layer("any", "map", (5, 8, 8), True, is_turned))
        graph.nodes[-1].output[0] = "features"
        graph.notes["composition"] = Composition((part,), mirrored=False).to_json()
        network = graph.to_bytes(("pixels", ("N", 64, 64, 3)), ("features", ("N", 5)))
        outputs = build(embedding, tmp_path, make_head(5), network).run(make_pixels(3, 64))
        assert_adds_up(outputs, make_head(5), 8)
        found.append(outputs["heat_map"])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_what_the_class_token_adds_is_spread_evenly(tmp_path: Path) -> None:
    head = make_head(10)
    patches = head.weights.copy()
    patches[:, :5] = 0
    bias = np.zeros(N_CLASSES, np.float32)
    bias[2] = 1000  # one class wins both times
    both = explain_layer(tmp_path, "tokens", Head(head.weights, bias, l2=0))
    alone = explain_layer(tmp_path, "tokens", Head(patches, bias, l2=0))
    rest = both["heat_map"] - alone["heat_map"]
    token = both["features"][:, :5] @ head.weights[2, :5]
    np.testing.assert_allclose(rest, np.broadcast_to(token[:, None, None] / 64, rest.shape), atol=1e-6)
    assert np.abs(token).min() > 1e-2


@pytest.mark.parametrize("layer", ["vector", "average", "row"])
def test_what_has_no_positions_has_no_map(layer: str, tmp_path: Path) -> None:
    assert explain_layer(tmp_path, layer).keys() == {"probabilities", "features"}


# --- where it lies --------------------------------------------------------------------------------------------------


def test_the_map_is_what_is_computed_by_hand_position_by_position(tmp_path: Path) -> None:
    import onnx

    embedding, pixels = embed("lite0"), make_pixels(2, seed=3)
    (backbone,), head = embedding.backbones, make_head(embedding.dim)
    model = onnx.load(load_network(embedding))
    cuts = [cut.name for cut in backbone.cuts]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(cut) for cut in cuts)
    onnx.save(model, tmp_path / "all.onnx")
    found = Engine(tmp_path / "all.onnx", n_workers=1).run(pixels)
    outputs = build(embedding, tmp_path).run(pixels)
    known = read_statistics(backbone)
    rows, columns = np.triu_indices(N_PROJECTED)
    for photo in range(2):
        weights = head.weights[int(outputs["probabilities"][photo].argmax())].astype(float)
        wanted, start = np.zeros((5, 5)), 0
        for cut, share in SECOND_ORDER_CUTS.items():
            own = weights[start : start + len(rows)] * np.where(rows == columns, 1, np.sqrt(2))
            start += len(rows)
            x = found[cut][photo].astype(float)
            z = np.einsum("kc,chw->hwk", known.projections[cut].astype(float), x - known.means[cut][:, None, None])
            products = z[:, :, rows] * z[:, :, columns] * make_window(x.shape[1])[:, :, None]
            length = np.linalg.norm(products.sum(axis=(0, 1)) * np.where(rows == columns, 1, np.sqrt(2)))
            wanted += stretch(products @ own * np.sqrt(share) / length)
        averages = np.concatenate([found[cut][photo].mean(axis=(1, 2), dtype=float) for cut in backbone.pooled])
        length = np.linalg.norm((averages - known.average_mean) / known.average_deviation)
        for cut in backbone.pooled:
            x = found[cut][photo].astype(float)
            place = start - 4 * len(rows)
            mean, deviation = (
                table[place : place + len(x), None, None]
                for table in (known.average_mean.astype(float), known.average_deviation.astype(float))
            )
            shares = (x - mean) / deviation / x[0].size / length
            wanted += stretch(np.einsum("c,chw->hw", weights[start : start + len(x)], shares))
            start += len(x)
        np.testing.assert_allclose(outputs["heat_map"][photo], wanted, atol=2e-5 * np.abs(wanted).sum())


def stretch(values: NDArray[np.float64], side: int = 5) -> NDArray[np.float64]:
    """Share each value out over a finer grid, by way of one that both grids fit into."""
    n = len(values)
    fine = np.kron(values, np.ones((side, side))) / side**2
    return fine.reshape(side, n, side, n).sum(axis=(1, 3))


def test_the_mirror_image_has_the_mirrored_map(second_order: Engine) -> None:
    pixels = make_pixels(3)
    maps = second_order.run(pixels)["heat_map"]
    turned = second_order.run(np.ascontiguousarray(pixels[:, :, ::-1]))["heat_map"]
    np.testing.assert_allclose(turned[:, :, ::-1], maps, atol=1e-4 * np.abs(maps).max())
    assert np.abs(turned - maps).max() > 1e-2 * np.abs(maps).max()


def test_photos_in_a_batch_are_explained_as_alone(tmp_path: Path) -> None:
    engine = build(embed("lite0", "lite2", mirrored=True), tmp_path)
    pixels = make_pixels(3)
    core = open_core()
    model = core.read_model(tmp_path / "model.onnx")
    model.reshape([3, *pixels.shape[1:]])
    together = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)["heat_map"]
    np.testing.assert_allclose(together, engine.run(pixels)["heat_map"], atol=1e-4 * np.abs(together).max())


# --- pieces ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40))
def test_spreading_keeps_the_sum_and_the_middle(n: int, side: int) -> None:
    matrix = spread_positions(n, side)
    assert matrix.shape == (side, n)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(matrix.sum(axis=1), n / side, rtol=1e-5)  # what is even stays even
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)
    centres = (np.arange(side) + 0.5) / side @ matrix
    if side % n == 0:
        np.testing.assert_allclose(centres, (np.arange(n) + 0.5) / n, rtol=1e-5)
    if side == n:
        np.testing.assert_array_equal(matrix, np.eye(n))


@given(st.integers(1, 12), st.integers(0, 1000))
def test_a_triangle_of_weights_is_the_matrix_of_its_form(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, columns = np.triu_indices(n)
    weights, z = random.standard_normal(len(rows)), random.standard_normal(n)
    features = np.outer(z, z)[rows, columns] * np.where(rows == columns, 1, np.sqrt(2))
    places, scales = find_places(n)
    assert z @ (weights[places] * scales) @ z == pytest.approx(weights @ features, abs=1e-9)


def test_a_composition_goes_through_text() -> None:
    source = Source("x", 3, 4, 5, is_turned=True)
    parts = (Part("averages", "y", 6, (source, source), "m", "d", "l", 2.0), Part("whole", "z", 1))
    assert Composition.from_json(Composition(parts, True).to_json()) == Composition(parts, True)


def test_the_note_is_not_in_the_model_and_a_network_without_one_gets_no_map(tmp_path: Path) -> None:
    import onnx

    embedding = embed("lite0", size_px=64)
    engine = build(embedding, tmp_path)
    assert engine.outputs == ("probabilities", "features", "heat_map")
    assert not onnx.load(tmp_path / "model.onnx").metadata_props
    network = onnx.load(load_network(embedding))
    assert [one.key for one in network.metadata_props] == ["composition"]
    del network.metadata_props[:]
    without = build(embedding, tmp_path, network=network.SerializeToString())
    assert without.outputs == ("probabilities", "features")
