"""Leaving one out in closed form is refitting; swapped labels and strange photos come first, good ones not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.label_doubts import (
    _border,
    _penalty,
    find_label_doubts,
    find_outliers,
    leave_one_out,
    list_nearest,
    measure_folds,
    to_probabilities,
)

if TYPE_CHECKING:
    import random

SETS = st.tuples(st.integers(2, 30), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
"""(photos, coordinates, classes, seed)."""


def draw_set(n_photos: int, dim: int, n_classes: int, seed: int = 0, spread: float = 0.4):
    """Photos around a middle of each class, less their mean, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n_photos)
    table = rng.normal(size=(n_classes, dim))[labels] + spread * rng.normal(size=(n_photos, dim))
    return np.asarray(table - table.mean(axis=0), np.float32), labels.astype(np.intp)


def fit_ridge(coordinates, labels, n_classes: int, penalty) -> np.ndarray:
    """Weights by the normal equations, in double precision."""
    table, targets = _border(coordinates).astype(np.float64), np.eye(n_classes)[labels]
    return np.linalg.solve(table.T @ table + penalty, table.T @ targets)


# --- the ridge ------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(SETS)
def test_leaving_one_out_equals_fitting_without_it(drawn: tuple[int, int, int, int]) -> None:
    coordinates, labels = draw_set(*drawn)
    n_classes = drawn[2]
    scores = leave_one_out(coordinates, labels, n_classes)
    assert scores.shape == (len(labels), n_classes)
    penalty = _penalty(coordinates)
    for row in range(len(labels)):
        others = np.arange(len(labels)) != row
        weights = fit_ridge(coordinates[others], labels[others], n_classes, penalty)
        np.testing.assert_allclose(scores[row], _border(coordinates[row : row + 1])[0] @ weights, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(SETS, st.randoms(use_true_random=False))
def test_permuting_photos_permutes_their_scores(drawn: tuple[int, int, int, int], rng: random.Random) -> None:
    coordinates, labels = draw_set(*drawn)
    order = list(range(len(labels)))
    rng.shuffle(order)
    scores = leave_one_out(coordinates, labels, drawn[2])
    np.testing.assert_allclose(leave_one_out(coordinates[order], labels[order], drawn[2]), scores[order], atol=1e-3)
    np.testing.assert_array_equal(leave_one_out(coordinates.copy(), labels, drawn[2]), scores)


def test_leaving_one_out_of_several_blocks() -> None:
    coordinates, labels = draw_set(4500, 5, 3)
    scores = leave_one_out(coordinates, labels, 3)
    for row in (0, 2047, 2048, 4499):
        others = np.arange(4500) != row
        weights = fit_ridge(coordinates[others], labels[others], 3, _penalty(coordinates))
        np.testing.assert_allclose(scores[row], _border(coordinates[row : row + 1])[0] @ weights, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(SETS, st.integers(2, 4))
def test_folds_are_measured_as_a_fit_of_each_measures_them(drawn: tuple[int, int, int, int], n_folds: int) -> None:
    coordinates, labels = draw_set(*drawn)
    fold_of = np.arange(len(labels)) % n_folds
    folds = [(np.flatnonzero(fold_of != i), np.flatnonzero(fold_of == i)) for i in range(n_folds)]
    right = measure_folds(coordinates, labels, drawn[2], folds)
    assert right.dtype == bool
    wanted, sure = [], []
    for fitted, held_out in folds:
        weights = fit_ridge(coordinates[fitted], labels[fitted], drawn[2], _penalty(coordinates))
        scores = _border(coordinates[held_out]) @ weights
        ranked = np.sort(scores, axis=1)
        wanted.append(scores.argmax(axis=1) == labels[held_out])
        sure.append(ranked[:, -1] - ranked[:, -2] > 1e-3 if drawn[2] > 1 else np.ones(len(held_out), bool))
    is_sure = np.concatenate(sure)  # rounding may decide between equals
    np.testing.assert_array_equal(right[is_sure], np.concatenate(wanted)[is_sure])
    assert len(right) == len(labels)


def test_no_folds_measure_nothing() -> None:
    coordinates, labels = draw_set(5, 2, 2)
    assert measure_folds(coordinates, labels, 2, []).shape == (0,)


def test_probabilities_sum_to_1_keep_the_order_and_leave_the_scores_as_they_are() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    before = scores.copy()
    shares = to_probabilities(scores, scores.argmax(axis=1))
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=1), scores.argmax(axis=1))


