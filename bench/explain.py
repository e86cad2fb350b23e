"""Whether the heat map shows what the decision hangs on, on real photos.

    python bench/explain.py [--run RUN] [--fill blur] [--photos 296] [--steps 20]

Trains `fast` on the Grocery Store photos unless a run is named. Then the photos of val are taken apart: positions are
replaced in the order of the map, those that spoke most for the answer first, and the probability of that answer is
followed. The area under that curve is the deletion area, lower is better; the other way round, positions put back into
a photo without any, it is the insertion area, higher is better. Both are compared with random orders (the mean of five)
and with the middle alone, the Gaussian window that features are weighted by. What replaces a position is the same for
all: the photo blurred until nothing can be told, or its mean colour.

"own" is the map of the bundle. The others are exact as well, for another question: what speaks for the answer against
the class that comes second, or against all others by their probability. "smooth" blurs the map first, for the order.

References: Petsiuk, Das and Saenko, "RISE: randomized input sampling for explanation of black-box models", BMVC 2018.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image, ImageFilter

from pomona.bundle import MODEL_NAME, load_bundle
from pomona.embedding import make_window
from pomona.engine import Engine
from pomona.heat_map import HEAT_MAP, ROW
from process import POMONA, ROOT, measure, write_results

GROCERY = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared")) / "data" / "grocery"
QUESTIONS = ("own", "second", "others")
N_RANDOM = 5
BLUR = 1 / 10
"""Deviation of the blur, as a share of the photo's side."""


class Photos(NamedTuple):
    """What is taken apart: N photos, what positions of them are replaced by, and the class each was answered with."""

    pixels: list[np.ndarray]
    filled: list[np.ndarray]
    answers: np.ndarray


