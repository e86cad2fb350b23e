"""A bundle that is damaged, or that a stranger made to do harm, is refused by name, and nothing outside it is read."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona.bundle import MODEL_NAME, Manifest, load_bundle, parse_manifest
from pomona.errors import BundleDamagedError, BundleError, NotFiniteError
from pomona.files import MANIFEST_NAME, hash_bytes
from pomona.learnt_bank import BANK_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ("bundle-v1", "bundle-v2", "bundle-v3", "bundle-v4")
N_FLIPS = 60


@pytest.fixture(params=FORMATS)
def copy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Bundle of each format that a test may damage."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "bundle"))


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / FORMATS[-1], tmp_path / "bundle"))


def require_refused(folder: Path, name: str) -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert name in str(caught.value)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again, as a stranger would."""
    content = json.loads((folder / MANIFEST_NAME).read_bytes())
    edit(content)
    content.pop("checksum")
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    content["checksum"] = hash_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / MANIFEST_NAME).write_text(json.dumps(content) + "\n", "utf-8")


def replace_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    change(folder, lambda manifest: manifest["files"].update({name: hash_bytes(content)}))


# --- damage ---------------------------------------------------------------------------------------------------------


def test_flipped_bits_are_refused_by_name(copy: Path) -> None:
    draw = random.Random(0)
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for _ in range(N_FLIPS):
            damaged, bit = bytearray(whole), draw.randrange(8 * len(whole))
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            require_refused(copy, path.name)
        path.write_bytes(whole)
    load_bundle(copy)


def test_cut_files_are_refused_by_name(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            require_refused(copy, path.name)
        path.write_bytes(whole)
    load_bundle(copy)


def test_missing_files_are_named(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        require_refused(copy, path.name)
        path.write_bytes(whole)
    load_bundle(copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.25", b"0.25000000000000001"),
        (b"0.25", b"2.5E-1"),
        (b"a\\u00ebb", b"a\\u00EBb"),
        (b'"b": 1', b'"b": 1, "b": 1'),
        (b"0.25", b"NaN"),
        (b"0.25", b"1e999"),
        (b'"b": 1', b'"b": ' + b"1" * 5000),
    ],
    ids=["digit", "exponent", "escape", "twice", "nan", "infinite", "long"],
)
def test_what_a_parser_forgives_is_refused(newest: Path, old: bytes, new: bytes) -> None:
    change(newest, lambda content: content["provenance"].update({"a": "a\u00ebb", "b": 1, "c": 0.25}))
    content = (newest / MANIFEST_NAME).read_bytes()
    parse_manifest(newest)
    assert content.count(old) == 1
    (newest / MANIFEST_NAME).write_bytes(content.replace(old, new))
    require_refused(newest, MANIFEST_NAME)


@pytest.mark.parametrize(
    "number", [1e-05, 5e-324, 1.7976931348623157e308, -0.0, 1.0, 100.0, 1e22, 1 / 3, 0.30000000000000004]
)
def test_every_number_that_is_written_is_read(newest: Path, number: float) -> None:
    change(newest, lambda content: content["provenance"].update({"a": number}))
    manifest = parse_manifest(newest)
    assert manifest.provenance["a"] == number
    (newest / MANIFEST_NAME).write_text(manifest.seal().model_dump_json(indent=2) + "\n", "utf-8")
    assert parse_manifest(newest).provenance["a"] == number


# --- what is no file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST_NAME, MODEL_NAME, "head.safetensors"])
def test_a_folder_in_place_of_a_file(newest: Path, name: str) -> None:
    (newest / name).unlink()
    (newest / name).mkdir()
    require_refused(newest, name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in the file system")
@pytest.mark.parametrize("name", [MANIFEST_NAME, "head.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(newest: Path, name: str) -> None:
    (newest / name).unlink()
    os.mkfifo(newest / name)
    require_refused(newest, name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no such device")
@pytest.mark.parametrize("name", [MANIFEST_NAME, "head.safetensors"])
def test_a_link_to_what_never_ends(newest: Path, name: str) -> None:
    (newest / name).unlink()
    (newest / name).symlink_to("/dev/zero")
    require_refused(newest, name)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "head.safetensors"])
def test_a_file_of_a_terabyte_is_not_read(newest: Path, name: str) -> None:
    with (newest / name).open("r+b") as stream:
        stream.truncate(2**40)
    require_refused(newest, name)


def test_a_link_to_the_same_content_is_a_file(newest: Path, tmp_path: Path) -> None:
    (newest / MODEL_NAME).rename(tmp_path / "elsewhere.onnx")
    (newest / MODEL_NAME).symlink_to(tmp_path / "elsewhere.onnx")
    load_bundle(newest)


# --- strangers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "{absolute}", "a/b", "..", ".", "", "a\\b", "a\0b", "C:secret"])
def test_files_outside_the_folder_are_not_touched(newest: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    name = name.replace("{absolute}", str(secret))
    change(newest, lambda content: content["files"].update({name: hash_bytes(b"secret")}))
    with pytest.raises(BundleDamagedError, match="wanted names of files in this folder") as caught:
        load_bundle(newest)
    assert hash_bytes(b"secret") not in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["preprocessing"].update(size_px=0),
        lambda c: c["preprocessing"].update(size_px=10**9),
        lambda c: c["preprocessing"].update(decode_px=0),
        lambda c: c["preprocessing"].update(crop_share=0.0),
        lambda c: c["preprocessing"].update(crop_share=5.0),
        lambda c: c["classes"][0].update(path=["a"] * 100_000),
        lambda c: c["classes"][0].update(name="a" * 10**6),
        lambda c: c["classes"][0].update(name="\x1b[2J"),
        lambda c: c["classes"][0].update(name_en="\x1b]0;title\x07"),
        lambda c: c["classes"][0].update(extra={"a": "\x9b2J"}),
        lambda c: c["classes"][0].update(name=""),
        lambda c: c["classes"][0].update(name=c["classes"][1]["name"]),
        lambda c: c["classes"][0].update(path=[]),
    ],
)
def test_what_would_do_harm_later_is_refused_at_once(newest: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(newest, edit)
    require_refused(newest, MANIFEST_NAME)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["classes"].pop(),
        lambda c: c["classes"].append({**c["classes"][0], "name": "more", "path": ["more"]}),
        lambda c: c["preprocessing"].update(size_px=33),
    ],
    ids=["fewer classes", "more classes", "another size"],
)
def test_a_graph_that_is_not_as_the_manifest_says(newest: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(newest, edit)
    with pytest.raises(BundleDamagedError, match=MODEL_NAME):
        list(load_bundle(newest, n_workers=1).predict([GOLDEN / "photos" / "red.png"]))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, struct.pack("<Q", 100_000) + b"[" * 100_000, struct.pack("<Q", 2) + b"{}"],
    ids=["empty", "long", "deep", "bare"],
)
def test_a_bank_that_is_none(newest: Path, content: bytes) -> None:
    replace_file(newest, BANK_NAME, content)
    bundle = load_bundle(newest)
    with pytest.raises(BundleDamagedError, match=BANK_NAME):
        _ = bundle.bank


