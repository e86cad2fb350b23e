"""Two recognisers are told apart on the same photos, and only where chance would not do as much."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pomona.comparison import compare_answers
from pomona.errors import DataError

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(answers)
def test_a_difference_lies_in_its_interval_and_turns_round_with_its_sides(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (np.array(side) for side in zip(*pairs, strict=True))
    there, back = compare_answers(before, after), compare_answers(after, before)
    assert there.gain == pytest.approx(after.mean() - before.mean(), abs=1e-12)
    assert -1 <= there.low <= there.gain <= there.high <= 1
    assert (back.gain, back.low, back.high) == pytest.approx((-there.gain, -there.high, -there.low))
    assert (back.n_better, back.n_worse, there.n) == (there.n_worse, there.n_better, len(pairs))


def test_an_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    n_held = 0
    for _ in range(1500):
        draws = random.random(120)
        found = compare_answers(draws < 0.75, (draws > 0.05) & (draws < 0.78))  # 3 in 100 better, 5 worse
        n_held += found.low <= -0.02 <= found.high
    assert 0.93 <= n_held / 1500 <= 0.985


def test_photos_of_one_group_are_no_independent_witnesses() -> None:
    change = np.repeat(np.arange(20) < 6, 10)
    none = np.zeros(200, bool)
    groups = np.repeat([f"shot {number}" for number in range(20)], 10)
    alone, grouped = compare_answers(none, change), compare_answers(none, change, groups)
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)
    singles = compare_answers(none, change, np.arange(200).astype(str))
    assert (singles.low, singles.high) == (alone.low, alone.high)


@pytest.mark.parametrize(
    ("n_better", "n_worse", "verdict"),
    [(30, 5, "better"), (5, 30, "worse"), (12, 10, "no difference that can be told from chance")],
)
def test_verdicts_follow_the_interval(n_better: int, n_worse: int, verdict: str) -> None:
    before = np.zeros(300, bool)
    before[:n_worse] = True
    after = np.zeros(300, bool)
    after[n_worse : n_worse + n_better] = True
    assert compare_answers(before, after).verdict == verdict


def test_answers_for_other_photos_are_refused() -> None:
    for before, after, groups in ((0, 0, None), (3, 4, None), (3, 3, np.array(["a"]))):
        with pytest.raises(DataError, match="wanted answers for the same photos, one or more, got"):
            compare_answers(np.zeros(before, bool), np.zeros(after, bool), groups)


@given(st.integers(0, 400), st.integers(0, 400))
def test_chance_is_that_of_an_exact_test(n_better: int, n_worse: int) -> None:
    n = n_better + n_worse + 1
    before, after = np.zeros(n, bool), np.zeros(n, bool)
    after[:n_better] = True
    before[n_better:-1] = True
    wanted = binomtest(n_better, n - 1).pvalue if n > 1 else 1.0
    found = compare_answers(before, after)
    assert found.p_value == pytest.approx(wanted, rel=1e-6, abs=1e-300)
    assert found.to_dict()["p_value"] == found.p_value <= 1
