"""The resize of a recogniser's contract as nodes of its graph.

In: a `Preprocessing`. Out: an ONNX model, upright pixels of any size in, the square that the network sees out.
Why: two resizers that disagree are the commonest fault of an exported model. ``Resize`` with ``antialias`` is within
one level of Pillow in ONNX Runtime, but OpenVINO's reader passes over ``antialias`` without a word and is off by a
hundred. Products with weights that the graph works out from the shape are right wherever a matrix can be multiplied.

As Pillow has it: along one side, rounded to 8 bits, then along the other. Outputs are taken `BLOCK` at a time with the
stretch of inputs that they can see, so the work grows with the photo and not with its square.

Pillow up to 12 goes across first. Pillow 13 goes down first where that side loses more than twice the pixels, which
moves one pixel in five by a level, and a bicubic one that was clipped in between by twenty. The graph does what the
Pillow does that it is exported beside.

References
----------
Pillow, `Resample.c`: the support of a filter grows with the scale, and weights are normalised within the photo.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pomona.graph import IR_VERSION, OPSET, GraphWriter

if TYPE_CHECKING:
    from pomona.backbone import Preprocessing

PLACE = "resize/"
SQUARE = "square"
"""Tensor (N, S, S, 3) uint8 that the network sees."""

BLOCK = 16
"""Outputs along a side that are computed from one stretch of inputs."""

_FLOAT, _UINT8, _INT64 = 1, 2, 7
_STEPS = 2**22
"""What the weights of an output make."""

_HALF = 2**11
_DIGITS = (4, 4, 4, 4, 3, 3)  # bits of a weight; 22 in all
_MOST_WHOLE = 2**20
"""Times a digit it is still whole in float32."""

_GREY = 127
_RADIUS = {"bilinear": 1, "bicubic": 2}


class _Side(NamedTuple):
    """One side of a photo; names of tensors.

    Parameters
    ----------
    n_in, n_out : str
        Pixels of the photo and of what is pasted into the square, int64.
    shift : str
        Where that begins in the square, int64.
    kept : str
        Pixels of the photo that are shown, int64, or float32 where a share is kept.
    """

    n_in: str
    n_out: str
    shift: str
    kept: str


class _ResizeWriter(GraphWriter):
    """A `GraphWriter` that knows integers from floats."""

    def integer(self, value: int) -> str:
        return self.constant(np.int64(value))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def cast(self, x: str, kind: int) -> str:
        return self.add("Cast", [x], to=kind)

    def floor(self, x: str) -> str:
        return self.add("Floor", [x])

    def axis(self, number: int) -> str:
        return self.constant(np.array([number]))

    def turn(self, x: str) -> str:
        """Exchange height and width of (N, H, W, 3)."""
        return self.add("Transpose", [x], perm=[0, 2, 1, 3])

    def fold(self, kind: str, *parts: str) -> str:
        """One operation over two tensors or more, from the left."""
        x, *rest = parts
        for part in rest:
            x = self.add(kind, [x, part])
        return x


def can_resize(preprocessing: Preprocessing) -> bool:
    """Whether a graph can do all of a contract after decoding: it cannot enhance."""
    return not preprocessing.enhance


@functools.cache
def starts_down() -> bool:
    """Whether the Pillow that is installed resizes tall photos down first."""
    from PIL import Image

    tall = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 9, 3), dtype=np.uint8))
    both = tall.resize((8, 8), Image.Resampling.BILINEAR)
    down_first = tall.resize((9, 8), Image.Resampling.BILINEAR).resize((8, 8), Image.Resampling.BILINEAR)
    return both.tobytes() == down_first.tobytes()


def build_resize(preprocessing: Preprocessing, *, may_start_down: bool | None = None) -> Any:
    """Write the way from upright pixels to the square as an ONNX model.

    Parameters
    ----------
    preprocessing : Preprocessing
        A contract without steps of `enhance`.
    may_start_down : bool, optional
        Whether tall photos are resized down first; as the installed Pillow does where not given.

    Returns
    -------
    ModelProto
        ``pixels`` (N, H, W, 3) uint8 to ``square`` (N, S, S, 3) uint8.

    Raises
    ------
    MissingPackageError
        If onnx is not installed.
    """
    from onnx import TensorProto, helper

    graph = _ResizeWriter(PLACE)
    size_px = preprocessing.size_px
    shape = graph.add("Shape", ["pixels"])
    height, width = (graph.add("Gather", [shape, graph.integer(axis)], axis=0) for axis in (1, 2))
    if starts_down() if may_start_down is None else may_start_down:
        # Both orders, the one that is not wanted on a single pixel. An `If` would be plainer, but after one OpenVINO
        # 2026.4 gives other pixels the first time it sees a size.
        is_down = _ask_order(graph, preprocessing, height, width)
        ways = []
        for is_wanted, is_other in ((is_down, False), (graph.add("Not", [is_down]), True)):
            sides = [graph.add("Where", [is_wanted, side, graph.integer(1)]) for side in (height, width)]
            ends = graph.add("Concat", [graph.add("Unsqueeze", [side, graph.axis(0)]) for side in sides], axis=0)
            starts, axes = graph.constant(np.array([0, 0])), graph.constant(np.array([1, 2]))
            seen = graph.add("Slice", ["pixels", starts, ends, axes])
            ways.append(_resize(graph, preprocessing, seen, *sides, starts_across=is_other))
        x = graph.add("Where", [is_down, *ways])
    else:
        x = _resize(graph, preprocessing, "pixels", height, width, starts_across=True)
    x = graph.add("Reshape", [x, graph.constant(np.array([0, size_px, size_px, 3]))])  # a runtime plans what it knows
    graph.add("Cast", [x], name=SQUARE, to=_UINT8)
    used = {name for node in graph.nodes for name in node.input}  # a runtime complains of others
    made = helper.make_graph(
        graph.nodes,
        "resize",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", "H", "W", 3))],
        [helper.make_tensor_value_info(SQUARE, TensorProto.UINT8, ("N", size_px, size_px, 3))],
        initializer=[constant for name, constant in graph.constants.items() if name in used],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _resize(
    graph: _ResizeWriter, preprocessing: Preprocessing, x: str, height: str, width: str, *, starts_across: bool
) -> str:
    """Pixels (N, H, W, 3) uint8 to (N, S, S, 3) float32, in one order of sides."""
    down, across = _plan_sides(graph, preprocessing, height, width)
    if starts_across:
        x = _resample(graph, preprocessing, graph.turn(x), across)
        x = _resample(graph, preprocessing, graph.turn(x), down)
    else:
        x = _resample(graph, preprocessing, x, down)
        x = graph.turn(_resample(graph, preprocessing, graph.turn(x), across))
    if preprocessing.fit == "pad":
        inside = [_find_inside(graph, side, preprocessing.size_px, axis) for axis, side in enumerate((down, across))]
        x = graph.add("Where", [graph.add("And", inside), x, graph.number(_GREY)])
    return x


def _ask_order(graph: _ResizeWriter, preprocessing: Preprocessing, height: str, width: str) -> str:
    """Whether a photo loses more than twice as many pixels down as across, of its whole size, whatever is kept."""
    sides = _plan_sides(graph, preprocessing, height, width)
    lost_down, lost_across = (graph.add("Sub", [side.n_in, side.n_out]) for side in sides)
    twice = graph.add("Mul", [lost_across, graph.integer(2)])
    return graph.add(
        "And", [graph.add("Greater", [lost_down, graph.integer(0)]), graph.add("Less", [twice, lost_down])]
    )


def _plan_sides(graph: _ResizeWriter, preprocessing: Preprocessing, height: str, width: str) -> tuple[_Side, _Side]:
    """What is shown of each side, and where: down, across."""
    size, nothing = graph.integer(preprocessing.size_px), graph.integer(0)
    if preprocessing.fit == "pad":
        longest = graph.add("Max", [height, width])
        return _plan_padded(graph, height, longest, size), _plan_padded(graph, width, longest, size)
    kept = [height, width]
    if preprocessing.fit == "crop":
        kept = [graph.add("Min", [height, width])] * 2
    if preprocessing.crop_share != 1:
        share = graph.number(preprocessing.crop_share)
        kept = [graph.add("Mul", [graph.cast(one, _FLOAT), share]) for one in kept]
    return _Side(height, size, nothing, kept[0]), _Side(width, size, nothing, kept[1])


def _plan_padded(graph: _ResizeWriter, side: str, longest: str, size: str) -> _Side:
    scaled = graph.add("Mul", [graph.cast(side, _FLOAT), graph.cast(size, _FLOAT)])
    inner = graph.add("Round", [graph.add("Div", [scaled, graph.cast(longest, _FLOAT)])])
    n_out = graph.add("Max", [graph.cast(inner, _INT64), graph.integer(1)])
    shift = graph.add("Div", [graph.add("Sub", [size, n_out]), graph.integer(2)])
    return _Side(side, n_out, shift, side)


def _find_inside(graph: _ResizeWriter, side: _Side, size_px: int, axis: int) -> str:
    """Which of the outputs along a side show the photo, (S, 1, 1) or (1, S, 1)."""
    places = graph.constant(np.arange(size_px, dtype=np.int64).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)))
    end = graph.add("Add", [side.shift, side.n_out])
    return graph.add("And", [graph.add("GreaterOrEqual", [places, side.shift]), graph.add("Less", [places, end])])


def _resample(graph: _ResizeWriter, preprocessing: Preprocessing, x: str, side: _Side) -> str:
    """Pixels (N, n_in, M, 3) to (N, S, M, 3) float32, whole numbers 0-255."""
    size_px, radius = preprocessing.size_px, _RADIUS[preprocessing.resample]
    n_blocks = -(-size_px // BLOCK)
    kept = side.kept if preprocessing.crop_share != 1 else graph.cast(side.kept, _FLOAT)
    n_out = graph.cast(side.n_out, _FLOAT)
    scale = graph.add("Div", [kept, n_out])
    reach = graph.fold("Mul", graph.add("Max", [scale, graph.number(1)]), graph.number(radius))
    # Middle of the first output of each block, in pixels of the photo; a pixel more on each side than it can see.
    first = graph.add("Sub", [graph.constant(np.arange(n_blocks, dtype=np.int64) * BLOCK), side.shift])
    first = graph.add("Add", [graph.cast(first, _FLOAT), graph.number(0.5)])
    start = graph.fold("Sub", graph.cast(side.n_in, _FLOAT), kept)
    start = graph.add("Add", [graph.add("Mul", [start, graph.number(0.5)]), graph.add("Mul", [first, scale])])
    start = graph.add("Floor", [graph.fold("Sub", start, reach, graph.number(1))])
    start = graph.add("Reshape", [graph.cast(start, _INT64), graph.constant(np.array([-1, 1]))])
    length = graph.fold("Add", graph.add("Mul", [scale, graph.number(BLOCK - 1)]), reach, reach, graph.number(3))
    length = graph.cast(graph.add("Ceil", [length]), _INT64)
    seen = graph.add("Add", [start, graph.add("Range", [graph.integer(0), length, graph.integer(1)])])
    last = graph.add("Sub", [side.n_in, graph.integer(1)])
    taken = graph.add("Min", [graph.add("Max", [seen, graph.integer(0)]), last])
    weights = _weigh(graph, preprocessing, side, seen, taken)  # (blocks, BLOCK, length)
    stretches = graph.cast(graph.add("Gather", [x, taken], axis=1), _FLOAT)  # (N, blocks, length, M, 3)
    flat = graph.add("Reshape", [stretches, graph.constant(np.array([0, 0, 0, -1]))])
    sums = graph.add("MatMul", [_halve(graph, weights), flat])  # (N, blocks, 2 BLOCK, M * 3)
    upper, lower = (
        graph.add("Slice", [sums, *(graph.axis(n) for n in (half * BLOCK, (half + 1) * BLOCK, 2))]) for half in (0, 1)
    )
    made = graph.add("Add", [upper, graph.floor(graph.add("Mul", [lower, graph.number(1 / _HALF)]))])
    made = graph.add("Add", [made, graph.number(_STEPS / _HALF / 2)])  # half a level
    made = graph.floor(graph.add("Mul", [made, graph.number(_HALF / _STEPS)]))
    made = graph.add("Clip", [made, graph.number(0), graph.number(255)])
    made = graph.add("Reshape", [made, graph.constant(np.array([0, n_blocks * BLOCK, -1, 3]))])
    if n_blocks * BLOCK > size_px:
        made = graph.add("Slice", [made, *(graph.axis(value) for value in (0, size_px, 1))])
    return made


def _halve(graph: _ResizeWriter, weights: str) -> str:
    """Weights of whole steps as multiples of `_HALF` and what is left: sums over pixels are exact in float32."""
    half = graph.number(_HALF)
    upper = graph.floor(graph.add("Mul", [weights, graph.number(1 / _HALF)]))
    lower = graph.add("Sub", [weights, graph.add("Mul", [upper, half])])
    return graph.add("Concat", [upper, lower], axis=1)


def _weigh(graph: _ResizeWriter, preprocessing: Preprocessing, side: _Side, seen: str, taken: str) -> str:
    """Weight of each pixel in each output, in whole steps of 2^-22 as Pillow has it, float32.

    Distances are whole numbers until the division, so that a side of thousands is as exact as one of ten. Those of a
    bilinear filter stay whole to the end: where weights are thirds, two levels are often equally near, and the last
    step of a weight decides.
    """
    n_blocks = -(-preprocessing.size_px // BLOCK)
    is_whole = preprocessing.crop_share == 1
    outputs = graph.constant(np.arange(n_blocks * BLOCK, dtype=np.int64).reshape(n_blocks, BLOCK, 1))
    outputs = graph.add("Sub", [outputs, side.shift])
    seen, taken = (graph.add("Unsqueeze", [places, graph.axis(1)]) for places in (seen, taken))
    one, two = graph.integer(1), graph.integer(2)
    at = graph.fold("Sub", graph.add("Add", [graph.add("Mul", [seen, two]), one]), side.n_in)
    at = graph.add("Mul", [at, side.n_out])
    middle = graph.fold("Sub", side.n_out, graph.add("Mul", [outputs, two]), one)
    n_out = side.n_out
    if not is_whole:
        middle, at, n_out, two = (graph.cast(tensor, _FLOAT) for tensor in (middle, at, n_out, two))
    distance = graph.add("Abs", [graph.add("Add", [at, graph.add("Mul", [middle, side.kept])])])
    width = graph.add("Mul", [graph.add("Max", [side.kept, n_out]), two])
    is_inside = graph.add("Equal", [seen, taken])
    if is_whole and preprocessing.resample == "bilinear":
        return _weigh_whole(graph, distance, width, is_inside)
    if is_whole:
        distance, width = graph.cast(distance, _FLOAT), graph.cast(width, _FLOAT)
    weights = _filter(graph, preprocessing, graph.add("Div", [distance, width]))
    return _share_out(graph, graph.add("Mul", [weights, graph.cast(is_inside, _FLOAT)]))


def _share_out(graph: _ResizeWriter, weights: str) -> str:
    """Steps of each weight, so that those of an output make `_STEPS`."""
    total = graph.add("ReduceSum", [weights, graph.axis(2)], keepdims=1)
    total = graph.add("Where", [graph.add("Equal", [total, graph.number(0)]), graph.number(1), total])
    return graph.add("Round", [graph.add("Mul", [graph.add("Div", [weights, total]), graph.number(_STEPS)])])


def _weigh_whole(graph: _ResizeWriter, distance: str, width: str, is_inside: str) -> str:
    """Weights of a bilinear filter by long division of whole numbers, each digit exact in float32.

    OpenVINO computes in 32 bits whatever is asked for, and divides whole numbers as floats.
    """
    nothing, one = graph.number(0), graph.number(1)
    height = graph.cast(graph.add("Max", [graph.add("Sub", [width, distance]), graph.integer(0)]), _FLOAT)
    height = graph.add("Mul", [height, graph.cast(is_inside, _FLOAT)])
    total = graph.add("Max", [graph.add("ReduceSum", [height, graph.axis(2)], keepdims=1), one])
    left, steps = height, nothing
    for n_bits in _DIGITS:
        base = graph.number(2**n_bits)
        left = graph.add("Mul", [left, base])
        digit = graph.floor(graph.add("Div", [left, total]))
        left = graph.add("Sub", [left, graph.add("Mul", [digit, total])])
        steps = graph.add("Add", [graph.add("Mul", [steps, base]), digit])
    is_half = graph.add("GreaterOrEqual", [graph.add("Mul", [left, graph.number(2)]), total])
    steps = graph.add("Add", [steps, graph.cast(is_half, _FLOAT)])
    is_small = graph.add("Less", [total, graph.number(_MOST_WHOLE)])  # else a side is beyond thousands of pixels
    return graph.add("Where", [is_small, steps, _share_out(graph, height)])


def _filter(graph: _ResizeWriter, preprocessing: Preprocessing, q: str) -> str:
    """Value of the filter at distances in units of its own width."""
    one, nothing = graph.number(1), graph.number(0)
    if preprocessing.resample == "bilinear":
        return graph.add("Max", [graph.add("Sub", [one, q]), nothing])
    a = -0.5
    q = graph.add("Min", [q, graph.number(2)])
    square = graph.add("Mul", [q, q])
    near = graph.add("Sub", [graph.add("Mul", [q, graph.number(a + 2)]), graph.number(a + 3)])
    near = graph.add("Add", [graph.add("Mul", [near, square]), one])
    far = graph.add("Sub", [q, graph.number(5)])
    far = graph.add("Add", [graph.add("Mul", [far, q]), graph.number(8)])
    far = graph.add("Sub", [graph.add("Mul", [far, q]), graph.number(4)])
    far = graph.add("Mul", [far, graph.number(a)])
    return graph.add("Where", [graph.add("Less", [q, one]), near, far])
