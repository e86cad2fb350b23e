"""Training by gradients: every knob runs, a run that was stopped goes on to the same, and what is kept can be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona.backbone import choose_layer, find_backbone
from pomona.bundle import load_bundle
from pomona.checkpoint import STATE_NAME
from pomona.clock import Clock
from pomona.dataset import Dataset, load_dataset
from pomona.embedding import Embedding
from pomona.errors import DataError, DivergedError, OptionError, StorageError, TuneError
from pomona.features import extract_features
from pomona.parts import plan_parts
from pomona.training import TrainOptions, train
from pomona.tuning import TuneOptions

torch = pytest.importorskip("torch", reason="gradients are torch's")

from safetensors.numpy import load_file  # noqa: E402 - it comes with torch

from pomona.finetune import TUNED_NAME, TuneResult, finetune  # noqa: E402
from pomona.run_log import read_results  # noqa: E402
from pomona.tail import LiteTail  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from pomona.run_log import Row


@pytest.fixture(scope="module")
def dataset(rendered: Path) -> Dataset:
    """18 photos of three classes to learn from, 6 to look at."""
    return plan_parts(load_dataset(rendered), 0.25, 0)[0]


def _embed(name: str = "lite0", *, size_px: int = 64, precision: str = "f32", pooling: str = "average") -> Embedding:
    backbone = replace(find_backbone(name, size_px=size_px), precision=precision)  # type: ignore[arg-type]
    if pooling == "average":
        backbone = replace(backbone, pooled=(backbone.cuts[-1].name,))
    return Embedding((backbone,), pooling)  # type: ignore[arg-type]


def _tune(
    dataset: Dataset,
    folder: Path,
    *,
    embedding: Embedding | None = None,
    seed: int = 0,
    deadline_s: float | None = None,
    on_row: Callable[[Row, int], None] | None = None,
    validate_on: str = "val",
    clock: Clock | None = None,
    **options: Any,
) -> TuneResult:
    chosen: dict[str, Any] = {"tune": "head", "epochs": 1, "batch": 6, "compute": "f32", **options}
    return finetune(
        dataset,
        embedding or _embed(pooling=chosen.get("pooling", "average")),
        TuneOptions(**chosen),
        folder,
        validate_on=validate_on,
        seed=seed,
        deadline_s=deadline_s,
        n_workers=1,
        clock=clock or Clock(None),
        on_row=on_row,
    )


def _resume(dataset: Dataset, folder: Path, **options: Any) -> tuple[TuneResult, list[int]]:
    """Go on with a run; its result, and the steps at which it was looked at."""
    steps: list[int] = []
    result = _tune(dataset, folder, resume=True, on_row=lambda row, _n_epochs: steps.append(row.step), **options)
    return result, steps


def _measure_accuracy(result: TuneResult, split: str = "val") -> float:
    """Of the features that the engine gives with the tuned weights."""
    features = extract_features(result.dataset.part(split), result.embedding, n_workers=1)
    return float((result.head.predict_proba(features.vectors).argmax(1) == features.dataset.labels).mean())


def _assert_usable(result: TuneResult) -> None:
    assert np.isfinite(result.head.weights).all()
    assert np.isfinite(result.head.bias).all()
    assert _measure_accuracy(result, "train") >= 0.5  # a third by chance


def _assert_same(got: TuneResult, wanted: TuneResult) -> None:
    assert np.array_equal(got.head.weights, wanted.head.weights)
    assert np.array_equal(got.head.bias, wanted.head.bias)
    paths = [one.embedding.backbones[0].tuned for one in (got, wanted)]
    if wanted.embedding.backbones[0].tuned:
        assert paths[0].path.read_bytes() == paths[1].path.read_bytes()  # type: ignore[union-attr]
    for row, other in zip(got.rows, wanted.rows, strict=True):
        assert (row.step, row.epoch, row.val_accuracy) == (other.step, other.epoch, pytest.approx(other.val_accuracy))
        assert row.train_loss == pytest.approx(other.train_loss, rel=1e-5)  # results.csv has seven digits
        assert row.val_loss == pytest.approx(other.val_loss, rel=1e-5)


# --- every knob -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({"loss": name} for name in ("mse", "focal")),
        *({"optimizer": name, "lr": lr} for name, lr in {"sgd": "0.01", "adam": "0.01", "rmsprop": "0.0001"}.items()),
        *({"schedule": name} for name in ("constant", "step", "one-cycle")),
        *({"balance": name} for name in ("class-weights", "sampling")),
        *({"mix": name} for name in ("none", "mixup")),
        *({"average": name} for name in ("last", "none")),
        {"label_smoothing": 0.0, "weight_decay": 0.0, "momentum": 0.0, "warmup": None},
        {"accumulate": 2, "batch": 4},
        {"accumulate": 8, "batch": 8},  # more than there are photos
        {"batch": 100},
        {"validate_every": 1},
        {"layer": "stage6"},
        {"pooling": "second-order"},
    ],
    ids=lambda options: "-".join(f"{name}-{value}" for name, value in options.items()),
)
def test_every_knob_trains_a_head(options: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    embedding = None
    if "layer" in options:
        embedding = Embedding((choose_layer(find_backbone("lite0", size_px=64), options["layer"]),))
    result = _tune(dataset, tmp_path, embedding=embedding, **options)
    assert result.rows[-1].epoch == 1
    assert result.embedding.backbones[0].tuned is None
    assert (tmp_path / "results.csv").is_file()
    _assert_usable(result)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse", "optimizer": "sgd", "lr": "0.01"},
        {"mix": "cutmix", "mix_share": 1.0, "average": "last", "layer_decay": 0.7},
        {"pooling": "second-order"},
        {"layer": "stage6", "compute": "bf16"},
        {"layer": "stage5", "compute": "auto"},
        {"augment": "light", "views": 2, "layer": "stage5"},
        {"tune": "full", "batch": 9},
    ],
    ids=lambda options: "-".join(f"{name}-{value}" for name, value in options.items()),
)
def test_knobs_train_a_network(options: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    if "augment" in options:
        pytest.importorskip("kornia", reason="augmentation is kornia's")
    result = _tune(dataset, tmp_path, **{"tune": "tail", **options})
    tuned = result.embedding.backbones[0].tuned
    assert tuned is not None
    assert tuned.path == tmp_path / TUNED_NAME
    assert tuned.layer == ("pixels" if options.get("tune") == "full" else options.get("layer", "stage3"))
    _assert_usable(result)


def test_tail_on_a_trunk_in_int8_predicts_what_was_trained(dataset: Dataset, tmp_path: Path) -> None:
    result = _tune(dataset, tmp_path, tune="tail", embedding=_embed(precision="int8"), epochs=2)
    assert result.embedding.precision == "int8"
    assert result.rows[-1].val_accuracy == pytest.approx(_measure_accuracy(result))


def test_training_makes_the_loss_smaller(dataset: Dataset, tmp_path: Path) -> None:
    result = _tune(dataset, tmp_path, tune="tail", epochs=6, mix="none", layer="stage5", average="none", lr="0.002")
    losses = [row.train_loss for row in result.rows]
    assert losses[-1] < 0.8 * losses[0]  # type: ignore[operator]
    assert [row.step for row in result.rows] == [3, 6, 9, 12, 15, 18]


def test_rate_is_looked_for_and_said(dataset: Dataset, tmp_path: Path) -> None:
    result = _tune(dataset, tmp_path, lr="auto")
    assert result.range_result is not None
    assert 1e-7 <= result.range_result.suggested <= 0.1
    assert any(note.startswith(f"Learning rate {result.range_result.suggested:.2g}") for note in result.notes)
    assert result.rows[-1].lr <= result.range_result.suggested
    # The test left no trace in the weights.
    plain = _tune(dataset, tmp_path / "plain", lr=repr(result.range_result.suggested))
    assert np.array_equal(plain.head.weights, result.head.weights)


def test_patience_stops_and_keeps_the_best(dataset: Dataset, tmp_path: Path) -> None:
    result = _tune(dataset, tmp_path, epochs=50, patience=2)
    assert len(result.rows) < 50
    assert any("no better validation in 2 tries" in note for note in result.notes)
    assert any("chosen on the photos that training was validated on" in note for note in result.notes)
    assert _measure_accuracy(result) == pytest.approx(max(row.val_accuracy or 0 for row in result.rows))


# --- what a knob does -----------------------------------------------------------------------------------------------


def test_accumulated_steps_learn_the_same_as_a_batch_of_their_size(dataset: Dataset, tmp_path: Path) -> None:
    whole = _tune(dataset, tmp_path / "whole", mix="none", epochs=2)
    parts = _tune(dataset, tmp_path / "parts", mix="none", epochs=2, batch=3, accumulate=2)
    assert [row.step for row in parts.rows] == [row.step for row in whole.rows] == [3, 6]
    assert np.allclose(parts.head.weights, whole.head.weights, rtol=1e-3, atol=1e-6)


def test_batch_of_more_photos_than_there_are_is_all_of_them(dataset: Dataset, tmp_path: Path) -> None:
    wide = _tune(dataset, tmp_path / "wide", mix="none", batch=1000)
    whole = _tune(dataset, tmp_path / "whole", mix="none", batch=18)
    assert [row.step for row in wide.rows] == [1]
    assert np.array_equal(wide.head.weights, whole.head.weights)


@pytest.mark.parametrize("knobs", [{"batch": 11}, {"batch": 5, "accumulate": 2}])
def test_an_epoch_sees_every_photo(
    knobs: dict[str, int], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import examples

    seen: list[int] = []
    draw = examples.Examples.draw
    monkeypatch.setattr(
        examples.Examples, "draw", lambda self, rows, *more: (seen.extend(rows), draw(self, rows, *more))[1]
    )
    result = _tune(dataset, tmp_path, epochs=2, **knobs)
    assert [row.step for row in result.rows] == [2, 4]
    assert len(set(seen[:18])) == len(set(seen[18:36])) == 18


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"schedule": "constant", "warmup": 0.0}, [1, 1, 1, 1]),
        ({"schedule": "step", "warmup": 0.0}, [1, 1, 0.1, 0.01]),
        ({"schedule": "constant", "warmup": 0.75}, [0.3, 0.6, 0.9, 1]),
        ({"schedule": "cosine", "warmup": 0.0}, [0.933, 0.629, 0.25, 0.017]),
        ({"schedule": "one-cycle", "warmup": 0.25}, [0.76, 0.854, 0.31, 0]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_rate_runs_as_the_schedule_says(
    options: dict[str, Any], factors: list[float], dataset: Dataset, tmp_path: Path
) -> None:
    result = _tune(dataset, tmp_path, epochs=4, lr="0.001", **options)
    assert [row.lr / 0.001 for row in result.rows] == pytest.approx(factors, abs=2e-3)


def test_averages_are_what_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    def learn(average: str, n_epochs: int) -> np.ndarray[Any, Any]:
        folder = tmp_path / f"{average}{n_epochs}"
        return _tune(dataset, folder, average=average, epochs=n_epochs, lr="0.01", schedule="constant").head.weights

    assert np.array_equal(learn("last", 1), learn("none", 1))  # the mean of one epoch
    last, none, ema = (learn(average, 8) for average in ("last", "none", "ema"))
    assert not np.allclose(last, none)
    assert not np.allclose(last, ema)
    assert not np.allclose(none, ema)


@pytest.mark.parametrize("loss", ["mse", "focal"])
def test_loss_is_the_one_that_was_asked_for(loss: str, dataset: Dataset, tmp_path: Path) -> None:
    common: dict[str, Any] = {"mix": "none", "label_smoothing": 0.0, "lr": "1e-9"}
    plain = _tune(dataset, tmp_path / "plain", **common).rows[0].train_loss
    other = _tune(dataset, tmp_path / loss, loss=loss, **common).rows[0].train_loss
    assert other is not None
    assert plain is not None
    assert other < 0.5 * plain  # photos that are right cost nearly nothing, or the square of nearly nothing


@pytest.mark.parametrize("knob", [{"weight_decay": 5.0}, {"momentum": 0.0}, {"label_smoothing": 0.5}])
def test_number_of_a_knob_reaches_the_weights(knob: dict[str, float], dataset: Dataset, tmp_path: Path) -> None:
    plain = _tune(dataset, tmp_path / "plain", lr="0.01").head.weights
    changed = _tune(dataset, tmp_path / "changed", lr="0.01", **knob).head.weights
    assert not np.allclose(changed, plain, rtol=1e-3)


@pytest.mark.parametrize("balance", ["class-weights", "sampling"])
def test_rare_class_gains_where_classes_are_balanced(balance: str, dataset: Dataset, tmp_path: Path) -> None:
    rare = [i for i, photo in enumerate(dataset.photos) if photo.split == "train" and photo.label == 0][1:]
    skewed = replace(dataset, photos=tuple(photo for i, photo in enumerate(dataset.photos) if i not in rare))
    knobs: dict[str, Any] = {"mix": "none", "lr": "0.01", "epochs": 4, "label_smoothing": 0.3}
    features = extract_features(skewed.part("val"), _embed(), n_workers=1)

    def measure(name: str) -> float:
        head = _tune(skewed, tmp_path / name, balance=name, validate_on="none", **knobs).head
        return float(head.predict_proba(features.vectors)[:, 0].mean())

    assert measure(balance) > 1.05 * measure("none")


def test_each_kind_of_mixing_gives_other_weights(dataset: Dataset, tmp_path: Path) -> None:
    def learn(folder: str, **options: Any) -> bytes:
        tuned = _tune(dataset, tmp_path / folder, tune="tail", layer="stage6", **options).embedding.backbones[0].tuned
        assert tuned is not None
        return tuned.path.read_bytes()

    plain = learn("none", mix="none")
    mixed = [learn(kind, mix=kind, mix_share=1.0) for kind in ("mixup", "cutmix", "both")]
    assert len({plain, *mixed}) >= 3  # both is one of the two, drawn for each batch
    assert plain not in mixed
    assert learn("never", mix="mixup", mix_share=0.0) == plain


def test_layers_far_below_the_head_move_less(dataset: Dataset, tmp_path: Path) -> None:
    embedding = _embed()
    start = LiteTail(embedding, "stage5").state()

    def measure(decay: float) -> float:
        folder = tmp_path / str(decay)
        _tune(dataset, folder, embedding=embedding, tune="tail", layer="stage5", layer_decay=decay, average="none")
        state = load_file(folder / TUNED_NAME)
        moved = {name: float(np.abs(state[name] - start[name]).mean()) for name in start}
        assert min(value for name, value in moved.items() if "depthwise" not in name) > 0
        names = list(start)
        return moved[names[0]] / moved["_conv_head.weight"]

    assert measure(0.5) == pytest.approx(measure(1.0) / 32, rel=0.3)  # five blocks are below the last convolution


def test_augmented_views_are_kept_and_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("kornia", reason="augmentation is kornia's")
    cache = Path(os.environ["POMONA_CACHE"]) / "activations"

    def learn(folder: str, **options: Any) -> tuple[bytes, set[str]]:
        _tune(dataset, tmp_path / folder, tune="tail", layer="stage6", mix="none", **options)
        return (tmp_path / folder / TUNED_NAME).read_bytes(), {path.name for path in cache.iterdir()}

    plain, before = learn("plain")
    augmented, after = learn("augmented", augment="colour=0.9", views=2)
    assert len(after - before) == 2
    assert augmented != plain


def test_pixels_are_augmented_anew_in_each_step(dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("kornia", reason="augmentation is kornia's")
    few = replace(dataset, photos=tuple(photo for photo in dataset.photos if photo.split == "train")[::3])
    knobs: dict[str, Any] = {"tune": "full", "mix": "none", "batch": 3, "lr": "1e-9"}
    plain = _tune(few, tmp_path / "plain", **knobs)
    augmented = _tune(few, tmp_path / "augmented", augment="light", **knobs)
    assert augmented.rows[0].train_loss != pytest.approx(plain.rows[0].train_loss, rel=1e-3)


@pytest.mark.parametrize(("compute", "kept"), [("bf16", {"bf16"}), ("auto", {"f32", "bf16"})])
def test_number_format_is_kept_for_a_run_that_goes_on(
    compute: str, kept: set[str], dataset: Dataset, tmp_path: Path
) -> None:
    knobs: dict[str, Any] = {"tune": "tail", "layer": "stage6", "compute": compute, "epochs": 2}

    def stop(row: Row, _n_epochs: int) -> None:
        if row.step == 3:
            raise KeyboardInterrupt

    _tune(dataset, tmp_path, on_row=stop, **knobs)
    dtype = json.loads((tmp_path / STATE_NAME).read_text())["progress"]["dtype"]
    assert dtype in kept
    resumed = _tune(dataset, tmp_path, resume=True, **knobs)
    assert json.loads((tmp_path / STATE_NAME).read_text())["progress"]["dtype"] == dtype
    straight = _tune(dataset, tmp_path / "straight", **{**knobs, "compute": dtype})
    _assert_same(resumed, straight)


def test_run_is_logged_where_it_was_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the log is tensorboard's")
    _tune(dataset, tmp_path, log="tensorboard")
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_mlflow_knows_the_run_by_its_name_and_how_it_ended(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the log is mlflow's")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    def stop(_row: Row, _n_epochs: int) -> None:
        raise KeyboardInterrupt

    train(_run(rendered, tmp_path / "run", log="mlflow", epochs=2, seed=3, time="90s"), on_row=stop)
    run_id = (tmp_path / "run" / "mlflow_run.txt").read_text().strip()
    run = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri()).get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("run", "KILLED")
    wanted = {"data": str(rendered), "backbone": "lite0", "imgsz": "64", "seed": "3", "time": "90s", "epochs": "2"}
    assert {name: run.data.params[name] for name in wanted} == wanted


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tune": "tail", "layer": "stage33"}, "layer: lite0 has no 'stage33' to cut at; the nearest: .*stage3"),
        ({"tune": "full", "layer": "stage3"}, "layer: wanted none with --tune full, got stage3"),
        ({"tune": "head", "augment": "light"}, "augment: wanted none with --tune head"),
        ({"tune": "head", "mix": "cutmix", "mix_share": 1.0}, "mix: cutmix needs maps"),
        ({"tune": "tail", "layer": "stage6", "pooling": "second-order"}, "layer: wanted one at or below stage4"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(
    options: dict[str, Any], said: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=said):
        _tune(dataset, tmp_path, **options)


def test_one_backbone_is_wanted(dataset: Dataset, tmp_path: Path) -> None:
    two = Embedding(tuple(find_backbone(name, size_px=64) for name in ("lite0", "lite1")))
    with pytest.raises(OptionError, match="tune: wanted one backbone, got lite0, lite1"):
        _tune(dataset, tmp_path, embedding=two, tune="tail")


def test_device_that_is_not_here_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(OptionError, match="device: wanted one that is here, got cuda; this torch offers cpu"):
        _tune(dataset, tmp_path, tune="tail", device="cuda")


def test_batch_that_does_not_fit_into_memory_says_which_would(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    monkeypatch.setattr(trainer, "mix", lambda *_args, **_more: torch.empty(1 << 50))  # more than any machine has
    with pytest.raises(TuneError, match="a batch of 6 photos does not fit into memory; take --batch 3 --accumulate 4"):
        _tune(dataset, tmp_path, accumulate=2, mix_share=1.0)


@pytest.mark.parametrize("knobs", [{"lr": "auto"}, {"epochs": None, "deadline_s": 1e9}])
def test_batch_that_does_not_fit_is_said_where_steps_are_only_tried(
    knobs: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    monkeypatch.setattr(trainer, "mix", lambda *_args, **_more: torch.empty(1 << 50))
    with pytest.raises(TuneError, match="a batch of 6 photos does not fit into memory; take --batch 3 --accumulate 2"):
        _tune(dataset, tmp_path, mix_share=1.0, **knobs)


@pytest.mark.parametrize("read", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_one_photo_that_does_not_fit_is_not_halved(
    read: Exception, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import examples

    def fail(*_args: Any, **_more: Any) -> None:
        raise read

    monkeypatch.setattr(examples.Examples, "read", fail)
    with pytest.raises(TuneError, match="a batch of one photo does not fit into memory; take a smaller --imgsz"):
        _tune(dataset, tmp_path, batch=1)


def test_fault_that_names_memory_is_not_taken_for_too_little_of_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    def fail(*_args: Any, **_more: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trainer, "mix", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        _tune(dataset, tmp_path, mix_share=1.0)


def test_photos_are_scored_in_batches_that_fit(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import examples

    sizes: list[int] = []
    read = examples.Examples.read
    monkeypatch.setattr(
        examples.Examples, "read", lambda self, rows, **more: (sizes.append(len(rows)), read(self, rows, **more))[1]
    )
    _tune(dataset, tmp_path, batch=2)
    assert max(sizes) == 2


def test_full_disk_is_said_before_anything_is_trained(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10_000_000))
    with pytest.raises(StorageError, match=r"wanted 0\.5 GB for activations, got 0\.0 GB free; make room"):
        _tune(dataset, tmp_path / "run", tune="tail")
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written_is_said(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(StorageError):
        _tune(dataset, tmp_path / "run")


def test_nothing_to_learn_from_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    only_val = replace(dataset, photos=dataset.part("val").photos)
    with pytest.raises(DataError, match="wanted two classes with a usable photo to learn from, got 0"):
        _tune(only_val, tmp_path)


def test_without_photos_to_look_at_the_last_weights_are_kept(dataset: Dataset, tmp_path: Path) -> None:
    only_train = replace(dataset, photos=dataset.part("train").photos)
    result = _tune(only_train, tmp_path, epochs=2)
    assert [row.val_accuracy for row in result.rows] == [None, None]
    _assert_usable(result)


# --- stopped, and gone on with --------------------------------------------------------------------------------------

_KILLED = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from pomona import checkpoint, finetune
from pomona.backbone import find_backbone
from pomona.clock import Clock
from pomona.dataset import load_dataset
from pomona.embedding import Embedding
from pomona.parts import plan_parts
from pomona.tuning import TuneOptions


def run(point, folder):
    if point == "in a step":
        kill_at(finetune, "set_lr", lambda optimizer, lr: kill_at.n == 5)
    elif point == "after the log":
        kill_at(finetune.RunLog, "write", lambda log, row: row.step == 6)
    elif point == "after the tensors":
        kill_at(checkpoint, "write_atomic", lambda path, content: path.name.startswith("6-"))
    elif point == "after the checkpoint":
        kill_at(checkpoint, "write_atomic", lambda path, content: path.suffix == ".json" and '"step": 6' in content)
    elif point == "before the tail":
        kill_at(finetune._Trainer, "run", lambda *_: True)
    dataset = plan_parts(load_dataset(Path(sys.argv[1])), 0.25, 0)[0]
    backbone = find_backbone("lite0", size_px=64)
    options = TuneOptions(tune="tail", layer="stage5", epochs=4, batch=6, compute="f32")
    embedding = Embedding((replace(backbone, pooled=("head",)),))
    finetune.finetune(dataset, embedding, options, folder, validate_on="val", n_workers=1, clock=Clock(None))


def kill_at(owner, name, is_place):
    kill_at.n, real = 0, getattr(owner, name)

    def spy(*args, **more):
        given = real(*args, **more)
        kill_at.n += 1
        if is_place(*args, **more):
            os.kill(os.getpid(), signal.SIGKILL)
        return given

    setattr(owner, name, spy)


run("never", Path(sys.argv[2]) / "warm")  # what is imported late is imported once for all
for number, point in enumerate(sys.argv[3:]):
    child = os.fork()
    if not child:
        run(point, Path(sys.argv[2]) / str(number))
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        sys.exit(f"{point}: it was not killed")
"""

