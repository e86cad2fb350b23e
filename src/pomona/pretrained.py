"""Pretrained networks of other packages, by name: torchvision, timm, transformers.

In: a name such as `hf:facebook/dinov2-small`. Out: a `Pretrained`: a torch module, how its pixels are prepared, its
licence, and a hash of its weights.
Why: the classics and the newest networks are all on these shelves, each with a loader and a way of its own to say what
photos must go through. Here all of them become one thing. Weights are read from safetensors, or by torch with
`weights_only`: nothing in a file is ever run, and no code of a repository.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pomona.errors import BackboneError, MissingPackageError, OptionError
from pomona.layers import PREFIX, Trace, trace
from pomona.source import (
    UNKNOWN_LICENCE,
    Pixels,
    Source,
    backbones_folder,
    make_pixels,
    parse_source,
    read_json,
    read_licence,
    read_processor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

_HF_FILES = ["config.json", "preprocessor_config.json", "README.md", "*.safetensors", "model.safetensors.index.json"]
_OLD_FILE = "pytorch_model.bin"
_SCALED_TWICE = ("googlenet", "inception_v3")
"""Networks of torchvision whose weights were trained elsewhere, and which scale their pixels once more."""
_MAX_BYTES = 1_900_000_000
"""Most bytes of weights: an ONNX file in one piece holds no more than 2 GB."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network of another package.

    Parameters
    ----------
    source : Source
        Where it comes from.
    tag : str
        Which weights these are.
    licence : str
        As its authors say; `UNKNOWN_LICENCE` where they do not.
    pixels : Pixels
        What photos must go through.
    weights_sha256 : str
        Hash of the names, shapes and values of its tensors.
    trace : Trace
        Scaled pixels (N, 3, S, S) to features, as a graph that can be cut.
    """

    source: Source
    tag: str
    licence: str
    pixels: Pixels
    weights_sha256: str
    trace: Trace


class _Found(NamedTuple):
    """What a loader gives: the module and all that is known of it; `own_px` is the size that it was made for."""

    module: torch.nn.Module
    pixels: Pixels
    tag: str
    licence: str
    own_px: int


def load_pretrained(name: str, *, size_px: int | None = None) -> Pretrained:
    """Load a network of torchvision, timm or transformers.

    Parameters
    ----------
    name : str
        Such as `torchvision:resnet50`, `timm:convnext_tiny.in12k_ft_in1k`, `hf:facebook/dinov2-small`, or `hf:` and a
        folder with `config.json` and `model.safetensors`. What the name asks for is downloaded where it is not here.
    size_px : int, optional
        Input size; its own where not given.

    Returns
    -------
    Pretrained
        The module in evaluation mode, float32. Loaded once a process.

    Raises
    ------
    OptionError
        If the name cannot be understood, or the network cannot take that size.
    MissingPackageError
        If torch, onnxscript or transformers is not installed.
    BackboneError
        If the package of its family is missing, there is no such network, or its weights are not here and cannot be
        downloaded: the text says which file to bring, and where to put it.
    """
    source = parse_source(name)
    for package in ("torch", "onnxscript"):
        _require(package, source)
    return _load(source, size_px, _stamp(source))


def _require(package: str, source: Source) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(package, "hub", f"for the backbone {source.name}")


def _stamp(source: Source) -> tuple[tuple[str, int], ...]:
    """When the files in a folder of the user's were changed."""
    folder = Path(source.place).expanduser()
    if source.family != "hf" or not folder.is_dir():
        return ()
    return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()))


