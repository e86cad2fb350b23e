"""Metrics agree with scikit-learn, intervals hold what they promise, bad arrays are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import DataError
from pomona.evaluation import Evaluation, evaluate, mistakes, wilson_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _score(probabilities: NDArray[np.floating], labels: NDArray[np.integer], **options: object) -> Evaluation:
    return evaluate(probabilities, labels, classes=[f"c{k}" for k in range(probabilities.shape[1])], **options)


def _answer(answers: NDArray[np.integer], n_classes: int) -> NDArray[np.float64]:
    return np.eye(n_classes)[answers]


@st.composite
def scored(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities and labels; classes that no label holds and classes that no answer names are common."""
    n_photos, n_classes = draw(st.integers(1, 60)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.choice(rng.permutation(n_classes)[: draw(st.integers(1, n_classes))], n_photos)
    probabilities = rng.dirichlet(np.full(n_classes, 0.5), n_photos) + draw(st.sampled_from([0, 1])) * np.eye(
        n_classes
    )[labels] * rng.random((n_photos, 1))
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels.astype(np.int64)


@settings(max_examples=120, deadline=None)
@given(scored())
def test_metrics_agree_with_scikit_learn(case: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    from sklearn import metrics

    probabilities, labels = case
    found, n_classes = _score(probabilities, labels), probabilities.shape[1]
    answers, present = probabilities.argmax(axis=1), np.unique(labels)
    pairs = metrics.confusion_matrix(labels, answers, labels=range(n_classes))
    np.testing.assert_array_equal(found.confusion, pairs)
    recalls = metrics.recall_score(labels, answers, labels=present, average=None, zero_division=0)
    f1 = {"y_true": labels, "y_pred": answers, "zero_division": 0}
    wanted = {
        "accuracy": metrics.accuracy_score(labels, answers),
        "balanced_accuracy": recalls.mean(),
        "macro_f1": metrics.f1_score(**f1, labels=present, average="macro"),
        "weighted_f1": metrics.f1_score(**f1, average="weighted"),
    }
    got = {name: getattr(found, name).value for name in wanted}
    assert got == pytest.approx(wanted, abs=1e-12)
    rows = metrics.precision_recall_fscore_support(labels, answers, labels=range(n_classes), zero_division=0)
    ours = [[row.precision, row.recall, row.f1, row.support] for row in found.per_class]
    np.testing.assert_allclose(ours, np.transpose(rows), atol=1e-12)


def test_balanced_accuracy_and_top5_agree_with_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.full(9, 0.5), 300), np.arange(300) % 9
    found = _score(probabilities, labels)
    answers = probabilities.argmax(axis=1)
    assert found.balanced_accuracy.value == pytest.approx(metrics.balanced_accuracy_score(labels, answers), abs=1e-12)
    top5 = metrics.top_k_accuracy_score(labels, probabilities, k=5)
    assert found.top5.value == pytest.approx(top5, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(scored(), st.integers(1, 8))
def test_a_metric_lies_within_its_interval(
    case: tuple[NDArray[np.float64], NDArray[np.int64]], group_size: int
) -> None:
    probabilities, labels = case
    groups = np.arange(len(labels)) // group_size
    alone, grouped = _score(probabilities, labels), _score(probabilities, labels, groups=groups)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "top5"):
        for metric in (getattr(alone, name), getattr(grouped, name)):
            assert 0 <= metric.low <= metric.value <= metric.high <= 1
            assert metric.low < metric.high
            assert metric.n == len(labels)
    assert _width(grouped.accuracy) >= _width(alone.accuracy) - 1e-12


def _width(metric: object) -> float:
    return metric.high - metric.low  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(scored(), st.integers(0, 1000))
def test_the_order_of_photos_does_not_matter(case: tuple[NDArray[np.float64], NDArray[np.int64]], seed: int) -> None:
    probabilities, labels = case
    groups = np.arange(len(labels)) // 3
    order = np.random.default_rng(seed).permutation(len(labels))
    first = _score(probabilities, labels, groups=groups).to_dict(confusion=True)
    second = _score(probabilities[order], labels[order], groups=groups[order]).to_dict(confusion=True)
    assert second["confusion"] == first["confusion"]
    assert second["accuracy_interval"] == pytest.approx(first["accuracy_interval"], abs=1e-9)
    assert second["macro_f1_interval"] == pytest.approx(first["macro_f1_interval"], abs=1e-9)


def test_wilson_is_the_published_interval() -> None:
    # R 4.3: prop.test(81, 263, correct = FALSE), the example of Newcombe (1998), Statistics in Medicine 17.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_wilson_holds_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    for n_photos, truth in ((12, 0.9), (40, 0.7), (300, 0.97)):
        inside = [
            low <= truth <= high
            for low, high in (
                wilson_interval(hits / n_photos, n_photos) for hits in rng.binomial(n_photos, truth, 2000)
            )
        ]
        assert 0.92 <= np.mean(inside) <= 0.99


def test_few_photos_all_right_are_not_certain() -> None:
    found = _score(_answer(np.array([0, 1, 2, 3, 4]), 5), np.arange(5))
    for metric in (found.accuracy, found.balanced_accuracy, found.macro_f1, found.weighted_f1):
        assert metric.value == 1
        assert metric.low == pytest.approx(wilson_interval(1, 5)[0], abs=0.03)
    single = _score(np.ones((3, 1)), np.zeros(3, int))
    assert (single.macro_f1.value, single.macro_f1.low) == pytest.approx((1, wilson_interval(1, 3)[0]))


def test_classes_that_are_all_right_or_all_wrong_are_not_certain() -> None:
    labels = np.repeat(np.arange(20), 3)
    answers = np.where(labels < 10, labels, labels - 10)
    found = _score(_answer(answers, 20), labels)
    # With half a photo of the other kind each recall is 7/8 or 1/8, on three photos; there are twenty of them.
    spread = np.sqrt(7 / 8 * 1 / 8 / 3 / 20)
    assert _width(found.balanced_accuracy) == pytest.approx(2 * 1.96 * spread, rel=0.05)
    assert _width(found.macro_f1) > 0.05


def test_intervals_of_the_macro_metrics_match_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    n_classes, n_each = 6, 60
    labels = np.repeat(np.arange(n_classes), n_each)
    answers = np.where(rng.random(len(labels)) < 0.8, labels, rng.integers(0, n_classes, len(labels)))
    found = _score(_answer(answers, n_classes), labels)
    drawn = np.array([_resample(labels, answers, n_classes, rng) for _ in range(1500)])
    for values, metric in zip(drawn.T, (found.balanced_accuracy, found.macro_f1), strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert (metric.low, metric.high) == pytest.approx((low, high), abs=0.012)


def _resample(
    labels: NDArray[np.int64], answers: NDArray[np.int64], n_classes: int, rng: np.random.Generator
) -> tuple[float, float]:
    picked = rng.integers(0, len(labels), len(labels))
    pairs = np.bincount(labels[picked] * n_classes + answers[picked], minlength=n_classes**2)
    confusion = pairs.reshape(n_classes, n_classes)
    right, shown, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return float(np.mean(right / shown)), float(np.mean(2 * right / (shown + said)))


def test_intervals_hold_the_truth_with_few_photos_a_class() -> None:
    rng = np.random.default_rng(3)
    recall = rng.beta(6, 1.5, 20)
    labels = np.repeat(np.arange(20), 5)
    inside = []
    for _ in range(400):
        wrong = (labels + rng.integers(1, 20, len(labels))) % 20
        answers = np.where(rng.random(len(labels)) < recall[labels], labels, wrong)
        metric = _score(_answer(answers, 20), labels).balanced_accuracy
        inside.append(metric.low <= recall.mean() <= metric.high)
    assert np.mean(inside) >= 0.93


def test_repeated_frames_count_as_one_photo() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 50)
    answers = np.where(rng.random(50) < 0.7, labels, (labels + 1) % 4)
    once = _score(_answer(answers, 4), labels)
    frames = np.repeat(np.arange(50), 8)
    eightfold = _score(_answer(answers, 4)[frames], labels[frames], groups=frames)
    unaware = _score(_answer(answers, 4)[frames], labels[frames])
    assert _width(eightfold.accuracy) == pytest.approx(_width(once.accuracy), rel=0.02)
    assert _width(eightfold.macro_f1) == pytest.approx(_width(once.macro_f1), rel=0.1)
    assert _width(unaware.accuracy) < 0.5 * _width(once.accuracy)


def test_all_right_in_groups_is_as_certain_as_one_photo_a_group() -> None:
    labels, groups = np.zeros(40, int), np.arange(40) // 8
    found = _score(_answer(labels, 2), labels, groups=groups)
    assert found.accuracy.low == pytest.approx(wilson_interval(1.0, 5)[0])


def test_grouped_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(500):
        easy = rng.random(40) < 0.85
        hits = np.where(rng.random(200) < 0.8, np.repeat(easy, 5), rng.random(200) < 0.85)
        found = _score(_answer(1 - hits.astype(int), 2), np.zeros(200, int), groups=np.repeat(np.arange(40), 5))
        inside.append(found.accuracy.low <= 0.85 <= found.accuracy.high)
    assert 0.92 <= np.mean(inside) <= 0.99


def test_groups_may_be_names() -> None:
    probabilities, labels = _answer(np.array([0, 0, 1, 1]), 2), np.array([0, 0, 1, 0])
    by_name = _score(probabilities, labels, groups=np.array(["b", "b", "a", "a"]))
    by_number = _score(probabilities, labels, groups=np.array([7, 7, 3, 3]))
    assert by_name.to_dict() == by_number.to_dict()


def test_a_level_sums_the_probabilities_of_its_classes() -> None:
    # The most likely class is a pear; apples are likelier together.
    probabilities = np.array([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8]])
    tree = ("level 1", ["apple", "pear"], np.array([0, 0, 1]))
    found = _score(probabilities, np.array([1, 2]), levels=[tree])
    assert [(level.name, level.n_classes, level.accuracy.value) for level in found.levels] == [
        ("level 1", 2, 1.0),
        ("class", 3, 0.5),
    ]
    assert found.levels[-1].macro_f1 == found.macro_f1