_POINTS = {
    "in a step": (3, [3]),
    "after the log": (3, [3, 6]),
    "after the tensors": (3, [3, 6]),
    "after the checkpoint": (6, [3, 6]),
    "before the tail": (12, [3, 6, 9, 12]),
}
"""Where a run is killed: the step of the checkpoint that is left, and the lines of the log."""


def test_killed_run_goes_on_to_the_same_bits(dataset: Dataset, rendered: Path, tmp_path: Path) -> None:
    knobs = {"tune": "tail", "layer": "stage5", "epochs": 4}
    straight = _tune(dataset, tmp_path / "straight", **knobs)
    command = [sys.executable, "-c", _KILLED, str(rendered), str(tmp_path), *_POINTS]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    for number, (left, lines) in enumerate(_POINTS.values()):
        folder = tmp_path / str(number)
        assert json.loads((folder / STATE_NAME).read_text())["progress"]["step"] == left
        assert [row.step for row in read_results(folder / "results.csv")] == lines
        resumed, steps = _resume(dataset, folder, **knobs)
        assert steps == list(range(left + 3, 13, 3))
        _assert_same(resumed, straight)
        assert [row.step for row in read_results(folder / "results.csv")] == [3, 6, 9, 12]
        assert len(list(folder.glob("*-checkpoint.safetensors"))) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": "0.01", "average": "last", "mix": "mixup"},
        {"optimizer": "rmsprop", "lr": "1e-5", "average": "none", "schedule": "one-cycle", "accumulate": 2, "batch": 3},
        {"optimizer": "adam", "balance": "sampling", "lr": "auto", "validate_every": 2},
        {"patience": 3},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_interrupted_run_goes_on_to_the_same_bits(options: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    straight = _tune(dataset, tmp_path / "straight", epochs=4, **options)

    def stop(row: Row, _n_epochs: int) -> None:
        if row.step >= 6:
            raise KeyboardInterrupt

    stopped = _tune(dataset, tmp_path / "stopped", epochs=4, on_row=stop, **options)
    assert stopped.interrupted
    assert any("it was interrupted" in note for note in stopped.notes)
    _assert_usable(stopped)
    resumed = _tune(dataset, tmp_path / "stopped", epochs=4, resume=True, **options)
    assert not resumed.interrupted
    _assert_same(resumed, straight)


def test_checkpoint_of_the_end_gives_the_same_again(dataset: Dataset, tmp_path: Path) -> None:
    first = _tune(dataset, tmp_path, epochs=2)
    again = _tune(dataset, tmp_path, epochs=2, resume=True)
    _assert_same(again, first)


def test_run_whose_patience_was_over_takes_no_step_more(dataset: Dataset, tmp_path: Path) -> None:
    first = _tune(dataset, tmp_path, epochs=50, patience=2)
    again, steps = _resume(dataset, tmp_path, epochs=50, patience=2)
    assert steps == []
    _assert_same(again, first)


def test_range_test_and_scale_of_the_head_are_kept_for_a_run_that_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    def stop(row: Row, _n_epochs: int) -> None:
        raise KeyboardInterrupt

    stopped = _tune(dataset, tmp_path, epochs=2, lr="auto", on_row=stop)
    best = load_file(tmp_path / "best.safetensors")
    resumed = _resume(dataset, tmp_path, epochs=2, lr="auto")[0]
    assert stopped.range_result is not None
    assert resumed.range_result is not None
    for got, wanted in zip(resumed.range_result, stopped.range_result, strict=True):
        assert np.array_equal(got, wanted)
    kept, head = best["head.weight"] / best["head.scale"], stopped.head.weights
    assert np.allclose(kept / np.linalg.norm(kept), head / np.linalg.norm(head), atol=1e-6)  # but for the temperature


def test_head_of_a_run_that_goes_on_is_not_fitted_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    first = _tune(dataset, tmp_path, epochs=2)
    monkeypatch.delattr(trainer, "fit_start")
    _assert_same(_tune(dataset, tmp_path, epochs=2, resume=True), first)


@pytest.fixture(scope="module")
def stopped(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    _tune(dataset, folder, epochs=2)
    return folder


def test_nothing_to_go_on_from_is_said(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"wanted a run that was stopped to --resume, got none there"):
        _tune(dataset, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "the checkpoint is of other seed"),
        ({"size_px": 65}, "the checkpoint is of other backbone, size or pooling"),
        ({"loss": "focal", "batch": 5}, "a run with batch 6, not 5, loss 'cross-entropy', not 'focal'"),
        ({"tune": "tail"}, "a run with tune 'head', not 'tail'"),
        ({"photos": 1}, "the checkpoint is of other photos or their labels"),
    ],
    ids=["seed", "backbone", "options", "depth", "photos"],
)
def test_checkpoint_of_another_run_is_refused_and_the_difference_named(
    change: dict[str, Any], said: str, stopped: Path, dataset: Dataset
) -> None:
    options = {"epochs": 2, "resume": True, **change}
    embedding = _embed(size_px=options.pop("size_px", 64))
    if options.pop("photos", 0):
        dataset = replace(dataset, photos=(replace(dataset.photos[0], label=2), *dataset.photos[1:]))
    with pytest.raises(TuneError, match=f"{said}.*train again without --resume"):
        _tune(dataset, stopped, embedding=embedding, **options)


