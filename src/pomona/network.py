"""What gradient training changes: the layers above a cut, of any backbone, as one torch module.

In: an embedding and a depth. Out: a `Network`: activations or pixels to features, its parameters from input to output,
and its weights by the names that writing it as ONNX knows.
Why: training neither knows nor asks which package a network comes from.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pomona.backbone import PIXELS
from pomona.errors import OptionError
from pomona.optimization import measure_loss
from pomona.split import split_network
from pomona.tail import LiteTail

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.backbone import Backbone
    from pomona.embedding import Embedding

DEFAULT_LAYER = "stage3"
"""Cut of lite0 to lite2: what is below knows edges and colours, and is half of the work."""

_N_PROBED, _N_FEW, _HOPELESS = 3, 2, 4


@dataclass(frozen=True)
class Network:
    """A trainable part of a network.

    Parameters
    ----------
    module : torch.nn.Module
        Activations, or scaled pixels (N, 3, S, S), to features (N, D) float32.
    layer : str
        The cut; `PIXELS` where all is trained.
    kind : {"map", "tokens", "vector"}
        What the activations are.
    is_elastic : bool
        Whether it takes windows of its activations.
    offset, scale : tuple of float
        Scaled pixels are ``(x - offset) / scale``.
    blocks : tuple of tuple of str
        Of another package's network: names of the parameters of each of its blocks, from input to output.
    """

    module: torch.nn.Module
    layer: str
    kind: str
    is_elastic: bool
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    blocks: tuple[tuple[str, ...], ...] = ()

    def scale_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale pixels (N, 3, S, S) of 0-1 to what the network takes."""
        offset, scale = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (self.offset, self.scale))
        return (255 * pixels - offset) / scale

    def list_depths(self) -> list[list[torch.nn.Parameter]]:
        """Trainable parameters of each block, from input to output."""
        if isinstance(self.module, LiteTail):
            return self.module.list_depths()
        own = dict(self.module.named_parameters())
        blocks = ([own[name] for name in block if name in own] for block in self.blocks)
        return [block for block in blocks if block]

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Weights by the names that `pomona.embedding.build_network` knows."""
        if isinstance(self.module, LiteTail):
            return self.module.state()
        parameters = self.module.named_parameters()
        return {name: np.ascontiguousarray(one.detach().cpu().float().numpy()) for name, one in parameters}


def load_network_above(
    embedding: Embedding, layer: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Network:
    """Load what is above a cut.

    Parameters
    ----------
    embedding : Embedding
        Of one backbone.
    layer : str
        The cut; `PIXELS` for the whole network.
    device : str
        Where it computes.
    dtype : torch.dtype
        What convolutions of lite0 to lite2 compute in.
    seed : int
        Of torch, for networks that draw.

    Raises
    ------
    OptionError
        If there are several backbones, or the layer is no cut of this one.
    """
    if len(embedding.backbones) != 1:
        raise OptionError(f"tune: wanted one backbone, got {len(embedding.backbones)}; name one with --backbone")
    (backbone,) = embedding.backbones
    torch.manual_seed(seed)
    if backbone.is_embedded:
        module: torch.nn.Module = LiteTail(embedding, layer, dtype=dtype, trains_depthwise=layer == PIXELS)
        offset, scale = backbone.preprocessing.offset, backbone.preprocessing.scale
        both = [v if isinstance(v, tuple) else (v,) * 3 for v in (offset, scale)]
        network = Network(module, layer, "map", True, both[0], both[1])
    else:
        parts = split_network(backbone, layer)
        shape = (3, *[backbone.preprocessing.size_px] * 2) if layer == PIXELS else parts.shape
        elastic = parts.kind == "map" and _takes_windows(parts.tail, shape)
        network = Network(parts.tail, layer, parts.kind, elastic, parts.offset, parts.scale, parts.blocks)
    check_device(device)
    network.module.to(device)
    return network


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises
    ------
    OptionError
        It says which there are.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not has[device]:
        offered = ", ".join(name for name, is_here in has.items() if is_here)
        raise OptionError(f"device: wanted one that is here, got {device}; this torch offers {offered}")


def _takes_windows(module: torch.nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a network takes smaller maps, and more of them, than it was traced with."""
    n_channels, height, width = shape
    try:
        with torch.no_grad():
            module(torch.zeros(2, n_channels, max(1, height * 3 // 4), max(1, width * 3 // 4)))
    except (RuntimeError, ValueError, TypeError, IndexError):  # what a graph of fixed sizes says, each in its way
        return False
    return True


def choose_layer_to_cut(backbone: Backbone) -> str:
    """The cut to train above where none is named: half of the work is below it.

    Raises
    ------
    OptionError
        If the network cannot be cut.
    """
    if backbone.is_embedded:
        return DEFAULT_LAYER
    from pomona.backbone import choose_layer, list_layers

    cuts = [one.name for one in list_layers(backbone) if one.is_cut][:-1]
    if not cuts:
        raise OptionError(f"layer: {backbone.name} has no layer to cut at; train a head or everything")
    whole = backbone.n_multiplications
    return next((name for name in cuts if choose_layer(backbone, name).n_multiplications >= whole / 2), cuts[-1])


def measure_rates(embedding: Embedding, layer: str, shape: tuple[int, ...], *, n_photos: int) -> dict[str, float]:
    """Photos a second that are trained on in float32 and bfloat16, forward and backward.

    Parameters
    ----------
    embedding : Embedding
        Of one of lite0 to lite2.
    layer : str
        The cut.
    shape : tuple of int
        Of one photo's activations, (C, H, W).
    n_photos : int
        Photos a batch.
    """
    rates: dict[str, float] = {}
    for name, dtype in {"f32": torch.float32, "bf16": torch.bfloat16}.items():
        network = load_network_above(embedding, layer, dtype=dtype)
        rates[name] = _measure_rate(network, shape, dtype, _N_FEW)
        if rates[name] * _HOPELESS > max(
            rates.values()
        ):  # where a format is emulated, a whole batch takes half a minute
            rates[name] = _measure_rate(network, shape, dtype, n_photos)
    return rates


def _measure_rate(network: Network, shape: tuple[int, ...], dtype: torch.dtype, n_photos: int) -> float:
    x = torch.zeros((n_photos, *shape), dtype=dtype).contiguous(memory_format=torch.channels_last)
    times_s = []
    for _ in range(_N_PROBED):
        started_s = time.perf_counter()
        features = network.module(x)
        measure_loss(features, torch.full_like(features, 1 / features.shape[1]), loss="mse").backward()  # type: ignore[no-untyped-call]
        times_s.append(time.perf_counter() - started_s)
    return n_photos / min(times_s)
