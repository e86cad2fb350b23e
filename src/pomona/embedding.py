"""How a photo becomes its features: the backbones it runs through, and what is pooled from their activations.

In: one backbone or more, and a kind of pooling. Out: an `Embedding`, and its network as one ONNX file: upright uint8
RGB pixels in, features out.
Why: averages over a photo say which patterns are there; second moments also say which are there together, and that
tells one kind of apple from another. Everything is fixed before the first photo of a user is seen (projections and
scales ship with the package), so features are computed once, whatever is learnt from them later.
"""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pomona.backbone import Backbone, choose_ranges, list_layers, load_weights, write_trunk
from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.files import cache_folder, hash_bytes, hash_file, make_folder, storage_errors, write_atomic
from pomona.graph import GraphWriter, Int8Writer
from pomona.layers import find_layer
from pomona.split import write_network

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.backbone import Precision, Preprocessing
    from pomona.layers import Layer

Pooling = Literal["average", "second-order"]

NETWORK_FORMAT = 3
"""Counts up when the same weights, preprocessing, ranges and statistics would give another network."""

NETWORK_LAYOUT = 2
"""Counts up when the file of a network holds more than before and its features are the same: features stay cached."""

INCLUDED_FORMAT = 1
"""Counts up when the same network of another package would be written in another way."""

N_PROJECTED = 64
"""Channels that each cut is projected to before its second moments are taken."""

SECOND_ORDER_CUTS = {"stage4": 1.0, "stage5": 2.0, "stage7": 1.0, "head": 1.0}
"""Cuts whose second moments are taken, and the share of each in the kernel beside 1 for the averages."""

WINDOW_SIGMA = 0.25
"""Deviation of the Gaussian window over positions, as a share of the photo's side: what is meant is in the middle."""

COMPOSITION_NOTE = "composition"
"""Under this name the file of a network says what its features are made of."""

_EPSILON = 1e-12
_TUNED_KEPT = 4
_FIRST_FIELDS = 6
"""Fields of a `Preprocessing` that have always been part of a key; others are where they are not at their default."""


