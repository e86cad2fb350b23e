"""The report says what was measured, in one file, whatever the names hold."""

from __future__ import annotations

import html
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pomona import training
from pomona.class_tree import ClassTree
from pomona.clock import Stage
from pomona.conformal import NEVER
from pomona.confusion_map import draw_confusion
from pomona.data_curve import CurvePoint, DataCurve
from pomona.dataset import load_dataset
from pomona.errors import StorageError
from pomona.evaluation import Evaluation, Metric, evaluate, mistakes
from pomona.findings import Audit, Finding
from pomona.head import Fit
from pomona.report import ClassCount, ConfusedPair, MistakeCard, ReportData, write_report
from pomona.run_folder import Run, write_run
from pomona.trust import Baseline, Trust, TrustOptions, check_trust

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        curves=[(name, name, "<svg></svg>")],
        confused=[ConfusedPair("pear", name, 1, 2, _thumbnail(32), None)],
        features=name,
        licence=name,
        **_trusted(),
    )


def _trusted() -> dict[str, object]:
    """What a recogniser of 4 classes in 2 kinds promises, found on 400 photos that it is right about 8 times in 10."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    logits = rng.normal(0, 1, (400, 4)).astype(np.float32)
    logits[np.arange(400), labels] += 2.4
    groups = np.array([f"g{k // 2}" for k in range(400)])
    tree = ClassTree.from_paths(["a/1", "a/2", "b/3", "b/4"])
    trust, evidence = check_trust(logits, labels, groups, tree, TrustOptions())
    points = tuple(CurvePoint(n, share, share - 0.05, share + 0.05) for n, share in ((5, 0.5), (10, 0.6), (20, 0.7)))
    curve = DataCurve(points, CurvePoint(40, 0.78, 0.7, 0.84))
    kinds = ((("energy",), 0.91), (("nearest", "energy"), 0.88))
    evidence = replace(evidence, is_folds=True, candidates=kinds, curve=curve)
    baselines = [
        Baseline("most frequent", Metric(0.25, 0.2, 0.3, 400)),
        Baseline("nearest", Metric(0.6, 0.55, 0.65, 400)),
    ]
    return {"trust": trust, "evidence": evidence, "kept": evidence.held_out, "baselines": baselines}


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
    assert not re.search(r"https?://|@import|url\(", page.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
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
        (300, 0.71, "Right 71 of 100 times on photos it had not seen (95% interval 66–76)."),
        (1000, 0.998, "Right 99.8 of 100 times"),
        (200, 1.0, "Right 100 of 100 times on photos it had not seen (95% interval 98–100)."),
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


def _read(tmp_path: Path, data: ReportData) -> str:
    return " ".join(_Page(_write(tmp_path, data)).text.replace("\u2060", "").split())


def test_what_trust_rests_on_is_said_in_numbers(tmp_path: Path) -> None:
    trusted = _trusted()
    evidence = trusted["evidence"]
    kept = evidence.held_out
    text = _read(tmp_path, replace(_full("apple"), evaluation=_evaluate(400, 4, kept.accuracy.value)))
    for wanted in (
        "Always the largest class without looking at the photo 25.0% 20.0–30.0",
        "The most similar photo its class, without any training 60.0% 55.0–65.0",
        f"Foretold from 400 photos it learned from, each left out with its scene {100 * kept.accuracy.value:.1f}%",
        f"Measured on 400 apple, of 200 scenes {100 * kept.accuracy.value:.1f}%",
        "The forecast held.",
        f"are {100 * kept.after.ece:.1f} points apart",
        f"Answered with the class itself {100 * kept.share_exact:.1f}%",
        f"Answered coarser the kind above the class {100 * kept.share_coarse:.1f}%",
        f"Right among the sure answers {100 * kept.sure_right.value:.1f}%",
        f"Shortlist holds the right class {kept.shortlist_size:.1f} classes on it, on average",
        "≥ 95%",
        "≤ 5%",
        "from 400 photos in 200 groups of photos",
        "it holds the strange one to be stranger in 91 of 100 cases",
        "how unlikely every class is (energy) chosen 91.0%",
        "With 20 photos a class it is right in 70 of 100; twice as many would bring about 78 (95% interval 70–84",
        "Sure answers are right, and shortlists hold the right class, in 95 of 100",
        "apple, licence apple.",
    ):
        assert wanted in text, wanted


def test_a_promise_that_did_not_hold_is_said_to_be_broken(tmp_path: Path) -> None:
    data = replace(_full("apple"), evaluation=_evaluate(400, 4))
    assert "The promises held on these photos" in _read(tmp_path, data)
    assert data.kept is not None
    for fault in ({"covered": Metric(0.8, 0.7, 0.9, 400)}, {"turned_away": Metric(0.2, 0.1, 0.3, 400)}):
        broken = _read(tmp_path, replace(data, kept=replace(data.kept, **fault)))
        assert "not every promise held" in broken
        assert "The promises held" not in broken


def test_where_no_answer_is_sure_nothing_of_the_kind_is_promised(tmp_path: Path) -> None:
    data = replace(_full("apple"), evaluation=_evaluate(400, 4))
    promise = data.trust.promise
    assert promise is not None
    data = replace(data, trust=replace(data.trust, promise=replace(promise, least_answer=NEVER)))
    page = _write(tmp_path, data)
    assert "so none is called sure" in page
    assert "No answer is called sure." in page
    assert ">chosen " not in page


@pytest.mark.parametrize("missing", ["evidence", "kept", "baselines", "confused", "features"])
def test_a_section_without_data_is_not_there(tmp_path: Path, missing: str) -> None:
    data = replace(_full("apple"), evaluation=_evaluate(400, 4))
    marks = {
        "evidence": ["Whether more photos would help", "How exact, how safe", "What it does not know", "Foretold"],
        "kept": ["of 200 scenes"],
        "baselines": ["The most similar photo"],
        "confused": ["Left a photo that was taken for another class"],
        "features": ["Model card"],
    }[missing]
    empty = {"evidence": None, "kept": None, "features": ""}.get(missing, ())
    full, less = _read(tmp_path, data), _read(tmp_path, replace(data, **{missing: empty}))
    for mark in marks:
        assert mark in full
        assert mark not in less
    bare = replace(data, trust=Trust(), evidence=None, kept=None)
    assert "Whether its sureness can be believed" not in _read(tmp_path, bare)


def _audit(tmp_path: Path, checks: Sequence[str]) -> Audit:
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(_thumbnail(16 + (name[0] == "b")))
    found = tuple(Finding(f"{k}.jpg", check, 0.1, True, "x") for k, check in enumerate(checks))
    return Audit(load_dataset(tmp_path / "photos"), "full", found)


@pytest.mark.parametrize(
    ("n_photos", "checks", "is_known", "wanted"),
    [
        (400, ["wrong_label"] * 3, True, "3 photos look mislabelled."),
        (400, ["wrong_label", "leak"], True, "1 photo looks mislabelled."),
        (400, ["leak"] * 9 + ["wrong_label"], True, "9 photos it was measured on have a twin among those it learned"),
        (40, [], True, "More photos come first"),
        (400, [], True, "Twice the photos would bring about 78 of 100."),
        (400, [], False, "It mixes up"),
    ],
)
def test_the_third_sentence_is_what_helps_most(
    tmp_path: Path, n_photos: int, checks: list[str], *, is_known: bool, wanted: str
) -> None:
    data = ReportData(title="fruit", evaluation=_evaluate(n_photos, 4), audit=_audit(tmp_path, checks))
    if is_known:
        data = replace(data, **_trusted())
    (sentences,) = re.findall(r'<p class="next">(.*?)</p>', _write(tmp_path, data))
    assert wanted in sentences
    assert ("<strong>" in sentences) == is_known


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([0, 1, 2, 0, 1, 2], "It made no mistake."),
        ([1, 1, 2, 0, 1, 2], "No two classes stand out among its mistakes."),
        ([1, 0, 2, 0, 1, 2], "It mixes up apple and pear most."),
        ([0, 2, 2, 0, 2, 1], "It mixes up pear and plum most."),
    ],
)
def test_the_second_sentence_names_the_two_it_confuses_either_way(
    tmp_path: Path, answers: list[int], wanted: str
) -> None:
    found = evaluate(np.eye(3)[answers], np.array([0, 1, 2, 0, 1, 2]), classes=["apple", "pear", "plum"])
    assert wanted in _read(tmp_path, ReportData(title="fruit", evaluation=found))


def test_few_photos_are_said_to_be_few_at_the_top(tmp_path: Path) -> None:
    few = _read(tmp_path, ReportData(title="fruit", evaluation=_evaluate(20, 5, 0.7)))
    assert "Only 20 photos could be measured on, and the interval is wide" in few.split("What that is worth")[0]
    assert "the interval is wide" not in _read(tmp_path, ReportData(title="fruit", evaluation=_evaluate(600, 5, 0.7)))


def test_sureness_is_not_said_of_a_handful(tmp_path: Path) -> None:
    data = replace(_full("apple"), evaluation=_evaluate(400, 4))
    assert data.kept is not None
    few = replace(data.kept, after=replace(data.kept.after, n=12))
    assert "When it says" in _read(tmp_path, data)
    assert "When it says" not in _read(tmp_path, replace(data, kept=few))


def test_confused_pairs_and_heat_maps_are_beside_the_photo(tmp_path: Path) -> None:
    pair = ConfusedPair("class 0", "class 1", 3, 10, _thumbnail(40), _thumbnail(41))
    cards = [MistakeCard("a.jpg", "class 1", "class 0", 0.9, _thumbnail(42), _thumbnail(43))]
    data = ReportData(title="fruit", evaluation=_evaluate(40, 4, 0.6), confused=[pair], mistakes=cards)
    page = _write(tmp_path, data)
    assert page.count("data:image/jpeg;base64,") == 4
    assert 'alt="is class 0"' in page
    assert 'alt="learned as class 1"' in page
    assert "what the answer was drawn from, in red" in page
    pairs = re.findall(r"taken for</span> <span class=\"said\"><bdi>(.*?)</bdi>", page)
    assert pairs == ["class 1", "class 2", "class 3", "class 0"]  # the pair with photos is not listed again


def test_display_names_take_the_place_of_names_everywhere_but_in_files(tmp_path: Path) -> None:
    data = ReportData(
        title="fruit",
        evaluation=_evaluate(40, 2, 0.6, classes=["gala", "fuji"]),
        mistakes=[MistakeCard("gala.jpg", "gala", "fuji", 0.9)],
        class_counts=[ClassCount("gala", 5, 2)],
        display_names={"gala": "Royal Gala", "fuji": "红富士"},
    )
    page = _write(tmp_path, data)
    text = _Page(page).text
    assert "Royal Gala" in text
    assert '<bdi lang="zh-Hans">红富士</bdi>' in page
    assert not re.search(r"\b(gala|fuji)\b(?!\.jpg)", text)


class _Seen(Exception):  # noqa: N818 - it carries the run out of training
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


@pytest.fixture(scope="module")
def run(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run on rendered photos, as training hands it over to be written."""

    def see(_folder: Path, run: Run, _stages: Sequence[Stage]) -> None:
        raise _Seen(run)

    output = tmp_path_factory.mktemp("seen") / "run"
    options = training.TrainOptions(data=rendered, output=output, effort="instant", imgsz=64, check="full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_run", see)
        with pytest.raises(_Seen) as seen:
            training.train(options)
    return seen.value.run


