"""What people see in a terminal: bars while it works, then tables and sentences.

In: results of commands. Out: text on stdout, progress and notes on stderr.
Why: what is said of a result has one place, whichever command made it; machines get the same results as JSON and CSV.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pomona.benchmark import BenchmarkResult, BenchmarkRow
    from pomona.class_names import ClassName
    from pomona.clock import Progress
    from pomona.comparison import Difference
    from pomona.effort import Forecast
    from pomona.enhancement_effect import Effects
    from pomona.evaluation import Evaluation, Metric
    from pomona.explaining import Explanation
    from pomona.export import ExportResult
    from pomona.findings import Audit
    from pomona.prediction import Answer, Prediction
    from pomona.run_log import Row
    from pomona.speed import Speed
    from pomona.teaching import TeachResult
    from pomona.training import TrainResult
    from pomona.trust import Baseline, Evidence, Kept, Promise

_STEPS = {
    "load": "Opening the run",
    "render": "Rendering photos",
    "read": "Reading photos",
    "look": "Looking at photos",
    "compare": "Comparing photos",
    "split": "Measuring the split",
    "labels": "Doubting labels",
    "shortcuts": "Trying shortcuts",
    "write": "Writing",
    "plan": "Planning",
    "features": "Computing features",
    "fit": "Fitting the head",
    "trust": "Holding out photos",
    "start": "Preparing",
    "range": "Finding the rate",
    "train": "Training",
    "evaluate": "Evaluating",
    "compare_runs": "Evaluating the other",
    "save": "Writing the run",
    "predict": "Predicting",
    "explain": "Finding reasons",
    "ways": "Measuring ways",
    "speed": "Timing answers",
    "parity": "Comparing answers",
}


def open_console(stream: Any) -> Console:
    """A console on a stream; wide where it is no terminal, so that nothing is cut."""
    from rich.console import Console

    # A pipe or a file has no width: wide enough that nothing is cut.
    return Console(file=stream, width=None if stream.isatty() else 160)


@contextmanager
def show_progress(*, as_bars: bool = True) -> Iterator[Progress]:
    """Bars on stderr with rate and time left where a person looks at it; one line a step where not."""
    console = open_console(sys.stderr)
    if console.is_terminal and as_bars:
        with _Bars(console) as bars:
            yield bars.update
    else:
        yield _Lines(console).update


class _Bars:
    """One progress bar a step."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        rate = TextColumn("{task.fields[rate]}", style="dim")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, Any] = {}
        self._started_s: dict[str, float] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: str, n_done: int, n_total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(_STEPS[step], total=None, rate="")
            self._started_s[step] = time.perf_counter()
        task = self._tasks[step]
        elapsed_s = time.perf_counter() - self._started_s[step]
        rate = f"{n_done / elapsed_s:,.0f}/s" if n_done > 1 and elapsed_s > 0.2 else ""
        if n_total > 1 or self._progress.tasks[task].total is None:
            self._progress.update(task, completed=n_done, total=n_total or None, rate=rate)


class _Lines:
    """One line when a step is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_s: dict[str, float] = {}
        self._done: set[str] = set()

    def update(self, step: str, n_done: int, n_total: int) -> None:
        self._started_s.setdefault(step, time.perf_counter())
        if n_total and n_done == n_total and step not in self._done:
            self._done.add(step)
            seconds = time.perf_counter() - self._started_s[step]
            count = f" {n_total}," if n_total > 1 else ""
            self._console.print(f"{_STEPS[step]}:{count} {seconds:.1f} s", style="dim", highlight=False)


def warn(message: str) -> None:
    """A note on stderr."""
    from rich.markup import escape

    open_console(sys.stderr).print(f"[yellow]note[/]: {escape(message)}", highlight=False, soft_wrap=True)


def make_table(*headings: str) -> Table:
    """A plain table; columns of numbers to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        numeric = heading in {"Score", "Photos", "MB", "Value", "95 % interval", "Right", "Seconds", "CPU-seconds"}
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table


def print_training(out: Console, result: TrainResult) -> None:
    """What was learnt, how good it is, and what to know."""
    n_skipped = len(result.dataset.skipped)
    n_train = result.dataset.part("train").n_photos
    skipped = f", {n_skipped} skipped" if n_skipped else ""
    out.print(f"\nLearnt {len(result.dataset.tree)} classes from {n_train} photos{skipped}.", highlight=False)
    print_evaluation(out, result.evaluation, result.evaluated_on)
    if result.kept:
        print_trust(out, result.kept, result.baselines, result.bundle.promise, result.evidence)
    for note in result.notes:
        warn(note)