@dataclass(frozen=True)
class Embedding:
    """What a photo's features are.

    Parameters
    ----------
    backbones : tuple of Backbone
        Each with the same preprocessing and precision; their features stand one after the other.
    pooling : {"average", "second-order"}
        Averages over positions of the backbone's `pooled` cuts; or, of each backbone, the second moments of
        `SECOND_ORDER_CUTS` and the standardised averages, each part of a norm that does not depend on the photo. A
        network of another package has averages alone, each of norm 1: of a map over positions; of tokens the class
        token, and the mean of those of the patches.
    mirrored : bool
        Whether the features are the mean of those of the photo and of its mirror image.

    Raises
    ------
    OptionError
        If there is no backbone, or they differ in preprocessing or precision, or one is there twice; or one of another
        package is asked for second moments or int8.

    References
    ----------
    .. [1] Lin, RoyChowdhury and Maji, "Bilinear CNN models for fine-grained visual recognition", ICCV 2015.
    .. [2] Li et al., "Towards faster training of global covariance pooling networks by iterative matrix square root
       normalization", CVPR 2018.

    Examples
    --------
    >>> from pomona.backbone import find_backbone
    >>> Embedding((find_backbone("lite0"),)).dim, Embedding((find_backbone("lite0"),), "second-order").dim
    (1904, 10224)
    """

    backbones: tuple[Backbone, ...]
    pooling: Pooling = "average"
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not self.backbones:
            raise OptionError("embedding: wanted one backbone or more, got none")
        if len({(one.preprocessing, one.precision) for one in self.backbones}) > 1:
            raise OptionError("embedding: wanted backbones of one preprocessing and precision, got several")
        if len({one.name for one in self.backbones}) < len(self.backbones):
            raise OptionError("embedding: wanted each backbone once, got one of them twice")
        other = next((one.name for one in self.backbones if not one.is_embedded), None)
        if other and (self.pooling != "average" or self.precision != "f32"):
            raise OptionError(
                f"embedding: wanted averages in f32 of {other}, got {self.pooling} in {self.precision}: second moments "
                "and int8 need what is known of lite0, lite1 and lite2 alone"
            )

    @property
    def preprocessing(self) -> Preprocessing:
        """What pixels must go through."""
        return self.backbones[0].preprocessing

    @property
    def precision(self) -> Precision:
        """What the convolutions compute in."""
        return self.backbones[0].precision

    @property
    def licence(self) -> str:
        """SPDX identifiers of the weights' licences."""
        return ", ".join(sorted({one.licence for one in self.backbones}))

    @property
    def dim(self) -> int:
        """Length of the features, D."""
        averages = sum(one.dim for one in self.backbones)
        if self.pooling == "average":
            return averages
        return averages + len(self.backbones) * len(SECOND_ORDER_CUTS) * _count_pairs()

    @property
    def slug(self) -> str:
        """Name for people and folders, such as ``lite0-imagenet-224`` or ``lite0-imagenet-320-int8-second-order``."""
        parts = [
            "+".join(_shorten(one) for one in self.backbones),
            str(self.preprocessing.size_px),
            "" if self.precision == "f32" else self.precision,
            "" if self.pooling == "average" else self.pooling,
            "mirrored" if self.mirrored else "",
            "tuned" if self.is_tuned else "",
        ]
        return "-".join(part for part in parts if part)

    @property
    def is_tuned(self) -> bool:
        """Whether a network of it has weights of its own."""
        return any(one.tuned for one in self.backbones)

    @property
    def key(self) -> str:
        """Hash of all that decides the features."""
        prepared = _describe(self.preprocessing)
        parts: list[object] = [NETWORK_FORMAT, prepared, self.precision, self.pooling, self.mirrored]
        for one in self.backbones:
            parts += [one.weights_sha256, one.pooled, choose_ranges(one) if one.precision == "int8" else ()]
            parts += [] if one.is_embedded else [INCLUDED_FORMAT]
            parts += [one.tuned.layer, one.tuned.sha256] if one.tuned else []
        if self.pooling == "second-order":
            parts += [hash_bytes(_read_statistics()), WINDOW_SIGMA, SECOND_ORDER_CUTS, N_PROJECTED]
        return hash_bytes(repr(parts).encode())

    @property
    def n_multiplications(self) -> float:
        """Multiplications of the convolutions for one photo: what its time is in proportion to, nearly."""
        views = 2 if self.mirrored else 1
        return views * sum(one.n_multiplications for one in self.backbones)


def _shorten(backbone: Backbone) -> str:
    """Name of a backbone that may be part of a file's name; a folder or file by its last part alone."""
    if backbone.is_embedded:
        return f"{backbone.name}-{backbone.tag}"
    family, _, place = backbone.name.partition(":")
    layer = "" if backbone.pooled == (backbone.cuts[-1].name,) else f"-{backbone.pooled[0]}"
    last = place.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._]+", "-", f"{family}-{last}{layer}")[:80]


def _describe(preprocessing: Preprocessing) -> dict[str, object]:
    """Fields that decide what is seen; a newer one only where it is not at its default, so that older keys stay."""
    values = asdict(preprocessing)
    newer = fields(preprocessing)[_FIRST_FIELDS:]
    return {name: v for name, v in values.items() if name not in {one.name for one in newer if v == one.default}}


@dataclass(frozen=True)
class Source:
    """A tensor over the positions of a photo that features are made of.

    Parameters
    ----------
    tensor : str
        Its name in the graph: (N, n_channels, height, width), or the same with its sides in one.
    n_channels, height, width : int
        Its shape.
    is_turned : bool
        Whether its channels come last.
    """

    tensor: str
    n_channels: int
    height: int
    width: int
    is_turned: bool = False


