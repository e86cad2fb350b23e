"""An export answers as its bundle does, or is not there; and the reason names the stage that went another way."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pomona.backbone import Preprocessing
from pomona.bundle import MANIFEST_NAME, Bundle, load_bundle
from pomona.engine import open_core
from pomona.errors import (
    BundleDamagedError,
    BundleError,
    DataError,
    ExportError,
    MissingPackageError,
    OptionError,
    PhotoError,
    StorageError,
)
from pomona.export import ExportOptions, export_bundle, formats
from pomona.export.formats import FORMATS
from pomona.export.golden import encode_photos, make_golden
from pomona.export.onnx_model import ONNX_NAME, build_onnx
from pomona.export.openvino_model import build_int8
from pomona.export.parity import EXACT, REQUANTISED, Bounds, RealPhoto, check_parity
from pomona.export.real_photos import load_real
from pomona.export.resizing import build_resize, starts_down
from pomona.export.runtimes import GraphRunner, OnnxNetwork, OpenvinoNetwork, Probed, open_onnx_runners
from pomona.files import hash_bytes
from pomona.model_file import MODEL_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pomona.export.golden import GoldenPhoto
    from pomona.training import TrainResult

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

IN_FLOAT = Bounds(network=1e-3)


@pytest.fixture(scope="session")
def in_float(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle in float32, whatever this machine prefers; not to be changed."""
    from pomona import training
    from pomona.effort import Machine
    from pomona.training import TrainOptions, train

    folder = tmp_path_factory.mktemp("in float")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POMONA_CACHE", str(folder / "cache"))
        patch.setattr(training, "measure_machine", lambda _n_workers: Machine(1.0, 2.0, 1e9))
        run = train(TrainOptions(data=rendered, output=folder / "run", effort="instant", imgsz=64))
    assert run.bundle.manifest.embedding.precision == "f32"
    return run.bundle


@pytest.fixture(scope="session")
def golden(in_float: Bundle) -> list[GoldenPhoto]:
    return make_golden(in_float)


