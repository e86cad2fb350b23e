"""One self-contained HTML file that says how good a model is and what to look at next.

In: `ReportData`, everything already measured; thumbnails as JPEG bytes. Out: report.html.
Why: a file that can be mailed, printed and read in ten years asks for nothing from outside: the plots are inline SVG
(crisp, numbers on hover, a few milliseconds), the script sorts one table and nothing depends on it. What a grower wants
to know comes first: three sentences, then pictures, then numbers. Grey is what is right; the one colour marks what is
wrong.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.conformal import NEVER
from pomona.confusion_map import is_chinese, lay_out_map
from pomona.errors import MissingPackageError
from pomona.evaluation import Metric, wilson_interval
from pomona.files import write_atomic
from pomona.findings import CHECKS
from pomona.report_text import Language, Words, write_hundredths
from pomona.trust import Trust
from pomona.trust_plots import draw_data_curve, draw_reliability, draw_trades

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2 import Template

    from pomona.clock import Stage
    from pomona.data_curve import DataCurve
    from pomona.evaluation import ClassRow, Evaluation
    from pomona.findings import Audit
    from pomona.head import Fit
    from pomona.reliability import Reliability
    from pomona.trust import Baseline, Evidence, Kept, Promise

__all__ = [
    "N_CARDS",
    "N_CONFUSED",
    "ClassCount",
    "ConfusedPair",
    "Language",
    "MistakeCard",
    "ReportData",
    "write_report",
]

N_CARDS = 24
"""Mistakes that are shown with their photos."""

N_CONFUSED = 6
"""Confused pairs of classes that are shown with their photos."""

_N_PAIRS = 10
_N_SKIPPED = 12
_N_ROWS_OPEN = 20
_N_WEAKEST = 12
_N_CANDIDATES = 3
_N_LIMITS = 3
_FEW_PHOTOS = 100
_WIDE = 0.2  # points of an interval from which on a share is a hint
_LEAKING = 0.02  # share of the measured photos
_WORTH_IT = 0.01
_WEAK = 0.7
_FILLED = 20  # photos from which on a share of them is said
_LARGEST_THUMBNAIL = 80_000


@dataclass(frozen=True)
class ClassCount:
    """How many photos one class has.

    Parameters
    ----------
    name : str
        Name of the class.
    n_train, n_val : int
        Photos to learn from, photos held back.
    """

    name: str
    n_train: int
    n_val: int


@dataclass(frozen=True)
class MistakeCard:
    """One wrong answer with its photo.

    Parameters
    ----------
    name : str
        Name of the photo.
    said, was : str
        The answer and the label.
    score : float
        Probability of the wrong answer, 0-1.
    thumbnail_jpeg : bytes or None
        A small JPEG; one of more than 80 kB is left out, so that the report stays under 10 MB.
    heat_jpeg : bytes or None
        The same photo with what the answer was drawn from, likewise.
    """

    name: str
    said: str
    was: str
    score: float
    thumbnail_jpeg: bytes | None = None
    heat_jpeg: bytes | None = None


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes of which one is taken for the other, with a photo of each.

    Parameters
    ----------
    was, said : str
        What the photos show, and what was answered.
    n_photos, n_shown : int
        Photos of the class that got this answer, and all of the class.
    photo_jpeg : bytes or None
        One that was taken wrongly, small as for `MistakeCard`.
    like_jpeg : bytes or None
        A photo learnt from, of the class that it was taken for.
    """

    was: str
    said: str
    n_photos: int
    n_shown: int
    photo_jpeg: bytes | None = None
    like_jpeg: bytes | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Parameters
    ----------
    title : str
        Heading and title of the page.
    evaluation : Evaluation or None
        None where nothing could be measured; `verdict_note` then says why.
    evaluated_on : str
        What was scored, as the end of "Right 71 of 100 times on 296 ...".
    verdict_note : str
        One or two sentences under the verdict.
    class_counts : sequence of ClassCount
        In any order; joined to the classes by name.
    mistakes : sequence of MistakeCard
        The surest first; 24 are shown, and how many more there are.
    skipped : sequence of (name, fault, detail)
        Photos that were left out; 12 are shown.
    notes : sequence of str
        What to know before trusting the numbers: leaks, conflicting labels, classes without photos, few photos.
    audit : Audit, optional
        What is wrong with the photos.
    stages : sequence of Stage
        In the order they ran.
    settings : mapping of str to object
        Resolved options.
    provenance : mapping of str to str
        Version, backbone, weights, dataset fingerprint, machine.
    fits : sequence of Fit
        Strengths that were tried.
    chosen_l2 : float or None
        The one that was chosen.
    curves : sequence of (title, text, svg)
        Pictures of the training, drawn by `pomona.curves`.
    language : {"en", "zh"}
        Of the page.
    display_names : mapping of str to str
        What classes are called on it, where that is not their name.
    confused : sequence of ConfusedPair
        Most often first; 6 are shown with photos.
    trust : Trust
        What the recogniser promises.
    evidence : Evidence, optional
        What that rests on.
    kept : Kept, optional
        How the promises fared on the photos that were measured on.
    baselines : sequence of Baseline
        What simple ways have right on them.
    features, licence : str
        Name and licence of the features, for the model card; no card where there is no name.
    """

    title: str
    evaluation: Evaluation | None = None
    evaluated_on: str = "photos it had not seen"
    verdict_note: str = ""
    class_counts: Sequence[ClassCount] = ()
    mistakes: Sequence[MistakeCard] = ()
    skipped: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    audit: Audit | None = None
    stages: Sequence[Stage] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    fits: Sequence[Fit] = ()
    chosen_l2: float | None = None
    curves: Sequence[tuple[str, str, str]] = ()
    language: Language = "en"
    display_names: Mapping[str, str] = field(default_factory=dict)
    confused: Sequence[ConfusedPair] = ()
    trust: Trust = field(default_factory=Trust)
    evidence: Evidence | None = None
    kept: Kept | None = None
    baselines: Sequence[Baseline] = ()
    features: str = ""
    licence: str = ""


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one HTML file that needs nothing from outside.

    Parameters
    ----------
    path : Path
        Where the file goes; its folder exists.
    data : ReportData
        What it shows. Every text is escaped.

    Raises
    ------
    MissingPackageError
        If jinja2 is not installed.
    StorageError
        If the file cannot be written.
    """
    words = Words(data.language, data.display_names)
    page = _load_template(words).render(_arrange(data, words))
    # A file name that is no valid text on its machine holds lone surrogates, which UTF-8 cannot write.
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class _Pair:
    was: str
    said: str
    n_photos: int
    n_shown: int


