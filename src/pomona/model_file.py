"""The graph of a recogniser: an embedding's network, and on its features what a head and its trust make of them.

In: a network as ONNX, a head, a `Trust`. Out: one ONNX model, pixels in; probabilities, features and strangeness out.
Why: whatever runs the graph answers as it was measured, calibrated and able to say "unknown". A class taught later
changes constants alone: no node moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.errors import BundleError, MissingPackageError
from pomona.heat_map import append_heat_map
from pomona.novelty import write_detector

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.head import Head
    from pomona.trust import Trust

MODEL_NAME = "model.onnx"
UNKNOWN = "unknown"

_HEAD = ("head_weights", "head_bias")
_PREFIX = "trust/"


def build_model(network: Path, head: Head, trust: Trust) -> bytes:
    """Append a head and its trust to an embedding's network.

    Parameters
    ----------
    network : Path
        ONNX file with an output ``features`` (N, D).
    head : Head
        C classes on D features.
    trust : Trust
        What makes its answers trustworthy.

    Returns
    -------
    bytes
        ONNX model with the outputs ``probabilities`` (N, C), ``features`` (N, D), where something finds the unknown
        ``unknown`` (N,), 0-1, from 0.5 on something that was not learnt, and where features come from positions of the
        photo ``heat_map`` (N, P, P), as `append_heat_map` says.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingPackageError("onnx", "train", "to write a bundle") from error

    model = onnx.load(network)
    nodes, constants = _write_answers(head, trust)
    model.graph.initializer.extend(constants.values())
    model.graph.node.extend(nodes)
    features = model.graph.output.pop()
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", len(head.bias))), features]
    if trust.detector is not None:
        outputs.append(helper.make_tensor_value_info(UNKNOWN, TensorProto.FLOAT, ("N",)))
    model.graph.output.extend(outputs)
    append_heat_map(model, logits="logits", weights=_HEAD[0])
    model.graph.name = "pomona"
    return bytes(model.SerializeToString())


def replace_head(model: bytes, head: Head, trust: Trust) -> bytes:
    """Put another head, and what was learnt with it, into a recogniser's graph.

    Parameters
    ----------
    model : bytes
        ONNX model that `build_model` made, with measures of the same kind.
    head : Head
        C classes on the features of that model.
    trust : Trust
        What makes its answers trustworthy.

    Returns
    -------
    bytes
        The model with this head; all else is as it was.

    Raises
    ------
    BundleError
        If the graph has no head, or no trust, that can be replaced.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError("onnx", "train", "to write a bundle") from error

    graph = onnx.load_model_from_string(model)
    _, constants = _write_answers(head, trust)
    places = {one.name: one for one in graph.graph.initializer if one.name in _HEAD or one.name.startswith(_PREFIX)}
    outputs = [one for one in graph.graph.output if one.name == "probabilities"]
    if places.keys() != constants.keys() or len(outputs) != 1:
        raise BundleError(f"{MODEL_NAME}: wanted a graph with the head of a bundle, got one without; train again")
    for name, place in places.items():
        place.CopyFrom(constants[name])
    outputs[0].type.tensor_type.shape.dim[1].dim_value = len(head.bias)
    return bytes(graph.SerializeToString())


def _write_answers(head: Head, trust: Trust) -> tuple[list[Any], dict[str, Any]]:
    """Nodes from ``features`` on, and their constants by name."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    constants = {
        name: numpy_helper.from_array(value, name) for name, value in zip(_HEAD, (head.weights, head.bias), strict=True)
    }

    def constant(value: NDArray[np.generic]) -> str:
        name = f"{_PREFIX}constant{len(constants)}"
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        return name

    def add(kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{_PREFIX}{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    nodes.append(helper.make_node("Gemm", ["features", *_HEAD], ["logits"], name="logits", transB=1))
    logits, link = "logits", trust.link
    if link.width is not None:
        logits = add("Asinh", [add("Div", [logits, constant(np.array(link.width, np.float32))])])
    if link.width is not None or link.sharpness != 1:
        logits = add("Mul", [logits, constant(np.array(link.sharpness, np.float32))])
    nodes.append(helper.make_node("Softmax", [logits], ["probabilities"], name="probabilities", axis=1))
    if trust.detector is not None:
        write_detector(add, constant, trust.detector, head.weights.shape[1], ("features", logits))
        nodes[-1].output[0] = UNKNOWN
    return nodes, constants
