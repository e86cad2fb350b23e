"""Reasons are those of the answer: the map adds up, the nearest photos are the nearest, and pictures harm no file."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pomona.bundle import HEAD_NAME, load_bundle
from pomona.errors import BundleError, OptionError, StorageError
from pomona.explaining import (
    Explanation,
    Nearest,
    draw_explanation,
    explain_photos,
    load_neighbours,
    paint_map,
    write_explanations,
)
from pomona.files import cache_folder
from pomona.novelty import sketch_vectors
from pomona.prediction import Answer, Prediction
from pomona.samples import KINDS, SampleOptions, write_samples
from pomona.teaching import add_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.training import TrainResult

GOLDEN = Path(__file__).parent / "golden"


def list_photos(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def compute_logits(bundle: Bundle, photos: Sequence[Path]) -> NDArray[np.float32]:
    from safetensors.numpy import load_file

    head = load_file(bundle.folder / HEAD_NAME)
    pixels = np.stack([bundle.preprocessing.read(path.read_bytes()) for path in photos])
    return np.asarray(bundle.whole_engine.run(pixels)["features"] @ head["weights"].T)  # without the bias


def draw_sample(**changes: Any) -> Explanation:
    random = np.random.default_rng(0)
    labels = ("Golden-Delicious", "苹果", "Açaí")
    top = tuple(Answer(label, score) for label, score in zip(labels, (0.6, 0.3, 0.1), strict=True))
    prediction = Prediction("basket.jpg", top[0].label, top[0].score, top)
    values: dict[str, Any] = {
        "pixels": random.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "heat_map": random.standard_normal((5, 5)).astype(np.float32),
        "nearest": (Nearest("train/a.jpg", "Golden-Delicious", 0.9), Nearest("b.jpg", "苹果", 0.5)),
    }
    return Explanation(prediction, **{**values, **changes})


# --- reasons --------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_predicting_and_maps_add_up_to_their_logits(
    trained: TrainResult, rendered: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    photos = [*list_photos(rendered)[::4], broken, list_photos(rendered)[1].read_bytes()]
    found = list(explain_photos(trained.bundle, photos, n_top=2))
    wanted = list(trained.bundle.predict(photos, n_top=2))
    assert [one.prediction.label for one in found] == [one.label for one in wanted]
    assert [one.prediction.error for one in found] == [one.error for one in wanted]
    assert found[-2].prediction.error
    assert found[-2].heat_map is None
    assert found[-2].pixels is None
    usable = [one for one in found if one.heat_map is not None]
    assert len(usable) == len(photos) - 1
    logits = compute_logits(trained.bundle, photos[:-2])
    for explanation, row in zip(usable, logits, strict=False):
        best = trained.bundle.tree.names.index(str(explanation.prediction.label))
        assert explanation.heat_map is not None
        assert explanation.heat_map.shape == (4, 4)
        assert explanation.heat_map.sum() == pytest.approx(row[best], abs=1e-3)
        assert explanation.prediction.score == pytest.approx(
            next(one.score for one in wanted if one.file == explanation.prediction.file), abs=1e-4
        )


def test_pixels_stay_with_their_photo(trained: TrainResult, rendered: Path) -> None:
    photos = list_photos(rendered)
    for photo, explanation in zip(photos, explain_photos(trained.bundle, photos), strict=True):
        assert explanation.pixels is not None
        np.testing.assert_array_equal(explanation.pixels, trained.bundle.preprocessing.read(photo.read_bytes()))


def test_a_bundle_of_before_says_to_train_again() -> None:
    for name in ("bundle-v1", "bundle-v2", "bundle-v3"):
        bundle = load_bundle(GOLDEN / name)
        with pytest.raises(BundleError, match=f"{name}: wanted a recogniser that can say why.*train again"):
            next(explain_photos(bundle, [GOLDEN / "photos" / "large.jpg"]))


def test_where_the_layer_may_be_the_reason_another_one_is_offered() -> None:
    bundle = load_bundle(GOLDEN / "bundle-v3")
    entry = bundle.manifest.embedding
    backbones = (entry.backbones[0].model_copy(update={"name": "timm:any"}),)
    manifest = bundle.manifest.model_copy(update={"embedding": entry.model_copy(update={"backbones": backbones})})
    with pytest.raises(BundleError, match="its layer has no positions: name an earlier one with --layer"):
        next(explain_photos(replace(bundle, manifest=manifest), []))


def test_a_class_that_was_taught_is_explained_exactly(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    run = Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))
    write_samples(tmp_path / "kiwis", SampleOptions(n_per_kind=12, kinds=KINDS[7:8], size_px=72, n_workers=1))
    photos = list_photos(tmp_path / "kiwis")
    name = photos[0].parent.name
    bundle = add_class(run, name, photos[:8]).bundle
    found = list(explain_photos(bundle, photos, find_nearest=load_neighbours(bundle)))
    assert [one.prediction.label for one in found].count(name) >= 10
    for explanation, row in zip(found, compute_logits(bundle, photos), strict=True):
        best = bundle.tree.names.index(str(explanation.prediction.label))
        assert explanation.heat_map is not None
        assert explanation.heat_map.sum() == pytest.approx(row[best], abs=1e-3)
    nearest = found[0].nearest[0]  # itself, which was taught and is not in the data that was trained on
    assert (nearest.label, nearest.path, nearest.name) == (name, None, photos[0].name)
    assert nearest.similarity == pytest.approx(1, abs=1e-3)


# --- the nearest photos ---------------------------------------------------------------------------------------------


def test_the_nearest_are_those_of_an_exact_search(trained: TrainResult, rendered: Path) -> None:
    bundle = trained.bundle
    photos = [rendered / name for name in bundle.bank.names] if bundle.bank else []
    pixels = np.stack([bundle.preprocessing.read(path.read_bytes()) for path in photos])
    vectors = bundle.whole_engine.run(pixels)["features"]
    sketches = sketch_vectors(vectors).astype(float)
    find = load_neighbours(bundle, n_nearest=4)
    for row in range(0, len(vectors), 5):
        found = find(vectors[row])
        cosines = sketches @ sketches[row] / np.linalg.norm(sketches, axis=1) / np.linalg.norm(sketches[row])
        assert [one.similarity for one in found] == pytest.approx(np.sort(cosines)[::-1][:4], abs=1e-3)
        assert (found[0].path, found[0].label) == (photos[row], photos[row].parent.name)


def test_photos_that_are_gone_are_named_all_the_same(
    trained: TrainResult, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import explaining

    monkeypatch.setattr(explaining, "read_setting", lambda _folder, _name: str(tmp_path / "nowhere"))
    (explanation,) = explain_photos(
        trained.bundle, [list_photos(rendered)[0]], find_nearest=load_neighbours(trained.bundle)
    )
    assert len(explanation.nearest) == 3
    assert all(one.path is None and (rendered / one.name).is_file() for one in explanation.nearest)


def test_a_recogniser_of_before_names_no_photos() -> None:
    with pytest.raises(BundleError, match="wanted what it learnt from in the bundle"):
        load_neighbours(load_bundle(GOLDEN / "bundle-v3"))


# --- pictures -------------------------------------------------------------------------------------------------------


def test_what_speaks_for_the_answer_is_red_and_what_speaks_against_it_faint() -> None:
    photo = np.full((80, 80, 3), 120, np.uint8)
    heat_map = np.zeros((4, 4), np.float32)
    heat_map[0, 0], heat_map[3, 3] = 2, -2
    painted = paint_map(photo, heat_map).astype(int)
    assert painted.shape == photo.shape
    plain, red, blue = painted[40, 40], painted[8, 8], painted[72, 72]
    assert np.ptp(plain) <= 1  # what did not matter is grey
    assert red[0] - red[2] > 100
    assert 5 < blue[2] - blue[0] < 60
    np.testing.assert_array_equal(painted, paint_map(photo, 1000 * heat_map))
    assert np.ptp(paint_map(photo, np.zeros((4, 4), np.float32))) <= 1


def test_a_picture_shows_the_photo_the_map_and_the_nearest(rendered: Path) -> None:
    first = list_photos(rendered)[0]
    picture = Image.open(io.BytesIO(draw_explanation(draw_sample())))
    few = Image.open(io.BytesIO(draw_explanation(draw_sample(nearest=()))))
    assert picture.format == "PNG"
    assert picture.height == few.height
    assert picture.width > few.width + 200
    shown = np.asarray(picture)[58 : 58 + 416, 24 : 24 + 416]
    explanation = draw_sample()
    assert explanation.pixels is not None
    wanted = Image.fromarray(explanation.pixels).resize((416, 416), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(shown, np.asarray(wanted))
    with_thumbnail = draw_sample(nearest=(Nearest("a.jpg", "Lemon", 0.9, first),))
    assert draw_explanation(with_thumbnail) != draw_explanation(
        replace(with_thumbnail, nearest=(Nearest("a.jpg", "Lemon", 0.9, first.with_name("gone.jpg")),))
    )
    with pytest.raises(OptionError, match=r"basket\.jpg: wanted an explanation to draw"):
        draw_explanation(draw_sample(pixels=None, heat_map=None))


def test_pictures_are_named_as_their_photos_and_replace_nothing_else(tmp_path: Path) -> None:
    files = ("a/1.jpg", "b/1.jpg", "-", "c/bad.jpg")
    explanations = [replace(draw_sample(), prediction=replace(draw_sample().prediction, file=file)) for file in files]
    explanations[-1] = replace(explanations[-1], heat_map=None)
    for _ in range(2):  # earlier pictures are replaced
        written = [path for _, path in write_explanations(tmp_path / "out", explanations)]
        assert written == [
            tmp_path / "out" / "1.png",
            tmp_path / "out" / "1-2.png",
            tmp_path / "out" / "photo.png",
            None,
        ]
    photo = tmp_path / "out" / "1.png"
    Image.new("RGB", (9, 9)).save(photo)
    before = photo.read_bytes()
    with pytest.raises(StorageError, match=r"1\.png is a file of another kind.*--output"):
        next(write_explanations(tmp_path / "out", explanations))
    assert photo.read_bytes() == before


# --- the command ----------------------------------------------------------------------------------------------------


def call(*arguments: object, cwd: Path, cache: str = "") -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, **({"POMONA_CACHE": cache} if cache else {})}
    command = [sys.executable, "-m", "pomona", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_command_writes_pictures_and_goes_on_after_a_bad_photo(
    trained: TrainResult, rendered: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    photo = list_photos(rendered)[0]
    done = call("explain", trained.bundle.folder, "bad.jpg", photo, "--topk", 2, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bad, good = json.loads(done.stdout)
    assert bad["error"]
    assert (bad["picture"], bad["nearest"], bad["label"]) == (None, [], None)
    assert good["picture"] == str(Path("explanations") / f"{photo.stem}.png")
    assert len(good["top"]) == 2
    assert [set(one) for one in good["nearest"]] == [{"name", "label", "similarity", "path"}] * 3
    with Image.open(tmp_path / good["picture"]) as picture:
        assert picture.width > 1000
    done = call("explain", trained.bundle.folder, photo, "--output", "why", cwd=tmp_path, cache=str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr  # all that it takes is in the bundle
    assert (tmp_path / "why" / f"{photo.stem}.png").is_file()
    done = call("explain", trained.bundle.folder, "bad.jpg", cwd=tmp_path)
    assert done.returncode == 1
    done = call("explain", GOLDEN / "bundle-v3", photo, cwd=tmp_path)
    assert done.returncode == 1
    assert "train again" in done.stderr
