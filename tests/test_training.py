"""Training goes the whole way, says what to beware of, and never leaves half a run or a changed photo."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pomona.backbone import find_backbone
from pomona.bundle import HEAD_NAME, MODEL_NAME, TUNED_NAME, load_bundle
from pomona.effort import plan_embedding
from pomona.errors import BundleError, DataError, FitError, NotFiniteError, OptionError, StorageError
from pomona.files import hash_bytes, hash_file
from pomona.findings import COLUMNS
from pomona.head import Head
from pomona.parts import N_FOLDS, list_folds
from pomona.ridge import RIDGE_STRENGTHS
from pomona.run_folder import CHANGES_NAME, RUN_FILES, TUNING_FILES
from pomona.samples import KINDS, render_photo
from pomona.training import TrainOptions, TrainResult, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pomona.embedding import Embedding

NAMES = {"Banana": ("Tropical", "Banana"), "Orange": ("Citrus", "Orange"), "Lemon": ("Citrus", "Lemon")}
RENDERED = {"Banana": "Tropical/Banana", "Orange": "Citrus/Orange", "Lemon": "Citrus/Lemon"}
RIDGE_FILES = RUN_FILES - {CHANGES_NAME, TUNED_NAME, *TUNING_FILES, "audit.html"}


def _train(data: Path, output: Path, **options: Any) -> TrainResult:
    return train(TrainOptions(**{"data": data, "output": output, "effort": "instant", "imgsz": 64, **options}))


def _place(rendered: Path, target: Path, numbers: Sequence[int], names: Sequence[str] = tuple(RENDERED)) -> None:
    """Copy some photos of each class."""
    for name in names:
        folder = target / RENDERED[name]
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            file = f"{name}_{number:04}.jpg"
            shutil.copy(rendered / RENDERED[name] / file, folder / file)


def _render(path: Path, name: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = next(kind for kind in KINDS if kind.name == name)
    Image.fromarray(render_photo(kind, seed=seed, size_px=72)).save(path)


def _read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hash_file(path) if path.is_file() else "")
        for path in folder.rglob("*")
    }


# --- parts and what is said of them ---------------------------------------------------------------------------------


def test_without_parts_a_fifth_is_kept_apart(trained: TrainResult) -> None:
    splits = [photo.split for photo in trained.dataset.photos]
    assert (splits.count("train"), splits.count("val")) == (18, 6)
    assert trained.evaluated_on == "photos kept apart"
    assert trained.evaluation.n == 6
    assert trained.evaluation.accuracy.value > 0.6  # three very different fruits
    assert [level.name for level in trained.evaluation.levels] == ["level 1", "class"]
    assert trained.dataset.tree.paths == (NAMES["Banana"], NAMES["Lemon"], NAMES["Orange"])
    looked = ["look", "compare", "split"]
    assert [stage.name for stage in trained.stages] == [
        "read",
        "plan",
        "features",
        *looked,
        "fit",
        "trust",
        "evaluate",
        "save",
    ]
    assert trained.notes == (
        "What is promised rests on 18 groups of photos only: photos of another day may show it to be wrong.",
        "No answer can be promised to be right in 95 of 100; none is called sure.",
        "Measured on 6 photos only, so the intervals are wide.",
    )


def test_val_part_is_measured_and_not_chosen_on(rendered: Path, tmp_path: Path) -> None:
    _place(rendered, tmp_path / "data" / "train", range(1, 6))
    _place(rendered, tmp_path / "data" / "val", range(6, 9))
    result = _train(tmp_path / "data", tmp_path / "run")
    assert (result.evaluated_on, result.evaluation.n) == ("photos of the val part", 9)
    assert not any("chosen on" in note for note in result.notes)
    assert len(_read_csv(tmp_path / "run" / "results.csv")) == len(RIDGE_STRENGTHS)  # chosen by folds of train
    assert {Path(row["file_name"]).parts[0] for row in _read_csv(tmp_path / "run" / "predictions.csv")} == {"val"}


def test_test_part_is_measured_where_there_is_one(rendered: Path, tmp_path: Path) -> None:
    for part, numbers in {"train": range(1, 5), "valid": range(5, 7), "test": range(7, 9)}.items():
        _place(rendered, tmp_path / "data" / part, numbers)
    result = _train(tmp_path / "data", tmp_path / "run")
    assert (result.evaluated_on, result.evaluation.n) == ("photos of the test part", 6)
    assert not any("chosen on" in note for note in result.notes)
    assert {Path(row["file_name"]).parts[0] for row in _read_csv(tmp_path / "run" / "predictions.csv")} == {"test"}
    assert result.bundle.manifest.provenance["n_train"] == 12
    # Without a val part the strength is chosen inside train.
    shutil.rmtree(tmp_path / "data" / "valid")
    result = _train(tmp_path / "data", tmp_path / "run2")
    assert (result.evaluated_on, result.evaluation.n) == ("photos of the test part", 6)
    assert len(_read_csv(tmp_path / "run2" / "results.csv")) == len(RIDGE_STRENGTHS)


def test_parts_without_anything_to_learn_from_are_refused(rendered: Path, tmp_path: Path) -> None:
    _place(rendered, tmp_path / "data" / "val", range(1, 3))
    _place(rendered, tmp_path / "data" / "test", range(3, 5))
    with pytest.raises(DataError, match="wanted a train part to learn from, got only test, val"):
        _train(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_notes_name_leaks_conflicts_strangers_and_lonely_classes(rendered: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    _place(rendered, data / "train", range(1, 6))
    _place(rendered, data / "val", range(6, 9))
    shutil.copy(data / "train/Citrus/Lemon/Lemon_0001.jpg", data / "val/Citrus/Lemon/leak.jpg")
    shutil.copy(data / "train/Citrus/Lemon/Lemon_0002.jpg", data / "train/Citrus/Orange/conflict.jpg")
    _render(data / "train" / "Citrus" / "Lime" / "one.png", "Lime", 1)
    for i in range(2):
        _render(data / "val" / "Kiwi" / f"{i}.png", "Kiwi", i)
    result = _train(data, tmp_path / "run")
    notes = "\n".join(result.notes)
    assert "Photos that are measured on and have a twin in train: 1, the first" in notes
    assert "val/Citrus/Lemon/leak.jpg" in notes
    assert "The same photo with different labels: 1, the first" in notes
    assert "train/Citrus/Orange/conflict.jpg" in notes
    assert "Left out, of classes that train lacks: 2 photos (Kiwi)." in notes
    assert "Learnt from one photo only: Lime." in notes
    assert "Measured on 10 photos only, so the intervals are wide." in notes
    assert result.evaluation.n == 10
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(part in page for part in ("leak.jpg", "conflict.jpg", "Kiwi", "Lime"))


def _add_mirrored(folder: Path) -> None:
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path.with_name(f"{path.stem} turned.png"))


@pytest.mark.parametrize("check", ["quick", "none"])
def test_a_photo_and_its_mirror_image_are_not_parted(rendered: Path, tmp_path: Path, check: str) -> None:
    _place(rendered, tmp_path / "data", range(1, 7))
    _add_mirrored(tmp_path / "data")
    result = _train(tmp_path / "data", tmp_path / "run", check=check)
    splits: dict[str, set[str | None]] = {}
    for photo in result.dataset.photos:
        splits.setdefault(photo.path.stem.removesuffix(" turned"), set()).add(photo.split)
    assert (max(map(len, splits.values())) == 1) == (check == "quick")
    rows = _read_csv(tmp_path / "run" / "audit.csv")
    assert len([row for row in rows if row["check"] == "near_duplicate"]) == (18 if check == "quick" else 0)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ("with photos that belong together kept together" in page) == (check == "quick")
    assert (tmp_path / "run" / "audit.html").is_file() == (check == "quick")


def test_where_each_class_is_one_scene_photos_are_parted_all_the_same_and_that_is_said(tmp_path: Path) -> None:
    for name in ("Lemon", "Banana"):
        _render(tmp_path / "data" / name / "0.png", name, 1)
        with Image.open(tmp_path / "data" / name / "0.png") as picture:
            for i in range(1, 6):
                picture.convert("RGB").save(tmp_path / "data" / name / f"{i}.jpg", quality=60 + 6 * i)
    result = _train(tmp_path / "data", tmp_path / "run")
    assert result.evaluation.n == 2
    assert "The photos of each class are of one scene" in result.notes[0]


def test_groups_that_the_user_named_are_never_parted_even_where_nothing_is_left_to_measure(
    rendered: Path, tmp_path: Path
) -> None:
    rows = [f"{path},{path.parent.name},{path.parent.name}" for path in sorted(rendered.rglob("*.jpg"))]
    (tmp_path / "data.csv").write_text("\n".join(["file_name,label,group", *rows]), encoding="utf-8")
    with pytest.raises(DataError, match="no photo can be spared"):
        _train(tmp_path / "data.csv", tmp_path / "run")


def test_photos_that_cannot_be_used_are_counted_and_listed(rendered: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    _place(rendered, data, range(1, 6))
    whole = (data / "Citrus/Lemon/Lemon_0001.jpg").read_bytes()
    (data / "Citrus/Lemon/empty.jpg").touch()
    (data / "Citrus/Lemon/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "Citrus/Lemon/words.jpg").write_text("no photo")
    (data / "Citrus/Lemon/notes.txt").write_text("not even called a photo")
    (data / "Citrus/Lemon/gone.jpg").symlink_to("nowhere.jpg")
    result = _train(data, tmp_path / "run")
    assert result.dataset.n_photos == 15
    rows = _read_csv(tmp_path / "run" / "audit.csv")
    assert {row["file_name"]: row["reason"].split(":")[0] for row in rows if row["check"] == "unusable"} == {
        "Citrus/Lemon/cut.jpg": "truncated",
        "Citrus/Lemon/empty.jpg": "empty",
        "Citrus/Lemon/gone.jpg": "not_found",
        "Citrus/Lemon/words.jpg": "not_an_image",
    }
    assert all(row["flagged"] == "1" for row in rows)
    assert "cut.jpg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_class_whose_photos_are_all_broken_is_left_out(rendered: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    _place(rendered, data / "train", range(1, 5))
    _place(rendered, data / "val", range(5, 7))
    for part in ("train", "val"):
        _render(data / part / "Kiwi" / "1.jpg", "Kiwi", len(part))
    kiwi = data / "train" / "Kiwi" / "1.jpg"
    kiwi.write_bytes(kiwi.read_bytes()[:600])
    result = _train(data, tmp_path / "run")
    assert result.dataset.tree.names == ("Banana", "Lemon", "Orange")
    assert "Left out, with no usable photo to learn from: Kiwi." in result.notes
    assert "Left out, of classes that train lacks: 1 photo (Kiwi)." in result.notes
    assert result.evaluation.n == 6
    shutil.rmtree(data / "train" / "Tropical")
    for photo in (data / "train" / "Citrus" / "Lemon").iterdir():
        photo.write_bytes(photo.read_bytes()[:600])
    with pytest.raises(
        DataError, match="wanted two classes with a usable photo to learn from, got 1; without: Kiwi, Lemon"
    ):
        _train(data, tmp_path / "run2")


def test_class_with_one_photo_is_learnt(rendered: Path, tmp_path: Path) -> None:
    _place(rendered, tmp_path / "data", range(1, 6), ["Banana", "Orange"])
    _place(rendered, tmp_path / "data", [1], ["Lemon"])
    result = _train(tmp_path / "data", tmp_path / "run")
    assert "Learnt from one photo only: Lemon." in result.notes
    assert len(result.dataset.tree) == 3


def test_two_classes_of_two_photos_are_enough(rendered: Path, tmp_path: Path) -> None:
    _place(rendered, tmp_path / "data", [1, 2], ["Banana", "Orange"])
    result = _train(tmp_path / "data", tmp_path / "run")
    assert result.evaluation.n == 2
    assert _read_csv(tmp_path / "run" / "results.csv") == []  # too few to try strengths on
    assert [answer.error for answer in load_bundle(tmp_path / "run").predict(sorted(rendered.rglob("*.jpg"))[:3])] == [
        None
    ] * 3


def _save_constant(path: Path, number: int) -> None:
    """One grey-green picture; the number stands behind its end, where no decoder looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.new("RGB", (40, 40), (90, 120, 60)).save(content, "JPEG")
    path.write_bytes(content.getvalue() + bytes(number))


