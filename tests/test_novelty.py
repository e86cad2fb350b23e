"""What was not learnt is told from what was, by numbers that are the same in the graph as here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import roc_auc_score, roc_curve

from pomona.engine import Engine
from pomona.head import Head, Link
from pomona.model_file import UNKNOWN, build_model, replace_head
from pomona.novelty import (
    CANDIDATES,
    SKETCH_DIM,
    Bank,
    Detector,
    Trial,
    fit_measures,
    fit_scales,
    fit_threshold,
    measure_all,
    measure_auroc,
    measure_false_known,
    part_classes,
    score_candidates,
    sketch_vectors,
    to_strangeness,
)
from pomona.trust import Trust

if TYPE_CHECKING:
    from pathlib import Path

SIDES = {48: 4, 300: 10}  # features are the bytes of a photo of 3 x 4 x 4 or 3 x 10 x 10
KINDS = pytest.mark.parametrize("kind", CANDIDATES, ids="+".join)


def _draw_bank(rng: np.random.Generator, n_per_class: int, *, dim: int = 48, n_classes: int = 4) -> Bank:
    centres = rng.normal(size=(n_classes, dim)) * 0.3 + 0.5
    labels = np.repeat(np.arange(n_classes), n_per_class)
    vectors = centres[labels] + 0.05 * rng.normal(size=(len(labels), dim))
    return Bank(sketch_vectors(vectors.astype(np.float32)), labels)


def _make_detector(bank: Bank, kind: tuple[str, ...], head: Head, link: Link) -> Detector:
    """About what is known, so that strangeness is near 0.5 and a difference shows."""
    asked = bank.vectors + np.float32(0.05)
    found = measure_all(bank, asked, link.apply(np.ones((len(asked), len(head.bias)), np.float32)))
    middles, spreads = fit_scales([found[one] for one in kind])
    return Detector(kind, middles, tuple(10 * spread for spread in spreads), 0.25, bank)


def _make_network(path: Path, dim: int) -> Path:
    """ONNX file whose features are the bytes of the photo, 0-1."""
    side = SIDES[dim]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["features"]),
    ]
    constants = {"scale": np.array(1 / 255, np.float32), "flat": np.array([0, dim])}
    graph = helper.make_graph(
        nodes,
        "bytes",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", side, side, 3))],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", dim))],
        initializer=[numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def _draw_head(rng: np.random.Generator, n_classes: int, dim: int) -> Head:
    weights = rng.normal(size=(n_classes, dim)) / np.sqrt(dim)
    return Head(weights.astype(np.float32), rng.normal(size=n_classes).astype(np.float32), 0.01)


def _run(model: bytes, folder: Path, pixels: Any) -> dict[str, Any]:
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    path.write_bytes(model)
    onnx.checker.check_model(str(path), full_check=True)
    return dict(Engine(path, n_workers=1).run(pixels))


def _check_answers(found: dict[str, Any], head: Head, trust: Trust, pixels: Any) -> None:
    vectors = pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
    logits = head.score(vectors)
    np.testing.assert_allclose(found["features"], vectors, atol=1e-6)
    np.testing.assert_allclose(found["probabilities"], trust.to_probabilities(logits), atol=1e-5)
    wanted = trust.measure_strangeness(vectors, logits)
    if wanted is None:
        assert UNKNOWN not in found
        return
    assert found[UNKNOWN].shape == wanted.shape
    np.testing.assert_allclose(found[UNKNOWN], wanted, atol=1e-4)
    assert np.ptp(wanted) > 0.01  # or nothing was compared


# --- sketches -------------------------------------------------------------------------------------------------------


def test_sketches_keep_products_on_average() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 400, 1000)) + 0.3
    true = (first * second).sum(axis=1)
    kept = (sketch_vectors(first.astype(np.float32)) * sketch_vectors(second.astype(np.float32))).sum(axis=1)
    assert np.mean(kept) == pytest.approx(np.mean(true), rel=0.15)
    lengths = np.square(sketch_vectors(first.astype(np.float32))).sum(axis=1) / np.square(first).sum(axis=1)
    assert 0.95 < np.mean(lengths) < 1.05


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.floats(-3, 3))
def test_sketches_are_linear_and_few_numbers_stay(dim: int, factor: float) -> None:
    first, second = np.random.default_rng(dim).normal(size=(2, 5, dim)).astype(np.float32)
    summed = sketch_vectors(first + np.float32(factor) * second)
    np.testing.assert_allclose(
        summed, sketch_vectors(first) + np.float32(factor) * sketch_vectors(second), rtol=1e-4, atol=1e-4
    )
    assert summed.shape == (5, min(dim, SKETCH_DIM))
    if dim <= SKETCH_DIM:
        np.testing.assert_array_equal(sketch_vectors(first), first)


def test_number_k_is_the_sum_of_every_256th() -> None:
    vectors = np.zeros((600, 600), np.float32)
    np.fill_diagonal(vectors, 1)
    found = sketch_vectors(vectors)
    np.testing.assert_array_equal(np.abs(found).argmax(axis=1), np.arange(600) % SKETCH_DIM)
    np.testing.assert_array_equal(np.abs(found).sum(axis=1), 1)
    assert 200 < (found.sum(axis=1) > 0).sum() < 400


# --- the graph ------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(("dim", "link"), [(48, Link()), (300, Link(0.7, 1.6)), (48, Link(None, 3.0))])
def test_the_graph_says_what_numpy_does(tmp_path: Path, kind: tuple[str, ...], dim: int, link: Link) -> None:
    rng = np.random.default_rng(0)
    bank, head = _draw_bank(rng, 12, dim=dim), _draw_head(rng, 4, dim)
    detector = _make_detector(bank, kind, head, link)
    pixels = rng.integers(0, 256, (9, SIDES[dim], SIDES[dim], 3), np.uint8)
    (tmp_path / "models").mkdir()
    vectors = pixels.reshape(9, -1).astype(np.float32) / np.float32(255)
    # Random bytes are far off; the threshold goes among them, where every difference shows.
    sums = detector.add_up(
        [measure_all(bank, sketch_vectors(vectors), link.apply(head.score(vectors)))[one] for one in kind]
    )
    near = Detector(
        kind,
        detector.middles,
        tuple(spread * max(1, float(np.std(sums))) for spread in detector.spreads),
        float(np.mean(sums) / max(1, float(np.std(sums)))),
        bank if kind != ("energy",) else None,
    )
    trust = Trust(link, near)
    model = build_model(_make_network(tmp_path / "network.onnx", dim), head, trust)
    found = _run(model, tmp_path / "models", pixels)
    _check_answers(found, head, trust, pixels)


@KINDS
def test_a_head_replaced_is_a_graph_built_anew(tmp_path: Path, kind: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    link = Link(0.9, 1.5)
    heads = [_draw_head(rng, n_classes, 300) for n_classes in (4, 5, 3)]
    banks = [_draw_bank(rng, n, dim=300, n_classes=c) for n, c in ((12, 4), (80, 5), (4, 3))]
    old = Trust(link, _make_detector(banks[0], kind, heads[0], link))
    network = _make_network(tmp_path / "network.onnx", 300)
    model = build_model(network, heads[0], old)
    pixels = rng.integers(0, 256, (5, 10, 10, 3), np.uint8)
    (tmp_path / "models").mkdir()
    assert old.detector is not None
    for head, bank in zip(heads[1:], banks[1:], strict=True):
        trust = Trust(link, old.detector.relearn(bank))
        assert trust.detector is not None
        assert (trust.detector.bank, trust.detector.middles) == (bank, old.detector.middles)
        model = replace_head(model, head, trust)
        anew = build_model(network, head, trust)
        found, wanted = _run(model, tmp_path / "models", pixels), _run(anew, tmp_path / "models", pixels)
        assert found.keys() == wanted.keys() == {"probabilities", "features", UNKNOWN}
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)
        assert found["probabilities"].shape == (5, len(head.bias))


def test_the_energy_alone_is_the_same_graph_with_and_without_a_bank(tmp_path: Path) -> None:
    """A run writes it with one, and teaching reads it back without."""
    rng = np.random.default_rng(0)
    bank, head = _draw_bank(rng, 12, dim=300), _draw_head(rng, 4, 300)
    written = Detector(("energy",), (-1.8,), (0.5,), 0.5, bank)
    model = build_model(_make_network(tmp_path / "network.onnx", 300), head, Trust(Link(), written))
    other = _draw_head(rng, 5, 300)
    taught = replace_head(model, other, Trust(Link(), Detector(("energy",), (-1.8,), (0.5,), 0.5)))
    (tmp_path / "models").mkdir()
    pixels = rng.integers(0, 256, (5, 10, 10, 3), np.uint8)
    _check_answers(_run(taught, tmp_path / "models", pixels), other, Trust(Link(), written), pixels)


# --- measures of what is odd ----------------------------------------------------------------------------------------


@KINDS
def test_clusters_far_from_all_are_found(kind: tuple[str, ...]) -> None:
    rng = np.random.default_rng(2)
    bank = _draw_bank(rng, 30)
    head = np.stack([bank.vectors[bank.labels == label].mean(axis=0) for label in range(4)]) - bank.vectors.mean(axis=0)
    known = (bank.vectors + 0.05 * rng.normal(size=bank.vectors.shape)).astype(np.float32)
    far = (0.5 + 0.3 * rng.normal(size=48) + 0.05 * rng.normal(size=(60, 48))).astype(np.float32)
    tables = [measure_all(bank, asked, (asked - 0.5) @ head.T * 3) for asked in (known, far)]
    middles, spreads = fit_scales([tables[0][one] for one in kind])
    detector = Detector(kind, middles, spreads, 0.0, bank)
    inside, outside = (detector.add_up([table[one] for one in kind]) for table in tables)
    assert measure_auroc(inside, outside) > (0.75 if kind == ("energy",) else 0.99)


@KINDS
@pytest.mark.parametrize("case", ["alone", "the same", "two classes", "zeros"])
def test_few_or_equal_photos_give_numbers(kind: tuple[str, ...], case: str) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(8, 20)).astype(np.float32)
    labels = np.arange(8)
    if case == "the same":
        vectors[:] = vectors[0]
    elif case == "two classes":
        labels = np.arange(8) % 2
    elif case == "zeros":
        vectors[:] = 0
    bank = Bank(vectors, labels)
    logits = rng.normal(size=(8, 3)).astype(np.float32)
    found = measure_all(bank, vectors, logits)
    assert all(np.isfinite(values).all() and values.shape == (8,) for values in found.values())
    middles, spreads = fit_scales([found[one] for one in kind])
    detector = Detector(kind, middles, spreads, 0.0, bank)
    strange = detector.measure(vectors, logits)
    assert np.isfinite(strange).all()
    assert all(np.isfinite(values).all() for values in fit_measures(bank))


def test_measures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(5)
    bank = _draw_bank(rng, 10, dim=20)
    asked, logits = rng.normal(size=(6, 20)).astype(np.float32), rng.normal(size=(6, 4))
    found = measure_all(bank, asked, logits)
    wide, photos = bank.vectors.astype(float), asked.astype(float)
    centres = np.stack([wide[bank.labels == label].mean(axis=0) for label in range(4)])

    def invert(table: Any) -> Any:
        covariance = table.T @ table / len(table)
        return np.linalg.inv(covariance + np.eye(20) * np.trace(covariance) / 20)

    def measure(moved: Any, inverse: Any) -> Any:
        return np.einsum("nk,kl,nl->n", moved, inverse, moved)

    within, total = invert(wide - centres[bank.labels]), invert(wide - wide.mean(axis=0))
    nearest = np.min([measure(photos - centre, within) for centre in centres], axis=0)
    np.testing.assert_allclose(found["mahalanobis"], nearest, rtol=1e-3)
    beside = nearest - measure(photos - wide.mean(axis=0), total)
    np.testing.assert_allclose(found["relative-mahalanobis"], beside, rtol=1e-3)
    likeness = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in wide] for a in photos]
    np.testing.assert_allclose(found["nearest"], 1 - np.max(likeness, axis=1), atol=1e-5)
    np.testing.assert_allclose(found["energy"], -np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)
    axes = np.linalg.svd(wide - wide.mean(axis=0))[2][:5]  # a quarter of 20
    moved = photos - wide.mean(axis=0)
    np.testing.assert_allclose(found["residual"], np.square(moved - moved @ axes.T @ axes).sum(axis=1), rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_areas_and_shares_are_those_of_scikit_learn(seed: int, n_known: int, n_strange: int) -> None:
    rng = np.random.default_rng(seed)
    known, strange = rng.integers(0, 8, n_known) / 8, rng.integers(0, 10, n_strange) / 8
    truth, scores = np.repeat([0, 1], [n_known, n_strange]), np.concatenate([known, strange])
    assert measure_auroc(known, strange) == pytest.approx(roc_auc_score(truth, scores))
    share = measure_false_known(known, strange)
    # Of a curve of finding the known: how many strange ones come with at least 95 in 100 of them.
    away, found, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    least = away[found >= 0.95].min()
    assert share <= least + 1e-9
    assert share == pytest.approx((strange <= np.quantile(known, 0.95)).mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.floats(0.01, 0.5))
def test_a_threshold_turns_no_more_away_than_it_may(seed: int, n: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    sums = rng.integers(0, 50, n) / 10
    threshold = fit_threshold(sums, share, n_groups=n)
    assert (to_strangeness(sums, threshold) >= 0.5).mean() <= share
    weights = rng.integers(1, 4, n)
    twice = fit_threshold(np.repeat(sums, weights), share, n_groups=n)
    if twice <= sums.max() + 0.01:  # beyond all, it goes by how far they are spread
        assert fit_threshold(sums, share, n_groups=n, weights=weights) == pytest.approx(twice)


def test_a_threshold_holds_for_photos_to_come() -> None:
    away = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        away.append((rng.normal(size=2000) > fit_threshold(rng.normal(size=100), 0.05, n_groups=100)).mean())
    assert 0.035 < np.mean(away) <= 0.05 + 3 * np.std(away) / np.sqrt(200)


def test_photos_that_are_all_as_strange_are_all_known() -> None:
    for n in (3, 30, 300):
        sums = np.zeros(n, np.float32)
        assert (to_strangeness(sums, fit_threshold(sums, 0.05, n_groups=n)) < 0.5).all()


# --- choosing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_classes", "n_parts"), [(1, 0), (2, 0), (3, 3), (4, 4), (5, 5), (12, 5)])
def test_every_class_is_in_one_part(n_classes: int, n_parts: int) -> None:
    bank = _draw_bank(np.random.default_rng(n_classes), 6, n_classes=n_classes)
    parts = part_classes(Bank(bank.vectors, 10 * bank.labels))
    assert len(parts) == n_parts
    assert sorted(np.concatenate([[], *parts]).tolist()) == (10 * np.arange(n_classes)).tolist() * bool(n_parts)


def test_what_looks_alike_is_left_out_together() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(5, 30)) * 5
    centres = np.repeat(kinds, 4, axis=0) + 0.2 * rng.normal(size=(20, 30))
    labels = np.tile(np.arange(20), 6)
    bank = Bank((centres[labels] + 0.1 * rng.normal(size=(120, 30))).astype(np.float32), labels)
    assert sorted(part.tolist() for part in part_classes(bank)) == np.arange(20).reshape(5, 4).tolist()
    # Many varieties of one kind stay together where others are further apart.
    centres[:17], centres[17:] = centres[0] + 0.01 * rng.normal(size=(17, 30)), 5 * np.eye(3, 30)
    uneven = Bank(centres[labels].astype(np.float32), labels)
    assert sorted(map(len, part_classes(uneven, 4))) == [1, 1, 1, 17]
    same = Bank(np.ones((12, 3), np.float32), np.arange(12) % 6)
    assert sorted(np.concatenate(part_classes(same)).tolist()) == list(range(6))


def test_candidates_are_scored_by_what_they_tell_apart() -> None:
    rng = np.random.default_rng(0)
    names = dict.fromkeys(kind for candidate in CANDIDATES for kind in candidate)
    known = {kind: rng.normal(size=300).astype(np.float32) for kind in names}
    strange = {kind: rng.normal(size=200).astype(np.float32) for kind in names}
    strange["residual"] += 3
    scores = score_candidates([Trial(known, strange), Trial(known, strange)])
    assert tuple(scores) == CANDIDATES
    assert max(scores, key=lambda one: scores[one]) == ("residual",)
    assert scores[("residual",)] == pytest.approx(measure_auroc(known["residual"], strange["residual"]))
    assert abs(scores[("nearest",)] - 0.5) < 0.1
