"""How close extraction comes to its floor: decoding alone and the network alone, both on every core.

    python bench/floor.py [--photos N] [--repeats N] [NAME:SIZE[:PRECISION] ...]

All three are measured in turn, several times over, on the same photos: read, decode and resize without a network; the
network on pixels in memory; and both as one stream. The share is the rate of the stream over the rate that the two
would reach one after the other. The table goes to stdout, a dated JSON to bench/results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.backbone import Backbone, find_backbone, load_network
from pomona.engine import Engine
from pomona.features import read_unchanged
from pomona.files import hash_file
from pomona.photo import decode_photo
from process import ROOT, describe_machine, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
GROCERY = SHARED / "data" / "grocery"
N_IN_MEMORY = 64
STEPS = ("decode", "network", "extract")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=["lite0:224", "lite2:320"], metavar="NAME:SIZE[:PRECISION]")
    parser.add_argument("--photos", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not GROCERY.is_dir():
        sys.exit(f"wanted the Grocery Store photos in {GROCERY}; name their folder's parent in POMONA_SHARED")
    chosen = {name: choose_backbone(name) for name in options.backbones}
    paths = sorted((GROCERY / "train").rglob("*.jpg"))
    paths = paths[:: max(1, len(paths) // options.photos)][: options.photos]
    hashes = [hash_file(path) for path in paths]
    rows = []
    for name, backbone in chosen.items():
        rates = measure_rates(backbone, paths, hashes, options.repeats)
        rows.append({"backbone": name, **rates, "share": measure_shares(rates)})
    report(rows, len(paths))


def choose_backbone(name: str) -> Backbone:
    """Backbone of `lite2:320` or `lite2:320:int8`."""
    parts = name.split(":")
    if len(parts) not in {2, 3} or not parts[1].isdecimal():
        sys.exit(f"wanted NAME:SIZE or NAME:SIZE:PRECISION, such as lite2:320, got {name}")
    backbone = find_backbone(parts[0], size_px=int(parts[1]))
    if len(parts) == 2:
        return backbone
    if "precision" not in {field.name for field in fields(backbone)}:
        sys.exit(f"{name}: there is no choice of precision")
    return replace(backbone, precision=parts[2])


def measure_rates(backbone: Backbone, paths: list[Path], hashes: list[str], n_repeats: int) -> dict[str, list[float]]:
    """Photos per second of each step, a value a repeat; the steps take turns, so that all see the same machine."""
    engine = Engine(load_network(backbone))
    at_least_px = 2 * backbone.preprocessing.size_px

    def load_pixels(i: int) -> NDArray[np.uint8]:
        data = read_unchanged(paths[i], hashes[i])
        return backbone.preprocessing.apply(decode_photo(data, at_least_px=at_least_px))

    pixels = [load_pixels(i) for i in range(min(N_IN_MEMORY, len(paths)))]

    def decode() -> None:
        with ThreadPoolExecutor(engine.n_workers) as pool:
            deque(pool.map(load_pixels, range(len(paths))), maxlen=0)

    def compute() -> None:
        deque(engine.stream(len(paths), lambda i: pixels[i % len(pixels)]), maxlen=0)

    def extract() -> None:
        deque(engine.stream(len(paths), load_pixels), maxlen=0)

    steps: dict[str, Callable[[], None]] = dict(zip(STEPS, (decode, compute, extract), strict=True))
    rates: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(n_repeats):
        for name, step in steps.items():
            started_s = time.perf_counter()
            step()
            rates[name].append(len(paths) / (time.perf_counter() - started_s))
    return rates


def measure_shares(rates: dict[str, list[float]]) -> list[float]:
    """Rate of extraction over that of its two steps one after the other, in each repeat."""
    triples = zip(*(rates[name] for name in STEPS), strict=True)
    return [extract * (1 / decode + 1 / network) for decode, network, extract in triples]


def report(rows: list[dict], n_photos: int) -> None:
    def show(values: list[float], form: str) -> str:
        numbers = (statistics.median(values), min(values), max(values))
        return "{} ({} to {})".format(*(format(number, form) for number in numbers))

    print("| Backbone | Decode, photos/s | Network, photos/s | Extract, photos/s | Share of the floor |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = [show(row[name], ",.0f") for name in STEPS]
        print(f"| {row['backbone']} | {' | '.join(cells)} | {show(row['share'], '.2f')} |")
    print(f"\nMedian (smallest to largest) of {len(rows[0]['share'])} repeats over {n_photos} photos.")
    print(f"Measured {datetime.now(UTC):%Y-%m-%d}: {describe_machine()}.")
    write_results("floor", {"n_photos": n_photos, "rows": rows})


if __name__ == "__main__":
    main()