def test_photos_that_are_all_alike_are_a_fit_error(tmp_path: Path) -> None:
    for i in range(8):
        _save_constant(tmp_path / "data" / "ab"[i % 2] / f"{i}.jpg", i)
    with pytest.raises(
        FitError, match=r"wanted photos that differ, got 6 photos that (all )?look the same to the network"
    ):
        _train(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_photo_a_class_cannot_be_kept_apart_and_that_is_said(rendered: Path, tmp_path: Path) -> None:
    _place(rendered, tmp_path / "data", [1])
    with pytest.raises(DataError, match=r"each of the 3 classes has only one photo.*: bring more different photos"):
        _train(tmp_path / "data", tmp_path / "run")
    for part, number in (("train", 1), ("val", 2)):
        _place(rendered, tmp_path / "parts" / part, [number])
    result = _train(tmp_path / "parts", tmp_path / "run")
    assert "Learnt from one photo only: Banana, Lemon, Orange." in result.notes
    assert "Measured on 3 photos only, so the intervals are wide." in result.notes


def test_fewer_photos_than_two_a_class_are_learnt_with_notes(rendered: Path, tmp_path: Path) -> None:
    _place(rendered, tmp_path / "data", [1])
    _place(rendered, tmp_path / "data", [2], ["Banana", "Orange"])
    result = _train(tmp_path / "data", tmp_path / "run", workers=1)
    assert (len(result.dataset.tree), result.evaluation.n) == (3, 2)
    assert "Learnt from one photo only: Banana, Lemon, Orange." in result.notes


# --- the same pixels everywhere -------------------------------------------------------------------------------------


def test_large_photos_are_seen_alike_by_training_and_predicting(rendered: Path, tmp_path: Path) -> None:
    for name, place in RENDERED.items():
        for i in range(4):
            path = tmp_path / "data" / place / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = next(kind for kind in KINDS if kind.name == name)
            small = Image.fromarray(render_photo(kind, seed=i, size_px=250))
            small.resize((2000, 1500 + i), Image.Resampling.NEAREST).save(path, quality=85)
    result = _train(tmp_path / "data", tmp_path / "run")
    preprocessing = result.bundle.preprocessing
    assert preprocessing.decode_px == 64  # so 2000 x 1500 is decoded at 1/8
    data = next((tmp_path / "data").rglob("*.jpg")).read_bytes()
    assert not np.array_equal(preprocessing.read(data), replace(preprocessing, decode_px=None).read(data))
    bundle = load_bundle(tmp_path / "run")
    rows = _read_csv(tmp_path / "run" / "predictions.csv")
    assert len(rows) == 3
    for row in rows:
        path = tmp_path / "data" / row["file_name"]
        (answer,) = bundle.predict([path], n_top=2)
        assert (answer.label, answer.top[1].label) == (row["predicted"], row["second"])
        assert answer.score == pytest.approx(float(row["score"]), abs=1e-5)
        (again,) = bundle.predict([path.read_bytes()])
        assert again.score == answer.score


def test_a_network_that_gives_no_numbers_is_run_in_float32_and_that_is_said(
    rendered: Path, tmp_path: Path, broken_int8: Callable[[Embedding], None]
) -> None:
    result = _train(rendered, tmp_path / "run")
    (note,) = [one for one in result.notes if "float32" in one]
    assert re.fullmatch(
        r"Computed in float32, more slowly: lite0-imagenet-64-int8-second-order gave numbers that are not finite for "
        r"the photo [0-9a-f]{16}\.",
        note,
    )
    assert result.bundle.manifest.embedding.precision == "f32"
    assert "Computed in float32, more slowly" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert result.evaluation.accuracy.value > 0.6
    assert all(answer.label for answer in load_bundle(tmp_path / "run").predict(sorted(rendered.rglob("*.jpg"))[:3]))
    again = _train(rendered, tmp_path / "again")
    assert note[:60] in "".join(again.notes)  # nothing that is not finite was kept in the cache


def test_a_network_that_gives_no_numbers_in_float32_either_is_an_error(
    rendered: Path, tmp_path: Path, broken_int8: Callable[[Embedding], None]
) -> None:
    broken_int8(plan_embedding("instant", size_px=64, precision="f32"))
    with pytest.raises(NotFiniteError, match="lite0-imagenet-64-second-order gave numbers that are not finite"):
        _train(rendered, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- the run folder -------------------------------------------------------------------------------------------------


def test_run_folder_holds_these_files_and_no_others(trained: TrainResult) -> None:
    assert {path.name for path in trained.bundle.folder.iterdir()} - {"audit.html"} == RIDGE_FILES
    assert [path.name for path in trained.bundle.folder.parent.iterdir()] == ["run"]  # nothing is left beside it


def test_files_of_a_run_agree_with_each_other(trained: TrainResult) -> None:
    folder = trained.bundle.folder
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) >= {
        *("n", "n_classes", "levels", "per_class", "confusion"),
        *(f"{name}{end}" for name in ("accuracy", "balanced_accuracy", "macro_f1") for end in ("", "_interval")),
    }
    rows = _read_csv(folder / "predictions.csv")
    assert len(rows) == metrics["n"] == trained.evaluation.n
    assert sum(int(row["correct"]) for row in rows) / len(rows) == metrics["accuracy"]
    assert all((row["label"] == row["predicted"]) == (row["correct"] == "1") for row in rows)
    assert all(1 >= float(row["score"]) >= float(row["second_score"]) >= 0 for row in rows)
    names = {row.name for row in trained.dataset.photos if row.split == "val"}
    assert {row["file_name"] for row in rows} == names

    fits = _read_csv(folder / "results.csv")
    assert [float(row["l2"]) for row in fits] == list(RIDGE_STRENGTHS)
    assert [row["chosen"] for row in fits].count("1") == 1
    best = min(fits, key=lambda row: float(row["log_loss"]))
    assert best["chosen"] == "1"
    assert trained.bundle.manifest.provenance["l2"] == float(best["l2"])

    pairs = [line.split(": ", 1) for line in (folder / "args.yaml").read_text(encoding="utf-8").splitlines()]
    settings = {name: json.loads(value) for name, value in pairs}
    assert set(settings) == {field.name for field in fields(TrainOptions)}
    assert (settings["imgsz"], settings["seed"], settings["workers"]) == (64, 0, None)
    provenance = trained.bundle.manifest.provenance
    kept = settings.keys() - {"data", "output"}
    assert {name: provenance[f"option_{name}"] for name in kept} == {name: settings[name] for name in kept}
    assert provenance["option_data"] == "fruit"
    assert str(folder.parent) not in (folder / "pomona.json").read_text(encoding="utf-8")
    assert settings["output"] == str(folder)  # a path of this machine is here and nowhere else
    assert provenance["dataset_fingerprint"] == trained.dataset.fingerprint

    with Image.open(folder / "confusion_matrix.png") as picture:
        picture.load()
        assert min(picture.size) > 200
    assert (folder / "audit.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)


def test_report_needs_nothing_from_outside(trained: TrainResult) -> None:
    page = (trained.bundle.folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<title>[^<]*fruit", page)
    places = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]*)""", page)
    assert all(place.startswith(("data:", "#")) or not place for place in places), places
    assert "<script src" not in page
    assert "@import" not in page


def test_predictions_of_the_run_are_those_of_the_bundle(trained: TrainResult, rendered: Path) -> None:
    bundle = load_bundle(trained.bundle.folder)
    for row in _read_csv(bundle.folder / "predictions.csv"):
        (answer,) = bundle.predict([rendered / row["file_name"]])
        assert answer.label == row["predicted"]
        assert answer.score == pytest.approx(float(row["score"]), abs=1e-5)


def _answer_again(result: TrainResult, data: Path) -> None:
    """Check that the folder, opened anew, says of each photo what was measured, and its head what its graph says."""
    from safetensors.numpy import load_file

    bundle = load_bundle(result.bundle.folder)
    rows = _read_csv(bundle.folder / "predictions.csv")
    answers = list(bundle.predict([data / row["file_name"] for row in rows]))
    assert [answer.label for answer in answers] == [row["predicted"] for row in rows]
    assert [answer.score for answer in answers] == pytest.approx([float(row["score"]) for row in rows], abs=1e-5)
    size_px = bundle.preprocessing.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (2, size_px, size_px, 3), np.uint8)
    outputs = bundle.whole_engine.run(pixels)
    head = Head(**load_file(bundle.folder / HEAD_NAME), l2=0)
    probabilities = bundle.trust.to_probabilities(head.score(outputs["features"]))
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-5)


def test_a_frozen_network_of_another_package_is_learnt_on(rendered: Path, tmp_path: Path) -> None:
    folder = _save_convnext(tmp_path / "networks" / "small")
    result = _train(rendered, tmp_path / "run", backbone=f"hf:{folder}")
    _answer_again(result, rendered)
    manifest = result.bundle.manifest
    (entry,) = manifest.embedding.backbones
    assert (entry.name, entry.licence, entry.tuned) == ("hf:small", "apache-2.0", None)
    assert entry.weights_sha256 == find_backbone(f"hf:{folder}").weights_sha256
    assert (manifest.embedding.pooling, manifest.embedding.precision) == ("average", "f32")
    assert result.bundle.preprocessing.resample == "bicubic"
    assert result.bundle.preprocessing.offset == (127.5, 102.0, 76.5)
    assert manifest.provenance["option_backbone"] == "hf:small"
    # Its folder is one of this machine, and a bundle is passed on.
    assert str(tmp_path) not in (tmp_path / "run" / "pomona.json").read_text("utf-8")


def _save_convnext(folder: Path) -> Path:
    """A small network with random weights, as its package saves it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    options = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
    transformers.logging.disable_progress_bar()
    transformers.ConvNextModel(transformers.ConvNextConfig(**options)).save_pretrained(folder)
    side = {"height": 64, "width": 64}
    facts = {"size": side, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def test_features_are_taken_from_the_layer_that_is_named(rendered: Path, tmp_path: Path) -> None:
    result = _train(rendered, tmp_path / "run", backbone="lite0", layer="stage5", effort=None)
    _answer_again(result, rendered)
    embedding = result.bundle.manifest.embedding
    assert embedding.pooling == "average"
    assert [one.pooled for one in embedding.backbones] == [("stage5",)]
    assert result.bundle.manifest.provenance["option_layer"] == "stage5"
    features = result.bundle.whole_engine.run(np.zeros((1, 64, 64, 3), np.uint8))["features"]
    assert features.shape == (1, 112)


def test_photos_are_enhanced_by_training_and_predicting_alike(
    rendered: Path, trained: TrainResult, tmp_path: Path
) -> None:
    result = _train(rendered, tmp_path / "run", enhance="gamma=0.80")
    _answer_again(result, rendered)
    assert result.bundle.manifest.preprocessing.enhance == ("gamma=0.8",)
    assert trained.bundle.manifest.preprocessing.enhance == ()
    photo = next(rendered.rglob("*.jpg"))
    bright, plain = (run.bundle.preprocessing.read(photo.read_bytes()).mean() for run in (result, trained))
    assert bright > plain + 5
    head, other = ((run.bundle.folder / HEAD_NAME).read_bytes() for run in (result, trained))
    assert head != other


@pytest.mark.parametrize(("refit", "head"), [(None, "ridge"), (False, "gradient")])
def test_a_tuned_network_is_saved_with_its_weights(
    rendered: Path, tmp_path: Path, refit: bool | None, head: str
) -> None:
    pytest.importorskip("torch")
    options = {"tune": "tail", "layer": "stage6", "backbone": "lite0", "epochs": 1, "batch": 8, "refit": refit}
    result = _train(rendered, tmp_path / "run", effort=None, enhance="white-balance", **options)
    _answer_again(result, rendered)
    folder = result.bundle.folder
    (entry,) = result.bundle.manifest.embedding.backbones
    assert entry.tuned is not None
    assert (entry.tuned.layer, entry.tuned.sha256) == ("stage6", hash_bytes((folder / TUNED_NAME).read_bytes()))
    assert result.bundle.manifest.files[TUNED_NAME] == entry.tuned.sha256
    assert result.bundle.manifest.preprocessing.enhance == ("white-balance",)
    assert result.bundle.manifest.provenance["head"] == head
    assert [row["epoch"] for row in _read_csv(folder / "results.csv")] == ["1"]
    assert {path.name for path in folder.iterdir()} <= RUN_FILES
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_same_seed_gives_the_same_run(rendered: Path, trained: TrainResult, tmp_path: Path) -> None:
    again = _train(rendered, tmp_path / "run", workers=1)
    for name in ("model.onnx", "head.safetensors", "metrics.json", "predictions.csv", "confusion_matrix.png"):
        assert hash_file(tmp_path / "run" / name) == hash_file(trained.bundle.folder / name), name
    other = _train(rendered, tmp_path / "other", seed=1)
    kept_apart = [{photo.name for photo in run.dataset.photos if photo.split == "val"} for run in (again, other)]
    assert kept_apart[0] != kept_apart[1]


def test_photos_are_never_changed(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered, tmp_path / "data")
    (tmp_path / "data" / "Citrus" / "Lemon" / "bad.jpg").write_bytes(b"bad")
    (tmp_path / "data" / "notes.txt").write_text("mine")
    before = _fingerprint(tmp_path / "data")
    _train(tmp_path / "data", tmp_path / "run")
    list(load_bundle(tmp_path / "run").predict(sorted((tmp_path / "data").rglob("*.jpg"))))
    assert _fingerprint(tmp_path / "data") == before


# --- where a run may go ---------------------------------------------------------------------------------------------


def test_second_run_replaces_the_first_whole(rendered: Path, tmp_path: Path) -> None:
    _train(rendered, tmp_path / "run")
    first = _fingerprint(tmp_path / "run")
    _place(rendered, tmp_path / "data", range(1, 6), ["Banana", "Orange"])
    _train(tmp_path / "data", tmp_path / "run")
    assert load_bundle(tmp_path / "run").tree.names == ("Banana", "Orange")
    assert _fingerprint(tmp_path / "run").keys() == first.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def _fail_if_read(data: Path, output: Path, error: type[Exception], message: str) -> None:
    """Training must refuse at once: the data does not even exist."""
    with pytest.raises(error, match=message):
        _train(data, output)


def test_place_with_other_things_is_refused_before_any_work(trained: TrainResult, tmp_path: Path) -> None:
    nothing = tmp_path / "no data"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "file").write_text("mine")
    before = _fingerprint(tmp_path)
    _fail_if_read(nothing, tmp_path / "mine", StorageError, "got something else there; choose another --output")
    _fail_if_read(nothing, tmp_path / "file", StorageError, "could not look into .*a file stands where a folder")
    _fail_if_read(nothing, tmp_path / "file" / "run", StorageError, "got the file .* above it")
    _fail_if_read(nothing, Path("/"), StorageError, "got something else there")
    assert _fingerprint(tmp_path) == before
    run = Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))
    (run / "my photo.jpg").write_bytes(b"mine")
    (run / ".DS_Store").touch()
    _fail_if_read(nothing, run, StorageError, "no part of a run: my photo.jpg; move that away")
    assert (run / "my photo.jpg").read_bytes() == b"mine"


