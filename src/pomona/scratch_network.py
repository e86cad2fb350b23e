"""A small network that begins with random weights and learns from one's own photos alone.

In: small photos and labels, a time. Out: a `ScratchNetwork` that answers with probabilities.
Why: what transfer learning is worth shows against a network without it. So this one is given what is known to help in
minutes on a CPU: batch normalisation, AdamW, one cycle of the learning rate that ends when the time does, random crops,
mirrors and colours, classes drawn equally often.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.batches import draw_epoch, make_generator
from pomona.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

SIZE_PX = 112
"""Side of the photos that it is given; it learns from crops of them, and answers for the whole."""

CROP_PX = 96
"""Side of the crops that it learns from."""

_WIDTHS = (32, 64, 128, 256, 256)
_BATCH = 32
_LR, _WEIGHT_DECAY, _WARMUP = 2e-3, 0.05, 0.1
_LATE = 0.05
_SMOOTHING = 0.1
_DROPOUT = 0.2
_LEAST_AREA, _STRETCH = 0.35, 0.2
_COLOUR = 0.3
_N_ANSWERED = 64


@dataclass(frozen=True)
class ScratchNetwork:
    """A trained network.

    Parameters
    ----------
    module : torch.nn.Module
        Normalised pixels (N, 3, H, W) to logits (N, C).
    n_epochs : float
        Times that it has seen as many photos as there are.
    stopped_by : {"time", "epochs"}
        What ended its training.
    """

    module: nn.Module
    n_epochs: float
    stopped_by: str

    def predict_proba(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (N, C) of photos (N, H, W, 3), the mean of those of each and of its mirror image."""
        import torch

        self.module.eval()
        found = []
        with torch.no_grad():
            for start in range(0, len(pixels), _N_ANSWERED):
                x = _normalise(torch.from_numpy(pixels[start : start + _N_ANSWERED]))
                both = self.module(x).softmax(1) + self.module(x.flip(3)).softmax(1)
                found.append((both / 2).numpy())
        return np.concatenate(found)


