"""One self-contained HTML file on which a person looks at what an audit flagged, and decides.

In: an `Audit`; its photos are read again for their thumbnails. Out: a page that works from a file, offline; decisions
leave it as a CSV that `pomona.decisions` reads.
Why: whether a label is wrong only a look at the photo says, beside those it is said to be like. The page asks for
nothing from outside; the script builds all cards from data with text nodes, so that no name can become markup, and each
photo is embedded once however many cards show it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
from collections import Counter, defaultdict
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from pomona.dataset import name_some
from pomona.engine import count_cpus, stream_ordered
from pomona.errors import MissingPackageError, PhotoError
from pomona.files import check_page_place, write_atomic
from pomona.findings import CHECKS
from pomona.photo import decode_photo, read_unchanged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pomona.dataset import Photo
    from pomona.evaluation import Metric
    from pomona.findings import Audit, Finding, SplitGap

PAGE_MARK = b'<meta name="generator" content="Pomona audit">'
"""What tells a page of ours: only such a file is replaced."""

N_SHOWN = 300
"""Flagged photos of one check that get a card."""

_THUMBNAIL_PX = 160
_JPEG_QUALITY = 75
_PICTURE_BYTES = 16 * 2**20
"""Of all thumbnails as base64 text; with the rest the page stays below 20 MB."""

_N_GROUPS = 12
_N_IN_GROUP = 6
_N_NEAREST = 3
_N_NAMED = 8
_N_UNUSABLE = 200
_VERDICTS = {
    "none": "Only files that cannot be used were looked for.",
    "quick": "A quick check: whether labels are right was not looked at.",
    "full": "",
}


def write_audit_page(path: Path, audit: Audit, *, title: str = "") -> None:
    """Write the review page.

    Parameters
    ----------
    path : Path
        Where the page goes; its folder exists. An earlier page is replaced, any other file is not.
    audit : Audit
        What it shows. A photo that cannot be read any more has a card without a picture.
    title : str
        What the data is called; as messages call it where not given.

    Raises
    ------
    MissingPackageError
        If jinja2 is not installed.
    StorageError
        If something else stands there, or the file cannot be written.
    """
    check_page_place(path, mark=PAGE_MARK)
    audit = replace(audit, findings=tuple(_mirror_conflicts(audit.findings)))
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("jinja2", "train", "to write a review page") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["plural"] = _write_count
    script = _read_web("audit.js")
    page = environment.from_string(_read_web("audit.html.j2")).render(
        title=title or audit.dataset.shown,
        mark=PAGE_MARK.decode(),
        verdict=_state_verdict(audit),
        remarks=sorted(audit.remarks, key=lambda one: not one.flagged),
        checks=CHECKS,
        gap=_compare_splits(audit.gap) if audit.gap else None,
        unusable=_list_unusable(audit),
        notes=_list_notes(audit),
        counts=_count_flagged(audit),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_to_script_json(_gather_data(audit)),
    )
    # A title that is no valid text on its machine holds lone surrogates, which UTF-8 cannot write.
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


def _read_web(name: str) -> str:
    return (resources.files("pomona") / "web" / name).read_text(encoding="utf-8")


def _to_script_json(content: object) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there; plain ASCII."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --- what is said in words ------------------------------------------------------------------------------------------


def _state_verdict(audit: Audit) -> dict[str, str]:
    dataset = audit.dataset
    n_all = len(dataset.photos) + len(dataset.skipped)
    usable = {photo.name for photo in dataset.photos}
    n_flagged = len({one.name for one in audit.findings if one.flagged} & usable)
    n_usable = "all usable" if not dataset.skipped else f"{len(dataset.photos):,} of them usable"
    found = f"{_write_count(n_all, 'photo')}, {n_usable}."
    answer = (
        f"{_write_count(n_flagged, 'photo deserves', 'photos deserve')} a look." if n_flagged else "Nothing to decide."
    )
    order = [f"{CHECKS[check].title.lower()} ({n:,})" for check, n in _count_flagged(audit).items()]
    lede = f"What matters most first: {name_some(order, 4)}. " if order else ""
    return {"found": found, "answer": answer, "lede": (lede + _VERDICTS[audit.level]).strip()}


def _count_flagged(audit: Audit) -> dict[str, int]:
    return {check: n for check, n in audit.count().items() if CHECKS[check].family != "note"}


def _compare_splits(gap: SplitGap) -> dict[str, Any]:
    n_points = round(100 * (gap.random.value - gap.grouped.value))
    what = f"{_write_count(n_points, 'point')} {'is' if n_points == 1 else 'are'} the split"
    text = (
        f"A random split would say {gap.random.value:.2f}; on photos of other groups it is right "
        f"{gap.grouped.value:.2f}: {what if n_points > 0 else 'it promises no more than holds'}."
    )
    rows = [("Random split", gap.random), ("Groups kept together", gap.grouped)]
    return {"text": text, "rows": [_place_metric(name, metric) for name, metric in rows]}


def _place_metric(name: str, metric: Metric) -> dict[str, str]:
    shares = {key: f"{getattr(metric, key):.4f}" for key in ("value", "low", "high")}
    interval = f"{100 * metric.low:.1f}–{100 * metric.high:.1f}"
    return {"name": name, "text": f"{100 * metric.value:.1f}%", "interval": interval, **shares}


def _list_unusable(audit: Audit) -> dict[str, Any]:
    known = {photo.name for photo in audit.dataset.photos}
    rows = [(one.name, one.reason) for one in audit.findings if one.flagged and one.name not in known]
    rows = rows or [(one.name, one.detail) for one in audit.dataset.skipped]
    return {"rows": rows[:_N_UNUSABLE], "n": len(rows), "n_more": max(0, len(rows) - _N_UNUSABLE)}


def _list_notes(audit: Audit) -> list[dict[str, Any]]:
    names: dict[str, list[str]] = defaultdict(list)
    for one in audit.findings:
        if CHECKS[one.check].family == "note":
            names[one.check].append(one.name)
    return [
        {"check": CHECKS[check], "n": len(found), "names": name_some(found, _N_NAMED)} for check, found in names.items()
    ]


def _write_count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


# --- what the script shows ------------------------------------------------------------------------------------------


class _Photos:
    """Photos that the page shows, numbered as they are first asked for."""

    def __init__(self, audit: Audit) -> None:
        self._by_name = {photo.name: photo for photo in audit.dataset.photos}
        self._numbers: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def number(self, name: str) -> int:
        """Number of a photo; -1 where the data has none of that name."""
        return self._numbers.setdefault(name, len(self._numbers)) if name in self else -1

    def numbers(self, names: Iterable[str]) -> list[int]:
        return [self.number(name) for name in names if name in self]

    def __iter__(self) -> Iterator[Photo]:
        return (self._by_name[name] for name in self._numbers)


def _gather_data(audit: Audit) -> dict[str, Any]:
    photos = _Photos(audit)
    groups = _gather_groups(audit, photos)
    cards = _gather_cards(audit, photos)
    shown = list(photos)
    pictures = _make_pictures(shown, _order_pictures(groups, cards))
    return {
        "fingerprint": audit.dataset.fingerprint,
        "classes": ["/".join(path) for path in audit.dataset.tree.paths],
        "names": audit.dataset.tree.names,
        "checks": {name: [check.title, check.advice] for name, check in CHECKS.items()},
        "counts": _count_flagged(audit),
        "photos": [
            [photo.name, photo.sha256, photo.label, photo.split or "", picture]
            for photo, picture in zip(shown, pictures, strict=True)
        ],
        "cards": [{key: card[key] for key in ("photo", "found", "own", "suggested")} for card in cards],
        "groups": groups,
    }


def _gather_cards(audit: Audit, photos: _Photos) -> list[dict[str, Any]]:
    """A card a photo, with all that was found about it."""
    findings = [one for one in audit.findings if one.flagged]
    ranks = _rank_photos(one for one in findings if one.name in photos)
    classes = {name: index for index, name in enumerate(audit.dataset.tree.names)}
    cards: dict[str, dict[str, Any]] = {}
    for place, one in enumerate(findings):
        if one.name not in ranks:
            continue
        if one.name not in cards:
            near = audit.nearest.get(one.name)
            cards[one.name] = {
                "photo": photos.number(one.name),
                "rank": ranks[one.name],
                "found": [],
                "own": photos.numbers(near.own[:_N_NEAREST] if near else ()),
                "suggested": photos.numbers(near.suggested[:_N_NEAREST] if near else ()),
            }
        suggested = classes.get(one.suggested, -1)
        cards[one.name]["found"].append((one.check, one.reason, photos.number(one.other), suggested, place))
    return list(cards.values())


def _mirror_conflicts(findings: Sequence[Finding]) -> Iterator[Finding]:
    """All findings, and of each pair with different labels one about the other photo: it may be the wrong one."""
    told = {one.name for one in findings if one.check == "conflicting_label"}
    for one in findings:
        yield one
        if one.check == "conflicting_label" and one.other and one.other not in told:
            told.add(one.other)
            yield replace(one, name=one.other, other=one.name)


def _rank_photos(findings: Iterable[Finding]) -> dict[str, int]:
    """Place of each photo that gets a card, 0 the worst of its check."""
    n_of_check: Counter[str] = Counter()
    ranks: dict[str, int] = {}
    for one in findings:
        rank = n_of_check[one.check]
        if rank < N_SHOWN:
            ranks[one.name] = min(ranks.get(one.name, rank), rank)
        n_of_check[one.check] += 1
    return ranks


def _gather_groups(audit: Audit, photos: _Photos) -> list[dict[str, Any]]:
    """The largest groups of more than one photo, with the first few of each."""
    members: dict[str, list[str]] = defaultdict(list)
    for photo in audit.dataset.photos:
        members[photo.group].append(photo.name)
    largest = sorted((names for names in members.values() if len(names) > 1), key=len, reverse=True)[:_N_GROUPS]
    return [{"n": len(names), "photos": photos.numbers(names[:_N_IN_GROUP])} for names in largest]


# --- pictures -------------------------------------------------------------------------------------------------------


def _order_pictures(groups: Sequence[Mapping[str, Any]], cards: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of photos, the worst of every check first, each with what it is shown beside."""
    order = [number for group in groups for number in group["photos"]]
    for card in sorted(cards, key=lambda card: card["rank"]):
        others = [found[2] for found in card["found"] if found[2] >= 0]
        order += [card["photo"], *others, *card["own"], *card["suggested"]]
    return list(dict.fromkeys(order))


def _make_pictures(photos: Sequence[Photo], order: Sequence[int]) -> list[str]:
    """Thumbnails as base64, empty for a photo that cannot be read or that the page has no room for."""
    pictures = [""] * len(photos)
    n_bytes = 0
    n_threads = count_cpus()
    thumbnails = stream_ordered(
        lambda i: _make_thumbnail(photos[order[i]]), len(order), n_threads=n_threads, n_ahead=4 * n_threads
    )
    with contextlib.closing(thumbnails):
        for number, picture in zip(order, thumbnails, strict=True):
            n_bytes += len(picture)
            if n_bytes > _PICTURE_BYTES:
                break
            pictures[number] = picture
    return pictures


def _make_thumbnail(photo: Photo) -> str:
    from PIL import Image

    try:
        pixels = decode_photo(read_unchanged(photo.path, photo.sha256), at_least_px=_THUMBNAIL_PX)
    except PhotoError:  # it was there a moment ago: the card stands without its picture
        return ""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return base64.b64encode(content.getvalue()).decode()
