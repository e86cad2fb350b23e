"""Findings in one table: read back as written, in one order, counted by photo."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo
from pomona.findings import CHECKS, COLUMNS, LEVELS, Audit, Finding, list_rows, sort_findings
from pomona.run_folder import write_csv

if TYPE_CHECKING:
    import random

TREE = ClassTree.from_paths([("Fruit", "Apple", "Red"), ("Fruit", "Pear"), ("Veg", "Red")])
NAMES = ['a, "b".jpg', "c;d.jpg", "梨\u2028.jpg", "=1+1.jpg", " e .jpg", "f.jpg"]


def make_dataset(groups: str = "xxyzzz") -> Dataset:
    photos = tuple(
        Photo(Path(name), f"{i:064x}", i % 3 if i < 5 else -1, group, None, name)
        for i, (name, group) in enumerate(zip(NAMES, groups, strict=True))
    )
    return Dataset(photos, TREE, (), 0, Path())


FINDINGS = st.builds(
    Finding,
    name=st.sampled_from(NAMES),
    check=st.sampled_from(list(CHECKS)),
    score=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    flagged=st.booleans(),
    reason=st.text(st.one_of(st.sampled_from('\r\n",;'), st.characters(codec="utf-8")), max_size=12),
    other=st.sampled_from(["", *NAMES]),
    suggested=st.sampled_from(["", *TREE.names]),
)


@given(st.lists(FINDINGS, max_size=12))
@example([Finding(NAMES[0], "blurry", 0.25, True, "two\rlines", NAMES[1], TREE.names[0])])
def test_rows_are_read_back_as_they_were_written(findings: list[Finding]) -> None:
    dataset = make_dataset()
    audit = Audit(dataset, "full", sort_findings(findings))
    text = write_csv([COLUMNS, *list_rows(audit)])
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [tuple(row) for row in read] == [COLUMNS] * len(findings)
    photos = {photo.name: photo for photo in dataset.photos}
    for row, one in zip(read, audit.findings, strict=True):
        label = photos[one.name].label
        assert row == {
            "file_name": one.name,
            "check": one.check,
            "score": f"{one.score:.4f}",
            "flagged": str(int(one.flagged)),
            "reason": one.reason,
            "other_file": one.other,
            "label": "/".join(TREE.paths[label]) if label >= 0 else "",
            "suggested_label": "/".join(TREE.paths[TREE.names.index(one.suggested)]) if one.suggested else "",
            "group": photos[one.name].group,
        }


@given(st.lists(FINDINGS, max_size=12), st.randoms(use_true_random=False))
def test_findings_are_sorted_by_check_and_the_worst_first(findings: list[Finding], rng: random.Random) -> None:
    found = sort_findings(findings)
    assert sorted(map(repr, found)) == sorted(map(repr, findings))
    order = list(CHECKS)
    keys = [(order.index(one.check), not one.flagged, one.score) for one in found]
    assert keys == sorted(keys)
    unlike = list({(one.check, one.flagged, one.score, one.name): one for one in findings}.values())
    shuffled = list(unlike)
    rng.shuffle(shuffled)
    assert sort_findings(shuffled) == sort_findings(unlike)


@given(st.lists(FINDINGS, max_size=12))
def test_a_check_counts_photos_not_findings(findings: list[Finding]) -> None:
    counts = Audit(make_dataset(), "full", tuple(findings)).count()
    assert list(counts) == [check for check in CHECKS if check in counts]
    for check in CHECKS:
        told = {one.name for one in findings if one.check == check and (one.flagged or CHECKS[check].family == "note")}
        assert counts.get(check, 0) == len(told)


def test_a_file_that_is_no_photo_of_the_set_has_neither_label_nor_group() -> None:
    audit = Audit(make_dataset(), "none", (Finding("gone.jpg", "unusable", 0.0, True, "empty: 0 bytes"),))
    assert list(list_rows(audit)) == [("gone.jpg", "unusable", "0.0000", 1, "empty: 0 bytes", "", "", "", "")]


def test_photos_in_groups_with_others_are_counted() -> None:
    audit = Audit(make_dataset("xxyzzz"))
    assert (audit.n_grouped, audit.n_groups) == (5, 2)
    alone = Audit(make_dataset("abcdef"))
    assert (alone.n_grouped, alone.n_groups) == (0, 0)


@pytest.mark.parametrize(
    ("check", "score"), [("unheard", 0.5), ("blurry", -0.1), ("blurry", 1.1), ("dark", float("nan"))]
)
def test_a_finding_of_no_check_or_without_a_score_is_refused(check: str, score: float) -> None:
    with pytest.raises(
        ValueError, match=r"check: wanted one of unusable, .* got 'unheard'|score: wanted a number from 0"
    ):
        Finding("a.jpg", check, score, True, "")


def test_checks_are_called_as_they_are_listed_and_say_something() -> None:
    assert all(
        name == check.name and check.title and check.advice.endswith((".", ";")) for name, check in CHECKS.items()
    )
    assert len({check.title for check in CHECKS.values()}) == len(CHECKS)
    assert LEVELS == ("none", "quick", "full")
