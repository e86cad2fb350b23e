"""A network cut in two at a layer: a trunk that stays as it is, and a tail that can be trained.

In: a backbone of another package, and the name of a layer. Out: a `Split` of two torch modules; and the network as ONNX
nodes, with its own weights or with others.
Why: what is below the cut need run only once a photo. Training goes through the same graph that prediction runs, so a
tuned weight finds its place by its name alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pomona.backbone import PIXELS, Backbone, list_layers
from pomona.errors import BackboneError, OptionError
from pomona.layers import FEATURES, Layer, LayerKind, find_layer, quiet_torch
from pomona.onnx_file import read_onnx
from pomona.pretrained import load_pretrained
from pomona.source import parse_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pomona.graph import GraphWriter
    from pomona.layers import Trace

_OPSET = 18


@dataclass(frozen=True)
class Split:
    """A network in two parts, with weights of their own.

    Parameters
    ----------
    trunk : torch.nn.Module
        Scaled pixels (N, 3, S, S) to activations (N, ...) at the cut.
    tail : torch.nn.Module
        Activations at the cut to features (N, D), or to activations of the last layer. Its parameters are named as in
        the whole network. It trains as it predicts: batch norms keep their statistics, and nothing is dropped out.
    kind : {"map", "tokens", "vector"}
        What the activations at the cut are: (C, H, W), (T, C) or (C,).
    shape : tuple of int
        Of the activations of one photo.
    last : Layer
        What the tail gives where it does not give features.
    blocks : tuple of tuple of str
        Names of the parameters of each block of the whole network, from input to output.
    offset, scale : tuple of float
        Scaled pixels are ``(x - offset) / scale`` of each channel value 0-255.
    """

    trunk: torch.nn.Module
    tail: torch.nn.Module
    kind: LayerKind
    shape: tuple[int, ...]
    last: Layer
    blocks: tuple[tuple[str, ...], ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def scale_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale pixels (N, S, S, 3) uint8 to what the trunk takes, (N, 3, S, S) float32."""
        import torch

        offset, scale = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (self.offset, self.scale))
        return (pixels.permute(0, 3, 1, 2).float() - offset) / scale


def split_network(backbone: Backbone, layer: str, *, last: str = FEATURES, pooled: bool = True) -> Split:
    """Cut a network in two.

    Parameters
    ----------
    backbone : Backbone
        One of torchvision, timm or transformers.
    layer : str
        Where; one of `list_layers` with `is_cut`, or `PIXELS`: all is tail then.
    last : str
        Layer that the tail ends at; the end of the network where not given.
    pooled : bool
        Whether the tail gives features (N, D), the same that the frozen network gives; otherwise the activations of
        `last`: (N, C, H, W), (N, T, C) or (N, C).

    Returns
    -------
    Split
        Trunk and tail. A purely convolutional network takes other sizes than its own.

    Raises
    ------
    OptionError
        If there is no such layer, the tail would need more than its activations (the text names the nearest layers
        that do), or the network is of a kind that cannot be trained.
    """
    traced = _load_trace(backbone)
    size_px = backbone.preprocessing.size_px
    whole = Layer(PIXELS, "map", (3, size_px, size_px), is_cut=True)
    found = whole if layer == PIXELS else find_layer(traced.layers, layer)
    offset, scale = backbone.preprocessing.offset, backbone.preprocessing.scale
    return Split(
        trunk=_pass_on() if found is whole else traced.part(None, layer),
        tail=traced.part(None if found is whole else layer, last, pooled=pooled),
        kind=found.kind,
        shape=found.shape,
        last=find_layer(traced.layers, last),
        blocks=traced.blocks,
        offset=offset if isinstance(offset, tuple) else (offset,) * 3,
        scale=scale if isinstance(scale, tuple) else (scale,) * 3,
    )


def _pass_on() -> torch.nn.Module:
    import torch

    return torch.nn.Identity()


def _load_trace(backbone: Backbone) -> Trace:
    if backbone.is_embedded or parse_source(backbone.name).family == "onnx":
        raise OptionError(f"backbone: {backbone.name} is no module of torch: it cannot be split for training")
    found = load_pretrained(backbone.name, size_px=backbone.preprocessing.size_px)
    if found.weights_sha256 != backbone.weights_sha256:
        raise BackboneError(
            f"{backbone.name}: the weights changed: wanted sha256 {backbone.weights_sha256}, got {found.weights_sha256}"
        )
    return found.trace


def write_network(
    graph: GraphWriter, backbone: Backbone, x: str, last: str, *, state: Mapping[str, Any] | None = None
) -> tuple[str, Layer]:
    """Add the network of another package to a graph, up to a layer.

    Parameters
    ----------
    graph : GraphWriter
        In float32.
    backbone : Backbone
        Which network.
    x : str
        Scaled pixels (N, 3, S, S).
    last : str
        Layer that is wanted.
    state : mapping of str to Tensor, optional
        Weights instead of its own, by their names in `Split.trunk` and `Split.tail`.

    Returns
    -------
    str, Layer
        Name of the tensor with the layer's activations, and what they are.

    Raises
    ------
    OptionError
        If there is no such layer, or a weight has a name or shape that the network does not know.
    BackboneError
        If the network cannot be written, or is not the one that the backbone was.
    """
    source = parse_source(backbone.name)
    if source.family == "onnx":
        network = read_onnx(source.place, size_px=backbone.preprocessing.size_px)
        if state or network.sha256 != backbone.weights_sha256:
            raise BackboneError(f"{backbone.name}: the file changed, or other weights are to be put into it")
        return graph.include(network.load_model(), x, last), find_layer(list_layers(backbone), last)
    traced = _load_trace(backbone)
    part = traced.part(None, last)
    if state:
        _put_weights(part, state, traced.part())
    model = _to_onnx(part, backbone)
    return graph.include(model, x, model.graph.output[0].name), find_layer(traced.layers, last)


def _put_weights(part: torch.nn.Module, state: Mapping[str, Any], whole: torch.nn.Module) -> None:
    """Write tuned weights over those of a part of the network."""
    import torch

    known, own = whole.state_dict(), part.state_dict()
    for name, value in state.items():
        given = torch.as_tensor(value).detach().cpu().float()
        if name not in known or known[name].shape != given.shape:
            wanted = f"of shape {tuple(known[name].shape)}" if name in known else "that the network has"
            raise OptionError(f"state: wanted weights {wanted}, got {name} of shape {tuple(given.shape)}")
        if name in own:
            own[name].copy_(given)


def _to_onnx(part: torch.nn.Module, backbone: Backbone) -> Any:
    import torch

    size_px = backbone.preprocessing.size_px
    try:
        with quiet_torch(), torch.no_grad():
            batch = {0: torch.export.Dim("N", min=1, max=1 << 16)}
            example = torch.zeros(2, 3, size_px, size_px)
            exported = torch.export.export(part, (example,), dynamic_shapes=(batch,), strict=False)
            program = torch.onnx.export(exported, (), dynamo=True, verbose=False, opset_version=_OPSET)
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{backbone.name} cannot be written as ONNX: {reason[:300]}") from error
    if program is None:
        raise BackboneError(f"{backbone.name} cannot be written as ONNX")
    return program.model_proto