class Curves(NamedTuple):
    """Probability of the answer of each photo (N, steps + 1), while positions go and while they come."""

    deletion: np.ndarray
    insertion: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--photos", type=int, default=10**6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fill", choices=("blur", "mean"), default="blur")
    parser.add_argument("--no-random", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run or train(Path(scratch))
        bundle = load_bundle(run)
        paths = sorted((GROCERY / "val").rglob("*.jpg"))
        paths = paths[:: max(1, len(paths) // options.photos)]
        pixels = [bundle.preprocessing.read(path.read_bytes()) for path in paths]
        maps = {kind: compute_maps(run / MODEL_NAME, kind, pixels, Path(scratch)) for kind in QUESTIONS}
        cost = measure_cost(run / MODEL_NAME, pixels)
    side = maps["own"].shape[1]
    engine = bundle.engine
    answers = engine.run(np.stack(pixels))["probabilities"].argmax(axis=1)
    photos = Photos(pixels, [fill(one, options.fill) for one in pixels], answers)
    orders = {kind: order_positions(found) for kind, found in maps.items()}
    orders |= {f"{kind}, smooth": order_positions(smooth(found)) for kind, found in maps.items()}
    orders["middle"] = order_positions(np.broadcast_to(make_window(side), maps["own"].shape))
    if not options.no_random:
        for seed in range(N_RANDOM):
            draw = np.random.default_rng(seed)
            orders[f"random {seed}"] = order_positions(draw.random(maps["own"].shape))
    areas = {}
    for kind, order in orders.items():
        started_s = time.perf_counter()
        curves = follow(engine, photos, order, side, options.steps)
        areas[kind] = [measure_area(one) for one in curves]
        taken_s = time.perf_counter() - started_s
        print(f"{kind:<16} {areas[kind][0].mean():.3f} {areas[kind][1].mean():.3f} {taken_s:.0f} s", flush=True)
    rows = summarise(areas)
    report(rows, len(paths), cost)
    write_results(
        "explain",
        {"options": {**vars(options), "run": None}, "n": len(paths), "side": side, "rows": rows, "cost": cost},
    )


def train(scratch: Path) -> Path:
    """A `fast` run, with whatever cache there is."""
    run = scratch / "run"
    measure([*POMONA, "train", str(GROCERY), "--output", str(run), "--effort", "fast", "--json"], dict(os.environ))
    return run


def compute_maps(model: Path, kind: str, pixels: list[np.ndarray], scratch: Path) -> np.ndarray:
    """Maps (N, P, P) for one question."""
    path = scratch / f"{kind}.onnx"
    path.write_bytes(ask(model, kind))
    return Engine(path, outputs=(HEAT_MAP,)).run(np.stack(pixels))[HEAT_MAP]


def ask(model: Path, kind: str) -> bytes:
    """The graph with another question put to it: the row of weights that the map reads is another one."""
    graph = onnx.load(model)
    if kind == "own":
        return graph.SerializeToString()
    place = next(i for i, node in enumerate(graph.graph.node) if node.output[0] == ROW)
    graph.graph.node[place].output[0] = "own"
    two, second = numpy_helper.from_array(np.array([2]), "two"), numpy_helper.from_array(np.array([1]), "second")
    graph.graph.initializer.extend([two, second])
    if kind == "second":
        nodes = [
            helper.make_node("TopK", ["logits", "two"], ["values", "numbers"], axis=1),
            helper.make_node("Gather", ["numbers", "second"], ["number"], axis=1),
            helper.make_node("Squeeze", ["number", "second"], ["flat"]),
            helper.make_node("Gather", ["head_weights", "flat"], ["other"], axis=0),
        ]
    else:
        nodes = [helper.make_node("MatMul", ["probabilities", "head_weights"], ["other"])]
    nodes.append(helper.make_node("Sub", ["own", "other"], [ROW]))
    for offset, node in enumerate(nodes, start=1):
        graph.graph.node.insert(place + offset, node)
    return graph.SerializeToString()


def smooth(maps: np.ndarray) -> np.ndarray:
    """Each map blurred by a Gaussian of one position."""
    side = maps.shape[1]
    distance = np.arange(side)[:, None] - np.arange(side)
    kernel = np.exp(-(distance**2) / 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return kernel @ maps @ kernel.T


def order_positions(maps: np.ndarray) -> np.ndarray:
    """Positions of each map from the greatest to the least, (N, P * P)."""
    return np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")


def fill(photo: np.ndarray, kind: str) -> np.ndarray:
    """What positions are replaced by."""
    if kind == "mean":
        return np.broadcast_to(photo.mean(axis=(0, 1)).round().astype(np.uint8), photo.shape)
    blur = ImageFilter.GaussianBlur(BLUR * len(photo))
    return np.asarray(Image.fromarray(photo).filter(blur))


def follow(engine: Engine, photos: Photos, orders: np.ndarray, side: int, n_steps: int) -> Curves:
    """Probability of each answer while its photo is taken apart, and while it is put together."""
    counts = np.linspace(0, side * side, n_steps + 1).round().astype(int)
    each = 2 * len(counts)

    def load(i: int) -> np.ndarray:
        photo, place = divmod(i, each)
        gone = np.zeros(side * side, bool)
        gone[orders[photo, : counts[place % len(counts)]]] = True
        whole, filled = photos.pixels[photo], photos.filled[photo]
        size = whole.shape[1], whole.shape[0]
        mask = np.asarray(Image.fromarray(gone.reshape(side, side)).resize(size, Image.Resampling.NEAREST))
        return np.where((mask if place < len(counts) else ~mask)[:, :, None], filled, whole)

    n_views = each * len(photos.pixels)
    outcomes = enumerate(engine.stream(n_views, load))
    found = np.array([outcome["probabilities"][photos.answers[i // each]] for i, outcome in outcomes])
    found = found.reshape(len(photos.pixels), 2, len(counts))
    return Curves(found[:, 0], found[:, 1])


def measure_area(curves: np.ndarray) -> np.ndarray:
    """Area under each curve over the share of positions, 0-1."""
    return (curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2


def summarise(areas: dict[str, list[np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Mean areas of each order, and the share of photos on which it is better than random and than the middle."""
    chance = [np.mean([found[i] for kind, found in areas.items() if kind.startswith("random")], axis=0) for i in (0, 1)]
    rows = {kind: found for kind, found in areas.items() if not kind.startswith("random")}
    rows["random"] = chance
    return {
        kind: {
            "deletion": float(deletion.mean()),
            "insertion": float(insertion.mean()),
            "deletion_below_random": float((deletion < chance[0]).mean()),
            "insertion_above_random": float((insertion > chance[1]).mean()),
            "deletion_below_middle": float((deletion < areas["middle"][0]).mean()),
            "insertion_above_middle": float((insertion > areas["middle"][1]).mean()),
        }
        for kind, (deletion, insertion) in rows.items()
    }


def measure_cost(model: Path, pixels: list[np.ndarray], *, n_photos: int = 200) -> dict[str, float]:
    """Milliseconds a photo on one core, median, each kind of output in turn."""
    kinds = {
        "probabilities": ("probabilities",),
        "probabilities, features": ("probabilities", "features"),
        "probabilities, features, heat_map": ("probabilities", "features", HEAT_MAP),
    }
    engines = {kind: Engine(model, n_workers=1, outputs=outputs) for kind, outputs in kinds.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(n_photos):
        for kind, engine in engines.items():
            started_s = time.perf_counter()
            engine.run(pixels[i % len(pixels)][None])
            times[kind].append(1000 * (time.perf_counter() - started_s))
    return {kind: float(np.median(found)) for kind, found in times.items()}


def report(rows: dict[str, dict[str, Any]], n_photos: int, cost: dict[str, float]) -> None:
    print(f"{n_photos} photos")
    print(f"{'':<16}{'deletion':>9}{'insertion':>10}   better than random, than the middle (deletion; insertion)")
    for kind, row in rows.items():
        random = f"{row['deletion_below_random']:.3f} {row['deletion_below_middle']:.3f}"
        other = f"{row['insertion_above_random']:.3f} {row['insertion_above_middle']:.3f}"
        print(f"{kind:<16}{row['deletion']:9.3f}{row['insertion']:10.3f}   {random}; {other}")
    for kind, milliseconds in cost.items():
        print(f"{milliseconds:6.2f} ms a photo, one core: {kind}")


if __name__ == "__main__":
    main()
