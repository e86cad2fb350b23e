"""What each position of a photo adds to the logit of its answer, as nodes of the bundle's own graph.

In: a network with a head on it, and what its features are made of. Out: the same with one output more, ``heat_map``.
Why: features are sums over positions, each part then scaled to a norm. With the norms of a photo held fixed, a logit is
a sum over positions too: nothing is estimated, and the map adds up to the logit. It reads the weights that the head
itself reads, so that it stays true where a class is taught later.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.embedding import COMPOSITION_NOTE, Composition
from pomona.graph import GraphWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pomona.embedding import Part, Source

HEAT_MAP = "heat_map"
"""Name of the output."""

_FOR, _AGAINST = (214, 48, 12), (38, 92, 160)
_FULL, _FAINT, _BRIGHTEST = 0.92, 0.3, 0.995

ROW = "heat_map/row"
"""Name of the tensor (N, D) that says how much each feature counts: the weights of the answered class."""


def append_heat_map(model: Any, *, logits: str, weights: str) -> bool:
    """Give a network with a head the output ``heat_map`` (N, P, P) float32.

    P is the number of positions along a side of the finest layer that features come from. What has no position, the
    class token of a network of another package, is spread evenly. The sum over a map and the bias of its class are the
    logit, to rounding.

    Parameters
    ----------
    model : onnx.ModelProto
        The network, whose note says what its features are made of, and the head. It is changed, and the note taken out.
    logits : str
        Tensor (N, C); the map is of the greatest of each row.
    weights : str
        Tensor (C, D) that features are multiplied by for them.

    Returns
    -------
    bool
        Whether it has the output now: there is none where features come from no positions, or
        nothing says from which.

    Raises
    ------
    MissingPackageError
        If onnx is not installed.

    References
    ----------
    .. [1] Zhou et al., "Learning deep features for discriminative localization", CVPR 2016: the same for averages.
    """
    graph = GraphWriter(f"{HEAT_MAP}/")
    from onnx import TensorProto, helper

    notes = {one.key: one.value for one in model.metadata_props}
    note = notes.pop(COMPOSITION_NOTE, None)
    if note is None:
        return False
    composition = Composition.from_json(note)
    del model.metadata_props[:]
    helper.set_model_props(model, notes)
    sides = (max(source.height, source.width) for part in composition.parts for source in part.sources)
    side = max(sides, default=1)
    if side == 1:
        return False
    _write_heat_map(graph, composition, logits, weights, side)
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants.values())
    model.graph.output.append(helper.make_tensor_value_info(HEAT_MAP, TensorProto.FLOAT, ("N", side, side)))
    return True


def _write_heat_map(graph: GraphWriter, composition: Composition, logits: str, weights: str, side: int) -> None:
    best = graph.add("ArgMax", [logits], axis=1, keepdims=0)
    row = graph.add("Gather", [weights, best], name=ROW, axis=0)
    if composition.mirrored:
        row = graph.add("Concat", [row, row], axis=0)
    maps: dict[tuple[int, int], list[str]] = defaultdict(list)
    for part, own in zip(composition.parts, _split(graph, row, [part.dim for part in composition.parts]), strict=True):
        for shape, name in _write_part(graph, part, own):
            maps[shape].append(name)
    whole = _add_up(graph, [_resize(graph, _add_up(graph, names), shape, side) for shape, names in maps.items()])
    if not composition.mirrored:
        graph.add("Identity", [whole], name=HEAT_MAP)
        return
    pair = graph.add("Reshape", [whole, graph.constant(np.array([2, -1, side, side]))])
    photo, mirror = (graph.add("Gather", [pair, graph.constant(np.array(i))], axis=0) for i in (0, 1))
    mirror = graph.add("Gather", [mirror, graph.constant(np.arange(side - 1, -1, -1))], axis=2)
    graph.add("Mul", [graph.add("Add", [photo, mirror]), graph.constant(np.float32(0.5))], name=HEAT_MAP)


def _write_part(graph: GraphWriter, part: Part, row: str) -> list[tuple[tuple[int, int], str]]:
    """Add what each position adds through one part: maps (N, height * width), each with height and width."""
    if part.kind == "whole":
        product = graph.add("Mul", [row, part.features])
        return [((1, 1), graph.add("ReduceSum", [product, graph.constant(np.array([1]))], keepdims=1))]
    if part.kind == "moments":
        (source,) = part.sources
        name = graph.add("Div", [_write_moments(graph, source, row, part.norm), part.length])
        return [((source.height, source.width), name)]
    row = graph.add("Div", [row, part.deviation]) if part.deviation else row
    row = graph.add("Div", [row, part.length]) if part.length else row
    rows = _split(graph, row, [source.n_channels for source in part.sources])
    maps = [_write_averages(graph, source, own) for source, own in zip(part.sources, rows, strict=True)]
    shapes = [(source.height, source.width) for source in part.sources]
    if part.mean:
        product = graph.add("Mul", [row, part.mean])
        taken = graph.add("ReduceSum", [product, graph.constant(np.array([1]))], keepdims=1)
        shapes, maps = [*shapes, (1, 1)], [*maps, graph.add("Neg", [taken])]
    return list(zip(shapes, maps, strict=True))


def _write_moments(graph: GraphWriter, source: Source, row: str, norm: float) -> str:
    """Add ``z^T W z`` of each position, W the symmetric matrix that a row of weights is the upper triangle of."""
    n = source.n_channels
    places, scales = find_places(n)
    matrix = graph.add("Gather", [row, graph.constant(places.ravel())], axis=1)
    matrix = graph.add("Mul", [matrix, graph.constant((norm * scales).astype(np.float32).ravel())])
    matrix = graph.add("Reshape", [matrix, graph.constant(np.array([0, n, n]))])
    z = graph.add("Reshape", [source.tensor, graph.constant(np.array([0, n, -1]))])
    product = graph.add("Mul", [graph.add("MatMul", [matrix, z]), z])
    return graph.add("ReduceSum", [product, graph.constant(np.array([1]))], keepdims=0)


def find_places(n: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Where in an upper triangle each entry of its symmetric matrix stands, and what it is to be multiplied by.

    Parameters
    ----------
    n : int
        Rows of the matrix.

    Returns
    -------
    places : ndarray of shape (n, n), intp
        Number in the triangle, row by row.
    scales : ndarray of shape (n, n), float64
        1 on the diagonal; off it half the square root of 2, since the triangle holds each pair once and scaled by that
        root.

    Examples
    --------
    >>> find_places(3)[0].tolist()
    [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    """
    rows, columns = np.triu_indices(n)
    places = np.zeros((n, n), np.intp)
    places[rows, columns] = places[columns, rows] = np.arange(len(rows))
    return places, np.where(np.eye(n, dtype=bool), 1, math.sqrt(0.5))


