"""How time and memory grow from 1x to 10x to 100x the photos, cold and warm, as whole processes.

    python bench/growth.py [N_PHOTOS]

N_PHOTOS (default 120) is 1x: rendered photos of 12 kinds at 224 px. For each size the table shows the seconds of
`pomona train` from a cold cache by step, of a second run with a warm one, and the peak memory; then the exponent of
growth between the sizes (1.0 is linear).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import tempfile
from pathlib import Path

from pomona.samples import SampleOptions, write_samples
from process import POMONA, measure, write_results

STEPS = ("read", "features", "fit", "evaluate", "save")


def main() -> None:
    smallest = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        warm_up(Path(scratch))
        for factor in (1, 10, 100):
            rows.append(measure_size(Path(scratch), smallest * factor))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(tabulate(rows))
    write_results("growth", {"rows": rows})


def warm_up(scratch: Path) -> None:
    """Convert the network once: it costs the same for every size."""
    measure_size(scratch, 24)


def measure_size(scratch: Path, n_photos: int) -> dict:
    photos = scratch / f"photos-{n_photos}"
    write_samples(photos, SampleOptions(n_per_kind=n_photos // 12))
    environment = {**os.environ, "POMONA_CACHE": str(scratch / "cache")}
    for features in (scratch / "cache" / "features").glob("*"):
        features.unlink()
    command = [*POMONA, "train", str(photos), "--json", "--output", str(scratch / f"run-{n_photos}")]
    cold = measure(command, environment)
    warm = measure(command, environment)
    return {
        "n_photos": n_photos,
        **{step: cold["result"]["seconds"][step] for step in STEPS},
        "cold_s": cold["wall_s"],
        "warm_s": warm["wall_s"],
        "peak_gb": max(cold["peak_mb"], warm["peak_mb"]) / 1000,
        "accuracy": cold["result"]["accuracy"],
    }


def tabulate(rows: list[dict]) -> str:
    lines = ["| Photos | " + " | ".join(STEPS) + " | cold run | warm run | peak memory | accuracy |", "|---" * 10 + "|"]
    for row in rows:
        steps = " | ".join(f"{row[step]:.2f} s" for step in STEPS)
        times = f"{row['cold_s']:.1f} s | {row['warm_s']:.1f} s"
        lines.append(f"| {row['n_photos']:,} | {steps} | {times} | {row['peak_gb']:.2f} GB | {row['accuracy']:.3f} |")
    for name in ("features", "fit", "cold_s", "warm_s"):
        pairs = itertools.pairwise(rows)
        exponents = [math.log(b[name] / a[name]) / math.log(b["n_photos"] / a["n_photos"]) for a, b in pairs]
        lines.append(f"\nGrowth exponent of {name}: " + ", ".join(f"{exponent:.2f}" for exponent in exponents))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