@pytest.mark.parametrize("how", ["no json", "empty", "other json", "cut", "flipped", "gone"])
def test_damaged_checkpoint_is_refused(how: str, stopped: Path, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    (tensors,) = folder.glob("*-checkpoint.safetensors")
    content = tensors.read_bytes()
    match how:
        case "no json":
            (folder / STATE_NAME).write_text('{"identity": ')
        case "empty":
            (folder / STATE_NAME).write_text("")
        case "other json":
            (folder / STATE_NAME).write_text("[1, 2]")
        case "cut":
            tensors.write_bytes(content[:-9])
        case "flipped":
            tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case _:
            tensors.unlink()
    with pytest.raises(TuneError, match=r"train again without --resume|wanted a run that was stopped"):
        _tune(dataset, folder, epochs=2, resume=True)


def test_new_run_in_the_place_of_an_old_one_takes_nothing_of_it(dataset: Dataset, tmp_path: Path) -> None:
    _tune(dataset, tmp_path, epochs=3, pooling="second-order")
    only_train = replace(dataset, photos=dataset.part("train").photos)

    def stop(row: Row, _n_epochs: int) -> None:
        if row.step == 6:
            raise KeyboardInterrupt

    result = _tune(only_train, tmp_path, epochs=3, on_row=stop)
    assert result.interrupted
    _assert_usable(result)


def test_what_an_older_run_left_is_not_taken_for_the_new_one(dataset: Dataset, tmp_path: Path) -> None:
    events = tmp_path / "tensorboard" / "events.out.tfevents.1.old"
    events.parent.mkdir()
    for path in (events, tmp_path / "best.safetensors", tmp_path / STATE_NAME, tmp_path / "notes.txt"):
        path.write_text("old")
    _tune(dataset, tmp_path, validate_on="none")
    assert not events.exists()
    assert not (tmp_path / "best.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "old"


# --- time and numbers that are none ---------------------------------------------------------------------------------


def test_time_is_kept_and_what_was_reached_can_be_used(dataset: Dataset, tmp_path: Path) -> None:
    _tune(dataset, tmp_path / "warm", tune="tail", layer="stage5")
    deadline_s = time.monotonic() + 3
    result = _tune(dataset, tmp_path / "run", tune="tail", layer="stage5", epochs=100_000, deadline_s=deadline_s)
    assert deadline_s - 2 < time.monotonic() < deadline_s + 3
    assert any("the time was over" in note for note in result.notes)
    _assert_usable(result)


def test_epochs_are_planned_by_the_time(dataset: Dataset, tmp_path: Path) -> None:
    _tune(dataset, tmp_path / "warm")
    started_s = time.monotonic()
    result = _tune(dataset, tmp_path / "run", epochs=None, deadline_s=started_s + 3)
    assert time.monotonic() < started_s + 6
    (note,) = [note for note in result.notes if "were planned" in note]
    assert float(note.split()[0]) > 0
    assert not result.interrupted


def test_time_that_is_over_before_the_first_step_still_gives_something(dataset: Dataset, tmp_path: Path) -> None:
    result = _tune(dataset, tmp_path, epochs=None, deadline_s=time.monotonic() - 5)
    assert len(result.rows) == 1
    assert not any("-" in note.split()[0] for note in result.notes)
    _assert_usable(result)


def test_head_that_training_starts_from_is_kept_where_no_step_fits(dataset: Dataset, tmp_path: Path) -> None:
    start = _tune(dataset, tmp_path / "start", lr="1e-30", weight_decay=0.0)
    for epochs in (None, 3):
        result = _tune(dataset, tmp_path / "late", epochs=epochs, deadline_s=time.monotonic() - 5, lr="auto")
        assert [(row.step, row.train_loss) for row in result.rows] == [(0, None)]
        assert np.allclose(result.head.weights, start.head.weights, rtol=1e-5)
        (note,) = [note for note in result.notes if "fits into the time" in note]
        assert "to fit the head that training starts from, which is kept" in note
        assert not any("epochs" in note for note in result.notes)


def test_head_that_training_starts_from_sees_as_many_photos_as_the_time_allows(
    dataset: Dataset, tmp_path: Path
) -> None:
    knobs = {"tune": "tail", "layer": "stage5", "epochs": None}
    result = _tune(dataset, tmp_path, deadline_s=time.monotonic() - 5, **knobs)
    n_train = dataset.part("train").n_photos
    for view in ("", "mirrored "):
        assert any(f"saw 6 of {n_train} {view}photos: there was no time" in note for note in result.notes)
    _assert_usable(result)


def _delay(owner: Any, name: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **more: (time.sleep(seconds), real(*args, **more))[1])


@pytest.mark.parametrize("knobs", [{"epochs": None}, {"epochs": 100_000}])
def test_validations_are_within_the_time(
    knobs: dict[str, Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    _tune(dataset, tmp_path / "warm")
    _delay(trainer._Trainer, "_measure_logits", 0.5, monkeypatch)
    deadline_s = time.monotonic() + 4
    result = _tune(dataset, tmp_path / "run", validate_every=1, deadline_s=deadline_s, **knobs)
    assert time.monotonic() < deadline_s + 0.4
    assert 1 <= result.rows[-1].step <= 6


def test_range_test_ends_where_it_would_take_the_time_of_training(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    _tune(dataset, tmp_path / "warm")
    _delay(trainer, "set_lr", 0.1, monkeypatch)
    deadline_s = time.monotonic() + 3
    result = _tune(dataset, tmp_path / "run", epochs=None, lr="auto", deadline_s=deadline_s)
    assert time.monotonic() < deadline_s + 1
    assert result.range_result is None
    assert any("the default: there was no time for a range test" in note for note in result.notes)
    assert result.rows[-1].step > 0


def test_range_test_goes_to_where_the_loss_is_no_number(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    rates: list[float] = []
    set_lr, measure = trainer.set_lr, trainer.measure_loss
    monkeypatch.setattr(trainer, "set_lr", lambda optimizer, lr: (rates.append(lr), set_lr(optimizer, lr))[1])
    monkeypatch.setattr(
        trainer, "measure_loss", lambda *args, **more: measure(*args, **more) * (np.nan if rates[-1] > 1e-3 else 1)
    )
    result = _tune(dataset, tmp_path, lr="auto")
    assert result.range_result is not None
    assert result.range_result.lrs[-1] <= 1e-3
    assert "the loss broke" in result.range_result.reason
    _assert_usable(result)


def test_photos_that_were_trained_on_make_the_rate(dataset: Dataset, tmp_path: Path) -> None:
    clock = Clock(None)
    result = _tune(dataset, tmp_path, epochs=50, patience=2, clock=clock)
    (stage,) = (stage for stage in clock.stages if stage.name == "train")
    assert stage.n_photos == 6 * result.rows[-1].step < 50 * 18


NO_NUMBER = {"loss": "mse", "optimizer": "sgd", "lr": "50", "weight_decay": 1e30, "schedule": "constant", "warmup": 0.0}


def test_loss_that_is_no_number_stops_at_once(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) at step 1, where the learning rate was 50"):
        _tune(dataset, tmp_path, epochs=3, **NO_NUMBER)


def test_loss_that_becomes_no_number_later_keeps_the_best(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    factors = {0: 1e-30, 1: 1e-30, 2: 1e-30}  # an epoch that does nothing, then one step too far
    monkeypatch.setattr(trainer.Schedule, "factor", lambda _self, step: factors.get(step, 1.0))
    result = _tune(dataset, tmp_path, epochs=3, **{**NO_NUMBER, "weight_decay": 1e20})
    assert [row.step for row in result.rows] == [3]
    assert any("Training stopped: the loss became" in note and "at step" in note for note in result.notes)
    _assert_usable(result)


# --- the whole way --------------------------------------------------------------------------------------------------


def _run(rendered: Path, output: Path, **options: Any) -> TrainOptions:
    chosen = {"tune": "head", "backbone": "lite0", "imgsz": 64, "batch": 6, "workers": 1, "compute": "f32", **options}
    return TrainOptions(data=rendered, output=output, **chosen)


def test_interrupted_training_leaves_a_bundle_that_predicts(rendered: Path, tmp_path: Path) -> None:
    def stop(row: Row, _n_epochs: int) -> None:
        if row.step == 9:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    knobs = {"tune": "tail", "layer": "stage5", "epochs": 9, "refit": False}
    result = train(_run(rendered, tmp_path / "run", **knobs), on_row=stop)
    assert result.interrupted
    assert any("it was interrupted" in note for note in result.notes)
    bundle = load_bundle(tmp_path / "run")
    (answer,) = bundle.predict([next(rendered.rglob("Banana_0001.jpg"))])
    assert answer.label in bundle.tree.names
    assert bundle.manifest.embedding.backbones[0].tuned.layer == "stage5"  # type: ignore[union-attr]
    rows: list[Row] = []
    resumed = train(_run(rendered, tmp_path / "run", resume=True, **knobs), on_row=lambda row, _n: rows.append(row))
    assert (rows[0].step > 9, resumed.interrupted) == (True, False)
    assert not (tmp_path / "run.tuning").exists()


def test_precision_of_a_run_that_goes_on_is_not_measured_again(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import training
    from pomona.effort import Machine

    def stop(row: Row, _n_epochs: int) -> None:
        raise KeyboardInterrupt

    options = _run(rendered, tmp_path / "run", tune="tail", layer="stage5", epochs=2, refit=False)
    rates = {"int8": Machine(2.0, 1.0, 1.0), "f32": Machine(1.0, 2.0, 1.0)}
    monkeypatch.setattr(training, "measure_machine", lambda _n_workers: rates["int8"])
    assert train(options, on_row=stop).bundle.manifest.embedding.precision == "int8"
    monkeypatch.setattr(training, "measure_machine", lambda _n_workers: rates["f32"])  # it is busy now
    resumed = train(replace(options, resume=True))
    assert resumed.bundle.manifest.embedding.precision == "int8"


@pytest.mark.parametrize(
    ("options", "tuned", "pooled"),
    [
        ({"tune": "head", "layer": "stage6"}, None, ("stage6",)),
        ({"tune": "full", "batch": 9, "refit": False}, "pixels", ("head",)),
        ({"tune": "tail", "layer": "stage4"}, "stage4", ("stage5", "stage6", "stage7", "head")),  # fitted anew
    ],
    ids=["head", "full", "tail"],
)
def test_what_was_trained_is_saved_as_it_was_trained(
    options: dict[str, Any], tuned: str | None, pooled: tuple[str, ...], rendered: Path, tmp_path: Path
) -> None:
    result = train(_run(rendered, tmp_path / "run", epochs=1, **options))
    (backbone,) = load_bundle(tmp_path / "run").manifest.embedding.backbones
    assert (backbone.tuned.layer if backbone.tuned else None) == tuned
    assert tuple(backbone.pooled) == pooled
    assert not (tmp_path / "run.tuning").exists()
    assert result.evaluation.n == 6


def test_photos_where_training_would_be_kept_are_never_removed(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered, tmp_path / "fruit.tuning")
    photos = sorted((tmp_path / "fruit.tuning").rglob("*"))
    with pytest.raises(OptionError, match="kept apart from the photos"):
        train(_run(tmp_path / "fruit.tuning", tmp_path / "fruit", epochs=1))
    assert sorted((tmp_path / "fruit.tuning").rglob("*")) == photos


def test_note_put_beside_the_training_stays(rendered: Path, tmp_path: Path) -> None:
    def put(_row: Row, _n_epochs: int) -> None:
        (tmp_path / "run.tuning" / "notes.txt").write_text("mine")

    train(_run(rendered, tmp_path / "run", epochs=1), on_row=put)
    assert [path.name for path in (tmp_path / "run.tuning").iterdir()] == ["notes.txt"]


def test_run_stands_in_the_empty_folder_one_is_in(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    train(_run(rendered, Path(), epochs=1))
    monkeypatch.chdir(tmp_path)
    load_bundle(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_option_that_does_not_fit_leaves_no_folder(rendered: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="stage33"):
        train(_run(rendered, tmp_path / "run", tune="tail", layer="stage33"))
    assert not list(tmp_path.iterdir())


def test_photos_of_a_run_that_cannot_be_read_are_left_out(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered, tmp_path / "data")
    (tmp_path / "data" / "Kiwi").mkdir()
    whole = next(rendered.rglob("Banana_0001.jpg")).read_bytes()
    for i in range(4):  # a class of which nothing can be read
        (tmp_path / "data" / "Kiwi" / f"{i}.jpg").write_bytes(whole[: 500 + i])
    result = train(_run(tmp_path / "data", tmp_path / "run", tune="tail", layer="stage5", epochs=1, refit=False))
    assert len(result.dataset.skipped) == 4
    assert load_bundle(tmp_path / "run").tree.names == ("Banana", "Lemon", "Orange")
    assert any("Kiwi" in note for note in result.notes)


def test_only_photos_that_training_looks_at_are_run_through_the_views(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import activations

    for part, numbers in {"train": (1, 2, 3), "val": (4,), "test": (5, 6)}.items():
        for path in rendered.rglob("*.jpg"):
            if int(path.stem[-1]) in numbers:
                target = tmp_path / "data" / part / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    (stranger := tmp_path / "data" / "val" / "Kiwi").mkdir()
    shutil.copy(next(rendered.rglob("Banana_0007.jpg")), stranger)
    broken = next((tmp_path / "data" / "test").rglob("Banana_0005.jpg"))
    broken.write_bytes(broken.read_bytes()[:500])
    seen: list[str] = []
    read = activations.read_unchanged
    monkeypatch.setattr(
        activations, "read_unchanged", lambda path, sha256: (seen.append(str(path)), read(path, sha256))[1]
    )
    knobs = {"tune": "tail", "layer": "stage5", "epochs": 1, "refit": False}
    result = train(_run(tmp_path / "data", tmp_path / "run", **knobs))
    assert len(seen) == 2 * (9 + 3)  # two views
    assert not any("/test/" in path or "Kiwi" in path for path in seen)
    # Promises rest on what training was looked at on, less the class that it does not know, and not on the test part.
    assert result.evidence is not None
    assert (result.evidence.held_out.accuracy.n, result.evidence.is_reported) == (3, False)
    assert any("training was looked at on" in note for note in result.notes)
    assert result.evaluation.n == 5
    assert [Path(one.name).name for one in result.dataset.skipped] == ["Banana_0005.jpg"]
    assert broken.name not in {Path(photo.name).name for photo in result.dataset.photos}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of small networks of another package, with random weights."""
    transformers = pytest.importorskip("transformers", reason="these networks are made by transformers")
    pytest.importorskip("onnxscript", reason="networks are written as ONNX by torch with onnxscript")
    transformers.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("networks")
    vit = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16
    )
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1])
    torch.manual_seed(0)
    for kind, network in {"vit": transformers.ViTModel(vit), "resnet": transformers.ResNetModel(resnet)}.items():
        network.save_pretrained(folder / kind)
        facts = '{"size": {"height": 64, "width": 64}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3]}'
        (folder / kind / "preprocessor_config.json").write_text(facts)
    return {kind: f"hf:{folder / kind}" for kind in ("vit", "resnet")}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("resnet", {"tune": "tail"}),
        ("vit", {"tune": "full"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["tune"],
)
def test_networks_of_other_packages_are_tuned_and_saved(
    kind: str, options: dict[str, Any], small: dict[str, str], rendered: Path, tmp_path: Path
) -> None:
    chosen = {"backbone": small[kind], "imgsz": None, "epochs": 1, "lr": "0.01", "average": "none", **options}
    result = train(_run(rendered, tmp_path / "run", **chosen))  # that the graph repeats what was measured is checked
    assert result.bundle.manifest.embedding.backbones[0].tuned is not None
    rows = sorted(rendered.rglob("*.jpg"))[:4]
    probabilities, errors = load_bundle(tmp_path / "run").predict_proba(rows)
    assert not errors
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


BROKEN: dict[str, Any] = {"loss": "mse", "optimizer": "sgd", "lr": "100", "weight_decay": 3e38, "schedule": "constant"}


@pytest.mark.parametrize("n_good", [0, 1])
@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("average", ["ema", "none"])
def test_weights_that_broke_in_the_last_step_of_an_epoch_are_never_kept(
    n_good: int, looks: bool, average: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import finetune as trainer

    first = 3 * n_good + 2
    monkeypatch.setattr(trainer.Schedule, "factor", lambda _self, step: 1.0 if step >= first else 1e-45)
    knobs = {**BROKEN, "epochs": 3, "average": average, "validate_on": "val" if looks else "none"}
    if not n_good:
        with pytest.raises(DivergedError, match=r"became (nan|inf) at step 3"):
            _tune(dataset, tmp_path, **knobs)
        return
    result = _tune(dataset, tmp_path, **knobs)
    assert [row.step for row in result.rows] == [3]
    assert any("Training stopped: the loss became" in note for note in result.notes)
    _assert_usable(result)


def test_cutting_of_vectors_is_refused_before_the_first_step(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="mix: cutmix needs maps"):
        _tune(dataset, tmp_path, mix="cutmix", mix_share=1e-9)


def test_device_that_is_not_here_is_refused_for_a_head_too(dataset: Dataset, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(OptionError, match="device: wanted one that is here, got cuda"):
        _tune(dataset, tmp_path, device="cuda")


def test_patience_without_photos_to_look_at_waits_for_nothing(dataset: Dataset, tmp_path: Path) -> None:
    result = _tune(dataset, tmp_path, epochs=5, patience=1, validate_on="none")
    assert len(result.rows) == 5


def test_interrupt_before_the_first_validation_leaves_weights_and_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    def press(step: str, n_done: int, _n_total: int) -> None:
        if step == "train" and n_done == 2:
            raise KeyboardInterrupt

    straight = _tune(dataset, tmp_path / "straight", epochs=3)
    stopped = _tune(dataset, tmp_path / "stopped", epochs=3, clock=Clock(press))
    assert stopped.interrupted
    assert [row.step for row in stopped.rows] == [2]
    _assert_usable(stopped)
    resumed = _tune(dataset, tmp_path / "stopped", epochs=3, resume=True)
    assert np.array_equal(resumed.head.weights, straight.head.weights)
