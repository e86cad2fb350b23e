"""What is said is as specific as promised, "unknown" before all else, and plain to machines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pomona.class_names import ClassName
from pomona.class_tree import ClassTree
from pomona.conformal import NEVER
from pomona.prediction import Answer, Prediction, Speaker
from pomona.trust import Promise

TREE = ClassTree.from_paths(["Apple/Gala", "Apple/Fuji", "Pepper/Red/Long", "Pepper/Red/Round", "Wine/Red/Dry", "Kiwi"])
NAMES = tuple(ClassName(f"{name} (en)", f"{name} (zh)", f"400{i}") for i, name in enumerate(TREE.names))


def _speak(
    shares: dict[str, float],
    *,
    least: float = 0.9,
    shortlist: float = 0.1,
    strangeness: float | None = None,
    promises: bool = True,
) -> Prediction:
    promise = Promise(0.95, least, shortlist, 0.05, 100, 60) if promises else None
    probabilities = np.array([shares.get(name, 0.0) for name in TREE.names], np.float32)
    assert probabilities.sum() == pytest.approx(1)
    return Speaker(TREE, NAMES, promise).speak("a.jpg", probabilities, strangeness, n_top=2)


def test_a_sure_class_is_said_with_its_names() -> None:
    said = _speak({"Kiwi": 0.92, "Gala": 0.08})
    kiwi = TREE.names.index("Kiwi")
    assert said.answer == Answer("Kiwi", pytest.approx(0.92), "Kiwi (en)", "Kiwi (zh)", f"400{kiwi}")
    assert (said.sure, said.unknown, said.strangeness) == (True, False, None)
    assert [one.label for one in said.shortlist] == ["Kiwi"]
    assert [one.label for one in said.top] == ["Kiwi", "Gala"]
    assert (said.name_en, said.plu) == ("Kiwi (en)", f"400{kiwi}")


def test_answers_climb_the_tree_until_they_are_sure() -> None:
    said = _speak({"Gala": 0.5, "Fuji": 0.45, "Kiwi": 0.05})
    assert said.answer is not None
    assert (said.answer.label, said.answer.score, said.sure) == ("Apple", pytest.approx(0.95), True)
    assert said.answer.name_zh == "苹果"
    assert (said.label, said.score) == ("Gala", 0.5)
    assert [one.label for one in said.shortlist] == ["Gala", "Fuji"]
    top = _speak({"Gala": 0.3, "Fuji": 0.3, "Kiwi": 0.4})
    assert top.answer is not None
    assert (top.answer.label, top.answer.score, top.sure) == ("Apple", pytest.approx(0.6), False)


def test_nodes_of_one_name_are_told_apart() -> None:
    said = _speak({"Long": 0.5, "Round": 0.5})
    assert said.answer is not None
    assert said.answer.label == "Pepper/Red"
    whole = _speak({"Long": 0.5, "Round": 0.3, "Kiwi": 0.2}, least=NEVER)
    assert whole.answer is not None
    assert (whole.answer.label, whole.sure) == ("Pepper", False)


@pytest.mark.parametrize(("strangeness", "unknown"), [(0.4999, False), (0.5, True), (1.0, True)])
def test_unknown_beats_all_and_the_nearest_class_stays_as_a_hint(strangeness: float, unknown: bool) -> None:
    said = _speak({"Kiwi": 1.0}, strangeness=strangeness)
    assert said.answer is not None
    assert (said.unknown, said.sure) == (unknown, not unknown)
    assert said.answer.label == ("unknown" if unknown else "Kiwi")
    assert (said.label, said.score, said.strangeness) == ("Kiwi", 1, strangeness)
    if unknown:
        assert said.answer == Answer("unknown", strangeness, "Unknown", "未知")


def test_without_a_promise_the_class_is_said() -> None:
    said = _speak({"Gala": 0.4, "Fuji": 0.35, "Kiwi": 0.25}, promises=False)
    assert (said.answer, said.sure, said.shortlist) == (said.top[0], None, ())
    away = _speak({"Gala": 1.0}, promises=False, strangeness=0.9)
    assert away.answer is not None
    assert (away.answer.label, away.sure, away.unknown) == ("unknown", None, True)


def test_it_is_written_as_plain_values() -> None:
    content = json.loads(json.dumps(_speak({"Kiwi": 1.0}, strangeness=0.25).to_dict()))
    assert content["answer"]["label"] == "Kiwi"
    assert content["shortlist"][0].keys() == content["top"][0].keys()
    assert (content["unknown"], content["strangeness"]) == (False, 0.25)
    broken = json.loads(json.dumps(Prediction("b.jpg", error="no photo").to_dict()))
    assert (broken["answer"], broken["sure"], broken["unknown"], broken["shortlist"]) == (None, None, False, [])
