"""The report says what was measured, in one file, whatever the names hold."""

from __future__ import annotations

import html
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pomona.clock import Stage
from pomona.errors import StorageError
from pomona.evaluation import Evaluation, evaluate, mistakes
from pomona.head import Fit
from pomona.report import ClassCount, MistakeCard, ReportData, draw_confusion, write_report

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def _evaluate(n_photos: int, n_classes: int, share_right: float = 0.8, **options: object) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = np.arange(n_photos) % n_classes
    answers = np.where(np.arange(n_photos) < round(n_photos * share_right), labels, (labels + 1) % n_classes)
    probabilities = np.eye(n_classes)[answers] * 0.5 + rng.dirichlet(np.ones(n_classes), n_photos) * 0.5
    return evaluate(probabilities, labels, **{"classes": [f"class {k}" for k in range(n_classes)], **options})


def _thumbnail(size_px: int = 320) -> bytes:
    noise = np.random.default_rng(size_px).integers(0, 255, (size_px, size_px, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG", quality=50)
    return content.getvalue()


def _write(tmp_path: Path, data: ReportData) -> str:
    write_report(tmp_path / "report.html", data)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class _Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text += " " + " ".join(data.split())


def _full(name: str) -> ReportData:
    """A report with every section, and one text in all of them."""
    labels = np.array([0, 1, 1])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    tree = (name, [name, "other"], np.array([0, 1]))
    return ReportData(
        title=name,
        evaluation=evaluate(scores, labels, classes=[name, "pear"], levels=[tree]),
        verdict_note=name,
        evaluated_on=name,
        class_counts=[ClassCount(name, 5, 2), ClassCount(f"new {name}", 1, 0)],
        mistakes=[MistakeCard(f"{name}.jpg", name, name, 0.8, _thumbnail(32)), MistakeCard("b.jpg", "pear", name, 0.6)],
        skipped=[(name, "not_an_image", name)],
        notes=[name],
        stages=[Stage(name, 1.5, 300), Stage("Write", 0.0)],
        settings={name: name, "time": None, "resume": True, "lr": 0.001, "of": [1, name]},
        provenance={name: name},
        fits=[Fit(0.1, 0.8, 0.7, 30, 0.2), Fit(1, 0.9, 0.4321, 20, 0.2)],
        chosen_l2=1,
    )


@pytest.mark.parametrize(
    "name", [HOSTILE, '"><img src=x onerror=y>', "{{ 7 * 7 }}", "</title></style></script>", "O'Hara"]
)
def test_every_text_is_escaped(tmp_path: Path, name: str) -> None:
    page = _write(tmp_path, _full(name))
    plain = _write(tmp_path, _full("plain"))
    seen = _Page(page)
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in _Page(plain).tags]
    assert [sorted(found) for _, found in seen.tags] == [sorted(found) for _, found in _Page(plain).tags]
    assert seen.text.count(" ".join(name.split())) >= 15


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page = _write(tmp_path, _full("pear"))
    seen = _Page(page)
    assert seen.open == []
    assert not re.search(r"https?://|@import|url\(", page)
    for tag, found in seen.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not [key for key in found if key.startswith("on")]
        assert all((found.get(key) or "data:").startswith("data:") for key in ("src", "href", "srcset"))
    policy = next(found["content"] for tag, found in seen.tags if found.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_policy_admits_the_one_script(tmp_path: Path) -> None:
    import base64
    import hashlib

    page = _write(tmp_path, _full(HOSTILE))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    assert base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode() in html.unescape(page)


@pytest.mark.parametrize(
    ("n_photos", "share_right", "wanted"),
    [
        (300, 0.71, "Right 71 of 100 times (95% interval 66–76) on 300 photos it had not seen."),
        (1000, 0.998, "Right 99.8 of 100 times"),
        (200, 1.0, "Right 100 of 100 times (95% interval 98–100) on 200"),
        (30, 0.9, "Right on 27 of 30 photos it had not seen (95% interval 74–97 of 100)."),
        (5, 1.0, "Right on 5 of 5 photos it had not seen (95% interval 57–100 of 100)."),
    ],
)
def test_the_verdict_is_one_plain_sentence(tmp_path: Path, n_photos: int, share_right: float, wanted: str) -> None:
    data = ReportData(title="fruit", evaluation=_evaluate(n_photos, 2, share_right))
    assert wanted in " ".join(_Page(_write(tmp_path, data)).text.split())


def test_every_section_is_there_and_says_its_numbers(tmp_path: Path) -> None:
    text = _Page(_write(tmp_path, _full("apple"))).text
    for wanted in (
        "pear taken for apple 1 of 2 photos",
        "66.7% 20.8–93.9",
        "1 not an image",
        "1.5 s 200 photos/s",
        "0.1 0.700 80.0%",
        "time none resume yes lr 0.001 of 1, apple",
        "no picture",
        "Measured on 3 photos.",
        "apple: 2 kinds",
        "sure 80%",
    ):
        assert wanted in " ".join(text.split()), wanted


def test_without_an_evaluation_the_report_says_so(tmp_path: Path) -> None:
    counts = [ClassCount("apple", 3, 0), ClassCount("pear", 2, 1)]
    data = ReportData(title="fruit", verdict_note="Too few photos.", class_counts=counts)
    seen = _Page(_write(tmp_path, data))
    text = " ".join(seen.text.split())
    assert "How often it is right was not measured. Too few photos." in text
    assert "apple 3 0 pear 2 1" in text
    assert "svg" not in [tag for tag, _ in seen.tags]


def test_a_bare_report_is_still_a_page(tmp_path: Path) -> None:
    assert _Page(_write(tmp_path, ReportData(title="fruit"))).open == []


def test_the_weakest_class_comes_first_and_unmeasured_ones_last(tmp_path: Path) -> None:
    labels, answers = np.array([0, 0, 2, 2]), np.array([0, 0, 2, 0])
    found = evaluate(np.eye(4)[answers], labels, classes=["good", "unseen", "weak", "also unseen"])
    data = ReportData(title="fruit", evaluation=found, class_counts=[ClassCount("weak", 7, 2), ClassCount("new", 1, 0)])
    rows = re.findall(r'<tr><th scope="row"><bdi>(.*?)</bdi>', _write(tmp_path, data))
    assert rows == ["weak", "good", "unseen", "also unseen", "new"]


def test_pairs_confused_most_often_come_first_and_single_slips_are_only_counted(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    answers = np.array([1, 1, 2, 2, 2, 2, 1, 0, 2])
    found = evaluate(np.eye(3)[answers], labels, classes=["apple", "pear", "plum"])
    text = " ".join(_Page(_write(tmp_path, ReportData(title="fruit", evaluation=found))).text.split())
    first, second = "pear taken for plum 3 of 4 photos", "apple taken for pear 2 of 3 photos"
    assert f"{first} {second} and 2 other pairs" in text


def test_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    cards = [MistakeCard(f"{k}.jpg", "a", "b", 0.5) for k in range(30)]
    skipped = [(f"{k}.jpg", "truncated" if k % 3 else "empty", "short") for k in range(40)]
    text = _Page(_write(tmp_path, ReportData(title="fruit", mistakes=cards, skipped=skipped))).text
    assert "and 6 more, see predictions.csv" in text
    assert "and 28 more, see audit.csv" in text
    assert "26 truncated, 14 empty." in text


def test_mistakes_without_a_card_are_counted(tmp_path: Path) -> None:
    found = evaluate(np.eye(2)[[1] * 40], np.array([0] * 30 + [1] * 10), classes=["apple", "pear"])
    cards = [MistakeCard(f"{k}.jpg", "pear", "apple", 1) for k in range(24)]
    text = _Page(_write(tmp_path, ReportData(title="fruit", evaluation=found, mistakes=cards))).text
    assert "and 6 more, see predictions.csv" in text


def test_the_file_stays_small_with_a_hundred_classes_and_large_thumbnails(tmp_path: Path) -> None:
    large, fitting = _thumbnail(700), _thumbnail(320)
    assert len(large) > 80_000 > len(fitting) > 20_000
    cards = [MistakeCard(f"{k}.jpg", "a", "b", 0.5, (large, fitting, b"\x89PNG")[k % 3]) for k in range(24)]
    page = _write(tmp_path, ReportData(title="fruit", evaluation=_evaluate(3000, 100, 0.5), mistakes=cards))
    assert len(page.encode()) < 3_000_000
    assert page.count("data:image/jpeg;base64,") == 8


def test_the_map_holds_every_pair_once(tmp_path: Path) -> None:
    found = _evaluate(90, 9, 0.6)
    seen = _Page(_write(tmp_path, ReportData(title="fruit", evaluation=found)))
    kinds = [found.get("class") for tag, found in seen.tags if tag == "rect"]
    n_right, n_all = np.count_nonzero(np.diag(found.confusion)), np.count_nonzero(found.confusion)
    assert kinds.count("cell right") == n_right
    assert kinds.count("cell wrong") == n_all - n_right
    row, said = np.argwhere(found.confusion * (1 - np.eye(9)))[0]
    title = f"class {row} taken for class {said}: {found.confusion[row, said]} of 10 photos"
    assert title in seen.text


def test_the_map_leaves_out_what_was_neither_shown_nor_said(tmp_path: Path) -> None:
    found = evaluate(np.eye(5)[[0, 1, 3]], np.array([0, 1, 1]), classes=list("abcde"))
    page = _write(tmp_path, ReportData(title="fruit", evaluation=found))
    assert "Left out: 2 classes that no photo showed" in page
    assert re.findall(r'text-anchor="end"><title>(.*?)</title>', page) == ["a", "b", "d (no photo)"]


def test_many_classes_draw_the_ones_with_most_mistakes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(150), 4)
    answers = np.where(labels < 20, rng.integers(0, 20, len(labels)), labels)
    found = evaluate(np.eye(150)[answers], labels, classes=[f"class {k}" for k in range(150)])
    page = _write(tmp_path, ReportData(title="fruit", evaluation=found))
    assert "Only the 60 classes with the most mistakes are drawn." in page
    drawn = re.findall(r'text-anchor="end"><title>(.*?)</title>', page)
    assert len(drawn) == 60
    assert {f"class {k}" for k in range(20)} <= set(drawn)


def test_chinese_names_are_marked_and_kept(tmp_path: Path) -> None:
    names = ["苹果", "一种名字非常非常长的来自云南省的热带水果品种"]
    page = _write(tmp_path, ReportData(title="三种水果", evaluation=_evaluate(40, 2, 0.5, classes=names)))
    assert '<bdi lang="zh-Hans">苹果</bdi>' in page
    assert f"<title>{names[1]}</title>" in page
    assert names[1] in page.split("</svg>")[1]


def test_a_file_name_that_is_no_text_does_not_stop_the_report(tmp_path: Path) -> None:
    assert "caf\\udce9.jpg" in _write(tmp_path, ReportData(title="fruit", skipped=[("caf\udce9.jpg", "empty", "0")]))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "report.html", ReportData(title="fruit"))


def _open(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    return picture


@pytest.mark.parametrize("n_classes", [1, 2, 10, 30, 81, 100, 300])
def test_the_picture_of_the_matrix_is_readable_at_any_size(n_classes: int) -> None:
    picture = _open(draw_confusion(_evaluate(600, n_classes, 0.7)))
    assert picture.format == "PNG"
    assert 100 <= picture.width == picture.height <= 2200


def test_the_picture_marks_only_mistakes_in_colour() -> None:
    def n_coloured(share_right: float) -> int:
        pixels = np.asarray(_open(draw_confusion(_evaluate(60, 3, share_right)))).astype(int)
        return int((pixels[..., 0] - pixels[..., 2] > 30).sum())

    assert n_coloured(1.0) == 0
    assert n_coloured(0.5) > 3 * 60 * 60


def test_a_name_no_font_can_write_becomes_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pomona.lettering._CJK_FONTS", ())
    chinese = _evaluate(40, 2, 0.5, classes=["苹果", "梨"])
    numbered = _evaluate(40, 2, 0.5, classes=["#0", "#1"])
    assert draw_confusion(chinese) == draw_confusion(numbered)


def test_a_name_loses_its_accents_before_it_becomes_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pomona.lettering._CJK_FONTS", ())
    monkeypatch.setattr("pomona.lettering._LATIN_FONTS", ())
    accented = _evaluate(40, 2, 0.5, classes=["Pêche", "Grüner Apfel mit einem sehr langen Namen"])
    plain = _evaluate(40, 2, 0.5, classes=["Peche", "Gruner Apfel mit einem sehr langen Namen"])
    assert draw_confusion(accented) == draw_confusion(plain)
    assert draw_confusion(plain) != draw_confusion(_evaluate(40, 2, 0.5, classes=["Beche", plain.classes[1]]))


def test_real_photos_fit_in_a_report(shared: Path, tmp_path: Path) -> None:
    photos = sorted((shared / "data" / "grocery" / "val").rglob("*.jpg"))[:24]
    labels = np.arange(24) % 4
    scores = np.random.default_rng(0).dirichlet(np.ones(4), 24)
    cards = [
        MistakeCard(photos[k].name, "a", "b", float(scores[k].max()), _shrink(photos[k]))
        for k in mistakes(scores, labels)
    ]
    page = _write(
        tmp_path, ReportData(title="fruit", evaluation=evaluate(scores, labels, classes=list("abcd")), mistakes=cards)
    )
    assert page.count("data:image/jpeg;base64,") == len(cards) > 12
    assert len(page) < 3_000_000


def _shrink(path: Path) -> bytes:
    content = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((320, 320))
        picture.save(content, "JPEG", quality=80)
    return content.getvalue()


def test_without_jinja2_the_error_names_the_line_to_install() -> None:
    program = (
        "import sys, pathlib; sys.modules['jinja2'] = None\n"
        "from pomona.report import ReportData, write_report\n"
        "try: write_report(pathlib.Path('x.html'), ReportData(title='fruit'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingPackageError jinja2 is needed to write a report")
    assert "pomona[train]" in done.stdout


def test_importing_the_report_is_light() -> None:
    program = (
        "import sys, pomona.report; "
        "print([name for name in ('sklearn', 'PIL', 'matplotlib', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