def print_audit(out: Console, audit: Audit) -> None:
    """What an audit found."""
    from rich.markup import escape

    from pomona.findings import CHECKS

    dataset, counts = audit.dataset, audit.count()
    classes = f" of {len(dataset.tree)} classes" if len(dataset.tree) else ", without labels"
    out.print(f"{dataset.n_photos:,} photos{classes}; {len(dataset.skipped):,} cannot be used.", highlight=False)
    if audit.n_groups:
        out.print(f"{audit.n_grouped:,} of them belong together, in {audit.n_groups:,} groups.", highlight=False)
    table = make_table("Check", "Photos", "")
    for name, n_photos in counts.items():
        is_note = CHECKS[name].family == "note"
        table.add_row(CHECKS[name].title, f"{n_photos:,}", CHECKS[name].advice, style="dim" if is_note else None)
    if counts:
        out.print(table)
    else:
        out.print("Nothing was found.")
    if audit.gap:
        random, grouped = audit.gap.random, audit.gap.grouped
        out.print(
            f"A small head is right on {random.value:.1%} where photos are parted at random, and on "
            f"{grouped.value:.1%} ({grouped.low:.1%} to {grouped.high:.1%}) where groups stay whole.",
            highlight=False,
        )
    for remark in audit.remarks:
        mark = "[bold red]![/] " if remark.flagged else "  "
        out.print(f"{mark}{escape(remark.text)}", highlight=False)


def print_way(row: BenchmarkRow) -> None:
    """A way that is done, on stderr."""
    from rich.markup import escape

    right = f"right on {row.accuracy.value:.1%}" if row.accuracy else f"{row.status}: {row.reason}"
    open_console(sys.stderr).print(escape(f"  {row.title}: {right}, {row.seconds:.1f} s"), style="dim", highlight=False)


def print_benchmark(out: Console, result: BenchmarkResult) -> None:
    """What each way is worth, and what it costs."""
    from rich.markup import escape

    out.print(f"\n{result.verdict}", style="bold", highlight=False, markup=False)
    skipped = f", {result.n_skipped:,} skipped" if result.n_skipped else ""
    out.print(
        f"Learnt from {result.n_learnt:,} photos of {result.n_classes:,} classes{skipped}; measured on "
        f"{result.n_measured:,} {result.measured_on}.",
        highlight=False,
        markup=False,
    )
    table = make_table("Way", "Right", "95 % interval", "Seconds", "CPU-seconds", "MB", "Cached", "")
    for row in result.rows:
        found = row.accuracy
        shares = (f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}") if found else ("-", "")
        memory = "-" if row.memory_mb is None else f"{row.memory_mb:,.0f}"
        cached = f"{row.n_cached:,}" if row.n_cached else "no"
        costs = (f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}", memory, cached)
        said = row.detail if row.status == "done" else f"{row.status}: {row.reason}"
        table.add_row(row.title, *shares, *costs, escape(said), style=None if row.status == "done" else "dim")
    out.print(table)
    out.print(
        "Each way in a process of its own, from photos to answers. Where others use the cores too, CPU-seconds are "
        "the figure to trust.",
        style="dim",
    )
    for note in result.notes:
        warn(note)
    print_places(out, result.places)


