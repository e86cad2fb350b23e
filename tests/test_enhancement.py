"""Steps do what they say and nothing else, off changes no key, and what they do to the answers is told from chance."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pomona.backbone import Preprocessing, find_backbone
from pomona.comparison import Difference
from pomona.dataset import load_dataset
from pomona.effort import plan_embedding
from pomona.embedding import Embedding
from pomona.enhancement import (
    ENHANCE_STEPS,
    MAX_GAIN,
    complete_steps,
    describe_step,
    enhance,
    measure_light,
    parse_enhancement,
)
from pomona.enhancement_effect import (
    Effect,
    Effects,
    describe_steps,
    list_variants,
    measure_effects,
)
from pomona.enhancement_sheet import measure_tone
from pomona.errors import DataError, MissingPackageError, OptionError
from pomona.photo import read_photo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

STEPS = ("white-balance", "clahe=2", "denoise=3", "gamma=0.8")
PLAIN = plan_embedding("instant", size_px=64, precision="f32")


def make_photo(height_px: int, width_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coarse colours with a little grain."""
    random = np.random.default_rng(seed)
    coarse = random.integers(20, 220, (max(1, height_px // 8), max(1, width_px // 8), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC))
    return (smooth + random.normal(0, 2, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fruit(rendered: Path) -> list[NDArray[np.uint8]]:
    return [read_photo(path) for path in sorted(rendered.rglob("*.jpg"))[::6]]


def measure_noise(photo: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.mean((photo.astype(float) - wanted) ** 2)))


# --- texts ----------------------------------------------------------------------------------------------------------


def list_numbers(name: str) -> st.SearchStrategy[str]:
    step = next(step for step in ENHANCE_STEPS if step.name == name)
    if not step.parameter:
        return st.just(name)
    return st.floats(step.low, step.high).map(lambda value: f"{name}={value!r}")


@given(st.permutations([step.name for step in ENHANCE_STEPS]), st.integers(0, len(ENHANCE_STEPS)), st.data())
def test_what_is_parsed_is_parsed_the_same_again(names: list[str], n_steps: int, data: st.DataObject) -> None:
    written = [data.draw(list_numbers(name)) for name in names[:n_steps]]
    steps = parse_enhancement(" , ".join(written))
    assert [step.partition("=")[0] for step in steps] == names[:n_steps]  # the order is kept
    assert parse_enhancement(",".join(steps)) == steps == complete_steps(steps)
    for text, step in zip(written, steps, strict=True):
        if "=" in text:
            assert float(step.partition("=")[2]) == pytest.approx(float(text.partition("=")[2]), rel=1e-5)


def test_numbers_that_are_left_out_are_written_down() -> None:
    assert parse_enhancement("clahe,denoise") == ("clahe=2", "denoise=3")
    assert parse_enhancement("gamma = 1.20") == ("gamma=1.2",)
    assert parse_enhancement("clahe=2.0") == ("clahe=2",)
    assert parse_enhancement("") == parse_enhancement(" none ") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clache", r"wanted steps among white-balance, clahe, denoise, gamma, got 'clache'; did you mean clahe\?"),
        ("White-Balance", r"got 'White-Balance'; did you mean white-balance\?"),
        ("sharpen-it", r"got 'sharpen-it'$"),
        ("clahe,,gamma=1", r"got ''$"),
        ("clahe,none", r"got 'none'"),
        ("gamma", r"wanted gamma=NUMBER, exponent from 0\.2 to 5, got ''"),
        ("gamma=", r"from 0\.2 to 5, got ''"),
        ("gamma=light", r"from 0\.2 to 5, got 'light'"),
        ("gamma=0.1", r"from 0\.2 to 5, got 0\.1"),
        ("gamma=nan", r"from 0\.2 to 5, got nan"),
        ("clahe=inf", r"clip limit from 1 to 10, got inf"),
        ("clahe=0", r"clip limit from 1 to 10, got 0"),
        ("clahe=2=3", r"got '2=3'"),
        ("denoise=-3", r"strength in levels of 255 from 1 to 20, got -3"),
        ("white-balance=2", r"wanted white-balance without a number, got 'white-balance=2'"),
        ("clahe=2,gamma=1,clahe=3", r"wanted each step once, got clahe 2 times"),
    ],
)
def test_steps_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_enhancement(text)


def test_steps_are_said_for_people() -> None:
    assert [describe_step(step) for step in STEPS[1:3]] == ["Local contrast (CLAHE) 2", "Denoise 3"]
    assert describe_steps(STEPS[::3]) == "White balance + Gamma 0.8"


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_no_step_gives_the_photo_itself() -> None:
    photo = make_photo(20, 30)
    assert enhance(photo, ()) is photo


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(STEPS), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_step_keeps_shape_and_type_and_leaves_its_input(step: str, height_px: int, width_px: int, seed: int) -> None:
    photo = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    kept = photo.copy()
    photo.setflags(write=False)  # as Pillow gives them
    enhanced = enhance(photo, [step])
    assert (enhanced.shape, enhanced.dtype) == (photo.shape, np.uint8)
    np.testing.assert_array_equal(photo, kept)
    np.testing.assert_array_equal(enhanced, enhance(np.asfortranarray(kept), [step]))  # the same again


@pytest.mark.parametrize("step", STEPS)
def test_each_step_does_something_and_steps_go_in_order(step: str, fruit: list[NDArray[np.uint8]]) -> None:
    photo = fruit[0]
    assert not np.array_equal(enhance(photo, [step]), photo)
    other = STEPS[(STEPS.index(step) + 1) % len(STEPS)]
    np.testing.assert_array_equal(enhance(photo, [step, other]), enhance(enhance(photo, [step]), [other]))


def test_threads_get_the_same_as_one_and_opencv_is_left_as_it_is() -> None:
    import cv2

    n_threads = cv2.getNumThreads()
    photos = [make_photo(160, 160, seed) for seed in range(12)]
    alone = [enhance(photo, STEPS) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda photo: enhance(photo, STEPS), photos))
    np.testing.assert_array_equal(together, alone)
    assert cv2.getNumThreads() == n_threads


@pytest.mark.parametrize("photo", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_photo_is_refused(photo: Any) -> None:
    with pytest.raises(ValueError, match=r"photo: wanted \(H, W, 3\) uint8, got"):
        enhance(photo, ["clahe"])


def tint(photo: NDArray[np.uint8], *gains: float) -> NDArray[np.uint8]:
    return (photo * np.array(gains)).round().clip(0, 255).astype(np.uint8)


def test_white_balance_takes_a_tint_out_of_a_real_photo(shared: Path) -> None:
    path = sorted((shared / "data" / "grocery" / "train").rglob("*.jpg"))[700]
    photo = Preprocessing(160).read(path.read_bytes()) // 2 + 20  # so that no tint clips it
    balanced = enhance(photo, ["white-balance"])
    tinted = tint(photo, 1.2, 0.95, 0.8)
    again = enhance(tinted, ["white-balance"])
    light = measure_light(again)
    assert np.ptp(measure_light(tinted)) > 30
    assert np.ptp(light) < 0.5
    level = light.mean() / measure_light(balanced).mean()  # the brightness of the tint may stay, its colour may not
    assert measure_noise(again, tint(balanced, level, level, level)) < 1.5 < 10 < measure_noise(tinted, photo)


def test_white_balance_does_not_turn_a_red_photo_grey() -> None:
    red = np.full((8, 8, 3), (220, 30, 30), np.uint8)
    balanced = enhance(red, ["white-balance"])[0, 0]
    np.testing.assert_array_equal(balanced, (110, 60, 60))
    assert MAX_GAIN == 2
    for colour in ((0, 0, 0), (90, 0, 0), (255, 255, 255)):
        plain = np.full((8, 8, 3), colour, np.uint8)
        assert (enhance(plain, ["white-balance"]) > 0).tolist() == (plain > 0).tolist()  # no light is made of none


def test_clahe_spreads_lightness_and_leaves_colours(fruit: list[NDArray[np.uint8]]) -> None:
    large = Image.fromarray(fruit[1]).resize((320, 320))
    dull = np.asarray(large) // 4 + 90
    few, many = (enhance(dull, [f"clahe={limit}"]) for limit in (2, 6))
    contrasts = [measure_tone(photo)["contrast"] for photo in (dull, few, many)]
    assert contrasts[0] * 1.3 < contrasts[1] < contrasts[2]
    grey = np.repeat(dull[..., :1], 3, axis=2)
    assert np.ptp(enhance(grey, ["clahe"]).astype(int), axis=2).max() <= 1


def test_denoising_takes_noise_and_keeps_edges(fruit: list[NDArray[np.uint8]]) -> None:
    clean = enhance(np.asarray(Image.fromarray(fruit[0]).resize((200, 200), Image.Resampling.BICUBIC)), ["denoise=1"])
    noise = np.random.default_rng(0).normal(0, 8, clean.shape)
    noisy = (clean + noise).clip(0, 255).round().astype(np.uint8)
    left = [measure_noise(enhance(noisy, [f"denoise={strength}"]), clean) for strength in (1, 3, 8)]
    assert left[2] < left[1] < left[0] < measure_noise(noisy, clean)
    assert left[2] < 4
    edge = np.full((40, 40, 3), 60, np.uint8)
    edge[:, 20:] = 200
    assert np.abs(enhance(edge, ["denoise=3"]).astype(int) - edge).max() <= 2


def test_gamma_bends_by_golden_numbers() -> None:
    levels = np.repeat(np.array([0, 1, 64, 128, 255], np.uint8)[None, :, None], 3, axis=2)
    assert enhance(levels, ["gamma=2"])[0, :, 0].tolist() == [0, 0, 16, 64, 255]
    assert enhance(levels, ["gamma=0.5"])[0, :, 1].tolist() == [0, 16, 128, 181, 255]
    photo = make_photo(16, 16)
    np.testing.assert_array_equal(enhance(photo, ["gamma=1"]), photo)


def test_without_opencv_tables_still_work_and_the_rest_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    photo = make_photo(16, 16)
    enhance(photo, ["white-balance", "gamma=0.8"])
    for step in ("clahe", "denoise"):
        with pytest.raises(MissingPackageError, match=rf"for the enhancement {step}.* 'pomona\[enhance\]'"):
            enhance(photo, [step])


# --- preprocessing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(90, 130), (64, 64), (30, 20)])
def test_the_fitted_square_is_enhanced(fit: Any, shape: tuple[int, int]) -> None:
    photo = make_photo(*shape)
    plain = Preprocessing(64, fit=fit)
    square = replace(plain, enhance=STEPS).apply(photo)
    np.testing.assert_array_equal(square, enhance(plain.apply(photo), STEPS))
    assert not np.array_equal(square, plain.apply(photo))


def test_the_grey_beside_a_padded_photo_is_not_enhanced() -> None:
    photo = make_photo(90, 180)
    square = Preprocessing(64, fit="pad", enhance=STEPS).apply(photo)
    inner = Preprocessing(64, fit="pad").apply(photo)[16:48]
    np.testing.assert_array_equal(square[16:48], enhance(inner, STEPS))
    assert (square[:16] == 127).all()
    assert (square[48:] == 127).all()


def test_what_is_read_is_enhanced(rendered: Path) -> None:
    data = next(rendered.rglob("*.jpg")).read_bytes()
    plain = Preprocessing(32, decode_px=64)
    np.testing.assert_array_equal(replace(plain, enhance=("clahe",)).read(data), enhance(plain.read(data), ["clahe=2"]))


def test_preprocessing_keeps_steps_in_full_and_refuses_others() -> None:
    short: Any = ["clahe", "gamma=1.20"]
    assert Preprocessing(64, enhance=short) == Preprocessing(64, enhance=("clahe=2", "gamma=1.2"))
    assert hash(Preprocessing(64, enhance=short)) == hash(Preprocessing(64, enhance=("clahe=2", "gamma=1.2")))
    assert Preprocessing(64).enhance == ()
    with pytest.raises(OptionError, match="wanted steps among"):
        Preprocessing(64, enhance=("clahee",))
    with pytest.raises(OptionError, match="wanted steps among"):
        Preprocessing(64, enhance="clahe")  # type: ignore[arg-type]


def test_without_steps_keys_are_those_of_before_there_were_any() -> None:
    keys = {effort: plan_embedding(effort).key[:16] for effort in ("instant", "fast", "best")}
    assert keys == {"instant": "c60076e126bf0a0f", "fast": "4b44a2e64e68152b", "best": "bfbf4f20b6240dec"}
    assert plan_embedding("fast", precision="f32").key[:16] == "56e7718793f53cd4"


def test_each_step_its_number_and_the_order_change_the_key() -> None:
    backbone = find_backbone("lite0")
    sets = [(), *((step,) for step in STEPS), STEPS, STEPS[::-1], ("clahe=3",), ("gamma=1.2",)]
    keys = {
        Embedding((replace(backbone, preprocessing=replace(backbone.preprocessing, enhance=steps)),)).key
        for steps in sets
    }
    assert len(keys) == len(sets)


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tinted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that only the colour of the light tells apart: 16 photos of train and 12 of val each."""
    folder = tmp_path_factory.mktemp("tinted")
    for split, numbers in {"train": range(16), "val": range(16, 28)}.items():
        for name, gains in {"warm": (1.15, 1.0, 0.8), "cool": (0.8, 1.0, 1.15)}.items():
            (folder / split / name).mkdir(parents=True)
            for number in numbers:
                photo = make_photo(64, 64, seed=2 * number + (name == "warm"))
                Image.fromarray(tint(photo, *gains)).save(folder / split / name / f"{number}.png")
    return folder


def test_a_step_that_takes_away_what_tells_classes_apart_is_found_out(tinted: Path) -> None:
    told: list[tuple[str, int, int]] = []
    effects = measure_effects(
        load_dataset(tinted),
        PLAIN,
        [["gamma=1"], ["white-balance"]],
        n_workers=1,
        on_progress=lambda *counts: told.append(counts),
    )
    assert (effects.n, effects.measured_on) == (24, "photos of the val part")
    assert effects.accuracy > 0.9
    nothing, balanced = effects.effects
    assert (nothing.difference.n_better, nothing.difference.n_worse) == (0, 0)
    assert balanced.steps == ("white-balance",)
    assert balanced.difference.verdict == "worse"
    assert balanced.accuracy == pytest.approx(effects.accuracy + balanced.difference.gain)
    assert effects.describe() == "No step helps. 1 of 2 tried does harm."
    assert told[-1] == ("fit", 3, 3)
    assert ("features", 3 * 56, 3 * 56) in told
    content = json.loads(json.dumps(effects.to_dict()))
    assert content["effects"][1]["verdict"] == "worse"
    assert content["features"] == PLAIN.slug


def test_without_a_val_part_folds_are_asked_and_the_test_part_is_left_alone(tinted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tinted, tmp_path / "photos")
    (folder / "val").rename(folder / "test")
    dataset = load_dataset(folder)
    for path in (folder / "test").rglob("*.png"):
        path.unlink()  # whoever reads one now finds a fault
    effects = measure_effects(dataset, PLAIN, [["gamma=0.8"]], seed=1, n_workers=1)
    assert (effects.n, effects.measured_on) == (32, "photos of the train part, in grouped folds")
    assert measure_effects(dataset, PLAIN, [["gamma=0.8"]], seed=1, n_workers=1) == effects
    with pytest.raises(DataError, match="wanted a val part to measure on, got none"):
        measure_effects(dataset, PLAIN, [["gamma=0.8"]], part="val")


def test_folds_can_be_asked_for_where_there_is_a_val_part(tinted: Path) -> None:
    assert measure_effects(load_dataset(tinted), PLAIN, [["gamma=1"]], part="folds", n_workers=1).n == 32


def test_photos_that_change_in_between_end_the_measuring(tinted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tinted, tmp_path / "photos")
    dataset = load_dataset(folder)

    def spoil(step: str, n_done: int, _n_total: int) -> None:
        if step == "fit" and n_done == 1:
            (folder / "train" / "warm" / "3.png").unlink(missing_ok=True)

    with pytest.raises(DataError, match="photos changed while they were measured; run again"):
        measure_effects(dataset, PLAIN, [["gamma=1.3"]], n_workers=1, on_progress=spoil)


def test_what_cannot_be_measured_is_said(tinted: Path, rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(tinted)
    with pytest.raises(OptionError, match="wanted a set of steps or more to compare with none, got none"):
        measure_effects(dataset, PLAIN, [])
    with pytest.raises(DataError, match="wanted a train part to learn from, got none"):
        measure_effects(dataset.part("val"), PLAIN, [["gamma=1"]])
    single = replace(dataset, photos=tuple(photo for photo in dataset.photos if photo.split == "train")[:1])
    with pytest.raises(DataError, match="wanted photos to measure on, of classes that others teach; got none"):
        measure_effects(single, PLAIN, [["gamma=1"]], n_workers=1)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError):  # before any photo is read
        measure_effects(load_dataset(rendered), PLAIN, [["denoise"]], on_progress=lambda *_: pytest.fail("began"))


def make_effects(*gains: tuple[float, float, float]) -> Effects:
    effects = (Effect(("clahe=2",), 0.5, Difference(gain, low, high, 30, 4, 400)) for gain, low, high in gains)
    return Effects(0.75, 400, "photos of the val part", "lite0", tuple(effects))


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([(0.04, 0.01, 0.07)], "Right more often with Local contrast (CLAHE) 2."),
        ([(0.04, 0.01, 0.07), (-0.1, -0.2, -0.01)], "with Local contrast (CLAHE) 2. 1 of 2 tried does harm."),
        ([(-0.1, -0.2, -0.01)] * 3, "No step helps. 3 of 3 tried do harm."),
        ([(0.0, -0.01, 0.01)], "No step makes a difference that can be told from chance."),
    ],
)
def test_effects_are_said_in_a_sentence(gains: list[tuple[float, float, float]], said: str) -> None:
    assert make_effects(*gains).describe().endswith(said)


def test_without_a_step_there_is_nothing_to_list() -> None:
    with pytest.raises(OptionError, match="wanted one step or more to look at, got none"):
        list_variants(())


# --- command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_enhance(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pomona", "enhance", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)

    return run


def test_the_command_shows_and_measures(rendered: Path, tmp_path: Path, run_enhance: Callable[..., Any]) -> None:
    options = ("--enhance", "clahe", "--measure", "--preview", "sheet.html", "--photos", 2, "--workers", 1)
    done = run_enhance(rendered, *options, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["n"], content["preview"]) == (24, "sheet.html")
    assert [effect["enhance"] for effect in content["effects"]] == [["clahe=2"]]
    page = (tmp_path / "sheet.html").read_text("utf-8")
    assert page.count("<img") == 2 * 2
    assert f"{content['accuracy']:.1%}" in page
    table = run_enhance(rendered, *options)
    assert "Local contrast (CLAHE) 2" in table.stdout
    assert "sheet.html" in table.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "wanted --preview FILE.html, --measure or both, got neither"),
        (("--preview", "sheet.jpg"), 2, r"wanted a file that ends in \.html, got sheet\.jpg"),
        (("--measure", "--enhance", "clahe=99"), 2, "clip limit from 1 to 10, got 99"),
        (("--measure", "--part", "val"), 1, "wanted a val part to measure on, got none"),
    ],
)
def test_the_command_says_what_is_wrong(
    rendered: Path, run_enhance: Callable[..., Any], options: tuple[str, ...], code: int, message: str
) -> None:
    done = run_enhance(rendered, *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
