"""The range test stops where learning breaks, and training with the rate it suggests converges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pomona.errors import NotFiniteError, OptionError
from pomona.lr_range import find_lr


class Quadratic:
    """A loss of twenty curvatures, a factor of 100 apart, with noise in its gradients and in what is seen of it."""

    def __init__(self, seed: int, *, start: float, adam: bool, noise: float, seen_noise: float) -> None:
        self.random = np.random.default_rng(seed)
        self.curvature = np.geomspace(0.01, 1, 20) * 10 ** self.random.uniform(-1, 1)
        self.weights = start * self.random.normal(size=20)
        self.mean, self.square = np.zeros(20), np.zeros(20)
        self.adam, self.noise, self.seen_noise, self.n_steps = adam, noise, seen_noise, 0

    @property
    def loss(self) -> float:
        with np.errstate(over="ignore"):
            return 0.05 + float(self.curvature @ self.weights**2) / 2

    def step(self, lr: float) -> float:
        seen = self.loss * math.exp(self.seen_noise * self.random.normal())
        noise = self.noise * np.sqrt(self.curvature) * self.random.normal(size=20)
        slope = self.curvature * self.weights + noise
        self.n_steps += 1
        self.mean = 0.9 * self.mean + (0.1 if self.adam else 1.0) * slope
        if self.adam:
            self.square = 0.999 * self.square + 0.001 * slope**2
            root = np.sqrt(self.square / (1 - 0.999**self.n_steps)) + 1e-8
            self.weights = self.weights - lr * self.mean / (1 - 0.9**self.n_steps) / root
        else:
            self.weights = self.weights - lr * (slope + 0.9 * self.mean)
        return seen

    def train(self, lr: float, n_steps: int = 500) -> float:
        for step in range(n_steps):
            self.step(lr * (1 + math.cos(math.pi * step / n_steps)) / 2)
        return self.loss


@pytest.mark.parametrize("start", [1.0, 0.05], ids=["much to learn", "a fitted head"])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("seen_noise", [0.05, 0.4])
def test_training_with_the_suggestion_converges(start: float, adam: bool, seen_noise: float) -> None:
    ratios = []
    for seed in range(6):

        def make(seed: int = seed) -> Quadratic:
            return Quadratic(seed, start=start, adam=adam, noise=0.3, seen_noise=seen_noise)

        suggested = find_lr(make().step).suggested
        best = min(make().train(lr) for lr in np.geomspace(1e-4, 1, 9))
        found = make().train(suggested)
        assert found < 1.1 * make().loss
        ratios.append(found / best)
    assert np.median(ratios) < 1.25
    assert max(ratios) < 6


def test_the_sweep_is_exponential_and_stops_where_the_loss_is_four_times_its_best() -> None:
    tried: list[float] = []

    def step(lr: float) -> float:
        tried.append(lr)
        return 1.0 if lr < 1e-2 else 100.0

    result = find_lr(step, low=1e-4, high=1.0, n_steps=41)
    np.testing.assert_allclose(tried, np.geomspace(1e-4, 1, 41)[: len(tried)])
    np.testing.assert_array_equal(result.lrs, tried)
    assert len(tried) == 22
    assert 2e-4 < result.suggested < 1e-3
    assert "the largest rate at which the loss was still at its best; the loss broke at" in result.reason


def test_a_head_that_fits_well_is_no_reason_to_learn_nothing() -> None:
    """As of a tail above a fitted head: the loss rises from 1e-4 on, learning breaks at 1e-2; 6e-4 is what works."""
    result = find_lr(lambda lr: 1 + max(0.0, math.log10(lr / 1e-4)) / 2 if lr < 1e-2 else 100.0)
    assert 1.5e-4 < result.suggested < 1e-3
    assert "a sixtieth of 0.01" in result.reason


def test_one_hard_batch_is_not_the_end() -> None:
    losses = iter([1.0] * 30 + [50.0] + [1.0] * 29)
    result = find_lr(lambda _lr: next(losses))
    assert len(result.losses) == 60
    assert result.suggested > 0.03
    assert "the loss held up to 1, where the test ended" in result.reason


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_sweep(end: float) -> None:
    losses = iter([1.0, 0.9, 0.8, 0.7, 0.6, end])
    result = find_lr(lambda _lr: next(losses))
    assert result.losses.tolist() == [1.0, 0.9, 0.8, 0.7, 0.6]
    assert np.isfinite(result.smoothed).all()
    assert result.suggested == pytest.approx(result.lrs[4] / 10)
    with pytest.raises(NotFiniteError, match="no number at the first step, at a learning rate of 1e-06"):
        find_lr(lambda _lr: end)


def test_a_loss_of_nothing_is_no_fault() -> None:
    assert find_lr(lambda _lr: 0.0).suggested == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("low", "high", "n_steps"), [(0.0, 1.0, 60), (1.0, 0.1, 60), (1e-6, math.inf, 60), (0.1, 1.0, 2)]
)
def test_ranges_that_cannot_be_are_refused(low: float, high: float, n_steps: int) -> None:
    with pytest.raises(OptionError, match="range test: wanted"):
        find_lr(lambda _lr: 1.0, low=low, high=high, n_steps=n_steps)
