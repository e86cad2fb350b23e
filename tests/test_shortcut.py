"""A cue that tells the class without the fruit is named; one that does not is not."""

from __future__ import annotations

import numpy as np
import pytest

from pomona import shortcut
from pomona.evaluation import Metric
from pomona.photo_facts import FACTS
from pomona.shortcut import Shortcut, list_cues, measure_shortcuts

CUES = (
    "the colours of the border",
    "brightness",
    "the size and shape of the picture",
    "the size of the file",
)
N = 90


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small forest answers as a large one does, and sooner."""
    monkeypatch.setattr(shortcut, "_N_TREES", 12)


def draw_rows(n_photos: int = N, seed: int = 0) -> np.ndarray:
    """Photos of which nothing but the fruit tells the class."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n_photos, FACTS)
    rows["width_px"], rows["height_px"] = rng.integers(200, 800, (2, n_photos))
    rows["n_bytes"] = rng.integers(10_000, 90_000, n_photos)
    rows["brightness_p5"], rows["brightness_p99"] = rng.uniform(0, 0.3, n_photos), rng.uniform(0.7, 1, n_photos)
    rows["thumbnail"] = rng.integers(0, 256, (n_photos, 1, 1, 3))
    return rows


def draw_labels(n_photos: int = N, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n_photos) % n_classes, np.arange(n_photos).astype(str)


def plant(rows: np.ndarray, labels: np.ndarray, cue: str) -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 12, len(rows))
    if cue == CUES[0]:
        rows["thumbnail"][:, 3:-3, 3:-3] = 128
        colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])[labels]
        for strip in (np.s_[:, :3], np.s_[:, -3:], np.s_[:, :, :3], np.s_[:, :, -3:]):
            rows["thumbnail"][strip] = (colours + noise[:, None])[:, None, None]
    elif cue == CUES[1]:
        rows["brightness_p99"] = 0.6 + 0.15 * labels + noise / 200
    elif cue == CUES[2]:
        rows["width_px"] = 300 + 200 * labels + noise
    else:
        rows["n_bytes"] = 20_000 * (1 + labels) + 100 * noise
    return rows


@pytest.mark.parametrize("cue", CUES)
def test_a_planted_cue_is_named_first_and_alone(cue: str) -> None:
    labels, groups = draw_labels()
    found = measure_shortcuts(plant(draw_rows(), labels, cue), labels, groups)
    assert {one.cue for one in found} == set(CUES)
    assert found[0].cue == cue
    assert found[0].accuracy.value > 0.9
    assert found[0].chance == pytest.approx(1 / 3)
    assert [one.cue for one in found if one.is_likely(0.95)] == [cue]


def test_nothing_is_likely_where_only_the_fruit_tells() -> None:
    labels, groups = draw_labels()
    for seed in range(2):
        found = measure_shortcuts(draw_rows(seed=seed), labels, groups)
        assert len(found) == 4
        assert not any(one.is_likely(0.9) for one in found)


def test_the_middle_of_a_picture_is_no_border() -> None:
    labels, groups = draw_labels()
    rows = draw_rows()
    rows["thumbnail"][:, 3:-3, 3:-3] = 80 * labels[:, None, None, None]
    assert not any(one.is_likely(0.9) for one in measure_shortcuts(rows, labels, groups))


def test_a_tray_that_is_in_one_group_alone_is_not_taken_for_knowledge() -> None:
    labels = np.arange(N) % 3
    groups = np.array([f"{label} {i // 15}" for i, label in enumerate(labels)])  # six trays a class, each of its own
    rng = np.random.default_rng(0)
    trays = {group: rng.integers(0, 256, 3) for group in np.unique(groups)}
    rows = draw_rows()
    rows["thumbnail"] = np.array([trays[group] for group in groups])[:, None, None]
    apart = measure_shortcuts(rows, labels, np.arange(N).astype(str))
    whole = measure_shortcuts(rows, labels, groups)
    assert apart[0].accuracy.value > 0.9 > whole[0].accuracy.value + 0.2
    assert not whole[0].is_likely(0.9)


def test_two_calls_say_the_same_and_another_seed_draws_others() -> None:
    labels, groups = draw_labels()
    one = measure_shortcuts(draw_rows(), labels, groups)
    assert measure_shortcuts(draw_rows(), labels, groups) == one
    assert measure_shortcuts(draw_rows(), labels, groups, seed=1) != one


def test_where_little_can_be_measured_nothing_is_said() -> None:
    labels, groups = draw_labels()
    rows = draw_rows()
    assert measure_shortcuts(rows, labels, np.array([f"{i % 5}" for i in range(N)])) == ()
    assert measure_shortcuts(rows, np.zeros(N, np.intp), groups) == ()
    assert measure_shortcuts(rows[:5], labels[:5], groups[:5]) == ()
    assert measure_shortcuts(rows[:0], labels[:0], groups[:0]) == ()
    assert len(measure_shortcuts(rows[:6], labels[:6], groups[:6])) == 4


def test_of_many_photos_a_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "_MAX_PHOTOS", 60)
    labels, groups = draw_labels()
    found = measure_shortcuts(plant(draw_rows(), labels, CUES[1]), labels, groups)
    assert {one.accuracy.n for one in found} == {60}
    assert found[0].cue == CUES[1]


def test_a_cue_is_likely_from_half_of_what_the_features_know() -> None:
    def make(low: float, chance: float = 0.3) -> Shortcut:
        return Shortcut("x", Metric(low + 0.05, low, low + 0.1, n=100), chance)

    assert make(0.66).is_likely(1.0)  # 0.36 above chance, of 0.70
    assert not make(0.64).is_likely(1.0)
    assert make(0.64).is_likely(0.9)
    assert not make(0.44).is_likely(0.4)  # hardly more than chance
    assert make(0.46).is_likely(0.4)
    assert make(0.46).is_likely(0.1)  # the features know less than nothing


@pytest.mark.parametrize("n_photos", [0, 4])
def test_cues_are_tables_of_numbers(n_photos: int) -> None:
    rows = np.zeros(n_photos, FACTS)  # a file of no bytes, a picture of no pixels
    cues = list_cues(rows)
    assert tuple(cues) == CUES
    assert [table.shape for table in cues.values()] == [(n_photos, k) for k in (24, 2, 2, 2)]
    assert all(table.dtype == np.float32 and np.isfinite(table).all() for table in cues.values())
