"""The figures of the spine: from photos to a recogniser on the Grocery Store photos, as whole processes.

    python bench/spine.py [--readme]

Each figure is measured in this one run on this machine. Features are held against a floor measured beside them:
decoding alone plus the network alone, both on every core. `--readme` writes the table into both READMEs; a dated JSON
goes to bench/results.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from process import POMONA, ROOT, describe_machine, measure, write_results

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
GROCERY = SHARED / "data" / "grocery"
N_FLOOR = 600


def main() -> None:
    if not GROCERY.is_dir():
        sys.exit(f"wanted the Grocery Store photos in {GROCERY}; name their folder's parent in POMONA_SHARED")
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = {**os.environ, "POMONA_CACHE": str(folder / "cache")}
        helps = [measure([*POMONA, "--help"], environment)["wall_s"] for _ in range(9)]
        rows.append(("`pomona --help`, median of 9", "<= 0.3 s", f"{statistics.median(helps):.2f} s"))

        demo = measure([*POMONA, "demo", "--output", str(folder / "demo")], environment)
        rows.append(("`pomona demo`, cold cache", "<= 60 s", f"{demo['wall_s']:.1f} s"))

        # The first network is written once a machine; the demo has just done that for `fast`.
        command = [*POMONA, "train", str(GROCERY), "--json", "--output", str(folder / "fast")]
        floor_before = measure_floor(environment)
        cold = measure(command, environment)
        floor_after = measure_floor(environment)
        floors = [sum(pair) / 2 for pair in zip(floor_before, floor_after, strict=True)]
        n_photos = cold["result"]["n"] + 2640
        features_s = cold["result"]["seconds"]["features"]
        floor_s = n_photos / floors[0] + n_photos / floors[1]
        rows.append(
            (
                f"Features, fast; floor: decoding ({floors[0]:,.0f}/s) then network ({floors[1]:,.0f}/s) alone",
                ">= 0.85 of the floor",
                f"{floor_s / features_s:.2f} ({n_photos / features_s:,.0f} photos/s)",
            )
        )
        rows.append(("Fit, three strengths", "<= 1.5 s", f"{cold['result']['seconds']['fit']:.1f} s"))
        warm = [measure(command, environment) for _ in range(3)]
        rows.append(("Second run, warm cache, whole process, median of 3", "<= 4 s", f"{median(warm, 'wall_s'):.1f} s"))
        rows += show_effort("fast", cold)
        samples_rate = measure_samples()
        rows.append(("Rendered photos at 224 px, one core", ">= 50 photos/s", f"{samples_rate:.0f} photos/s"))
    report(rows)


def median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def measure_floor(environment: dict[str, str]) -> tuple[float, float]:
    """Photos per second of decoding and resizing alone, and of the network alone, on every core."""
    os.environ["POMONA_CACHE"] = environment["POMONA_CACHE"]
    from pomona.effort import choose_precision, measure_machine, plan_embedding
    from pomona.embedding import load_network
    from pomona.engine import Engine, count_cpus

    embedding = plan_embedding("fast", precision=choose_precision(measure_machine()))
    paths = sorted((GROCERY / "train").rglob("*.jpg"))[:: 2640 // N_FLOOR][:N_FLOOR]
    with ThreadPoolExecutor(count_cpus()) as pool:
        started_s = time.perf_counter()
        pixels = list(pool.map(lambda path: embedding.preprocessing.read(path.read_bytes()), paths))
        decode_s = time.perf_counter() - started_s
    engine = Engine(load_network(embedding))
    engine.run(np.stack(pixels[:8]))
    started_s = time.perf_counter()
    for _ in engine.stream(len(pixels), pixels.__getitem__):
        pass
    return len(paths) / decode_s, len(paths) / (time.perf_counter() - started_s)


def measure_samples() -> float:
    from pomona.samples import KINDS, SampleOptions, write_samples

    with tempfile.TemporaryDirectory() as scratch:
        started_s = time.perf_counter()
        write_samples(Path(scratch) / "photos", SampleOptions(n_per_kind=10, kinds=KINDS[:12], n_workers=1))
        return 120 / (time.perf_counter() - started_s)


def show_effort(effort: str, run: dict) -> list[tuple[str, str, str]]:
    """Time from a cache without features, and accuracy."""
    cost = f"{run['wall_s']:.1f} s, {run['peak_mb'] / 1000:.2f} GB"
    return [
        (f"Cold run, {effort}, whole process, peak memory", "<= 2 GB", cost),
        (f"Validation accuracy, {effort}", "-", show_accuracy(run["result"])),
    ]


def show_accuracy(result: dict) -> str:
    low, high = result["accuracy_interval"]
    return f"{result['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {result['n']})"


def report(rows: list[tuple[str, str, str]]) -> None:
    table = ["| Figure | Goal | Measured |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    text = "\n".join([*table, "", f"Measured {datetime.now(UTC):%Y-%m-%d}: {describe_machine()}."])
    print(text)
    write_results("spine", {"rows": rows})
    if "--readme" in sys.argv:
        for name in ("README.md", "README.zh.md"):
            path = ROOT / name
            head, rest = path.read_text("utf-8").split("<!-- bench:begin -->")
            tail = rest.split("<!-- bench:end -->")[1]
            path.write_text(f"{head}<!-- bench:begin -->\n{text}\n<!-- bench:end -->{tail}", "utf-8")


if __name__ == "__main__":
    main()
