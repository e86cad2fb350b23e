"""Networks that come as an ONNX file: what goes in, and every tensor that may be taken out.

In: a file. Out: an `OnnxNetwork`: its layers by name, how its pixels are prepared, and a hash of its content.
Why: what cannot be loaded in any other way can nearly always be exported, and features need nothing but the graph.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import hash_bytes
from pomona.graph import OPSET
from pomona.layers import Layer, LayerKind
from pomona.source import IMAGENET_DEVIATION, IMAGENET_MEAN, UNKNOWN_LICENCE, Pixels, make_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping

METADATA = "pomona.preprocessing"
"""Entry of a file's metadata that says how pixels are prepared: the fields of `Pixels` as JSON."""

_DEFAULT_PX = 224


@dataclass(frozen=True)
class OnnxNetwork:
    """A network in an ONNX file.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str
        Hash of its content.
    licence : str
        As the file's metadata says.
    pixels : Pixels
        What photos must go through.
    layers : tuple of Layer
        Tensors that features may be taken from; the last is the first output of the network.
    counts : mapping of str to float
        Multiplications up to each of them.
    """

    path: Path
    sha256: str
    licence: str
    pixels: Pixels
    layers: tuple[Layer, ...]
    counts: Mapping[str, float]

    def count_multiplications(self, last: str = "") -> float:
        """Multiplications for one photo, up to a layer; to the end where none is given."""
        return self.counts[last or self.layers[-1].name]

    def load_model(self) -> Any:
        """The model, with open numbers of photos, in the version of ONNX that networks are written in or a newer."""
        return _open_model(self.path, self.path.read_bytes())


def read_onnx(place: str, *, size_px: int | None = None) -> OnnxNetwork:
    """Read a network from an ONNX file.

    Parameters
    ----------
    place : str
        The file. It has one input, float32 (N, 3, S, S).
    size_px : int, optional
        Input size; that of the file where not given, or 224 where it takes any.

    Raises
    ------
    MissingPackageError
        If onnx is not installed.
    OptionError
        If the network cannot take that size.
    BackboneError
        If it is no such file.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingPackageError("onnx", "train", "to read a network")
    path = Path(place).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"onnx:{place}: wanted an ONNX file, got: {error.strerror or error}") from error
    return _read(path, hash_bytes(content), size_px)


@functools.lru_cache(maxsize=4)
def _read(path: Path, sha256: str, size_px: int | None) -> OnnxNetwork:
    import onnx

    model = _open_model(path, path.read_bytes())
    source = _find_input(path, model)
    own_px = source.type.tensor_type.shape.dim[2].dim_value
    pixels = _read_pixels(path, model, own_px)
    if size_px and own_px and size_px != own_px:
        raise OptionError(f"imgsz: {path.name} takes {own_px} pixels and no other, got {size_px}")
    pixels = pixels._replace(size_px=size_px or pixels.size_px)
    for side, n in zip(source.type.tensor_type.shape.dim, (1, 3, pixels.size_px, pixels.size_px), strict=True):
        side.dim_value = n
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, ValueError) as error:
        raise BackboneError(f"{path}: its shapes cannot be worked out: {str(error).splitlines()[0]}") from error
    shapes = _list_shapes(model)
    layers = _list_layers(path, model, shapes)
    licence = next((one.value for one in model.metadata_props if one.key in {"license", "licence"}), UNKNOWN_LICENCE)
    return OnnxNetwork(path, sha256, licence, pixels, layers, _count(model, shapes))


def _open_model(path: Path, content: bytes) -> Any:
    import onnx
    from onnx import inliner, version_converter

    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        if model.functions:
            model = inliner.inline_local_functions(model)
        if next((one.version for one in model.opset_import if not one.domain), OPSET) < OPSET:
            model = version_converter.convert_version(model, OPSET)
    except Exception as error:  # protobuf, the checker and the converter each raise errors of their own
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BackboneError(f"{path}: wanted an ONNX network in one file, got: {reason[0][:200]}") from error
    for one in (*model.graph.input, *model.graph.output):
        if one.type.tensor_type.shape.dim:
            one.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def _find_input(path: Path, model: Any) -> Any:
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    shapes = [[side.dim_value for side in one.type.tensor_type.shape.dim] for one in inputs]
    kinds = [one.type.tensor_type.elem_type for one in inputs]
    is_photo = len(inputs) == 1 and kinds == [1] and len(shapes[0]) == 4 and shapes[0][1] in (0, 3)
    if not is_photo or shapes[0][2] != shapes[0][3]:
        raise BackboneError(f"{path}: wanted one input, float32 (N, 3, S, S), got {len(inputs)} of {shapes}")
    return inputs[0]


def _read_pixels(path: Path, model: Any, own_px: int) -> Pixels:
    """How pixels are prepared: as the file says, else squashed into the square and scaled as for ImageNet."""
    for one in model.metadata_props:
        if one.key == METADATA:
            try:
                facts: Any = json.loads(one.value)
                values: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
                return Pixels(**values)
            except (ValueError, TypeError, AttributeError) as error:
                raise BackboneError(f"{path}: its metadata {METADATA} cannot be used: {error}") from error
    return make_pixels(own_px or _DEFAULT_PX, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_DEVIATION)


def _list_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes for one photo of all float32 tensors where every side is known."""
    found = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for one in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = one.type.tensor_type
        sides = [side.dim_value for side in tensor.shape.dim]
        if tensor.elem_type == 1 and sides and all(sides):
            found[one.name] = tuple(sides)
    return found


def _list_layers(path: Path, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    kinds: dict[int, LayerKind] = {2: "vector", 3: "tokens", 4: "map"}
    made = [name for node in model.graph.node for name in node.output]
    last = next((one.name for one in model.graph.output if len(shapes.get(one.name, ())) in kinds), None)
    if last is None:
        raise BackboneError(f"{path}: wanted an output of 2 to 4 axes, got none whose shape can be worked out")
    names = [name for name in made if name != last and shapes.get(name, (0,))[0] == 1 and len(shapes[name]) in kinds]
    return tuple(Layer(name, kinds[len(shapes[name])], shapes[name][1:], is_cut=False) for name in (*names, last))


def _count(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Multiplications up to each tensor, of the nodes before it in the file."""
    total = 0.0
    found: dict[str, float] = {}
    for node in model.graph.node:
        inputs = [shapes.get(name, ()) for name in node.input]
        output = shapes.get(node.output[0], ())
        if node.op_type == "Conv" and len(inputs[1]) > 1:
            total += math.prod(output) * math.prod(inputs[1][1:])
        elif node.op_type in {"Gemm", "MatMul"} and inputs[0]:
            turned = any(one.name == "transA" and one.i for one in node.attribute)
            total += math.prod(output) * inputs[0][0 if turned else -1]
        found |= dict.fromkeys(node.output, total)
    return found