@dataclass(frozen=True)
class _ClassView:
    name: str
    score: ClassRow | None
    n_train: int | None
    n_val: int | None


def _load_template(words: Words) -> Template:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("jinja2", "train", "to write a report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(percent=_write_percent, interval=_write_interval)
    environment.filters["tight"] = lambda text: text.replace("–", "–\u2060")  # no line ends inside an interval
    environment.filters["seconds"] = lambda seconds: _write_seconds(seconds, words)
    environment.filters["plain"] = lambda value: _write_plain(value, words)
    environment.globals.update(t=words.say, name=words.name, translate=words.translate)
    environment.tests["chinese"] = is_chinese
    return environment.from_string(_read_web("report.html.j2"))


def _read_web(name: str) -> str:
    return (resources.files("pomona") / "web" / name).read_text(encoding="utf-8")


def _arrange(data: ReportData, words: Words) -> dict[str, Any]:
    script = _read_web("report.js")
    digest = hashlib.sha256(script.encode()).digest()
    cards = data.mistakes[:N_CARDS]
    pairs = _list_pairs(data.evaluation) if data.evaluation else []
    repeated = [pair for pair in pairs if pair.n_photos > 1]
    weakest = _list_weakest(data.evaluation) if data.evaluation else []
    with_photos = {(pair.was, pair.said) for pair in data.confused[:N_CONFUSED]}
    listed = [pair for pair in (repeated or pairs)[:_N_PAIRS] if (pair.was, pair.said) not in with_photos]
    return {
        "data": data,
        "evaluation": data.evaluation,
        "verdict": _state_verdict(data, words),
        "compared": _compare(data, words),
        "script": script,
        "script_hash": base64.b64encode(digest).decode(),
        "confused": [_arrange_pair(pair) for pair in data.confused[:N_CONFUSED]],
        "pairs": listed,
        "n_more_pairs": len(pairs) - len(listed) - len(with_photos),
        "cards": [_arrange_card(card) for card in cards],
        "n_more_cards": max(len(data.mistakes), _count_wrong(data.evaluation)) - len(cards),
        "metric_groups": _group_metrics(data.evaluation, words) if data.evaluation else [],
        "matrix": lay_out_map(data.evaluation, words) if data.evaluation else None,
        "weakest": weakest,
        "class_rows": _join_classes(data),
        "has_counts": bool(data.class_counts),
        "n_rows_open": 0 if weakest else _N_ROWS_OPEN,
        "reliability": _arrange_reliability(data, words),
        "exact": _arrange_promises(data, words),
        "unknown": _arrange_unknown(data, words),
        "curve": _arrange_curve(data.evidence.curve, words) if data.evidence and data.evidence.curve else None,
        "card": _write_card(data, words),
        "skipped": _summarise_skipped(data.skipped, words),
        "checks": _list_checks(data.audit, words),
        "stages": _scale_stages(data.stages, words),
        "total_s": sum(stage.seconds for stage in data.stages),
    }


# --- the verdict ------------------------------------------------------------------------------------------------------


def _state_verdict(data: ReportData, words: Words) -> dict[str, str]:
    found = data.evaluation
    if found is None:
        return {"answer": words.say("verdict_unmeasured"), "doubt": "", "pair": "", "todo": "", "wide": ""}
    accuracy = found.accuracy
    ends = {"low": write_hundredths(accuracy.low), "high": write_hundredths(accuracy.high)}
    if found.n < _FEW_PHOTOS:
        n_right = int(np.trace(found.confusion))
        answer, doubt = words.say("verdict_few", n=found.n, n_right=n_right), words.say("verdict_few_doubt", **ends)
    else:
        answer = words.say("verdict_right", value=write_hundredths(accuracy.value))
        doubt = words.say("verdict_doubt", **ends)
    is_wide = accuracy.high - accuracy.low > _WIDE
    return {
        "answer": answer,
        "doubt": doubt,
        "pair": _state_pair(found, words),
        "todo": _state_todo(data, found, words),
        "wide": words.say("wide", photos=words.say("photos", n=found.n)) if is_wide else "",
    }


def _state_pair(evaluation: Evaluation, words: Words) -> str:
    """The two classes that are taken for each other most, whichever way round."""
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    both = np.triu(wrong + wrong.T)
    if not both.any():
        return words.say("verdict_faultless")
    if both.max() < 2:
        return words.say("verdict_scattered")
    first, second = (words.name(evaluation.classes[at]) for at in np.unravel_index(both.argmax(), both.shape))
    return words.say("verdict_pair", first=first, second=second)


def _state_todo(data: ReportData, evaluation: Evaluation, words: Words) -> str:
    """What would help most: what makes the numbers wrong before what would make them better."""
    counts = data.audit.count() if data.audit else {}
    if counts.get("leak", 0) > _LEAKING * evaluation.n:
        return words.say("todo_leak", n=counts["leak"])
    if n_doubtful := counts.get("wrong_label", 0) + counts.get("conflicting_label", 0):
        return words.say("todo_labels", n=n_doubtful)
    if evaluation.n < _FEW_PHOTOS and evaluation.accuracy.high - evaluation.accuracy.low > _WIDE:
        return words.say("todo_few")
    curve = data.evidence.curve if data.evidence else None
    if curve and curve.twice and curve.twice.accuracy - curve.points[-1].accuracy >= _WORTH_IT:
        return words.say("todo_twice", value=write_hundredths(curve.twice.accuracy))
    return ""


def _compare(data: ReportData, words: Words) -> dict[str, Any]:
    """What simple ways have right, what was foretold, and what was measured."""
    found, evidence = data.evaluation, data.evidence
    if found is None:
        return {"rows": [], "held": ""}
    keys = {"most frequent": "compare_frequent", "nearest": "compare_nearest"}
    rows = [(words.say(keys[one.name]), words.say(f"{keys[one.name]}_hint"), one.accuracy) for one in data.baselines]
    held = ""
    if evidence and evidence.is_folds:
        foretold = evidence.held_out.accuracy
        hint = words.say("compare_folds_hint", photos=words.say("photos", n=foretold.n))
        rows.append((words.say("compare_folds"), hint, foretold))
        if found.accuracy.high - found.accuracy.low <= _WIDE:
            held = words.say(_judge_forecast(foretold, found.accuracy))
    what = words.translate(data.evaluated_on)
    hint = (
        words.say("compare_measured_groups", n=found.n, what=what, groups=data.kept.n_groups)
        if data.kept
        else words.say("compare_measured_hint", n=found.n, what=what)
    )
    return {"rows": [*rows, (words.say("compare_measured"), hint, found.accuracy)], "held": held}


def _judge_forecast(foretold: Metric, measured: Metric) -> str:
    if foretold.low > measured.high:
        return "foretold_high"
    return "foretold_low" if foretold.high < measured.low else "foretold_held"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _count_wrong(evaluation: Evaluation | None) -> int:
    return int(evaluation.confusion.sum() - evaluation.confusion.trace()) if evaluation else 0


def _list_pairs(evaluation: Evaluation) -> list[_Pair]:
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    shown = evaluation.confusion.sum(axis=1)
    places = sorted(np.argwhere(wrong).tolist(), key=lambda at: (-wrong[at[0], at[1]], shown[at[0]], at))
    names = evaluation.classes
    return [_Pair(names[row], names[said], int(wrong[row, said]), int(shown[row])) for row, said in places]


def _arrange_pair(pair: ConfusedPair) -> dict[str, Any]:
    return {**vars(pair), "photo": _embed_jpeg(pair.photo_jpeg), "like": _embed_jpeg(pair.like_jpeg)}


def _arrange_card(card: MistakeCard) -> dict[str, Any]:
    file = card.name.replace("\\", "/").rsplit("/", 1)[-1]
    pictures = {"picture": _embed_jpeg(card.thumbnail_jpeg), "heat": _embed_jpeg(card.heat_jpeg)}
    return {**vars(card), "file": file, **pictures}


def _embed_jpeg(thumbnail: bytes | None) -> str | None:
    if thumbnail is None or len(thumbnail) > _LARGEST_THUMBNAIL or not thumbnail.startswith(b"\xff\xd8"):
        return None
    return base64.b64encode(thumbnail).decode()


# --- numbers ----------------------------------------------------------------------------------------------------------


def _group_metrics(evaluation: Evaluation, words: Words) -> list[dict[str, Any]]:
    """Rows of the table of metrics: the classes first, then the levels above them, coarsest first."""
    leaf = [("accuracy", evaluation.accuracy)]
    if len(evaluation.classes) > 5:
        leaf.append(("top5", evaluation.top5))
    leaf.append(("balanced", evaluation.balanced_accuracy))
    leaf.append(("macro", evaluation.macro_f1))
    leaf.append(("weighted", evaluation.weighted_f1))
    rows = [(words.say(f"metric_{key}"), words.say(f"metric_{key}_hint"), metric) for key, metric in leaf]
    groups = [{"title": words.say("classes", n=len(evaluation.classes)), "rows": rows}]
    for level in evaluation.levels[:-1]:
        upper = (("accuracy", level.accuracy), ("balanced", level.balanced_accuracy), ("macro", level.macro_f1))
        rows = [(words.say(f"metric_{key}"), "", metric) for key, metric in upper]
        kinds = words.say("kinds", n=level.n_classes)
        groups.append({"title": words.say("level_group", level=words.translate(level.name), kinds=kinds), "rows": rows})
    return groups


def _list_weakest(evaluation: Evaluation) -> list[tuple[str, Metric]]:
    """Recall of the classes of which a photo was missed, the weakest first; of equals the surest to be weak."""
    rows = [
        (row.name, Metric(row.recall, *wilson_interval(row.recall, row.support), row.support))
        for row in evaluation.per_class
        if row.support and row.recall < 1
    ]
    return sorted(rows, key=lambda row: (row[1].value, row[1].high))[:_N_WEAKEST]


def _join_classes(data: ReportData) -> list[_ClassView]:
    counts = {count.name: count for count in data.class_counts}
    scores = {row.name: row for row in data.evaluation.per_class} if data.evaluation else {}
    views = []
    for name in dict.fromkeys(itertools.chain(scores, counts)):
        count = counts.get(name)
        n_train, n_val = (count.n_train, count.n_val) if count else (None, None)
        views.append(_ClassView(name, scores.get(name), n_train, n_val))
    if data.evaluation is None:
        return views
    return sorted(views, key=lambda view: view.score.f1 if view.score and view.score.support else 2.0)


# --- trust ------------------------------------------------------------------------------------------------------------


def _arrange_reliability(data: ReportData, words: Words) -> dict[str, Any] | None:
    shown = data.kept or (data.evidence.held_out if data.evidence else None)
    if shown is None:
        return None
    found = shown.after
    texts = [
        words.say("reliability_says", said=write_hundredths(said), right=write_hundredths(right))
        for said, right in _pick_bins(found)
    ]
    told = {"chance": f"{100 * found.by_chance:.1f}", "photos": words.say("photos", n=found.n), **_write_points(found)}
    if shown.before is None:
        texts.append(words.say("reliability_gap", **told))
    else:
        texts.append(words.say("reliability_gap_before", before=f"{100 * shown.before.ece:.1f}", **told))
    texts.append(words.say(_judge_sureness(found)))
    if data.kept and data.evidence and data.evidence.is_folds:
        texts.append(words.say("reliability_foretold", **_write_points(data.evidence.held_out.after)))
    return {"texts": texts, "svg": draw_reliability(found, words)}


def _write_points(found: Reliability) -> dict[str, str]:
    return {name: f"{100 * getattr(found, name):.1f}" for name in ("ece", "low", "high")}


def _pick_bins(found: Reliability) -> list[tuple[float, float]]:
    """How sure and how often right in the fullest bin, and in the fullest of those that are less sure."""
    bins = sorted(zip(found.share, found.sureness, found.right, strict=True), reverse=True)
    bins = [one for one in bins if one[0] * found.n >= _FILLED]
    if not bins:
        return []
    fullest = bins[0]
    second = next((one for one in bins if one[1] < min(fullest[1], 0.9)), None)
    return [(said, right) for _, said, right in ([fullest, second] if second else [fullest])]


def _judge_sureness(found: Reliability) -> str:
    if found.low <= found.by_chance:
        return "reliability_chance"
    rows = zip(found.share, found.sureness, found.right, strict=True)
    return (
        "reliability_sure" if sum(share * (said - right) for share, said, right in rows) > 0 else "reliability_careful"
    )


def _arrange_promises(data: ReportData, words: Words) -> dict[str, Any] | None:
    promise, evidence = data.trust.promise, data.evidence
    if promise is None or evidence is None:
        return None
    sides = [evidence.held_out] if data.kept is None else [data.kept, evidence.held_out]
    if evidence.is_reported:
        sides = sides[:1]
    is_flat = not any(trade.share_coarse > 0 for trade in evidence.trades)
    rows = [_row("exact_own", sides, "share_exact", words)]
    if not is_flat:
        rows.append(_row("exact_coarse", sides, "share_coarse", words, hint=words.say("exact_coarse_hint")))
    rows.append(_row("exact_open", sides, "share_open", words, hint=words.say("exact_open_hint")))
    at_least = words.say("at_least", value=f"{100 * promise.share:g}")
    at_most = words.say("at_most", value=f"{100 * promise.turned_away:g}")
    size = words.say("exact_shortlist_hint", size=f"{sides[0].shortlist_size:.1f}")
    rows.append(_row("exact_right", sides, "sure_right", words, promised=at_least))
    rows.append(_row("exact_shortlist", sides, "covered", words, hint=size, promised=at_least))
    rows.append(_row("exact_away", sides, "turned_away", words, promised=at_most))
    texts = [words.say("exact_never")] if promise.least_answer >= NEVER else []
    if data.kept:
        texts.append(words.say("exact_kept" if _is_kept(data.kept, promise) else "exact_broken"))
    photos, groups = words.say("photos", n=promise.n), words.say("groups", n=promise.n_groups)
    texts.append(words.say("exact_more", photos=photos, groups=groups))
    is_drawn = any(trade.share_open < 1 for trade in evidence.trades)
    return {
        "intro": words.say("exact_text_flat" if is_flat else "exact_text"),
        "rows": rows,
        "heads": ["measured", "foretold"][: len(sides)] if data.kept else ["foretold"],
        "texts": texts,
        "svg": draw_trades(evidence.trades, promise.least_answer, words) if is_drawn else "",
    }


def _row(
    key: str, sides: Sequence[Kept], name: str, words: Words, *, hint: str = "", promised: str = ""
) -> dict[str, Any]:
    values = [getattr(side, name) for side in sides]
    return {"name": words.say(key), "hint": hint, "values": values, "promised": promised}


def _is_kept(kept: Kept, promise: Promise) -> bool:
    """Whether no interval lies on the wrong side of what was promised."""
    shares = [one.high >= promise.share for one in (kept.sure_right, kept.covered) if one]
    return all(shares) and (kept.turned_away is None or kept.turned_away.low <= promise.turned_away)


def _arrange_unknown(data: ReportData, words: Words) -> dict[str, Any] | None:
    detector, evidence = data.trust.detector, data.evidence
    if detector is None or evidence is None:
        return None
    scores = dict(evidence.candidates)
    best = sorted(scores, key=lambda kind: -scores[kind])[:_N_CANDIDATES]
    texts = [
        words.say("unknown_auroc", value=write_hundredths(scores[detector.kind]))
        if detector.kind in scores
        else words.say("unknown_untried" if evidence.is_folds else "unknown_trained")
    ]
    away = data.kept.turned_away if data.kept and data.kept.turned_away else evidence.held_out.turned_away
    if away and data.trust.promise:
        numbers = {name: f"{100 * getattr(away, name):.1f}" for name in ("value", "low", "high")}
        texts.append(words.say("unknown_away", **numbers, allowed=f"{100 * data.trust.promise.turned_away:g}"))
    rows = [{"name": _name_kind(kind, words), "score": scores[kind], "chosen": kind == detector.kind} for kind in best]
    return {"texts": texts, "rows": rows}


def _name_kind(kind: Sequence[str], words: Words) -> str:
    first, *rest = (words.say(f"kind_{one}") for one in kind)
    return words.say("unknown_plus", first=first, second=rest[0]) if rest else first


def _arrange_curve(curve: DataCurve, words: Words) -> dict[str, str]:
    last, twice = curve.points[-1], curve.twice
    values = {"n": f"{last.n_per_class:.0f}", "last": write_hundredths(last.accuracy)}
    if twice is None:
        return {"text": words.say("curve_none", **values), "svg": draw_data_curve(curve, words)}
    ahead = {name: write_hundredths(share) for name, share in vars(twice).items() if name in {"low", "high"}}
    key = "curve_twice" if twice.accuracy - last.accuracy >= _WORTH_IT else "curve_flat"
    text = words.say(key, **values, value=write_hundredths(twice.accuracy), **ahead)
    return {"text": text, "svg": draw_data_curve(curve, words)}


# --- the rest ---------------------------------------------------------------------------------------------------------


def _write_card(data: ReportData, words: Words) -> list[tuple[str, str]]:
    """What whoever gets the recogniser should know, as headings and sentences."""
    found = data.evaluation
    if found is None or not data.features:
        return []
    n_learnt = sum(count.n_train for count in data.class_counts)
    measured = words.say("photos", n=found.n)
    ends = {name: f"{100 * getattr(found.accuracy, name):.1f}" for name in ("value", "low", "high")}
    texts = {
        "for": words.say("card_for_text", classes=words.say("classes", n=len(found.classes))),
        "not": words.say("card_not_text"),
        "data": words.say("card_data_text", learned=words.say("photos", n=n_learnt), measured=measured),
        "features": words.say("card_features_text", features=data.features, licence=data.licence),
        "measured": words.say("card_measured_text", n=found.n, what=words.translate(data.evaluated_on), **ends),
        "limits": _write_limits(data, found, words),
        "promise": _write_promise(data.trust.promise, words),
    }
    return [(words.say(f"card_{key}"), text) for key, text in texts.items()]


def _write_limits(data: ReportData, evaluation: Evaluation, words: Words) -> str:
    weak = [words.name(name) for name, recall in _list_weakest(evaluation) if recall.value < _WEAK][:_N_LIMITS]
    named = words.say("card_limits_few", names=words.say("comma").join(weak)) if weak else words.say("card_limits_none")
    notices = words.say("card_limits_unknown" if data.trust.detector else "card_limits_blind")
    return named + ("" if words.language == "zh" else " ") + notices


def _write_promise(promise: Promise | None, words: Words) -> str:
    if promise is None:
        return words.say("card_promise_none")
    return words.say(
        "card_promise_text" if promise.least_answer < NEVER else "card_promise_never",
        share=f"{100 * promise.share:g}",
        away=f"{100 * promise.turned_away:g}",
        photos=words.say("photos", n=promise.n),
        groups=words.say("groups", n=promise.n_groups),
    )


def _list_checks(audit: Audit | None, words: Words) -> list[dict[str, Any]]:
    """What each check of an audit found, the most pressing first; unusable photos have a table of their own."""
    counts = audit.count() if audit else {}
    return [
        {
            "title": words.translate(check.title),
            "advice": words.translate(check.advice),
            "n_photos": counts[name],
            "is_note": check.family == "note",
        }
        for name, check in CHECKS.items()
        if name in counts and check.family != "unusable"
    ]


def _summarise_skipped(skipped: Sequence[tuple[str, str, str]], words: Words) -> dict[str, Any]:
    counts = Counter(fault for _, fault, _ in skipped)
    called = {fault: words.translate(fault.replace("_", " ")) for fault in counts}
    rows = [
        {"name": name, "fault": called[fault], "detail": words.translate(detail)}
        for name, fault, detail in skipped[:_N_SKIPPED]
    ]
    counted = (words.say("skipped_count", n=n_photos, fault=called[fault]) for fault, n_photos in counts.most_common())
    summary = words.say("sentence", text=words.say("comma").join(counted))
    return {"rows": rows, "summary": summary, "n_more": len(skipped) - len(rows)}


def _scale_stages(stages: Sequence[Stage], words: Words) -> list[dict[str, Any]]:
    longest = max((stage.seconds for stage in stages), default=0.0) or 1.0
    return [
        {
            "name": words.translate(stage.name),
            "seconds": stage.seconds,
            "share": stage.seconds / longest,
            "rate": _write_rate(stage, words),
        }
        for stage in stages
    ]


def _write_percent(share: float, n_decimals: int = 1) -> str:
    return f"{100 * share:.{n_decimals}f}%"


def _write_interval(metric: Metric) -> str:
    return f"{100 * metric.low:.1f}–{100 * metric.high:.1f}"


def _write_seconds(seconds: float, words: Words) -> str:
    if seconds < 9.95:
        return words.say("seconds", value=f"{seconds:.2f}" if seconds < 0.995 else f"{seconds:.1f}")
    if seconds < 99.5:
        return words.say("seconds", value=f"{seconds:.0f}")
    minutes, rest = divmod(round(seconds), 60)
    return words.say("minutes", minutes=minutes, rest=rest)


def _write_rate(stage: Stage, words: Words) -> str:
    if not stage.n_photos or stage.seconds <= 0:
        return ""
    rate = stage.n_photos / stage.seconds
    return words.say("rate", value=f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}")


def _write_plain(value: object, words: Words) -> str:
    if value is None or isinstance(value, bool):
        return words.say({None: "none", True: "yes", False: "no"}[value])
    if isinstance(value, list | tuple | set | frozenset):
        return words.say("comma").join(_write_plain(item, words) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
