"""One ONNX file, from pixels of any size to an answer.

In: a bundle. Out: its graph with the resize before it and metadata in it; the same with its stages as outputs.
Why: whoever runs the file resizes as it was trained, because the file does it.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

from pomona.errors import BundleDamagedError, MissingPackageError
from pomona.export.metadata import describe_bundle
from pomona.export.resizing import SQUARE, build_resize, can_resize
from pomona.files import storage_errors
from pomona.model_file import MODEL_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.bundle import Bundle

ONNX_NAME = "model.onnx"
PIXELS = "pixels"

_TO_SCALED = {
    "Gather",
    "Concat",
    "Cast",
    "Transpose",
    "Sub",
    "Mul",
}  # the first two where the mirror image is seen, too


def write_onnx(bundle: Bundle, folder: Path) -> None:
    """Write the ONNX file of a bundle into a folder.

    Raises
    ------
    MissingPackageError
        If onnx is not installed.
    StorageError
        If it cannot be written.
    """
    content = build_onnx(bundle)
    with storage_errors(f"write {folder / ONNX_NAME}"):
        (folder / ONNX_NAME).write_bytes(content)


def build_onnx(bundle: Bundle, *, model: bytes | None = None) -> bytes:
    """The graph of a bundle, with the resize where a graph can do it, and its metadata.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    model : bytes, optional
        Graph in place of the bundle's own, such as one in 8 bits.

    Returns
    -------
    bytes
        ONNX model. In: ``pixels`` (N, H, W, 3) uint8, upright sRGB, or (N, S, S, 3) where it cannot resize. Out: what
        the bundle's graph gives.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingPackageError("onnx", "export", "to write a graph")
    import onnx
    from onnx import helper

    if model is None:
        with storage_errors(f"read {bundle.folder / MODEL_NAME}"):
            model = (bundle.folder / MODEL_NAME).read_bytes()
    graph = onnx.load_model_from_string(model)
    resizes = can_resize(bundle.preprocessing)
    if resizes:
        _put_before(build_resize(bundle.preprocessing), graph)
    helper.set_model_props(graph, describe_bundle(bundle, takes_any_size=resizes))
    graph.producer_name = "pomona"
    return bytes(graph.SerializeToString())


def _put_before(resize: Any, model: Any) -> None:
    """Let the nodes of a resize make the input of a model."""
    graph = model.graph
    _yield_names(graph, resize.graph)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == PIXELS:
                node.input[place] = SQUARE
    nodes = [*resize.graph.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(resize.graph.initializer)
    graph.input[0].CopyFrom(resize.graph.input[0])


def _yield_names(graph: Any, other: Any) -> None:
    """Rename what is inside a graph and called like something in another: bundles of older formats have their names."""
    taken = {name for node in other.node for name in (node.name, *node.output) if name}
    taken |= {one.name for one in other.initializer}
    outside = {one.name for one in (*graph.input, *graph.output)}
    for one in (*graph.initializer, *graph.value_info):
        one.name = _rename(one.name, taken - outside)
    for node in graph.node:
        node.name = _rename(node.name, taken)
        node.input[:] = [_rename(name, taken - outside) for name in node.input]
        node.output[:] = [_rename(name, taken - outside) for name in node.output]


def _rename(name: str, taken: set[str]) -> str:
    return f"network/{name}" if name in taken else name


def find_scaled(model: Any, source: str) -> str:
    """Name of the tensor of scaled pixels: after the first product downstream of what the network sees."""
    name = source
    for node in model.graph.node:
        if name in node.input and node.op_type in _TO_SCALED:
            name = str(node.output[0])
            if node.op_type == "Mul":
                return name
    raise BundleDamagedError("wanted a graph that scales its pixels, got one without")


class Probes(NamedTuple):
    """A graph whose stages are outputs, too.

    Parameters
    ----------
    model : bytes
        ONNX model.
    square, scaled : str
        Names of the outputs; the first is that of the input where the graph does not resize.
    """

    model: bytes
    square: str
    scaled: str


def add_probes(content: bytes) -> Probes:
    """Make the stages of a graph outputs."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(content)
    resizes = any(SQUARE in node.output for node in model.graph.node)
    square = SQUARE if resizes else PIXELS
    found = find_scaled(model, square)
    if resizes:
        model.graph.output.append(helper.make_tensor_value_info(SQUARE, TensorProto.UINT8, (None, None, None, 3)))
    model.graph.output.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, (None, 3, None, None)))
    return Probes(bytes(model.SerializeToString()), square, found)
