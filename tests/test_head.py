"""A head is the optimum of its convex problem, on features of any scale and in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import FitError, OptionError
from pomona.head import STRENGTHS, Fit, Head, fit_head, minimise, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw_photos(
    n_photos: int = 240, dim: int = 20, n_classes: int = 4, *, seed: int = 0, spread: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Features of overlapping classes, each column on a scale and place of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n_photos) % n_classes)
    means = rng.normal(size=(n_classes, dim)) * 0.5 * spread
    vectors = (rng.normal(size=(n_photos, dim)) + means[labels]) * rng.uniform(0.1, 10, dim) + rng.normal(size=dim) * 5
    return vectors.astype(np.float32), labels


def standardise(vectors: NDArray[Any]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return (wide - wide.mean(axis=0)) / wide.std(axis=0)


def halves(n: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    even, odd = np.arange(0, n, 2), np.arange(1, n, 2)
    return [(even, odd), (odd, even)]


# --- the optimum ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0.0, 2.0))
def test_minimise_agrees_with_scipy_on_convex_problems(seed: int, dim: int, log_condition: float) -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    hessian = (basis * np.logspace(-log_condition, 0, dim)) @ basis.T
    centre, slopes = rng.normal(size=dim), rng.normal(size=(3, dim))

    def evaluate(point: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        away, rises = point - centre, np.asarray(slopes @ point, np.float64)
        value = 0.5 * away @ hessian @ away + np.logaddexp(0, rises).sum()
        return float(value), (hessian @ away + slopes.T @ (1 / (1 + np.exp(-rises)))).astype(point.dtype)

    start = np.zeros(dim, np.float32)
    wanted = minimize(evaluate, start.astype(np.float64), jac=True, method="L-BFGS-B", tol=1e-12)
    value, point, n_evaluations = minimise(evaluate, start, 1e-9)
    assert value == pytest.approx(wanted.fun, rel=1e-4, abs=1e-5)
    assert evaluate(point)[0] == value
    assert 1 < n_evaluations < 400


def test_minimise_stops_where_there_is_nothing_to_gain_and_at_the_limit() -> None:
    start = np.full(3, 2, np.float32)
    value, point, n_evaluations = minimise(lambda x: (float(x @ x), 2 * x), np.zeros(3, np.float32), 1e-6)
    assert (value, point.tolist()) == (0.0, [0.0] * 3)
    assert n_evaluations < 30
    _, _, n_evaluations = minimise(lambda x: (float(np.cosh(x).sum()), np.sinh(x)), start, 0.0, max_steps=2)
    assert n_evaluations <= 6


@pytest.mark.parametrize(("l2", "dim"), [(0.1, 20), (0.01, 20), (0.001, 20), (0.01, 400)])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_a_head_agrees_with_scikit_learn(l2: float, dim: int, n_classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, labels = draw_photos(200, dim, n_classes)
    x = standardise(vectors)
    # Two classes are one sigmoid there, of which the softmax of two opposite rows has half the squared norm.
    strength = l2 / 2 if n_classes == 2 else l2
    reference = LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=10_000).fit(x, labels)
    wanted = reference.predict_proba(x)
    head, _ = fit_head(vectors, labels, n_classes, strengths=(l2,))
    got = head.predict_proba(vectors)
    np.testing.assert_allclose(got, wanted, atol=1e-2)

    weights = reference.coef_ if n_classes > 2 else np.vstack([-reference.coef_, reference.coef_]) / 2
    scaled = head.weights * vectors.std(axis=0)

    def loss_of(probabilities: NDArray[Any], coefficients: NDArray[Any]) -> float:
        right = probabilities[np.arange(len(labels)), labels]
        return float(-np.log(right).mean() + l2 / 2 * (coefficients.astype(np.float64) ** 2).sum())

    assert loss_of(got, scaled) == pytest.approx(loss_of(wanted, weights), rel=1e-3)


def test_standardisation_is_folded_in() -> None:
    vectors, labels = draw_photos()
    head, _ = fit_head(vectors, labels, 4, strengths=(0.01,))
    plain, _ = fit_head(standardise(vectors).astype(np.float32), labels, 4, strengths=(0.01,))
    unseen, _ = draw_photos(50, seed=1)
    same = (unseen - vectors.mean(axis=0)) / vectors.std(axis=0)
    np.testing.assert_allclose(head.predict_proba(unseen), plain.predict_proba(same), atol=2e-3)
    assert head.weights.shape == (4, 20)
    assert head.weights.dtype == head.bias.dtype == np.float32
    assert head.weights.flags.c_contiguous


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1.0, 1e6])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    vectors, labels = draw_photos()
    wanted, _ = fit_head(vectors, labels, 4, strengths=(0.01,))
    head, _ = fit_head(vectors * np.float32(scale), labels, 4, strengths=(0.01,))
    got = head.predict_proba(vectors * np.float32(scale))
    np.testing.assert_allclose(got, wanted.predict_proba(vectors), atol=2e-3)


@pytest.mark.parametrize("n_photos", [200, 5000])
def test_constant_columns_weigh_nothing(n_photos: int) -> None:
    # In float32 the mean of 5,000 times 0.1 is not 0.1.
    vectors, labels = draw_photos(n_photos)
    constant = np.tile(np.array([0, 0.1, -12345.678, 1e6], np.float32), (n_photos, 1))
    head, _ = fit_head(np.hstack([vectors, constant]), labels, 4, strengths=(0.01,))
    alone, _ = fit_head(vectors, labels, 4, strengths=(0.01,))
    assert not head.weights[:, 20:].any()
    np.testing.assert_allclose(head.weights[:, :20], alone.weights, atol=1e-5)


def test_permuting_rows_or_columns_leaves_the_head() -> None:
    vectors, labels = draw_photos()
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(labels)), rng.permutation(vectors.shape[1])
    head, _ = fit_head(vectors, labels, 4, strengths=(0.01,))
    other, _ = fit_head(vectors[rows][:, columns], labels[rows], 4, strengths=(0.01,))
    np.testing.assert_allclose(other.predict_proba(vectors[:, columns]), head.predict_proba(vectors), atol=5e-3)


def test_the_same_input_gives_the_same_head() -> None:
    vectors, labels = draw_photos()
    first, second = (fit_head(vectors, labels, 4, halves(240))[0] for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_the_input_is_not_written_to() -> None:
    vectors, labels = draw_photos()
    vectors.flags.writeable = labels.flags.writeable = False
    fit_head(vectors, labels, 4, halves(240))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16])
def test_labels_may_be_any_whole_numbers(dtype: Any) -> None:
    vectors, labels = draw_photos()
    wanted, _ = fit_head(vectors, labels, 4, strengths=(0.01,))
    head, _ = fit_head(vectors, labels.astype(dtype), 4, strengths=(0.01,))
    np.testing.assert_array_equal(head.weights, wanted.weights)


# --- the choice of the strength -------------------------------------------------------------------------------------


def test_the_strength_is_the_one_with_the_smallest_held_out_log_loss() -> None:
    # With few photos and many columns the weak strengths learn the noise; accuracy would choose the weakest here.
    vectors, labels = draw_photos(60, 100, seed=27, spread=0.3)
    head, tried = fit_head(vectors, labels, 4, halves(60), strengths=(1.0, 0.1, 1e-4))
    assert [fit.l2 for fit in tried] == [1.0, 0.1, 1e-4]
    assert head.l2 == min(tried, key=lambda fit: fit.log_loss).l2
    assert head.l2 != max(tried, key=lambda fit: fit.accuracy).l2
    assert tried[2].log_loss > tried[0].log_loss * 1.2
    for fit in tried:
        losses, right = [], []
        for train, held_out in halves(60):
            alone, _ = fit_head(vectors[train], labels[train], 4, strengths=(fit.l2,))
            probabilities = alone.predict_proba(vectors[held_out])
            losses.append(-np.log(probabilities[np.arange(30), labels[held_out]]).mean())
            right.append((probabilities.argmax(axis=1) == labels[held_out]).mean())
        assert fit.log_loss == pytest.approx(np.mean(losses), rel=0.05)
        assert fit.accuracy == pytest.approx(np.mean(right), abs=0.1)
        assert fit.n_steps > 2
        assert fit.seconds > 0


def test_the_order_of_the_strengths_does_not_matter() -> None:
    vectors, labels = draw_photos()
    wanted, fits = fit_head(vectors, labels, 4, halves(240))
    for order in (STRENGTHS[::-1], STRENGTHS[2:] + STRENGTHS[:2]):
        head, tried = fit_head(vectors, labels, 4, halves(240), strengths=order)
        np.testing.assert_array_equal(head.weights, wanted.weights)
        assert [(fit.l2, fit.log_loss) for fit in tried] == [(fit.l2, fit.log_loss) for fit in fits]


def test_several_folds_fit_on_all_rows_and_one_on_its_own() -> None:
    vectors, labels = draw_photos()
    folds = halves(240)
    all_rows, _ = fit_head(vectors, labels, 4, folds)
    train_rows, _ = fit_head(vectors, labels, 4, folds[:1])
    for head, rows in ((all_rows, slice(None)), (train_rows, folds[0][0])):
        alone, _ = fit_head(vectors[rows], labels[rows], 4, strengths=(head.l2,))
        np.testing.assert_allclose(head.predict_proba(vectors), alone.predict_proba(vectors), atol=1e-2)
    assert np.abs(all_rows.predict_proba(vectors) - train_rows.predict_proba(vectors)).max() > 0.02


def test_one_strength_or_no_folds_tries_nothing() -> None:
    vectors, labels = draw_photos()
    n_steps: list[None] = []
    head, tried = fit_head(vectors, labels, 4, halves(240), strengths=(0.02,), on_step=lambda: n_steps.append(None))
    assert (head.l2, tried, n_steps) == (0.02, (), [])
    head, tried = fit_head(vectors, labels, 4)
    assert (head.l2, tried) == (STRENGTHS[2], ())


def test_each_strength_of_each_fold_is_a_step() -> None:
    vectors, labels = draw_photos()
    steps: list[None] = []
    _, tried = fit_head(vectors, labels, 4, iter(halves(240)), on_step=lambda: steps.append(None))
    assert len(steps) == len(STRENGTHS) * 2
    assert all(isinstance(fit, Fit) for fit in tried)


def test_a_class_may_miss_from_a_fold() -> None:
    vectors, labels = draw_photos()
    without = np.flatnonzero(labels != 3)
    folds = [(without, np.flatnonzero(labels == 3)), *halves(240)]
    head, tried = fit_head(vectors, labels, 4, folds)
    assert all(np.isfinite(fit.log_loss) for fit in tried)
    assert (head.predict_proba(vectors).argmax(axis=1) == labels).mean() > 0.7


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_a_fit_error(value: float) -> None:
    vectors, labels = draw_photos()
    vectors[[3, 3, 70], [0, 1, 5]] = value
    with pytest.raises(FitError, match="got 2 photos with NaN or infinity; compute the features again"):
        fit_head(vectors, labels, 4)


def test_a_class_without_rows_to_fit_on_is_a_fit_error() -> None:
    vectors, labels = draw_photos()
    with pytest.raises(FitError, match=r"wanted a photo of each class to fit on, got none of 2.*first number 4"):
        fit_head(vectors, labels, 6)
    only_held_out = [(np.flatnonzero(labels != 2), np.flatnonzero(labels == 2))]
    with pytest.raises(FitError, match=r"got none of 1 .*first number 2"):
        fit_head(vectors, labels, 4, only_held_out)


@pytest.mark.parametrize(("row", "label", "found"), [(0, -1, "-1 to 3"), (5, 4, "0 to 4")])
def test_a_label_out_of_range_is_a_fit_error(row: int, label: int, found: str) -> None:
    vectors, labels = draw_photos()
    labels[row] = label
    with pytest.raises(FitError, match=f"wanted labels from 0 to 3, got {found}"):
        fit_head(vectors, labels, 4)


def test_shapes_that_do_not_fit_are_a_fit_error() -> None:
    vectors, labels = draw_photos()
    with pytest.raises(FitError, match=r"wanted features \(N, D\) and labels \(N,\), got \(240, 20\) and \(239,\)"):
        fit_head(vectors, labels[1:], 4)
    with pytest.raises(FitError, match="wanted two classes or more, got 1"):
        fit_head(vectors, labels * 0, 1)
    with pytest.raises(FitError, match="wanted a photo of each class"):
        fit_head(vectors[:0], labels[:0], 4)
    with pytest.raises(ValueError, match=r"wanted weights \(C, D\) and bias \(C,\), got \(2, 3\) and \(3,\)"):
        Head(np.zeros((2, 3), np.float32), np.zeros(3, np.float32), 0.1)


@pytest.mark.parametrize("strengths", [(), (-0.1,), (0.1, np.nan), (np.inf,)])
def test_a_strength_that_cannot_be_is_an_option_error(strengths: tuple[float, ...]) -> None:
    vectors, labels = draw_photos()
    with pytest.raises(OptionError, match="l2: wanted one strength or more, each a finite number from 0"):
        fit_head(vectors, labels, 4, halves(240), strengths=strengths)


# --- probabilities --------------------------------------------------------------------------------------------------


def test_softmax_holds_its_range_and_sums_to_one() -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1, 2, 3]], np.float32)
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities[:2], [[1, 0, 0], [1 / 3] * 3], atol=1e-7)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities[2], np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-6)
    assert logits[0, 0] == 1e4
    assert softmax(logits[:0]).shape == (0, 3)
