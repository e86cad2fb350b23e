"""How close extraction comes to its floor: decoding alone and the network alone, both on every core.

    python bench/floor.py [--photos N] [--repeats N] [EFFORT[:SIZE[:PRECISION]] ...]

All three are measured in turn, several times over, on the same photos: read, decode and resize without a network; the
network on pixels in memory; and features as `train` computes them from an empty cache, compiling and writing the cache
included. The share is the rate of the last over the rate that the two would reach one after the other. The table goes
to stdout, a dated JSON to bench/results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.effort import plan_embedding
from pomona.embedding import Embedding, load_network
from pomona.engine import Engine
from pomona.features import extract_vectors
from pomona.files import cache_folder, hash_file
from pomona.photo import read_unchanged
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
    parser.add_argument(
        "embeddings", nargs="*", default=["instant", "fast", "best"], metavar="EFFORT[:SIZE[:PRECISION]]"
    )
    parser.add_argument("--photos", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not GROCERY.is_dir():
        sys.exit(f"wanted the Grocery Store photos in {GROCERY}; name their folder's parent in POMONA_SHARED")
    chosen = {name: choose_embedding(name) for name in options.embeddings}
    paths = sorted((GROCERY / "train").rglob("*.jpg"))
    paths = paths[:: max(1, len(paths) // options.photos)][: options.photos]
    hashes = [hash_file(path) for path in paths]
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["POMONA_CACHE"] = cache
        for name, embedding in chosen.items():
            rates = measure_rates(embedding, paths, hashes, options.repeats)
            rows.append({"embedding": name, **rates, "share": measure_shares(rates)})
    report(rows, len(paths))


def choose_embedding(name: str) -> Embedding:
    """Embedding of `fast`, `fast:224` or `fast:224:f32`."""
    effort, *rest = name.split(":")
    if len(rest) > 2 or not all(part.isdecimal() for part in rest[:1]):
        sys.exit(f"wanted EFFORT, EFFORT:SIZE or EFFORT:SIZE:PRECISION, such as fast:224, got {name}")
    size_px = int(rest[0]) if rest else None
    return plan_embedding(effort, size_px=size_px, precision=rest[1] if len(rest) == 2 else "int8")


def measure_rates(embedding: Embedding, paths: list[Path], hashes: list[str], n_repeats: int) -> dict[str, list[float]]:
    """Photos per second of each step, a value a repeat; the steps take turns, so that all see the same machine."""
    engine = Engine(load_network(embedding))

    def load_pixels(i: int) -> NDArray[np.uint8]:
        return embedding.preprocessing.read(read_unchanged(paths[i], hashes[i]))

    pixels = [load_pixels(i) for i in range(min(N_IN_MEMORY, len(paths)))]

    def decode() -> None:
        with ThreadPoolExecutor(engine.n_workers) as pool:
            deque(pool.map(load_pixels, range(len(paths))), maxlen=0)

    def compute() -> None:
        deque(engine.stream(len(paths), lambda i: pixels[i % len(pixels)]), maxlen=0)

    def extract() -> None:
        shutil.rmtree(cache_folder() / "features", ignore_errors=True)
        extract_vectors(hashes, load_pixels, embedding)

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

    print("| Features | Decode, photos/s | Network, photos/s | Extract, photos/s | Share of the floor |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = [show(row[name], ",.0f") for name in STEPS]
        print(f"| {row['embedding']} | {' | '.join(cells)} | {show(row['share'], '.2f')} |")
    print(f"\nMedian (smallest to largest) of {len(rows[0]['share'])} repeats over {n_photos} photos.")
    print(f"Measured {datetime.now(UTC):%Y-%m-%d}: {describe_machine()}.")
    write_results("floor", {"n_photos": n_photos, "rows": rows})


if __name__ == "__main__":
    main()
