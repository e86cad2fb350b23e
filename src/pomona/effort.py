"""How much work goes into a recogniser, and how long that takes on this machine.

In: an effort, or a time. Out: an `Embedding` to compute features with, and a `Forecast`.
Why: nobody should have to know that 320 pixels with one backbone are better than 224 with two. The efforts are points
that were measured; what they cost here is measured on this machine before anything starts.
"""

from __future__ import annotations

import contextlib
import platform
import re
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from pomona.backbone import BackboneName, Precision, choose_layer, find_backbone, is_embedded
from pomona.embedding import Embedding
from pomona.engine import Engine, count_cpus, measure_rate
from pomona.errors import OptionError, PhotoError
from pomona.files import cache_folder, storage_errors, write_atomic
from pomona.graph import Convolution, GraphWriter, Int8Writer
from pomona.int8 import RELU6, Range
from pomona.photo import read_photo_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

Effort = Literal["instant", "fast", "best"]


@dataclass(frozen=True)
class Recipe:
    """What an effort computes.

    Parameters
    ----------
    backbones : tuple of str
        Pretrained networks.
    size_px : int
        Side of the square that they see.
    mirrored : bool
        Whether each photo is also seen in the mirror.
    rough : bool
        Whether a large JPEG is decoded at a fraction that leaves no more than the square needs, not twice that.
    """

    backbones: tuple[BackboneName, ...]
    size_px: int
    mirrored: bool = False
    rough: bool = False


RECIPES: dict[Effort, Recipe] = {
    "instant": Recipe(("lite0",), 144, rough=True),
    "fast": Recipe(("lite0",), 320),
    "best": Recipe(("lite0", "lite2"), 400, mirrored=True),
}
"""Measured on the Grocery Store photos, groups of like photos held out whole: docs/decisions/0011."""

_SLOWER = 1.5
"""How much faster another precision than the one at hand must be to take its place."""

_START_S = 2.5
"""Imports, compiling, writing the run and its report: what does not grow with the photos."""

_CHECK_START_S, _CHECK_S = 1.5, 0.003
"""Looking at the photos, quickly: imports, and seconds a photo."""

_PROBE_PX, _PROBE_DIM, _PROBE_BLOCKS, _N_PROBES = 28, 80, 4, 12
_N_DECODED, N_STRENGTHS = 8, 3
_EFFICIENCY = 0.8
"""What a whole network reaches of the probe's multiplications a second."""


def plan_embedding(
    effort: Effort,
    *,
    backbone: str | None = None,
    size_px: int | None = None,
    precision: Precision = "int8",
    layer: str | None = None,
    enhance: tuple[str, ...] = (),
) -> Embedding:
    """Choose what features are computed.

    Parameters
    ----------
    effort : {"instant", "fast", "best"}
        How much work.
    backbone : str, optional
        Instead of the backbones of the effort. One of another package has averages, float32 and a size of its own.
    size_px : int, optional
        Instead of the input size of the effort.
    precision : {"int8", "f32"}
        What the convolutions compute in.
    layer : str, optional
        Averages of this layer, instead of second moments; of one backbone alone.
    enhance : tuple of str
        What is done to photos first.

    Raises
    ------
    OptionError
        If there is no such effort or backbone, or the size is out of range.

    Examples
    --------
    >>> plan_embedding("fast").slug
    'lite0-imagenet-320-int8-second-order'
    """
    if effort not in get_args(Effort):
        raise OptionError(f"effort: wanted one of {', '.join(get_args(Effort))}, got {effort!r}")
    recipe = RECIPES[effort]
    if not is_embedded(backbone):
        other = find_backbone(backbone or "", size_px=size_px)
        other = replace(other, preprocessing=replace(other.preprocessing, enhance=enhance))
        return Embedding((choose_layer(other, layer) if layer else other,), "average")
    names = recipe.backbones if backbone is None else (backbone,)
    size_px = recipe.size_px if size_px is None else size_px
    found = [find_backbone(name, size_px=size_px) for name in names]
    preprocessing = replace(found[0].preprocessing, enhance=enhance)
    if recipe.rough:
        preprocessing = replace(preprocessing, decode_px=size_px)
    backbones = tuple(replace(one, precision=precision, preprocessing=preprocessing) for one in found)
    if layer is None:
        return Embedding(backbones, "second-order", recipe.mirrored)
    if len(backbones) > 1:
        raise OptionError(f"layer: wanted one backbone, got {', '.join(names)}; name one with --backbone")
    return Embedding((choose_layer(backbones[0], layer),), "average", recipe.mirrored)