def test_photo_put_into_the_old_run_while_training_is_not_lost(rendered: Path, tmp_path: Path) -> None:
    _train(rendered, tmp_path / "run")

    def put(step: str, n_done: int, n_total: int) -> None:
        (tmp_path / "run" / "mine.jpg").write_bytes(b"mine")

    with pytest.raises(StorageError, match=r"mine\.jpg"):
        train(TrainOptions(data=rendered, output=tmp_path / "run", effort="instant", imgsz=64), on_progress=put)
    assert (tmp_path / "run" / "mine.jpg").read_bytes() == b"mine"
    load_bundle(tmp_path / "run")


def test_run_inside_the_photos_is_refused(rendered: Path, tmp_path: Path) -> None:
    before = _fingerprint(rendered)
    (tmp_path / "link").symlink_to(rendered)
    for output in (rendered / "run", rendered, tmp_path / "link" / "deep" / "run"):
        _fail_if_read(rendered, output, OptionError, "wanted a folder outside the photos")
    assert _fingerprint(rendered) == before


def test_links_in_the_way_are_followed_or_refused(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "link").symlink_to("real")
    _fail_if_read(tmp_path / "no data", tmp_path / "circle", StorageError, "a link that leads in a circle")
    with pytest.raises(DataError, match="circle: wanted a folder"):
        _train(tmp_path / "circle", tmp_path / "run")
    for _ in range(2):
        _train(rendered, tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        load_bundle(tmp_path / "real")


def test_place_without_permission_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    _fail_if_read(tmp_path / "no data", tmp_path / "closed" / "run", StorageError, "got no permission in")


def test_default_place_is_named_after_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fruit.v2").mkdir()
    (tmp_path / "list.of.csv").touch()
    wanted = {"fruit.v2": "fruit.v2", "list.of.csv": "list.of", "photos/*/*.jpg": "photos", "fruit.v2/": "fruit.v2"}
    wanted |= {"../tree.v1/*/*/*.jpg": "tree.v1", "*/*.jpg": tmp_path.name, "/*/*.jpg": "run"}
    for data, name in wanted.items():
        assert TrainOptions(data=Path(data)).resolve().output == Path("runs") / name


def test_default_place_is_not_that_of_a_run_of_other_data(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one/fruit", "two/fruit"):
        _place(rendered, tmp_path / name, range(1, 4), ["Banana", "Orange"])
    places = []
    for data in ("one/fruit", "two/fruit", "one/fruit"):
        result = train(TrainOptions(data=Path(data), effort="instant", imgsz=64))
        places.append(str(result.bundle.folder))
    assert places == ["runs/fruit", "runs/fruit-2", "runs/fruit"]
    for data in ("two/fruit", str(tmp_path / "two" / "fruit")):
        assert TrainOptions(data=Path(data)).resolve().output == Path("runs/fruit-2")
    (tmp_path / "runs" / "fruit" / "args.yaml").write_text("data: [")  # nobody knows of what data this run is
    assert TrainOptions(data=Path("one/fruit")).resolve().output == Path("runs/fruit-3")
    named = TrainOptions(data=Path("one/fruit"), output=Path("runs/fruit-2")).resolve()
    assert named.output == Path("runs/fruit-2")  # whoever names a place means it


def test_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = TrainOptions(data=Path("~/fruit"), output=Path("~/run")).resolve()
    assert (options.data, options.output) == (tmp_path / "fruit", tmp_path / "run")


def test_photo_that_changes_while_training_is_not_blamed_on_the_cache(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered, tmp_path / "data")

    def change(step: str, n_done: int, n_total: int) -> None:
        if step == "save":
            for i, photo in enumerate(sorted((tmp_path / "data").rglob("*.jpg"))):
                Image.new("RGB", (20, 20), (i, 200, 9)).save(photo)

    options = TrainOptions(data=tmp_path / "data", output=tmp_path / "run", effort="instant", imgsz=64)
    train(options, on_progress=change)
    load_bundle(tmp_path / "run")


# --- folds ----------------------------------------------------------------------------------------------------------


def test_folds_hold_out_only_what_they_have_learnt() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2])  # nothing is left of class 2 where its only photo is held out
    groups = np.array([str(i) for i in range(13)])
    folds = list_folds(labels, groups, seed=0)
    assert len(folds) == N_FOLDS
    held_out = np.concatenate([rows for _, rows in folds])
    assert sorted(held_out) == list(range(12))
    assert any(12 in fitted for fitted, _ in folds)
    assert all(set(labels[rows]) <= set(labels[fitted]) for fitted, rows in folds)