@dataclass(frozen=True)
class Part:
    """A stretch of the features, and what it is made of.

    Parameters
    ----------
    kind : {"moments", "averages", "whole"}
        Upper triangle of the sum over positions of ``z z^T``, off the diagonal times the square root of 2; averages
        over positions of one source after the other; or what has no positions.
    features : str
        Tensor (N, dim) of these features.
    dim : int
        How many they are.
    sources : tuple of Source
        Where they come from; one for moments, none for what has no positions.
    mean, deviation : str
        Constants (dim,) that averages are standardised by; empty where they are not.
    length : str
        Tensor (N, 1) that they are divided by then; empty where they are not.
    norm : float
        What they are multiplied by last.
    """

    kind: Literal["moments", "averages", "whole"]
    features: str
    dim: int
    sources: tuple[Source, ...] = ()
    mean: str = ""
    deviation: str = ""
    length: str = ""
    norm: float = 1.0


@dataclass(frozen=True)
class Composition:
    """What the features of a network are made of, one part after the other.

    Parameters
    ----------
    parts : tuple of Part
        In the order of the features.
    mirrored : bool
        Whether the tensors of the parts hold the N photos and then their N mirror images.
    """

    parts: tuple[Part, ...]
    mirrored: bool

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Composition:
        """From text."""
        content = json.loads(text)
        parts = [
            Part(**{**part, "sources": tuple(Source(**source) for source in part["sources"])})
            for part in content["parts"]
        ]
        return cls(tuple(parts), content["mirrored"])


class Statistics(NamedTuple):
    """What is known beforehand of a backbone's activations.

    Parameters
    ----------
    projections : dict of str to ndarray of shape (K, C), float32
        Principal axes of each cut's channels.
    means : dict of str to ndarray of shape (C,), float32
        Mean of each cut's channels.
    average_mean, average_deviation : ndarray of shape (A,), float32
        Of the averages over positions of the pooled cuts.
    """

    projections: dict[str, NDArray[np.float32]]
    means: dict[str, NDArray[np.float32]]
    average_mean: NDArray[np.float32]
    average_deviation: NDArray[np.float32]

    def to_tensors(self, name: str) -> dict[str, NDArray[np.float16]]:
        """Tensors by name, for a safetensors file."""
        tensors = {f"{name}.{cut}.projection": axes for cut, axes in self.projections.items()}
        tensors |= {f"{name}.{cut}.mean": mean for cut, mean in self.means.items()}
        tensors |= {f"{name}.average.mean": self.average_mean, f"{name}.average.deviation": self.average_deviation}
        return {key: np.ascontiguousarray(value, np.float16) for key, value in tensors.items()}


@functools.cache
def _read_statistics() -> bytes:
    return (resources.files("pomona") / "statistics.safetensors").read_bytes()


