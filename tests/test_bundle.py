"""A bundle answers the same for ever, and a damaged one never answers."""

from __future__ import annotations

import csv
import io
import json
import pickletools
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pomona.backbone import Preprocessing, find_backbone
from pomona.bundle import (
    BUNDLE_FORMAT,
    HEAD_NAME,
    LEARNT_NAME,
    MODEL_NAME,
    TUNED_NAME,
    Bundle,
    Manifest,
    ManifestV1,
    ManifestV2,
    ManifestV3,
    load_bundle,
    write_bundle,
)
from pomona.bundle_score import evaluate_bundle, load_labelled
from pomona.dataset import ClassTree, load_dataset
from pomona.embedding import Embedding
from pomona.enhancement import enhance
from pomona.errors import BundleDamagedError, BundleError, BundleFormatError, DataError
from pomona.features import extract_features
from pomona.files import MANIFEST_NAME, hash_bytes
from pomona.head import Head, Link
from pomona.learnt_bank import BANK_NAME
from pomona.ridge import fit_ridge
from pomona.trust import Promise

if TYPE_CHECKING:
    from collections.abc import Callable

    from pomona.training import TrainResult

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "bundle-v1-expected.json").read_text(encoding="utf-8"))
EXPECTED_V2: dict[str, Any] = json.loads((GOLDEN / "bundle-v2-expected.json").read_text(encoding="utf-8"))
EXPECTED_V3: dict[str, Any] = json.loads((GOLDEN / "bundle-v3-expected.json").read_text(encoding="utf-8"))
EXPECTED_V4: dict[str, Any] = json.loads((GOLDEN / "bundle-v4-expected.json").read_text(encoding="utf-8"))
GOLDEN_CHECKSUMS = {
    "bundle-v1": "7a856ae2afcbd0494057a57e17a478062413a30ad11d400d4a360022b84a79f2",
    "bundle-v2": "5749ca82936b9bf8b8b6983b3e0e7a469b025a3cee328fbf1095f13879c4bcf4",
    "bundle-v3": "21aef20eb88f0f7f26105b43a7f432e331e3c6693f32ab11dd7294d9933a3173",
    "bundle-v4": "0fb82b448d0cccfddd0a0a7cee82e5b5ca2a09f28aa4a017924aef3773fed309",
}
COLOURS = {"红苹果": (196, 30, 42), "Granny Smith": (96, 168, 48), "Banana": (240, 210, 40)}


@pytest.fixture
def golden() -> Bundle:
    return load_bundle(GOLDEN / "bundle-v1", n_workers=1)


@pytest.fixture(params=GOLDEN_CHECKSUMS)
def copy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Bundle of each format that a test may damage."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "bundle"))


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    return content


