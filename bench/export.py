"""Whether an export answers as its bundle, and what its formats and the resize in the graph cost.

    python bench/export.py [--int8 RUN --float RUN] [--photos 40]

Exports a recogniser of the Grocery Store photos in 8 bits and one in float32 in each format, tried on the val part;
trains both unless they are named. Then, in one run on one thread: a photo through the graph with its resize, against
the same with the resize by Pillow; and what it would change to decode a large JPEG whole instead of at a fraction.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pomona import training
from pomona.bundle import load_bundle
from pomona.effort import Machine
from pomona.engine import import_onnxruntime, open_core
from pomona.export import ExportOptions, export_bundle
from pomona.export.onnx_model import build_onnx
from pomona.model_file import MODEL_NAME
from pomona.photo import decode_photo
from pomona.training import TrainOptions, train
from process import ROOT, describe_machine, tabulate, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from pomona.bundle import Bundle

GROCERY = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared")) / "data" / "grocery"
FORMATS = ("onnx", "openvino", "int8", "docker")
N_ROUNDS = 5
LARGER = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--float", type=Path)
    parser.add_argument("--data", type=Path, default=GROCERY)
    parser.add_argument("--photos", type=int, default=40)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"wanted photos in {options.data}, got no folder")
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            "int8": options.int8 or make_run(options.data, Path(scratch), "int8"),
            "f32": options.float or make_run(options.data, Path(scratch), "f32"),
        }
        exports = [
            export(run, precision, kind, options.data, Path(scratch))
            for precision, run in runs.items()
            for kind in FORMATS
        ]
        bundles = {precision: load_bundle(run, n_workers=1) for precision, run in runs.items()}
        paths = sorted((options.data / "val").rglob("*.jpg")) or sorted(options.data.rglob("*.jpg"))
        photos = [path.read_bytes() for path in paths[:: max(1, len(paths) // options.photos)]]
        costs = [row for precision, bundle in bundles.items() for row in measure_resize(bundle, precision, photos)]
        whole = measure_whole(bundles["f32"], photos)
    print(tabulate([*list_exports(exports), *list_costs(costs), *list_whole(whole)]))
    print(describe_machine())
    write_results("export", {"exports": exports, "resize": costs, "whole": whole, "n_timed": len(photos)})


def make_run(data: Path, scratch: Path, precision: str) -> Path:
    """A `fast` run in one precision, whatever this machine prefers."""
    rates = (2.0, 1.0) if precision == "int8" else (1.0, 2.0)
    training.measure_machine = lambda _n_workers: Machine(*rates, 1e9)
    return train(TrainOptions(data=data, output=scratch / precision, effort="fast")).bundle.folder


def export(run: Path, precision: str, kind: str, data: Path, scratch: Path) -> dict:
    """One export: parity in each runtime, seconds and bytes."""
    started_s = time.perf_counter()
    result = export_bundle(ExportOptions(run=run, format=kind, output=scratch / f"{precision}-{kind}", data=data))
    seconds = {stage.name: stage.seconds for stage in result.stages}
    own = {name: size for name, size in result.files.items() if not name.startswith("golden/")}
    return {
        "precision": precision,
        "format": kind,
        "seconds": time.perf_counter() - started_s,
        "write_s": seconds["save"],
        "bytes": sum(own.values()),
        "golden_bytes": sum(result.files.values()) - sum(own.values()),
        "runtimes": [parity.to_dict() for parity in result.parities],
    }


def measure_resize(bundle: Bundle, precision: str, photos: list[bytes]) -> list[dict]:
    """Seconds a photo from decoded pixels to an answer, the resize in the graph and by Pillow, in turn."""
    decoded = [decode_photo(photo, at_least_px=bundle.preprocessing.decode_px) for photo in photos]
    inside, outside = build_onnx(bundle), (bundle.folder / MODEL_NAME).read_bytes()
    apply = bundle.preprocessing.apply
    rows = []
    for runtime, open_graph in (("ONNX Runtime", open_onnx), ("OpenVINO", open_openvino)):
        whole, network = open_graph(inside), open_graph(outside)
        ways: dict[str, Callable[[np.ndarray], object]] = {
            "inside": lambda pixels, run=whole: run(pixels[None]),
            "outside": lambda pixels, run=network: run(apply(pixels)[None]),
            "pillow": apply,
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(N_ROUNDS):
            for name, way in ways.items():
                started_s = time.perf_counter()
                for pixels in decoded:
                    way(pixels)
                taken[name].append((time.perf_counter() - started_s) / len(decoded))
        best = {name: min(times_s) for name, times_s in taken.items()}
        rows.append({"precision": precision, "runtime": runtime, **best, "ratio": best["inside"] / best["outside"]})
    return rows


def open_onnx(content: bytes) -> Callable[[np.ndarray], object]:
    onnxruntime = import_onnxruntime("to measure it")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, settings)
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels})


def open_openvino(content: bytes) -> Callable[[np.ndarray], object]:
    core = open_core()
    model = core.read_model(content)
    shape = model.input(0).partial_shape
    model.reshape([1, *(-1 if shape[axis].is_dynamic else shape[axis].get_length() for axis in (1, 2)), 3])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda pixels: request.infer({"pixels": pixels})


def measure_whole(bundle: Bundle, photos: list[bytes]) -> dict:
    """Large JPEGs decoded whole instead of at a fraction: what moves, and how long decoding takes."""
    large = [enlarge(photo) for photo in photos]
    decode_px = bundle.preprocessing.decode_px
    answers, taken_s = {}, {}
    for name, at_least_px in (("fraction", decode_px), ("whole", None)):
        started_s = time.perf_counter()
        decoded = [decode_photo(photo, at_least_px=at_least_px) for photo in large]
        squares = [bundle.preprocessing.apply(pixels) for pixels in decoded]
        taken_s[name] = (time.perf_counter() - started_s) / len(large)
        answers[name] = bundle.whole_engine.run(np.stack(squares))["probabilities"]
    moved = np.abs(answers["whole"] - answers["fraction"]).max(axis=1)
    same = answers["whole"].argmax(axis=1) == answers["fraction"].argmax(axis=1)
    return {
        "n": len(large),
        "seconds": taken_s,
        "time_ratio": taken_s["whole"] / taken_s["fraction"],
        "largest": float(moved.max()),
        "mean": float(moved.mean()),
        "n_same": int(same.sum()),
    }


def enlarge(photo: bytes) -> bytes:
    """The photo as a camera of today would have it: larger."""
    picture = Image.fromarray(decode_photo(photo))
    stream = io.BytesIO()
    picture.resize((picture.width * LARGER, picture.height * LARGER), Image.Resampling.LANCZOS).save(
        stream, "JPEG", quality=90
    )
    return stream.getvalue()


def list_exports(exports: list[dict]) -> list[tuple[str, str, str]]:
    rows = []
    for one in exports:
        for found in one["runtimes"]:
            paired = found["paired"] or {}
            is_loose = found["tie_band"] > 0.01
            said = (
                f"{found['n_agreed']} of {found['n_decided']} labels outside {found['tie_band']:g}; a probability "
                f"{found['largest']:.1g} at most, {found['mean']:.1g} on average"
            )
            said += f"; {100 * paired['difference']:+.1f} points right on {paired['n']}" if paired else ""
            goal = "all labels; loss at most 0.3 points" if is_loose else "all labels; 1e-3"
            rows.append((f"{one['precision']} run as {one['format']}, {found['runtime']}", goal, said))
        size = f"{one['bytes'] / 1e6:.1f} MB"
        size += f" and {one['golden_bytes'] / 1e6:.1f} MB of golden files" if one["golden_bytes"] else ""
        rows.append((f"{one['precision']} run as {one['format']}", "-", f"{one['seconds']:.0f} s, {size}"))
    return rows


def list_costs(costs: list[dict]) -> list[tuple[str, str, str]]:
    return [
        (
            f"Resize in the graph over resize by Pillow, {one['precision']}, {one['runtime']}, one thread",
            "printed",
            f"{one['ratio']:.2f} times a photo ({1e3 * one['inside']:.1f} against {1e3 * one['outside']:.1f} ms)",
        )
        for one in costs
    ]


def list_whole(whole: dict) -> list[tuple[str, str, str]]:
    said = (
        f"{whole['n_same']} of {whole['n']} labels the same, a probability {whole['largest']:.2g} at most, "
        f"{whole['mean']:.2g} on average; {whole['time_ratio']:.1f} times as long"
    )
    return [("Large JPEGs decoded whole instead of at a fraction, f32", "printed", said)]


if __name__ == "__main__":
    main()
