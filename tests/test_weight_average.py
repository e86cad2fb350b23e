"""Averages are the means they say they are, and go on from what was saved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import OptionError
from pomona.weight_average import Average, LastAverage, choose_decay

torch = pytest.importorskip("torch", reason="gradient training needs torch: pip install 'pomona[tune]'")

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_moving_average_weighs_by_age(values: list[float], decay: float) -> None:
    average = Average(decay)
    for value in values:
        average.update({"w": torch.tensor([value])})
    ages = decay ** np.arange(len(values))[::-1]
    assert average.tensors()["w"].item() == pytest.approx(float(ages @ values / ages.sum()), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12), st.integers(1, 5))
def test_the_last_average_is_the_mean_of_the_last(values: list[float], n_kept: int) -> None:
    average = LastAverage(n_kept)
    for value in values:
        average.update({"w": torch.tensor([value])})
    assert average.tensors()["w"].item() == pytest.approx(float(np.mean(values[-n_kept:])), abs=1e-5)


def weights_of(step: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 2, generator=source)
    return {"a.mean": weight, "b": weight[0].half(), "n_updates": torch.tensor(step), "scale": weight[0, 0]}


@pytest.mark.parametrize("kind", [Average, LastAverage])
def test_an_average_goes_on_from_a_file_to_the_same_bits(kind: type[Average | LastAverage], tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    whole, first, second = kind(), kind(), kind()
    for step in range(9):
        whole.update(weights_of(step))
        if step == 4:
            files.save_file(first.state(), tmp_path / "average.safetensors")
            second.restore(files.load_file(tmp_path / "average.safetensors"))
        (first if step < 4 else second).update(weights_of(step))
    found, wanted = second.tensors(), whole.tensors()
    assert found.keys() == wanted.keys() == weights_of(0).keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in weights_of(0).items()
    }
    assert found["n_updates"] == 8


@pytest.mark.parametrize("kind", [Average, LastAverage])
def test_an_average_goes_on_where_the_weights_are(kind: type[Average | LastAverage]) -> None:
    first, second = kind(), kind()
    first.update({"w": torch.ones(2)})
    second.restore(first.state(), device="meta")
    second.update({"w": torch.ones(2, device="meta")})
    assert second.tensors()["w"].device.type == "meta"


@pytest.mark.parametrize("kind", [Average, LastAverage])
def test_an_average_keeps_nothing_of_the_weights_it_was_given(kind: type[Average | LastAverage]) -> None:
    average, weight = kind(), torch.nn.Parameter(torch.ones(2))
    average.update({"w": weight})
    with torch.no_grad():
        weight.zero_()
    average.tensors()["w"].zero_()
    assert average.tensors()["w"].tolist() == [1, 1]
    assert not average.tensors()["w"].requires_grad


def test_averages_that_cannot_be_are_refused() -> None:
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(OptionError, match="wanted a decay from 0, below 1"):
            Average(decay)
    with pytest.raises(OptionError, match="wanted 1 epoch or more, got 0"):
        LastAverage(0)
    assert [choose_decay(n) for n in (1, 10, 1000)] == pytest.approx([0, 0, 0.99])
