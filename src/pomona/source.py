"""The name of a pretrained network of another package, and what its files say of it.

In: a name such as `hf:facebook/dinov2-small`, or the files beside some weights. Out: a `Source`; how photos are
prepared, as `Pixels`; a licence.
Why: each of these packages says what its photos must go through in a way of its own. None of it needs torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pomona.errors import BackboneError, OptionError
from pomona.files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

Family = Literal["torchvision", "timm", "hf", "onnx"]

UNKNOWN_LICENCE = "unknown: see the model's page"

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Red, green and blue, 0-1: what networks expect that do not say."""

_SPELLINGS = "torchvision:NAME, timm:NAME, hf:ORG/NAME or onnx:FILE"
_HUB = re.compile(r"pytorch/vision(?::[\w.+-]+)?:(.+)")
_FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic", 1: "bicubic", 0: "bilinear"}
_HALVES = {"vit", "siglip", "siglip_vision_model", "siglip2", "beit", "data2vec-vision"}
"""Kinds of networks whose pixels run from -1 to 1 where nothing else is said."""


class Source(NamedTuple):
    """Where a pretrained network comes from.

    Parameters
    ----------
    family : {"torchvision", "timm", "hf", "onnx"}
        Package that knows it.
    place : str
        Its name there, or a folder or file.
    weights : str
        Which of several weights; empty where not given.
    """

    family: Family
    place: str
    weights: str = ""

    @property
    def name(self) -> str:
        """The one spelling of it."""
        return f"{self.family}:{self.place}" + (f"@{self.weights}" if self.weights else "")


class Pixels(NamedTuple):
    """How photos become what a network takes; the fields are those of `pomona.backbone.Preprocessing`.

    Parameters
    ----------
    size_px : int
    fit : {"squash", "crop"}
    resample : {"bilinear", "bicubic"}
    offset, scale : tuple of float
        Red, green and blue, in units of 0-255.
    crop_share : float
        Share of the short side that is kept.
    """

    size_px: int
    fit: Literal["squash", "crop"]
    resample: Literal["bilinear", "bicubic"]
    offset: tuple[float, float, float]
    scale: tuple[float, float, float]
    crop_share: float = 1.0


def parse_source(name: str) -> Source:
    """Read the name of a backbone of another package.

    Raises
    ------
    OptionError
        If it is none.

    Examples
    --------
    >>> parse_source("hub:pytorch/vision:resnet50").name
    'torchvision:resnet50'
    >>> parse_source("torchvision:resnet50@IMAGENET1K_V2")
    Source(family='torchvision', place='resnet50', weights='IMAGENET1K_V2')
    """
    family, _, place = name.partition(":")
    if family == "hub":
        found = _HUB.fullmatch(place)
        if not found:
            raise OptionError(
                f"backbone: wanted hub:pytorch/vision:NAME, got {name!r}: other repositories of the torch hub run "
                "code of their own, which is not loaded"
            )
        family, place = "torchvision", found[1]
    place, _, weights = place.partition("@") if family == "torchvision" else (place, "", "")
    if family not in {"torchvision", "timm", "hf", "onnx"} or not place.strip():
        raise OptionError(f"backbone: wanted one of lite0, lite1, lite2, {_SPELLINGS}, got {name!r}")
    return Source(family, place, weights)  # type: ignore[arg-type]  # it is among them


def hide_folder(name: str) -> str:
    """Name of a backbone fit to be passed on: of a file or folder of this machine its last part alone.

    Examples
    --------
    >>> hide_folder("onnx:nets/pear.onnx"), hide_folder("hf:/home/ana/nets/pear"), hide_folder("hf:apple/mobilevit")
    ('onnx:pear.onnx', 'hf:pear', 'hf:apple/mobilevit')
    """
    family, _, place = name.partition(":")
    path = Path(place)
    if family == "onnx" or path.is_absolute() or place.startswith((".", "~")) or (place and path.is_dir()):
        return f"{family}:{path.name}"
    return name


def backbones_folder(family: Family) -> Path:
    """Folder where a user may put weights by hand; it need not exist."""
    return cache_folder() / "backbones" / family


def make_pixels(
    size_px: int,
    fit: str,
    resample: str | int,
    mean: Any,
    deviation: Any,
    *,
    crop_share: float = 1.0,
    unit: float = 255,
) -> Pixels:
    """Pixels in units of 0-255, from means and deviations in units of `unit`."""
    offset, scale = (tuple(round(float(value) * unit, 6) for value in values) for values in (mean, deviation))
    return Pixels(
        size_px,
        "crop" if fit == "crop" else "squash",
        "bicubic" if _FILTERS.get(resample) == "bicubic" else "bilinear",
        (offset[0], offset[1], offset[2]),
        (scale[0], scale[1], scale[2]),
        round(crop_share, 6),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a table from a JSON file.

    Raises
    ------
    BackboneError
        If it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: wanted JSON, got: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: wanted a table, got {type(content).__name__}")
    return content


def read_processor(facts: Mapping[str, Any], model_type: str, own_px: int) -> Pixels:
    """How photos are prepared, from the content of a `preprocessor_config.json`.

    Parameters
    ----------
    facts : mapping
        The content; empty where there is none, and then the kind of network decides.
    model_type : str
        Kind of network, as transformers calls it.
    own_px : int
        Input size of the network, where the content does not say.

    Raises
    ------
    BackboneError
        If it asks for something that is no square.

    Examples
    --------
    >>> read_processor({"size": {"shortest_edge": 256}, "crop_size": 224, "resample": 3}, "dinov2", 518)[:3]
    (224, 'crop', 'bicubic')
    """
    default = ((0.5,) * 3, (0.5,) * 3) if model_type in _HALVES else (IMAGENET_MEAN, IMAGENET_DEVIATION)
    mean, deviation = facts.get("image_mean") or default[0], facts.get("image_std") or default[1]
    unit = 1.0
    if facts.get("do_rescale", True):
        unit = 1 / float(facts.get("rescale_factor") or 1 / 255)
    if not facts.get("do_normalize", True):
        mean, deviation = (0.0,) * 3, (1.0,) * 3
    size, crop = facts.get("size", own_px), facts.get("crop_size")
    resample = facts.get("resample", 2)
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    if short is None and isinstance(size, int) and facts.get("crop_pct"):
        short = size
    if facts.get("crop_pct") and short and short < 384:
        return make_pixels(short, "crop", resample, mean, deviation, crop_share=facts["crop_pct"], unit=unit)
    side = _read_side(size if short is None else short)
    if crop is not None and facts.get("do_center_crop", True):
        kept = _read_side(crop)
        return make_pixels(kept, "crop", resample, mean, deviation, crop_share=min(1.0, kept / side), unit=unit)
    return make_pixels(side, "crop" if short and short < 384 else "squash", resample, mean, deviation, unit=unit)


def _read_side(size: Any) -> int:
    """Side of a square, of a number or a table of height and width."""
    sides: set[Any] = set()
    if isinstance(size, dict):
        sides = {size.get("height"), size.get("width")}
    elif isinstance(size, int):
        sides = {size}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise BackboneError(f"preprocessor_config.json: wanted a square of so many pixels, got {size}")
    (side,) = sides
    return int(side)


def read_licence(folder: Path) -> str:
    """Licence in the head of a model card."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else UNKNOWN_LICENCE