def _write_averages(graph: GraphWriter, source: Source, row: str) -> str:
    """Add the share of each position in a weighted sum of averages."""
    n_positions = source.height * source.width
    row = graph.add("Mul", [row, graph.constant(np.float32(1 / n_positions))])
    if source.is_turned:
        x = graph.add("Reshape", [source.tensor, graph.constant(np.array([0, n_positions, source.n_channels]))])
        product = graph.add("MatMul", [x, graph.add("Unsqueeze", [row, graph.constant(np.array([2]))])])
    else:
        x = graph.add("Reshape", [source.tensor, graph.constant(np.array([0, source.n_channels, n_positions]))])
        product = graph.add("MatMul", [graph.add("Unsqueeze", [row, graph.constant(np.array([1]))]), x])
    return graph.add("Reshape", [product, graph.constant(np.array([0, n_positions]))])


def _split(graph: GraphWriter, row: str, dims: Sequence[int]) -> list[str]:
    """Add the stretches of a row, one after the other."""
    if len(dims) == 1:
        return [row]
    ends = np.cumsum(dims)
    axis = graph.constant(np.array([1]))
    bounds = [
        (graph.constant(np.array([end - dim])), graph.constant(np.array([end])))
        for end, dim in zip(ends, dims, strict=True)
    ]
    return [graph.add("Slice", [row, start, stop, axis]) for start, stop in bounds]


def _add_up(graph: GraphWriter, names: Sequence[str]) -> str:
    return graph.add("Sum", list(names)) if len(names) > 1 else names[0]


def _resize(graph: GraphWriter, x: str, shape: tuple[int, int], side: int) -> str:
    """Add a map (N, height * width) as (N, side, side), its sum kept."""
    x = graph.add("Reshape", [x, graph.constant(np.array([-1, *shape]))])
    if shape == (side, side):
        return x
    if shape[0] != side:
        x = graph.add("MatMul", [graph.constant(spread_positions(shape[0], side)), x])
    if shape[1] != side:
        x = graph.add("MatMul", [x, graph.constant(np.ascontiguousarray(spread_positions(shape[1], side).T))])
    return x


def spread_positions(n: int, side: int) -> NDArray[np.float32]:
    """Matrix that brings values along n positions to another number of them, by the share that overlaps.

    Parameters
    ----------
    n : int
        Positions there are.
    side : int
        Positions wanted.

    Returns
    -------
    ndarray of shape (side, n), float32
        Each column sums to 1: nothing is lost and nothing is added.

    Examples
    --------
    >>> spread_positions(2, 3).astype(float).round(2).tolist()
    [[0.67, 0.0], [0.33, 0.33], [0.0, 0.67]]
    """
    # In units of 1 / (n * side) both grids have whole edges.
    wanted, given = np.arange(side)[:, None] * n, np.arange(n)[None, :] * side
    overlap = np.minimum(wanted + n, given + side) - np.maximum(wanted, given)
    return np.asarray(np.maximum(overlap, 0) / side, np.float32)


def paint_map(photo: NDArray[np.uint8], heat_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a map over a photo: what spoke for the answer in red, what spoke against it in faint blue.

    Parameters
    ----------
    photo : ndarray of shape (H, W, 3), uint8
        It is shown without its colours, so that those of the map are not taken for them.
    heat_map : ndarray of shape (P, P)
        Of any scale: the strongest positions have the full colour.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The photo with the map.
    """
    from PIL import Image

    height, width = photo.shape[:2]
    scale = float(np.quantile(np.abs(heat_map), _BRIGHTEST)) or 1.0
    smooth = Image.fromarray((heat_map / scale).astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), -1, 1)[:, :, None]
    gray = 70 + 0.68 * (photo @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    cover = np.where(strength > 0, _FULL * strength.clip(0) ** 0.8, _FAINT * (-strength).clip(0))
    colour = np.where(strength > 0, np.array(_FOR), np.array(_AGAINST))
    # Shadows of the photo show through the colour: where it lies stays to be seen.
    colour = colour * (0.45 + 0.55 * gray / 243)
    return np.asarray(np.rint((1 - cover) * gray + cover * colour), np.uint8)