@functools.lru_cache(maxsize=4)
def _load(source: Source, size_px: int | None, _changed: tuple[tuple[str, int], ...]) -> Pretrained:
    _stay_quiet()
    loaders = {"torchvision": _load_torchvision, "timm": _load_timm, "hf": _load_transformers}
    if source.family not in loaders:
        raise OptionError(f"backbone: {source.name} is no module of torch: its weights cannot be trained")
    found = loaders[source.family](source, size_px)
    module = found.module.float().eval().requires_grad_(requires_grad=True)
    n_bytes = sum(tensor.numel() * 4 for tensor in module.state_dict().values())
    if n_bytes > _MAX_BYTES:
        raise BackboneError(
            f"{source.name}: wanted at most {_MAX_BYTES / 1e9:.1f} GB of weights, got {n_bytes / 1e9:.1f}"
        )
    digest = hash_tensors(module.state_dict())
    try:
        traced = trace(module, found.pixels.size_px)
    except BackboneError as error:
        if found.pixels.size_px == found.own_px:
            raise
        raise OptionError(f"imgsz: {source.name} takes {found.own_px} pixels, got {size_px}: {error}") from error
    return Pretrained(source, found.tag, found.licence, found.pixels, digest, traced)


def _stay_quiet() -> None:
    """Keep the packages from reporting what is used to anyone; they look when they are first imported."""
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION"):
        os.environ.setdefault(variable, "1")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Content hash of named tensors: sha256 over names, shapes, kinds and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(repr((name.removeprefix(PREFIX), values.shape, values.dtype.str)).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _make_module(network: torch.nn.Module, read: Any) -> torch.nn.Module:
    """A module that gives one tensor: `read` takes it from what the network gives."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = read(self.network, x)
            return result

    return Wrapped()


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file, without running anything in it."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BackboneError(f"{path}: wanted a table of tensors, got: {reason[0]}") from error
    for inner in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BackboneError(f"{path}: wanted a table of tensors, got {type(state).__name__}")
    return state


def _find_state(source: Source, stem: str) -> Path | None:
    """Weights that a user has put into the cache."""
    for suffix in (".safetensors", ".pth"):
        path = backbones_folder(source.family) / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


def _say_offline(source: Source, page: str, place: Path, error: Exception) -> BackboneError:
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return BackboneError(
        f"the weights of {source.name} are not here, and could not be downloaded ({reason[0][:200]}); without a "
        f"network, bring {page} and put it at {place}"
    )


# --- torchvision ----------------------------------------------------------------------------------------------------


def _load_torchvision(source: Source, size_px: int | None) -> _Found:
    if importlib.util.find_spec("torchvision") is None:
        raise BackboneError(
            f"torchvision is needed for the backbone {source.name}, and it is not installed: pip install torchvision"
        )
    import torch

    torchvision: Any = importlib.import_module("torchvision")
    try:
        choices = torchvision.models.get_model_weights(source.place)
        weights = choices[source.weights] if source.weights else choices.DEFAULT
        preset = weights.transforms()
        n_classes = len(weights.meta["categories"])
    except (KeyError, ValueError, AttributeError) as error:
        raise OptionError(f"backbone: torchvision has no weights for {source.name}: {error}") from error
    stem = f"{source.place}@{weights.name}"
    path = _find_state(source, stem)
    try:
        state = (
            _read_state(path)
            if path
            else torch.hub.load_state_dict_from_url(
                weights.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        )
    except (OSError, RuntimeError) as error:
        raise _say_offline(source, weights.url, backbones_folder("torchvision") / f"{stem}.pth", error) from error
    extra = {"transform_input": True, "init_weights": False} if source.place in _SCALED_TWICE else {}
    network = torchvision.models.get_model(source.place, weights=None, num_classes=n_classes, **extra)
    _put_state(network, state, source)
    _remove_classifier(network, n_classes)
    kept, resized = preset.crop_size[0], preset.resize_size[0]
    pixels = make_pixels(
        size_px or kept,
        "crop",
        preset.interpolation.value,
        preset.mean,
        preset.std,
        crop_share=min(1.0, kept / resized),
    )
    licence = weights.meta.get("license", UNKNOWN_LICENCE)
    return _Found(_make_module(network, lambda inner, x: inner(x)), pixels, weights.name, licence, kept)


def _put_state(network: torch.nn.Module, state: dict[str, torch.Tensor], source: Source) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise BackboneError(f"{source.name}: the weights are not those of this network: {str(error)[:300]}") from error


def _remove_classifier(network: torch.nn.Module, n_classes: int) -> None:
    """Let the last layer of as many outputs as there are classes pass its input through."""
    import torch

    last = ""
    for name, layer in network.named_modules():
        n_outputs = getattr(layer, "out_features", getattr(layer, "out_channels", None))
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and n_outputs == n_classes:
            last = name
    if not last:
        raise BackboneError(f"the network has no layer of {n_classes} outputs: wanted one that tells classes apart")
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, torch.nn.Identity())


# --- timm -----------------------------------------------------------------------------------------------------------


def _load_timm(source: Source, size_px: int | None) -> _Found:
    if importlib.util.find_spec("timm") is None:
        raise BackboneError(f"timm is needed for the backbone {source.name}, and it is not installed: pip install timm")
    timm: Any = importlib.import_module("timm")
    try:
        known = timm.get_pretrained_cfg(source.place) if timm.is_model(source.place) else None
    except RuntimeError:  # a network that is known, and a tag that is not
        known = None
    if known is None or not (known.hf_hub_id or known.url):
        near = timm.list_pretrained(f"*{source.place.partition('.')[0]}*")[:5]
        advice = f"; there are {', '.join(near)}" if near else ""
        raise OptionError(f"backbone: timm has no weights for {source.place!r}{advice}")
    stem = f"{known.architecture}.{known.tag}" if known.tag else known.architecture
    path = _find_state(source, stem) or _find_state(source, source.place) or _fetch_timm(source, known, stem)
    sized = {"img_size": size_px} if size_px else {}
    overlay = {"state_dict": _read_state(path)}
    try:
        network = timm.create_model(
            source.place, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **sized
        )
    except TypeError:  # a convolutional network: it takes any size
        network = timm.create_model(source.place, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise BackboneError(f"{source.name}: the weights are not those of this network: {str(error)[:300]}") from error
    wanted = timm.data.resolve_model_data_config(network)
    own_px = int(known.input_size[1])
    pixels = make_pixels(
        size_px or wanted["input_size"][1],
        "squash" if wanted["crop_mode"] == "squash" else "crop",
        wanted["interpolation"],
        wanted["mean"],
        wanted["std"],
        crop_share=min(1.0, wanted["crop_pct"]),
    )
    licence = known.license or UNKNOWN_LICENCE
    return _Found(_make_module(network, lambda inner, x: inner(x)), pixels, known.tag or "default", licence, own_px)


def _fetch_timm(source: Source, known: Any, stem: str) -> Path:
    """Download the weights of a timm network, or find them among those downloaded before."""
    place = backbones_folder("timm") / f"{stem}.safetensors"
    if not known.hf_hub_id:
        raise _say_offline(source, known.url, place.with_suffix(".pth"), OSError("its weights are not on the hub"))
    page = f"https://huggingface.co/{known.hf_hub_id}/resolve/main/model.safetensors"
    return _download(source, known.hf_hub_id, ["model.safetensors"], page, place) / "model.safetensors"


def _download(source: Source, repository: str, files: list[str], page: str, place: Path) -> Path:
    """Folder of a repository's files on the Hugging Face hub: those downloaded before, else new ones."""
    _require("huggingface_hub", source)
    import huggingface_hub

    weights = ("*.safetensors", _OLD_FILE)
    with contextlib.suppress(OSError, ValueError):
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=files, local_files_only=True))
        if any(list(folder.glob(pattern)) for pattern in weights):
            return folder
    try:
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=files))
        if not any(list(folder.glob(pattern)) for pattern in weights):
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*files, _OLD_FILE]))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise _say_offline(source, page, place, error) from error
    return folder


