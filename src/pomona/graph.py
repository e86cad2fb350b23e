"""ONNX graphs, written node by node, in float32 or in int8.

In: convolutions with their weights, and the steps between them. Out: the bytes of an ONNX model.
Why: one walk over an architecture writes it in either precision, and every tensor that matters has a name.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pomona.errors import MissingPackageError
from pomona.int8 import RELU6, Range, expect_relu6, find_step, round_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

OPSET, IR_VERSION = 18, 9
"""Versions of ONNX that networks are written in; of a network that is included, its own where they are newer."""

Channels = float | tuple[float, float, float]
"""One number, or one each of red, green and blue."""

_WIDER = 1.0001
_MEAN_PIXEL = (123.7, 116.3, 103.5)
"""Red, green and blue over the photos that the weights were trained on, 0-255."""


class Convolution(NamedTuple):
    """A convolution with its batch norm folded in.

    Parameters
    ----------
    weight : ndarray of shape (C, C_in / groups, K, K), float32
    bias : ndarray of shape (C,), float32
    mean, spread : ndarray of shape (C,), float64
        Mean and standard deviation of each output over the photos of the training, which are its batch norm's own.
    stride, groups : int
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    stride: int
    groups: int


class GraphWriter:
    """Collects ONNX nodes; each method returns the name of the tensor it adds.

    Parameters
    ----------
    place : str
        What stands before the names that it makes up, so that its nodes can join those of another.

    Raises
    ------
    MissingPackageError
        If onnx is not installed.
    """

    def __init__(self, place: str = "") -> None:
        if importlib.util.find_spec("onnx") is None:
            raise MissingPackageError("onnx", "train", "to write a network")
        self.place = place
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.prefix = ""
        self.opsets = {"": OPSET}
        self.n_included = 0
        self.notes: dict[str, str] = {}

    def begin(self, prefix: str, ranges: Sequence[Range]) -> None:  # noqa: ARG002 - for `Int8Writer`
        """Go on with another network: `prefix` stands before the names given, `ranges` are of its tensors."""
        self.prefix = prefix

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Add a constant."""
        from onnx import numpy_helper

        name = f"{self.place}c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, kind: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        """Add a node of one output."""
        from onnx import helper

        output = self.prefix + name if name else f"{self.place}{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def scale(self, pixels: str, offset: Channels, scale: Channels) -> str:
        """Add the scaling of pixels (N, S, S, 3) uint8 to (N, 3, S, S): less `offset`, then divided by `scale`."""
        x = self.add("Cast", [pixels], to=1)
        x = self.add("Transpose", [x], perm=[0, 3, 1, 2])
        # (x - offset) / scale cannot be folded into the stem: its zero padding comes after the scaling.
        x = self.add("Sub", [x, self.constant(_spread(offset))])
        return self.add("Mul", [x, self.constant(_spread(scale, inverse=True))])

    def include(self, model: Any, source: str, target: str) -> str:
        """Add the nodes of another ONNX model, whose only input becomes the tensor `source`.

        Parameters
        ----------
        model : ModelProto
            The model; it is changed. Its tensors get names of their own.
        source : str
            Scaled pixels (N, 3, S, S).
        target : str
            Tensor of the model that is wanted.

        Returns
        -------
        str
            Name of that tensor.
        """
        from onnx import compose

        prefix = f"n{self.n_included}/"
        self.n_included += 1
        weights = {one.name for one in model.graph.initializer}
        taken = next(one.name for one in model.graph.input if one.name not in weights)
        compose.add_prefix(model, prefix, inplace=True)
        self.nodes.append(_rename(source, prefix + taken))
        nodes, used = _list_needed(model.graph.node, prefix + target)
        for node in nodes:
            node.doc_string = ""
            del node.metadata_props[:]  # where in whose sources it was written
            self.nodes.append(node)
        for weight in model.graph.initializer:
            if weight.name in used:
                del weight.metadata_props[:]
                self.constants[weight.name] = weight
        for opset in model.opset_import:
            self.opsets[opset.domain] = max(opset.version, self.opsets.get(opset.domain, 0))
        return prefix + target

    def convolve(self, x: str, convolution: Convolution, *, name: str = "") -> str:
        """Add a convolution."""
        return self.add_convolution([x, self.constant(convolution.weight)], convolution, name)

    def add_convolution(self, inputs: list[str], convolution: Convolution, name: str) -> str:
        """Add the node; `inputs` are its input and its weight."""
        return self.add(
            "Conv",
            [*inputs, self.constant(convolution.bias)],
            name=name,
            auto_pad="SAME_UPPER",
            kernel_shape=list(convolution.weight.shape[2:]),
            strides=[convolution.stride] * 2,
            group=convolution.groups,
        )

    def activate(self, x: str, *, name: str = "") -> str:
        """Add a ReLU6."""
        return self.add("Clip", [x, *(self.constant(np.float32(bound)) for bound in RELU6)], name=name)

    def join(self, x: str, shortcut: str, *, name: str = "") -> str:
        """Add the sum of a block's output and its input."""
        return self.add("Add", [x, shortcut], name=name)

    def stop_rounding(self) -> None:
        """Go on in float32, whatever the writer's precision, until the next network begins."""

    def narrow(self, x: str, bounds: tuple[float, float] | None = None) -> str:  # noqa: ARG002 - for `Int8Writer`
        """Name what later layers read of a tensor; `bounds` are its least and greatest value, where known."""
        return x

    def to_bytes(self, source: tuple[str, tuple[Any, ...]], target: tuple[str, tuple[Any, ...]]) -> bytes:
        """Write the model and the notes to it, from an input (name, shape) of uint8 to an output of float32."""
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(source[0], TensorProto.UINT8, source[1])],
            [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])],
            initializer=list(self.constants.values()),
        )
        opsets = [helper.make_opsetid(*pair) for pair in self.opsets.items()]
        ir_version = IR_VERSION if self.opsets[""] <= OPSET else 10
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="pomona")
        helper.set_model_props(model, self.notes)
        return bytes(model.SerializeToString())


