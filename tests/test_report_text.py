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

NO_NOTE = re.compile(r".*wanted .*|.*\bgot\b.*", re.DOTALL)
"""Errors are written there, too."""


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
    for key, text in {**CHINESE, **NOTES}.items():
        bare = re.sub(r"\{.*?\}", "", text)
        assert not re.search(r"[\u4e00-\u9fff] ?[,;:!?()]|[,;:!?()] ?[\u4e00-\u9fff]", bare), key
        assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9]|[A-Za-z0-9][\u4e00-\u9fff]", bare), key
        assert "|" not in text, key
        if re.search(r"[A-Za-z]", bare) and key not in {"f1", "html_lang", "CMYK", "Pomona"}:
            assert re.search(r"[\u4e00-\u9fff]", bare), key


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


def _fill_place(place: ast.expr) -> str:
    """A number, as a percentage where it is written as one; the like of what else stands there."""
    written = ast.unparse(place)
    likes = {
        "view": "",
        "join": "a.jpg and b.jpg",
        "_count_photos": "7 photos",
        "were": "were",
        "parts": "The val part has",
    }
    likes |= {
        "what": "The same photo with different labels",
        "chosen": "The temperature was",
        "instead": "the numbers are measured on the val part instead",
    }
    likes |= {"count": "1 class has", "n_classes": "1 class has", "end": "the loss broke at 7"}
    for name, like in likes.items():
        if re.search(rf"(?<![\w.]){name}\b|\.{name}\(", written):
            return like
    return "7%" if "%" in written else "7"


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
                    found.append(
                        "".join(p.value if isinstance(p, ast.Constant) else _fill_place(p) for p in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                    found += [node.value] if node.value != docstring else []
    return [text for text in found if text.count(" ") > 1 and not NO_NOTE.match(text)]


@pytest.mark.parametrize("name", SPEAKERS)
def test_what_other_modules_say_is_known_in_chinese(name: str) -> None:
    sentences = _list_sentences(name, SPEAKERS[name])
    assert sentences
    unknown = [text for text in sentences if Words("zh").translate(text) == text]
    unknown = [text for text in unknown if not any(text in sentence for sentence in NOTES)]
    assert not unknown


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
            "The temperature was chosen on the same val photos that the numbers are measured on.",
            "温度是在 val 照片上选定的，而报告里的数也是在这些照片上测得的。",
        ),
        (
            "The val part has no usable photo; 1 photo was kept apart from train instead.",
            "val 部分没有可用的照片；改为从 train 中留出 1 张照片。",
        ),
        (
            "1 class has no row in the table of names: Gala.",
            "有 1 个类别在名称表里没有对应的行：嘎啦。",
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