# --- transformers ---------------------------------------------------------------------------------------------------


def _load_transformers(source: Source, size_px: int | None) -> _Found:
    _require("transformers", source)
    folder = _find_folder(source)
    with _quiet_transformers():
        network = _open_network(source, folder)
    config = network.config
    own_px = getattr(config, "image_size", None) or 224
    own_px = int(own_px if isinstance(own_px, int) else own_px[0])
    processor = folder / "preprocessor_config.json"
    facts = read_json(processor) if processor.is_file() else {}
    pixels = read_processor(facts, str(config.model_type), own_px)
    if size_px:
        pixels = pixels._replace(size_px=size_px)
    options: dict[str, Any] = {}
    if pixels.size_px != own_px and "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
        options["interpolate_pos_encoding"] = True
    tag = folder.name[:12] if folder.parent.name == "snapshots" else "local"
    module = _make_module(network, functools.partial(_read_output, _choose_output(network, pixels, options), options))
    return _Found(module, pixels, tag, read_licence(folder), own_px)


def _read_output(key: str, options: dict[str, Any], network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = getattr(network(pixel_values=x, **options), key)
    return result.flatten(1) if key == "pooler_output" else result


def _choose_output(network: torch.nn.Module, pixels: Pixels, options: dict[str, Any]) -> str:
    """What features are taken from: the network's own pooling where it has one that is more than its class token."""
    import torch

    example = torch.zeros(1, 3, pixels.size_px, pixels.size_px)
    try:
        with torch.no_grad():
            result = network(pixel_values=example, **options)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"imgsz: the network cannot take {pixels.size_px} pixels: {str(error)[:200]}") from error
    pooled, last = getattr(result, "pooler_output", None), result.last_hidden_state
    if pooled is None or (last.ndim == 3 and torch.equal(pooled, last[:, 0])):
        return "last_hidden_state"
    return "pooler_output"


