"""Losses equal torch's, rates depend on the step alone, optimizers go on from what was saved."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import NotFiniteError, OptionError
from pomona.optimization import (
    LossName,
    OptimizerName,
    ParameterGroup,
    Schedule,
    ScheduleName,
    check_finite,
    check_lr,
    clip_gradients,
    group_parameters,
    lr_factors,
    make_class_weights,
    make_optimizer,
    measure_loss,
    pack_optimizer,
    restore_optimizer,
    set_lr,
)
from pomona.tuning import TuneOptions

torch = pytest.importorskip("torch", reason="gradient training needs torch: pip install 'pomona[tune]'")

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SEEDS = st.integers(0, 2**31)


def draw(seed: int, n: int = 12, n_classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class numbers, class weights."""
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n_classes, generator=source)
    weights = 0.1 + torch.rand(n_classes, generator=source)
    return logits, torch.randint(n_classes, (n,), generator=source), weights


def soften(labels: Tensor, n_classes: int, seed: int) -> Tensor:
    hard = torch.nn.functional.one_hot(labels, n_classes).float()
    share = torch.rand(len(labels), 1, generator=torch.Generator().manual_seed(seed))
    return share * hard + (1 - share) * hard.roll(1, 0)


# --- losses ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1, 0.9]), st.booleans())
def test_hard_labels_give_the_losses_of_torch(seed: int, smoothing: float, weighted: bool) -> None:
    logits, labels, drawn = draw(seed)
    weights = drawn if weighted else None
    hard = torch.nn.functional.one_hot(labels, 5).float()
    found = measure_loss(logits, hard, loss="cross-entropy", label_smoothing=smoothing, class_weights=weights)
    wanted = torch.nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(measure_loss(logits, hard, loss="mse"), torch.nn.functional.mse_loss(logits, hard))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0, 0.5), st.booleans())
def test_mixed_targets_cost_what_torch_says_and_focal_of_0_is_cross_entropy(
    seed: int, smoothing: float, weighted: bool
) -> None:
    logits, labels, drawn = draw(seed)
    soft = soften(labels, 5, seed)
    plain = measure_loss(logits, soft, loss="cross-entropy", label_smoothing=smoothing)
    torch.testing.assert_close(
        plain, torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing), rtol=1e-5, atol=1e-5
    )
    options: dict[str, Any] = {"label_smoothing": smoothing, "class_weights": drawn if weighted else None}
    entropy = measure_loss(logits, soft, loss="cross-entropy", **options)
    torch.testing.assert_close(measure_loss(logits, soft, loss="focal", focal_gamma=0.0, **options), entropy)
    assert measure_loss(logits, soft, loss="focal", focal_gamma=2.0, **options) < entropy


@pytest.mark.parametrize("loss", get_args(LossName))
def test_weights_of_one_and_a_batch_twice_over_change_nothing(loss: LossName) -> None:
    logits, labels, weights = draw(3)
    soft = soften(labels, 5, 4)
    once = measure_loss(logits, soft, loss=loss)
    torch.testing.assert_close(measure_loss(logits, soft, loss=loss, class_weights=torch.full((5,), 7.0)), once)
    weighted = measure_loss(logits, soft, loss=loss, class_weights=weights)
    twice = measure_loss(logits.repeat(2, 1), soft.repeat(2, 1), loss=loss, class_weights=weights)
    torch.testing.assert_close(twice, weighted)
    assert not torch.isclose(weighted, once)


def test_mse_weighs_a_photo_by_its_class() -> None:
    logits, hard = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.eye(2)
    found = measure_loss(logits, hard, loss="mse", class_weights=torch.tensor([3.0, 1.0]))
    assert found.item() == pytest.approx((3 * 0.5 + 1 * 0.5) / 4)
    unequal = measure_loss(2 * logits, hard, loss="mse", class_weights=torch.tensor([3.0, 1.0]))
    assert unequal.item() == pytest.approx((3 * 4.5 + 1 * 0.5) / 4)


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_where_an_answer_is_certain(loss: LossName, gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    found = measure_loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), loss=loss, focal_gamma=gamma)
    found.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(found)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", get_args(LossName))
