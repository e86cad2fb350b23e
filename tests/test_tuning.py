"""Every knob of gradient training: what it takes, and what is said where it cannot be used."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, get_args

import pytest

from pomona.backbone import find_backbone
from pomona.clock import Clock
from pomona.dataset import load_dataset
from pomona.embedding import Embedding
from pomona.errors import OptionError
from pomona.optimization import MAX_LR, LossName, OptimizerName, ScheduleName
from pomona.parts import plan_parts
from pomona.samples import KINDS, SampleOptions, write_samples
from pomona.training import TrainOptions
from pomona.tuning import TuneOptions

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.dataset import Dataset

NAN, INF = math.nan, math.inf


def test_defaults_train_nothing_and_are_valid() -> None:
    assert TuneOptions().tune is None
    for depth in ("head", "tail", "full"):
        assert TuneOptions(tune=depth).learning_rate == 6e-4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loss", get_args(LossName)),
        ("optimizer", get_args(OptimizerName)),
        ("schedule", get_args(ScheduleName)),
        ("balance", ("none", "class-weights", "sampling")),
        ("mix", ("none", "mixup", "cutmix", "both")),
        ("average", ("ema", "last", "none")),
        ("pooling", ("average", "second-order")),
        ("compute", ("auto", "f32", "bf16")),
        ("device", ("cpu", "cuda", "mps")),
        ("log", (None, "tensorboard", "mlflow")),
        ("lr", ("auto", "1e-3", f"{MAX_LR}")),
        ("warmup", (None, 0.0, 0.5)),
        ("layer_decay", (1.0, 0.01)),
        ("weight_decay", (0.0, 10.0)),
        ("label_smoothing", (0.0, 0.5)),
        ("mix_share", (0.0, 1.0)),
        ("augment", ("none", "light", "standard", "strong", "flip")),
        ("patience", (None, 1)),
        ("epochs", (None, 1)),
    ],
)
def test_values_that_can_be_used_are_taken(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(TuneOptions(tune="tail", **{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lr", "0", "learning rate: wanted a number above 0, at most 100, got 0"),
        ("lr", "-1e-3", "got -0.001"),
        ("lr", "1e9", r"got 1e\+09"),
        ("lr", "nan", "got nan"),
        ("lr", "inf", "got inf"),
        ("lr", "fast", "lr: wanted a number or auto, got 'fast'"),
        ("lr", "", "lr: wanted a number or auto, got ''"),
        ("lr", "AUTO", "got 'AUTO'"),
        ("epochs", 0, "epochs: wanted 1 or more, got 0"),
        ("batch", 0, "batch: wanted 1 or more, got 0"),
        ("batch", -4, "got -4"),
        ("accumulate", 0, "accumulate: wanted 1 or more"),
        ("views", 0, "views: wanted 1 or more"),
        ("patience", 0, "patience: wanted 1 or more"),
        ("validate_every", 0, "validate-every: wanted 1 or more"),
        ("label_smoothing", -0.1, "label-smoothing: wanted a share 0 to 1, got -0.1"),
        ("label_smoothing", NAN, "got nan"),
        ("mix_share", 1.5, "mix-share: wanted a share"),
        ("warmup", -0.5, "warmup: wanted a share"),
        ("warmup", NAN, "warmup: wanted a share"),
        ("momentum", 1.1, "momentum: wanted a share"),
        ("momentum", NAN, "momentum"),
        ("layer_decay", 0.0, "layer-decay: wanted a factor above 0, up to 1, got 0"),
        ("layer_decay", 1.01, "layer-decay"),
        ("layer_decay", NAN, "layer-decay"),
        ("weight_decay", -1.0, "weight-decay: wanted 0 or more, got -1"),
        ("weight_decay", INF, "weight-decay"),
        ("weight_decay", NAN, "weight-decay"),
        ("augment", "spin-fast", "spin-fast"),
        ("tune", "tall", "tune: wanted one of head, tail, full, got 'tall'"),
        ("loss", "hinge", "loss: wanted one of cross-entropy, mse, focal, got 'hinge'"),
        ("optimizer", "lion", "optimizer: wanted one of sgd"),
        ("schedule", "linear", "schedule: wanted one of constant"),
        ("balance", "smote", "balance: wanted one of none"),
        ("mix", "blend", "mix: wanted one of"),
        ("average", "swa", "average: wanted one of ema, last, none"),
        ("pooling", "max", "pooling: wanted one of average, second-order"),
        ("device", "tpu", "device: wanted one of cpu, cuda, mps"),
        ("compute", "f16", "compute: wanted one of auto, f32, bf16"),
        ("log", "wandb", "log: wanted one of tensorboard, mlflow"),
    ],
)
def test_values_that_cannot_be_used_are_refused_by_name(name: str, value: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        TuneOptions(**{"tune": "tail", name: value})


@pytest.mark.parametrize("name", ["momentum", "warmup"])
def test_whole_shares_that_no_run_could_use_are_refused_at_once(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: wanted .*below 1, got 1"):
        TuneOptions(tune="head", **{name: 1.0})  # type: ignore[arg-type]


def test_each_optimizer_brings_a_rate_of_its_own() -> None:
    rates = {name: TuneOptions(tune="tail", optimizer=name).learning_rate for name in get_args(OptimizerName)}
    assert rates == {"sgd": 0.01, "adam": 6e-4, "adamw": 6e-4, "rmsprop": 3e-5}
    assert TuneOptions(tune="tail", optimizer="sgd", lr="0.5").learning_rate == 0.5
    resolved = TrainOptions(data="photos", output="run", tune="tail", optimizer="sgd").resolve()  # type: ignore[arg-type]
    assert resolved.to_dict()["lr"] == "0.01"  # as it will be written down
    assert TrainOptions(data="photos", output="run").resolve().lr is None  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def eight_kinds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photos of kinds enough that the head which training starts from leaves something to learn."""
    folder = tmp_path_factory.mktemp("rendered") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=12, kinds=KINDS[:8], size_px=72, n_workers=1))
    return plan_parts(load_dataset(folder), 0.25, 0)[0]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_the_rate_of_each_optimizer_learns(name: OptimizerName, eight_kinds: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="gradients are torch's")
    from pomona.finetune import finetune

    backbone = find_backbone("lite0", size_px=64)
    embedding = Embedding((replace(backbone, pooled=("head",)),))
    options = TuneOptions(
        tune="tail", layer="stage5", optimizer=name, epochs=6, batch=12, mix="none", average="none", compute="f32"
    )
    rows = finetune(eight_kinds, embedding, options, tmp_path, validate_on="val", n_workers=1, clock=Clock(None)).rows
    losses = [row.train_loss or 0 for row in rows]
    assert 0 < losses[-1] < 0.9 * losses[0], losses