def _spread(values: Channels, *, inverse: bool = False) -> NDArray[Any] | np.generic:
    """One number, or one a channel as it is wanted beside (N, 3, S, S)."""
    if isinstance(values, tuple):
        table = np.array(values, np.float64).reshape(3, 1, 1)
        return (1 / table if inverse else table).astype(np.float32)
    return np.float32(1 / values if inverse else values)


def _list_needed(nodes: Sequence[Any], target: str) -> tuple[list[Any], set[str]]:
    """Those nodes that a tensor needs, and the names of all that they use."""
    used, needed = {target}, []
    for node in reversed(nodes):
        if used.intersection(node.output):
            needed.append(node)
            used |= _list_used(node)
    return needed[::-1], used


def _list_used(node: Any) -> set[str]:
    """Tensors that a node uses, itself or in the branches and loops inside it."""
    used = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                used |= _list_used(inner)
            used.update(one.name for one in graph.output)
    return used


def _rename(source: str, target: str) -> Any:
    from onnx import helper

    return helper.make_node("Identity", [source], [target], name=target)


class Int8Writer(GraphWriter):
    """Writes the same graph with 8-bit convolutions, as pairs of QuantizeLinear and DequantizeLinear.

    Activations are unsigned with one range a tensor: with a range a channel, OpenVINO leaves the depthwise convolutions
    in float32. Weights are signed with a step a channel, and biases stay float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_rounding = True
        self.ranges: dict[str, tuple[float, float]] = {}
        self.means: dict[str, NDArray[np.float64]] = {}
        self.spreads: dict[str, NDArray[np.float64]] = {}

    def begin(self, prefix: str, ranges: Sequence[Range]) -> None:
        """Go on with another network; `ranges` are what its tensors are quantised to."""
        super().begin(prefix, ranges)
        self.is_rounding = True
        self.ranges |= {prefix + one.tensor: (one.low, one.high) for one in ranges}

    def scale(self, pixels: str, offset: Channels, scale: Channels) -> str:
        """Add the scaling of pixels, whose 256 values the quantised ones are; it is the same for every channel."""
        if isinstance(offset, tuple) or isinstance(scale, tuple):
            raise TypeError("offset, scale: wanted one number for all channels in 8 bits, got one for each")
        x = super().scale(pixels, offset, scale)
        low, high, *means = ((v - offset) / scale for v in (0, 255, *_MEAN_PIXEL))
        self.means[x] = np.array(means)
        # 256 steps for 256 values: nothing is lost. With steps of exactly one value OpenVINO 2026.4 would take the pair
        # out, and compute the stem in float32.
        return self.narrow(x, (low * _WIDER, high * _WIDER))

    def convolve(self, x: str, convolution: Convolution, *, name: str = "") -> str:
        """Add a convolution of rounded weights, the mean of what rounding shifts taken off its bias."""
        if not self.is_rounding:
            return super().convolve(x, convolution, name=name)
        values, steps = round_weight(convolution.weight)
        errors = (values * steps[:, None, None, None] - convolution.weight).sum(axis=(2, 3), dtype=np.float64)
        drift = errors @ self.means[x] if convolution.groups == 1 else errors[:, 0] * self.means[x]
        convolution = convolution._replace(bias=(convolution.bias - drift).astype(np.float32))
        weight = [self.constant(part) for part in (values, steps, np.zeros(len(steps), np.int8))]
        x = self.add_convolution([x, self.add("DequantizeLinear", weight, axis=0)], convolution, name)
        self.means[x], self.spreads[x] = convolution.mean, convolution.spread
        return x

    def activate(self, x: str, *, name: str = "") -> str:
        """Add a ReLU6, and foretell its mean."""
        if not self.is_rounding:
            return super().activate(x, name=name)
        mean = expect_relu6(self.means[x], self.spreads[x])
        x = super().activate(x, name=name)
        self.means[x] = mean
        return x

    def join(self, x: str, shortcut: str, *, name: str = "") -> str:
        """Add the sum, and its mean."""
        if not self.is_rounding:
            return super().join(x, shortcut, name=name)
        mean = self.means[x] + self.means[shortcut]
        x = super().join(x, shortcut, name=name)
        self.means[x] = mean
        return x

    def stop_rounding(self) -> None:
        """Go on in float32 until the next network begins."""
        self.is_rounding = False

    def narrow(self, x: str, bounds: tuple[float, float] | None = None) -> str:
        """Add the rounding of a tensor to 8 bits, over `bounds` or the range that is known of it."""
        if not self.is_rounding:
            return x
        scheme = [self.constant(part) for part in find_step(*(bounds or self.ranges[x]))]
        narrowed = self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, *scheme]), *scheme])
        self.means[narrowed] = self.means[x]
        return narrowed
