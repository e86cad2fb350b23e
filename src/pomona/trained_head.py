"""The linear head that gradients train, and the one that it starts from.

In: features of the photos and their targets. Out: a `TrainedHead`: a module while it is trained, a `Head` after that.
Why: a head that is drawn at random would first undo what the pretrained layers know (linear probing, then fine-tuning).

References
----------
Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from pomona.head import Head
from pomona.optimization import measure_loss

if TYPE_CHECKING:
    from pomona.tuning import TuneOptions

_N_ITERATIONS, _L2 = 60, 1e-4
_REFERENCE_WIDTH = 1280
"""Features at which one is scaled to a deviation of 1: a step moves the output by about the same in every width."""


class TrainedHead(torch.nn.Module):
    """A linear head on features that are brought to the same scale.

    Parameters
    ----------
    scale : Tensor of shape (D,)
        What features are divided by.
    n_classes : int
        Outputs.
    """

    def __init__(self, scale: torch.Tensor, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.weight = torch.nn.Parameter(torch.zeros(n_classes, len(scale)))
        self.bias = torch.nn.Parameter(torch.zeros(n_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) of features (N, D)."""
        return torch.nn.functional.linear(features / self.get_buffer("scale"), self.weight, self.bias)

    def to_head(self, temperature: float) -> Head:
        """The same on features as they are, its logits divided by a temperature."""
        weights = (self.weight / self.get_buffer("scale")).detach().cpu().numpy() / temperature
        bias = self.bias.detach().cpu().numpy() / temperature
        return Head(np.ascontiguousarray(weights, np.float32), np.ascontiguousarray(bias, np.float32), 0.0)


def fit_start(features: torch.Tensor, targets: torch.Tensor, options: TuneOptions) -> TrainedHead:
    """Fit a head by the loss that is trained with.

    Parameters
    ----------
    features : Tensor of shape (N, D)
        What the network gives before it is trained.
    targets : Tensor of shape (N, K)
        Shares of each class.
    options : TuneOptions
        `loss` and `label_smoothing` of them.

    Returns
    -------
    TrainedHead
        With a small L2 penalty, so that it is not more certain than it should be.
    """
    deviation = features.std(0, correction=0)
    scale = (deviation + 0.1 * deviation.mean()).clamp_min(1e-6) * math.sqrt(features.shape[1] / _REFERENCE_WIDTH)
    head = TrainedHead(torch.ones_like(scale), targets.shape[1])
    features = features / scale
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=_N_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def measure() -> float:
        optimizer.zero_grad()
        loss = measure_loss(head(features), targets, loss=options.loss, label_smoothing=options.label_smoothing)
        loss = loss + _L2 * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(measure)  # type: ignore[no-untyped-call]
    head.get_buffer("scale").copy_(scale)
    return head
