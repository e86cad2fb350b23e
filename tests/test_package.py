"""What `import pomona` gives, and what it does not load."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import pomona

NAMES = [
    "BACKBONES",
    "Backbone",
    "Bundle",
    "ClassTree",
    "Dataset",
    "Evaluation",
    "Features",
    "Head",
    "PomonaClassifier",
    "PomonaError",
    "Prediction",
    "TeachResult",
    "TrainOptions",
    "TrainResult",
    "add_class",
    "decode_photo",
    "evaluate",
    "evaluate_bundle",
    "extract_features",
    "find_backbone",
    "fit_ridge",
    "load_bundle",
    "load_dataset",
    "read_photo",
    "remove_class",
    "split_dataset",
    "train",
]


def test_public_names_are_these() -> None:
    assert sorted(pomona.__all__) == NAMES
    assert set(NAMES) <= set(dir(pomona))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported(name: str) -> None:
    found = getattr(pomona, name)
    home = getattr(found, "__module__", "pomona.backbone")
    assert getattr(importlib.import_module(home), name) is found


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'bananas'"):
        pomona.bananas  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    heavy = "numpy PIL torch sklearn scipy openvino onnx matplotlib pydantic typer rich"
    script = f"import sys, pomona; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