def test_levels_keep_their_order_and_agree_with_scoring_the_sums() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(8), 100), rng.integers(0, 8, 100)
    coarse, middle = np.arange(8) // 4, np.arange(8) // 2
    trees = [("level 1", ["x", "y"], coarse), ("level 2", list("abcd"), middle)]
    found = _score(probabilities, labels, levels=trees)
    assert [level.name for level in found.levels] == ["level 1", "level 2", "class"]
    summed = probabilities.reshape(100, 4, 2).sum(axis=2)
    alone = _score(summed, middle[labels])
    assert found.levels[1].accuracy == alone.accuracy
    assert found.levels[1].macro_f1 == alone.macro_f1


def test_the_first_of_equally_likely_classes_is_the_answer() -> None:
    level = np.full((1, 8), 1 / 8)
    assert _score(level, np.array([0])).accuracy.value == 1
    assert _score(level, np.array([4])).accuracy.value == 0
    assert _score(level, np.array([4])).top5.value == 1
    assert _score(level, np.array([5])).top5.value == 0


def test_a_class_knows_what_it_is_taken_for() -> None:
    answers, labels = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 0, 0, 0, 2, 2])
    rows = _score(_answer(answers, 3), labels).per_class
    assert (rows[0].most_confused_with, rows[0].n_confused) == ("c1", 2)
    assert (rows[1].most_confused_with, rows[1].support, rows[1].f1) == (None, 0, 0)
    assert (rows[2].most_confused_with, rows[2].n_confused, rows[2].recall) == (None, 0, 1)