def test_a_chinese_page_of_a_run_has_no_english_sentence(run: Run, tmp_path: Path) -> None:
    stages = [Stage("read", 1.0), Stage("features", 2.0, 24), Stage("trust", 1.0), Stage("fit", 1.0)]
    write_run(tmp_path, replace(run, language="zh"), stages)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert '<html lang="zh-Hans">' in page
    text = _Page(page).text
    for known in (*run.dataset.tree.names, *map(str, run.settings.values()), run.embedding.slug):
        text = text.replace(known, "")
    assert not re.findall(r"[A-Za-z]{2,}[,;.]? [a-z]{2,} [a-z]{2,}", text)
    assert "张照片" in text
    assert "模型卡" in text


def test_every_section_is_chinese_where_the_language_is(tmp_path: Path) -> None:
    data = replace(_full("苹果"), evaluation=_evaluate(400, 4, classes=list("甲乙丙丁")), language="zh", settings={})
    seen = _Page(
        _write(tmp_path, replace(data, provenance={}, audit=_audit(tmp_path, ["wrong_label", "leak", "dark"])))
    )
    assert not re.findall(r"[A-Za-z]{2,} [a-z]{2,}", seen.text)
    for wanted in (
        "每 100 次对 80 次",
        "看起来标错了",
        "太暗",
        "事先的预计",
        "（能量）",
    ):
        assert wanted in seen.text


