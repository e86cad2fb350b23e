"""What gradient training takes: every knob, with the default that measured best.

In: options as they were given. Out: a `TuneOptions`, checked.
Why: the command line, the API and a checkpoint see the same names, and none of them needs torch to read them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_args

from pomona.augmentation import parse_augmentation
from pomona.batches import BalanceName, MixName
from pomona.errors import OptionError
from pomona.optimization import DEFAULT_LRS, LossName, OptimizerName, ScheduleName, check_lr
from pomona.run_log import SinkName

Depth = Literal["head", "tail", "full"]
Pooling = Literal["average", "second-order"]
AverageName = Literal["ema", "last", "none"]
Device = Literal["cpu", "cuda", "mps"]
ComputeType = Literal["auto", "f32", "bf16"]

LARGER_VIEW = 1.22
"""Side of the larger view that is trained on, and that a head fitted anew predicts with, as a share of `imgsz`."""

_SIDE_STEP_PX, _MAX_SIDE_PX = 8, 1024


def enlarge_side(size_px: int, factor: float = LARGER_VIEW) -> int:
    """Side of a larger view, in pixels.

    What a window of a photo has taught is best asked of a photo that is larger than the window [1]_: a head on second
    moments of Lite2, tuned on windows of 224 px, was right on 0.907 of photos of 288 px, and on 0.934 of 352 px.

    References
    ----------
    .. [1] Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019.

    Examples
    --------
    >>> enlarge_side(288)
    352
    """
    return min(_MAX_SIDE_PX, round(factor * size_px / _SIDE_STEP_PX) * _SIDE_STEP_PX)


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How a network is trained by gradients.

    Parameters
    ----------
    tune : {"head", "tail", "full"}, optional
        What is trained: a new head on a frozen network; the layers above a cut as well; everything. None: no gradient
        training, the head is fitted in closed form.
    layer : str, optional
        With `tail` the cut, the last frozen layer; with `head`, or without `tune`, the layer that features are taken
        from.
    pooling : {"average", "second-order"}
        What the trained head sees of the last activations; of a `layer` that features are taken from, averages.
    refit : bool, optional
        Whether the head is fitted anew, in closed form on second moments of what the trained layers give; by default it
        is for lite0 to lite2 with `tail` and `full`.
    epochs : int, optional
        Times that training goes over the photos; 20 where neither it nor a time is given.
    batch : int
        Photos a step.
    accumulate : int
        Steps whose gradients are added before the weights are changed.
    loss : {"cross-entropy", "mse", "focal"}
        What is made small.
    label_smoothing : float
        Share 0-1 of each label that is spread over all classes.
    balance : {"none", "class-weights", "sampling"}
        What is done about classes with few photos.
    optimizer : {"sgd", "adam", "adamw", "rmsprop"}
        How weights are changed.
    lr : str, optional
        Learning rate, or `auto`: found by a range test. That of the optimizer in `DEFAULT_LRS` where not given.
    momentum : float
        Of sgd and rmsprop; the first beta of adam and adamw.
    weight_decay : float
        Pull of the weights to zero.
    schedule : {"constant", "step", "cosine", "one-cycle"}
        How the learning rate runs.
    warmup : float, optional
        Share 0-1 of the run in which the learning rate rises; that of the schedule where not given, see `Schedule`.
    layer_decay : float
        Factor of the learning rate from each block to the one below it, 0-1.
    average : {"ema", "last", "none"}
        Which weights are kept: a moving average, the mean of those after each of the last 5 epochs, or the last ones.
    mix : {"none", "mixup", "cutmix", "both"}
        How photos are mixed with each other.
    mix_share : float
        Share 0-1 of the batches that are mixed.
    augment : str
        Preset or list of steps, as `pomona augment` shows them.
    views : int
        With `tail`: augmented copies of each photo whose activations are kept, where `augment` is not none.
    patience : int, optional
        Validations without a better accuracy before training stops; the best weights are kept then.
    validate_every : int, optional
        Steps between validations; once an epoch where not given.
    device : {"cpu", "cuda", "mps"}
        Where training computes.
    compute : {"auto", "f32", "bf16"}
        Number format of convolutions while training; auto measures both.
    log : {"tensorboard", "mlflow"}, optional
        Where else the run is logged.
    resume : bool
        Go on with a run that was stopped.

    Raises
    ------
    OptionError
        If a value cannot be used.
    """

    PANEL = "Training by gradients"

    tune: Annotated[Depth | None, "Train by gradients: a head alone, the tail above a layer, or everything."] = None
    layer: Annotated[str | None, "Last frozen layer with --tune tail; else the layer that features come from."] = None
    pooling: Annotated[Pooling, "What the trained head sees of the last activations."] = "average"
    refit: Annotated[bool | None, "With tail or full: fit the head anew in closed form; default for lite0-2."] = None
    epochs: Annotated[int | None, "Times to go over the photos; by default 20, or what fits into --time."] = None
    batch: Annotated[int, "Photos a step."] = 32
    accumulate: Annotated[int, "Steps whose gradients are added up before the weights change."] = 1
    loss: Annotated[LossName, "What is made small."] = "cross-entropy"
    label_smoothing: Annotated[float, "Share of each label spread over all classes."] = 0.1
    balance: Annotated[BalanceName, "What is done about classes with few photos."] = "none"
    optimizer: Annotated[OptimizerName, "How weights are changed."] = "adamw"
    lr: Annotated[str | None, "Learning rate, or auto: found by a range test; by default that of the optimizer."] = None
    momentum: Annotated[float, "Of sgd and rmsprop; first beta of adam and adamw."] = 0.9
    weight_decay: Annotated[float, "Pull of the weights to zero."] = 0.02
    schedule: Annotated[ScheduleName, "How the learning rate runs."] = "cosine"
    warmup: Annotated[float | None, "Share of the run in which the rate rises; by default the schedule's own."] = None
    layer_decay: Annotated[float, "Factor of the learning rate from each block to the one below."] = 1.0
    average: Annotated[AverageName, "Weights to keep: moving average, mean of the last 5 epochs, or the last."] = "ema"
    mix: Annotated[MixName, "How photos are mixed with each other."] = "both"
    mix_share: Annotated[float, "Share of the batches that are mixed."] = 0.7
    augment: Annotated[str, "Augmentation: none, light, standard, strong or a list; see pomona augment."] = "none"
    views: Annotated[int, "With tail: augmented copies of each photo to keep, where --augment is not none."] = 1
    patience: Annotated[int | None, "Validations without a better one before it stops and keeps the best."] = None
    validate_every: Annotated[int | None, "Steps between validations; by default an epoch."] = None
    device: Annotated[Device, "Where training computes."] = "cpu"
    compute: Annotated[ComputeType, "Number format of training; auto measures both."] = "auto"
    log: Annotated[SinkName | None, "Where else the run is logged."] = None
    resume: Annotated[bool, "Go on with a run that was stopped."] = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                raise OptionError(f"{name}: wanted one of {', '.join(choices)}, got {value!r}")
        for name in ("epochs", "batch", "accumulate", "views", "patience", "validate_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise OptionError(f"{name.replace('_', '-')}: wanted 1 or more, got {value}")
        for name in ("label_smoothing", "mix_share"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise OptionError(f"{name.replace('_', '-')}: wanted a share 0 to 1, got {value}")
        for name in ("warmup", "momentum"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise OptionError(f"{name}: wanted a share from 0, below 1, got {value}")
        if not 0 < self.layer_decay <= 1:
            raise OptionError(f"layer-decay: wanted a factor above 0, up to 1, got {self.layer_decay}")
        if not 0 <= self.weight_decay < float("inf"):
            raise OptionError(f"weight-decay: wanted 0 or more, got {self.weight_decay}")
        if self.lr != "auto":
            check_lr(self.learning_rate)
        parse_augmentation(self.augment)
        self._check_depth()

    def _check_depth(self) -> None:
        if self.refit and self.tune == "head":
            raise OptionError("refit: wanted --tune tail or full, got head, which is trained to be kept")
        if self.tune == "head" and self.layer and self.pooling != "average":
            raise OptionError(
                f"pooling: wanted average with --tune head --layer {self.layer}, got {self.pooling}: second moments "
                "are taken of layers that are chosen already; leave out one of --layer and --pooling"
            )
        if self.tune is None and (changed := self._list_changed()):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise OptionError(f"wanted --tune head, tail or full with {flags}, got none; without it nothing is trained")

    @property
    def learning_rate(self) -> float:
        """The learning rate that was asked for, or that of the optimizer.

        Raises
        ------
        OptionError
            If it is no number.
        """
        if self.lr is None:
            return DEFAULT_LRS[self.optimizer]
        try:
            return float(self.lr)
        except ValueError as error:
            raise OptionError(f"lr: wanted a number or auto, got {self.lr!r}") from error

    def _list_changed(self) -> list[str]:
        own = {field.name: field.default for field in fields(TuneOptions)}
        return [
            name for name, default in own.items() if name not in {"tune", "layer"} and getattr(self, name) != default
        ]


_CHOICES: dict[str, tuple[str, ...]] = {
    "tune": get_args(Depth),
    "pooling": get_args(Pooling),
    "loss": get_args(LossName),
    "balance": get_args(BalanceName),
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(ScheduleName),
    "average": get_args(AverageName),
    "mix": get_args(MixName),
    "device": get_args(Device),
    "compute": get_args(ComputeType),
    "log": get_args(SinkName),
}
