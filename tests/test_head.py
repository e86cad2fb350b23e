"""A head gives probabilities, refuses what it cannot be fitted on, and is as sure as held-out photos allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import FitError, OptionError
from pomona.head import Head, Link, check_fit, fit_link, fit_temperature, order_strengths, softmax, sum_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

VECTORS = np.random.default_rng(0).normal(size=(240, 20)).astype(np.float32)
LABELS = np.arange(240) % 4


def loss_of(scores: NDArray[Any], labels: NDArray[np.intp], temperature: float) -> float:
    logits = scores / temperature
    return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


# --- the temperature ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(-1.5, 1.5))
def test_the_temperature_has_the_smallest_log_loss(seed: int, n_classes: int, log_scale: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=400)
    scores = (rng.normal(size=(400, n_classes)) + 2 * np.eye(n_classes)[labels]) * 10**log_scale
    temperature = fit_temperature(scores, labels)
    best = loss_of(scores, labels, temperature)
    for factor in np.geomspace(0.05, 20, 50):
        assert best <= loss_of(scores, labels, temperature * factor) + 1e-3
    assert loss_of(scores, labels, temperature * 1.5) > best
    assert loss_of(scores, labels, temperature / 1.5) > best


def test_a_few_photos_that_are_all_right_do_not_make_it_certain() -> None:
    few, many = (fit_temperature(np.eye(3)[np.arange(n) % 3], np.arange(n) % 3) for n in (6, 6000))
    assert 0.2 < few < 1
    assert 0.05 < many < few / 2
    assert fit_temperature(np.zeros((5, 3)), np.zeros(5, np.intp)) == pytest.approx(1000, rel=0.01)
    assert fit_temperature(-np.eye(3), np.arange(3)) == pytest.approx(1000, rel=0.01)


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_a_fit_error(value: float) -> None:
    vectors = VECTORS.copy()
    vectors[[3, 3, 70], [0, 1, 5]] = value
    for found in (vectors, sum_rows(vectors)[:, None]):
        with pytest.raises(FitError, match="got 2 photos with NaN or infinity; compute the features again"):
            check_fit(found, LABELS, 4, np.arange(240))
    check_fit(VECTORS, LABELS, 4, np.arange(240))


def test_sums_of_rows_are_those_of_float64() -> None:
    np.testing.assert_allclose(sum_rows(VECTORS), VECTORS.astype(np.float64).sum(axis=1), rtol=1e-12)
    assert sum_rows(VECTORS[:0]).shape == (0,)
    far = np.array([[np.inf, -np.inf], [3e38, 3e38]], np.float32)
    assert np.isfinite(sum_rows(far)).tolist() == [False, True]


def test_a_class_without_rows_to_fit_on_is_a_fit_error() -> None:
    with pytest.raises(FitError, match=r"wanted a photo of each class to fit on, got none of 2.*first number 4"):
        check_fit(VECTORS, LABELS, 6, np.arange(240))
    with pytest.raises(FitError, match=r"got none of 1 .*first number 2"):
        check_fit(VECTORS, LABELS, 4, np.flatnonzero(LABELS != 2))


@pytest.mark.parametrize(("row", "label", "found"), [(0, -1, "-1 to 3"), (5, 4, "0 to 4")])
def test_a_label_out_of_range_is_a_fit_error(row: int, label: int, found: str) -> None:
    labels = LABELS.copy()
    labels[row] = label
    with pytest.raises(FitError, match=f"wanted labels from 0 to 3, got {found}"):
        check_fit(VECTORS, labels, 4, np.arange(240))


def test_shapes_that_do_not_fit_are_a_fit_error() -> None:
    with pytest.raises(FitError, match=r"wanted features \(N, D\) and labels \(N,\), got \(240, 20\) and \(239,\)"):
        check_fit(VECTORS, LABELS[1:], 4, np.arange(239))
    with pytest.raises(FitError, match="wanted two classes or more, got 1"):
        check_fit(VECTORS, LABELS * 0, 1, np.arange(240))
    with pytest.raises(ValueError, match=r"wanted weights \(C, D\) and bias \(C,\), got \(2, 3\) and \(3,\)"):
        Head(np.zeros((2, 3), np.float32), np.zeros(3, np.float32), 0.1)


@pytest.mark.parametrize("strengths", [(), (-0.1,), (0.1, np.nan), (np.inf,)])
def test_a_strength_that_cannot_be_is_an_option_error(strengths: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="l2: wanted one strength or more, each a finite number from 0"):
        order_strengths(strengths)
    assert order_strengths((0, 0.3, 0.1)) == [0.3, 0.1, 0]


# --- probabilities --------------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_weights_and_bias() -> None:
    head = Head(VECTORS[:3], np.array([0.5, 0, -0.5], np.float32), 0.1)
    logits = VECTORS @ VECTORS[:3].T + [0.5, 0, -0.5]
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(VECTORS), wanted, rtol=1e-4, atol=1e-7)


def test_softmax_holds_its_range_and_sums_to_one() -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1, 2, 3]], np.float32)
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities[:2], [[1, 0, 0], [1 / 3] * 3], atol=1e-7)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities[2], np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-6)
    assert logits[0, 0] == 1e4
    assert softmax(logits[:0]).shape == (0, 3)


# --- the link -------------------------------------------------------------------------------------------------------


def _draw_scores(seed: int, n: int, *, width: float | None) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Logits whose link of that width is what labels are drawn by."""
    rng = np.random.default_rng(seed)
    linked = 2 * rng.normal(size=(n, 6)) + 5 * np.eye(6)[rng.integers(6, size=n)]
    shares = softmax(linked.astype(np.float32))
    labels = np.minimum((shares.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), 5)
    return (linked / 3 if width is None else width * np.sinh(linked / 3)), labels