def test_a_run_shows_a_mistake_beside_the_photo_it_is_most_like(run: Run, tmp_path: Path) -> None:
    wrong = np.roll(run.probabilities, 1, axis=1)
    assert run.bank is not None
    label = int(wrong[0].argmax())
    place = int(np.flatnonzero(run.bank.bank.labels == label)[-1])
    from pomona.run_folder import _find_alike

    assert _find_alike(replace(run, alike=None), 0, label).label == label
    alike = np.full(len(wrong), place)
    assert _find_alike(replace(run, alike=alike), 0, label).name == run.bank.names[place]
    other = int((label + 1) % len(run.dataset.tree))
    assert _find_alike(replace(run, alike=alike), 0, other).label == other


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


def test_the_file_is_below_10_mb_with_the_largest_pictures_everywhere(tmp_path: Path) -> None:
    largest = b"\xff\xd8" + bytes(79_998)
    cards = [MistakeCard(f"{k}.jpg", "a", "b", 0.5, largest, largest) for k in range(40)]
    pairs = [ConfusedPair("a", "b", 2, 3, largest, largest)] * 10
    data = replace(_full("apple"), evaluation=_evaluate(3000, 300, 0.5), mistakes=cards, confused=pairs)
    page = _write(tmp_path, data)
    assert page.count("data:image/jpeg;base64,") == 2 * 24 + 2 * 6
    assert len(page.encode()) < 10_000_000


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
    assert names[1] in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


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