def test_gradients_are_the_slopes_of_the_loss(loss: LossName) -> None:
    logits, labels, weights = draw(11, n=4, n_classes=3)
    soft = soften(labels, 3, 5)

    def measure(values: Tensor) -> Tensor:
        return measure_loss(values, soft, loss=loss, label_smoothing=0.1, class_weights=weights)

    (found,) = torch.autograd.grad(measure(logits.requires_grad_()), logits)
    step = torch.zeros_like(logits)
    step[1, 2] = 1e-2
    with torch.no_grad():
        slope = (measure(logits + step) - measure(logits - step)).item() / 2e-2
    assert found[1, 2].item() == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_half_precision_is_measured_in_full() -> None:
    logits, labels, _ = draw(5)
    hard = torch.nn.functional.one_hot(labels, 5)
    found = measure_loss(logits.bfloat16(), hard, loss="cross-entropy")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, measure_loss(logits.bfloat16().float(), hard, loss="cross-entropy"))


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted logits and targets \(N, C\), got \(2, 3\) and \(2,\)"):
        measure_loss(torch.zeros(2, 3), torch.zeros(2), loss="mse")


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_class_weights_let_every_class_count_the_same(found: list[int]) -> None:
    labels = np.array(found)
    weights = make_class_weights(labels, 7)
    totals = np.bincount(labels, weights[labels], 7)
    present = np.unique(labels)
    np.testing.assert_allclose(totals[present], len(labels) / len(present), rtol=1e-5)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    assert not weights[np.setdiff1d(np.arange(7), present)].any()


# --- optimizers -----------------------------------------------------------------------------------------------------