def test_second_moments_of_a_layer_that_is_named_are_refused() -> None:
    with pytest.raises(OptionError, match="pooling: wanted average with --tune head --layer stage5, got second-order"):
        TuneOptions(tune="head", layer="stage5", pooling="second-order")
    assert TuneOptions(tune="tail", layer="stage3", pooling="second-order").layer == "stage3"


def test_no_knob_turns_without_tune() -> None:
    with pytest.raises(OptionError, match="wanted --tune head, tail or full with --epochs, --lr, --validate-every"):
        TuneOptions(epochs=3, lr="0.1", validate_every=5)
    changed = {"pooling": "second-order", "batch": 8, "augment": "light", "resume": True, "log": "mlflow"}
    for name, value in changed.items():
        with pytest.raises(OptionError, match=f"with --{name}, got none"):
            TuneOptions(**{name: value})  # type: ignore[arg-type]
    assert TuneOptions(layer="stage5").layer == "stage5"  # a frozen network has layers too


def test_every_knob_has_its_help_and_is_offered_by_train() -> None:
    offered = {field.name for field in fields(TrainOptions)}
    for field in fields(TuneOptions):
        assert field.name in offered
        assert "Annotated" in str(field.type)
        assert f"{field.name} :" in (TuneOptions.__doc__ or "")


def test_an_effort_and_tune_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="wanted --effort or --tune, got both: best and tail"):
        TrainOptions(data="photos", tune="tail", effort="best")  # type: ignore[arg-type]


def test_options_are_read_without_torch() -> None:
    code = "import sys, pomona.tuning; sys.exit('torch' in sys.modules or 'kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