def _find_folder(source: Source) -> Path:
    given = Path(source.place).expanduser()
    own = backbones_folder("hf") / source.place
    for folder in (given, own):
        if folder.is_absolute() and (folder / "config.json").is_file():
            return folder
    if given.is_dir() and (given / "config.json").is_file():
        return given.resolve()
    if given.is_absolute() or given.is_dir() or source.place.count("/") != 1 or source.place.startswith("."):
        raise BackboneError(f"{source.name}: wanted a folder with config.json and model.safetensors, or ORG/NAME")
    page = f"config.json, preprocessor_config.json and model.safetensors from https://huggingface.co/{source.place}"
    return _download(source, source.place, _HF_FILES, page, own)


def _open_network(source: Source, folder: Path) -> Any:
    """The image network of a folder, with all of its weights."""
    transformers: Any = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = getattr(config, "vision_config", None) or config
        network_class: Any = transformers.MODEL_MAPPING[type(config)]
        if getattr(network_class, "main_input_name", "") != "pixel_values":
            raise BackboneError(f"{source.name}: wanted a network that takes photos, got {config.model_type}")
        options = {"add_pooling_layer": False} if _takes(network_class, "add_pooling_layer") else {}
        network, info = network_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=not (folder / _OLD_FILE).is_file() or any(folder.glob("*.safetensors")),
            weights_only=True,
            dtype="float32",
            output_loading_info=True,
            **options,
        )
    except BackboneError:
        raise
    except KeyError as error:
        raise BackboneError(f"{source.name}: transformers has no network for this kind of config.json") from error
    except Exception as error:  # damaged files make the readers raise nearly anything
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BackboneError(f"{source.name}: its files in {folder} cannot be read: {reason[0][:300]}") from error
    if missing := sorted(info["missing_keys"]):
        raise BackboneError(
            f"{source.name}: its files in {folder} lack {len(missing)} tensors; the first: {missing[0]}"
        )
    return network


def _takes(network_class: Any, option: str) -> bool:
    return option in inspect.signature(network_class.__init__).parameters


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No notes, no bars: what is wrong becomes an error."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
