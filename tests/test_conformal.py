"""Promises are kept on photos that they were not found on, and an answer is as specific as it may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.conformal import NEVER, Nodes, fit_answer, fit_shortlist, list_shortlist, trade_off
from pomona.errors import DataError

DEEP = Nodes.of(ClassTree.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Pear", "Kiwi"]))
FLAT = Nodes.of(ClassTree.from_paths(["Apple", "Kiwi", "Pear", "Plum"]))


def _draw_photos(rng: np.random.Generator, n: int, *, sharpness: float = 1.0) -> tuple[Any, Any]:
    """Probabilities (N, 4) and labels drawn by them; probabilities too sure, or not enough, by the sharpness."""
    logits = 2 * rng.normal(size=(n, 4))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    said = np.exp(sharpness * logits)
    return said / said.sum(axis=1, keepdims=True), labels


# --- the tree -------------------------------------------------------------------------------------------------------


def test_nodes_are_classes_and_all_above_them() -> None:
    assert DEEP.paths == (
        ("Fruit", "Apple", "Fuji"),
        ("Fruit", "Apple", "Gala"),
        ("Kiwi",),
        ("Fruit", "Pear"),
        ("Fruit", "Apple"),
        ("Fruit",),
    )
    assert DEEP.sizes.tolist() == [1, 1, 1, 1, 2, 3]
    assert DEEP.top.tolist() == [2, 5]
    np.testing.assert_allclose(DEEP.weigh(np.array([[0.1, 0.2, 0.3, 0.4]])), [[0.1, 0.2, 0.3, 0.4, 0.3, 0.7]])


def test_what_holds_every_class_is_no_answer() -> None:
    """It would always be right, and so make room for classes that are wrong."""
    nodes = Nodes.of(ClassTree.from_paths(["Food/Fruit/Apple/Gala", "Food/Fruit/Apple/Fuji", "Food/Fruit/Pear"]))
    assert nodes.paths[3:] == (("Food", "Fruit", "Apple"),)
    assert [nodes.paths[i] for i in nodes.top] == [("Food", "Fruit", "Pear"), ("Food", "Fruit", "Apple")]
    (node,), (sure,) = nodes.choose(nodes.weigh(np.array([[0.3, 0.3, 0.4]])), 0.9)
    assert (nodes.paths[node][-1], bool(sure)) == ("Apple", False)
    inside = Nodes.of(ClassTree.from_paths(["Apple", "Apple/Gala"]))
    assert (inside.paths, inside.top.tolist()) == ((("Apple",), ("Apple", "Gala")), [0])


@pytest.mark.parametrize(
    ("shares", "least", "said", "sure"),
    [
        ([0.95, 0.02, 0.02, 0.01], 0.9, ("Fruit", "Apple", "Fuji"), True),
        ([0.5, 0.45, 0.02, 0.03], 0.9, ("Fruit", "Apple"), True),
        ([0.4, 0.2, 0.02, 0.38], 0.9, ("Fruit",), True),
        ([0.3, 0.1, 0.4, 0.2], 0.9, ("Fruit",), False),
        ([0.1, 0.1, 0.7, 0.1], 0.9, ("Kiwi",), False),
        ([0.3, 0.1, 0.4, 0.2], 0.0, ("Kiwi",), True),
        ([0.6, 0.1, 0.2, 0.1], NEVER, ("Fruit",), False),
    ],
)
def test_an_answer_is_as_specific_as_it_may_be(
    shares: list[float], least: float, said: tuple[str, ...], sure: bool
) -> None:
    (node,), (found,) = DEEP.choose(DEEP.weigh(np.array([shares])), least)
    assert (DEEP.paths[node], bool(found)) == (said, sure)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_without_a_tree_answers_stay_classes(seed: int, least: float) -> None:
    probabilities, _ = _draw_photos(np.random.default_rng(seed), 20)
    chosen, sure = FLAT.choose(FLAT.weigh(probabilities), least)
    np.testing.assert_array_equal(chosen, probabilities.argmax(axis=1))
    np.testing.assert_array_equal(sure, probabilities.max(axis=1).astype(np.float32) >= least)


@given(st.integers(0, 2**32 - 1))
def test_more_sureness_never_makes_an_answer_more_specific(seed: int) -> None:
    probabilities, labels = _draw_photos(np.random.default_rng(seed), 50)
    shares, sizes = DEEP.weigh(probabilities), np.zeros(50)
    for least in np.linspace(0, 1, 21):
        chosen, sure = DEEP.choose(shares, least)
        now = np.where(sure, DEEP.sizes[chosen], 99)
        assert (now >= sizes).all()
        sizes = now
    weights = np.random.default_rng(seed).uniform(0.2, 2, 50)
    for trade in trade_off(probabilities, labels, DEEP, weights=weights):
        parts = np.array([trade.share_exact, trade.share_coarse, trade.share_open, trade.right])
        assert parts[:3].sum() == pytest.approx(1)
        assert ((parts >= 0) & (parts <= 1)).all()


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("nodes", [DEEP, FLAT], ids=["tree", "flat"])
def test_sure_answers_are_right_as_often_as_promised(nodes: Nodes, sharpness: float) -> None:
    """On other photos than the threshold was found on, whatever the probabilities are worth."""
    for share in (0.8, 0.9):
        right = n_sure = 0.0
        for seed in range(25):
            rng = np.random.default_rng(seed)
            least = fit_answer(*_draw_photos(rng, 400, sharpness=sharpness), nodes, share=share)
            (trade,) = trade_off(
                *_draw_photos(rng, 2000, sharpness=sharpness), nodes, leasts=np.array([min(least, 1.01)])
            )
            right += trade.right * (1 - trade.share_open)
            n_sure += 1 - trade.share_open
        assert n_sure / 25 > 0.15
        assert right / n_sure > share - 0.01


def test_a_higher_promise_is_not_answered_more_specifically() -> None:
    for seed in range(10):
        photos = _draw_photos(np.random.default_rng(seed), 1000)
        leasts = [fit_answer(*photos, DEEP, share=share) for share in (0.6, 0.7, 0.8, 0.9, 0.95)]
        assert leasts == sorted(leasts)
        assert leasts[0] < leasts[-2]


def test_a_promise_that_nothing_keeps_is_never_made() -> None:
    rng = np.random.default_rng(0)
    probabilities, _ = _draw_photos(rng, 500, sharpness=5)
    assert fit_answer(probabilities, rng.integers(4, size=500), FLAT, share=0.9) == NEVER
    right = np.eye(4)[np.arange(16) % 4]
    # 16 photos that are all right promise 9 in 10, no more: one more might be wrong.
    assert fit_answer(right, np.arange(16) % 4, FLAT, share=0.9) == 0
    assert fit_answer(right, np.arange(16) % 4, FLAT, share=0.95) == NEVER
    # Of four groups, not even that.
    groups = np.repeat(list("abcd"), 4)
    assert fit_answer(right, np.arange(16) % 4, FLAT, share=0.9, groups=groups) == NEVER


def test_a_promise_holds_at_each_least_probability_above_too() -> None:
    """Few photos that are often wrong, between many that are not, are not covered up by these."""
    sureness = np.repeat([0.99, 0.85, 0.5], [50, 50, 400])
    probabilities = np.stack([sureness, *[(1 - sureness) / 3] * 3], axis=1)
    labels = np.zeros(500, np.intp)
    labels[50:65] = 1
    assert 0.85 < fit_answer(probabilities, labels, FLAT, share=0.9) < 0.99
    labels[50:65] = 0
    assert fit_answer(probabilities, labels, FLAT, share=0.9) == 0


def test_what_is_wrong_makes_answers_coarser_and_weights_say_how_much_it_counts() -> None:
    # Half of the photos of two varieties are taken for the other one, at 7 to 3.
    probabilities = np.tile([[0.69, 0.29, 0.01, 0.01]], (200, 1))
    labels = np.arange(200) % 2
    least = fit_answer(probabilities, labels, DEEP, share=0.9)
    (node, *_), sure = DEEP.choose(DEEP.weigh(probabilities), least)
    assert (DEEP.paths[node], sure.all()) == (("Fruit", "Apple"), True)
    weights = np.where(labels == 0, 1.0, 0.001)
    assert fit_answer(probabilities, labels, DEEP, share=0.9, weights=weights) < 0.69


# --- shortlists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.8, 0.95])
@pytest.mark.parametrize("size", [1, 5])
def test_shortlists_hold_the_right_class_as_often_as_promised(share: float, size: int) -> None:
    covered = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        own = np.clip(np.repeat(rng.random(160 // size), size) + 0.01 * rng.random(160 // size * size), 0, 1)
        groups = np.repeat(np.arange(160 // size), size).astype(str)
        least = fit_shortlist(own, share=share, groups=groups)
        covered.append((np.clip(rng.random(4000) + 0.01 * rng.random(4000), 0, 1) >= least).mean())
    error = 3 * np.std(covered) / np.sqrt(150)
    assert share - error <= np.mean(covered) <= share + 0.035 + error


def test_too_few_groups_list_every_class() -> None:
    own = np.full(38, 0.9)
    assert fit_shortlist(own, share=0.95) == 0.9
    assert fit_shortlist(own, share=0.95, groups=np.repeat(np.arange(19), 2).astype(str)) == 0.9
    assert fit_shortlist(own, share=0.95, groups=np.minimum(np.arange(38), 17).astype(str)) == 0
    assert list_shortlist(np.array([0.2, 0.5, 0.3]), 0.0).tolist() == [1, 2, 0]
    assert list_shortlist(np.array([0.4, 0.2, 0.4]), 0.4).tolist() == [0, 2]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
def test_a_weight_of_two_is_the_same_photo_twice(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    own, weights, groups = rng.random(n), rng.integers(1, 4, n), np.arange(n).astype(str)
    once = fit_shortlist(own, share=0.9, groups=groups, weights=weights.astype(float))
    assert once == fit_shortlist(np.repeat(own, weights), share=0.9, groups=np.repeat(groups, weights))


@pytest.mark.parametrize("share", [0, 1, -0.5, 2, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="wanted a share between 0 and 1, got"):
        fit_shortlist(np.ones(5), share=share)
    with pytest.raises(DataError, match="wanted a share between 0 and 1, got"):
        fit_answer(np.eye(4), np.arange(4), FLAT, share=share)


def test_nothing_can_be_promised_on_no_photos() -> None:
    with pytest.raises(DataError, match="wanted photos to find a promise on, got none"):
        fit_shortlist(np.ones(0), share=0.9)
    with pytest.raises(DataError, match="wanted photos to find a promise on, got none"):
        fit_answer(np.zeros((0, 4)), np.zeros(0, np.intp), FLAT, share=0.9)


def test_a_class_that_others_stand_below_is_itself_alone() -> None:
    nodes = Nodes.of(ClassTree.from_paths(["Apple", "Apple/Gala", "Kiwi"]))
    apple, gala = nodes.paths.index(("Apple",)), nodes.paths.index(("Apple", "Gala"))
    assert apple < 3
    assert nodes.member[:, apple].sum() == 1
    shares = np.zeros((1, 3), np.float32)
    shares[0, [apple, gala]] = 0.5, 0.45
    (trade,) = trade_off(shares, np.array([gala]), nodes, leasts=np.array([0.9]))
    assert (trade.share_exact, trade.share_coarse, trade.right) == (0.0, 1.0, 1.0)  # some apple, and that is right
