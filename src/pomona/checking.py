"""Photos to an audit, and what comes of it: a page, a table, a clean list.

In: `CheckOptions`. Out: a `CheckResult`.
Why: looking at photos is a command of its own, before anything is trained; the features that it computes are those that
training takes from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pomona.audit import audit_photos
from pomona.audit_page import PAGE_MARK, write_audit_page
from pomona.class_tree import show_text
from pomona.clean_list import DROP_CHECKS, CleanPlan, check_clean_place, plan_clean, write_clean
from pomona.clock import Clock
from pomona.dataset import load_dataset
from pomona.decisions import read_decisions
from pomona.effort import Effort, choose_precision, measure_machine, plan_embedding
from pomona.errors import DataError, OptionError
from pomona.features import extract_features
from pomona.files import check_page_place, storage_errors, write_atomic
from pomona.findings import COLUMNS, Audit, CheckLevel, list_rows
from pomona.run_folder import write_csv

if TYPE_CHECKING:
    from pomona.clock import Progress, Stage
    from pomona.evaluation import Metric

CLEAN_NAME = "clean.csv"
"""Where the clean list goes if decisions are applied and no place is named."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What `check_data` takes; the command line offers the same names, defaults and help.

    Parameters
    ----------
    data : Path
        Folder, table, list, pattern or zip of photos, with labels or without.
    check : {"quick", "full"}
        How much is looked for.
    report : Path, optional
        Page to write.
    csv : Path, optional
        Table to write.
    apply : Path, optional
        Decisions that the page exported.
    write_clean : Path, optional
        List (.csv, .tsv) or folder of hard links to write.
    drop : str
        Checks whose flagged photos are left out of the clean list too, such as ``wrong_label,blurry``.
    effort : {"instant", "fast", "best"}
        Features that photos are compared by; those of the training that follows are in the cache then.
    seed : int
        Decides the folds.
    workers : int, optional
        Threads; every core where not given.
    """

    data: Annotated[Path, "Folder, table (CSV, TSV), list, pattern or zip of photos, with labels or without."]
    check: Annotated[CheckLevel, "How much to look for; full adds wrong labels, outliers and shortcuts."] = "full"
    report: Annotated[Path | None, "Page to write, audit.html for example: look, decide, export decisions."] = None
    csv: Annotated[Path | None, "Table to write, audit.csv for example: a row a photo and finding."] = None
    apply: Annotated[Path | None, f"Decisions exported by the page; makes the clean list ({CLEAN_NAME})."] = None
    write_clean: Annotated[
        Path | None, "Clean list (.csv, .tsv) or folder of hard links to write; groups are in the list alone."
    ] = None
    drop: Annotated[str, f"Leave out of the clean list too what these flagged: {', '.join(DROP_CHECKS)}."] = ""
    effort: Annotated[Effort, "Features that photos are compared by; training with the same finds them cached."] = (
        "fast"
    )
    seed: Annotated[int, "Decides the folds."] = 0
    workers: Annotated[int | None, "Threads for decoding and the network; by default every core."] = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers: wanted 1 or more, got {self.workers}")
        if unknown := [name for name in self.list_drops() if name not in DROP_CHECKS]:
            raise OptionError(f"drop: wanted some of {', '.join(DROP_CHECKS)}, got {', '.join(unknown)}")
        if self.drop and not self.apply and not self.write_clean:
            raise OptionError("drop: wanted --write-clean or --apply with it, or nothing is left out of anything")
        if self.csv is not None and self.csv.suffix.lower() != ".csv":
            raise OptionError(f"csv: wanted a file that ends in .csv, got {self.csv}")

    def list_drops(self) -> tuple[str, ...]:
        """Names of the checks in `drop`."""
        return tuple(name.strip() for name in self.drop.split(",") if name.strip())


@dataclass(frozen=True)
class CheckResult:
    """What a check found and wrote.

    Parameters
    ----------
    audit : Audit
        The findings.
    stages : tuple of Stage
        Time of each step.
    places : dict of str to Path
        What was written, by what it is.
    plan : CleanPlan, optional
        What the clean list holds.
    """

    audit: Audit
    stages: tuple[Stage, ...]
    places: dict[str, Path] = field(default_factory=dict)
    plan: CleanPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        audit = self.audit
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in list_rows(audit)]
        return {
            "n_photos": audit.dataset.n_photos,
            "n_skipped": len(audit.dataset.skipped),
            "n_ignored": audit.dataset.n_ignored,
            "n_groups": audit.n_groups,
            "n_grouped": audit.n_grouped,
            "checks": audit.count(),
            "remarks": [{"check": one.check, "flagged": one.flagged, "text": one.text} for one in audit.remarks],
            "random_split": _describe(audit.gap.random) if audit.gap else None,
            "grouped_split": _describe(audit.gap.grouped) if audit.gap else None,
            "findings": [{**row, "score": float(str(row["score"])), "flagged": bool(row["flagged"])} for row in rows],
            "clean": self.plan.describe() if self.plan else None,
            "places": {name: str(path) for name, path in self.places.items()},
            "seconds": {stage.name: round(stage.seconds, 3) for stage in self.stages},
        }


def _describe(metric: Metric) -> dict[str, float]:
    return {"accuracy": metric.value, "low": metric.low, "high": metric.high, "n": metric.n}


def check_data(options: CheckOptions, *, on_progress: Progress | None = None) -> CheckResult:
    """Look for what spoils a recogniser, and write what is asked for; no photo is changed, moved or deleted.

    Parameters
    ----------
    options : CheckOptions
        What to do.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    CheckResult
        The audit.

    Raises
    ------
    PomonaError
        One of its children, which says what is wrong and where.
    """
    clock = Clock(on_progress)
    _check_places(options)
    with clock.step("read"):
        dataset = load_dataset(options.data, min_classes=1, needs_labels=False, on_photo=clock.count)
        out = options.write_clean or (Path(CLEAN_NAME) if options.apply else None)
        out = check_clean_place(dataset, out) if out else None
        decisions = read_decisions(options.apply, dataset) if options.apply else ()
        if out and not len(dataset.tree) and not decisions:
            raise DataError(
                f"{dataset.shown}: wanted labels for a clean list, got photos with nothing to say what they show: put "
                "those of each class into a folder with its name, or relabel them on the page and apply its decisions"
            )
    with clock.step("features", dataset.n_photos):
        embedding = plan_embedding(options.effort, precision=choose_precision(measure_machine(options.workers)))
        features = extract_features(dataset, embedding, n_workers=options.workers, on_photo=clock.count)
    audit = audit_photos(features, options.check, seed=options.seed, n_workers=options.workers, clock=clock)
    plan = plan_clean(audit, decisions, drop=options.list_drops()) if out else None
    places = {}
    with clock.step("write"):
        if options.report:
            write_audit_page(options.report, audit, title=show_text(options.data.name))
            places["Page"] = options.report
        if options.csv:
            write_atomic(options.csv, write_csv([COLUMNS, *list_rows(audit)]))
            places["Table"] = options.csv
        if plan and out:
            write_clean(plan, out)
            places["Clean list" if out.suffix else "Clean folder"] = out
    return CheckResult(audit, tuple(clock.stages), places, plan)


def _check_places(options: CheckOptions) -> None:
    """Refuse places where something else would be lost, or that cannot be written, before the work begins."""
    clean = options.write_clean or (Path(CLEAN_NAME) if options.apply else None)
    named = {"report": options.report, "csv": options.csv, "write_clean": clean}
    places = {name: path.absolute() for name, path in named.items() if path}
    if len(set(places.values())) < len(places):
        raise OptionError(
            f"wanted places that differ for {', '.join(places)}, got {', '.join(map(str, places.values()))}"
        )
    for name, path in (("report", options.report), ("csv", options.csv)):
        if path and not path.parent.is_dir():
            raise OptionError(f"{name}: wanted a file in a folder that exists, got {path}; make {path.parent} first")
    if options.report:
        check_page_place(options.report, mark=PAGE_MARK)
    if options.csv and options.csv.exists():
        with storage_errors(f"read what stands at {options.csv}"), options.csv.open("rb") as stream:
            head = stream.readline(1000)
        if head.strip() != ",".join(COLUMNS).encode():
            raise OptionError(f"csv: {options.csv} is a file of another kind: name another place")