def _write(folder: Path, content: object) -> None:
    (folder / MANIFEST_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _find_backbone_entry(content: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = content["backbone"] if content["format"] == 1 else content["embedding"]["backbones"][0]
    return entry


def _seal(content: dict[str, Any]) -> dict[str, Any]:
    """Manifest whose checksum is right, whatever else is wrong."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return {**rest, "checksum": hash_bytes(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode())}


def _paint(path: Path, label: str, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue = COLOURS[label]
    Image.new("RGB", (24, 18), (red - shade, green - shade, blue)).save(path)
    return path


# --- the golden bundle ----------------------------------------------------------------------------------------------


def test_golden_bundle_still_answers_the_same(golden: Bundle) -> None:
    probabilities, errors = golden.predict_proba([GOLDEN / "photos" / name for name in EXPECTED])
    assert not errors
    np.testing.assert_allclose(probabilities, [one["probabilities"] for one in EXPECTED.values()], atol=1e-5)
    answers = golden.predict([GOLDEN / "photos" / name for name in EXPECTED])
    assert [answer.label for answer in answers] == [one["label"] for one in EXPECTED.values()]


def test_golden_bundle_of_format_2_still_answers_the_same() -> None:
    bundle = load_bundle(GOLDEN / "bundle-v2", n_workers=1)
    photos = [GOLDEN / "photos" / name for name in EXPECTED_V2]
    probabilities, errors = bundle.predict_proba(photos)
    assert not errors
    # Another CPU may round a few activations to the next of 256 values.
    np.testing.assert_allclose(probabilities, [one["probabilities"] for one in EXPECTED_V2.values()], atol=3e-3)
    assert [answer.label for answer in bundle.predict(photos)] == [one["label"] for one in EXPECTED_V2.values()]
    assert [len(tensor) for tensor in bundle.whole_engine.run(np.zeros((1, 32, 32, 3), np.uint8)).values()] == [1, 1]
    assert bundle.preprocessing == Preprocessing(32, decode_px=64)
    (entry,) = bundle.manifest.embedding.backbones
    assert (bundle.manifest.embedding.precision, bundle.manifest.embedding.mirrored, entry.name) == (
        *("int8", True),
        "patches",
    )
    assert len(bundle.learnt_from) == 3


def test_golden_bundle_of_format_3_still_answers_the_same() -> None:
    bundle = load_bundle(GOLDEN / "bundle-v3", n_workers=1)
    photos = [GOLDEN / "photos" / name for name in EXPECTED_V3]
    probabilities, errors = bundle.predict_proba(photos)
    assert not errors
    np.testing.assert_allclose(probabilities, [one["probabilities"] for one in EXPECTED_V3.values()], atol=1e-5)
    assert [answer.label for answer in bundle.predict(photos)] == [one["label"] for one in EXPECTED_V3.values()]
    assert bundle.preprocessing == Preprocessing(
        *(32, "crop", "bicubic", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 64),
        enhance=("white-balance", "gamma=0.8"),
        crop_share=0.875,
    )
    (entry,) = bundle.manifest.embedding.backbones
    assert entry.tuned is not None
    assert (entry.tuned.layer, entry.tuned.sha256) == ("patches", hash_bytes((bundle.folder / TUNED_NAME).read_bytes()))
    assert len(bundle.learnt_from) == 3


def test_golden_bundle_of_format_4_still_answers_the_same() -> None:
    bundle = load_bundle(GOLDEN / "bundle-v4", n_workers=1)
    photos = [GOLDEN / "photos" / name for name in EXPECTED_V4]
    found = bundle.measure(photos)
    wanted = list(EXPECTED_V4.values())
    assert not found.errors
    assert found.strangeness is not None
    np.testing.assert_allclose(found.probabilities, [one["probabilities"] for one in wanted], atol=1e-5)
    np.testing.assert_allclose(found.strangeness, [one["strangeness"] for one in wanted], atol=1e-5)
    for answer, one in zip(bundle.predict(photos), wanted, strict=True):
        assert answer.answer is not None
        assert (answer.label, answer.answer.label, answer.sure, answer.unknown) == (
            *(one["label"], one["answer"], one["sure"], one["unknown"]),
        )
        assert [listed.label for listed in answer.shortlist] == one["shortlist"]
    assert {one["answer"] for one in wanted} == {*COLOURS, "Apple", "unknown"}
    assert [(name.name_en, name.name_zh, name.plu) for name in bundle.names][1:] == [
        ("Granny Smith", None, "4017"),
        (None,) * 3,
    ]
    trust, promise = bundle.trust, bundle.promise
    assert promise == Promise(0.95, 0.98, 0.2, 0.05, 60, 40) == trust.promise
    assert (trust.link, trust.detector and trust.detector.kind) == (Link(0.5, 1.25), ("nearest", "energy"))
    assert bundle.bank is not None
    assert (bundle.bank.names[0], bundle.bank.bank.labels.tolist()) == ("水果/red.png", [0, 1, 2])
    assert len(bundle.learnt_from) == 3


def test_what_a_golden_bundle_says_of_itself_is_what_its_graph_does() -> None:
    from safetensors.numpy import load_file

    bundle = load_bundle(GOLDEN / "bundle-v4", n_workers=1)
    outputs = bundle.engine.run(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8))
    logits = Head(**load_file(bundle.folder / HEAD_NAME), l2=0).score(outputs["features"])
    np.testing.assert_allclose(outputs["probabilities"], bundle.trust.to_probabilities(logits), atol=1e-5)
    strangeness = bundle.trust.measure_strangeness(outputs["features"], logits)
    assert strangeness is not None
    np.testing.assert_allclose(outputs["unknown"], strangeness, atol=1e-5)


def test_older_formats_promise_nothing() -> None:
    for name in ("bundle-v1", "bundle-v2", "bundle-v3"):
        bundle = load_bundle(GOLDEN / name)
        assert (bundle.promise, bundle.bank, bundle.trust.detector, bundle.trust.link) == (None, None, None, Link())
        (answer,) = bundle.predict([GOLDEN / "photos" / "red.png"])
        assert (answer.answer, answer.sure, answer.unknown, answer.strangeness) == (answer.top[0], None, False, None)
        assert answer.shortlist == ()


def test_a_bundle_enhances_photos_before_its_graph_sees_them() -> None:
    bundle = load_bundle(GOLDEN / "bundle-v3")
    data = (GOLDEN / "photos" / "large.jpg").read_bytes()
    plain = replace(bundle.preprocessing, enhance=()).read(data)
    np.testing.assert_array_equal(bundle.preprocessing.read(data), enhance(plain, ["white-balance", "gamma=0.8"]))
    given = bundle.engine.run(plain[None])["probabilities"]
    right = EXPECTED_V3["large.jpg"]["probabilities"]
    assert np.abs(given - right).max() > 1e-3  # the graph alone does not


def test_older_formats_are_read_as_not_enhanced_and_not_tuned() -> None:
    for name in ("bundle-v1", "bundle-v2"):
        bundle = load_bundle(GOLDEN / name)
        assert (bundle.preprocessing.enhance, bundle.preprocessing.crop_share) == ((), 1.0)
        assert [one.tuned for one in bundle.manifest.embedding.backbones] == [None]


def test_golden_bundle_of_format_1_is_read_as_one_of_averages_in_float32(golden: Bundle) -> None:
    assert golden.manifest.format == 1
    assert golden.preprocessing == Preprocessing(32, offset=0.0, scale=255.0, decode_px=None)
    embedding = golden.manifest.embedding
    assert (embedding.pooling, embedding.mirrored, embedding.precision) == ("average", False, "f32")
    assert [one.name for one in embedding.backbones] == ["half-means"]


def test_photos_are_decoded_as_the_bundle_says(golden: Bundle) -> None:
    """A JPEG large enough for half of it to do; bundles of format 1 take it whole."""
    data = (GOLDEN / "photos" / "large.jpg").read_bytes()
    half = load_bundle(GOLDEN / "bundle-v2").preprocessing.read(data)
    whole = golden.preprocessing.read(data)
    assert not np.array_equal(half, whole)
    assert np.abs(half.astype(int) - whole).mean() < 2
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(whole, np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)))


def test_golden_bundle_has_its_classes_and_tree(golden: Bundle) -> None:
    assert golden.tree.names == ("红苹果", "Granny Smith", "Banana")
    names, nodes = golden.tree.level(1)
    assert (names, nodes.tolist()) == (("Apple", "Tropical"), [0, 0, 1])
    assert golden.manifest.provenance["option_data"] == "水果"


def test_golden_files_are_those_that_were_committed() -> None:
    # A bundle made anew would prove nothing about old ones.
    assert {name: _read(GOLDEN / name)["checksum"] for name in GOLDEN_CHECKSUMS} == GOLDEN_CHECKSUMS
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*")) < 110_000


FIELDS: dict[int, dict[str, str]] = {
    1: {
        "": "format pomona_version created classes preprocessing backbone provenance files checksum",
        "classes": "name path",
        "preprocessing": "size_px fit resample offset scale",
        "backbone": "name tag weights_sha256 licence pooled",
        "files": "head.safetensors model.onnx",
    },
    2: {
        "": "format pomona_version created classes preprocessing embedding provenance files checksum",
        "classes": "name path",
        "preprocessing": "size_px fit resample offset scale decode_px",
        "embedding": "pooling mirrored precision backbones",
        "backbones": "name tag weights_sha256 licence pooled",
        "files": "head.safetensors model.onnx",
    },
    3: {
        "": "format pomona_version created classes preprocessing embedding provenance files checksum",
        "classes": "name path",
        "preprocessing": "size_px fit resample offset scale decode_px crop_share enhance",
        "embedding": "pooling mirrored precision backbones",
        "backbones": "name tag weights_sha256 licence pooled tuned",
        "files": "head.safetensors model.onnx",
    },
    4: {
        "": "format pomona_version created classes preprocessing embedding trust provenance files checksum",
        "classes": "name path name_en name_zh plu extra",
        "preprocessing": "size_px fit resample offset scale decode_px crop_share enhance",
        "embedding": "pooling mirrored precision backbones",
        "backbones": "name tag weights_sha256 licence pooled tuned",
        "trust": "link unknown promise",
        "link": "width sharpness",
        "unknown": "kind middles spreads threshold",
        "promise": "share least_answer least_shortlist turned_away n n_groups",
        "files": "head.safetensors model.onnx",
    },
}


def test_formats_have_these_fields_for_ever(trained: TrainResult) -> None:
    assert max(FIELDS) == BUNDLE_FORMAT
    folders = {GOLDEN / name: number for number, name in enumerate(GOLDEN_CHECKSUMS, start=1)}
    for folder, number in {**folders, trained.bundle.folder: 4}.items():
        content = _read(folder)
        assert content["format"] == number
        found = {"": content, **content, "classes": content["classes"][0]}
        if number > 1:
            found["backbones"] = content["embedding"]["backbones"][0]
        if number > 3:
            found |= content["trust"]
        assert {MODEL_NAME, HEAD_NAME} <= found["files"].keys()
        found["files"] = dict.fromkeys([HEAD_NAME, MODEL_NAME])  # others came later, and may be absent
        fields = FIELDS[number]
        assert {part: set(found[part]) for part in fields} == {
            part: set(names.split()) for part, names in fields.items()
        }
    for number, kind in ((1, ManifestV1), (2, ManifestV2), (3, ManifestV3), (4, Manifest)):
        schema = kind.model_json_schema()
        assert set(schema["properties"]) == set(FIELDS[number][""].split())
        assert all(part["additionalProperties"] is False for part in (schema, *schema["$defs"].values()))


# --- a round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "precision", "mirrored"),
    [(("lite0",), "f32", False), (("lite0",), "int8", True), (("lite0", "lite2"), "int8", False)],
    ids=["f32", "int8 mirrored", "two in int8"],
)
def test_saved_graph_equals_the_head_on_its_features(
    rendered: Path, tmp_path: Path, names: tuple[str, ...], precision: Any, mirrored: bool
) -> None:
    backbones = tuple(replace(find_backbone(name, size_px=64), precision=precision) for name in names)
    embedding = Embedding(backbones, "second-order", mirrored)
    features = extract_features(load_dataset(rendered), embedding)
    tree = features.dataset.tree
    head, _, _ = fit_ridge(features.vectors, features.dataset.labels, len(tree))
    write_bundle(tmp_path, embedding=embedding, head=head, tree=tree, created="2026-01-01", provenance={"x": None})
    bundle = load_bundle(tmp_path)
    assert bundle.tree == tree
    assert bundle.preprocessing == embedding.preprocessing
    entry = bundle.manifest.embedding
    assert (entry.pooling, entry.precision, entry.mirrored) == ("second-order", precision, mirrored)
    assert [one.weights_sha256 for one in entry.backbones] == [one.weights_sha256 for one in backbones]
    probabilities, errors = bundle.predict_proba([photo.path for photo in features.dataset.photos])
    assert not errors
    np.testing.assert_allclose(probabilities, head.predict_proba(features.vectors), atol=1e-5)
    assert probabilities.max(axis=1).min() > 0.5  # sure enough that the comparison says something


def test_head_on_its_own_is_the_head_in_the_graph(trained: TrainResult, rendered: Path) -> None:
    from safetensors.numpy import load_file

    bundle = trained.bundle
    head = Head(**load_file(bundle.folder / HEAD_NAME), l2=0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    outputs = bundle.whole_engine.run(pixels)
    np.testing.assert_allclose(outputs["probabilities"], head.predict_proba(outputs["features"]), atol=1e-5)


def test_one_photo_gets_the_same_answer_alone_and_among_others(trained: TrainResult, rendered: Path) -> None:
    photos = sorted(rendered.rglob("*.jpg"))
    together, _ = trained.bundle.predict_proba(photos)
    alone = np.concatenate([trained.bundle.predict_proba([photo])[0] for photo in photos])
    np.testing.assert_array_equal(together, alone)
    backwards, _ = load_bundle(trained.bundle.folder, n_workers=3).predict_proba(photos[::-1])
    np.testing.assert_array_equal(backwards[::-1], together)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


_PREDICT = """
import sys
from pathlib import Path
from pomona.bundle import load_bundle
from pomona.bundle_score import evaluate_bundle, load_labelled
bundle = load_bundle(sys.argv[1], n_workers=1)
answers = list(bundle.predict([Path(name) for name in sys.argv[3:]]))
assert all(answer.label for answer in answers), answers
evaluate_bundle(bundle, load_labelled(bundle, sys.argv[2]))
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules} & set(%r.split())))
"""
_OF_TRAINING = "torch torchvision timm transformers kornia onnx onnxscript sklearn scipy safetensors cv2 jinja2"


@pytest.mark.parametrize("name", GOLDEN_CHECKSUMS)
def test_predicting_needs_nothing_that_training_does(tmp_path: Path, name: str) -> None:
    for label in COLOURS:
        _paint(tmp_path / label / "1.png", label)
    photos = [GOLDEN / "photos" / photo for photo in EXPECTED]
    command = [sys.executable, "-c", _PREDICT % _OF_TRAINING, GOLDEN / name, tmp_path, *photos]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("module", ["engine", "features", "effort", "learnt", "teaching", "classifier", "training"])
def test_torch_is_loaded_by_training_alone(module: str) -> None:
    code = f"import sys, pomona.{module}; print([name for name in ('torch', 'kornia', 'cv2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_in_a_run_folder_is_pickled(trained: TrainResult) -> None:
    import onnx
    from safetensors.numpy import load_file

    folder = trained.bundle.folder
    for path in folder.iterdir():
        data = path.read_bytes()
        assert path.suffix in {".json", ".onnx", ".safetensors", ".csv", ".png", ".yaml", ".html", ".txt"}, path
        assert not data.startswith((b"PK", b"\x93NUMPY", *(bytes([0x80, n]) for n in range(2, 6)))), path
        assert b"\x80\x04\x95" not in data, path  # how a frame of pickle protocols 4 and 5 begins
        assert b"ctorch" not in data, path
        assert b"_reconstruct" not in data, path
        with pytest.raises(ValueError, match=r".*"):
            list(pickletools.genops(data))
    onnx.checker.check_model(str(folder / MODEL_NAME), full_check=True)
    assert {name: tensor.dtype for name, tensor in load_file(folder / HEAD_NAME).items()} == {
        "weights": np.float32,
        "bias": np.float32,
    }


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST_NAME, MODEL_NAME, HEAD_NAME])
def test_every_flipped_bit_is_noticed(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    rng = random.Random(name)
    for place in range(len(whole)) if name == MANIFEST_NAME else rng.sample(range(len(whole)), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises((BundleDamagedError, BundleFormatError), match=name):
            load_bundle(copy)
    path.write_bytes(whole)
    load_bundle(copy)


@pytest.mark.parametrize("name", [MANIFEST_NAME, MODEL_NAME, HEAD_NAME])
def test_every_cut_is_noticed(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for n_bytes in [0, 1, *random.Random(name).sample(range(2, len(whole) - 1), 20), len(whole) - 2]:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(BundleDamagedError, match=name):
            load_bundle(copy)
    path.unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(copy)


def test_damage_to_a_real_network_is_noticed(trained: TrainResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))
    path = folder / MODEL_NAME
    for place in (0, path.stat().st_size // 2, path.stat().st_size - 1):
        with path.open("r+b") as stream:
            stream.seek(place)
            byte = stream.read(1)[0]
            stream.seek(place)
            stream.write(bytes([byte ^ 4]))
        with pytest.raises(BundleDamagedError, match=r"model\.onnx is damaged: wanted sha256 .*train it again"):
            load_bundle(folder)
        with path.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([byte]))
    load_bundle(folder)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"no json", b"\xff\xfe\x00", b"[1, 2]", b"null", b"[" * 200_000, b'{"format": 1' + b"0" * 9999, b"{}"],
)
def test_garbage_for_a_manifest_is_refused(copy: Path, garbage: bytes) -> None:
    (copy / MANIFEST_NAME).write_bytes(garbage)
    with pytest.raises(BundleDamagedError, match=r"pomona\.json is damaged"):
        load_bundle(copy)


def test_newer_format_is_refused_by_its_number(copy: Path) -> None:
    # A newer manifest may hold anything else: the number is read first.
    _write(copy, {"format": BUNDLE_FORMAT + 1, "something": "new"})
    with pytest.raises(BundleFormatError, match=r"format 5 was written by a newer Pomona.*upgrade"):
        load_bundle(copy)


@pytest.mark.parametrize("number", ["1", True, 0, -1, 1.0, None, [1]])
def test_what_is_no_format_number_is_refused(copy: Path, number: object) -> None:
    _write(copy, _seal({**_read(copy), "format": number}))
    with pytest.raises(BundleDamagedError, match="wanted a format number from 1"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(extra=1), "extra: "),
        (lambda content: _find_backbone_entry(content).update(url="x"), r"backbone(s\.0)?\.url: "),
        (lambda content: _find_backbone_entry(content).pop("licence"), r"backbone(s\.0)?\.licence: "),
        (lambda content: content["classes"][1].update(colour="green"), r"classes\.1\.colour: "),
        (lambda content: content["preprocessing"].update(fit="stretch"), r"preprocessing\.fit: "),
        (lambda content: content["preprocessing"].pop("scale"), r"preprocessing\.scale: "),
        (lambda content: content.pop("classes"), "classes: "),
        (lambda content: content["files"].pop(MODEL_NAME), r"it does not name model\.onnx"),
        (lambda content: content["files"].update({"other.bin": "0" * 64}), r"other\.bin: wanted a file of this bundle"),
    ],
)
def test_manifest_of_another_shape_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = _read(copy)
    change(content)
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["embedding"].update(pooling="third-order"), r"embedding\.pooling: "),
        (lambda content: content["embedding"].update(precision="int4"), r"embedding\.precision: "),
        (lambda content: content["embedding"].pop("mirrored"), r"embedding\.mirrored: "),
        (lambda content: content["embedding"].update(url="x"), r"embedding\.url: "),
        (lambda content: content["preprocessing"].update(decode_px="half"), r"preprocessing\.decode_px: "),
        (lambda content: content.update(format=1), "embedding|backbone"),
    ],
)
def test_embedding_of_another_shape_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v2", tmp_path / "bundle"))
    content = _read(copy)
    change(content)
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=message):
        load_bundle(copy)


def test_a_format_1_manifest_with_fields_of_format_2_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v1", tmp_path / "bundle"))
    content = _read(copy)
    content["preprocessing"]["decode_px"] = 64
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=r"preprocessing\.decode_px: "):
        load_bundle(copy)


@pytest.mark.parametrize("key", ["name_en", "name_zh", "plu", "extra"])
@pytest.mark.parametrize("name", ["bundle-v1", "bundle-v2", "bundle-v3"])
def test_an_older_manifest_with_names_of_classes_is_refused(tmp_path: Path, name: str, key: str) -> None:
    copy = Path(shutil.copytree(GOLDEN / name, tmp_path / "bundle"))
    content = _read(copy)
    content["classes"][1][key] = {} if key == "extra" else "4017"
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=rf"classes\.1\.{key}: "):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["preprocessing"].update(enhance=["gamma=0.80"]), "wanted steps in full"),
        (lambda content: content["preprocessing"].update(enhance=["clahe"]), "wanted steps in full"),
        (lambda content: content["preprocessing"].update(enhance=["sharpen"]), r"preprocessing\.enhance: .*sharpen"),
        (lambda content: content["preprocessing"].update(offset=[1.0, 2.0]), r"preprocessing\.offset\."),
        (lambda content: content["preprocessing"].update(crop_share="most"), r"preprocessing\.crop_share: "),
        (lambda content: content["preprocessing"].update(resample="nearest"), r"preprocessing\.resample: "),
        (lambda content: _find_backbone_entry(content)["tuned"].pop("sha256"), r"backbones\.0\.tuned\.sha256: "),
        (lambda content: _find_backbone_entry(content)["tuned"].update(epochs=3), r"backbones\.0\.tuned\.epochs: "),
        (lambda content: _find_backbone_entry(content)["tuned"].update(sha256="0" * 64), "tail.safetensors as it was"),
        (lambda content: content["files"].pop(TUNED_NAME), r"wanted tail\.safetensors as it was tuned"),
        (lambda content: content.update(format=2), r"preprocessing\.(resample|crop_share|enhance|offset): "),
    ],
)
def test_what_format_3_brought_is_checked(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v3", tmp_path / "bundle"))
    content = _read(copy)
    change(content)
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trust: trust["link"].update(sharpness=0), r"trust\.link\.sharpness: "),
        (lambda trust: trust["link"].update(width=-1.0), r"trust\.link\.width: "),
        (lambda trust: trust["unknown"].update(kind=["magic"]), r"trust\.unknown\.kind: .*wanted one of"),
        (lambda trust: trust["unknown"].pop("threshold"), r"trust\.unknown\.threshold: "),
        (lambda trust: trust["unknown"].update(middles=[0.0]), r"trust\.unknown: .*as many middles and spreads"),
        (lambda trust: trust["promise"].update(share=1.0), r"trust\.promise\.share: "),
        (lambda trust: trust["promise"].update(n_days=3), r"trust\.promise\.n_days: "),
        (lambda trust: trust.pop("promise"), r"trust\.promise: "),
    ],
)
def test_what_format_4_promises_is_checked(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v4", tmp_path / "bundle"))
    content = _read(copy)
    change(content["trust"])
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=message):
        load_bundle(copy)


def test_what_was_learnt_is_hashed_and_may_not_be_missing(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v4", tmp_path / "bundle"))
    data = (copy / BANK_NAME).read_bytes()
    (copy / BANK_NAME).write_bytes(data[:-1])
    with pytest.raises(BundleDamagedError, match=r"bank\.safetensors is damaged"):
        load_bundle(copy)
    (copy / BANK_NAME).write_bytes(data)
    content = _read(copy)
    del content["files"][BANK_NAME]
    _write(copy, _seal(content))
    with pytest.raises(BundleDamagedError, match=r"does not name bank\.safetensors"):
        load_bundle(copy)


def test_tuned_weights_are_hashed(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v3", tmp_path / "bundle"))
    content = bytearray((copy / TUNED_NAME).read_bytes())
    content[-1] ^= 1
    (copy / TUNED_NAME).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=r"tail\.safetensors is damaged"):
        load_bundle(copy)
    (copy / TUNED_NAME).unlink()
    with pytest.raises(BundleDamagedError, match=r"tail\.safetensors"):
        load_bundle(copy)


def test_manifest_changed_by_hand_is_refused(copy: Path) -> None:
    content = _read(copy)
    content["classes"][0]["name"] = "Pear"
    _write(copy, content)
    with pytest.raises(BundleDamagedError, match="checksum"):
        load_bundle(copy)
    _write(copy, {name: value for name, value in content.items() if name != "checksum"})
    with pytest.raises(BundleDamagedError, match="checksum"):
        load_bundle(copy)


def test_another_layout_of_the_same_manifest_is_fine(copy: Path) -> None:
    content = _read(copy)
    _write(copy, dict(reversed(content.items())))
    assert load_bundle(copy).manifest.checksum == content["checksum"]


def test_what_is_no_run_folder_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    for place in (copy / MODEL_NAME, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="wanted a run folder that `pomona train` wrote, got no folder"):
            load_bundle(place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"got no pomona\.json in it"):
        load_bundle(tmp_path / "empty")
    (tmp_path / "empty" / MANIFEST_NAME).mkdir()
    with pytest.raises(BundleError, match=r"pomona\.json cannot be read"):
        load_bundle(tmp_path / "empty")
    (copy / HEAD_NAME).unlink()
    (copy / HEAD_NAME).mkdir()
    with pytest.raises(BundleDamagedError, match=r"head\.safetensors"):
        load_bundle(copy)


# --- predictions ----------------------------------------------------------------------------------------------------


def test_answers_come_in_order_with_bad_photos_in_place(golden: Bundle, tmp_path: Path) -> None:
    bad = {"empty.jpg": b"", "text.jpg": b"not a photo", "cut.png": (GOLDEN / "photos" / "red.png").read_bytes()[:40]}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    red, green = GOLDEN / "photos" / "red.png", GOLDEN / "photos" / "green.png"
    photos = [red, tmp_path / "empty.jpg", str(green), green.read_bytes(), tmp_path, tmp_path / "none.jpg"]
    photos += [tmp_path / "text.jpg", b"", red.read_bytes(), tmp_path / "cut.png", red]
    answers = list(golden.predict(photos))
    label = {"red": "红苹果", "green": "Granny Smith", None: None}
    shown = ["red", None, "green", "green", None, None, None, None, "red", None, "red"]
    assert [answer.label for answer in answers] == [label[one] for one in shown]
    assert [answer.file for answer in answers] == ["-" if isinstance(photo, bytes) else str(photo) for photo in photos]
    for answer in answers:
        assert (answer.label is None) == (answer.score is None) == (answer.top == ()) == (answer.error is not None)
        assert json.loads(json.dumps(answer.to_dict()))["file"] == answer.file
    probabilities, errors = golden.predict_proba(photos)
    assert sorted(errors) == [i for i, one in enumerate(shown) if one is None]
    assert {i: error.fault for i, error in errors.items()}[1] == "empty"
    assert np.isnan(probabilities).all(axis=1).nonzero()[0].tolist() == sorted(errors)


@pytest.mark.parametrize("shown", ["none.jpg", "./none.jpg", "deep//none.jpg"])
def test_an_error_does_not_repeat_the_name_beside_it(golden: Bundle, shown: str) -> None:
    answer, *_ = golden.predict([shown])
    assert answer.file == shown
    assert (answer.error or "").startswith("wanted a photo file, it cannot be opened")


def test_top_answers_are_the_best_in_order(golden: Bundle) -> None:
    photo = GOLDEN / "photos" / "turned.jpg"
    for n_top, n_answers in ((1, 1), (2, 2), (3, 3), (99, 3)):
        (answer,) = golden.predict([photo], n_top=n_top)
        assert [one.label for one in answer.top] == ["红苹果", "Banana", "Granny Smith"][:n_answers]
        assert (answer.label, answer.score) == (answer.top[0].label, answer.top[0].score)
    assert sum(one.score for one in answer.top) == pytest.approx(1, abs=1e-5)


def test_no_photos_give_no_answers(golden: Bundle) -> None:
    assert list(golden.predict([])) == []
    assert golden.predict_proba([])[0].shape == (0, 3)


def test_progress_counts_every_photo(golden: Bundle, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    golden.predict_proba([GOLDEN / "photos" / "red.png", tmp_path / "none"], on_photo=lambda *n: seen.append(n))
    assert seen == [(1, 2), (2, 2)]


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_leaves_out_what_the_bundle_does_not_know(golden: Bundle, tmp_path: Path) -> None:
    for label in COLOURS:
        for i in range(2):
            _paint(tmp_path / "Fruit" / label / f"{i}.png", label, shade=i)
    _paint(tmp_path / "Fruit" / "Granny Smith" / "wrong.png", "Banana")
    for name in ("Kiwi", "Plum"):
        _paint(tmp_path / "Fruit" / name / "1.png", "Banana", shade=len(name) + 5)
    (tmp_path / "Fruit" / "Banana" / "bad.png").write_bytes((GOLDEN / "photos" / "red.png").read_bytes()[:50])
    (tmp_path / "Fruit" / "Banana" / "empty.png").touch()
    dataset = load_labelled(golden, tmp_path)
    assert sum(photo.label == -1 for photo in dataset.photos) == 2
    score = evaluate_bundle(golden, dataset)
    assert score.evaluation.n == 7
    assert score.evaluation.accuracy.value == pytest.approx(6 / 7)
    assert score.n_unknown_class == 2
    assert [label.split("/")[-1] for label in score.unknown_labels] == ["Kiwi", "Plum"]
    assert sorted(Path(one.name).name for one in score.skipped) == ["bad.png", "empty.png"]
    content = json.loads(json.dumps(score.to_dict()))
    assert (content["n"], content["n_skipped"], content["n_unknown_class"]) == (7, 2, 2)
    assert [level["level"] for level in content["levels"]] == ["level 1", "class"]


def test_evaluation_counts_photos_that_were_learnt_from(trained: TrainResult, rendered: Path, golden: Bundle) -> None:
    bundle = load_bundle(trained.bundle.folder)
    assert bundle.learnt_from == {photo.sha256 for photo in trained.dataset.part("train").photos}
    assert (bundle.folder / LEARNT_NAME).read_text().splitlines() == sorted(bundle.learnt_from)
    score = evaluate_bundle(bundle, load_labelled(bundle, rendered))
    assert (score.evaluation.n, score.n_learnt, score.to_dict()["n_learnt"]) == (24, 18, 18)
    kept_apart = evaluate_bundle(bundle, trained.dataset.part("val"))
    assert (kept_apart.evaluation.n, kept_apart.n_learnt) == (6, 0)
    assert golden.learnt_from == frozenset()  # written before there was such a file


def test_list_of_photos_learnt_from_is_hashed(trained: TrainResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))
    (folder / LEARNT_NAME).write_text("")
    with pytest.raises(BundleDamagedError, match=r"train_photos\.txt is damaged"):
        load_bundle(folder)


def test_evaluation_needs_a_photo_that_counts(golden: Bundle, tmp_path: Path) -> None:
    _paint(tmp_path / "Kiwi" / "1.png", "Banana")
    with pytest.raises(DataError, match=r"1 have a class that the bundle does not know, 0 cannot be used"):
        evaluate_bundle(golden, load_labelled(golden, tmp_path))


@pytest.mark.parametrize(
    ("parts", "asked", "taken"),
    [
        (("train", "val", "test"), None, "test"),
        (("train", "val"), None, "val"),
        (("train", "val", "test"), "val", "val"),
        (("train", "val", "test"), "train", "train"),
        (("train",), "train", "train"),
        ((), None, None),
    ],
)
def test_part_to_evaluate_on(
    golden: Bundle, tmp_path: Path, parts: tuple[str, ...], asked: Any, taken: str | None
) -> None:
    for shade, part in enumerate(parts or (".",)):
        for label in COLOURS:
            _paint(tmp_path / part / label / "1.png", label, shade)
    dataset = load_labelled(golden, tmp_path, split=asked)
    assert {photo.split for photo in dataset.photos} == {taken}
    assert dataset.n_photos == 3
    assert evaluate_bundle(golden, dataset).evaluation.accuracy.value == 1


def test_part_that_is_not_there_is_refused(golden: Bundle, tmp_path: Path) -> None:
    for label in COLOURS:
        _paint(tmp_path / "train" / label / "1.png", label)
    with pytest.raises(DataError, match="wanted the test or val part, got train; name another with --split"):
        load_labelled(golden, tmp_path)
    with pytest.raises(DataError, match="wanted the val part, got train"):
        load_labelled(golden, tmp_path, split="val")
    flat = tmp_path / "train"
    for part in flat.iterdir():
        part.rename(tmp_path / part.name)
    flat.rmdir()
    with pytest.raises(DataError, match="wanted the val part, got no parts"):
        load_labelled(golden, tmp_path, split="val")


def test_labels_are_matched_by_name_in_a_table(golden: Bundle, tmp_path: Path) -> None:
    rows = [("file_name", "label")]
    for label in ("Banana", "红苹果"):
        _paint(tmp_path / "photos" / f"{label}.png", label)
        rows.append((f"photos/{label}.png", label))
    with (tmp_path / "photos.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    dataset = load_labelled(golden, tmp_path / "photos.csv")
    assert dataset.tree == ClassTree(golden.tree.names, golden.tree.paths)
    assert sorted(dataset.labels.tolist()) == [0, 2]
    assert evaluate_bundle(golden, dataset).evaluation.accuracy.value == 1
