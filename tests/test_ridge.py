"""A ridge head is the exact solution of its problem, however it came about: at once, from folds, photo by photo."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona import ridge as module
from pomona import ridge_state
from pomona.errors import FitError, OptionError
from pomona.head import DEFAULT_TEMPERATURE, fit_temperature
from pomona.ridge import (
    MIN_STRENGTH,
    RIDGE_STRENGTHS,
    Ridge,
    Sketch,
    fit_ridge,
    solve_dual,
    solve_primal,
    study_ridge,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.head import Head

Folds = list[tuple["NDArray[np.intp]", "NDArray[np.intp]"]]


def draw_photos(
    n_photos: int = 120, dim: int = 300, n_classes: int = 4, *, seed: int = 0, spread: float = 0.3, place: float = 3
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Features of overlapping classes, away from zero."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n_photos) % n_classes)
    means = rng.normal(size=(n_classes, dim)) * spread
    vectors = rng.normal(size=(n_photos, dim)) + means[labels] + rng.normal(size=dim) * place
    return vectors.astype(np.float32), labels


def make_folds(n: int, n_folds: int = 3, seed: int = 0) -> Folds:
    parts = np.array_split(np.random.default_rng(seed).permutation(n), n_folds)
    return [(np.setdiff1d(np.arange(n), part), part) for part in parts]


def score(head: Head, vectors: NDArray[Any]) -> NDArray[np.float64]:
    return vectors.astype(np.float64) @ head.weights.T.astype(np.float64) + head.bias


def measure_spread(vectors: NDArray[Any]) -> float:
    wide = vectors.astype(np.float64)
    return float(((wide - wide.mean(axis=0)) ** 2).sum(axis=1).mean())


def loss_of(scores: NDArray[Any], labels: NDArray[np.intp], temperature: float) -> float:
    logits = scores / temperature
    return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


def assert_same(got: Ridge, wanted: Ridge, atol: float = 1e-4) -> None:
    """Equal to a share of the weights' scale, and in scores; the states may differ in their origin."""
    scale = np.abs(wanted.weights).max()
    np.testing.assert_allclose(got.weights / scale, wanted.weights / scale, atol=atol)
    np.testing.assert_array_equal(got.labels, wanted.labels)
    photos = wanted.settle().blocks[0] + wanted.origin
    scores = score(wanted.to_head(), photos) * wanted.temperature
    np.testing.assert_allclose(score(got.to_head(), photos) * got.temperature, scores, atol=3e-4)


# --- the solution ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [3e-2, 1e-3, MIN_STRENGTH])
@pytest.mark.parametrize(("n", "dim", "n_classes"), [(120, 300, 4), (200, 150, 2), (5, 700, 2), (90, 110, 30)])
def test_both_solutions_are_those_of_scikit_learn(n: int, dim: int, n_classes: int, strength: float) -> None:
    from sklearn.linear_model import Ridge as Reference

    vectors, labels = draw_photos(n, dim, n_classes)
    penalty = strength * measure_spread(vectors)
    reference = Reference(alpha=penalty, solver="svd").fit(vectors.astype(np.float64), np.eye(n_classes)[labels])
    unseen, _ = draw_photos(50, dim, n_classes, seed=1)
    heads = [solve_dual(vectors, labels, n_classes, penalty).to_head()]
    if strength > MIN_STRENGTH:  # where photos are few, rounding in what they do not span shows there
        heads.append(solve_primal(vectors, labels, n_classes, penalty))
    for head in heads:
        scale = np.abs(reference.coef_).max()
        atol = 1e-2 if strength == MIN_STRENGTH else 1e-3
        np.testing.assert_allclose(head.weights / scale, reference.coef_ / scale, atol=atol)
        np.testing.assert_allclose(score(head, unseen), reference.predict(unseen), atol=atol)
        assert head.weights.dtype == head.bias.dtype == np.float32
        assert head.weights.flags.c_contiguous