def learn(name: OptimizerName, n_steps: int, *, restart_at: int | None = None, lr: float = 0.05) -> list[Tensor]:
    """Train a small network; at `restart_at` give its optimizer up for a new one that takes over its state."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)]
    groups = group_parameters([layer.parameters() for layer in layers], layer_decay=0.5)
    optimizer = make_optimizer(name, groups, lr=lr, weight_decay=0.01)
    x, y = torch.randn(16, 3), torch.randn(16, 2)
    schedule = Schedule("one-cycle", n_steps)
    for step in range(n_steps):
        if step == restart_at:
            tensors = pack_optimizer(optimizer)
            optimizer = make_optimizer(name, groups, lr=1.0, weight_decay=0.01)
            restore_optimizer(optimizer, tensors)
        set_lr(optimizer, lr * schedule.factor(step))
        optimizer.zero_grad()
        loss = (layers[1](layers[0](x).tanh()) - y).square().mean()
        loss.backward()
        optimizer.step()
    return [parameter.detach() for layer in layers for parameter in layer.parameters()]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_an_optimizer_goes_on_from_saved_tensors_to_the_same_bits(name: OptimizerName) -> None:
    whole, resumed = learn(name, 12), learn(name, 12, restart_at=5)
    assert all(torch.equal(one, two) for one, two in zip(whole, resumed, strict=True))
    assert not torch.equal(whole[0], learn(name, 11)[0])


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_its_tensors_go_through_safetensors(name: OptimizerName, tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(name, [ParameterGroup([weight])], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    tensors = pack_optimizer(optimizer)
    files.save_file(tensors, tmp_path / "state.safetensors")
    other = make_optimizer(name, [ParameterGroup([weight.detach().clone().requires_grad_()])], lr=0.1)
    restore_optimizer(other, files.load_file(tmp_path / "state.safetensors"))
    found = pack_optimizer(other)
    assert found.keys() == tensors.keys()
    assert found
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_finds_the_bottom(name: OptimizerName) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(name, [ParameterGroup([weight])], lr=0.03)
    for step in range(400):
        set_lr(optimizer, 0.03 * (1 - step / 400))
        weight.grad = weight.detach().clone()
        optimizer.step()
    assert weight.abs().max() < 0.02


def test_groups_learn_at_their_factor_and_keep_biases_undecayed() -> None:
    layers = [torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)]
    layers[1].bias.requires_grad_(False)
    groups = group_parameters([layer.parameters() for layer in layers], layer_decay=0.5)
    found = [(len(group.parameters), group.lr_factor, group.weight_decay) for group in groups]
    assert found == [(1, 0.25, None), (1, 0.25, 0.0), (1, 0.5, 0.0), (1, 1.0, None), (1, 1.0, 0.0)]
    optimizer = make_optimizer("adamw", groups, lr=0.1, weight_decay=0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025, 0.05, 0.1, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0, 0.0, 0.02, 0.0]
    set_lr(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25, 0.5, 1.0, 1.0]


@given(st.lists(st.integers(0, 9), min_size=1), st.floats(0.1, 1))
def test_deeper_layers_never_learn_slower(depths: list[int], decay: float) -> None:
    factors = lr_factors(depths, decay)
    assert max(factors) == 1
    assert all(b <= a for (_, a), (_, b) in itertools.pairwise(sorted(zip(depths, factors, strict=True), reverse=True)))


@pytest.mark.parametrize("lr", [0.0, -1.0, 1e9, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused(lr: float) -> None:
    with pytest.raises(OptionError, match="learning rate: wanted a number above 0, at most 100, got"):
        check_lr(lr)
    with pytest.raises(OptionError, match="learning rate"):
        make_optimizer("sgd", [ParameterGroup([torch.ones(1, requires_grad=True)])], lr=lr)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"momentum": 1.0}, "momentum"), ({"momentum": -0.1}, "momentum"), ({"weight_decay": -1.0}, "weight decay")],
)
def test_other_numbers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_optimizer("adamw", [ParameterGroup([torch.ones(1, requires_grad=True)])], lr=0.1, **options)
    with pytest.raises(OptionError, match="layer decay: wanted a number above 0, at most 1, got 2"):
        lr_factors([0, 1], 2.0)


# --- schedules ------------------------------------------------------------------------------------------------------

SCHEDULES = st.builds(
    Schedule,
    st.sampled_from(get_args(ScheduleName)),
    st.integers(1, 400),
    st.one_of(st.none(), st.floats(0, 0.99)),
)


@settings(deadline=None)
@given(SCHEDULES)
def test_a_rate_rises_to_the_full_one_and_never_rises_again(schedule: Schedule) -> None:
    factors = [schedule.factor(step) for step in range(schedule.n_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[schedule.n_warmup] == 1
    rising, falling = factors[: schedule.n_warmup + 1], factors[schedule.n_warmup :]
    assert all(before < after for before, after in itertools.pairwise(rising))
    assert all(before >= after for before, after in itertools.pairwise(falling))
    assert schedule.factor(schedule.n_steps + 5) == factors[-1]


def test_each_schedule_ends_where_it_says() -> None:
    ends = {name: Schedule(name, 1000).factor(999) for name in get_args(ScheduleName)}
    assert ends["constant"] == 1
    assert ends["step"] == pytest.approx(0.01)
    assert 0 < ends["cosine"] < 1e-4
    assert ends["one-cycle"] == pytest.approx(4e-6)
    assert Schedule("one-cycle", 1000).factor(0) == pytest.approx(1 / 25)
    step = Schedule("step", 1000, warmup_share=0.0)
    assert [step.factor(at) for at in (499, 500, 749, 750)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    # torch lets the peak fall between steps; 31 of 101 steps put it on one.
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=101, pct_start=31 / 101)
    ours = Schedule("one-cycle", 101, warmup_share=30 / 101)
    for step in range(101):
        assert ours.factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < 100:
            theirs.step()


@pytest.mark.parametrize(("n_steps", "share"), [(0, None), (10, 1.0), (10, -0.1), (10, math.nan)])
def test_schedules_that_cannot_be_are_refused(n_steps: int, share: float | None) -> None:
    with pytest.raises(OptionError):
        Schedule("cosine", n_steps, share)
    with pytest.raises(ValueError, match="wanted a step from 0, got -1"):
        Schedule("cosine", 10).factor(-1)


# --- guards ---------------------------------------------------------------------------------------------------------


def test_gradients_are_shortened_and_measured() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for weight, slope in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.tensor([slope])
    assert clip_gradients(iter(weights), 1.0) == pytest.approx(5)
    assert [cast("Tensor", weight.grad).item() for weight in weights] == pytest.approx([0.6, 0.8], rel=1e-4)
    assert clip_gradients(weights, 10.0) == pytest.approx(1, rel=1e-4)
    weights[0].grad = torch.tensor([math.nan])
    assert math.isnan(clip_gradients(weights, 1.0))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_says_where(loss: float) -> None:
    with pytest.raises(NotFiniteError, match=r"became (nan|inf|-inf) at step 1,234, .* was 0\.3: .* such as 0\.03"):
        check_finite(loss, step=1234, lr=0.3)
    check_finite(1e30, step=0, lr=0.3)


def test_each_schedule_brings_a_warm_up_of_its_own() -> None:
    warmups = {name: Schedule(name, 100).n_warmup for name in get_args(ScheduleName)}
    assert warmups == {"constant": 0, "step": 5, "cosine": 10, "one-cycle": 30}
    assert TuneOptions().warmup is None  # so that they are reached
