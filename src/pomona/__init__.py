"""Pomona: a folder of fruit photos becomes a recogniser you can run.

photos -> dataset -> features -> head -> evaluation -> bundle -> predict. Each arrow is one module of this package and
one function below; `train` walks the whole way. Names are loaded when they are first used, so that `import pomona` is
quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pomona.backbone import BACKBONES, Backbone, find_backbone
    from pomona.bundle import Bundle, load_bundle
    from pomona.bundle_score import evaluate_bundle
    from pomona.classifier import PomonaClassifier
    from pomona.dataset import ClassTree, Dataset, load_dataset, split_dataset
    from pomona.errors import PomonaError
    from pomona.evaluation import Evaluation, evaluate
    from pomona.features import Features, extract_features
    from pomona.head import Head
    from pomona.photo import decode_photo, read_photo
    from pomona.prediction import Prediction
    from pomona.ridge import fit_ridge
    from pomona.teaching import TeachResult, add_class, remove_class
    from pomona.training import TrainOptions, TrainResult, train

_HOMES = {
    "BACKBONES": "backbone",
    "Backbone": "backbone",
    "Bundle": "bundle",
    "ClassTree": "dataset",
    "Dataset": "dataset",
    "Evaluation": "evaluation",
    "Features": "features",
    "Head": "head",
    "PomonaClassifier": "classifier",
    "PomonaError": "errors",
    "Prediction": "prediction",
    "TeachResult": "teaching",
    "TrainOptions": "training",
    "TrainResult": "training",
    "add_class": "teaching",
    "decode_photo": "photo",
    "evaluate": "evaluation",
    "evaluate_bundle": "bundle_score",
    "extract_features": "features",
    "find_backbone": "backbone",
    "fit_ridge": "ridge",
    "load_bundle": "bundle",
    "load_dataset": "dataset",
    "read_photo": "photo",
    "remove_class": "teaching",
    "split_dataset": "dataset",
    "train": "training",
}

__all__ = [  # noqa: RUF022 - sorted without regard to case
    "add_class",
    "BACKBONES",
    "Backbone",
    "Bundle",
    "ClassTree",
    "Dataset",
    "decode_photo",
    "evaluate",
    "evaluate_bundle",
    "Evaluation",
    "extract_features",
    "Features",
    "find_backbone",
    "fit_ridge",
    "Head",
    "load_bundle",
    "load_dataset",
    "PomonaClassifier",
    "PomonaError",
    "Prediction",
    "read_photo",
    "remove_class",
    "split_dataset",
    "TeachResult",
    "train",
    "TrainOptions",
    "TrainResult",
]


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(f"pomona.{home}"), name)
    raise AttributeError(f"module 'pomona' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