def test_probabilities_are_surer_where_scores_are_right() -> None:
    scores = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32) * 0.1
    right, wrong = scores.argmax(axis=1), scores.argmin(axis=1)
    assert to_probabilities(scores, right).max(axis=1).mean() > to_probabilities(scores, wrong).max(axis=1).mean() + 0.3


# --- doubts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_swapped_labels_come_first(seed: int) -> None:
    coordinates, labels = draw_set(150, 20, 3, seed, spread=0.5)
    planted = np.random.default_rng(seed).choice(150, 6, replace=False)
    true = labels.copy()
    labels[planted] = (labels[planted] + 1) % 3
    doubts = find_label_doubts(coordinates, labels, 3)
    assert {doubt.row for doubt in doubts[:6]} == set(planted.tolist())
    assert all(doubt.suggested == true[doubt.row] for doubt in doubts[:6])
    assert [doubt.score for doubt in doubts] == sorted(doubt.score for doubt in doubts)
    assert all(0 <= doubt.score <= 1 and doubt.share < 0.25 < doubt.suggested_share for doubt in doubts)
    assert find_label_doubts(coordinates, labels, 3) == doubts


def test_right_labels_of_classes_far_apart_are_not_doubted() -> None:
    coordinates, labels = draw_set(120, 20, 4, spread=0.2)
    assert find_label_doubts(coordinates, labels, 4) == ()


def test_a_wrong_label_in_a_burst_stands_out() -> None:
    rng = np.random.default_rng(0)
    table = np.repeat(rng.normal(size=(12, 15)), 8, axis=0) + 0.02 * rng.normal(size=(96, 15))
    labels = np.repeat(np.arange(12) % 3, 8)
    labels[11] = (labels[11] + 1) % 3
    doubts = find_label_doubts(np.asarray(table - table.mean(axis=0), np.float32), labels, 3)
    assert doubts[0].row == 11


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99))
def test_of_a_class_with_one_photo_nothing_is_said(seed: int) -> None:
    coordinates, labels = draw_set(30, 6, 3, seed)
    labels[[4, 9]] = 3, 4
    assert not {4, 9} & {doubt.row for doubt in find_label_doubts(coordinates, labels, 5)}


def test_classes_without_a_photo_are_never_suggested() -> None:
    coordinates, labels = draw_set(60, 8, 3, spread=1.5)
    doubts = find_label_doubts(coordinates, labels * 2, 6)
    assert doubts
    assert {doubt.suggested for doubt in doubts} <= {0, 2, 4}
    plain = find_label_doubts(coordinates, labels, 3)
    assert {doubt.row for doubt in plain} <= {doubt.row for doubt in doubts}


@pytest.mark.parametrize("n_photos", [0, 1, 2, 30])
def test_fewer_than_two_classes_cannot_be_mixed_up(n_photos: int) -> None:
    coordinates = np.random.default_rng(0).normal(size=(n_photos, 4)).astype(np.float32)
    assert find_label_doubts(coordinates, np.zeros(n_photos, np.intp), 3) == ()