@pytest.mark.parametrize(
    ("labels", "groups", "n_folds"),
    [([0, 0, 1, 1], "abcd", 4), ([0, 1], "ab", 0), ([0, 0, 1], "aab", 0), ([0, 0, 1], "abc", 2), ([0, 1, 0], "aab", 2)],
)
def test_folds_are_as_many_as_are_of_use(labels: list[int], groups: str, n_folds: int) -> None:
    assert len(list_folds(np.array(labels), np.array(list(groups)), seed=0)) == n_folds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": 0}, "val-share: wanted a share between 0 and 1, got 0"),
        ({"val_share": float("nan")}, "val-share"),
        ({"workers": 0}, "workers: wanted 1 or more, got 0"),
        ({"backbone": "resnet"}, "backbone: wanted one of lite0"),
        ({"imgsz": 8}, "imgsz: wanted 64 to 1024"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainOptions(data=tmp_path, **options).resolve()


def test_names_that_are_no_text_do_not_end_a_run(rendered: Path, tmp_path: Path) -> None:
    data = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n\xf0\x9f\x8d\x8e"))
    try:
        data.mkdir()
    except OSError:
        pytest.skip("this file system takes only text for names")
    for i, name in enumerate(("苹果 🍎", "a\nb", os.fsdecode(b"\xff\xfe"))):
        (data / name).mkdir()
        for number in range(1, 4):
            source = rendered / list(RENDERED.values())[i] / f"{list(RENDERED)[i]}_{number:04}.jpg"
            shutil.copy(source, data / name / os.fsdecode(b"\xe9 \n" + str(number).encode() + b".jpg"))
    result = _train(data, tmp_path / "run")
    assert "苹果 🍎" in result.dataset.tree.names
    bundle = load_bundle(tmp_path / "run")
    assert bundle.manifest.provenance["option_data"] == "caf\ufffd\ufffd🍎"
    assert all(answer.label for answer in bundle.predict([photo.path for photo in result.dataset.photos]))


# --- failures in the middle -----------------------------------------------------------------------------------------

_LIMITED = """
    import resource, sys
    from pathlib import Path
    from pomona.errors import StorageError
    from pomona.training import TrainOptions, train
    data, output, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(TrainOptions(data=data, output=output, effort="instant", imgsz=64))
    except StorageError as error:
        print(error)
        sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sizes of files cannot be limited on Windows")
@pytest.mark.parametrize("limit", [1_000, 100_000, None])
def test_failed_write_leaves_the_old_run_as_it_was(
    rendered: Path, trained: TrainResult, tmp_path: Path, limit: int | None
) -> None:
    limit = limit or (trained.bundle.folder / MODEL_NAME).stat().st_size - 1  # all but the last byte fits
    for place in ("run", "fresh"):
        output = tmp_path / place / "run"
        output.parent.mkdir()
        if place == "run":
            shutil.copytree(trained.bundle.folder, output)
        before = _fingerprint(output.parent)
        code = [sys.executable, "-c", textwrap.dedent(_LIMITED), str(rendered), str(output), str(limit)]
        done = subprocess.run(code, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 7, done.stderr
        assert "could not" in done.stdout
        assert _fingerprint(output.parent) == before  # the old run, or nothing; no partial files
    load_bundle(tmp_path / "run" / "run")


_KILLED = """
    import sys
    from pathlib import Path
    from pomona.training import TrainOptions, train
    def say(step, n_done, n_total):
        print(step, flush=True)
    data, output, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    train(TrainOptions(data=data, output=output, effort="instant", imgsz=64, seed=seed), on_progress=say)
    print("done", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_run_leaves_the_old_one_or_a_whole_new_one(rendered: Path, trained: TrainResult, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "run"
    random_delay = random.Random(0)
    moments = ["read", "features", "fit", "save", "save", "save", "save", "save"]
    for seed, moment in enumerate(moments, start=1):
        if seed == 3:  # from here on there is an old run
            shutil.copytree(trained.bundle.folder, output, dirs_exist_ok=True)
        before = _fingerprint(output) if output.exists() else {}
        code = [sys.executable, "-c", textwrap.dedent(_KILLED), str(rendered), str(output), str(seed)]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            while process.stdout.readline().strip() not in {moment, "done", ""}:
                pass
            time.sleep(random_delay.uniform(0, 0.3 if moment == "save" else 0.01))
            process.send_signal(signal.SIGKILL)
        if output.exists() and _fingerprint(output) != before:
            assert {path.name for path in output.iterdir()} - {"audit.html"} == RIDGE_FILES
        if output.exists():
            assert not load_bundle(output).predict_proba([next(rendered.rglob("*.jpg"))])[1]
        elif seed > 2:
            pytest.fail("the old run is gone")
    result = _train(rendered, output)
    assert hash_file(output / MODEL_NAME) == hash_file(trained.bundle.folder / MODEL_NAME)
    assert np.isfinite(result.evaluation.accuracy.value)


# --- trust ----------------------------------------------------------------------------------------------------------


def test_a_run_says_how_far_it_can_be_trusted(promising: TrainResult) -> None:
    folder = promising.bundle.folder
    rows = _read_csv(folder / "predictions.csv")
    columns = "file_name label predicted score second second_score correct answer sure unknown strangeness"
    assert list(rows[0]) == columns.split()
    manifest = promising.bundle.manifest
    assert manifest.trust is not None
    assert manifest.trust.promise is not None
    assert manifest.trust.unknown is not None
    assert (manifest.trust.promise.share, manifest.provenance["option_promise"]) == (0.8, 0.8)
    assert promising.evidence is not None
    assert manifest.trust.unknown.kind == max(promising.evidence.candidates, key=lambda one: one[1])[0]
    n_learnt = sum(photo.split == "train" for photo in promising.dataset.photos)
    assert manifest.trust.promise.n == n_learnt
    assert promising.bundle.bank is not None
    learnt = [photo.name for photo in promising.dataset.photos if photo.split == "train"]
    assert sorted(promising.bundle.bank.names) == sorted(learnt)
    bundle = load_bundle(folder)
    data = {photo.name: photo for photo in promising.dataset.part("val").photos}
    for row, said in zip(rows, bundle.predict([data[row["file_name"]].path for row in rows]), strict=True):
        assert said.answer is not None
        assert (row["answer"], row["sure"], row["unknown"]) == (
            *(said.answer.label, str(int(bool(said.sure))), str(int(said.unknown))),
        )
        assert float(row["strangeness"]) == pytest.approx(said.strangeness, abs=1e-4)
    assert {row["sure"] for row in rows} <= {"0", "1"}


def test_a_second_run_from_the_cache_gives_the_same_trust(rendered: Path, trained: TrainResult, tmp_path: Path) -> None:
    again = _train(rendered, tmp_path / "run")
    assert again.bundle.manifest.trust == trained.bundle.manifest.trust
    assert again.evidence is not None
    assert trained.evidence is not None
    assert again.evidence.to_dict() == trained.evidence.to_dict()
    for name in (MODEL_NAME, "bank.safetensors", "predictions.csv"):
        assert hash_file(again.bundle.folder / name) == hash_file(trained.bundle.folder / name)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("promise", (0, 1, -0.1, 95), "promise: wanted a share between 0 and 1, got"),
        ("turn_away", (0, 1, 5), "turn-away: wanted a share between 0 and 1, got"),
        ("folds", (1, 51), "wanted 2 to 50 folds and 1 to 20 repeats, got"),
        ("repeats", (0, 21), "wanted 2 to 50 folds and 1 to 20 repeats, got"),
    ],
)
def test_what_cannot_be_promised_is_refused(name: str, values: tuple[float, ...], message: str) -> None:
    for value in values:
        with pytest.raises(OptionError, match=message):
            TrainOptions(**{"data": Path("x"), name: value})


def test_photos_of_one_scene_a_class_promise_nothing(rendered: Path, tmp_path: Path) -> None:
    """Then probabilities come from the head alone, and nothing is unknown."""
    lines = ["file_name,label,split,group"]
    for name, place in RENDERED.items():
        for number in range(1, 9):
            split, group = ("train", name) if number < 5 + len(name) % 2 else ("val", f"{name} {number}")
            lines.append(f"{rendered / place / name}_{number:04}.jpg,{place},{split},{group}")
    (tmp_path / "photos.csv").write_text("\n".join(lines), encoding="utf-8")
    result = _train(tmp_path / "photos.csv", tmp_path / "run")
    bundle = load_bundle(tmp_path / "run")
    assert result.evidence is None
    assert bundle.manifest.trust is not None
    assert (bundle.promise, bundle.manifest.trust.unknown) == (None, None)
    assert any("No photos could be held out" in note for note in result.notes)
    assert "unknown" not in bundle.engine.outputs
    (answer,) = bundle.predict([rendered / RENDERED["Lemon"] / "Lemon_0001.jpg"])
    assert (answer.answer, answer.sure, answer.unknown) == (answer.top[0], None, False)
    assert {(row["sure"], row["unknown"]) for row in _read_csv(tmp_path / "run" / "predictions.csv")} == {("", "0")}


def test_a_graph_that_gives_no_numbers_is_not_kept(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import model_file

    build = model_file.build_model

    def spoil(network: Path, head: Head, trust: Any) -> bytes:
        return build(network, replace(head, bias=head.bias + np.float32("nan")), trust)

    monkeypatch.setattr("pomona.bundle.build_model", spoil)
    with pytest.raises(BundleError, match="does not repeat what was measured"):
        _train(rendered, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_each_class_is_one_scene_val_chooses_and_that_is_said(rendered: Path, tmp_path: Path) -> None:
    rows = ["file_name,label,split,group"]
    for name, place in RENDERED.items():
        for number in range(1, 7):
            split = "val" if number > 4 else "train"
            rows.append(f"{rendered / place / f'{name}_{number:04}.jpg'},{name},{split},{name}{split}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    result = _train(tmp_path / "photos.csv", tmp_path / "run")
    assert any("chosen on the same val photos" in note for note in result.notes)
    assert result.evidence is None
    bank = load_bundle(tmp_path / "run").bank
    assert bank is not None
    assert not any(
        name.startswith((".", "/")) or str(tmp_path) in name for name in bank.names
    )  # no folder of this machine
