"""Efforts are what they say, a forecast grows with the work, and a time picks the greatest effort that fits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.effort import (
    RECIPES,
    Effort,
    Forecast,
    Machine,
    choose_effort,
    choose_precision,
    forecast,
    measure_machine,
    parse_time,
    plan_embedding,
)
from pomona.embedding import Embedding
from pomona.engine import Engine
from pomona.errors import OptionError
from pomona.training import TrainOptions, train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MACHINE = Machine(int8_rate=2e11, f32_rate=8e10, solve_rate=5e10)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    paths = []
    for label in ("apple", "pear"):
        (folder / label).mkdir()
        for i in range(6):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            paths.append(folder / label / f"{i}.jpg")
            Image.fromarray(pixels).resize((200, 200)).save(paths[-1])
    return paths


def test_each_effort_costs_more_than_the_one_before() -> None:
    costs = [plan_embedding(effort).n_multiplications for effort in get_args(Effort)]
    assert list(RECIPES) == list(get_args(Effort))
    assert costs[0] * 2 < costs[1] < costs[2] / 2


def test_backbone_size_and_precision_take_the_place_of_the_efforts_own() -> None:
    own = plan_embedding("fast")
    assert own.precision == "int8"
    other = plan_embedding("fast", backbone="lite2", size_px=96, precision="f32")
    assert [one.name for one in other.backbones] == ["lite2"]
    assert (other.preprocessing.size_px, other.precision, other.pooling) == (96, "f32", "second-order")
    assert [one.name for one in plan_embedding("best", size_px=96).backbones] == ["lite0", "lite2"]


def test_features_may_come_from_one_layer_of_one_network() -> None:
    one = plan_embedding("fast", layer="stage5")
    assert ([part.pooled for part in one.backbones], one.pooling, one.dim) == ([("stage5",)], "average", 112)
    assert plan_embedding("fast").pooling == "second-order"
    assert plan_embedding("best", backbone="lite2", layer="stage6").mirrored
    with pytest.raises(OptionError, match="layer: wanted one backbone, got lite0, lite2; name one with --backbone"):
        plan_embedding("best", layer="stage5")


@pytest.mark.parametrize("effort", get_args(Effort))
def test_photos_are_enhanced_for_every_backbone_of_an_effort(effort: Effort) -> None:
    plain, enhanced = (plan_embedding(effort, enhance=steps) for steps in ((), ("gamma=0.8",)))
    assert {one.preprocessing.enhance for one in enhanced.backbones} == {("gamma=0.8",)}
    assert enhanced.key != plain.key  # or features of plain photos would be taken from the cache
    assert replace(enhanced.preprocessing, enhance=()) == plain.preprocessing


@pytest.mark.parametrize(
    "odd",
    [
        {"effort": "slow"},
        {"effort": "fast", "backbone": "lite9"},
        {"effort": "fast", "size_px": 9},
        {"effort": "fast", "layer": "stage9"},
        {"effort": "fast", "enhance": ("sharpen",)},
    ],
)
def test_what_there_is_not_is_refused(odd: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"wanted|there is no"):
        plan_embedding(**odd)  # type: ignore[arg-type]


def test_multiplications_are_those_of_the_published_networks() -> None:
    """Multiply-adds in millions that the release names: 407, 631 and 899, at the published input sizes."""
    for name, size_px, millions in (("lite0", 224, 407), ("lite1", 240, 631), ("lite2", 260, 899)):
        counted = plan_embedding("fast", backbone=name, size_px=size_px).n_multiplications / 1e6  # type: ignore[arg-type]
        assert counted == pytest.approx(millions, rel=0.06)
    assert plan_embedding("best").mirrored
    single = replace(plan_embedding("best"), mirrored=False)
    assert plan_embedding("best").n_multiplications == 2 * single.n_multiplications


def test_the_machine_is_measured() -> None:
    machine = measure_machine()
    assert all(1e8 < rate < 1e15 for rate in (machine.int8_rate, machine.f32_rate, machine.solve_rate))
    assert replace(machine, int8_rate=2.0, f32_rate=1.0).precision == "int8"
    assert replace(machine, int8_rate=1.0, f32_rate=2.0).precision == "f32"


def test_noise_does_not_change_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    for rate, wanted in ((1.0, "int8"), (1.4, "int8"), (1.6, "f32"), (0.7, "f32"), (0.6, "int8")):
        assert choose_precision(Machine(int8_rate=1.0, f32_rate=rate, solve_rate=1.0)) == wanted, rate
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"\xff of another kind")
    assert choose_precision(Machine(1.0, 1.3, 1.0)) == "f32"


def test_a_forecast_grows_with_photos_and_slows_with_the_machine(photos: list[Path]) -> None:
    embedding = plan_embedding("fast")
    one = forecast("fast", embedding, MACHINE, photos[:6], n_learnt=1000)
    assert one.n_photos == 6
    assert one.total_s == pytest.approx(one.decode_s + one.network_s + one.fit_s + one.start_s)
    checked = forecast("fast", embedding, MACHINE, photos[:6], n_learnt=1000, n_checked=10_000)
    assert checked.total_s > one.total_s + 10
    twice = forecast("fast", embedding, MACHINE, photos, n_learnt=1000)
    assert twice.network_s == pytest.approx(2 * one.network_s)
    assert twice.fit_s == one.fit_s
    assert forecast("fast", embedding, MACHINE, photos[:6], n_learnt=2000).fit_s > 3 * one.fit_s
    slower = forecast("fast", embedding, replace(MACHINE, int8_rate=1e11), photos[:6], n_learnt=1000)
    assert slower.network_s == pytest.approx(2 * one.network_s)
    full = Embedding(tuple(replace(b, precision="f32") for b in embedding.backbones), "second-order")
    assert forecast("fast", full, MACHINE, photos[:6], n_learnt=1000).network_s == pytest.approx(2.5 * one.network_s)


def test_photos_that_cannot_be_decoded_or_none_at_all_do_not_stop_a_forecast(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    embedding = plan_embedding("instant")
    assert forecast("instant", embedding, MACHINE, [tmp_path / "a.jpg"], n_learnt=9).decode_s >= 0
    assert forecast("instant", embedding, MACHINE, [], n_learnt=9).network_s == 0


@given(st.lists(st.floats(0, 1e4), min_size=3, max_size=3), st.floats(0.1, 2e4))
def test_the_greatest_effort_in_time_is_taken(seconds: list[float], time_s: float) -> None:
    forecasts = [Forecast(effort, 1, 0, s, 0) for effort, s in zip(get_args(Effort), seconds, strict=True)]
    taken = choose_effort(forecasts, time_s)
    if any(one.total_s <= time_s for one in forecasts):
        assert taken.total_s <= time_s
        assert all(later.total_s > time_s for later in forecasts[forecasts.index(taken) + 1 :])
    else:
        assert taken.total_s == min(one.total_s for one in forecasts)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90", 90), ("2m", 120), ("1.5 min", 90), (" .5h ", 1800), ("10S", 10)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5s", "soon", "5 days", "1e3", "9" * 400, "6 0s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="time: wanted a time such as 60s or 2m, got"):
        TrainOptions(data=".", time=text)  # type: ignore[arg-type]


def test_effort_and_time_together_are_refused() -> None:
    with pytest.raises(OptionError, match="wanted an effort or a time, got both: fast and 60s"):
        TrainOptions(data=".", effort="fast", time="60s")  # type: ignore[arg-type]


def test_training_says_its_forecast_first_and_keeps_what_was_taken(photos: list[Path], tmp_path: Path) -> None:
    said: list[tuple[list[Forecast], Forecast]] = []
    steps: list[str] = []

    def note_forecast(forecasts: Sequence[Forecast], taken: Forecast) -> None:
        said.append((list(forecasts), taken))
        steps.append("said")

    options = TrainOptions(data=photos[0].parent.parent, output=tmp_path / "run", time="1s", imgsz=64)
    train(options, on_progress=lambda step, _done, _total: steps.append(step), on_forecast=note_forecast)
    ((forecasts, taken),) = said
    assert [one.effort for one in forecasts] == ["instant", "fast", "best"]
    assert taken == min(forecasts, key=lambda one: one.total_s)  # 1 s is too little for any
    assert steps.index("plan") < steps.index("said") < steps.index("features")
    settings = (tmp_path / "run" / "args.yaml").read_text("utf-8")
    assert f'effort: "{taken.effort}"' in settings
    assert "imgsz: 64" in settings
    assert Engine(tmp_path / "run" / "model.onnx").shape == (64, 64, 3)