def test_a_bank_with_labels_of_no_class(newest: Path) -> None:
    from safetensors.numpy import load, save

    tensors = load((newest / BANK_NAME).read_bytes())
    tensors["labels"] = tensors["labels"] + 100
    replace_file(newest, BANK_NAME, save(tensors))
    bundle = load_bundle(newest)
    with pytest.raises(BundleDamagedError, match="labels of"):
        _ = bundle.bank


def edit_model(folder: Path, edit: Callable[[Any], object]) -> None:
    import onnx

    model = onnx.load(folder / MODEL_NAME)
    edit(model)
    replace_file(folder, MODEL_NAME, model.SerializeToString())


def test_weights_in_another_file_are_refused(newest: Path) -> None:
    import onnx

    def move_out(model: Any) -> None:
        tensor = next(one for one in model.graph.initializer if one.raw_data)
        (newest / "notes.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="notes.bin")

    edit_model(newest, move_out)
    require_refused(newest, MODEL_NAME)


def test_no_numbers_are_no_answer(newest: Path) -> None:
    from onnx import numpy_helper

    def spoil(model: Any) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == "head_bias")
        values = numpy_helper.to_array(tensor).copy()
        values[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    edit_model(newest, spoil)
    with pytest.raises(NotFiniteError, match=r"red\.png"):
        list(load_bundle(newest, n_workers=1).predict([GOLDEN / "photos" / "red.png"]))


def test_golden_manifests_are_as_strict_as_new_ones() -> None:
    for name in FORMATS:
        assert isinstance(parse_manifest(GOLDEN / name), Manifest)