def test_two_photos_of_two_classes_and_photos_that_are_all_alike() -> None:
    two = np.array([[1.0], [-1.0]], np.float32)
    assert find_label_doubts(two, np.array([0, 1]), 2) == ()
    assert np.isfinite(leave_one_out(two, np.array([0, 1]), 2)).all()
    flat = np.zeros((30, 0), np.float32)
    labels = np.arange(30) % 2
    assert np.isfinite(leave_one_out(flat, labels, 2)).all()
    assert {doubt.row for doubt in find_label_doubts(flat, labels, 2)} <= set(range(30))
    assert find_outliers(flat, labels) == ()


# --- outliers -------------------------------------------------------------------------------------------------------


def test_planted_outliers_are_found_the_farthest_first_and_no_other() -> None:
    rng = np.random.default_rng(0)
    middles = 3 * rng.normal(size=(3, 20))
    labels = np.arange(120) % 3
    table = middles[labels] + 0.3 * rng.normal(size=(120, 20))
    table[7], table[50] = -middles[labels[7]], rng.normal(size=20) * 3
    outliers = find_outliers(table.astype(np.float32), labels)
    assert [outlier.row for outlier in outliers] == [7, 50]
    assert 0 < outliers[0].score < outliers[1].score < 0.5
    assert outliers[0].distance > outliers[1].distance > 10 * outliers[0].usual
    assert find_outliers(table.astype(np.float32), labels) == outliers
    scaled = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = scaled @ scaled.T
    for outlier in outliers:
        others = (labels == labels[outlier.row]) & (np.arange(120) != outlier.row)
        assert outlier.distance == pytest.approx(1 - np.sort(cosines[outlier.row, others])[-3:].mean(), abs=1e-4)
    own = np.where((labels[:, None] == labels) & ~np.eye(120, dtype=bool), cosines, -np.inf)
    usual = np.median(1 - np.sort(own, axis=1)[:, -3:].mean(axis=1))
    assert outliers[0].usual == pytest.approx(usual, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.randoms(use_true_random=False))
def test_outliers_go_with_their_photos(seed: int, rng: random.Random) -> None:
    coordinates, labels = draw_set(60, 8, 3, seed)
    coordinates[5] *= -4
    order = list(range(60))
    rng.shuffle(order)
    found = find_outliers(coordinates[order], labels[order])
    wanted = find_outliers(coordinates, labels)
    assert sorted(order[outlier.row] for outlier in found) == sorted(outlier.row for outlier in wanted)


def test_few_photos_and_small_classes_have_no_outliers() -> None:
    coordinates, labels = draw_set(19, 6, 2)
    coordinates[3] = -9 * coordinates[3]
    assert find_outliers(coordinates, labels) == ()
    table, many = draw_set(60, 6, 3)
    table = np.concatenate([table, 50 * np.eye(3, 6, dtype=np.float32)])
    small = np.concatenate([many, [3, 3, 3]])  # three photos of a class, each alone
    assert all(outlier.row < 60 for outlier in find_outliers(table, small))
    assert find_outliers(np.zeros((0, 4), np.float32), np.zeros(0, np.intp)) == ()


def test_photos_of_a_class_that_are_all_alike_are_no_outliers() -> None:
    same = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
    assert find_outliers(same, np.repeat(np.arange(3), 20)) == ()


# --- nearest --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SETS, st.integers(0, 29), st.integers(0, 4))
def test_the_nearest_are_those_that_looking_at_all_finds(
    drawn: tuple[int, int, int, int], row: int, label: int
) -> None:
    coordinates, labels = draw_set(*drawn)
    row %= len(labels)
    near = list_nearest(coordinates, labels, row, label)
    norms = np.linalg.norm(coordinates, axis=1)
    cosines = coordinates @ coordinates[row] / np.maximum(norms * norms[row], 1e-12)
    others = [other for other in range(len(labels)) if labels[other] == label and other != row]
    wanted = sorted((float(cosines[other]) for other in others), reverse=True)[:3]
    np.testing.assert_allclose([cosines[other] for other in near], wanted, atol=1e-5)
    assert set(near) <= set(others)
    assert len(set(near)) == len(near)
