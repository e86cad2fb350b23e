"""The words of the report in English and Chinese, and what other modules say in English said in Chinese.

In: a language; the key of a text and what goes into it, or a sentence of another module. Out: text.
Why: every word of the page stands in one catalogue a language, so that a page is whole in one. Notes and checks
are written where their numbers are known, in English; a table of sentences with places for names and numbers gives them
in Chinese. What is not in the table stays English: a note that cannot be read is worse than one in another language.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from pomona.class_names import Language

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Language", "Words", "write_hundredths"]

_PLACE = re.compile(r"\{(\w+)\}")
_APART = re.compile(r"[\u4e00-\u9fff]\n[A-Za-z0-9]|[A-Za-z0-9%]\n[\u4e00-\u9fff]")
_MORE = re.compile(r"(.*) and ([\d,]+) more")


class Words:
    """All that the report says in one language.

    Parameters
    ----------
    language : {"en", "zh"}
        Which.
    names : mapping of str to str
        What classes are called, where that is not their name.

    Examples
    --------
    >>> Words("en").say("photos", n=1), Words("en").say("photos", n=2500)
    ('1 photo', '2,500 photos')
    >>> Words("zh").translate("Measured on 12 photos only, so the intervals are wide.")
    '只用 12 张照片测量，所以区间很宽。'
    """

    def __init__(self, language: Language, names: Mapping[str, str] | None = None) -> None:
        self.language = language
        self._texts = _load_texts(f"report.{language}.json")
        self._names = names or {}

    def find(self, key: str, n: object = None) -> str:
        """A text with its places still open; of a count `n`, that for one or that for many."""
        one, _, many = self._texts[key].partition("|")
        return one if n == 1 or not many else many

    def say(self, key: str, **values: object) -> str:
        """A text with its places filled."""
        return _fill(self.find(key, values.get("n")), values, self.language)

    def name(self, label: str) -> str:
        """What a class is called."""
        return self._names.get(label, label)

    def translate(self, text: str) -> str:
        """What another module says in English, in this language if its sentence is known.

        Places of a sentence that are called `n` hold a number, those that begin with `names` class names, those that
        begin with `photos` or end with `reason` further phrases of the table; the others are put in as they are.
        """
        if self.language == "en":
            return text
        for sentence in _load_sentences():
            if found := sentence.pattern.fullmatch(text):
                parts = {place: self._carry_over(place, part) for place, part in found.groupdict().items()}
                return _fill(sentence.translated, parts, self.language)
        return text

    def _carry_over(self, place: str, part: str) -> str:
        if place.startswith("names"):
            return self._list_names(part)
        return self.translate(part) if place.startswith("photos") or place.endswith("reason") else part

    def _list_names(self, listed: str) -> str:
        more = _MORE.fullmatch(listed)
        names = "、".join(self.name(label) for label in (more[1] if more else listed).split(", "))
        return _fill("{names}等，另有 {n} 个", {"names": names, "n": more[2]}, "zh") if more else names


def write_hundredths(share: float) -> str:
    """Write a share as so many of 100; never 0 or 100 where it is not.

    Examples
    --------
    >>> write_hundredths(0.714), write_hundredths(0.998), write_hundredths(1.0)
    ('71', '99.8', '100')
    """
    if share in {0.0, 1.0} or 0.005 <= share < 0.995:
        return f"{100 * share:.0f}"
    return f"{min(99.9, max(0.1, 100 * share)):.1f}"


class _Sentence(NamedTuple):
    pattern: re.Pattern[str]
    translated: str


@cache
def _load_texts(name: str) -> dict[str, str]:
    texts: dict[str, str] = json.loads((resources.files("pomona") / "web" / name).read_text(encoding="utf-8"))
    return texts


@cache
def _load_sentences() -> tuple[_Sentence, ...]:
    """The table of sentences; those with the most fixed letters first, so that a special one wins over a general."""
    table = _load_texts("notes.zh.json")
    ordered = sorted(table, key=lambda sentence: -len(_PLACE.sub("", sentence)))
    return tuple(_Sentence(re.compile(_make_pattern(sentence), re.DOTALL), table[sentence]) for sentence in ordered)


def _make_pattern(sentence: str) -> str:
    parts = _PLACE.split(sentence)
    fixed, places = parts[::2], parts[1::2]
    kinds = ("[0-9.,]+" if place == "n" else ".+?" for place in places)
    middle = (f"(?P<{p}>{kind}){re.escape(t)}" for p, kind, t in zip(places, kinds, fixed[1:], strict=True))
    return re.escape(fixed[0]) + "".join(middle)


def _fill(text: str, values: Mapping[str, object], language: Language) -> str:
    """Put values into a text; in Chinese with a space between a Chinese letter and a digit or Latin letter."""
    filled = ""
    for fixed, place, how, _ in Formatter().parse(text):
        for part in (fixed, "" if place is None else format(values[place], how or "")):
            is_near = language == "zh" and _APART.search(f"{filled[-1:]}\n{part[:1]}")
            filled += f" {part}" if is_near else part
    return filled
