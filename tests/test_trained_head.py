"""The head that gradients train knows the features from the start, whatever their scale, and predicts as it trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.tuning import TuneOptions

torch = pytest.importorskip("torch", reason="gradients are torch's")

from pomona.optimization import measure_loss  # noqa: E402
from pomona.trained_head import fit_start  # noqa: E402

if TYPE_CHECKING:
    from pomona.optimization import LossName

N_CLASSES = 3


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (60, 8) of three classes that lie apart, on axes of very different widths; and their targets."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % N_CLASSES
    centres = torch.randn(N_CLASSES, 8, generator=generator)
    features = centres[labels] + 0.5 * torch.randn(60, 8, generator=generator)
    return features * torch.logspace(-2, 2, 8), torch.nn.functional.one_hot(labels, N_CLASSES).float()


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "focal"])
def test_the_start_lowers_the_loss_that_is_trained_with(
    loss: LossName, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    features, targets = data
    options = TuneOptions(tune="head", loss=loss)
    head = fit_start(features, targets, options)
    with torch.no_grad():
        logits = head(features)
        before, after = (
            float(measure_loss(one, targets, loss=loss, label_smoothing=options.label_smoothing))
            for one in (torch.zeros_like(logits), logits)
        )
    assert after < 0.6 * before
    assert (logits.argmax(1) == targets.argmax(1)).float().mean() > 0.9
    assert all(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_the_head_that_is_kept_gives_the_logits_over_the_temperature(
    temperature: float, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    features, targets = data
    trained = fit_start(features, targets, TuneOptions(tune="head"))
    head = trained.to_head(temperature)
    with torch.no_grad():
        wanted = (trained(features) / temperature).numpy()
    got = features.numpy() @ head.weights.T + head.bias
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert head.weights.dtype == head.bias.dtype == np.float32


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_scale_of_the_features_does_not_matter(factor: float, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = data
    options = TuneOptions(tune="head")
    with torch.no_grad():
        wanted = fit_start(features, targets, options)(features)
        got = fit_start(factor * features, targets, options)(factor * features)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


def test_a_feature_that_never_changes_harms_nothing(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = data
    features = torch.cat([features, torch.full((60, 1), 7.0)], 1)
    head = fit_start(features, targets, TuneOptions(tune="head"))
    with torch.no_grad():
        assert torch.isfinite(head(features)).all()
    same = fit_start(torch.ones(6, 4), targets[:6], TuneOptions(tune="head"))  # nothing can be told apart
    with torch.no_grad():
        assert torch.isfinite(same(torch.ones(1, 4))).all()
