"""How time and memory grow with the photos, cold and warm, as whole processes.

    python bench/growth.py [--effort EFFORT] [N_PHOTOS ...]

The numbers of photos are 2,500, 25,000 and 100,000 where none is given. Photos are rendered, of 12 kinds at 224 px;
beyond 2,400 of them each is written again under another name with a comment in the file that makes its content new, so
that everything is read, decoded and computed for each. For each number the table shows the seconds of `pomona train`
from a cold cache by step, for few photos of a second run with a warm one, and the peak memory; then the exponent of
growth (1.0 is linear). The accuracy says nothing here: photos that look the same are on both sides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

from pomona.samples import SampleOptions, write_samples
from process import POMONA, measure, write_results

STEPS = ("read", "plan", "features", "fit", "evaluate", "save")
N_PER_KIND, N_KINDS, MOST_WARM = 200, 12, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_photos", type=int, nargs="*", default=[2_500, 25_000, 100_000])
    parser.add_argument("--effort", default="instant")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rendered = scratch / "rendered"
        write_samples(rendered, SampleOptions(n_per_kind=min(N_PER_KIND, max(2, min(asked.n_photos) // N_KINDS))))
        measure_size(scratch, rendered, 24, asked.effort)  # writes the network, which costs the same for every size
        for n_photos in asked.n_photos:
            rows.append(measure_size(scratch, rendered, n_photos, asked.effort))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(tabulate(rows))
    write_results("growth", {"effort": asked.effort, "rows": rows})


def write_photos(folder: Path, rendered: Path, n_photos: int) -> None:
    """Rendered photos again and again, each with a content of its own."""
    for kind in sorted({path.parent for path in rendered.rglob("*.jpg")}):
        contents = [path.read_bytes() for path in sorted(kind.glob("*.jpg"))]
        (folder / kind.name).mkdir(parents=True)
        for i in range(n_photos // N_KINDS):
            start, rest = contents[i % len(contents)][:2], contents[i % len(contents)][2:]
            comment = f"{kind.name} {i}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / kind.name / f"{i:06}.jpg").write_bytes(start + segment + rest)


def measure_size(scratch: Path, rendered: Path, n_photos: int, effort: str) -> dict:
    photos = scratch / f"photos-{n_photos}"
    write_photos(photos, rendered, n_photos)
    environment = {**os.environ, "POMONA_CACHE": str(scratch / "cache")}
    shutil.rmtree(scratch / "cache" / "features", ignore_errors=True)
    run = str(scratch / f"run-{n_photos}")
    command = [*POMONA, "train", str(photos), "--json", "--effort", effort, "--output", run]
    cold = measure(command, environment)
    warm = measure(command, environment) if n_photos <= MOST_WARM else cold
    shutil.rmtree(photos)
    return {
        "n_photos": n_photos,
        **{step: cold["result"]["seconds"][step] for step in STEPS},
        "cold_s": cold["wall_s"],
        "warm_s": warm["wall_s"] if warm is not cold else math.nan,
        "peak_gb": max(cold["peak_mb"], warm["peak_mb"]) / 1000,
        "accuracy": cold["result"]["accuracy"],
    }


def tabulate(rows: list[dict]) -> str:
    lines = ["| Photos | " + " | ".join(STEPS) + " | cold run | warm run | peak memory | accuracy |", "|---" * 11 + "|"]
    for row in rows:
        steps = " | ".join(f"{row[step]:.2f} s" for step in STEPS)
        times = f"{row['cold_s']:.1f} s | {row['warm_s']:.1f} s"
        lines.append(f"| {row['n_photos']:,} | {steps} | {times} | {row['peak_gb']:.2f} GB | {row['accuracy']:.3f} |")
    for name in ("features", "fit", "cold_s"):
        pairs = itertools.pairwise(rows)
        exponents = [math.log(b[name] / a[name]) / math.log(b["n_photos"] / a["n_photos"]) for a, b in pairs]
        lines.append(f"\nGrowth exponent of {name}: " + ", ".join(f"{exponent:.2f}" for exponent in exponents))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