@dataclass(frozen=True)
class Machine:
    """How fast this machine is, with every core at work.

    Parameters
    ----------
    int8_rate, f32_rate : float
        Multiplications of a network's convolutions per second.
    solve_rate : float
        Multiplications of large float32 matrices per second.
    """

    int8_rate: float
    f32_rate: float
    solve_rate: float

    @property
    def precision(self) -> Precision:
        """The faster one for networks; int8 where there is little between them."""
        return "int8" if 1.15 * self.int8_rate > self.f32_rate else "f32"


def choose_precision(machine: Machine) -> Precision:
    """Choose what networks compute in; the choice is kept in the cache, so that noise does not change it.

    Features of the other precision are not in the cache, so a run after a change computes every photo anew. Where both
    are nearly as fast, a busy moment decides what a single measurement says.

    Parameters
    ----------
    machine : Machine
        What was measured.

    Returns
    -------
    {"int8", "f32"}
        The one that was chosen before, unless the other is half as fast again; else the faster one.

    Raises
    ------
    StorageError
        If the choice cannot be kept.
    """
    path = cache_folder() / f"precision-{platform.node()}"
    kept = _read_choice(path)
    rates = {"int8": machine.int8_rate, "f32": machine.f32_rate}
    if kept is not None and max(rates.values()) <= _SLOWER * rates[kept]:
        return kept
    write_atomic(path, machine.precision)
    return machine.precision


def _read_choice(path: Path) -> Precision | None:
    """Precision in a file; None where there is none."""
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return None
    return next((one for one in get_args(Precision) if one == text), None)


def measure_machine(n_workers: int | None = None) -> Machine:
    """Run a few blocks of a network in both precisions, and multiply matrices: 0.3 s.

    Parameters
    ----------
    n_workers : int, optional
        Threads; every core where not given.
    """
    table = np.ones((1000, 1000), np.float32)
    times_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        np.matmul(table, table)
        times_s.append(time.perf_counter() - started_s)
    return Machine(_measure_probe("int8", n_workers), _measure_probe("f32", n_workers), len(table) ** 3 / min(times_s))


def _measure_probe(precision: Precision, n_workers: int | None) -> float:
    """Multiplications per second of inverted residual blocks."""
    content, n_multiplications = _write_probe(precision)
    with tempfile.TemporaryDirectory() as folder, storage_errors("write a probe network"):
        path = Path(folder) / "probe.onnx"
        path.write_bytes(content)
        engine = Engine(path, n_workers=n_workers)
    return n_multiplications * max(measure_rate(engine, n_photos=_N_PROBES) for _ in range(2))


def _write_probe(precision: Precision) -> tuple[bytes, float]:
    """Blocks as in the middle of a network, with weights of no meaning, and their multiplications."""
    random = np.random.default_rng(0)
    inside = 6 * _PROBE_DIM
    graph = GraphWriter() if precision == "f32" else Int8Writer()
    graph.begin("", [Range(f"block{i}", -8.0, 8.0) for i in range(_PROBE_BLOCKS + 1)])
    x = graph.scale("pixels", 127.0, 128.0)
    x = graph.narrow(graph.convolve(x, _make_convolution(random, _PROBE_DIM, 3, 1), name="block0"))
    for i in range(1, _PROBE_BLOCKS + 1):
        y = graph.narrow(graph.activate(graph.convolve(x, _make_convolution(random, inside, _PROBE_DIM, 1))), RELU6)
        y = graph.narrow(graph.activate(graph.convolve(y, _make_convolution(random, inside, 1, 3))), RELU6)
        y = graph.convolve(y, _make_convolution(random, _PROBE_DIM, inside, 1))
        x = graph.narrow(graph.join(y, x, name=f"block{i}"))
    graph.add("ReduceMean", [x, graph.constant(np.array([2, 3]))], name="features", keepdims=0)
    shape = ("N", _PROBE_PX, _PROBE_PX, 3)
    content = graph.to_bytes(("pixels", shape), ("features", ("N", _PROBE_DIM)))
    per_position = 3 * _PROBE_DIM + _PROBE_BLOCKS * (2 * _PROBE_DIM * inside + 9 * inside)
    return content, float(_PROBE_PX**2 * per_position)