def _lose(link: Link, logits: NDArray[Any], labels: NDArray[np.intp]) -> float:
    return float(-np.log(softmax(link.apply(logits))[np.arange(len(labels)), labels]).mean())


def test_scores_that_are_probabilities_are_bent_and_others_stay() -> None:
    """A ridge on targets of 0 and 1 says probabilities with noise, which a temperature alone does not mend."""
    rng = np.random.default_rng(0)
    n_classes, n = 20, 3000
    shares = np.array([rng.dirichlet(np.full(n_classes, 0.08)) for _ in range(n)])
    labels = (shares.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    scores = shares + 0.03 * rng.normal(size=shares.shape)
    scores /= fit_temperature(scores, labels)
    link = fit_link(scores[:1500], labels[:1500])
    assert link.width is not None
    plain = Link(None, 1 / fit_temperature(scores[:1500], labels[:1500]))
    assert _lose(link, scores[1500:], labels[1500:]) < _lose(plain, scores[1500:], labels[1500:]) - 0.05


@pytest.mark.parametrize("n", [12, 60, 3000])
def test_a_link_is_not_bent_for_less_than_chance(n: int) -> None:
    bent = [fit_link(*_draw_scores(seed, n, width=None)).width is not None for seed in range(30)]
    assert np.mean(bent) <= 0.25  # a number more to fit gains as much in 16 of 100


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_weight_of_two_is_the_same_photo_twice(seed: int) -> None:
    logits, labels = _draw_scores(seed, 200, width=1.0)
    weights = np.random.default_rng(seed).integers(1, 4, 200)
    found = fit_link(logits, labels, weights.astype(float))
    again = fit_link(np.repeat(logits, weights, axis=0), np.repeat(labels, weights))
    assert found.sharpness == pytest.approx(again.sharpness, rel=1e-3) or found.width != again.width
    temperature = fit_temperature(logits, labels, weights.astype(float))
    assert temperature == pytest.approx(
        fit_temperature(np.repeat(logits, weights, axis=0), np.repeat(labels, weights)), rel=1e-3
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0.5, 4.0]), st.floats(0.1, 10))
def test_a_link_keeps_the_order_of_classes(seed: int, width: float | None, sharpness: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 5)) * 3
    np.testing.assert_array_equal(Link(width, sharpness).apply(logits).argmax(axis=1), logits.argmax(axis=1))


@pytest.mark.parametrize(("width", "sharpness"), [(0.0, 1.0), (-1.0, 1.0), (None, 0.0), (None, np.inf), (np.nan, 1.0)])
def test_what_is_no_link_is_refused(width: float | None, sharpness: float) -> None:
    with pytest.raises(ValueError, match="wanted a width and a sharpness above 0"):
        Link(width, sharpness)