def test_the_penalty_is_a_share_of_the_mean_squared_distance() -> None:
    vectors, labels = draw_photos()
    _, _, ridge = fit_ridge(vectors, labels, 4, strengths=(0.01,))
    assert ridge is not None
    assert ridge.penalty == pytest.approx(0.01 * measure_spread(vectors), rel=1e-5)
    for scale in (1e-6, 1e6):
        head, _, _ = fit_ridge(vectors * np.float32(scale), labels, 4, strengths=(0.01,))
        np.testing.assert_allclose(score(head, vectors * np.float32(scale)), score(ridge.to_head(), vectors), atol=2e-2)


def test_a_head_is_the_scores_over_the_temperature() -> None:
    vectors, labels = draw_photos()
    head, _, ridge = fit_ridge(vectors, labels, 4, make_folds(120))
    assert ridge is not None
    assert head.l2 == ridge.l2
    plain = solve_dual(vectors, labels, 4, ridge.penalty).to_head()
    np.testing.assert_allclose(score(head, vectors) * ridge.temperature, score(plain, vectors), atol=1e-4)
    np.testing.assert_array_equal(ridge.to_head().weights, head.weights)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_permuting_photos_changes_nothing(seed: int) -> None:
    vectors, labels = draw_photos()
    folds = make_folds(120)
    order = np.random.default_rng(seed).permutation(120)
    place = np.argsort(order)
    wanted, fits, _ = fit_ridge(vectors, labels, 4, folds)
    moved = [(place[fitted], place[held_out]) for fitted, held_out in folds]
    head, tried, _ = fit_ridge(vectors[order], labels[order], 4, moved)
    assert head.l2 == wanted.l2
    assert [fit.log_loss for fit in tried] == pytest.approx([fit.log_loss for fit in fits], abs=1e-4)
    np.testing.assert_allclose(head.predict_proba(vectors), wanted.predict_proba(vectors), atol=1e-3)


def test_the_input_is_not_written_to_and_the_same_input_gives_the_same_head() -> None:
    vectors, labels = draw_photos()
    vectors.flags.writeable = labels.flags.writeable = False
    first, second = (fit_ridge(vectors, labels, 4, folds)[0] for folds in (make_folds(120), make_folds(120)))
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)
    fit_ridge(vectors, labels.astype(np.int8), 4)
    solve_dual(vectors, labels, 4, 1.0).add(vectors[:3], labels[:3], 4).remove(np.array([0]))
    solve_primal(vectors, labels, 4, 1.0)


# --- the choice of strength and temperature -------------------------------------------------------------------------


def score_by_refits(
    vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int, folds: Folds, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    scores = [
        score(solve_dual(vectors[fitted], labels[fitted], n_classes, penalty).to_head(), vectors[held_out])
        for fitted, held_out in folds
    ]
    return np.concatenate(scores), np.concatenate([labels[held_out] for _, held_out in folds])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from(RIDGE_STRENGTHS), st.booleans())