def _make_convolution(random: np.random.Generator, n_out: int, n_in: int, kernel_px: int) -> Convolution:
    """Of random weights; depthwise where it is wider than 1 x 1."""
    weight = (random.standard_normal((n_out, n_in, kernel_px, kernel_px)) / np.sqrt(n_in * kernel_px**2)).astype(
        np.float32
    )
    groups = n_out if kernel_px > 1 else 1
    nothing, one = np.zeros(n_out), np.ones(n_out)
    return Convolution(weight, nothing.astype(np.float32), nothing, one, 1, groups)


@dataclass(frozen=True)
class Forecast:
    """What an effort will take.

    Parameters
    ----------
    effort : {"instant", "fast", "best"}
        Which.
    n_photos : int
        Photos whose features are not in the cache.
    decode_s, network_s, fit_s, start_s : float
        Seconds of reading and decoding, of the network, of the fit, and of everything else.
    """

    effort: Effort
    n_photos: int
    decode_s: float
    network_s: float
    fit_s: float
    start_s: float = _START_S

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return self.decode_s + self.network_s + self.fit_s + self.start_s


def forecast(
    effort: Effort,
    embedding: Embedding,
    machine: Machine,
    photos: Sequence[Path],
    *,
    n_learnt: int,
    n_checked: int = 0,
    n_workers: int | None = None,
) -> Forecast:
    """Foretell how long an effort takes, from the speed of this machine and a few of the photos.

    Parameters
    ----------
    effort : {"instant", "fast", "best"}
        Which.
    embedding : Embedding
        Its features.
    machine : Machine
        What was measured.
    photos : sequence of Path, length N
        Photos to compute; some are decoded.
    n_learnt : int
        Photos that the head is fitted on.
    n_checked : int
        Photos that are looked at first.
    n_workers : int, optional
        Threads; every core where not given.

    Returns
    -------
    Forecast
        Seconds, part by part.
    """
    rate = (machine.int8_rate if embedding.precision == "int8" else machine.f32_rate) * _EFFICIENCY
    decode_s = _measure_decoding(photos, embedding) / (n_workers or count_cpus())
    # Products of features in float32; then one inverse a strength in float64, at half the rate.
    products = min(n_learnt, embedding.dim) * n_learnt * embedding.dim / 2
    inverses = N_STRENGTHS * 2 * 2 * min(n_learnt, embedding.dim) ** 3
    return Forecast(
        effort=effort,
        n_photos=len(photos),
        decode_s=len(photos) * decode_s,
        network_s=len(photos) * embedding.n_multiplications / rate,
        fit_s=(products + inverses) / machine.solve_rate,
        start_s=_START_S + (_CHECK_START_S + n_checked * _CHECK_S if n_checked else 0),
    )


def _measure_decoding(photos: Sequence[Path], embedding: Embedding) -> float:
    """Seconds that one core takes to read a photo and fit it into the square; the middle one of a few."""
    times_s = []
    for i in np.unique(np.linspace(0, len(photos) - 1, min(_N_DECODED, len(photos))).astype(int)):
        started_s = time.perf_counter()
        with contextlib.suppress(PhotoError):  # counted and skipped when its turn comes
            embedding.preprocessing.read(read_photo_bytes(photos[i]))
        times_s.append(time.perf_counter() - started_s)
    return float(np.median(times_s)) if times_s else 0.0


def choose_effort(forecasts: Sequence[Forecast], time_s: float) -> Forecast:
    """Choose the greatest effort that is done in time; the quickest where none is.

    Parameters
    ----------
    forecasts : sequence of Forecast
        The smallest effort first; a greater one may be quicker, where its features are in the cache.
    time_s : float
        Seconds there are.

    Examples
    --------
    >>> small, large = Forecast("instant", 9, 0, 1, 0, 2), Forecast("fast", 9, 0, 5, 0, 2)
    >>> choose_effort([small, large], 10).effort, choose_effort([small, large], 1).effort
    ('fast', 'instant')
    """
    in_time = [one for one in forecasts if one.total_s <= time_s]
    return in_time[-1] if in_time else min(forecasts, key=lambda one: one.total_s)


def parse_time(text: str) -> float:
    """Read a time such as ``60s``, ``1.5m`` or ``90``, in seconds.

    Raises
    ------
    OptionError
        If it is none, or not more than nothing.

    Examples
    --------
    >>> parse_time("90"), parse_time("1.5m")
    (90.0, 90.0)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|sec|m|min|h)?\s*", text, re.IGNORECASE)
    value = float(found[1]) * {"m": 60, "h": 3600}.get((found[2] or "s")[0].lower(), 1) if found else 0.0
    if not 0 < value < np.inf:
        raise OptionError(f"time: wanted a time such as 60s or 2m, got {text!r}")
    return value
