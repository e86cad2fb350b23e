"""What drives gradient training: losses, optimizers, learning rates.

In: logits and targets; parameters; the number of a step. Out: a loss; an optimizer; a learning rate; `NotFiniteError`
where a loss is no number any more.
Why: nothing here knows a network or a photo, so every rule can be tested on a few numbers. What a step does depends on
its number alone, never on steps before it, so a run that was stopped goes on as if it had not been. torch is imported
by the functions that compute with it.

References
----------
Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022: why the
head is fitted before the layers below it move, and why those move less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pomona.errors import NotFiniteError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor
    from torch.optim import Optimizer

LossName = Literal["cross-entropy", "mse", "focal"]
"""What training makes small; see `measure_loss`."""

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
"""How gradients become steps; see `make_optimizer`."""

ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
"""How the learning rate runs; see `Schedule`."""

DEFAULT_LRS: dict[OptimizerName, float] = {"sgd": 0.01, "adam": 6e-4, "adamw": 6e-4, "rmsprop": 3e-5}
"""Rates to train with where none is asked for: a step of sgd is as long as its gradient, one of adam about as its rate,
one of rmsprop with momentum ten times that."""

MAX_LR = 100.0
"""A larger learning rate is a slip of the hand: no optimizer here survives it."""

_RMSPROP_ALPHA = 0.99
_SMALLEST_SHARE = 1e-6
_WARMUP_SHARES: dict[ScheduleName, float] = {"constant": 0.0, "step": 0.05, "cosine": 0.1, "one-cycle": 0.3}
_STEP_SHARES, _STEP_FACTOR = (0.5, 0.75), 0.1
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25e4


# --- losses ---------------------------------------------------------------------------------------------------------


def measure_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    loss: LossName,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Tensor:
    """Mean loss of some photos whose labels may be shared among classes.

    With logits z, p = softmax(z), targets t, and s = (1 - label_smoothing) t + label_smoothing / C, one photo's loss is

    - cross-entropy: ``sum_c w_c s_c (-log p_c)``
    - focal: ``sum_c w_c s_c (1 - p_c)^gamma (-log p_c)``: photos that are right already count less
    - mse: ``(sum_c w_c t_c) mean_c (z_c - s_c)^2``: a regression of the logits on 0 and 1, as a ridge head is

    and the mean divides their sum by ``sum w_c t_c`` over all photos and classes. Equal to torch's own `cross_entropy`
    and `mse_loss` where labels are hard.

    Parameters
    ----------
    logits : Tensor of shape (N, C), float
        Computed in float32 whatever its type.
    targets : Tensor of shape (N, C), float
        A row is a distribution; a hard label is one-hot.
    loss : LossName
        Which one.
    label_smoothing : float
        Share 0-1 of each target that is spread over all classes.
    class_weights : Tensor of shape (C,), optional
        What a photo of each class counts.
    focal_gamma : float
        At 0, focal is cross-entropy.

    Returns
    -------
    Tensor of shape (), float32
        The loss.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    Szegedy et al., "Rethinking the Inception architecture", CVPR 2016 (label smoothing). Lin et al., "Focal loss for
    dense object detection", ICCV 2017. Hui and Belkin, "Evaluation of neural architectures trained with square loss vs
    cross-entropy in classification tasks", ICLR 2021 (mse on logits).

    Examples
    --------
    >>> torch = __import__("torch")
    >>> round(measure_loss(torch.zeros(3, 4), torch.eye(4)[:3], loss="cross-entropy").item(), 4)  # log 4
    1.3863
    """
    if logits.ndim != 2 or targets.shape != logits.shape:
        raise ValueError(f"wanted logits and targets (N, C), got {tuple(logits.shape)} and {tuple(targets.shape)}")
    logits = logits.float()
    targets = targets.to(logits.dtype)
    goals = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1] if label_smoothing else targets
    weights = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights.to(logits)
    per_photo = targets @ weights
    if loss == "mse":
        return (per_photo * (logits - goals).square().mean(dim=1)).sum() / per_photo.sum()
    log_shares = logits.log_softmax(dim=1)
    costs = -log_shares
    if loss == "focal":
        # Not 0, where a power below 1 has no slope.
        missing = (-log_shares.expm1()).clamp_min(_SMALLEST_SHARE)
        costs = costs * missing**focal_gamma
    return ((goals * costs) @ weights).sum() / per_photo.sum()


def make_class_weights(labels: NDArray[np.intp], n_classes: int) -> NDArray[np.float32]:
    """Weights under which every class counts the same: the inverse of how many photos it has.

    Parameters
    ----------
    labels : ndarray of shape (N,), int
        Class numbers of the photos to learn from.
    n_classes : int
        C.

    Returns
    -------
    ndarray of shape (C,), float32
        Their mean over the photos is 1; a class without photos weighs 0.

    References
    ----------
    King and Zeng, "Logistic regression in rare events data", Political Analysis 2001.

    Examples
    --------
    >>> make_class_weights(np.array([0, 0, 1, 0, 0, 1]), 3).tolist()
    [0.75, 1.5, 0.0]
    """
    counts = np.bincount(labels, minlength=n_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0.0).astype(np.float32)


# --- optimizers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn at the same rate.

    Parameters
    ----------
    parameters : sequence of Tensor
        What the optimizer changes.
    lr_factor : float
        Their learning rate is this times that of the step.
    weight_decay : float, optional
        Their own; None is the optimizer's.
    """

    parameters: Sequence[Tensor]
    lr_factor: float = 1.0
    weight_decay: float | None = None


