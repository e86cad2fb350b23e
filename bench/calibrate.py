"""Make what ships of each backbone: int8 ranges, principal axes, averages; and hold int8 against float32.

    python bench/calibrate.py [--write]

Photos of every kind that the shared folder has, and rendered ones, are run at three input sizes; `--write` puts ranges
and statistics into the package. The table is of photos that they have not seen, and a dated JSON goes to bench/results.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from pomona.backbone import BACKBONES, Backbone, find_backbone
from pomona.calibration import calibrate
from pomona.embedding import N_PROJECTED, SECOND_ORDER_CUTS, Embedding, Statistics, build_network
from pomona.engine import Engine
from pomona.int8 import Range
from pomona.photo import read_photo
from pomona.samples import SampleOptions, write_samples
from process import ROOT, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
FOLDERS = ("grocery/train", "fruit_boxes", "fruits360_3body", "not_fruit")
SIZES_PX = (224, 320, 416)
N_EACH, N_EACH_CHECKED = 100, 12
SEED = 0
TARGET = ROOT / "src" / "pomona" / "ranges.json"
STATISTICS = TARGET.with_name("statistics.safetensors")


def main() -> None:
    if not (SHARED / "data").is_dir():
        sys.exit(f"wanted photos in {SHARED / 'data'}; name that folder's parent in POMONA_SHARED")
    photos, others = load_photos()
    ranges = {backbone.name: find_ranges(backbone, photos) for backbone in BACKBONES}
    content = {
        "made_by": "bench/calibrate.py",
        "photos": f"{N_EACH} each of {', '.join(FOLDERS)} and rendered ones, seed {SEED}; one size each, in turn",
        "sizes_px": SIZES_PX,
        "low_high": "means of the photos' least and greatest values in float32",
        "backbones": {name: {one.tensor: one[1:] for one in found} for name, found in ranges.items()},
    }
    if "--write" in sys.argv:
        TARGET.write_text(show_json(content), "utf-8")
        tensors = [find_statistics(backbone, photos).to_tensors(backbone.name) for backbone in BACKBONES]
        save_file({key: value for some in tensors for key, value in some.items()}, STATISTICS)
    rows = [
        compare(find_backbone(backbone.name, size_px=size_px), ranges[backbone.name], others)
        for backbone in BACKBONES
        for size_px in (backbone.preprocessing.size_px, 320)
    ]
    print("| Backbone | mean cosine | least | SQNR of features | of each cut | of the mean error | rate to f32 |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    write_results("calibrate", {"rows": rows, "ranges": content})


def load_photos() -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Photos to calibrate on and others, as many of each kind, in one random order."""
    chosen: list[NDArray[np.uint8]] = []
    others: list[NDArray[np.uint8]] = []
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        write_samples(Path(scratch) / "rendered", SampleOptions(n_per_kind=20))
        for folder in (*(SHARED / "data" / name for name in FOLDERS), Path(scratch)):
            paths = sorted(path for path in folder.rglob("*") if path.suffix in {".jpg", ".png"})
            order = random.permutation(len(paths))[: N_EACH + N_EACH_CHECKED]
            read = [read_photo(paths[i]) for i in order]
            chosen += read[:N_EACH]
            others += read[N_EACH:]
    return [chosen[i] for i in random.permutation(len(chosen))], others


def find_ranges(backbone: Backbone, photos: list[NDArray[np.uint8]]) -> tuple[Range, ...]:
    """Means of the ranges at each size."""
    found = []
    for k, size_px in enumerate(SIZES_PX):
        sized = find_backbone(backbone.name, size_px=size_px)
        mine = photos[k :: len(SIZES_PX)]
        found.append(calibrate(sized, (sized.preprocessing.apply(photo) for photo in mine)))
    return tuple(
        Range(same[0].tensor, *(round(float(np.mean([one[i] for one in same])), 3) for i in (1, 2)))
        for same in zip(*found, strict=True)
    )