def test_held_out_scores_are_those_of_refits(seed: int, n_folds: int, strength: float, partly: bool) -> None:
    vectors, labels = draw_photos(60, 100, seed=seed)
    folds = make_folds(60, n_folds, seed)
    if partly:  # some photos are neither fitted on nor held out, and no order is kept
        folds = [(fitted[::-1], held_out[: len(held_out) // 2][::-1]) for fitted, held_out in folds]
    penalty = strength * measure_spread(vectors)
    wanted, known = score_by_refits(vectors, labels, 4, folds, penalty)
    problem = module._Problem(vectors.copy(), labels, 4)
    trial = module._try_folds(problem, folds, np.arange(60), 60)
    np.testing.assert_array_equal(trial.labels, known)
    np.testing.assert_allclose(trial.score(penalty)[1], wanted, atol=3e-4)


def test_leaving_out_each_photo_is_as_refits_without_it() -> None:
    vectors, labels = draw_photos(30, 50)
    vectors, labels = np.vstack([vectors, vectors[:1] + 1]), np.append(labels, 4)
    problem = module._Problem(vectors.copy(), labels, 5)
    trial = module._try_each(problem)
    penalty = 0.01 * problem.spread
    folds = [(np.delete(np.arange(31), row), np.array([row])) for row in range(30)]
    wanted, known = score_by_refits(vectors, labels, 5, folds, penalty)
    np.testing.assert_array_equal(trial.labels, known)  # the last is the only photo of its class
    np.testing.assert_allclose(trial.score(penalty)[1], wanted, atol=3e-4)
    head, tried, ridge = fit_ridge(vectors, labels, 5)
    assert ridge is not None
    assert (head.l2, tried) == (RIDGE_STRENGTHS[1], ())
    wanted, _ = score_by_refits(vectors, labels, 5, folds, ridge.penalty)
    assert ridge.temperature == pytest.approx(fit_temperature(wanted, known), rel=1e-2)


@pytest.mark.parametrize("n_folds", [1, 4])
def test_what_is_chosen_is_best_on_held_out_photos(n_folds: int) -> None:
    vectors, labels = draw_photos(90, 60, seed=3)
    folds = make_folds(90, 4)[:n_folds]
    strengths = (1.0, 3e-2, 1e-3)
    head, tried, ridge = fit_ridge(vectors, labels, 4, folds, strengths=strengths[::-1])
    assert ridge is not None
    assert [fit.l2 for fit in tried] == list(strengths)
    rows = folds[0][0] if n_folds == 1 else np.arange(90)
    spread = measure_spread(vectors[rows])
    for fit in tried:
        scores, known = score_by_refits(vectors, labels, 4, folds, fit.l2 * spread)
        temperature = fit_temperature(scores, known)
        assert fit.log_loss == pytest.approx(loss_of(scores, known, temperature), rel=1e-3)
        assert fit.accuracy == pytest.approx((scores.argmax(axis=1) == known).mean(), abs=0.02)
        if fit.l2 == head.l2:
            assert ridge.temperature == pytest.approx(temperature, rel=1e-2)
    assert head.l2 == min(tried, key=lambda fit: fit.log_loss).l2
    assert max(fit.log_loss for fit in tried) > 1.02 * min(fit.log_loss for fit in tried)
    assert_same(ridge, solve_dual(vectors[rows], labels[rows], 4, ridge.penalty))


def test_each_strength_is_a_step_and_without_folds_there_is_none() -> None:
    vectors, labels = draw_photos()
    steps: list[None] = []
    _, tried, _ = fit_ridge(vectors, labels, 4, iter(make_folds(120)), on_step=lambda: steps.append(None))
    assert len(steps) == len(tried) == len(RIDGE_STRENGTHS)
    fit_ridge(vectors, labels, 4, on_step=lambda: steps.append(None))
    assert len(steps) == len(RIDGE_STRENGTHS)


def test_a_class_may_miss_from_a_fold() -> None:
    vectors, labels = draw_photos(spread=1)
    folds = [(np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)), *make_folds(120)]
    head, tried, _ = fit_ridge(vectors, labels, 4, folds)
    assert all(np.isfinite(fit.log_loss) for fit in tried)
    assert (head.predict_proba(vectors).argmax(axis=1) == labels).mean() > 0.9


# --- learning on ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 2**32 - 1), st.sampled_from([3e-2, 1e-3, MIN_STRENGTH]))
def test_a_chain_of_changes_is_a_fit_of_what_is_left(data: st.DataObject, seed: int, strength: float) -> None:
    vectors, labels = draw_photos(60, 150, seed=seed)
    penalty = strength * measure_spread(vectors)
    ridge, n_classes, rng = solve_dual(vectors, labels, 4, penalty), 4, np.random.default_rng(seed)
    for step in data.draw(st.lists(st.sampled_from(["class", "known", "rows", "less", "order"]), max_size=6)):
        if step in ("class", "known"):
            n = data.draw(st.integers(1, 12))
            new = (rng.normal(size=(n, 150)) + rng.normal(size=150) * 4).astype(np.float32)
            n_classes += step == "class"
            added = np.full(n, n_classes - 1) if step == "class" else rng.integers(n_classes, size=n)
            vectors, labels = np.vstack([vectors, new]), np.append(labels, added)
            ridge = ridge.add(new, added, n_classes)
        elif step == "rows":
            first = [np.flatnonzero(labels == c)[0] for c in range(n_classes)]
            rows = np.setdiff1d(rng.integers(len(labels), size=data.draw(st.integers(1, 12))), first)
            vectors, labels = np.delete(vectors, rows, axis=0), np.delete(labels, rows)
            ridge = ridge.remove(rows)
        elif step == "less" and n_classes > 2:
            number = data.draw(st.integers(0, n_classes - 1))
            vectors, labels = vectors[labels != number], labels[labels != number]
            labels, n_classes = labels - (labels > number), n_classes - 1
            ridge = ridge.remove_class(number)
        elif step == "order":
            numbers = rng.permutation(n_classes)
            labels, ridge = numbers[labels], ridge.renumber(numbers)
    assert_same(ridge, solve_dual(vectors, labels, n_classes, penalty))
    assert ridge.n_classes == n_classes


@pytest.mark.parametrize("n_folds", [0, 1, 3])
def test_a_fit_makes_its_inverse_when_it_is_asked_for(n_folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n_tables = 0
    to_table = module.FactoredTable.to_table

    def count(table: module.FactoredTable) -> NDArray[np.float64]:
        nonlocal n_tables
        n_tables += 1
        return to_table(table)

    monkeypatch.setattr(module.FactoredTable, "to_table", count)
    vectors, labels = draw_photos(500, 700)
    folds = make_folds(500)[:n_folds]
    _, _, ridge = fit_ridge(vectors, labels, 4, folds)
    assert ridge is not None
    assert not n_tables
    x = ridge.blocks[0].astype(np.float64)
    bordered = np.block([[np.zeros((1, 1)), np.ones((1, len(x)))], [np.ones((len(x), 1)), x @ x.T]])
    bordered[1:, 1:] += ridge.penalty * np.eye(len(x))
    np.testing.assert_allclose(ridge.inverse.table @ bordered, np.eye(len(x) + 1), atol=1e-4)
    np.testing.assert_allclose(ridge.inverse.table[np.array([0, 7])] @ bordered, np.eye(len(x) + 1)[[0, 7]], atol=1e-4)
    assert not n_tables
    np.testing.assert_allclose(ridge.inverse.table.to_table() @ bordered, np.eye(len(x) + 1), atol=1e-4)


def test_a_change_leaves_the_old_state_and_two_may_follow_one() -> None:
    vectors, labels = draw_photos(80, 120)
    old = solve_dual(vectors[:60], labels[:60], 4, 5.0)
    weights, duals = old.weights.copy(), old.duals.copy()
    first = old.add(vectors[60:70], labels[60:70], 4)
    second = old.add(vectors[70:], labels[70:], 4)
    less = old.remove(np.arange(3))
    np.testing.assert_array_equal(old.weights, weights)
    np.testing.assert_array_equal(old.duals, duals)
    for ridge, rows in ((first, np.arange(70)), (second, np.r_[:60, 70:80]), (less, np.arange(3, 60))):
        assert_same(ridge, solve_dual(vectors[rows], labels[rows], 4, 5.0))


def test_many_changes_are_worked_in_and_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge_state, "_MAX_RANK", 10)
    vectors, labels = draw_photos(100, 120)
    ridge = solve_dual(vectors[:60], labels[:60], 4, 5.0)
    for row in range(60, 100):
        ridge = ridge.add(vectors[row : row + 1], labels[row : row + 1], 4).remove(np.array([0]))
        assert len(ridge.inverse.signs) <= 10
        assert len(ridge.blocks) <= 11
    assert_same(ridge, solve_dual(vectors[40:], labels[40:], 4, 5.0))
    assert_same(ridge.add(vectors[:40], labels[:40], 4).remove(np.arange(60, 100)), ridge)


def test_nothing_added_or_removed_changes_nothing() -> None:
    vectors, labels = draw_photos()
    ridge = solve_dual(vectors, labels, 4, 1.0)
    assert ridge.add(vectors[:0], labels[:0], 4) is ridge
    assert ridge.remove(np.zeros(0, np.intp)) is ridge


def test_a_state_survives_as_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    vectors, labels = draw_photos()
    _, _, ridge = fit_ridge(vectors, labels, 4, make_folds(120))
    assert ridge is not None
    for state in (ridge, ridge.add(vectors[:5] + 1, np.full(5, 4), 5).remove_class(0)):
        save_file(state.to_tensors(), tmp_path / "ridge.safetensors")
        again = Ridge.from_tensors(load_file(tmp_path / "ridge.safetensors"))
        assert_same(again, state, atol=1e-5)
        assert (again.temperature, again.penalty, again.l2) == (state.temperature, state.penalty, state.l2)
        assert_same(again.remove_class(1), state.remove_class(1))


@pytest.mark.parametrize("name", ["origin", "vectors", "labels", "inverse", "penalty", "temperature", "l2"])
def test_tensors_that_do_not_fit_are_a_value_error(name: str) -> None:
    vectors, labels = draw_photos()
    tensors = solve_dual(vectors, labels, 4, 1.0).to_tensors()
    with pytest.raises(ValueError, match="wanted the tensors of a ridge, of shapes"):
        Ridge.from_tensors(tensors | {name: np.append(tensors[name].ravel(), tensors[name].ravel()[:1])})
    del tensors[name]
    with pytest.raises(ValueError, match="wanted the tensors of a ridge, of shapes"):
        Ridge.from_tensors(tensors)


# --- many photos ----------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory were short: 60 photos to choose on, parts of 50 rows and 32 columns, and no room for a kernel."""
    for name, value in (("N_CHOSEN_ON", 60), ("_CHUNK_ROWS", 50), ("_TILE", 32), ("MAX_BYTES", 300_000)):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("n_folds", [0, 1, 3])
def test_many_photos_are_solved_in_parts(n_folds: int, tmp_path: Path) -> None:
    vectors, labels = draw_photos(230, 70)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert isinstance(mapped.base, mmap.mmap)
    folds = make_folds(230)[:n_folds]
    rows = folds[0][0] if n_folds == 1 else np.arange(230)
    head, tried, ridge = fit_ridge(mapped, labels, 4, folds)
    assert ridge is None
    assert len(tried) == (len(RIDGE_STRENGTHS) if n_folds else 0)
    penalty = head.l2 * measure_spread(vectors)
    wanted = score(solve_dual(vectors[rows], labels[rows], 4, penalty).to_head(), vectors)
    ratio = (wanted * score(head, vectors)).sum() / (wanted**2).sum()  # one over the temperature
    assert ratio > 1.05  # without the temperature it is 1
    # The mean distance is that of the photos chosen on, so the penalty differs by some percent.
    np.testing.assert_allclose(score(head, vectors) / ratio, wanted, atol=0.05)
    assert (head.predict_proba(vectors).argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.98


@pytest.mark.usefixtures("narrow")
def test_the_solution_in_parts_is_the_same() -> None:
    vectors, labels = draw_photos(230, 70)
    rows = np.random.default_rng(0).permutation(230)[:180]
    head = solve_primal(vectors, labels, 4, 5.0, rows)
    wanted = solve_dual(vectors[rows], labels[rows], 4, 5.0).to_head()
    np.testing.assert_allclose(head.weights, wanted.weights, atol=1e-4 * np.abs(wanted.weights).max())
    np.testing.assert_allclose(score(head, vectors), score(wanted, vectors), atol=3e-4)


@pytest.mark.usefixtures("narrow")
def test_the_photos_chosen_on_do_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = draw_photos(230, 70)
    order = np.random.default_rng(1).permutation(230)
    for limit in (300_000, 10**9):  # with and without room for the kernel of all photos
        monkeypatch.setattr(module, "MAX_BYTES", limit)
        wanted, _, state = fit_ridge(vectors, labels, 4)
        head, _, _ = fit_ridge(vectors[order], labels[order], 4)
        np.testing.assert_allclose(head.predict_proba(vectors), wanted.predict_proba(vectors), atol=1e-3)
        assert (state is None) == (limit == 300_000)
    assert state is not None
    assert len(state.labels) == 230


@pytest.mark.usefixtures("narrow")
def test_too_many_photos_and_dimensions_are_solved_on_a_sketch() -> None:
    random = np.random.default_rng(0)
    means = random.standard_normal((3, 300)).astype(np.float32)
    labels = np.arange(690) % 3
    vectors = means[labels] + random.standard_normal((690, 300)).astype(np.float32)
    head, _, state = fit_ridge(vectors[:600], labels[:600], 3)
    assert state is None
    assert head.weights.shape == (3, 300)
    exact = solve_dual(vectors[:600], labels[:600], 3, 10.0).to_head()
    found, wanted = (
        float((one.predict_proba(vectors[600:]).argmax(1) == labels[600:]).mean()) for one in (head, exact)
    )
    assert wanted > 0.95
    assert found > wanted - 0.1


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_a_sketch_and_its_weights_give_the_same_products(dim: int, limit: int, seed: int) -> None:
    """Weights of the sketch, spread over the features, score a photo as they score its sketch."""
    random = np.random.default_rng(seed)
    sketch = Sketch.plan(dim, limit)
    vectors = random.standard_normal((4, dim)).astype(np.float32)
    sketched = sketch.apply(vectors)
    assert sketched.shape == (4, min(dim, limit))
    weights = random.standard_normal((2, sketched.shape[1])).astype(np.float32)
    np.testing.assert_allclose(vectors @ sketch.spread(weights).T, sketched @ weights.T, atol=1e-4)


def test_products_of_sketches_are_those_of_the_features_on_average() -> None:
    vectors = np.random.default_rng(1).standard_normal((40, 4000)).astype(np.float32)
    sketched = Sketch.plan(4000, 1000).apply(vectors)
    wanted, found = vectors @ vectors.T, sketched @ sketched.T
    assert abs((found - wanted).mean()) < 5 * 4000 / 1000**0.5 / 40
    assert np.abs(found - wanted).max() < 8 * 4000 / 1000**0.5


# --- odd input and faults -------------------------------------------------------------------------------------------


def test_two_photos_or_one_of_each_class_are_enough() -> None:
    for n in (2, 5):
        vectors, labels = draw_photos(n, 10, n)
        head, _, ridge = fit_ridge(vectors, labels, n)
        assert ridge is not None
        assert ridge.temperature == DEFAULT_TEMPERATURE
        assert head.predict_proba(vectors).argmax(axis=1).tolist() == labels.tolist()


def test_duplicates_with_the_weakest_strength_stay_finite() -> None:
    vectors, labels = draw_photos(60, 200)
    vectors, labels = np.vstack([vectors] * 3), np.tile(labels, 3)
    folds = make_folds(180)
    _, tried, _ = fit_ridge(vectors, labels, 4, folds, strengths=(MIN_STRENGTH, 1e-3))
    assert all(np.isfinite(fit.log_loss) for fit in tried)
    assert np.isfinite(
        solve_dual(vectors, labels, 4, MIN_STRENGTH * measure_spread(vectors)).inverse.table.to_table()
    ).all()
    weakest = solve_dual(vectors, labels, 4, MIN_STRENGTH * measure_spread(vectors))
    weakest = weakest.add(vectors[:20], labels[:20], 4).remove(np.arange(100))
    assert (weakest.to_head().predict_proba(vectors).argmax(axis=1) == labels).all()


def test_features_that_are_all_the_same_are_a_fit_error() -> None:
    vectors = np.full((5000, 3), [0.1, 0, -12345.678], np.float32)
    with pytest.raises(FitError, match=r"got 5000 photos that look the same.*copies of one picture"):
        fit_ridge(vectors, np.arange(5000) % 2, 2)


def test_features_too_large_to_multiply_are_a_fit_error() -> None:
    vectors, labels = draw_photos()
    with pytest.raises(FitError, match=r"wanted features below 1e15 or so, got up to .*; compute them again"):
        fit_ridge(vectors * np.float32(1e20), labels, 4)


def test_a_strength_too_weak_for_the_photos_is_a_fit_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = draw_photos(60, 10)
    monkeypatch.setattr(module, "MIN_STRENGTH", 0)
    with pytest.raises(FitError, match="l2: wanted a strength that tells photos as alike as these apart, got 0; "):
        fit_ridge(vectors, labels, 4, strengths=(0.0,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_a_fit_error(value: float) -> None:
    vectors, labels = draw_photos()
    ridge = solve_dual(vectors, labels, 4, 1.0)
    vectors[[3, 3, 70], [0, 1, 5]] = value
    vectors[3, 2] = -value
    with pytest.raises(FitError, match="got 2 photos with NaN or infinity; compute the features again"):
        fit_ridge(vectors, labels, 4)
    with pytest.raises(FitError, match="got 1 photos with NaN or infinity"):
        ridge.add(vectors[:9], labels[:9], 4)


def test_labels_and_shapes_that_do_not_fit_are_a_fit_error() -> None:
    vectors, labels = draw_photos()
    with pytest.raises(FitError, match=r"wanted a photo of each class to fit on, got none of 2.*first number 4"):
        fit_ridge(vectors, labels, 6)
    with pytest.raises(FitError, match=r"wanted features \(N, D\) and labels \(N,\), got \(120, 300\) and \(119,\)"):
        fit_ridge(vectors, labels[1:], 4)
    with pytest.raises(FitError, match="wanted labels from 0 to 2, got 0 to 3"):
        fit_ridge(vectors, labels, 3)
    with pytest.raises(FitError, match=r"got none of 1 .*first number 2"):
        fit_ridge(vectors, labels, 4, [(np.flatnonzero(labels != 2), np.flatnonzero(labels == 2))])
    with pytest.raises(FitError, match="wanted a photo of each class"):
        fit_ridge(vectors[:0], labels[:0], 4)


def test_folds_that_cannot_be_are_a_fit_error() -> None:
    vectors, labels = draw_photos()
    with pytest.raises(FitError, match="hold out no row that they fit on"):
        fit_ridge(vectors, labels, 4, [(np.arange(100), np.arange(99, 120))])
    with pytest.raises(FitError, match="wanted rows to choose on"):
        fit_ridge(vectors, labels, 4, [(np.arange(100), np.arange(0))])


@pytest.mark.parametrize("strengths", [(), (-0.1,), (0.1, np.nan), (0.1, 0.0), (1e-9,)])
def test_a_strength_that_cannot_be_is_an_option_error(strengths: tuple[float, ...]) -> None:
    vectors, labels = draw_photos()
    with pytest.raises(OptionError, match="l2: wanted"):
        fit_ridge(vectors, labels, 4, strengths=strengths)


def test_changes_that_cannot_be_are_a_fit_error() -> None:
    vectors, labels = draw_photos()
    ridge = solve_dual(vectors, labels, 4, 1.0)
    with pytest.raises(FitError, match=r"wanted features \(K, 300\) and labels \(K,\), got \(3, 299\) and \(3,\)"):
        ridge.add(vectors[:3, 1:], labels[:3], 4)
    with pytest.raises(FitError, match=r"got none of 1 classes, the first number 5"):
        ridge.add(vectors[:3], np.full(3, 4), 6)
    with pytest.raises(FitError, match="wanted labels from 0 to 2, got 0 to 3"):
        ridge.add(vectors[:3], labels[:3] * 0, 3)
    with pytest.raises(FitError, match="too far from what was learnt"):
        ridge.add(np.tile(vectors[:3] * np.float32(1e12), (2, 1)), labels[:6], 4)
    with pytest.raises(FitError, match="wanted photos from 0 to 119, got -1 to 5"):
        ridge.remove(np.array([-1, 5]))
    with pytest.raises(FitError, match="got none of number 2; remove the class"):
        ridge.remove(np.flatnonzero(labels == 2))
    for number in (-1, 4):
        with pytest.raises(FitError, match="wanted one of three classes or more"):
            ridge.remove_class(number)
    with pytest.raises(FitError, match="wanted one of three classes or more"):
        ridge.remove_class(0).remove_class(0).remove_class(0)
    with pytest.raises(FitError, match="wanted the numbers 0 to 3, each once"):
        ridge.renumber(np.array([0, 1, 2, 2]))


# --- what it says of photos that it had not learnt ------------------------------------------------------------------


@pytest.mark.parametrize("folds", [None, 3, 1], ids=["each", "folds", "apart"])
def test_photos_held_out_are_scored_as_by_a_head_that_never_saw_them(folds: int | None) -> None:
    vectors, labels = draw_photos(90, 40)
    pairs = [] if folds is None else make_folds(90, max(folds, 3))[:folds]
    head, _, _, study = study_ridge(vectors, labels, 4, pairs)
    assert len(study.rows) == (60 if folds == 1 else 90)
    own, known = vectors[study.rows], labels[study.rows]
    np.testing.assert_array_equal(study.labels, known)
    penalty = head.l2 * measure_spread(own)
    temperature = float(np.std(solve_dual(own, known, 4, penalty).to_head().weights) / np.std(head.weights))
    for places in (np.array([7]), np.arange(3, 40, 2), np.flatnonzero(known == 2)):
        left = np.setdiff1d(np.arange(len(own)), places)
        anew = score(solve_dual(own[left], known[left], 4, penalty).to_head(), own[places]) / temperature
        scale = np.abs(anew).max()
        np.testing.assert_allclose(study.hold_out(places), anew, atol=1e-4 * scale)
        np.testing.assert_allclose(study.learn_some(left, places), anew, atol=1e-4 * scale)
    some = np.arange(0, len(own), 3)
    anew = score(solve_dual(own[some], known[some], 4, penalty).to_head(), own) / temperature
    np.testing.assert_allclose(study.learn_some(some, np.arange(len(own))), anew, atol=1e-4 * np.abs(anew).max())


def test_a_study_does_not_change_the_state_that_learns_on() -> None:
    vectors, labels = draw_photos(60, 30)
    _, _, untouched, _ = study_ridge(vectors, labels, 4)
    _, _, state, study = study_ridge(vectors, labels, 4)
    before = study.hold_out(np.arange(20))
    assert state is not None
    assert untouched is not None
    more, more_labels = draw_photos(8, 30, seed=5)
    grown = state.add(more, more_labels, 4)
    assert_same(grown, untouched.add(more, more_labels, 4))
    np.testing.assert_array_equal(study.hold_out(np.arange(20)), before)


def test_of_many_photos_some_are_studied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_CHOSEN_ON", 50)
    vectors, labels = draw_photos(200, 30)
    _, _, state, study = study_ridge(vectors, labels, 4, make_folds(200))
    assert state is not None
    assert len(study.rows) == len(np.unique(study.rows)) == 50
    np.testing.assert_array_equal(study.labels, labels[study.rows])
    assert study.hold_out(np.arange(10)).shape == (10, 4)


def test_of_many_photos_those_looked_at_hold_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_CHOSEN_ON", 30)
    random = np.random.default_rng(0)
    labels = np.array([0] * 200 + [1] * 200 + [2] * 2)
    vectors = random.normal(size=(402, 8)).astype(np.float32) + np.eye(3, 8, dtype=np.float32)[labels]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(402)
        *_, study = study_ridge(vectors[order], labels[order], 3)
        assert set(study.labels) == {0, 1, 2}
        assert 30 <= len(study.rows) <= 31
        np.testing.assert_array_equal(study.labels, labels[order][study.rows])