def print_speed(out: Console, speed: Speed) -> None:
    """How fast a recogniser answers, and what it takes."""
    latency = speed.latency
    cores = "one core" if speed.threads == 1 else f"{speed.threads} cores"
    out.print(
        f"\n{latency.p50_ms:.1f} ms from photo to answer on {cores}, {latency.p99_ms:.1f} ms for the slowest of 100, "
        f"{speed.photos_per_s:,.1f} photos a second.",
        style="bold",
        highlight=False,
    )
    skipped = f", {speed.n_skipped:,} could not be used" if speed.n_skipped else ""
    out.print(
        f"{speed.n_answers:,} answers for {speed.n_photos:,} photos{skipped}; {speed.runtime}.",
        highlight=False,
        markup=False,
    )
    table = make_table("Milliseconds", "Half within", "95 % within", "99 % within")
    titles = {"decode": "Decoding and fitting", "network": "Network", "answer": "Answer"}
    rows = {**{titles[name]: one for name, one in speed.stages.items()}, "All of it": latency}
    for name, one in rows.items():
        style = "bold" if one is latency else None
        table.add_row(name, f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", f"{one.p99_ms:.2f}", style=style)
    out.print(table)
    memory = "-" if speed.memory_mb is None else f"{speed.memory_mb:,.0f} MB"
    out.print(
        f"Memory at most {memory}, files {speed.file_mb:.1f} MB. First answer {speed.load_s:.2f} s after opening it, "
        f"{speed.start_s:.2f} s after the process began.",
        highlight=False,
    )


def print_effects(out: Console, effects: Effects) -> None:
    """What steps of enhancement do to the answers."""
    from pomona.comparison import write_points
    from pomona.enhancement_effect import describe_steps

    out.print(effects.describe(), style="bold", highlight=False, soft_wrap=True)
    out.print(f"Measured on {effects.n:,} {effects.measured_on}; points of 100 against no step.", highlight=False)
    table = make_table("Steps", "Value", "Difference", "95 % interval", "Verdict")
    table.add_row(describe_steps(()), f"{effects.accuracy:.1%}", "", "", "")
    for one in effects.effects:
        found = one.difference
        interval = f"{write_points(found.low)} to {write_points(found.high)}"
        name = describe_steps(one.steps)
        table.add_row(name, f"{one.accuracy:.1%}", write_points(found.gain), interval, found.verdict)
    out.print(table)


def print_teaching(result: TeachResult, *, as_json: bool) -> None:
    """What was taught or forgotten, for people or machines."""
    for one in result.skipped:
        warn(f"{one.name}: {one.detail}")
    for note in result.notes:
        warn(note)
    if as_json:
        print_json(result.to_dict())
        return
    out = open_console(sys.stdout)
    folder = result.bundle.folder
    out.print(result.describe(), highlight=False, soft_wrap=True, markup=False)
    if result.n_photos:
        out.print("The numbers in its report are of before. Measure it again:", highlight=False)
        out.print(f"  pomona evaluate {folder} DATA", style="bold", highlight=False, soft_wrap=True, markup=False)


def print_evaluation(out: Console, evaluation: Evaluation, evaluated_on: str) -> None:
    """The headline and the table of metrics."""
    from rich.markup import escape

    def percent(metric: Metric) -> tuple[str, str]:
        return f"{metric.value:.1%}", f"{metric.low:.1%} to {metric.high:.1%}"

    out.print(
        f"[bold]Right on {evaluation.accuracy.value:.1%}[/] of {evaluation.n} {escape(evaluated_on)} "
        f"(95 % interval {evaluation.accuracy.low:.1%} to {evaluation.accuracy.high:.1%}).",
        highlight=False,
    )
    table = make_table("Measure", "Value", "95 % interval")
    table.add_row("Accuracy", *percent(evaluation.accuracy))
    table.add_row("Balanced accuracy", *percent(evaluation.balanced_accuracy))
    table.add_row("Macro F1", *percent(evaluation.macro_f1))
    table.add_row("Weighted F1", *percent(evaluation.weighted_f1))
    table.add_row("Among the first five", *percent(evaluation.top5))
    for level in evaluation.levels[:-1]:
        table.add_row(f"Accuracy, {level.name} ({level.n_classes} classes)", *percent(level.accuracy))
    out.print(table)


def _show_name(answer: Answer | Prediction, language: str | None) -> str:
    """Name of a class in a language; that of the class itself where there is none."""
    return (language and getattr(answer, f"name_{language}")) or answer.label or ""


def print_trust(
    out: Console,
    kept: Kept,
    baselines: Sequence[Baseline],
    promise: Promise | None,
    evidence: Evidence | None = None,
) -> None:
    """Simple ways beside it, what was forecast, and whether what is promised holds."""

    def write(metric: Metric) -> str:
        return f"{metric.value:.1%} ({metric.low:.1%} to {metric.high:.1%})"

    said = [f"{_BASELINES[one.name]} {one.accuracy.value:.1%}" for one in baselines]
    if evidence is not None:
        said.insert(0, f"forecast from folds of what was learnt {write(evidence.held_out.accuracy)}")
    if said:
        out.print(f"Beside it: {', '.join(said)}.", highlight=False)
    out.print(
        f"How sure it says it is: off by {kept.after.ece:.1%} on average "
        f"({kept.after.by_chance:.1%} would be chance on as many photos).",
        highlight=False,
    )
    if promise is None or kept.covered is None:
        return
    right = "none is sure" if kept.sure_right is None else f"right on {write(kept.sure_right)}"
    out.print(
        f"Sure answers, promised right on {promise.share:.0%}: {right}; {kept.share_exact:.0%} of photos get a class, "
        f"{kept.share_coarse:.0%} one above it, {kept.share_open:.0%} no sure answer.",
        highlight=False,
    )
    away = "" if kept.turned_away is None else f" Called unknown, though known: {kept.turned_away.value:.1%}."
    out.print(
        f"Shortlists of {kept.shortlist_size:.1f} classes hold the right one on {write(kept.covered)}.{away}",
        highlight=False,
    )


_BASELINES = {"most frequent": "always the most frequent class", "nearest": "the nearest photo's class"}


def print_difference(out: Console, found: Difference, run: Path, against: Path | None) -> None:
    """Which of two recognisers is right more often."""
    from pomona.comparison import write_points

    out.print(
        f"[bold]{found.verdict.capitalize()}[/]: on the same {found.n:,} photos, {write_points(found.gain)} points "
        f"({write_points(found.low)} to {write_points(found.high)}); {found.n_better} right in {run} alone, "
        f"{found.n_worse} in {against} alone; p = {found.p_value:.2g}.",
        highlight=False,
        soft_wrap=True,
    )


def tabulate_predictions(
    answers: Sequence[Prediction], *, shows: Sequence[str] = (), language: str | None = None
) -> Table:
    """A table of answers."""
    from rich.markup import escape

    folder, names = _split_common_folder([answer.file for answer in answers])
    table = make_table("Photo", *(["Shows"] if shows else []), "Answer", "Score", "Then")
    if folder:
        table.title, table.title_justify = escape(f"Photos in {folder}"), "left"
    for row, answer in enumerate(answers):
        lead = [escape(names[row]), *([escape(shows[row])] if shows else [])]
        if answer.error is not None:
            table.add_row(*lead, f"[red]error[/]: {escape(answer.error)}", "", "")
            continue
        said = answer.answer or answer.top[0]
        rest = ", ".join(f"{escape(_show_name(one, language))} {one.score:.1%}" for one in answer.others)
        best = f"[bold]{escape(_show_name(said, language))}[/]"
        if answer.unknown:
            table.add_row(*lead, f"[yellow]{best}[/]", "", f"[dim]nearest: {rest}[/]")
            continue
        doubt = " [yellow]?[/]" if answer.sure is False else ""
        table.add_row(*lead, f"{best}{doubt}", f"{said.score:.1%}", f"[dim]{rest}[/]")
    return table


def tabulate_explanations(rows: Sequence[tuple[Explanation, Path | None]]) -> Table:
    """A table of answers with their pictures."""
    from rich.markup import escape

    folder, names = _split_common_folder([explanation.prediction.file for explanation, _ in rows])
    table = make_table("Photo", "Answer", "Score", "Nearest photos learnt from", "Picture")
    if folder:
        table.title, table.title_justify = escape(f"Photos in {folder}"), "left"
    for name, (explanation, picture) in zip(names, rows, strict=True):
        answer = explanation.prediction
        if picture is None:
            table.add_row(escape(name), f"[red]error[/]: {escape(answer.error or '')}", "", "", "")
            continue
        counts = Counter(one.label for one in explanation.nearest)
        nearest = ", ".join(f"{n_photos} {escape(label)}" for label, n_photos in counts.items())
        said = answer.answer or answer.top[0]
        score = "" if answer.unknown else f"{said.score:.1%}"
        label = f"[bold]{escape(said.label)}[/]"
        table.add_row(escape(name), label, score, f"[dim]{nearest}[/]", escape(picture.name))
    return table


def _split_common_folder(files: Sequence[str]) -> tuple[str, list[str]]:
    """Folder that all files lie in, and their names in it; no folder where there is none or a single file."""
    parents = [Path(file).parent for file in files]
    if len(files) < 2 or len({parent.is_absolute() for parent in parents}) > 1:
        return "", list(files)
    folder = os.path.commonpath(parents)
    if folder in {"", os.curdir, Path(folder).anchor}:
        return "", list(files)
    return folder, [str(Path(file).relative_to(folder)) for file in files]


def print_places(out: Console, places: Mapping[str, Path]) -> None:
    """Where files are."""
    for name, path in places.items():
        out.print(f"{name:<12} {path}", highlight=False, soft_wrap=True, markup=False)


def print_json(content: Any) -> None:
    """A result for machines, on stdout."""
    # An encoding that lacks a sign would write it in Python's way, which is no JSON.
    as_ascii = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    typer.echo(json.dumps(content, indent=2, ensure_ascii=as_ascii))


def begin_csv() -> Callable[[Prediction], None]:
    """Write the heading; returns what writes a row, so that a stop loses none of those before it."""
    import csv

    out = sys.stdout  # while bars are shown, `sys.stdout` leads to them
    writer = csv.writer(out, lineterminator="\n")

    def write(row: Sequence[str]) -> None:
        writer.writerow(row)
        out.flush()  # a full disk or a closed pipe shows here, and not after the exit code is settled

    def write_row(answer: Prediction) -> None:
        score = "" if answer.score is None else f"{answer.score:.6f}"
        called = (answer.name_en or "", answer.name_zh or "", answer.plu or "")
        said = answer.answer.label if answer.answer else ""
        sure = "" if answer.sure is None else str(int(answer.sure))
        found = (said, sure, "" if answer.error else str(int(answer.unknown)))
        write((answer.file, answer.label or "", score, answer.error or "", *called, *found))

    write(("file", "label", "score", "error", "name_en", "name_zh", "plu", "answer", "sure", "unknown"))
    return write_row


def tabulate_names(labels: Sequence[str], called: Sequence[ClassName], language: str | None) -> Table:
    """A table of what people call the classes."""
    from rich.markup import escape

    columns = {"en": "English", "zh": "Chinese"}
    shown = [language] if language else list(columns)
    table = make_table("Class", *(columns[one] for one in shown), "PLU")
    for label, name in zip(labels, called, strict=True):
        cells = (label, *(getattr(name, f"name_{one}") or "" for one in shown), name.plu or "")
        table.add_row(*map(escape, cells))
    return table


def print_row(row: Row, n_epochs: int) -> None:
    """A line of the log of training, on stderr."""
    left_s = row.seconds * max(0.0, n_epochs / row.epoch - 1) if row.epoch else 0.0
    parts = [f"epoch {row.epoch:g} of {n_epochs}", f"loss {row.train_loss:.3f}" if row.train_loss is not None else ""]
    if row.val_loss is not None and row.val_accuracy is not None:
        parts.append(f"validation {row.val_loss:.3f}, right {row.val_accuracy:.1%}")
    if row.photos_per_s:
        parts.append(f"{row.photos_per_s:,.0f} photos/s")
    parts.append(f"{left_s / 60:.1f} min left" if left_s >= 60 else f"{left_s:.0f} s left")
    open_console(sys.stderr).print("  " + ", ".join(part for part in parts if part), style="dim", highlight=False)


def print_forecast(forecasts: Sequence[Forecast], taken: Forecast) -> None:
    """What each effort will cost, before it begins; on stderr, as it is no result."""
    out = open_console(sys.stderr)
    for one in forecasts:
        work = f"{one.n_photos:,} photos: decoding {one.decode_s:.0f} s, network {one.network_s:.0f} s, "
        mark = "[bold]" if one is taken else "[dim]"
        chosen = "" if len(forecasts) == 1 else ", taken" if one is taken else ""
        out.print(
            f"{mark}{one.effort}: about {one.total_s:.0f} s[/] [dim]({work}fit {one.fit_s:.0f} s, the rest "
            f"{one.start_s:.0f} s){chosen}[/]",
            highlight=False,
            soft_wrap=True,
        )


def print_export(out: Console, result: ExportResult) -> None:
    """Say how close an export is to its bundle, runtime by runtime."""
    from pomona.comparison import write_points

    table = make_table("Runtime", "Photos", "Labels agree", "Largest difference", "Right, against the bundle")
    for parity in result.parities:
        paired = parity.paired
        table.add_row(
            parity.runtime,
            f"{parity.n_golden + parity.n_real:,}",
            f"{parity.n_agreed:,} of {parity.n_decided:,}",
            f"{parity.largest:.2g}",
            "-" if paired is None else f"{write_points(paired.gain)} points on {paired.n:,}",
        )
    out.print(table)
    n_mb = sum(result.files.values()) / 1e6
    out.print(f"{len(result.files):,} files, {n_mb:.1f} MB.", highlight=False)
