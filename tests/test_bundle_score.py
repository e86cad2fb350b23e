"""A finished bundle is measured as it is used: promises, simple ways beside it, strangers, and another bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.bundle import load_bundle
from pomona.bundle_score import compare_scores, evaluate_bundle, load_labelled
from pomona.errors import DataError

if TYPE_CHECKING:
    from pomona.training import TrainResult

GOLDEN = Path(__file__).parent / "golden"


def test_a_bundle_scores_as_training_measured_it(promising: TrainResult) -> None:
    bundle = load_bundle(promising.bundle.folder)
    score = evaluate_bundle(bundle, promising.dataset.part("val"))
    assert promising.kept is not None
    assert score.evaluation.to_dict() == promising.evaluation.to_dict()
    assert score.baselines == promising.baselines
    assert (score.n_learnt, score.found_unknown, score.n_unknown_class) == (0, None, 0)
    measured, now = promising.kept.to_dict(), score.kept.to_dict()
    assert measured.pop("before") is not None
    assert now.pop("before") is None
    assert measured["after"].pop("ece") == pytest.approx(now["after"].pop("ece"), abs=1e-4)
    for name in ("accuracy", "covered", "sure_right", "turned_away", "share_open", "shortlist_size", "n_groups"):
        assert measured[name] == now[name]


def test_simple_ways_are_worse_than_what_was_learnt(promising: TrainResult) -> None:
    frequent, nearest = promising.baselines
    assert (frequent.name, nearest.name) == ("most frequent", "nearest")
    assert frequent.accuracy.value < 0.5 < nearest.accuracy.value
    assert frequent.accuracy.value < promising.evaluation.accuracy.value


def test_strangers_are_in_no_metric_but_one(promising: TrainResult, strangers: Path, tmp_path: Path) -> None:
    shutil.copytree(strangers, tmp_path / "fruit")
    data = promising.dataset.part("val")
    for photo in data.photos:
        folder = tmp_path / "fruit" / "/".join(data.tree.paths[photo.label])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo.path, folder)
    bundle = load_bundle(promising.bundle.folder)
    score = evaluate_bundle(bundle, load_labelled(bundle, tmp_path / "fruit"))
    assert score.n_unknown_class == 48
    assert score.found_unknown is not None
    assert (score.found_unknown.n, score.found_unknown.value > 0.8) == (48, True)
    assert (score.evaluation.n, len(score.hits), len(score.photos)) == (data.n_photos,) * 3
    assert score.evaluation.accuracy.value == promising.evaluation.accuracy.value == score.hits.mean()
    content = json.loads(json.dumps(score.to_dict()))
    assert content["found_unknown"]["value"] == score.found_unknown.value
    assert content["baselines"].keys() == {"most frequent", "nearest"}
    assert content["kept"]["covered"]["n"] == data.n_photos


def test_two_bundles_are_compared_photo_by_photo(promising: TrainResult) -> None:
    bundle = load_bundle(promising.bundle.folder)
    score = evaluate_bundle(bundle, promising.dataset.part("val"))
    same = compare_scores(score, score)
    assert (same.gain, same.n_better, same.n_worse, same.n) == (0, 0, 0, score.evaluation.n)
    # The other one knows fewer photos, in another order, and has half of them wrong.
    order = np.arange(len(score.photos))[::-1][: len(score.photos) // 2]
    wrong = np.arange(len(order)) % 2 == 0
    other = replace(score, photos=tuple(score.photos[i] for i in order), hits=score.hits[order] & ~wrong)
    found = compare_scores(score, other)
    assert (found.n, found.n_worse) == (len(order), 0)
    assert found.n_better == int((score.hits[order] & wrong).sum()) > 0
    assert compare_scores(other, score).n_worse == found.n_better
    with pytest.raises(DataError, match="wanted photos of classes that both recognisers know, got none"):
        compare_scores(score, replace(score, photos=(), hits=score.hits[:0]))


def test_a_bundle_of_an_older_format_is_scored_without_promises(tmp_path: Path) -> None:
    for label, photo in (("Granny Smith", "green.png"), ("Banana", "yellow.jpg")):
        (tmp_path / label).mkdir()
        shutil.copy(GOLDEN / "photos" / photo, tmp_path / label)
    bundle = load_bundle(GOLDEN / "bundle-v3")
    score = evaluate_bundle(bundle, load_labelled(bundle, tmp_path))
    assert (score.kept.covered, score.kept.turned_away, score.baselines, score.found_unknown) == (None, None, (), None)
    assert score.evaluation.accuracy.value == 1
    json.dumps(score.to_dict(), allow_nan=False)
