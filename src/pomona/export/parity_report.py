"""What is said of an export's parity: for machines as JSON, for people as Markdown.

In: what the gate found in each runtime. Out: two texts.
Why: who receives an export can see what was checked, on what, and how close it came.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pomona.comparison import write_points
from pomona.export.trace import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pomona.bundle import Bundle
    from pomona.export.parity import Parity

PARITY_NAME, PAGE_NAME = "parity.json", "parity.md"
REPORT_FORMAT = 1

_HOW = (
    "Each photo went from the bytes of its file to an answer, once through the bundle and once through the export. "
    "Each stage is judged on what the export itself handed to it."
)


def describe_parity(
    bundle: Bundle, format_name: str, parities: Sequence[Parity], files: Mapping[str, int], created: str
) -> dict[str, Any]:
    """What was found, as plain values.

    Parameters
    ----------
    bundle : Bundle
        What was exported.
    format_name : str
        As what.
    parities : sequence of Parity
        One a runtime.
    files : mapping of str to int
        Bytes of each file of the export, by its path in the folder.
    created : str
        UTC time, ISO 8601.
    """
    from pomona import __version__

    return {
        "pomona_export": REPORT_FORMAT,
        "pomona_version": __version__,
        "created": created,
        "format": format_name,
        "bundle": {
            "name": bundle.folder.resolve().name,
            "checksum": bundle.manifest.checksum,
            "precision": bundle.manifest.embedding.precision,
            "n_classes": len(bundle.tree),
        },
        "files": dict(sorted(files.items())),
        "runtimes": [parity.to_dict() for parity in parities],
    }


def write_json(report: Mapping[str, Any]) -> str:
    """The report for machines."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_markdown(report: Mapping[str, Any], parities: Sequence[Parity]) -> str:
    """The report for people."""
    bundle = report["bundle"]
    made = f"pomona {report['pomona_version']}, {report['created']}"
    lines = [
        f"# Parity of {bundle['name']} as {report['format']}",
        "",
        f"{bundle['n_classes']} classes, network in {bundle['precision']}; {made}.",
        f"Checksum of the bundle: {bundle['checksum']}.",
        "",
        _HOW,
    ]
    for parity in parities:
        lines += ["", f"## {parity.runtime}", "", *_list_facts(parity), "", *_tabulate_stages(parity)]
    lines += ["", "## Files", "", "| File | Bytes |", "|---|---|"]
    lines += [f"| {name} | {size:,} |" for name, size in report["files"].items()]
    return "\n".join(lines) + "\n"


def _list_facts(parity: Parity) -> list[str]:
    photos = f"{parity.n_golden} golden photos, {parity.n_real} real ones"
    photos += f", of which neither can use {parity.n_failed}" if parity.n_failed else ""
    bounds = parity.bounds
    decided = f"where the best class leads by {parity.tie_band:g} or more"
    moved = f"{parity.largest:.2g} at most, {parity.mean:.2g} on average over photos"
    lines = [
        f"- Photos: {photos}.",
        f"- Labels: {parity.n_agreed} of {parity.n_decided} agree {decided}; of ties, {parity.n_ties_turned} differ.",
        f"- A probability differs by {moved}{_allow(bounds.probabilities)}.",
    ]
    if parity.strangeness is not None:
        lines.append(f"- Strangeness differs by {parity.strangeness:.2g} at most{_allow(bounds.probabilities)}.")
    if parity.heat_map is not None:
        lines.append(f"- Heat maps differ by {parity.heat_map:.2g} of their largest value{_allow(bounds.heat_map)}.")
    if parity.paired is None:
        lines.append("- No photo had a label: how often the export is right was not measured.")
        return lines
    found = parity.paired
    lines.append(
        f"- Right on {found.n} labelled photos: {write_points(found.gain)} points against the bundle (95 % interval "
        f"{write_points(found.low)} to {write_points(found.high)}); {found.n_better} only by the export, "
        f"{found.n_worse} only by the bundle. A loss of 0.3 points, or of one photo, is allowed."
    )
    if parity.n_learnt:
        lines.append(f"- {parity.n_learnt} of these the bundle had learnt: they are easier than others.")
    return lines


def _tabulate_stages(parity: Parity) -> list[str]:
    meanings = {
        "decode": "levels of 255",
        "resize": "levels of 255",
        "scale": "scaled pixels",
        "network": "share of the features' length",
        "head": "probability or strangeness",
    }
    lines = ["| Stage | Measured in | Largest | Mean | Allowed | Photo |", "|---|---|---|---|---|---|"]
    allowed = asdict(parity.bounds)
    for stage in STAGES:
        if stage not in parity.stages:
            lines.append(f"| {stage} | {meanings[stage]} | not shown | | | |")
            continue
        seen = parity.stages[stage]
        bound = allowed[stage] if math.isfinite(allowed[stage]) else "any"
        photo = seen["photo"] if seen["largest"] else ""
        lines.append(
            f"| {stage} | {meanings[stage]} | {seen['largest']:.2g} | {seen['mean']:.2g} | {bound} | {photo} |"
        )
    return lines


def _allow(bound: float) -> str:
    return f" ({bound:g} allowed)" if math.isfinite(bound) else " (judged by what it has right)"