def test_mistakes_come_surest_first_and_equals_in_order() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8]])
    rows = mistakes(probabilities, np.array([1, 1, 0, 1, 1]))
    assert rows.tolist() == [1, 3, 0]
    assert mistakes(probabilities[:1], np.array([0])).tolist() == []


def test_the_dict_is_json_and_leaves_the_matrix_out() -> None:
    found = _score(np.array([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2]], np.float32), np.array([0, 1, 1]))
    short, long = found.to_dict(), found.to_dict(confusion=True)
    assert json.loads(json.dumps(short, allow_nan=False)) == short
    assert "confusion" not in short
    assert long["confusion"] == [[1, 0], [1, 1]]
    assert long["classes"] == ["c0", "c1"]
    assert short["accuracy"] == pytest.approx(2 / 3)
    assert short["accuracy_interval"] == [found.accuracy.low, found.accuracy.high]
    assert short["levels"][-1]["level"] == "class"
    assert {"macro_f1", "balanced_accuracy", "weighted_f1", "top5_accuracy", "per_class", "n"} <= short.keys()


GOOD = np.array([[0.5, 0.5], [0.25, 0.75]])


@pytest.mark.parametrize(
    ("probabilities", "labels", "options", "message"),
    [
        (GOOD[0], [0, 1], {}, r"wanted the shape \(n_photos, n_classes\), got \(2,\)"),
        (GOOD[:, :0], [0, 1], {}, r"got \(2, 0\)"),
        (GOOD, [0], {}, r"labels: wanted the shape \(2,\).*got \(1,\)"),
        (GOOD[:0], np.zeros(0, int), {}, "at least one photo.*got none"),
        (GOOD, [0.0, 1.0], {}, "wanted whole numbers, got float64"),
        (GOOD, [0, -1], {}, "wanted 0 to 1, got -1 in row 1.*drop the photos"),
        (GOOD, [2, 0], {}, "got 2 in row 0"),
        (GOOD * [1, np.nan], [0, 1], {}, "got nan in row 0, column 1"),
        (GOOD * [1, np.inf], [0, 1], {}, "got inf in row 0, column 1"),
        (GOOD * [3, -3], [0, 1], {}, "got 1.5 in row 0, column 0.*softmax"),
        (GOOD.astype(int), [0, 1], {}, "wanted floating-point numbers"),
        (GOOD, [0, 1], {"classes": ["a"]}, "wanted 2 names.*got 1"),
        (GOOD, [0, 1], {"groups": np.zeros(3)}, r"groups: wanted the shape \(2,\).*got \(3,\)"),
        (GOOD, [0, 1], {"levels": [("kind", ["x"], np.array([0]))]}, r"kind: .*shape \(2,\).*got .*\(1,\)"),
        (GOOD, [0, 1], {"levels": [("kind", ["x"], np.array([0, 1]))]}, "kind: wanted nodes 0 to 0, got 1 for class 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    probabilities: NDArray[np.float64], labels: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(probabilities, np.array(labels), **{"classes": ["a", "b"], **options})


def test_a_bad_number_far_down_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pomona.evaluation._CELLS_PER_BLOCK", 10)
    probabilities = np.tile(GOOD, (20, 1))
    whole = _score(probabilities, np.zeros(40, int))
    assert whole.accuracy.value == 0.5
    probabilities[33, 1] = np.nan
    with pytest.raises(DataError, match="row 33, column 1"):
        _score(probabilities, np.zeros(40, int))


def test_single_precision_and_any_whole_number_type_are_taken() -> None:
    labels = np.array([0, 1], np.uint8)
    assert _score(GOOD.astype(np.float32), labels).to_dict() == _score(GOOD, labels.astype(np.int64)).to_dict()
    many = np.full((1, 300), 1 / 300, np.float16)
    assert _score(many, np.array([200], np.uint8)).accuracy.value == 0


def test_scoring_needs_nothing_beside_numpy() -> None:
    program = (
        "import sys, numpy as np; from pomona.evaluation import evaluate; "
        "evaluate(np.eye(3), np.arange(3), classes=list('abc')); "
        "print([name for name in ('sklearn', 'scipy', 'PIL', 'matplotlib', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
