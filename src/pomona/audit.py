"""What is wrong with a set of photos: every check, in one order, in one table.

In: features of photos. Out: an `Audit`; nothing is changed, moved or deleted.
Why: public sets of produce are full of turntable frames, bursts and wrong names. Whoever trains first and looks later
has measured them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pomona.clock import Clock
from pomona.dataset import name_some
from pomona.findings import Audit, CheckLevel, Finding, Nearest, Remark, sort_findings
from pomona.grouping import group_photos, list_leaks, measure_gap
from pomona.label_doubts import DOUBT_DIM, SURE_SHARE, find_label_doubts, find_outliers, list_nearest
from pomona.likeness import find_likeness
from pomona.photo_facts import Facts, measure_photos
from pomona.photo_quality import find_poor, list_unusable, note_oddities
from pomona.projection import project_vectors
from pomona.shortcut import measure_shortcuts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.dataset import Dataset
    from pomona.features import Features
    from pomona.likeness import Likeness

_N_SHOWN = 400  # doubts and outliers that are shown beside their nearest
_FEW_PHOTOS, _UNEVEN = 5, 20.0


def audit_photos(
    features: Features,
    level: CheckLevel,
    *,
    seed: int = 0,
    n_workers: int | None = None,
    clock: Clock | None = None,
) -> Audit:
    """Look for what spoils a recogniser.

    Parameters
    ----------
    features : Features
        Of the photos; photos without a label are looked at too.
    level : {"none", "quick", "full"}
        ``none``: what cannot be used alone. ``quick``: also what is poor, the same or on both sides of a split, groups,
        balance, and the price of a random split. ``full``: also wrong labels, outliers and shortcuts.
    seed : int
        Of the folds.
    n_workers : int, optional
        Threads; every core where not given.
    clock : Clock, optional
        Times the steps, and is told of progress.

    Returns
    -------
    Audit
        Its dataset has groups, and lacks photos that could not be read any more.

    Raises
    ------
    MissingPackageError
        If a package of the extra `train`, or for ``full`` of `audit`, is not installed.
    """
    clock = clock or Clock(None)
    if level == "none":
        return settle_audit(Audit(features.dataset), features.dataset)
    with clock.step("look", features.dataset.n_photos):
        facts = measure_photos(features.dataset, n_workers=n_workers, on_photo=clock.count)
    with clock.step("compare"):
        coordinates = project_vectors(features.keep(facts.dataset).vectors, DOUBT_DIM)
        thumbnails = facts.rows["thumbnail"]
        likeness = find_likeness(
            facts.dataset.photos, thumbnails, coordinates, n_workers=n_workers, on_pair=clock.count
        )
        dataset = group_photos(facts.dataset, likeness)
    seen = _Seen(dataset, facts, coordinates, likeness)
    findings = [*list_unusable(dataset), *note_oddities(facts), *find_poor(facts)]
    findings += [*_list_copies(seen), *_list_leaks(seen)]
    remarks = _remark_balance(dataset)
    nearest: dict[str, Nearest] = {}
    with clock.step("split"):
        gap = measure_gap(dataset, coordinates, seed=seed)
    if level == "full":
        with clock.step("labels"):
            doubts, nearest = _list_doubts(seen)
            findings += doubts
        with clock.step("shortcuts"):
            remarks += _remark_shortcuts(seen, gap.grouped.value if gap else 1.0, seed)
    return Audit(dataset, level, sort_findings(findings), tuple(remarks), nearest, gap)


def settle_audit(audit: Audit, dataset: Dataset) -> Audit:
    """The same audit, of the photos as they were used in the end: some may have failed after it.

    Parameters
    ----------
    audit : Audit
        Of the photos before.
    dataset : Dataset
        Of those used; what could not be is among its ``skipped``.
    """
    others = [one for one in audit.findings if one.check != "unusable"]
    return replace(audit, dataset=dataset, findings=sort_findings([*list_unusable(dataset), *others]))


def note_audit(audit: Audit) -> tuple[str, ...]:
    """What a reader of the numbers must know of an audit.

    Parameters
    ----------
    audit : Audit
        Of the photos that were learnt and measured.

    Returns
    -------
    tuple of str
        Sentences.
    """
    notes = []
    for check, what in (
        ("leak", "Photos that are measured on and have a twin in train"),
        ("conflicting_label", "The same photo with different labels"),
    ):
        found = [one for one in audit.findings if one.check == check]
        if found:
            notes.append(f"{what}: {len(found):,}, the first {found[0].name} beside {found[0].other}.")
    if audit.gap and not audit.dataset.declared_splits:
        random, grouped = audit.gap.random.value, audit.gap.grouped.value
        notes.append(
            f"{audit.n_grouped:,} photos belong together, in {audit.n_groups:,} groups, which were not divided. Parted "
            f"at random, a small head would seem right on {random:.0%}; with groups kept whole, on {grouped:.0%}."
        )
    return tuple(notes)


@dataclass(frozen=True)
class _Seen:
    """N photos, and what was measured of them row by row."""

    dataset: Dataset
    facts: Facts
    coordinates: NDArray[np.float32]
    likeness: Likeness

    def name(self, row: int) -> str:
        return self.dataset.photos[row].name

    def names(self, rows: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(self.name(row) for row in rows)

    def label(self, row: int) -> str:
        number = self.dataset.photos[row].label
        return self.dataset.tree.names[number] if number >= 0 else "no label"


# --- copies and leaks -------------------------------------------------------------------------------------------------


def _list_copies(seen: _Seen) -> list[Finding]:
    found = []
    for copy in seen.likeness.copies:
        labels = {seen.dataset.photos[row].label for row in (copy.first, copy.second)}
        check: str = copy.kind
        reason = copy.reason
        if len(labels) > 1 and -1 not in labels:
            check = "conflicting_label"
            reason = f"{copy.reason}; called {seen.label(copy.second)}, the other {seen.label(copy.first)}"
        score = min(1.0, max(0.0, 1 - copy.score))
        found.append(Finding(seen.name(copy.second), check, score, True, reason, seen.name(copy.first)))
    return found


def _list_leaks(seen: _Seen) -> list[Finding]:
    what = {
        "copy": (0.0, "a copy of it is"),
        "group": (0.2, "a photo of its group is"),
        "shot": (0.4, "a shot of the same scene is"),
    }
    found = []
    for leak in list_leaks(seen.facts.dataset, seen.likeness):
        score, said = what[leak.why]
        reason = f"it is in {seen.dataset.photos[leak.row].split}, and {said} in train"
        found.append(Finding(seen.name(leak.row), "leak", score, True, reason, seen.name(leak.other)))
    return found


# --- labels -----------------------------------------------------------------------------------------------------------


def _list_doubts(seen: _Seen) -> tuple[list[Finding], dict[str, Nearest]]:
    """Labels that look wrong, photos unlike their class, and what to show beside them."""
    rows = np.flatnonzero(seen.dataset.labels >= 0)
    labels, coordinates = seen.dataset.labels[rows], seen.coordinates[rows]
    names = seen.dataset.tree.names
    found: list[Finding] = []
    nearest: dict[str, Nearest] = {}
    for doubt in find_label_doubts(coordinates, labels, len(names)):
        row, own, other = int(rows[doubt.row]), names[labels[doubt.row]], names[doubt.suggested]
        reason = f"looks like {other} ({doubt.suggested_share:.0%}), like {own} {doubt.share:.0%}"
        is_sure = doubt.share < SURE_SHARE
        found.append(Finding(seen.name(row), "wrong_label", doubt.score, is_sure, reason, suggested=other))
        if len(nearest) < _N_SHOWN:
            nearest[seen.name(row)] = Nearest(
                *(
                    seen.names(tuple(rows[list(list_nearest(coordinates, labels, doubt.row, label))].tolist()))
                    for label in (int(labels[doubt.row]), doubt.suggested)
                )
            )
    for outlier in find_outliers(coordinates, labels)[:_N_SHOWN]:
        row = int(rows[outlier.row])
        reason = f"distance {outlier.distance:.2f} to the nearest of its class; usual here is {outlier.usual:.2f}"
        found.append(Finding(seen.name(row), "outlier", outlier.score, True, reason))
        own_rows = list_nearest(coordinates, labels, outlier.row, int(labels[outlier.row]))
        nearest.setdefault(seen.name(row), Nearest(seen.names(tuple(rows[list(own_rows)].tolist()))))
    return found, nearest


# --- the whole set ----------------------------------------------------------------------------------------------------


def _remark_balance(dataset: Dataset) -> list[Remark]:
    names, counts = dataset.tree.names, dataset.counts()
    if len(names) < 2:
        return []
    least, most = int(counts.argmin()), int(counts.argmax())
    uneven = counts[most] > _UNEVEN * max(1, counts[least]) or counts[least] < _FEW_PHOTOS
    text = (
        f"{counts[least]:,} to {counts[most]:,} photos a class, {np.median(counts):,.0f} in the middle one; "
        f"fewest of {', '.join(names[c] for c in np.argsort(counts, kind='stable')[:3])}."
    )
    remarks = [Remark("balance", text, bool(uneven))]
    groups: dict[int, set[str]] = {}
    for photo in dataset.photos:
        groups.setdefault(photo.label, set()).add(photo.group)
    single = [names[c] for c in range(len(names)) if counts[c] > 1 and len(groups.get(c, ())) == 1]
    if single:
        text = f"Photos of one scene alone: {name_some(single)}. How they are recognised elsewhere cannot be measured."
        remarks.append(Remark("balance", text, True))
    for split in sorted(dataset.declared_splits - {"train"}):
        lacking = [names[c] for c in range(len(names)) if not (dataset.part(split).labels == c).any()]
        if lacking:
            n_classes = "1 class has" if len(lacking) == 1 else f"{len(lacking)} classes have"
            remarks.append(Remark("balance", f"{n_classes} no photo in {split}: {name_some(lacking)}.", True))
    return remarks


def _remark_shortcuts(seen: _Seen, known: float, seed: int) -> list[Remark]:
    rows = np.flatnonzero(seen.dataset.labels >= 0)
    found = measure_shortcuts(seen.facts.rows[rows], seen.dataset.labels[rows], seen.dataset.groups[rows], seed=seed)
    remarks: list[Remark] = []
    for one in found:  # the best first: of those that are no shortcut, one is enough to see how far they are from it
        is_likely = one.is_likely(known)
        if remarks and not is_likely:
            continue
        text = (
            f"By {one.cue} alone, {one.accuracy.value:.0%} of the photos would be named right "
            f"({one.chance:.0%} by always saying the largest class, {known:.0%} by the features)."
            + (" It may learn that instead of the fruit." if is_likely else "")
        )
        remarks.append(Remark("shortcut", text, is_likely))
    return remarks
