"""What is promised on folds of what was learnt holds on new scenes, and little data promises little without failing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.conformal import NEVER, Nodes
from pomona.evaluation import measure_share
from pomona.head import Head, Link
from pomona.novelty import CANDIDATES, Bank, sketch_vectors
from pomona.parts import list_folds
from pomona.ridge import study_ridge
from pomona.trust import (
    Trust,
    TrustOptions,
    check_promise,
    check_trust,
    measure_baselines,
    note_trust,
    study_trust,
    weigh_photos,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.trust import Evidence


class Photos(NamedTuple):
    vectors: NDArray[np.float32]
    labels: NDArray[np.intp]
    groups: NDArray[np.str_]


def _draw_scenes(seed: int, n_classes: int, n_scenes: int, n_per_scene: int, *, day: int = 0, dim: int = 30) -> Photos:
    """Photos of scenes of classes, which are the same on each day; classes 2k and 2k + 1 look alike."""
    kinds = np.random.default_rng(seed).normal(size=(n_classes, dim))
    kinds[1::2] = kinds[: len(kinds[1::2]) * 2 : 2] + 0.45 * kinds[1::2]
    rng = np.random.default_rng([seed, day])
    labels = np.repeat(np.arange(n_classes), n_scenes * n_per_scene)
    scenes = np.repeat(np.arange(n_classes * n_scenes), n_per_scene)
    vectors = kinds[labels] + 0.5 * rng.normal(size=(scenes.max() + 1, dim))[scenes]
    vectors = vectors + 0.15 * rng.normal(size=vectors.shape)
    return Photos(vectors.astype(np.float32), labels, np.char.add(f"day {day} scene ", scenes.astype(str)))


def _name_classes(n_classes: int) -> ClassTree:
    return ClassTree.from_paths([f"kind {c // 2}/class {c:02}" for c in range(n_classes)])


def _find_trust(photos: Photos, **options: Any) -> tuple[Head, tuple[Trust, Evidence] | None, list[int]]:
    n_classes = int(photos.labels.max()) + 1
    asked = TrustOptions(**options)
    folds = list_folds(photos.labels, photos.groups, seed=asked.seed, n_folds=asked.n_folds)
    head, _, _, study = study_ridge(photos.vectors, photos.labels, n_classes, folds)
    steps: list[int] = []
    tree = _name_classes(n_classes)
    found = study_trust(
        study, sketch_vectors(photos.vectors), photos.groups, tree, asked, on_step=lambda: steps.append(1)
    )
    return head, found, steps


# --- promises -------------------------------------------------------------------------------------------------------


def test_promises_hold_on_new_scenes() -> None:
    covered, sure, right, away, forecast, measured = [], [], [], [], [], []
    for seed in range(6):
        head, found, steps = _find_trust(_draw_scenes(seed, 6, 14, 3), n_repeats=2, promise=0.9)
        assert found is not None
        assert len(steps) == 4
        trust, evidence = found
        assert trust.promise is not None
        assert (trust.promise.n, trust.promise.n_groups) == (252, 84)
        new = _draw_scenes(seed, 6, 60, 2, day=1)
        logits = head.score(new.vectors)
        strange = trust.measure_strangeness(new.vectors, logits)
        assert strange is not None
        probabilities, nodes = trust.to_probabilities(logits), Nodes.of(_name_classes(6))
        kept = check_promise(trust.promise, probabilities, new.labels, new.groups, nodes)
        assert kept.covered is not None
        assert kept.sure_right is not None
        covered.append(kept.covered.value)
        sure.append(1 - kept.share_open)
        right.append(kept.sure_right.value)
        away.append((strange >= 0.5).mean())
        forecast.append(evidence.held_out.accuracy.value)
        measured.append(kept.accuracy.value)
        assert kept.after.ece < 0.1
        assert trust.link.width is not None or 0.8 < trust.link.sharpness < 1.25  # the head has its temperature
        assert kept.share_exact + kept.share_coarse + kept.share_open == pytest.approx(1)
        assert kept.shortlist_size < 3
    assert np.mean(covered) > 0.89
    assert np.average(right, weights=sure) > 0.89
    assert np.mean(away) < 0.07
    assert np.mean(forecast) == pytest.approx(np.mean(measured), abs=0.04)


def test_what_was_not_learnt_is_found() -> None:
    photos = _draw_scenes(0, 6, 12, 3)
    known = photos.labels < 4
    head, found, _ = _find_trust(Photos(*(part[known] for part in photos)))
    assert found is not None
    trust, evidence = found
    strange = trust.measure_strangeness(photos.vectors[~known], head.score(photos.vectors[~known]))
    assert strange is not None
    assert (strange >= 0.5).mean() > 0.8
    assert [kind for kind, _ in evidence.candidates] == list(CANDIDATES)
    assert trust.detector is not None
    best = max(auroc for _, auroc in evidence.candidates)
    assert best == dict(evidence.candidates)[trust.detector.kind] > 0.7


def test_the_evidence_is_plain_and_the_curve_rises() -> None:
    _, found, _ = _find_trust(_draw_scenes(1, 6, 16, 2), n_repeats=1)
    assert found is not None
    trust, evidence = found
    content = json.loads(json.dumps(evidence.to_dict()))
    assert content["in_folds"] is True
    assert content["held_out"]["accuracy"]["n"] == 192
    assert content["unknown_candidates"].keys() == {"+".join(kind) for kind in CANDIDATES}
    points = content["learning_curve"]["points"]
    counts = [point["n_per_class"] for point in points]
    assert counts == sorted(counts)
    assert len(counts) == 4
    assert counts[-1] == pytest.approx(32 * 0.8, rel=0.05)
    assert points[0]["accuracy"] < points[-1]["accuracy"] <= content["learning_curve"]["twice"]["accuracy"]
    assert content["learning_curve"]["twice"]["n_per_class"] == 2 * counts[-1]
    assert evidence.held_out.before is not None
    assert evidence.held_out.before.n == evidence.held_out.after.n == 192
    assert trust.link.sharpness > 0


def test_the_same_photos_give_the_same_trust() -> None:
    first, again = (_find_trust(_draw_scenes(2, 4, 8, 2))[1] for _ in range(2))
    assert first is not None
    assert again is not None
    assert first[0].promise == again[0].promise
    assert first[0].link == again[0].link
    assert first[1].to_dict() == again[1].to_dict()


# --- little data ----------------------------------------------------------------------------------------------------


def test_forty_photos_promise_little_with_wide_intervals() -> None:
    _, found, _ = _find_trust(_draw_scenes(3, 5, 8, 1))
    assert found is not None
    trust, evidence = found
    assert trust.promise is not None
    assert (trust.promise.n, trust.promise.n_groups) == (40, 40)
    accuracy = evidence.held_out.accuracy
    assert accuracy.high - accuracy.low > 0.15
    assert any("rests on 40 groups of photos only" in note for note in note_trust(trust, evidence))


@pytest.mark.parametrize(
    ("n_classes", "n_scenes", "n_per_scene"), [(2, 10, 2), (2, 2, 1), (3, 2, 4), (6, 3, 1), (12, 2, 1)]
)
def test_few_classes_or_photos_are_no_error(n_classes: int, n_scenes: int, n_per_scene: int) -> None:
    """Fewer photos of a class than folds, and too few classes to leave any out."""
    photos = _draw_scenes(4, n_classes, n_scenes, n_per_scene)
    head, found, _ = _find_trust(photos)
    assert found is not None
    trust, evidence = found
    assert trust.detector is not None
    assert (trust.detector.kind == CANDIDATES[0]) or n_classes > 2
    if n_classes == 2:
        assert evidence.candidates == ()
    strange = trust.measure_strangeness(photos.vectors, head.score(photos.vectors))
    assert strange is not None
    assert np.isfinite(strange).all()
    json.dumps(evidence.to_dict(), allow_nan=False)


def test_classes_of_one_scene_each_promise_nothing() -> None:
    photos = _draw_scenes(5, 4, 1, 8)
    head, found, _ = _find_trust(photos)
    assert found is None
    (note,) = note_trust(Trust(), None)
    assert "No photos could be held out" in note
    assert Trust().measure_strangeness(photos.vectors, head.score(photos.vectors)) is None
    np.testing.assert_allclose(
        Trust().to_probabilities(head.score(photos.vectors)), head.predict_proba(photos.vectors), atol=1e-6
    )


# --- weights --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_no_group_counts_for_more_than_a_fifth_of_its_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=60)
    groups = rng.choice(list("abcdefgh"), size=60, p=[0.5, 0.2, *[0.05] * 6]).astype(str)
    weights = weigh_photos(labels, groups)
    assert ((weights > 0) & (weights <= 1)).all()
    for label in range(4):
        total = int((labels == label).sum())
        for group in np.unique(groups):
            inside = (labels == label) & (groups == group)
            assert weights[inside].sum() <= max(1.0, 0.2 * total) + 1e-9
            assert weights[inside].sum() >= min(inside.sum(), max(1.0, 0.2 * total)) - 1e-9


def test_a_weighted_share_has_an_interval_of_groups() -> None:
    rng = np.random.default_rng(0)
    hits, groups = np.repeat(rng.random(40) < 0.7, 5), np.repeat(np.arange(40).astype(str), 5)
    found = measure_share(hits, groups, weights=np.ones(200))
    assert found == measure_share(hits, groups)
    assert found.value == pytest.approx(hits.mean())
    assert found.high - found.low > 1.5 * (measure_share(hits).high - measure_share(hits).low)
    assert measure_share(np.ones(20, bool), groups[:20], weights=np.ones(20)).low < 0.6  # of four groups
    weights = np.where(hits, 0.3, 0.9)
    uneven = measure_share(hits, groups, weights=weights)
    assert uneven.value == pytest.approx(0.3 * hits.sum() / weights.sum())
    assert uneven.high - uneven.low >= found.high - found.low  # less to go by


# --- photos kept apart ----------------------------------------------------------------------------------------------


def test_photos_kept_apart_do_where_a_network_was_trained() -> None:
    photos, apart = _draw_scenes(6, 6, 10, 2), _draw_scenes(6, 6, 12, 2, day=1)
    head, _, _ = _find_trust(photos)
    logits, tree = head.score(apart.vectors), _name_classes(6)
    bank = Bank(sketch_vectors(photos.vectors), photos.labels)
    for sketches, known in ((None, None), (sketch_vectors(apart.vectors), bank)):
        trust, evidence = check_trust(
            logits, apart.labels, apart.groups, tree, TrustOptions(), sketches=sketches, bank=known
        )
        assert trust.detector is not None
        assert (trust.detector.kind, trust.detector.bank) == (("energy",) if known is None else CANDIDATES[0], known)
        strange = trust.measure_strangeness(apart.vectors, logits)
        assert strange is not None
        assert evidence.held_out.turned_away is not None
        assert (strange >= 0.5).mean() == evidence.held_out.turned_away.value <= 0.05
        assert (evidence.is_folds, evidence.curve, evidence.candidates) == (False, None, ())
        assert any("A network was trained on the photos learnt from" in note for note in note_trust(trust, evidence))


def test_what_is_never_promised_is_said() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=80)
    trust, evidence = check_trust(
        rng.normal(size=(80, 4)).astype(np.float32),
        labels,
        np.arange(80).astype(str),
        ClassTree.from_paths(["a", "b", "c", "d"]),
        TrustOptions(promise=0.99),
    )
    assert trust.promise is not None
    assert trust.promise.least_answer == NEVER
    assert evidence.held_out.sure_right is None
    assert evidence.held_out.share_open == 1
    assert "No answer can be promised to be right in 99 of 100; none is called sure." in note_trust(trust, evidence)


def test_without_a_promise_every_class_is_on_the_list_and_exact() -> None:
    nodes = Nodes.of(_name_classes(4))
    kept = check_promise(None, np.eye(4, dtype=np.float32), np.arange(4), np.array(list("abcd")), nodes)
    assert (kept.covered, kept.sure_right, kept.turned_away, kept.shortlist_size) == (None, None, None, 4)
    assert kept.accuracy.value == 1
    json.dumps(kept.to_dict(), allow_nan=False)


def test_simple_ways_are_measured_on_the_same_photos() -> None:
    learnt = np.array([0, 0, 0, 1, 2])
    bank = Bank(np.array([[1, 0], [1, 0.1], [0.9, 0], [0, 1], [-1, 0]], np.float32), learnt)
    asked, labels = np.array([[3, 0], [0, 9], [0, 5], [-2, 0.1]], np.float32), np.array([0, 1, 0, 2])
    groups = np.array(list("abcd"))
    frequent, nearest = measure_baselines(learnt, bank, asked, labels, groups)
    assert (frequent.name, frequent.accuracy.value) == ("most frequent", 0.5)
    assert (nearest.name, nearest.accuracy.value) == ("nearest", 0.75)
    assert measure_baselines(learnt, None, asked, labels, groups) == (frequent,)


def test_a_link_is_all_that_lies_between_logits_and_probabilities() -> None:
    logits = np.array([[1.0, 0.0]], np.float32)
    (first, second) = Trust(Link(None, 2.0)).to_probabilities(logits)[0]
    assert first / second == pytest.approx(np.exp(2))