def draw_noise(height: int, width: int, n_photos: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng([height, width]).integers(0, 256, (n_photos, height, width, 3), dtype=np.uint8)


# --- the resize -------------------------------------------------------------------------------------------------------

SIZES = ((48, 64), (64, 48), (64, 64), (7, 5), (1, 1), (300, 200), (200, 301), (33, 500), (500, 33), (129, 66), (1, 90))
CONTRACTS = [
    *((Preprocessing(64, fit=fit), 0) for fit in ("squash", "crop", "pad")),
    *((Preprocessing(72, fit=fit, resample="bicubic"), 1) for fit in ("squash", "crop", "pad")),
    (Preprocessing(64, fit="crop", resample="bicubic", crop_share=0.875), 1),
    (Preprocessing(80, fit="crop", crop_share=0.95), 1),
]


@pytest.mark.parametrize(("contract", "levels"), CONTRACTS, ids=lambda one: getattr(one, "fit", str(one)))
@pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO"])
def test_the_graph_resizes_as_the_contract_does(contract: Preprocessing, levels: int, runtime: str) -> None:
    content = build_resize(contract).SerializeToString()
    network = OnnxNetwork(content) if runtime == "ONNX Runtime" else OpenvinoNetwork(content)
    for height, width in SIZES:  # each size once: OpenVINO may go wrong the first time it sees one
        noise = draw_noise(height, width)
        found = network.compute(noise)["square"][0].astype(int)
        assert np.abs(found - contract.apply(noise[0])).max() <= levels, (height, width)


@given(height=st.integers(1, 700), width=st.integers(1, 700), size_px=st.sampled_from([16, 64, 100]))
@settings(max_examples=25, deadline=None)
def test_a_bilinear_resize_is_exact_at_any_size(height: int, width: int, size_px: int) -> None:
    session = ort.InferenceSession(build_resize(Preprocessing(size_px)).SerializeToString())
    noise = draw_noise(height, width)
    (found,) = session.run(None, {"pixels": noise})
    np.testing.assert_array_equal(found[0], Preprocessing(size_px).apply(noise[0]))


def test_the_order_of_sides_is_that_of_the_installed_pillow() -> None:
    tall = draw_noise(400, 66)
    wanted = Preprocessing(64).apply(tall[0]).astype(int)
    for may_start_down in (True, False):
        session = ort.InferenceSession(
            build_resize(Preprocessing(64), may_start_down=may_start_down).SerializeToString()
        )
        same = np.array_equal(session.run(None, {"pixels": tall})[0][0], wanted)
        assert same == (may_start_down == starts_down())


def test_loading_the_graph_makes_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    for contract, _ in CONTRACTS:
        ort.InferenceSession(build_resize(contract).SerializeToString())
    assert capfd.readouterr() == ("", "")


def test_photos_of_one_size_go_in_one_batch() -> None:
    session = ort.InferenceSession(build_resize(Preprocessing(64, fit="pad")).SerializeToString())
    noise = draw_noise(90, 70, 3)
    (together,) = session.run(None, {"pixels": noise})
    for one, found in zip(noise, together, strict=True):
        np.testing.assert_array_equal(found, Preprocessing(64, fit="pad").apply(one))


# --- golden photos ----------------------------------------------------------------------------------------------------


def test_golden_photos_are_the_same_each_time_and_of_every_kind() -> None:
    from pomona.photo import read_header

    files = dict(encode_photos(64, 64))
    encode_photos.cache_clear()
    assert files == dict(encode_photos(64, 64))
    notes = {note for content in files.values() for note in read_header(content).notes}
    assert {"grayscale", "rotated", "palette", "alpha", "16-bit"} <= notes
    assert {read_header(content).format for content in files.values()} == {"jpeg", "png", "webp"}


def test_golden_photos_are_what_the_bundle_makes_of_them(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    probabilities, errors = in_float.predict_proba([photo.content for photo in golden])
    assert not errors
    np.testing.assert_allclose([photo.outputs["probabilities"] for photo in golden], probabilities, atol=1e-5)
    larger = next(photo for photo in golden if photo.name == "jpeg-larger.jpg")
    assert min(larger.pixels.shape[:2]) < 2 * 64  # decoded at a fraction


# --- ONNX -------------------------------------------------------------------------------------------------------------


def test_an_onnx_file_answers_as_its_bundle_in_both_runtimes(in_float: Bundle, rendered: Path, tmp_path: Path) -> None:
    options = ExportOptions(run=in_float.folder, format="onnx", output=tmp_path / "out", data=rendered)
    result = export_bundle(options)
    assert [parity.runtime.split()[0] for parity in result.parities] == ["ONNX", "OpenVINO"]
    for parity in result.parities:
        assert parity.largest <= 1e-4
        assert parity.n_agreed == parity.n_decided > 40
        assert parity.stages["resize"]["largest"] == 0
        assert parity.paired is not None
        assert (parity.paired.n, parity.paired.gain) == (24, 0.0)
        assert set(parity.stages) == {"decode", "resize", "scale", "network", "head"}
    report = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))
    assert [one["n_real"] for one in report["runtimes"]] == [24, 24]
    page = (tmp_path / "out" / "parity.md").read_text("utf-8")
    assert "## ONNX Runtime" in page
    assert "| resize | levels of 255 | 0 |" in page

    session = ort.InferenceSession(tmp_path / "out" / ONNX_NAME)  # as a user would
    two = np.stack([draw_noise(70, 90)[0]] * 2)
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"pixels": two}), strict=True))
    square = in_float.preprocessing.apply(two[0])
    wanted = in_float.whole_engine.run(square[None])
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name][1], values[0], atol=1e-4, rtol=1e-3)


def test_the_file_says_in_words_what_it_answers(trained: TrainResult) -> None:
    import onnx

    model = onnx.load_model_from_string(build_onnx(trained.bundle))
    said = {one.key.removeprefix("pomona."): one.value for one in model.metadata_props}
    classes = json.loads(said["classes"])
    assert [one["name"] for one in classes] == list(trained.bundle.tree.names)
    assert {"path", "name_en", "name_zh", "plu"} <= classes[0].keys()
    contract = json.loads(said["preprocessing"])
    assert contract["size_px"] == 64
    assert "1/2, 1/4 and 1/8" in contract["before"][0]
    assert contract["inside"] == ["resize by fit, resample and crop_share", "(x - offset) / scale"]
    assert said["version"]
    assert json.loads(said["promise"]) == (
        trained.bundle.manifest.trust.promise.model_dump()
        if trained.bundle.manifest.trust and trained.bundle.manifest.trust.promise
        else None
    )


