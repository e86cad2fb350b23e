"""How much work goes into a recogniser, and how long that takes on this machine.

In: an effort, or a time. Out: an `Embedding` to compute features with, and a `Forecast`.
Why: nobody should have to know that 320 pixels with one backbone are better than 224 with two. The efforts are points
that were measured; what they cost here is measured on this machine before anything starts.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pomona.backbone import BackboneName, Precision, find_backbone
from pomona.embedding import Embedding, load_network
from pomona.engine import Engine, count_cpus, measure_rate
from pomona.errors import OptionError
from pomona.files import cache_folder, hash_bytes, make_folder, write_atomic

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
    """

    backbones: tuple[BackboneName, ...]
    size_px: int
    mirrored: bool = False


RECIPES: dict[Effort, Recipe] = {
    "instant": Recipe(("lite0",), 176),
    "fast": Recipe(("lite0",), 320),
    "best": Recipe(("lite0", "lite2"), 416, mirrored=True),
}
"""Measured on the Grocery Store photos, groups of like photos held out whole: docs/decisions/0011."""

_PROBE_PX = 128
_N_PROBES, _N_DECODED = 24, 8
_START_S = 2.0  # imports, compiling, the report
_FIT_S_PER_CUBE, _FIT_S_PER_SQUARE = 6e-11, 1.2e-11


def plan_embedding(
    effort: Effort,
    *,
    backbone: BackboneName | None = None,
    size_px: int | None = None,
    precision: Precision = "int8",
) -> Embedding:
    """Choose what features are computed.

    Parameters
    ----------
    effort : {"instant", "fast", "best"}
        How much work.
    backbone : {"lite0", "lite1", "lite2"}, optional
        Instead of the backbones of the effort.
    size_px : int, optional
        Instead of the input size of the effort.
    precision : {"int8", "f32"}
        What the convolutions compute in.

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
    names = recipe.backbones if backbone is None else (backbone,)
    size_px = recipe.size_px if size_px is None else size_px
    found = (find_backbone(name, size_px=size_px) for name in names)
    backbones = tuple(replace(one, precision=precision) for one in found)
    return Embedding(backbones, "second-order", recipe.mirrored)


@dataclass(frozen=True)
class Machine:
    """How fast this machine is.

    Parameters
    ----------
    int8_rate, f32_rate : float
        Multiplications of a network per second, all cores.
    """

    int8_rate: float
    f32_rate: float

    @property
    def precision(self) -> Precision:
        """The faster of the two."""
        return "int8" if self.int8_rate > self.f32_rate else "f32"


def measure_machine(n_workers: int | None = None) -> Machine:
    """Run a small network in both precisions, once a machine; the result is kept in the cache.

    Parameters
    ----------
    n_workers : int, optional
        Threads; every core where not given.
    """
    n_workers = n_workers or count_cpus()
    path = make_folder(cache_folder() / "networks") / f"machine-{_name_machine(n_workers)}.json"
    try:
        kept = Machine(**json.loads(path.read_text("utf-8")))
        if min(kept.int8_rate, kept.f32_rate) > 0:
            return kept
    except (OSError, ValueError, TypeError):
        pass  # not measured yet, or by another version
    probes = [plan_embedding("instant", size_px=_PROBE_PX, precision=precision) for precision in get_args(Precision)]
    rates = {one.precision: _measure_multiplications(one, n_workers) for one in probes}
    machine = Machine(rates["int8"], rates["f32"])
    write_atomic(path, json.dumps(asdict(machine)) + "\n")
    return machine


def _measure_multiplications(probe: Embedding, n_workers: int) -> float:
    engine = Engine(load_network(probe), n_workers=n_workers)
    return max(measure_rate(engine, n_photos=_N_PROBES) for _ in range(2)) * probe.n_multiplications


def _name_machine(n_workers: int) -> str:
    from pomona import __version__

    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    return hash_bytes(repr((__version__, platform.node(), model, n_workers)).encode())[:16]


@dataclass(frozen=True)
class Forecast:
    """What an effort will take for N photos.

    Parameters
    ----------
    effort : {"instant", "fast", "best"}
        Which.
    n_photos : int
        Photos, N.
    decode_s, network_s, fit_s, start_s : float
        Seconds of reading and decoding, of the network, of the fit, and of everything that does not grow.
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