def read_statistics(backbone: Backbone) -> Statistics:
    """Read what the package knows of a backbone's activations; `bench/calibrate.py` made it from photos.

    Raises
    ------
    MissingPackageError
        If safetensors is not installed.
    BackboneError
        If the file is damaged, or lacks the backbone, or its tensors do not fit.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingPackageError("safetensors", "train", "to write a network") from error
    dims = {cut.name: cut.dim for cut in backbone.cuts}
    wanted: dict[str, tuple[int, ...]] = {"average.mean": (backbone.dim,), "average.deviation": (backbone.dim,)}
    for cut in SECOND_ORDER_CUTS:
        wanted |= {f"{cut}.projection": (N_PROJECTED, dims[cut]), f"{cut}.mean": (dims[cut],)}
    unusable = f"wanted the statistics of {backbone.name} in statistics.safetensors; install Pomona again"
    try:
        tensors = load(_read_statistics())
    except SafetensorError as error:
        raise BackboneError(unusable) from error
    found = {
        key: tensors[f"{backbone.name}.{key}"].astype(np.float32)
        for key in wanted
        if f"{backbone.name}.{key}" in tensors
    }
    fits = {key: value.shape for key, value in found.items()} == wanted
    if not fits or not all(np.isfinite(value).all() for value in found.values()):
        raise BackboneError(unusable)
    if not (found["average.deviation"] > 0).all():
        raise BackboneError(unusable)
    return Statistics(
        {cut: found[f"{cut}.projection"] for cut in SECOND_ORDER_CUTS},
        {cut: found[f"{cut}.mean"] for cut in SECOND_ORDER_CUTS},
        found["average.mean"],
        found["average.deviation"],
    )


def load_network(embedding: Embedding) -> Path:
    """Write the network of an embedding once, and give the cached ONNX file after that.

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
        If the weights are not those that are pinned, or shipped ranges or statistics cannot be used.
    StorageError
        If the cache cannot be read or written.
    """
    folder = make_folder(cache_folder() / "networks")
    path = folder / f"{embedding.slug}-{embedding.key[:16]}-{NETWORK_LAYOUT}.onnx"
    seal = path.with_suffix(".sha256")
    with storage_errors(f"read {path}"):
        if path.is_file() and seal.is_file() and seal.read_bytes() == hash_file(path).encode():
            return path
    content = build_network(embedding)
    write_atomic(path, content)
    write_atomic(seal, hash_bytes(content))
    if embedding.is_tuned:
        _drop_oldest(folder, "*-tuned-*.onnx", _TUNED_KEPT)
    return path


def _drop_oldest(folder: Path, pattern: str, n_kept: int) -> None:
    """Every training writes another tuned network, and it is hardly asked for again."""
    with storage_errors(f"clear {folder}"):
        for path in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)[:-n_kept]:
            path.unlink(missing_ok=True)
            path.with_suffix(".sha256").unlink(missing_ok=True)


def build_network(embedding: Embedding) -> bytes:
    """Write the network of an embedding as an ONNX graph.

    Parameters
    ----------
    embedding : Embedding
        What the features are.

    Returns
    -------
    bytes
        ONNX model, ``pixels`` (N, S, S, 3) uint8 to ``features`` (N, D) float32, opset 18; a note in it says what these
        are made of, as a `Composition`.

    Raises
    ------
    MissingPackageError
        If onnx or the weights' package is not installed.
    BackboneError
        If the weights are not those that are pinned, or shipped ranges or statistics cannot be used.
    OptionError
        If there are tuned weights that the network does not take.
    """
    graph = GraphWriter() if embedding.precision == "f32" else Int8Writer()
    size_px = embedding.preprocessing.size_px
    pixels = "pixels"
    if embedding.mirrored:
        backward = graph.constant(np.arange(size_px - 1, -1, -1))
        pixels = graph.add("Concat", [pixels, graph.add("Gather", [pixels, backward], axis=2)], axis=0)
    x = graph.scale(pixels, embedding.preprocessing.offset, embedding.preprocessing.scale)
    parts: list[Part] = []
    for backbone in embedding.backbones:
        if not backbone.is_embedded:
            state = backbone.tuned.load() if backbone.tuned else None
            for name in backbone.pooled:
                parts += _write_layer(graph, *write_network(graph, backbone, x, name, state=state))
            continue
        prefix = "" if len(embedding.backbones) == 1 else f"{backbone.name}/"
        write_trunk(graph, backbone, load_weights(backbone), x, prefix=prefix)
        if embedding.pooling == "average":
            parts += _write_averages(graph, backbone, prefix)
        else:
            parts += _write_second_order(graph, backbone, prefix)
    graph.begin("", ())
    if embedding.mirrored:
        both = graph.add("Concat", [part.features for part in parts], axis=1)
        both = graph.add("Reshape", [both, graph.constant(np.array([2, -1, embedding.dim]))])
        graph.add("ReduceMean", [both, graph.constant(np.array([0]))], name="features", keepdims=0)
    elif len(parts) == 1:
        # A Concat of one part would be taken out, and OpenVINO choose one of the two names for the output.
        graph.nodes[-1].output[0] = "features"
        parts = [replace(parts[0], features="features")]
    else:
        graph.add("Concat", [part.features for part in parts], name="features", axis=1)
    graph.notes[COMPOSITION_NOTE] = Composition(tuple(parts), embedding.mirrored).to_json()
    return graph.to_bytes(("pixels", ("N", size_px, size_px, 3)), ("features", ("N", embedding.dim)))


def _write_layer(graph: GraphWriter, x: str, layer: Layer) -> list[Part]:
    """Add the averages of a layer of any network, each of norm 1."""
    if layer.kind == "map":
        axes, (height, width) = ([1, 2] if layer.is_turned else [2, 3]), layer.shape[1:]
        averages = graph.add("ReduceMean", [x, graph.constant(np.array(axes))], keepdims=0)
        return [_write_unit_averages(graph, averages, Source(x, layer.dim, height, width, layer.is_turned))]
    if layer.kind == "vector":
        return [Part("whole", _write_unit(graph, x)[0], layer.dim)]
    start, stop, axis = (graph.constant(np.array([i])) for i in (layer.n_before, layer.shape[0], 1))
    patches = graph.add("Slice", [x, start, stop, axis])
    n_channels, side = layer.shape[1], math.isqrt(layer.shape[0] - layer.n_before)
    parts = []
    if layer.n_before:
        token = graph.add("Gather", [x, graph.constant(np.array(0))], axis=1)
        parts.append(Part("whole", _write_unit(graph, token)[0], n_channels))
    averages = graph.add("ReduceMean", [patches, axis], keepdims=0)
    if side**2 == layer.shape[0] - layer.n_before:
        source = Source(patches, n_channels, side, side, is_turned=True)
        return [*parts, _write_unit_averages(graph, averages, source)]
    return [*parts, Part("whole", _write_unit(graph, averages)[0], n_channels)]


def _write_unit_averages(graph: GraphWriter, averages: str, source: Source) -> Part:
    features, length = _write_unit(graph, averages)
    return Part("averages", features, source.n_channels, (source,), length=length)


def build_trunk(backbone: Backbone, layer: str) -> bytes:
    """Write a network up to a layer as an ONNX graph.

    Parameters
    ----------
    backbone : Backbone
        Any.
    layer : str
        One of `list_layers`.

    Returns
    -------
    bytes
        ONNX model, ``pixels`` (N, S, S, 3) uint8 to ``activations`` (N, C, H, W), (N, T, C) or (N, C) float32.

    Raises
    ------
    OptionError
        If there is no such layer.
    MissingPackageError, BackboneError
        As `build_network`.
    """
    graph = GraphWriter() if backbone.precision == "f32" else Int8Writer()
    preprocessing = backbone.preprocessing
    x = graph.scale("pixels", preprocessing.offset, preprocessing.scale)
    if backbone.is_embedded:
        found = find_layer(list_layers(backbone), layer)
        write_trunk(graph, backbone, load_weights(backbone), x)
        x = layer
    else:
        x, found = write_network(graph, backbone, x, layer)
    graph.add("Identity", [x], name="activations")
    size_px = preprocessing.size_px
    return graph.to_bytes(("pixels", ("N", size_px, size_px, 3)), ("activations", ("N", *found.shape)))


def _write_averages(graph: GraphWriter, backbone: Backbone, prefix: str) -> list[Part]:
    axes = graph.constant(np.array([2, 3]))
    cuts = {cut.name: cut for cut in backbone.cuts}
    parts = []
    for name in backbone.pooled:
        side = math.ceil(backbone.preprocessing.size_px / cuts[name].stride)
        averages = graph.add("ReduceMean", [prefix + name, axes], keepdims=0)
        source = Source(prefix + name, cuts[name].dim, side, side)
        parts.append(Part("averages", averages, cuts[name].dim, (source,)))
    return parts


def _write_second_order(graph: GraphWriter, backbone: Backbone, prefix: str) -> list[Part]:
    """Add the second moments of each cut and the standardised averages, each part with a norm of its own."""
    statistics = read_statistics(backbone)
    size_px = backbone.preprocessing.size_px
    parts = []
    for cut in backbone.cuts:
        if cut.name in SECOND_ORDER_CUTS:
            axes, mean = statistics.projections[cut.name], statistics.means[cut.name]
            x = graph.add("Conv", [prefix + cut.name, *map(graph.constant, (axes[:, :, None, None], -axes @ mean))])
            parts.append(_write_moments(graph, x, math.ceil(size_px / cut.stride), SECOND_ORDER_CUTS[cut.name]))
    pooled = _write_averages(graph, backbone, prefix)
    averages = graph.add("Concat", [part.features for part in pooled], axis=1)
    origin, deviation = graph.constant(statistics.average_mean), graph.constant(statistics.average_deviation)
    averages = graph.add("Div", [graph.add("Sub", [averages, origin]), deviation])
    features, length = _write_norm(graph, averages, 1.0)
    sources = tuple(source for part in pooled for source in part.sources)
    return [*parts, Part("averages", features, backbone.dim, sources, origin, deviation, length)]


def _write_moments(graph: GraphWriter, x: str, n_positions: int, share: float) -> Part:
    """Add the upper triangle of the second moments of an activation map (N, K, P, P), of norm sqrt(share)."""
    x = graph.add("Reshape", [x, graph.constant(np.array([0, N_PROJECTED, -1]))])
    x = graph.add("Mul", [x, graph.constant(np.sqrt(make_window(n_positions)).ravel())])
    source = Source(x, N_PROJECTED, n_positions, n_positions)
    x = graph.add("MatMul", [x, graph.add("Transpose", [x], perm=[0, 2, 1])])
    x = graph.add("Reshape", [x, graph.constant(np.array([0, -1]))])
    row, column = np.triu_indices(N_PROJECTED)
    x = graph.add("Gather", [x, graph.constant(row * N_PROJECTED + column)], axis=1)
    # Off the diagonal a moment stands for two equal ones, so that products of features are those of the matrices.
    x = graph.add("Mul", [x, graph.constant(np.where(row == column, 1, math.sqrt(2)).astype(np.float32))])
    features, length = _write_norm(graph, x, math.sqrt(share))
    return Part("moments", features, _count_pairs(), (source,), length=length, norm=math.sqrt(share))


def _write_norm(graph: GraphWriter, x: str, norm: float) -> tuple[str, str]:
    """Scale each row to a norm; a row of zeros stays one. Gives the rows, and what they were divided by."""
    unit, length = _write_unit(graph, x)
    return graph.add("Mul", [unit, graph.constant(np.float32(norm))]), length


def _write_unit(graph: GraphWriter, x: str) -> tuple[str, str]:
    """Scale each row to norm 1; a row of zeros stays one. Gives the rows, and what they were divided by."""
    length = graph.add("ReduceL2", [x, graph.constant(np.array([1]))], keepdims=1)
    length = graph.add("Max", [length, graph.constant(np.float32(_EPSILON))])
    return graph.add("Div", [x, length]), length


def make_window(n_positions: int) -> NDArray[np.float32]:
    """Weights of the positions of an activation map, which sum to 1.

    Parameters
    ----------
    n_positions : int
        Positions along a side, P.

    Returns
    -------
    ndarray of shape (P, P), float32
        A Gaussian around the middle, of deviation `WINDOW_SIGMA` times the side.

    Examples
    --------
    >>> make_window(3).astype(float).round(2).tolist()
    [[0.05, 0.12, 0.05], [0.12, 0.3, 0.12], [0.05, 0.12, 0.05]]
    """
    place = (np.arange(n_positions) + 0.5) / n_positions - 0.5
    side = np.exp(-np.square(place / WINDOW_SIGMA) / 2)
    window = np.outer(side, side)
    return np.asarray(window / window.sum(), np.float32)


def _count_pairs() -> int:
    return N_PROJECTED * (N_PROJECTED + 1) // 2