def train_network(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.intp],
    n_classes: int,
    *,
    time_s: float,
    n_epochs: int,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> ScratchNetwork:
    """Train a small network from random weights.

    It ends after `n_epochs` or when the time is up, whichever is first; the learning rate falls to zero by then, as
    far as that can be told. Where the epochs are what ends it, the same seed gives the same network on a machine.

    Parameters
    ----------
    pixels : ndarray of shape (N, S, S, 3), uint8
        Photos, `SIZE_PX` high and wide or another size of at least 32.
    labels : ndarray of shape (N,), int
        Class numbers 0 to n_classes - 1.
    n_classes : int
        C.
    time_s : float
        Seconds there are, above 0.
    n_epochs : int
        Times to go over the photos at most, 1 or more.
    seed : int
        Of the first weights, and of all that is drawn.
    on_epoch : callable, optional
        Called after each epoch with its number, from 1, and its mean loss.

    Returns
    -------
    ScratchNetwork
        As it was at the end.

    Raises
    ------
    MissingPackageError
        If torch is not installed.

    References
    ----------
    Smith and Topin, "Super-convergence", 2018: one cycle of a high learning rate, where there is little time.

    Examples
    --------
    >>> pixels = np.repeat(np.array([0, 255], np.uint8), 4)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    >>> network = train_network(pixels, np.repeat([0, 1], 4), 2, time_s=60, n_epochs=1)
    >>> network.predict_proba(pixels).shape, network.stopped_by
    ((8, 2), 'epochs')
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError("torch", "tune", "to train a network") from error

    started_s = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _make_module(n_classes)
        for one in module.parameters():  # a quarter faster, and what photos come as
            if one.ndim == 4:
                one.data = one.data.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(_group_weights(module), lr=_LR, weight_decay=_WEIGHT_DECAY)
        loss_of = torch.nn.CrossEntropyLoss(label_smoothing=_SMOOTHING)
        n_steps, step, is_late = math.ceil(len(labels) / _BATCH), 0, False
        crop_px = min(CROP_PX, pixels.shape[1])
        module.train()
        for epoch in range(n_epochs):
            total = 0.0
            order = draw_epoch(labels, seed=seed, epoch=epoch, balance="sampling")
            for rows in np.array_split(order, n_steps):
                spent = (time.perf_counter() - started_s) / time_s
                if is_late := spent >= 1:
                    break
                share = step / (n_steps * n_epochs)
                # Only where the time is what will end it does the rate follow the clock: else a seed decides it.
                _set_rate(optimizer, spent if spent > share + _LATE else share)
                x = _normalise(_draw_crops(pixels[rows], crop_px, make_generator(seed, 1, step)))
                loss = loss_of(module(x), torch.from_numpy(labels[rows]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
                step += 1
            if is_late:
                break
            if on_epoch:
                on_epoch(epoch + 1, total / n_steps)
    return ScratchNetwork(module, step / n_steps, "time" if is_late else "epochs")


def _make_module(n_classes: int) -> nn.Module:
    """Five blocks of convolution, normalisation and rectifier, each at half the size of the one before or less."""
    from torch import nn

    parts: list[nn.Module] = []
    n_in = 3
    for number, width in enumerate(_WIDTHS):
        stride = 2 if number == 0 else 1  # at full size the first blocks would take most of the time
        parts += [
            nn.Conv2d(n_in, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        if number < len(_WIDTHS) - 1:
            parts.append(nn.MaxPool2d(2))
        n_in = width
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(_DROPOUT), nn.Linear(n_in, n_classes)]
    return nn.Sequential(*parts)


def _group_weights(module: nn.Module) -> list[dict[str, object]]:
    """Weights that decay, and those of normalisation and biases, which do not."""
    weights = list(module.parameters())
    return [
        {"params": [one for one in weights if one.ndim > 1]},
        {"params": [one for one in weights if one.ndim == 1], "weight_decay": 0.0},
    ]


def _set_rate(optimizer: object, progress: float) -> None:
    """Learning rate of a moment, 0-1: it rises in a line, and falls along half a cosine."""
    if progress < _WARMUP:
        share = 0.05 + 0.95 * progress / _WARMUP
    else:
        share = 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))
    for group in optimizer.param_groups:  # type: ignore[attr-defined]
        group["lr"] = _LR * share


def _normalise(pixels: Tensor) -> Tensor:
    """Pixels (N, H, W, 3), 0-255, as the network takes them: (N, 3, H, W), about -2 to 2."""
    import torch

    scaled: Tensor = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 64
    return scaled.contiguous(memory_format=torch.channels_last)


def _draw_crops(pixels: NDArray[np.uint8], crop_px: int, generator: np.random.Generator) -> Tensor:
    """Cut a random window from each photo, mirror half of them, and change light, contrast and saturation."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    n = len(pixels)
    sides = np.sqrt(generator.uniform(_LEAST_AREA, 1, n))
    stretches = np.exp(generator.uniform(-_STRETCH, _STRETCH, n) / 2)
    across, down = np.minimum(1, sides * stretches), np.minimum(1, sides / stretches)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0] = across * generator.choice([-1, 1], n)
    theta[:, 1, 1] = down
    theta[:, 0, 2] = generator.uniform(-1, 1, n) * (1 - across)
    theta[:, 1, 2] = generator.uniform(-1, 1, n) * (1 - down)
    grid = affine_grid(torch.from_numpy(theta), [n, 3, crop_px, crop_px], align_corners=False)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    x = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    factors = np.exp(generator.uniform(-_COLOUR, _COLOUR, (3, n, 1, 1, 1))).astype(np.float32)
    light, contrast, saturation = torch.from_numpy(factors)
    gray = x.mean(1, keepdim=True)
    x = (gray + (x - gray) * saturation) * light
    mean = x.mean((1, 2, 3), keepdim=True)
    changed: Tensor = (mean + (x - mean) * contrast).clamp_(0, 255)
    return changed.permute(0, 2, 3, 1)
