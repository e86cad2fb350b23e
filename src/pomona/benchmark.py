"""What transfer learning bought: several ways to learn from the same photos, measured side by side.

In: `BenchmarkOptions`. Out: a `BenchmarkResult`: a row a way, a verdict, a table, a page.
Why: whether a pretrained network is worth it shows on one's own fruit alone. All ways see the same photos in the same
parts, made once; each runs in a process of its own (`pomona.ways`), so that time and memory are its own, and one that
fails becomes a row that says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np

from pomona.audit import audit_photos, note_audit
from pomona.benchmark_page import PAGE_MARK, PageRow, write_benchmark_page
from pomona.class_tree import show_text
from pomona.clock import Clock
from pomona.comparison import compare_answers
from pomona.curves import Spot, draw_spots
from pomona.dataset import drop_empty_classes, load_dataset
from pomona.effort import Effort, choose_precision, measure_machine, parse_time, plan_embedding
from pomona.engine import count_cpus
from pomona.errors import OptionError, StorageError
from pomona.evaluation import measure_share
from pomona.features import extract_features
from pomona.files import MANIFEST_NAME, check_page_place, make_folder, storage_errors, write_atomic
from pomona.findings import CheckLevel  # noqa: TC001 - the flag is made from it
from pomona.parts import note_copies, note_data
from pomona.run_folder import write_csv
from pomona.run_place import name_data
from pomona.training import TrainOptions, part_photos
from pomona.ways import TITLES, Task, Trial, WayName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pomona.clock import Progress
    from pomona.dataset import Dataset, Photo
    from pomona.evaluation import Metric
    from pomona.parts import PartPlan

Status = Literal["done", "skipped", "failed"]

FILES = ("benchmark.csv", "benchmark.json", "benchmark.svg", "benchmark.html")
COLUMNS = (
    "way",
    "status",
    "accuracy",
    "low",
    "high",
    "n",
    "seconds",
    "cpu_seconds",
    "memory_mb",
    "n_cached",
    "detail",
    "reason",
)

_UNTUNED = tuple(name for name in get_args(WayName) if name != "tuned")
_TRANSFER: tuple[WayName, ...] = ("pomona", "frozen", "nearest")
"""The first of these that was measured speaks for transfer learning, whichever is best."""

_OTHERS: dict[WayName, str] = {"classic": "the best classic way", "scratch": "a network from scratch"}
_LAST_WORDS = 300


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What `run_benchmark` takes; the command line offers the same names, defaults and help.

    Parameters
    ----------
    data : Path
        Folder, table, list, pattern or zip of labelled photos.
    output : Path
        Folder for the table and the page.
    ways : str
        Ways to measure, with commas between them; all but the tuned one where empty.
    tune : bool
        Whether the tuned way is measured too.
    tune_time : str
        Time that it may take.
    scratch_time : str
        Time that the network from scratch may train.
    scratch_epochs : int
        Times that it goes over the photos at most.
    effort : {"instant", "fast", "best"}
        Of Pomona's own way.
    folds : int
        Folds inside the train part that classic features and their classifier are chosen by.
    val_share : float
        Share of the photos kept apart, 0-1, where the data has no val and no test part.
    seed : int
        Decides which photos are kept apart, and all that is drawn.
    check : {"none", "quick", "full"}
        How much is looked for before; what belongs together stays together.
    cached : bool
        Whether features that are in the cache are used; else each way computes all of its own.
    workers : int, optional
        Threads; every core where not given.
    """

    data: Annotated[Path, "Folder, table (CSV, TSV), list, pattern or zip of labelled photos."]
    output: Annotated[Path, "Folder for the table and the page."] = Path("runs/benchmark")
    ways: Annotated[str, f"Ways to measure, with commas: {', '.join(_UNTUNED)}; by default all of these."] = ""
    tune: Annotated[bool, "Measure Pomona's tuned network too; takes the time below."] = False
    tune_time: Annotated[str, "Time that the tuned way may take, as 10m."] = "10m"
    scratch_time: Annotated[str, "Time that the network from scratch may train, as 120s."] = "120s"
    scratch_epochs: Annotated[int, "Times that it goes over the photos at most."] = 100
    effort: Annotated[Effort, "How much work goes into the features of Pomona's own way."] = "fast"
    folds: Annotated[int, "Folds inside train that classic features and classifier are chosen by."] = 3
    val_share: Annotated[float, "Share of photos to keep apart where the data has no val or test part."] = 0.2
    seed: Annotated[int, "Decides which photos are kept apart, and all that is drawn."] = 0
    check: Annotated[CheckLevel, "What to look for in the photos before; what belongs together stays together."] = (
        "quick"
    )
    cached: Annotated[bool, "Take features from the cache; else each way computes its own, which is the fair time."] = (
        False
    )
    workers: Annotated[int | None, "Threads for decoding and learning; by default every core."] = None

    def __post_init__(self) -> None:
        for name, text in (("scratch-time", self.scratch_time), ("tune-time", self.tune_time)):
            try:
                parse_time(text)
            except OptionError as error:
                raise OptionError(f"{name}: {str(error).removeprefix('time: ')}") from error
        for name, value, least in (
            ("folds", self.folds, 2),
            ("scratch-epochs", self.scratch_epochs, 1),
            ("workers", 1 if self.workers is None else self.workers, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise OptionError(f"{name}: wanted {least} or more, got {value}")
        if not 0 < self.val_share < 1:
            raise OptionError(f"val-share: wanted a share between 0 and 1, got {self.val_share}")
        self.list_ways()

    def list_ways(self) -> tuple[WayName, ...]:
        """Ways to measure, in the order of the table."""
        named = {name.strip() for name in self.ways.split(",") if name.strip()}
        if unknown := sorted(named - set(TITLES)):
            raise OptionError(f"ways: wanted some of {', '.join(TITLES)}, got {', '.join(unknown)}")
        wanted = (named or set(_UNTUNED)) | ({"tuned"} if self.tune else set())
        return tuple(name for name in TITLES if name in wanted)


@dataclass(frozen=True)
class BenchmarkRow:
    """One way.

    Parameters
    ----------
    way : WayName
        Which.
    status : {"done", "skipped", "failed"}
        Whether it was measured, lacks a package, or went wrong.
    seconds : float
        Wall time of its process, from start to end.
    cpu_seconds : float
        Processor time of all its threads.
    memory_mb : float, optional
        Most memory it held at once.
    accuracy : Metric, optional
        Share right, with its interval; None where it was not measured.
    n_cached : int
        Photos whose features came from the cache.
    detail : str
        What was chosen or done.
    reason : str
        Why it was not measured.
    tried : tuple of (str, float)
        Choices tried inside train, and the share right there.
    right : ndarray of bool, optional
        Which of the photos reported on it has right.
    """

    way: WayName
    status: Status
    seconds: float
    cpu_seconds: float = 0.0
    memory_mb: float | None = None
    accuracy: Metric | None = None
    n_cached: int = 0
    detail: str = ""
    reason: str = ""
    tried: tuple[tuple[str, float], ...] = ()
    right: NDArray[np.bool_] | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """The way in words."""
        return TITLES[self.way]

    @property
    def is_lead(self) -> bool:
        """Whether it begins with a pretrained network."""
        return self.way in {*_TRANSFER, "tuned"}

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values for JSON."""
        found = self.accuracy
        return {
            "way": self.way,
            "status": self.status,
            "accuracy": found.value if found else None,
            "accuracy_interval": [found.low, found.high] if found else None,
            "n": found.n if found else None,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "memory_mb": None if self.memory_mb is None else round(self.memory_mb, 1),
            "n_cached": self.n_cached,
            "detail": self.detail,
            "reason": self.reason,
            "tried": [{"choice": name, "accuracy": share} for name, share in self.tried],
        }


@dataclass(frozen=True)
class BenchmarkResult:
    """All ways, side by side.

    Parameters
    ----------
    rows : tuple of BenchmarkRow
        In the order they were measured.
    n_learnt, n_measured, n_classes, n_skipped : int
        Photos learnt from and reported on, classes, and files that cannot be used.
    measured_on : str
        Which photos are reported on.
    verdict : str
        What it comes to, in a sentence or two.
    notes : tuple of str
        What to know before trusting the numbers.
    places : dict of str to Path
        What was written, by what it is.
    interrupted : bool
        Whether it was stopped by a key before its end.
    """

    rows: tuple[BenchmarkRow, ...]
    n_learnt: int
    n_measured: int
    n_classes: int
    n_skipped: int
    measured_on: str
    verdict: str
    notes: tuple[str, ...]
    places: dict[str, Path]
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "verdict": self.verdict,
            "measured_on": self.measured_on,
            "n_learnt": self.n_learnt,
            "n_measured": self.n_measured,
            "n_classes": self.n_classes,
            "n_skipped": self.n_skipped,
            "interrupted": self.interrupted,
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
            "places": {name: str(path) for name, path in self.places.items()},
        }


def run_benchmark(
    options: BenchmarkOptions,
    *,
    on_progress: Progress | None = None,
    on_row: Callable[[BenchmarkRow], None] | None = None,
) -> BenchmarkResult:
    """Measure several ways to learn from the same photos, and write what came of it.

    Parameters
    ----------
    options : BenchmarkOptions
        What to do.
    on_progress : callable, optional
        Called with (step, done, in all).
    on_row : callable, optional
        Called with each row when its way is done.

    Returns
    -------
    BenchmarkResult
        A Ctrl-C while ways are measured leaves those that were; before that it goes on as a `KeyboardInterrupt`.

    Raises
    ------
    PomonaError
        One of its children, which says what is wrong and where.
    """
    clock = Clock(on_progress)
    _check_places(options)
    dataset, plan, notes = _part(options, clock)
    asked = [photo for photo in dataset.photos if photo.split == plan.report_on]
    rows: list[BenchmarkRow] = []
    interrupted = False
    ways = options.list_ways()
    with tempfile.TemporaryDirectory() as folder, clock.step("ways"):
        table = Path(folder) / "photos.csv"
        write_table(table, dataset, plan)
        try:
            for number, way in enumerate(ways, start=1):
                row = _measure_way(way, table, asked, options)
                rows.append(row)
                if on_row:
                    on_row(row)
                clock.count(number, len(ways))
        except KeyboardInterrupt:
            interrupted = True
    groups = np.array([photo.group for photo in asked])
    result = BenchmarkResult(
        rows=tuple(rows),
        n_learnt=dataset.part("train").n_photos,
        n_measured=len(asked),
        n_classes=len(dataset.tree),
        n_skipped=len(dataset.skipped),
        measured_on=plan.evaluated_on,
        verdict=judge_ways(rows, groups),
        notes=notes,
        places={"Table": options.output / FILES[0], "Page": options.output / FILES[3]},
        interrupted=interrupted,
    )
    with clock.step("write"):
        _write_files(result, options)
    return result


def _check_places(options: BenchmarkOptions) -> None:
    """Refuse, before the work begins, what is no data and a place where something else would be lost."""
    if (options.data / MANIFEST_NAME).is_file():
        raise OptionError(
            f"data: wanted labelled photos to compare ways of learning on, got {options.data}, which is the folder of "
            f"a run (it holds {MANIFEST_NAME}): name the photos that it was trained on; how good the run is says "
            "pomona evaluate"
        )
    if (options.output / MANIFEST_NAME).exists():
        raise OptionError(
            f"output: wanted a folder for the benchmark, got the run {options.output}: name another place"
        )
    if options.data.is_dir() and options.output.resolve().is_relative_to(options.data.resolve()):
        raise OptionError(f"output: wanted a folder outside the photos, got {options.output} in {options.data}")
    if options.output.exists() and not options.output.is_dir():
        raise StorageError(f"{options.output}: wanted a place for a folder, got a file; name another place")
    page = options.output / FILES[3]
    if os.path.lexists(page):
        check_page_place(page, mark=PAGE_MARK)


def _part(options: BenchmarkOptions, clock: Clock) -> tuple[Dataset, PartPlan, tuple[str, ...]]:
    """The photos in the groups and parts that training would give them, and what to know of them."""
    training = TrainOptions(
        data=options.data,
        effort=options.effort,
        val_share=options.val_share,
        seed=options.seed,
        check=options.check,
        workers=options.workers,
    )
    with clock.step("read"):
        dataset = load_dataset(options.data, on_photo=clock.count)
        odd = [photo.name for photo in dataset.photos if not _fits_table(photo)]
        dataset = replace(dataset, photos=tuple(photo for photo in dataset.photos if _fits_table(photo)))
        part_photos(dataset, training)  # what cannot be parted at all is said before the long steps
    notes: tuple[str, ...] = ()
    if odd:
        notes = (f"Left out, for a line break or blanks at an end of their path: {len(odd)}, the first {odd[0]}.",)
    if options.check == "none":
        parted, plan = part_photos(dataset, training)
        looked = note_copies(parted)
    else:
        with clock.step("features", dataset.n_photos):
            embedding = plan_embedding(options.effort, precision=choose_precision(measure_machine(options.workers)))
            features = extract_features(dataset, embedding, n_workers=options.workers, on_photo=clock.count)
        audit = audit_photos(features, options.check, seed=options.seed, n_workers=options.workers, clock=clock)
        parted, plan = part_photos(audit.dataset, training, dataset)
        looked = note_audit(audit)
    parted, dropped = drop_empty_classes(parted)
    known = replace(parted, photos=tuple(photo for photo in parted.photos if photo.label >= 0))
    n_measured = known.part(plan.report_on).n_photos
    # The plan's own notes tell of choices on the photos reported on, which no way makes here.
    return known, plan, (*notes, *dropped, *looked, *note_data(parted, n_measured))


def _fits_table(photo: Photo) -> bool:
    text = str(photo.path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return text == text.strip() and not {"\n", "\r", "\0"} & set(text)


def write_table(path: Path, dataset: Dataset, plan: PartPlan) -> None:
    """Write the photos for the ways: class numbers as labels, and the part reported on as the test part.

    Parameters
    ----------
    path : Path
        CSV that `load_dataset` reads.
    dataset : Dataset
        With groups and parts.
    plan : PartPlan
        What the parts are for.
    """
    parts = {"train": "train", plan.choose_on: "val", plan.report_on: "test"}
    width = len(str(len(dataset.tree)))
    rows = [
        (photo.path, f"{photo.label:0{width}}", parts[photo.split], photo.group)
        for photo in dataset.photos
        if photo.split in parts
    ]
    write_atomic(path, write_csv([("file_name", "label", "split", "group"), *rows]))


# --- one way --------------------------------------------------------------------------------------------------------


def _measure_way(way: WayName, table: Path, asked: Sequence[Photo], options: BenchmarkOptions) -> BenchmarkRow:
    task = Task(
        way=way,
        table=str(table),
        effort=options.effort,
        folds=options.folds,
        scratch_time_s=parse_time(options.scratch_time),
        scratch_epochs=options.scratch_epochs,
        tune_time=options.tune_time,
        seed=options.seed,
        workers=options.workers,
    )
    trial, seconds = _run_process(task, is_cached=options.cached)
    row = BenchmarkRow(way, "done", seconds, trial.cpu_seconds, trial.memory_mb)
    if trial.missing:
        return replace(row, status="skipped", reason=f"needs pip install 'pomona[{trial.missing[1]}]'")
    if trial.error:
        return replace(row, status="failed", reason=trial.error)
    # A photo without an answer, unreadable by now, counts as wrong.
    right = np.array([int(trial.answers.get(str(photo.path), -1)) == photo.label for photo in asked])
    accuracy = measure_share(right, np.array([photo.group for photo in asked]))
    return replace(
        row,
        accuracy=accuracy,
        n_cached=trial.n_cached,
        detail=trial.detail,
        tried=tuple((name, share) for name, share in trial.tried),
        right=right,
    )


def _run_process(task: Task, *, is_cached: bool) -> tuple[Trial, float]:
    """Run a task in a process of its own, with an empty cache unless said otherwise; its trial and its wall time."""
    with tempfile.TemporaryDirectory() as folder:
        task_path, trial_path, words_path = (Path(folder) / name for name in ("task.json", "trial.json", "words.txt"))
        write_atomic(task_path, json.dumps(asdict(task)))
        environment = dict(os.environ)
        if not is_cached:
            environment["POMONA_CACHE"] = str(make_folder(Path(folder) / "cache"))
        if task.workers:
            environment.setdefault("OMP_NUM_THREADS", str(task.workers))
        command = [sys.executable, "-P", "-m", "pomona.ways", str(task_path), str(trial_path)]
        started_s = time.perf_counter()
        with words_path.open("wb") as words, _process(command, environment, words) as process:
            status = process.wait()
        seconds = time.perf_counter() - started_s
        try:
            content = json.loads(trial_path.read_text("utf-8"))
        except OSError:
            return Trial(error=_describe_end(status, words_path)), seconds
    return Trial(**content), seconds


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str], words: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block at the latest; what it prints goes into a file."""
    with storage_errors("start a process"):
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=words, stderr=words)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()


def _describe_end(status: int, words_path: Path) -> str:
    """Say how a process ended that left no result."""
    if status < 0:
        hint = ", perhaps for want of memory" if status == -9 else ""
        return f"ended by signal {-status}{hint}"
    lines = words_path.read_text("utf-8", "replace").strip().splitlines()
    return show_text(lines[-1])[:_LAST_WORDS] if lines else f"ended with status {status}"


# --- what it comes to -----------------------------------------------------------------------------------------------


def judge_ways(rows: Sequence[BenchmarkRow], groups: NDArray[np.str_]) -> str:
    """Say what transfer learning bought, in a sentence or two.

    Parameters
    ----------
    rows : sequence of BenchmarkRow
        All that were measured.
    groups : ndarray of shape (N,)
        Groups of the photos reported on.

    Returns
    -------
    str
        Pomona's own way, or the best known of those with a frozen network, against those that learn from these photos
        alone; what the two cannot be told apart by is said too.
    """
    done = {row.way: row for row in rows if row.status == "done"}
    lead = next((done[name] for name in _TRANSFER if name in done), None)
    others = [done[name] for name in _OTHERS if name in done]
    if lead is None:
        return "Transfer learning was not measured."
    assert lead.accuracy is not None
    first = f"Transfer learning is right on {_count_hundred(lead)} of 100"
    if not others:
        return f"{first}; nothing was measured to compare it with."
    compared = " and ".join(f"{_OTHERS[row.way]} on {_count_hundred(row)}" for row in others)
    compared = compared.replace(" on ", " is right on ", 1)
    times = " and ".join(_write_seconds(row.seconds) for row in others)
    text = f"{first} where {compared}: the same photos, {_write_seconds(lead.seconds)} against {times}."
    best = max(others, key=lambda row: row.accuracy.value if row.accuracy else 0.0)
    assert lead.right is not None
    assert best.right is not None
    found = compare_answers(best.right, lead.right, groups)
    if found.verdict == "worse":
        return f"{text} On these photos it does not pay."
    if found.verdict == "better":
        return text
    return f"{text} On {found.n:,} photos that difference cannot be told from chance."


def _count_hundred(row: BenchmarkRow) -> str:
    assert row.accuracy is not None
    return f"{100 * row.accuracy.value:.0f}"


def _write_seconds(seconds: float) -> str:
    """Write a time for a sentence.

    Examples
    --------
    >>> _write_seconds(3.21), _write_seconds(84.4), _write_seconds(600)
    ('3.2 s', '84 s', '10 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"


def _write_files(result: BenchmarkResult, options: BenchmarkOptions) -> None:
    folder = make_folder(options.output)
    lines: list[Sequence[object]] = [COLUMNS]
    for row in result.rows:
        found = row.accuracy
        shares = (f"{x:.6f}" for x in (found.value, found.low, found.high)) if found else ("", "", "")
        memory = "" if row.memory_mb is None else f"{row.memory_mb:.1f}"
        costs = (f"{row.seconds:.3f}", f"{row.cpu_seconds:.3f}", memory, row.n_cached)
        lines.append((row.way, row.status, *shares, found.n if found else "", *costs, row.detail, row.reason))
    write_atomic(folder / FILES[0], write_csv(lines))
    write_atomic(folder / FILES[1], json.dumps(result.to_dict(), indent=2) + "\n")
    spots = [
        Spot(row.title, row.seconds, found.value, found.low, found.high, row.is_lead)
        for row in result.rows
        if (found := row.accuracy)
    ]
    picture = draw_spots(spots)
    write_atomic(folder / FILES[2], picture)
    page_rows = [
        PageRow(
            title=row.title,
            accuracy=row.accuracy,
            seconds=row.seconds,
            cpu_seconds=row.cpu_seconds,
            memory_mb=row.memory_mb,
            n_cached=row.n_cached,
            detail=row.detail,
            reason=f"{row.status}: {row.reason}" if row.reason else "",
            is_lead=row.is_lead,
        )
        for row in result.rows
    ]
    write_benchmark_page(
        folder / FILES[3],
        page_rows,
        picture if spots else "",
        title=show_text(name_data(options.data)),
        verdict=result.verdict,
        facts=(
            f"{result.n_learnt:,} photos of {result.n_classes:,} classes learnt from; right on what share of "
            f"{result.n_measured:,} {result.measured_on}. Threads: {options.workers or count_cpus()}."
        ),
        notes=result.notes,
        is_cached=options.cached,
    )
