"""Names of networks and the files beside their weights, read as their packages mean them."""

from __future__ import annotations

from typing import Any

import pytest

from pomona.errors import BackboneError, OptionError
from pomona.source import UNKNOWN_LICENCE, Pixels, parse_source, read_json, read_licence, read_processor

HALF = (127.5,) * 3
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("torchvision:resnet50", ("torchvision", "resnet50", "")),
        ("torchvision:resnet50@IMAGENET1K_V2", ("torchvision", "resnet50", "IMAGENET1K_V2")),
        ("hub:pytorch/vision:resnet50", ("torchvision", "resnet50", "")),
        ("hub:pytorch/vision:v0.10.0:resnet50@IMAGENET1K_V1", ("torchvision", "resnet50", "IMAGENET1K_V1")),
        ("timm:vit_tiny_patch16_224.augreg", ("timm", "vit_tiny_patch16_224.augreg", "")),
        ("hf:facebook/dinov2-small", ("hf", "facebook/dinov2-small", "")),
        ("hf:/some/folder@2", ("hf", "/some/folder@2", "")),
        ("onnx:C:\\nets\\one.onnx", ("onnx", "C:\\nets\\one.onnx", "")),
    ],
)
def test_every_spelling_is_understood(name: str, wanted: tuple[str, str, str]) -> None:
    source = parse_source(name)
    assert source == wanted
    assert parse_source(source.name) == source


@pytest.mark.parametrize("name", ["", "resnet50", "keras:resnet50", "hf:", "torchvision:", "torchvision:@V2", "lite9"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"wanted one of lite0, lite1, lite2, torchvision:NAME.*, got"):
        parse_source(name)


def test_code_of_other_repositories_is_not_loaded() -> None:
    with pytest.raises(OptionError, match="run code of their own"):
        parse_source("hub:somebody/else:resnet50")


@pytest.mark.parametrize(
    ("facts", "kind", "wanted"),
    [
        ({}, "vit", Pixels(384, "squash", "bilinear", HALF, HALF)),
        ({}, "dinov2", Pixels(384, "squash", "bilinear", *IMAGENET)),
        (  # as google/vit-base-patch16-224 has it
            {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            "vit",
            Pixels(224, "squash", "bilinear", HALF, HALF),
        ),
        (  # as facebook/dinov2-small
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
            "dinov2",
            Pixels(224, "crop", "bicubic", *IMAGENET, 0.875),
        ),
        (  # as microsoft/resnet-50, and as it was written before
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            "resnet",
            Pixels(224, "crop", "bicubic", *IMAGENET, 0.875),
        ),
        (
            {"size": 224, "crop_pct": 0.875, "resample": 2},
            "convnext",
            Pixels(224, "crop", "bilinear", *IMAGENET, 0.875),
        ),
        ({"size": {"shortest_edge": 384}, "resample": 3}, "convnext", Pixels(384, "squash", "bicubic", *IMAGENET)),
        ({"size": 64, "do_rescale": False}, "vit", Pixels(64, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3)),
        (
            {"size": 64, "rescale_factor": 1 / 127.5},
            "vit",
            Pixels(64, "squash", "bilinear", (63.75,) * 3, (63.75,) * 3),
        ),
        ({"size": 64, "do_normalize": False}, "vit", Pixels(64, "squash", "bilinear", (0.0,) * 3, (255.0,) * 3)),
    ],
)
def test_photos_are_prepared_as_the_file_says(facts: dict[str, Any], kind: str, wanted: Pixels) -> None:
    assert read_processor(facts, kind, 384) == wanted


@pytest.mark.parametrize("size", [{"height": 224, "width": 160}, {"longest_edge": 9}, "224", 0, None])
def test_what_is_no_square_is_refused(size: object) -> None:
    with pytest.raises(BackboneError, match="wanted a square"):
        read_processor({"size": size}, "vit", 224)


def test_the_licence_is_that_of_the_card(tmp_path: Any) -> None:
    assert read_licence(tmp_path) == UNKNOWN_LICENCE
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\nlicense: mit\n")
    assert read_licence(tmp_path) == "cc-by-nc-4.0"
    (tmp_path / "README.md").write_text("license: mit\n")
    assert read_licence(tmp_path) == UNKNOWN_LICENCE
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(BackboneError, match="wanted a table, got list"):
        read_json(tmp_path / "x.json")