def make_optimizer(
    name: OptimizerName,
    groups: Sequence[ParameterGroup],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Make an optimizer; `set_lr` then sets the rate of every step.

    Parameters
    ----------
    name : OptimizerName
        `sgd` takes Nesterov's steps; `adam` adds the decay to the gradient, `adamw` takes it off the weights.
    groups : sequence of ParameterGroup
        At least one parameter in all.
    lr : float
        Learning rate, above 0, at most `MAX_LR`.
    momentum : float
        0-1, of `sgd` and `rmsprop`; the first beta of `adam` and `adamw`.
    weight_decay : float
        For groups without their own.

    Returns
    -------
    torch.optim.Optimizer
        Its parameter groups keep their `lr_factor`.

    Raises
    ------
    OptionError
        If a rate, momentum or decay cannot be used.

    References
    ----------
    Sutskever et al., ICML 2013 (Nesterov); Kingma and Ba, ICLR 2015 (Adam); Loshchilov and Hutter, ICLR 2019 (AdamW);
    Tieleman and Hinton, Coursera 2012 (RMSprop).
    """
    import torch

    check_lr(lr)
    _check_range("momentum", momentum, 0.0, 1.0)
    if not 0 <= weight_decay < math.inf:
        raise OptionError(f"weight decay: wanted a number from 0, got {weight_decay:g}")
    rows = [_arrange_group(group, lr, weight_decay) for group in groups if group.parameters]
    if name == "sgd":
        return torch.optim.SGD(rows, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if name == "rmsprop":
        return torch.optim.RMSprop(rows, lr=lr, momentum=momentum, alpha=_RMSPROP_ALPHA)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(rows, lr=lr, betas=(momentum, 0.999))


def _arrange_group(group: ParameterGroup, lr: float, weight_decay: float) -> dict[str, object]:
    decay = weight_decay if group.weight_decay is None else group.weight_decay
    factor = group.lr_factor
    return {"params": list(group.parameters), "lr": lr * factor, "lr_factor": factor, "weight_decay": decay}


def check_lr(lr: float) -> None:
    """Refuse a learning rate that nothing can be learnt at.

    Raises
    ------
    OptionError
        If it is not above 0 and at most `MAX_LR`.
    """
    if not 0 < lr <= MAX_LR:
        raise OptionError(f"learning rate: wanted a number above 0, at most {MAX_LR:g}, got {lr:g}; auto finds one")


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the next step; each group takes it times its `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def lr_factors(depths: Sequence[int], decay: float) -> list[float]:
    """Factors by which layers learn slower, the farther they are from the head.

    Parameters
    ----------
    depths : sequence of int
        Place of each layer, counted from the input; equal places learn alike.
    decay : float
        Factor from one place to the one below it, above 0, at most 1; at 1 all learn alike.

    Returns
    -------
    list of float
        1 for the layers at the largest depth.

    Raises
    ------
    OptionError
        If the decay cannot be used.

    References
    ----------
    Howard and Ruder, "Universal language model fine-tuning for text classification", ACL 2018.

    Examples
    --------
    >>> lr_factors([0, 1, 2, 2], 0.5)
    [0.25, 0.5, 1.0, 1.0]
    """
    if not 0 < decay <= 1:
        raise OptionError(f"layer decay: wanted a number above 0, at most 1, got {decay:g}")
    return [decay ** (max(depths) - depth) for depth in depths]


def group_parameters(layers: Sequence[Iterable[Tensor]], *, layer_decay: float = 1.0) -> list[ParameterGroup]:
    """Group the parameters of layers: lower ones learn slower; biases and norms are not pulled to 0.

    Parameters
    ----------
    layers : sequence of iterables of Tensor
        From the input to the head. Parameters that ask for no gradient are left out.
    layer_decay : float
        As in `lr_factors`.

    Returns
    -------
    list of ParameterGroup
        At most two a layer: matrices and kernels, then what has one dimension, whose weight decay is 0.

    References
    ----------
    He et al., "Bag of tricks for image classification with convolutional neural networks", CVPR 2019 (no bias decay).
    """
    groups = []
    for layer, factor in zip(layers, lr_factors(range(len(layers)), layer_decay), strict=True):
        trained = [parameter for parameter in layer if parameter.requires_grad]
        kernels = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim <= 1]
        groups += [ParameterGroup(kernels, factor), ParameterGroup(vectors, factor, weight_decay=0.0)]
    return [group for group in groups if group.parameters]


def pack_optimizer(optimizer: Optimizer) -> dict[str, Tensor]:
    """Tensors that an optimizer has gathered, as ``number of the parameter.name``: what a checkpoint needs of it."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": tensor
        for number, tensors in state.items()
        for name, tensor in tensors.items()
        if tensor is not None
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer of the same groups back what `pack_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


# --- learning rates -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """How the learning rate runs over the steps of a run, as a factor 0-1 of the rate that was asked for.

    It rises in a straight line over the warm-up; then `constant` stays, `step` falls to a tenth after half and again
    after three quarters of the steps left, `cosine` falls along half a cosine. `one-cycle` rises along a cosine from
    1/25 and falls along one to 1/250,000.

    Parameters
    ----------
    name : ScheduleName
        Which one.
    n_steps : int
        Steps of the run, 1 or more.
    warmup_share : float, optional
        Share 0-1 of the steps before the rate is full; None is 0.3 for `one-cycle`, 0.1 for `cosine`, 0.05 for `step`,
        0 for `constant`.

    Raises
    ------
    OptionError
        If a number cannot be used.

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD", 2017 (warm-up). Loshchilov and Hutter, "SGDR", ICLR 2017 (cosine).
    Smith and Topin, "Super-convergence", 2018 (one-cycle).

    Examples
    --------
    >>> run = Schedule("cosine", 100)
    >>> [round(run.factor(step), 2) for step in (0, 9, 10, 99)]
    [0.09, 0.91, 1.0, 0.0]
    """

    name: ScheduleName
    n_steps: int
    warmup_share: float | None = None

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise OptionError(f"schedule: wanted 1 step or more, got {self.n_steps}")
        _check_range("warm-up", self.warmup_share or 0.0, 0.0, 1.0)

    @property
    def n_warmup(self) -> int:
        """Steps before the one whose rate is full; at least one step is left for it."""
        share = _WARMUP_SHARES[self.name] if self.warmup_share is None else self.warmup_share
        return min(round(share * self.n_steps), self.n_steps - 1)

    def factor(self, step: int) -> float:
        """Factor of a step, counted from 0; steps after the end take that of the last.

        Raises
        ------
        ValueError
            If the step is negative.
        """
        if step < 0:
            raise ValueError(f"wanted a step from 0, got {step}")
        step = min(step, self.n_steps - 1)
        if self.name == "one-cycle":
            return self._cycle(step)
        if step < self.n_warmup:
            return (step + 1) / (self.n_warmup + 1)
        done = (step - self.n_warmup) / (self.n_steps - self.n_warmup)
        if self.name == "step":
            return _STEP_FACTOR ** sum(done >= share for share in _STEP_SHARES)
        if self.name == "cosine":
            return _fall(done)
        return 1.0

    def _cycle(self, step: int) -> float:
        if step < self.n_warmup:
            return 1 + (_ONE_CYCLE_START - 1) * _fall(step / self.n_warmup)
        n_after = max(self.n_steps - 1 - self.n_warmup, 1)
        return _ONE_CYCLE_END + (1 - _ONE_CYCLE_END) * _fall((step - self.n_warmup) / n_after)


def _fall(share: float) -> float:
    """Half a cosine, from 1 at share 0 to 0 at share 1."""
    return (1 + math.cos(math.pi * share)) / 2


# --- guards ---------------------------------------------------------------------------------------------------------


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Shorten the gradient, taken as one vector, to `max_norm` at most.

    Returns
    -------
    float
        Its length before; NaN or infinity where one of its numbers is, and then it is not fit for a step.

    References
    ----------
    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    import torch

    return float(torch.nn.utils.clip_grad_norm_(list(parameters), max_norm))


def check_finite(loss: float, *, step: int, lr: float) -> None:
    """Refuse a loss, or the length of a gradient, that is no number any more.

    Raises
    ------
    NotFiniteError
        It says at which step, and what to do.
    """
    if not math.isfinite(loss):
        raise NotFiniteError(
            f"the loss became {loss:g} at step {step:,}, where the learning rate was {lr:.3g}: choose a smaller one,"
            f" such as {lr / 10:.1g}, or auto"
        )


def _check_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise OptionError(f"{what}: wanted a number from {low:g}, below {high:g}, got {value:g}")
