"""The layers of an EfficientNet-Lite above a cut, as a torch module that trains fast on a CPU.

In: a backbone, a layer and a pooling. Out: a `LiteTail`: activations at the layer to the features that the network of
`pomona.embedding` gives.
Why: batch norms are folded in, so what is trained is what is predicted with. Depthwise filters stay as they are unless
all is trained: they are a twentieth of the weights and half of the time, since libraries have no fast gradient of their
weights. What is left are products of matrices, and those run in bfloat16 where the processor has it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere

from pomona.backbone import (
    HEAD,
    PIXELS,
    STEM,
    find_cut,
    fold_convolution,
    list_blocks,
    list_convolutions,
    load_weights,
)
from pomona.embedding import SECOND_ORDER_CUTS, make_window, read_statistics
from pomona.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pomona.backbone import Backbone, Block, ConvolutionPlace, Weights
    from pomona.embedding import Embedding

_EPSILON = 1e-12


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose filters have no gradient.

    The gradient of its input is a depthwise convolution again, with the filters turned round, and that is several times
    as fast as what the library has for it, above all in bfloat16.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch calls it so
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, pad: int
    ) -> Any:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.pad, ctx.sides = stride, pad, x.shape[2:]
        return F.conv2d(x, weight, bias, stride, pad, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (weight,), (grad,) = ctx.saved_tensors, grads
        grad = grad.contiguous(memory_format=torch.channels_last)
        wanted = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, None, wanted, None, None
        size, n_channels = weight.shape[2], len(weight)
        turned = weight.flip(2, 3).to(grad.dtype)  # autocast casts what goes forward alone
        if ctx.stride == 1:
            return F.conv2d(grad, turned, None, 1, size - 1 - ctx.pad, 1, n_channels), None, wanted, None, None
        n, _, height, width = grad.shape
        sides = [(side - 1) * ctx.stride + 1 for side in (height, width)]
        spread = torch.zeros((n, n_channels, *sides), dtype=grad.dtype, device=grad.device)
        spread = spread.contiguous(memory_format=torch.channels_last)
        spread[:, :, :: ctx.stride, :: ctx.stride] = grad
        back = F.conv2d(spread, turned, None, 1, size - 1, 1, n_channels)
        missing = [side - got for side, got in zip(ctx.sides, back.shape[2:], strict=True)]
        return F.pad(back, (0, missing[1], 0, missing[0])), None, wanted, None, None


class _Convolution(torch.nn.Module):
    """A convolution with `SAME` padding, its batch norm folded in."""

    def __init__(
        self, weights: Weights, place: ConvolutionPlace, dtype: torch.dtype, *, trains_depthwise: bool
    ) -> None:
        super().__init__()
        folded = fold_convolution(weights, place)
        weight = torch.from_numpy(np.ascontiguousarray(folded.weight)).contiguous(memory_format=torch.channels_last)
        self.place, self.dtype = place, dtype
        self.is_frozen = place.groups > 1 and not trains_depthwise
        self.weight = torch.nn.Parameter(weight, requires_grad=not self.is_frozen)
        self.bias = torch.nn.Parameter(torch.from_numpy(np.array(folded.bias)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.to(self.dtype), self.bias.to(self.dtype)
        size, stride, groups = weight.shape[-1], self.place.stride, self.place.groups
        pad = size // 2
        if stride > 1:
            x, pad = _pad_same(x, size, stride), 0
        if self.is_frozen:
            return _Depthwise.apply(x, weight, bias, stride, pad)  # type: ignore[no-any-return, no-untyped-call]
        return F.conv2d(x, weight, bias, stride, pad, 1, groups)


def _activate(x: torch.Tensor) -> torch.Tensor:
    """ReLU6, in place only where no gradient is wanted: else torch would first copy what is overwritten."""
    return F.relu6(x, inplace=not x.requires_grad)


def _pad_same(x: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Pad as `SAME_UPPER` does: what is odd goes to the right and below."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class LiteTail(torch.nn.Module):
    """What stands above a cut of lite0, lite1 or lite2, as it predicts, and trainable.

    Parameters
    ----------
    embedding : Embedding
        Of one embedded backbone; its pooling decides the features. Tuned weights of it are what it starts from.
    layer : str
        Where the activations are from; `PIXELS`: scaled pixels, so that the whole network is trained.
    dtype : torch.dtype
        What convolutions compute in; weights are kept, and averages taken, in float32.
    trains_depthwise : bool
        Whether depthwise filters are trained too, which is two to five times as slow.

    Raises
    ------
    OptionError
        If the network cannot be cut there, or a cut that is pooled lies below.
    """

    def __init__(
        self,
        embedding: Embedding,
        layer: str,
        *,
        dtype: torch.dtype = torch.float32,
        trains_depthwise: bool = False,
    ) -> None:
        super().__init__()
        (backbone,) = embedding.backbones
        self.pooling, self.pooled, self.dtype = embedding.pooling, backbone.pooled, dtype
        self.layer = find_cut(backbone, layer).name
        self._require_pooled(backbone)
        weights = load_weights(backbone)

        def convolve(place: ConvolutionPlace) -> _Convolution:
            return _Convolution(weights, place, dtype, trains_depthwise=trains_depthwise)

        self.stem = convolve(STEM) if layer == PIXELS else None
        self.described: list[Block] = []
        self.blocks = torch.nn.ModuleList()
        for number, block in _list_above(backbone, layer):
            self.described.append(block)
            self.blocks.append(torch.nn.ModuleList(map(convolve, list_convolutions(block, number))))
        self.head = convolve(HEAD)
        if self.pooling == "second-order":
            self._keep_statistics(backbone)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, D) float32 of activations (N, C, H, W)."""
        kept = {self.layer: x}
        x = x.to(self.dtype)
        if self.stem is not None:
            x = _activate(self.stem(x))
        for block, convolutions in zip(self.described, self.blocks, strict=True):
            shortcut = x
            for convolution in convolutions[:-1]:  # type: ignore[index]
                x = _activate(convolution(x))
            x = convolutions[-1](x)  # type: ignore[index]
            x = x + shortcut if block.is_residual else x
            kept[block.name] = x
        kept["head"] = _activate(self.head(x))
        return self._pool(kept)

    def list_depths(self) -> list[list[torch.nn.Parameter]]:
        """Trainable parameters of each block, from input to output."""
        groups: list[list[torch.nn.Module]] = [[self.stem]] if self.stem is not None else []
        groups += [list(block.children()) for block in self.blocks]
        groups.append([self.head])
        return [[p for part in group for p in part.parameters() if p.requires_grad] for group in groups]

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Weights and biases by the names that `pomona.backbone` knows."""
        tensors = {}
        for convolution in self._list_convolutions():
            for part in ("weight", "bias"):
                value = getattr(convolution, part).detach().cpu().contiguous().numpy()
                tensors[f"{convolution.place.name}.{part}"] = np.ascontiguousarray(value)
        return tensors

    def _require_pooled(self, backbone: Backbone) -> None:
        """Refuse a cut that leaves nothing of what is pooled to the tail."""
        names = [PIXELS, *(block.name for block in list_blocks(backbone.name)), "head"]
        pooled = SECOND_ORDER_CUTS if self.pooling == "second-order" else self.pooled
        first = min(pooled, key=names.index)
        if names.index(self.layer) > names.index(first):
            raise OptionError(
                f"layer: wanted one at or below {first}, whose activations are pooled ({self.pooling}), "
                f"got {self.layer}"
            )

    def _list_convolutions(self) -> Iterable[_Convolution]:
        return (module for module in self.modules() if isinstance(module, _Convolution))

    def _keep_statistics(self, backbone: Backbone) -> None:
        statistics = read_statistics(backbone)
        for cut in SECOND_ORDER_CUTS:
            axes, mean = statistics.projections[cut], statistics.means[cut]
            self.register_buffer(f"{cut}_axes", torch.from_numpy(axes)[:, :, None, None])
            self.register_buffer(f"{cut}_shift", torch.from_numpy(-axes @ mean))
        self.register_buffer("average_mean", torch.from_numpy(statistics.average_mean))
        self.register_buffer("average_deviation", torch.from_numpy(statistics.average_deviation))

    def _pool(self, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        averages = torch.cat([kept[cut].float().mean((2, 3)) for cut in self.pooled], 1)
        if self.pooling == "average":
            return averages
        parts = [math.sqrt(share) * self._measure_moments(cut, kept[cut]) for cut, share in SECOND_ORDER_CUTS.items()]
        averages = (averages - self.get_buffer("average_mean")) / self.get_buffer("average_deviation")
        return torch.cat([*parts, F.normalize(averages, dim=1, eps=_EPSILON)], 1)

    def _measure_moments(self, cut: str, x: torch.Tensor) -> torch.Tensor:
        """Upper triangle of the second moments of an activation map, of norm 1."""
        axes, shift = self.get_buffer(f"{cut}_axes"), self.get_buffer(f"{cut}_shift")
        x = F.conv2d(x, axes.to(x.dtype), shift.to(x.dtype)).float()
        window = torch.from_numpy(make_window(x.shape[2])).to(x.device)
        x = (x * window.sqrt()).flatten(2)
        row, column = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
        moments = torch.bmm(x, x.transpose(1, 2))[:, row, column]
        return F.normalize(moments * torch.where(row == column, 1.0, math.sqrt(2)), dim=1, eps=_EPSILON)


def _list_above(backbone: Backbone, layer: str) -> list[tuple[int, Block]]:
    blocks = list(enumerate(list_blocks(backbone.name)))
    names = [PIXELS, *(block.name for _, block in blocks), "head"]
    return blocks[names.index(layer) :]