def test_golden_files_let_another_language_check_itself(in_float: Bundle, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    export_bundle(ExportOptions(run=in_float.folder, format="onnx", output=tmp_path / "out"))
    folder = tmp_path / "out" / "golden"
    entries = json.loads((folder / "golden.json").read_text("utf-8"))["photos"]
    tensors = load_file(folder / "golden.safetensors")
    assert len(entries) > 20
    for entry in entries:
        content = (folder / entry["file"]).read_bytes()
        assert hash_bytes(content) == entry["sha256"]
        square = in_float.preprocessing.read(content)
        np.testing.assert_array_equal(tensors[f"{entry['file']}/square"], square)
        assert hash_bytes(square.tobytes()) == entry["square_sha256"]


def test_what_a_graph_cannot_do_is_done_before_it(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    entry = in_float.manifest.preprocessing.model_copy(update={"enhance": ("gamma=0.8",)})
    bundle = replace(in_float, manifest=in_float.manifest.model_copy(update={"preprocessing": entry}))
    content = build_onnx(bundle)
    assert tuple(ort.InferenceSession(content).get_inputs()[0].shape[1:]) == (64, 64, 3)
    runner = open_runner(bundle, content)
    check_parity(bundle, runner, make_golden(bundle), bounds=IN_FLOAT)


# --- the gate ---------------------------------------------------------------------------------------------------------


def open_runner(
    bundle: Bundle, content: bytes, *, in_openvino: bool = False, preprocessing: Preprocessing | None = None
) -> GraphRunner:
    network = OpenvinoNetwork(content) if in_openvino else OnnxNetwork(content)
    probed = Probed(Path(ONNX_NAME), content, in_openvino=in_openvino)
    return GraphRunner("test", preprocessing or bundle.preprocessing, network, probed, is_native=in_openvino)


def change(content: bytes, edit: Callable[[Any], None]) -> bytes:
    """The model after an edit."""
    import onnx

    model = onnx.load_model_from_string(content)
    edit(model)
    return bytes(model.SerializeToString())


def set_constant(model: Any, name: str, edit: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    from onnx import numpy_helper

    place = next(one for one in model.graph.initializer if one.name == name)
    value = edit(numpy_helper.to_array(place).copy())
    place.CopyFrom(numpy_helper.from_array(value.astype(numpy_helper.to_array(place).dtype), name))


def find_node(model: Any, kind: str, number: int = 0) -> Any:
    own = [node for node in model.graph.node if node.op_type == kind and not node.output[0].startswith("resize/")]
    return own[number]


def swap_channels(model: Any) -> None:
    from onnx import helper, numpy_helper

    cast = next(node for node in model.graph.node if "square" in node.input)
    at = list(model.graph.node).index(cast)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "swapped_order"))
    swap = helper.make_node("Gather", ["square", "swapped_order"], ["swapped"], axis=3)
    cast.input[0] = "swapped"
    model.graph.node.insert(at, swap)


def shift_offset(model: Any) -> None:
    set_constant(model, find_node(model, "Sub").input[1], lambda offset: offset + np.float32(0.5))


def change_weight(model: Any) -> None:
    def edit(weight: NDArray[Any]) -> NDArray[Any]:
        weight.flat[np.abs(weight).argmax()] *= -1
        return weight

    set_constant(model, find_node(model, "Conv", 6).input[1], edit)


def change_bias(model: Any) -> None:
    def edit(bias: NDArray[Any]) -> NDArray[Any]:
        bias[0] += 0.01
        return bias

    set_constant(model, "head_bias", edit)


SABOTAGE = {"scale, channels": swap_channels, "scale, offset": shift_offset}
SABOTAGE |= {"network, one weight": change_weight, "head, one bias": change_bias}


@pytest.mark.parametrize("in_openvino", [False, True], ids=["ONNX Runtime", "OpenVINO"])
@pytest.mark.parametrize("what", SABOTAGE)
def test_the_gate_names_the_stage_that_was_sabotaged(
    in_float: Bundle, golden: list[GoldenPhoto], what: str, in_openvino: bool
) -> None:
    content = build_onnx(in_float)
    check_parity(in_float, open_runner(in_float, content, in_openvino=in_openvino), golden[:3], bounds=EXACT)
    broken = open_runner(in_float, change(content, SABOTAGE[what]), in_openvino=in_openvino)
    with pytest.raises(ExportError, match=rf"at the stage {what.split(',', maxsplit=1)[0]}: .+ on \S+, .+ allowed"):
        check_parity(in_float, broken, golden[:3], bounds=EXACT)


@pytest.mark.parametrize(
    "changes", [{"resample": "bicubic"}, {"fit": "crop"}, {"crop_share": 0.9}], ids=["filter", "fit", "share"]
)
def test_the_gate_names_a_wrong_resize(
    in_float: Bundle, golden: list[GoldenPhoto], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(in_float.preprocessing, **changes)
    monkeypatch.setattr("pomona.export.onnx_model.build_resize", lambda _right: build_resize(wrong))
    with pytest.raises(ExportError, match=r"at the stage resize: .+ levels of 255 on"):
        check_parity(in_float, open_runner(in_float, build_onnx(in_float)), golden)


def test_the_gate_names_a_wrong_decoding(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    whole = replace(in_float.preprocessing, decode_px=None)
    runner = open_runner(in_float, build_onnx(in_float), preprocessing=whole)
    with pytest.raises(ExportError, match=r"at the stage decode: another size, or no number, on jpeg-large"):
        check_parity(in_float, runner, golden)


def test_one_weight_of_an_int8_network_is_seen(trained: TrainResult) -> None:
    if trained.bundle.manifest.embedding.precision != "int8":
        pytest.skip("this machine prefers float32")

    def edit(weight: NDArray[Any]) -> NDArray[Any]:
        weight.flat[np.abs(weight).argmax()] = 0
        return weight

    def sabotage(model: Any) -> None:
        writers = {node.output[0]: node for node in model.graph.node}
        set_constant(model, writers[find_node(model, "Conv", 6).input[1]].input[0], edit)

    content, some = build_onnx(trained.bundle), make_golden(trained.bundle)[:4]
    check_parity(trained.bundle, open_runner(trained.bundle, content, in_openvino=True), some)
    with pytest.raises(ExportError, match="at the stage network"):
        check_parity(trained.bundle, open_runner(trained.bundle, change(content, sabotage), in_openvino=True), some)


def test_a_heat_map_of_something_else_is_refused(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    def sabotage(model: Any) -> None:
        from onnx import helper

        last = next(node for node in model.graph.node if "heat_map" in node.output)
        last.output[0] = "heat_map_right"
        model.graph.node.append(helper.make_node("Neg", ["heat_map_right"], ["heat_map"]))

    with pytest.raises(ExportError, match=r"a heat map is .+ off on"):
        check_parity(in_float, open_runner(in_float, change(build_onnx(in_float), sabotage)), golden[:3])


def test_what_costs_accuracy_is_refused(in_float: Bundle, golden: list[GoldenPhoto], rendered: Path) -> None:
    def deafen(model: Any) -> None:
        set_constant(model, find_node(model, "Conv", 2).input[1], np.zeros_like)

    runner = open_runner(in_float, change(build_onnx(in_float), deafen))
    real = load_real(in_float, rendered)
    with pytest.raises(ExportError, match=r"of 24 labelled photos it has \d+ fewer right.+stage network differs most"):
        check_parity(in_float, runner, golden[:2], real, bounds=REQUANTISED)
    unlabelled = [photo._replace(label=-1) for photo in real]
    with pytest.raises(ExportError, match=r"labels outside the tie band of 0\.2 differ"):
        check_parity(in_float, runner, golden[:2], unlabelled, bounds=REQUANTISED)


def test_a_photo_that_only_one_can_read_is_refused(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    class Blind(GraphRunner):
        def follow(self, photos: Any, *, shows_stages: bool) -> Any:
            for trace in super().follow(photos, shows_stages=shows_stages):
                yield trace if shows_stages else PhotoError("corrupt", "not for me")

    content = build_onnx(in_float)
    probed = Probed(Path(ONNX_NAME), content, in_openvino=False)
    runner = Blind("test", in_float.preprocessing, OnnxNetwork(content), probed, is_native=False)
    real = [RealPhoto("mine.jpg", golden[0].content)]
    with pytest.raises(ExportError, match=r"stage decode: one of the two cannot use mine\.jpg"):
        check_parity(in_float, runner, golden[:2], real)


def test_photos_that_neither_can_read_are_counted(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    real = [RealPhoto("a", b"no photo"), RealPhoto("b", golden[1].content, 0)]
    found = check_parity(in_float, open_runner(in_float, build_onnx(in_float)), golden[:2], real)
    assert (found.n_failed, found.n_real, found.paired is not None and found.paired.n) == (1, 2, 1)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_bundle_of_any_format_is_exported(number: int) -> None:
    bundle = load_bundle(Path(__file__).parent / "golden" / f"bundle-v{number}")
    content, some = build_onnx(bundle), make_golden(bundle)
    for in_openvino in (False, True):
        runner = open_runner(bundle, content, in_openvino=in_openvino)
        assert check_parity(bundle, runner, some, bounds=formats.choose_bounds(bundle, runner)).n_golden == len(some)


def test_what_onnx_runtime_says_is_said_as_a_fault_of_the_export(in_float: Bundle) -> None:
    def call_two_the_same(model: Any) -> None:
        model.graph.node[1].output[0] = model.graph.node[0].output[0]

    with pytest.raises(ExportError, match="ONNX Runtime does not take the graph"):
        OnnxNetwork(change(build_onnx(in_float), call_two_the_same))
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the graph on"):
        OnnxNetwork(build_onnx(in_float)).compute(np.zeros((1, 4, 4, 2), np.uint8))


class Twisted(GraphRunner):
    """A runner whose outputs are changed on the way."""

    def __init__(self, bundle: Bundle, twist: Callable[[dict[str, Any], bool], dict[str, Any]]) -> None:
        content = build_onnx(bundle)
        probed = Probed(Path(ONNX_NAME), content, in_openvino=False)
        super().__init__("test", bundle.preprocessing, OnnxNetwork(content), probed, is_native=False)
        self._twist = twist

    def follow(self, photos: Any, *, shows_stages: bool) -> Any:
        for trace in super().follow(photos, shows_stages=shows_stages):
            assert not isinstance(trace, PhotoError)
            yield replace(trace, outputs=self._twist(dict(trace.outputs), shows_stages))


@pytest.mark.parametrize("name", ["probabilities", "unknown", "heat_map"])
def test_what_is_no_number_is_refused_however_wide_the_bounds(
    in_float: Bundle, golden: list[GoldenPhoto], name: str
) -> None:
    def break_real(outputs: dict[str, Any], is_golden: bool) -> dict[str, Any]:
        return outputs if is_golden else outputs | {name: np.full_like(outputs[name], np.nan)}

    def drop_real(outputs: dict[str, Any], is_golden: bool) -> dict[str, Any]:
        return outputs if is_golden else {key: value for key, value in outputs.items() if key != name}

    label = int(golden[0].outputs["probabilities"].argmax())
    real = [RealPhoto("mine.jpg", golden[0].content, label), RealPhoto("yours.jpg", golden[2].content)]
    assert check_parity(in_float, Twisted(in_float, lambda outputs, _: outputs), golden[:3], real, bounds=REQUANTISED)
    for twist in (break_real, *([] if name == "probabilities" else [drop_real])):
        with pytest.raises(ExportError, match=r"missing or no number on (mine|yours)\.jpg"):
            check_parity(in_float, Twisted(in_float, twist), golden[:3], real, bounds=REQUANTISED)


def test_features_that_are_no_numbers_are_the_networks_fault(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    seen: list[object] = []

    def break_second(outputs: dict[str, Any], _is_golden: bool) -> dict[str, Any]:
        seen.append(outputs)
        return outputs | {"features": np.full_like(outputs["features"], np.nan)} if len(seen) == 2 else outputs

    with pytest.raises(ExportError, match="at the stage network"):
        check_parity(in_float, Twisted(in_float, break_second), golden[:3], bounds=REQUANTISED)


def test_a_handful_of_labels_does_not_stand_for_all(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    def turn_real(outputs: dict[str, Any], is_golden: bool) -> dict[str, Any]:
        return outputs if is_golden else outputs | {"probabilities": np.roll(outputs["probabilities"], 1)}

    found = check_parity(in_float, Twisted(in_float, lambda outputs, _: outputs), golden, bounds=REQUANTISED)
    assert found.n_decided > 3
    surest = sorted(golden, key=lambda photo: -float(photo.outputs["probabilities"].max()))[:3]
    real = [RealPhoto(photo.name, photo.content) for photo in surest]
    real[0] = real[0]._replace(label=int(surest[0].outputs["probabilities"].argmax()))
    with pytest.raises(ExportError, match=r"3 of \d+ labels outside the tie band"):
        check_parity(in_float, Twisted(in_float, turn_real), golden[:3], real, bounds=REQUANTISED)


def test_ties_alone_are_no_proof(in_float: Bundle, golden: list[GoldenPhoto]) -> None:
    runner = Twisted(in_float, lambda outputs, _: outputs)
    ties = []
    for photo in golden[:3]:
        ordered = np.sort(photo.outputs["probabilities"])
        if ordered[-1] - ordered[-2] < 0.2:
            ties.append(photo)
    if not ties:  # the photo that the network is least sure of, made a tie by asking for more
        least = min(golden, key=lambda photo: float(np.diff(np.sort(photo.outputs["probabilities"])[-2:])[0]))
        ties = [least]
    lead = max(float(np.diff(np.sort(photo.outputs["probabilities"])[-2:])[0]) for photo in ties)
    if lead >= 0.2:
        pytest.skip("this network is sure of every golden photo")
    with pytest.raises(ExportError, match="nothing was compared; name 100 labelled"):
        check_parity(in_float, runner, ties, bounds=REQUANTISED)


def cut_short(photo: bytes) -> bytes:
    """A photo whose header is whole and whose pixels are not."""
    return photo[: len(photo) // 2]


def test_photos_that_cannot_be_used_are_no_photos_to_try_it_on(
    in_float: Bundle, golden: list[GoldenPhoto], tmp_path: Path
) -> None:
    (tmp_path / "photos" / "apple").mkdir(parents=True)
    (tmp_path / "photos" / "apple" / "a.jpg").write_bytes(cut_short(golden[0].content))
    options = ExportOptions(run=in_float.folder, format="openvino", output=tmp_path / "out", data=tmp_path / "photos")
    with pytest.raises(DataError, match="none that can be used"):
        export_bundle(options)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    moved = tmp_path / "moved"
    shutil.copytree(in_float.folder, moved)
    (moved / "args.yaml").write_text(f"data: {json.dumps(str(tmp_path / 'photos'))}\n")
    (moved / "predictions.csv").write_text("file_name,label\napple/a.jpg,Apple\n")
    result = export_bundle(replace(options, run=moved, data=None))
    assert any("rendered photos alone" in note for note in result.notes)


def test_nothing_is_written_where_the_gate_closes(
    in_float: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(bundle: Bundle, folder: Path, _golden: object) -> None:
        (folder / ONNX_NAME).write_bytes(change(build_onnx(bundle), change_bias))

    options = ExportOptions(run=in_float.folder, format="onnx", output=tmp_path / "out")
    right = FORMATS["onnx"]
    monkeypatch.setitem(formats.FORMATS, "onnx", right._replace(write=write_wrong))
    with pytest.raises(ExportError, match="stage head"):
        export_bundle(options)
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setitem(formats.FORMATS, "onnx", right)
    export_bundle(options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    monkeypatch.setitem(formats.FORMATS, "onnx", right._replace(write=write_wrong))
    with pytest.raises(ExportError, match="stage head"):
        export_bundle(options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- OpenVINO and int8 ------------------------------------------------------------------------------------------------


def test_openvino_files_answer_as_the_bundle(in_float: Bundle, tmp_path: Path) -> None:
    result = export_bundle(ExportOptions(run=in_float.folder, format="openvino", output=tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.xml",
        "model.bin",
        "parity.json",
        "parity.md",
    }
    assert result.parities[0].largest == 0
    model = open_core().read_model(tmp_path / "out" / "model.xml")
    assert json.loads(model.get_rt_info(["pomona", "classes"]).astype(str))[0]["name"] == in_float.tree.names[0]


def test_a_network_in_float_becomes_one_in_int8(in_float: Bundle, rendered: Path, tmp_path: Path) -> None:
    result = export_bundle(ExportOptions(run=in_float.folder, format="int8", output=tmp_path / "out", data=rendered))
    (found,) = result.parities
    assert found.paired is not None
    assert found.paired.n_worse - found.paired.n_better <= 1
    assert found.stages["head"]["largest"] <= 1e-4  # the head is the bundle's own
    assert 1e-3 < found.stages["network"]["mean"] < 0.2
    assert result.files["model.bin"] < 0.5 * (in_float.folder / MODEL_NAME).stat().st_size


def test_what_has_no_form_in_int8_says_so(in_float: Bundle) -> None:
    def with_backbone(**changes: Any) -> Bundle:
        entry = in_float.manifest.embedding
        backbones = (entry.backbones[0].model_copy(update=changes),)
        embedding = entry.model_copy(update={"backbones": backbones})
        return replace(in_float, manifest=in_float.manifest.model_copy(update={"embedding": embedding}))

    from pomona.bundle import TunedEntry

    with pytest.raises(ExportError, match="lite0, lite1 or lite2, got timm:resnet18"):
        build_int8(with_backbone(name="timm:resnet18"))
    with pytest.raises(ExportError, match="from its pixels on"):
        build_int8(with_backbone(tuned=TunedEntry(layer="pixels", sha256="0" * 64)))
    with pytest.raises(ExportError, match="train the run again"):
        build_int8(with_backbone(weights_sha256="0" * 64))


def test_an_int8_bundle_in_another_runtime_stays_within_what_is_said(trained: TrainResult, tmp_path: Path) -> None:
    if trained.bundle.manifest.embedding.precision != "int8":
        pytest.skip("this machine prefers float32")
    path = tmp_path / ONNX_NAME
    path.write_bytes(build_onnx(trained.bundle))
    other, own = open_onnx_runners(trained.bundle, path)
    photos = make_golden(trained.bundle)
    exact = check_parity(trained.bundle, own, photos, bounds=formats.choose_bounds(trained.bundle, own))
    assert exact.largest == 0
    with pytest.raises(ExportError, match="stage network"):
        check_parity(trained.bundle, other, photos, bounds=EXACT)  # it does round at other places
    found = check_parity(trained.bundle, other, photos, bounds=formats.choose_bounds(trained.bundle, other))
    assert found.n_agreed == found.n_decided


# --- places and bad input ---------------------------------------------------------------------------------------------


def test_only_an_export_is_replaced(in_float: Bundle, tmp_path: Path) -> None:
    options = ExportOptions(run=in_float.folder, format="openvino", output=tmp_path / "out")
    export_bundle(options)
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    export_bundle(options)
    note = tmp_path / "out" / "my notes.txt"
    note.write_text("keep")
    with pytest.raises(StorageError, match=r"my notes\.txt"):
        export_bundle(options)
    assert note.read_text() == "keep"
    (tmp_path / "file").write_text("keep")
    with pytest.raises(StorageError, match="got a file there"):
        export_bundle(replace(options, output=tmp_path / "file"))
    with pytest.raises(OptionError, match="apart from the run"):
        export_bundle(replace(options, output=in_float.folder))
    with pytest.raises(OptionError, match="apart from the run"):
        export_bundle(replace(options, output=in_float.folder / "onnx"))
    shutil.copytree(in_float.folder, tmp_path / "other run")
    with pytest.raises(StorageError, match="no part of one"):
        export_bundle(replace(options, output=tmp_path / "other run"))
    assert (tmp_path / "other run" / MANIFEST_NAME).exists()


def test_by_default_it_stands_beside_the_run(tmp_path: Path) -> None:
    assert ExportOptions(run=tmp_path / "fruit", format="int8").find_output() == tmp_path / "fruit-int8"


def test_bad_input_is_refused_by_name(
    in_float: Bundle, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(**changes: Any) -> ExportOptions:
        return replace(ExportOptions(run=in_float.folder, format="onnx", output=tmp_path / "out"), **changes)

    with pytest.raises(OptionError, match="format: wanted one of onnx"):
        ask(format="tflite")
    with pytest.raises(BundleError, match="wanted a run folder"):
        export_bundle(ask(run=tmp_path / "nothing"))
    with pytest.raises(BundleError, match=f"no {MANIFEST_NAME}"):
        export_bundle(ask(run=rendered))
    shutil.copytree(in_float.folder, tmp_path / "damaged")
    content = bytearray((tmp_path / "damaged" / MODEL_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged" / MODEL_NAME).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=MODEL_NAME):
        export_bundle(ask(run=tmp_path / "damaged"))
    with pytest.raises(DataError):
        export_bundle(ask(data=tmp_path / "no photos"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pomona\[export\]"):
        export_bundle(ask())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size to set")
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_full_disk_leaves_nothing(in_float: Bundle, tmp_path: Path, kind: str) -> None:
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pomona.cli import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))\n"
        "run()"
    )
    command = [sys.executable, "-c", program, "export", str(in_float.folder), "--format", kind]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "could not write" in done.stderr
    assert "unexpected" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- real photos ------------------------------------------------------------------------------------------------------


def test_photos_that_the_run_was_measured_on_are_found(in_float: Bundle, tmp_path: Path) -> None:
    found = load_real(in_float, None)
    with (in_float.folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [photo.name for photo in found] == [row["file_name"] for row in rows]
    assert [in_float.tree.names[photo.label] for photo in found] == [row["label"] for row in rows]
    assert not any(photo.is_learnt for photo in found)
    moved = tmp_path / "moved"
    shutil.copytree(in_float.folder, moved)
    (moved / "args.yaml").write_text('data: "/nowhere/to/be/found"\n')
    assert load_real(load_bundle(moved), None) == ()


def test_learnt_photos_are_counted(in_float: Bundle, rendered: Path) -> None:
    real = load_real(in_float, rendered)
    assert len(real) == 24
    assert sum(photo.is_learnt for photo in real) == len(in_float.learnt_from)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_it_wrote(in_float: Bundle, tmp_path: Path) -> None:
    from pomona.cli import build_app

    runner, app = CliRunner(), build_app("export")
    arguments = ["export", str(in_float.folder), "--format", "openvino", "--output", str(tmp_path / "out")]
    done = runner.invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["format"] == "openvino"
    assert found["runtimes"][0]["largest"] == 0
    done = runner.invoke(app, arguments)
    assert "Labels agree" in done.stdout
    assert runner.invoke(app, [*arguments[:3], "coreml"]).exit_code == 2
    done = runner.invoke(app, ["export", str(tmp_path), "--format", "onnx", "--output", str(tmp_path / "o")])
    assert done.exit_code == 2  # the output is in what was named as the run
    done = runner.invoke(app, ["export", str(tmp_path / "none"), "--format", "onnx", "--output", str(tmp_path / "o")])
    assert done.exit_code == 1


# --- docker -----------------------------------------------------------------------------------------------------------


def require_service() -> None:
    from importlib import metadata

    if "serve" not in (metadata.metadata("pomona").get_all("Provides-Extra") or []):
        pytest.skip("the installed metadata of Pomona is older than its service: pip install it again")


def test_an_image_holds_what_it_needs_and_no_more(trained: TrainResult, tmp_path: Path) -> None:
    require_service()
    result = export_bundle(ExportOptions(run=trained.bundle.folder, format="docker", output=tmp_path / "out"))
    assert result.parities[0].largest == 0
    lines = (tmp_path / "out" / "requirements.txt").read_text().split()
    names = {re.split("[=><~!]", line)[0] for line in lines}
    assert {"fastapi", "uvicorn", "openvino", "pillow", "safetensors"} <= names
    assert not {"torch", "pytest", "onnx", "scikit-learn", "pomona"} & names
    assert "pillow==" in (tmp_path / "out" / "requirements.txt").read_text()  # its resize is what was measured
    text = (tmp_path / "out" / "Dockerfile").read_text()
    assert re.search(r"^USER (?!0|root)", text, re.M)
    assert re.search(r"^HEALTHCHECK .*/health", text, re.M)
    assert re.search(r"^COPY bundle .*^RUN chmod -R a\+rX bundle$.*^USER", text, re.M | re.S)  # a umask may be narrow
    assert not re.search("ENV.*TOKEN", text)
    copied = {path.name for path in (tmp_path / "out" / "bundle").iterdir()}
    assert copied == {*trained.bundle.manifest.files, MANIFEST_NAME}
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        record = archive.read(next(name for name in files if name.endswith("RECORD"))).decode()
    assert "pomona/engine.py" in files
    assert not any("__pycache__" in name for name in files)
    assert len(record.split()) == len(files)


def parse_dockerfile(text: str) -> list[tuple[str, str]]:
    """Instructions and what stands after them."""
    joined = text.replace("\\\n", "")
    rows = [line.split(" ", 1) for line in joined.splitlines() if line and not line.startswith("#")]
    return [(row[0], row[1]) for row in rows]


@pytest.mark.slow
def test_the_steps_of_an_image_make_a_service_that_answers(
    promising: TrainResult, tmp_path: Path, golden: list[GoldenPhoto]
) -> None:
    """Runs what the Dockerfile says, in an empty environment in place of an image."""
    require_service()
    pytest.importorskip("pomona.service", reason="there is no `pomona serve` yet")
    source = tmp_path / "out"
    export_bundle(ExportOptions(run=promising.bundle.folder, format="docker", output=source))
    root = tmp_path / "image"
    venv.create(tmp_path / "python", with_pip=True)
    bin_folder = tmp_path / "python" / ("Scripts" if sys.platform == "win32" else "bin")
    kept = {
        name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "HTTP", "http", "SSL", "REQUESTS"))
    }
    environment = {**kept, "PATH": f"{bin_folder}{os.pathsep}/usr/bin:/bin", "HOME": str(tmp_path)}
    place, command, health = root, [], ""
    for instruction, rest in parse_dockerfile((source / "Dockerfile").read_text()):
        if instruction == "WORKDIR":
            place = root / rest.strip("/")
            place.mkdir(parents=True)
        elif instruction == "ENV":
            environment |= dict(pair.split("=", 1) for pair in rest.split() if not pair.startswith("POMONA_CACHE"))
        elif instruction == "COPY":
            *names, target = rest.split()
            for name in names:
                if (source / name).is_dir():
                    shutil.copytree(source / name, place / target)
                else:
                    shutil.copyfile(source / name, place / target / name)
        elif instruction == "RUN" and rest.startswith("python "):
            done = subprocess.run(
                rest.split(), cwd=place, env=environment, capture_output=True, text=True, timeout=500, check=False
            )
            if done.returncode and re.search("No matching distribution|ConnectionError|Temporary failure", done.stderr):
                pytest.skip("no package index can be reached")
            assert done.returncode == 0, done.stderr[-2000:]
        elif instruction == "HEALTHCHECK":
            health = json.loads(rest[rest.index("[") :])[-1]
        elif instruction == "CMD":
            command = json.loads(rest)
        else:
            assert instruction in {"FROM", "USER", "EXPOSE"} or rest.startswith(("useradd ", "chmod ")), (
                instruction,
                rest,
            )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [part.replace("8000", str(port)).replace("0.0.0.0", "127.0.0.1") for part in command]
    log = (tmp_path / "log").open("wb")
    with subprocess.Popen([bin_folder / command[0], *command[1:]], cwd=place, env=environment, stderr=log) as server:
        try:
            deadline_s = time.monotonic() + 60
            while True:
                asked = [bin_folder / "python", "-c", health.replace("8000", str(port))]
                if subprocess.run(asked, env=environment, capture_output=True, check=False).returncode == 0:
                    break
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline_s, (tmp_path / "log").read_text()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict", golden[0].content, {"Content-Type": "image/jpeg"}
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                (said,) = json.load(reply)["predictions"]
        finally:
            server.terminate()
    log.close()
    (wanted,) = promising.bundle.predict([golden[0].content])
    assert said["label"] == wanted.label
    assert math.isclose(said["score"], wanted.score or 0, abs_tol=1e-6)
