"""The report says the same in both languages, and what other modules say is known in Chinese."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona import report_text
from pomona.errors import PhotoFault
from pomona.findings import CHECKS
from pomona.report_text import Words

SOURCE = Path(report_text.__file__).parent
ENGLISH, CHINESE, NOTES = (
    json.loads((SOURCE / "web" / name).read_text("utf-8"))
    for name in ("report.en.json", "report.zh.json", "notes.zh.json")
)
SPEAKERS = {
    "parts.py": None,
    "audit.py": ("note_audit", "_remark_balance", "_remark_shortcuts"),
    "shortcut.py": ("list_cues",),
    "trust.py": ("note_trust",),
    "training.py": ("_part", "_extract_features", "_keep_learnt"),
    "dataset.py": ("drop_empty_classes",),
    "class_names.py": ("match_class_names",),
    "finetune.py": ("_see_start", "plan_steps", "_choose_rate", "finish", "_say_untrained", "_find_end"),
    "lr_range.py": ("_suggest",),
    "run_folder.py": ("_draw_curves",),
}
"""Modules and functions that write notes, remarks and captions of the report."""

NO_NOTE = re.compile(r"wanted .*|.*\bgot\b.*|the L2 strength, one of.*")
FRAGMENTS = {
    "1 class has",
    "{} classes have",
    "1 row of the table of names is",
    "{} rows of the table are",
    "mirrored ",
}
"""Beginnings that are put together with an end: the table has them whole."""


def _list_places(text: str) -> set[str]:
    return {place.partition(":")[0] for place in re.findall(r"\{(.*?)\}", text)}


def test_both_languages_have_the_same_texts_with_the_same_places() -> None:
    assert list(ENGLISH) == list(CHINESE)
    for key, text in ENGLISH.items():
        for variant in text.split("|"):
            assert _list_places(variant) == _list_places(CHINESE[key]), key
    for sentence, translated in NOTES.items():
        assert _list_places(sentence) == _list_places(translated), sentence


def test_chinese_is_chinese_with_its_own_marks() -> None:
    plain = {"range", "percent", "at_least", "at_most", "f1", "html_lang", "comma"}
    for key, text in {**CHINESE, **NOTES}.items():
        if key in plain or not re.search(r"[\u4e00-\u9fff]", text):
            assert key in plain | {"CMYK", "Pomona"}, key
            continue
        bare = re.sub(r"\{.*?\}", "", text)
        assert not re.search(r"[\u4e00-\u9fff] ?[,;:!?()]|[,;:!?()] ?[\u4e00-\u9fff]", bare), key
        assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]", bare), key
        assert "|" not in text, key


def test_every_text_is_used() -> None:
    """Each key stands in the code or the template, whole or as what a name is put into."""
    used = set(re.findall(r'"([\w-]+)"', (SOURCE / "web" / "report.html.j2").read_text("utf-8")))
    patterns = []
    for name in ("report.py", "confusion_map.py", "trust_plots.py", "report_text.py"):
        for node in ast.walk(ast.parse((SOURCE / name).read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                patterns.append(_to_pattern(node))
    patterns = [one for one in patterns if one.startswith(("metric_", "card_", "kind_")) or one.endswith("_hint")]
    for key in ENGLISH:
        assert key in used or any(re.fullmatch(one, key) for one in patterns), key


def _to_pattern(node: ast.JoinedStr) -> str:
    return "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in node.values)


def _list_sentences(name: str, functions: tuple[str, ...] | None) -> list[str]:
    """Texts of a module that read as sentences or phrases, with a number in each place."""
    found = []
    tree = ast.parse((SOURCE / name).read_text("utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and (functions is None or function.name in functions):
            inside = {
                id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr) for part in node.values
            }
            docstring = ast.get_docstring(function, clean=False)
            for node in ast.walk(function):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                    found += [node.value] if node.value != docstring else []
    return [text for text in found if text.count(" ") > 1 and text not in FRAGMENTS and not NO_NOTE.match(text)]


@pytest.mark.parametrize("name", SPEAKERS)
def test_what_other_modules_say_is_known_in_chinese(name: str) -> None:
    sentences = _list_sentences(name, SPEAKERS[name])
    assert sentences
    shapes = [_make_shape(sentence) for sentence in NOTES]
    unknown = [text for text in sentences if not any(_may_be(shape, text) for shape in shapes)]
    assert not unknown


def _make_shape(sentence: str) -> re.Pattern[str]:
    return re.compile("(?:.+)".join(re.escape(part) for part in re.split(r"\{\w+\}", sentence)), re.DOTALL)


def _may_be(shape: re.Pattern[str], text: str) -> bool:
    """Whether a text with places, or a part of one, is of the shape of a sentence of the table."""
    filled = text.replace("{}", "7")
    return bool(
        shape.fullmatch(filled) or shape.fullmatch(filled + "7") or filled.strip() in shape.pattern.replace("\\", "")
    )


def test_checks_faults_and_stages_are_known_in_chinese() -> None:
    from typing import get_args

    texts = [text for check in CHECKS.values() for text in (check.title, check.advice)]
    texts += [fault.replace("_", " ") for fault in get_args(PhotoFault)]
    steps = re.compile(r"\.step\(\"(\w+)\"")
    texts += [step for name in ("training.py", "audit.py", "finetune.py") for step in steps.findall(_read(name))]
    assert not [text for text in texts if Words("zh").translate(text) == text and text != "CMYK"]


def _read(name: str) -> str:
    return (SOURCE / name).read_text("utf-8")


@pytest.mark.parametrize(
    ("sentence", "translated"),
    [
        ("Learnt from one photo only: Gala, Fuji and 3 more.", "只学过一张照片的类别：嘎啦、Fuji 等，另有 3 个。"),
        (
            "The L2 strength, one of 3, and the temperature were chosen on the same val photos that the numbers are "
            "measured on.",
            "L2 强度（3 个里选出的）和温度是在 val 照片上选定的，而报告里的数也是在这些照片上测得的。",
        ),
        (
            "The val part has no usable photo; 1 photo was kept apart from train instead.",
            "val 部分没有可用的照片；改为从 train 中留出 1 张照片。",
        ),
        (
            "By brightness alone, 40% of the photos would be named right (20% by always saying the largest class, 90% by "
            "the features).",
            "仅凭明暗就能认对 40% 的照片（永远答最大的类别能对 20%，凭特征能对 90%）。",
        ),
        ("Something nobody foresaw.", "Something nobody foresaw."),
        ("Old photos", "Old photos"),
    ],
)
def test_a_note_is_matched_and_filled_again(sentence: str, translated: str) -> None:
    assert Words("zh", {"Gala": "嘎啦"}).translate(sentence) == translated
    assert Words("en").translate(sentence) == sentence


@given(st.text(max_size=60), st.text(max_size=60))
def test_what_a_note_holds_is_never_changed(first: str, second: str) -> None:
    if not first or not second:
        return
    note = f"The same photo with different labels: 2, the first {first} beside {second}."
    translated = Words("zh").translate(note)
    assert first in translated
    assert second in translated


def test_one_and_many() -> None:
    words = Words("en")
    assert (words.say("photos", n=1), words.say("photos", n=0), words.say("photos", n=1234)) == (
        "1 photo",
        "0 photos",
        "1,234 photos",
    )
    assert Words("zh").say("photos", n=1) == "1 张照片"


def test_chinese_keeps_a_space_from_what_is_not() -> None:
    words = Words("zh")
    assert words.say("verdict_pair", first="Gala", second="富士") == "最容易把 Gala 和富士弄混。"
    assert words.say("verdict_pair", first="红A", second="B") == "最容易把红A 和 B 弄混。"
