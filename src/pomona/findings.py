"""What an audit found: a row a photo and finding, remarks on the whole set, groups, and the price of a random split.

In: what the checks found. Out: an `Audit`, its table as rows, how often each check struck.
Why: every check speaks in the same columns, so the table, the page, the decisions and the report never know which check
they show.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pomona.dataset import Dataset
    from pomona.evaluation import Metric

Family = Literal["unusable", "same", "leak", "label", "poor", "note", "set"]
"""What a check is about, the most pressing first; `note` says what was done to a photo, and is never flagged."""


@dataclass(frozen=True)
class Check:
    """One thing that is looked for.

    Parameters
    ----------
    name : str
        As it stands in the table.
    family : Family
        What it is about.
    title : str
        For people.
    advice : str
        What it means and what to do, in a sentence.
    """

    name: str
    family: Family
    title: str
    advice: str


CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        Check("unusable", "unusable", "Cannot be used", "Left out of everything; the reason says why."),
        Check(
            "conflicting_label",
            "same",
            "Same photo, different labels",
            "One of the labels is wrong, or both are: relabel one, or drop both.",
        ),
        Check("exact_duplicate", "same", "Same file twice", "One of them is enough."),
        Check("same_pixels", "same", "Same pixels in another file", "One of them is enough."),
        Check(
            "near_duplicate",
            "same",
            "Nearly the same photo",
            "Resized, recompressed, cropped, mirrored or brightened: they stay together in every split.",
        ),
        Check("leak", "leak", "On both sides of the split", "What is measured on these photos is too good."),
        Check("wrong_label", "label", "Label may be wrong", "Looks like another class: keep, relabel or drop."),
        Check("outlier", "label", "Unlike its class", "Far from every photo of its class: see whether it belongs."),
        Check("odd_size", "poor", "Very small or very large", "Of another size than the set; small ones show little."),
        Check("blurry", "poor", "Blurred", "Less sharp than the set, at the size a network sees."),
        Check("dark", "poor", "Too dark", "Hardly anything is bright."),
        Check("light", "poor", "Too bright", "Hardly anything is dark."),
        Check("low_information", "poor", "Shows little", "Nearly one tone: a wall, a lens cap, an empty tray."),
        Check("odd_aspect_ratio", "poor", "Very wide or very tall", "A network sees it squeezed into a square."),
        Check("wrong_extension", "note", "Named as another format", "Told by its content; nothing to do."),
        Check("animated", "note", "Animated", "The first frame is taken."),
        Check("cmyk", "note", "CMYK", "Converted to sRGB."),
        Check("16-bit", "note", "16-bit", "Converted to 8 bits."),
        Check("alpha", "note", "Transparent", "Laid on white."),
        Check("rotated", "note", "Rotated by EXIF", "Turned upright."),
        Check("gps", "note", "Holds a place", "Says where it was taken: think of it before you pass the photos on."),
        Check("shortcut", "set", "A shortcut", "The recogniser may learn the tray, not the fruit."),
        Check("balance", "set", "Balance", "More different photos of these classes would help most."),
    )
}
"""All checks, the most pressing first."""

CheckLevel = Literal["none", "quick", "full"]
"""How much is looked for: nothing beyond what cannot be used; without a model; all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one photo.

    Parameters
    ----------
    name : str
        Of the photo, as in `pomona.dataset.Photo.name`.
    check : str
        One of `CHECKS`.
    score : float
        0-1, 0 the worst; comparable within a check alone.
    flagged : bool
        Whether somebody should look at it.
    reason : str
        What was found, with the numbers it rests on.
    other : str
        The other photo of a pair; empty where there is none.
    suggested : str
        Class that it looks like, as in `ClassTree.names`; empty where there is none.
    """

    name: str
    check: str
    score: float
    flagged: bool
    reason: str
    other: str = ""
    suggested: str = ""

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"check: wanted one of {', '.join(CHECKS)}, got {self.check!r}")
        if not 0 <= self.score <= 1:
            raise ValueError(f"score: wanted a number from 0 to 1, got {self.score}")


@dataclass(frozen=True)
class Remark:
    """One thing about the whole set.

    Parameters
    ----------
    check : str
        One of `CHECKS`.
    text : str
        A sentence or two.
    flagged : bool
        Whether it is a warning.
    """

    check: str
    text: str
    flagged: bool


@dataclass(frozen=True)
class Nearest:
    """What a photo is shown beside: names of photos, the nearest first.

    Parameters
    ----------
    own : tuple of str
        Of its own class.
    suggested : tuple of str
        Of the class that is suggested.
    """

    own: tuple[str, ...] = ()
    suggested: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitGap:
    """What a random split would have promised, and what holds for photos unlike those learnt from.

    Both are measured with the same small head by cross-validation, so that the difference is that of the split alone.

    Parameters
    ----------
    random, grouped : Metric
        Accuracy where photos are parted at random, and where groups stay whole.
    """

    random: Metric
    grouped: Metric


@dataclass(frozen=True)
class Audit:
    """What is known of a set of photos.

    Parameters
    ----------
    dataset : Dataset
        Usable photos, those that belong together in one group.
    level : {"none", "quick", "full"}
        What was looked for.
    findings : tuple of Finding
        By check, as in `CHECKS`, and the worst first within each.
    remarks : tuple of Remark
        On the whole set.
    nearest : mapping of str to Nearest
        By photo name, for the findings that are about labels.
    gap : SplitGap, optional
        Where there are groups of more than one photo, and enough of them.
    """

    dataset: Dataset
    level: CheckLevel = "none"
    findings: tuple[Finding, ...] = ()
    remarks: tuple[Remark, ...] = ()
    nearest: Mapping[str, Nearest] = field(default_factory=dict)
    gap: SplitGap | None = None

    def count(self) -> dict[str, int]:
        """Photos that each check flagged, or noted, in the order of `CHECKS`; without those that found nothing."""
        names: dict[str, set[str]] = {}
        for one in self.findings:
            if one.flagged or CHECKS[one.check].family == "note":
                names.setdefault(one.check, set()).add(one.name)
        return {check: len(names[check]) for check in CHECKS if check in names}

    @property
    def n_grouped(self) -> int:
        """Photos that are in a group with others."""
        sizes = Counter(photo.group for photo in self.dataset.photos)
        return sum(size for size in sizes.values() if size > 1)

    @property
    def n_groups(self) -> int:
        """Groups of more than one photo."""
        return sum(size > 1 for size in Counter(photo.group for photo in self.dataset.photos).values())


COLUMNS = ("file_name", "check", "score", "flagged", "reason", "other_file", "label", "suggested_label", "group")
"""Columns of audit.csv."""


def list_rows(audit: Audit) -> Iterator[tuple[object, ...]]:
    """Rows of audit.csv, below `COLUMNS`; the label is a class path with ``/``."""
    photos = {photo.name: photo for photo in audit.dataset.photos}
    tree = audit.dataset.tree
    paths = dict(zip(tree.names, ("/".join(path) for path in tree.paths), strict=True))
    for one in audit.findings:
        photo = photos.get(one.name)
        label = "/".join(tree.paths[photo.label]) if photo and photo.label >= 0 else ""
        group = photo.group if photo else ""
        suggested = paths.get(one.suggested, one.suggested)
        yield (
            one.name,
            one.check,
            f"{one.score:.4f}",
            int(one.flagged),
            one.reason,
            one.other,
            label,
            suggested,
            group,
        )


def sort_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings by check and score, in the order of `Audit.findings`."""
    order = {name: i for i, name in enumerate(CHECKS)}
    return tuple(sorted(findings, key=lambda one: (order[one.check], not one.flagged, one.score, one.name)))


LEVELS = get_args(CheckLevel)