def find_statistics(backbone: Backbone, photos: list[NDArray[np.uint8]]) -> Statistics:
    """Principal axes of each cut over the positions of all photos, and moments of the averages."""
    sums = {cut: [0.0, 0.0, 0] for cut in SECOND_ORDER_CUTS}
    averages: list[NDArray[np.float32]] = []
    for k, size_px in enumerate(SIZES_PX):
        sized = find_backbone(backbone.name, size_px=size_px)
        for photo in photos[k :: len(SIZES_PX)]:
            found = run_cuts(sized, size_px)(sized.preprocessing.apply(photo)[None])
            averages.append(found["features"][0])
            for cut, total in sums.items():
                values = found[cut][0].reshape(len(found[cut][0]), -1).astype(np.float64)
                total[0] += values @ values.T / values.shape[1]
                total[1] += values.mean(axis=1)
                total[2] += 1
    projections, means = {}, {}
    for cut, (square, mean, n) in sums.items():
        means[cut] = mean / n
        _, axes = np.linalg.eigh(square / n - np.outer(mean, mean) / n**2)
        projections[cut] = axes[:, ::-1][:, :N_PROJECTED].T
    spread = np.std(averages, axis=0)
    return Statistics(projections, means, np.mean(averages, axis=0), np.maximum(spread, 1e-2 * spread.mean()))


@functools.cache
def run_cuts(backbone: Backbone, size_px: int) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """The float32 network with every cut as an output."""
    import onnx

    assert backbone.preprocessing.size_px == size_px
    model = onnx.load_from_string(build_network(Embedding((backbone,))))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(cut.name) for cut in backbone.cuts)
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(model, Path(scratch) / "network.onnx")
        engine = Engine(Path(scratch) / "network.onnx")
    return lambda pixels: dict(engine.run(pixels))


def compare(backbone: Backbone, ranges: tuple[Range, ...], photos: list[NDArray[np.uint8]]) -> tuple[str, ...]:
    """One row: int8 against float32."""
    pixels = np.stack([backbone.preprocessing.apply(photo) for photo in photos])
    wanted, f32_s = compute(backbone, pixels)
    got, int8_s = compute(replace(backbone, precision="int8", ranges=ranges), pixels)
    a, b = got["features"], wanted["features"]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    cuts = " ".join(f"{measure_sqnr(got[cut.name], wanted[cut.name]):.1f}" for cut in backbone.cuts)
    shift = np.square((a - b).mean(0)).sum() / np.square(a - b).sum(1).mean()
    return (
        f"{backbone.name}@{backbone.preprocessing.size_px}",
        f"{cosines.mean():.4f}",
        f"{cosines.min():.4f}",
        f"{measure_sqnr(a, b):.1f} dB",
        f"{cuts} dB",
        f"{shift:.0%}",
        f"{f32_s / int8_s:.2f}",
    )


def measure_sqnr(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Signal to quantisation noise in dB."""
    return float(10 * np.log10(np.square(wanted).sum() / np.square(got - wanted).sum()))


def compute(backbone: Backbone, pixels: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Features and activations at each cut, and the CPU seconds that the features alone take."""
    import onnx

    model = onnx.load_from_string(build_network(Embedding((backbone,))))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "network.onnx"
        onnx.save(model, path)
        engine = Engine(path, n_workers=1)
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(cut.name) for cut in backbone.cuts)
        onnx.save(model, path)
        found = dict(Engine(path).run(pixels))
    seconds = []
    for _ in range(8):
        started_s = time.process_time()
        engine.run(pixels[:20])
        seconds.append(time.process_time() - started_s)
    return found, min(seconds)


def show_json(content: dict) -> str:
    """JSON with a line a block."""
    text = json.dumps(content, indent=1)
    return text.replace("[\n    ", "[").replace(",\n    ", ", ").replace("\n   ]", "]") + "\n"


if __name__ == "__main__":
    main()
