"""Training by gradients: how far each depth comes, and how fast a step is beside its floor.

    python bench/finetune.py [--only step,depths,held-out] [--depths NAMES] [--seeds N] [--minutes N] [--backbone NAME]

depths  `pomona train --tune head | tail | full` on the Grocery Store photos, each a whole process with an empty cache;
        learnt on train, measured on val. `tail` and `full` end after some minutes, or after so many epochs as
        `--epochs` says. `frozen` is `--effort best` beside them.
held-out  the same on train alone: like photos of a class are put in groups, and a quarter of the groups is held out.
step    photos a second of a step of the tail: activations from the cache, forward, backward, update; its own
        multiplications at the rate of large products of matrices, measured in turn, are the floor; and the same layers
        trained without the cache of the trunk, as plain PyTorch does it: decoded and run through the frozen layers in
        every epoch, depthwise filters trained, float32.

The tables go to stdout, a dated JSON to bench/results.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pomona.activations import View, extract_activations
from pomona.backbone import PIXELS, find_backbone
from pomona.batches import crop_windows, draw_windows, make_generator
from pomona.dataset import load_dataset
from pomona.effort import plan_embedding
from pomona.embedding import Embedding
from pomona.features import extract_features
from pomona.network import load_network_above, measure_rates
from pomona.optimization import measure_loss
from process import POMONA, ROOT, describe_machine, measure, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from pomona.backbone import Backbone
    from pomona.network import Network

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
GROCERY = SHARED / "data" / "grocery"
CUT, SIZE_PX, WINDOW_SHARE, BATCH = "stage3", 288, 0.78, 32
GEMM_SIDE = 2048
N_PHOTOS = 256
COARSE_LEVEL = 1
LIKE_DISTANCE = 0.36
"""Cosine between features of groups, less than 1, below which photos count as like: the frozen `fast` is then right on
0.84 of what is held out, as on val."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", default="step,depths")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each depth")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10, help="time of tail and of full")
    parser.add_argument("--epochs", type=int, help="epochs of tail and of full, instead of a time")
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--depths", default="frozen,head,tail,full")
    options = parser.parse_args()
    if not GROCERY.is_dir():
        sys.exit(f"wanted the Grocery Store photos in {GROCERY}; name their folder's parent in POMONA_SHARED")
    content: dict[str, Any] = {"options": vars(options)}
    with tempfile.TemporaryDirectory() as scratch:
        if "step" in options.only.split(","):
            content["step"] = measure_step(options.backbone, Path(scratch))
            print(tabulate_step(content["step"]), "\n")
        for name, write_data in (("depths", lambda _: GROCERY), ("held-out", write_held_out)):
            if name in options.only.split(","):
                content[name] = measure_depths(write_data(Path(scratch)), options, Path(scratch) / name)
                print(f"Measured on {content[name][0]['runs'][0]['n']} photos ({name}).\n")
                print(tabulate_depths(content[name]), "\n")
    write_results("finetune", content)
    print(f"\nMeasured {datetime.now(UTC):%Y-%m-%d}: {describe_machine()}.")


# --- depths ---------------------------------------------------------------------------------------------------------


def measure_depths(data: Path, options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    rows = []
    for depth in options.depths.split(","):
        how = ["--effort", "best"] if depth == "frozen" else ["--tune", depth, "--backbone", options.backbone]
        if depth in {"tail", "full"}:
            how += ["--epochs", f"{options.epochs}"] if options.epochs else ["--time", f"{options.minutes:g}min"]
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            print(f"{depth}, seed {seed}", file=sys.stderr)
            place = scratch / f"{depth}-{seed}"
            command = [*POMONA, "train", str(data), "--output", str(place / "run"), *how]
            cpu_s = _count_cpu()
            found = measure(
                [*command, "--seed", str(seed), "--json"], os.environ | {"POMONA_CACHE": str(place / "cache")}
            )
            result = found["result"]
            runs.append(
                {
                    "wall_s": found["wall_s"],
                    "cpu_s": _count_cpu() - cpu_s,
                    "peak_mb": found["peak_mb"],
                    "n": result["n"],
                    "accuracy": result["accuracy"],
                    "coarse": result["levels"][COARSE_LEVEL]["accuracy"],
                    "seconds": result["seconds"],
                    "notes": result["notes"],
                }
            )
            print(runs[-1], file=sys.stderr)
            shutil.rmtree(place / "cache")
        rows.append({"depth": depth, "runs": runs})
    return rows


def write_held_out(scratch: Path) -> Path:
    """Table of the train photos in which a quarter of the groups of like photos is val."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.model_selection import StratifiedGroupKFold

    os.environ["POMONA_CACHE"] = str(scratch / "cache")
    dataset = load_dataset(GROCERY).part("train")
    features = extract_features(dataset, plan_embedding("fast"))
    vectors = features.vectors - features.vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels, groups = features.dataset.labels, np.zeros(len(vectors), int)
    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=LIKE_DISTANCE, metric="cosine", linkage="average"
    )
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        groups[rows] = groups.max() + 1 + (clustering.fit_predict(vectors[rows]) if len(rows) > 1 else 0)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0).split(vectors, labels, groups)
    fitted, held_out = next(folds)
    held_out = held_out[np.isin(labels[held_out], labels[fitted])]
    path = scratch / "held-out.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "label", "split"))
        for split, rows in (("train", fitted), ("val", held_out)):
            photos = [features.dataset.photos[row] for row in rows]
            writer.writerows((str(one.path), one.path.parent.relative_to(GROCERY / "train"), split) for one in photos)
    return path


def _count_cpu() -> float:
    """Seconds of every core in processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def tabulate_depths(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| Trained | Time | CPU-seconds | Peak memory | Accuracy, 81 classes | 43 coarse ones |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:

        def show(name: str, form: str, factor: float = 1.0, runs: list[dict[str, float]] = row["runs"]) -> str:
            values = sorted(factor * run[name] for run in runs)
            middle = format(statistics.median(values), form)
            return middle if len(values) == 1 else f"{middle} ({values[0]:{form}} to {values[-1]:{form}})"

        cells = (
            show("wall_s", ".0f"),
            show("cpu_s", ".0f"),
            show("peak_mb", ".1f", 1e-3),
            show("accuracy", ".3f"),
            show("coarse", ".3f"),
        )
        lines.append(f"| `{row['depth']}` | {cells[0]} s | {cells[1]} | {cells[2]} GB | {cells[3]} | {cells[4]} |")
    return "\n".join(lines)


# --- steps ----------------------------------------------------------------------------------------------------------


def measure_step(name: str, scratch: Path) -> dict[str, float | str]:
    os.environ["POMONA_CACHE"] = str(scratch / "cache")
    backbone = replace(find_backbone(name, size_px=SIZE_PX), precision="int8")
    backbone = replace(backbone, pooled=(backbone.cuts[-1].name,))
    embedding = Embedding((backbone,))
    dataset = load_dataset(GROCERY)
    photos = tuple(photo for photo in dataset.photos if photo.split == "train")
    dataset = replace(dataset, photos=photos[:: len(photos) // N_PHOTOS][:N_PHOTOS])

    started_s = time.perf_counter()
    found = extract_activations(dataset, backbone, CUT, View(SIZE_PX))
    trunk_rate = found.n_computed / (time.perf_counter() - started_s)
    maps = torch.from_numpy(found.values).permute(0, 3, 1, 2)
    window = round(WINDOW_SHARE * maps.shape[2])
    shape = (maps.shape[1], window, window)
    formats = measure_rates(embedding, CUT, shape, n_photos=16)
    dtype = torch.bfloat16 if formats["bf16"] > formats["f32"] else torch.float32

    tail = load_network_above(embedding, CUT, dtype=dtype)
    generator = make_generator(0)

    def draw() -> torch.Tensor:
        rows = generator.integers(0, len(found.rows), BATCH)
        windows = draw_windows(BATCH, maps.shape[2], maps.shape[2], window, generator)
        return crop_windows(maps, windows, rows=found.rows[rows], dtype=dtype)

    plain = _PlainNetwork(backbone)
    steps = _make_step(tail, draw), _make_step(plain.tail, lambda: plain.draw(dataset, generator, window))
    side = torch.ones(GEMM_SIDE, GEMM_SIDE, dtype=dtype)
    rates: list[list[float]] = [[], [], []]
    for _ in range(4):  # in turn, so that noise meets all of them
        for found_rates, step in zip(rates, steps, strict=False):
            found_rates.append(BATCH / _time(step))
        rates[2].append(GEMM_SIDE**3 / _time(lambda: side @ side))
    tail_rate, plain_rate, gemm_rate = (max(values[1:]) for values in rates)
    work = _count_work(tail, shape)
    return {
        "backbone": name,
        "format": str(dtype).removeprefix("torch."),
        "photos_per_s": tail_rate,
        "floor_per_s": gemm_rate / work,
        "gemm_g_per_s": gemm_rate / 1e9,
        "multiplications_m": work / 1e6,
        "f32_per_s": formats["f32"],
        "bf16_per_s": formats["bf16"],
        "trunk_per_s": trunk_rate,
        "without_cache_per_s": plain_rate,
    }


class _PlainNetwork:
    """The same layers without the cache: each batch is decoded and run through what is frozen."""

    def __init__(self, backbone: Backbone) -> None:
        plain = replace(backbone, precision="f32")
        self.preprocessing = plain.preprocessing
        self.whole = load_network_above(Embedding((plain,)), PIXELS)
        self.tail = load_network_above(Embedding((plain,)), CUT)
        for convolution in self.tail.module.modules():
            if getattr(convolution, "is_frozen", False):
                convolution.is_frozen = False
                convolution.weight.requires_grad_(True)

    def draw(self, dataset: Any, generator: np.random.Generator, window: int) -> torch.Tensor:
        rows = generator.integers(0, len(dataset.photos), BATCH)
        pixels = np.stack([self.preprocessing.read(dataset.photos[row].path.read_bytes()) for row in rows])
        scaled = self.whole.scale_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
        side = window * SIZE_PX // round(window / WINDOW_SHARE)
        x = scaled[:, :, :side, :side].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            x = torch.nn.functional.relu6(self.whole.module.stem(x))
            for block, convolutions in zip(self.whole.module.described, self.whole.module.blocks, strict=True):
                shortcut = x
                for convolution in convolutions[:-1]:
                    x = torch.nn.functional.relu6(convolution(x))
                x = convolutions[-1](x)
                x = x + shortcut if block.is_residual else x
                if block.name == CUT:
                    break
        return x


def _make_step(network: Network, draw: Callable[[], torch.Tensor]) -> Callable[[], None]:
    parameters = [p for p in network.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        features = network.module(draw())
        measure_loss(features, torch.full_like(features, 1 / features.shape[1]), loss="mse").backward()
        optimizer.step()

    return step


def _time(step: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    step()
    return time.perf_counter() - started_s


def _count_work(network: Network, shape: tuple[int, ...]) -> float:
    """Multiplications of a step on one photo: forward, gradient of the input, and of the weights that are trained."""
    counted = 0.0

    def count(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        weight = module.weight
        counted += (3 if weight.requires_grad else 2) * weight[0].numel() * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.module.modules() if hasattr(m, "place")]
    with torch.no_grad():
        network.module(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return counted


def tabulate_step(row: dict[str, Any]) -> str:
    share = row["photos_per_s"] / row["floor_per_s"]
    lines = [
        f"| A step of the tail of {row['backbone']}, {SIZE_PX} px, above {CUT} | Photos/s |",
        "|---|---|",
        f"| As it trains ({row['format']}) | {row['photos_per_s']:.0f} |",
        (
            f"| Floor: {row['multiplications_m']:.0f} M multiplications at {row['gemm_g_per_s']:.0f} G/s | "
            f"{row['floor_per_s']:.0f}; share {share:.2f} |"
        ),
        f"| Forward and backward alone, float32; bfloat16 | {row['f32_per_s']:.0f}; {row['bf16_per_s']:.0f} |",
        f"| Trunk, once a photo and view | {row['trunk_per_s']:.0f} |",
        (
            f"| The same layers without the cache, plain PyTorch | {row['without_cache_per_s']:.0f}; "
            f"{row['photos_per_s'] / row['without_cache_per_s']:.1f} times slower |"
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
