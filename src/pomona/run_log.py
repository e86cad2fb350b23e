"""The log of a run: a line in results.csv for each validation, and the same for TensorBoard or MLflow.

In: a `Row` of numbers at a time. Out: results.csv, whole up to its last line whatever happens; events; when to stop.
Why: a run may be killed at any point and goes on from its checkpoint. Each line is on disk before the next step, and
what was logged after the checkpoint is cut off, so the file reads as if the run had never stopped. Nothing is sent
anywhere unless MLFLOW_TRACKING_URI names a server.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import sys
import time
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pomona.errors import DataError, MissingPackageError, OptionError, StorageError
from pomona.files import make_folder, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

SinkName = Literal["tensorboard", "mlflow"]
"""Where a run is logged besides results.csv."""

RESULTS_NAME = "results.csv"
TENSORBOARD_NAME = "tensorboard"
MLFLOW_NAME = "mlflow_run.txt"
"""Holds the number of the run in MLflow, so that a run that goes on logs into the same."""

Ending = Literal["FINISHED", "KILLED", "FAILED"]
"""How a run ended, in the words of MLflow: by itself, by a key, by a fault."""

MLFLOW_STORE_NAME = "mlruns"
"""Folder beside the run folder, so that runs side by side are compared."""

_EXPERIMENT = "pomona"
_LONGEST_PARAM = 500


class Meter:
    """What is counted from one line of the log to the next.

    Parameters
    ----------
    seconds : float
        Of the run, up to here.
    step : int
        Steps done.
    """

    def __init__(self, seconds: float, step: int) -> None:
        self.seconds, self.step = seconds, step
        self.n, self.loss_sum, self.n_right = 0, 0.0, 0.0
        self._began_s = time.monotonic()

    def add(self, loss: float, n_right: float, n: int) -> None:
        """Count `n` photos with their mean loss and how many were right."""
        self.n, self.loss_sum, self.n_right = self.n + n, self.loss_sum + loss * n, self.n_right + n_right

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Mean loss and accuracy 0-1; None of no photo."""
        return (self.loss_sum / self.n, self.n_right / self.n) if self.n else (None, None)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began_s


@dataclass(frozen=True)
class Row:
    """One line of results.csv; what was not measured is None, an empty cell.

    Parameters
    ----------
    epoch : float
        Epochs done; a validation between epochs has a fraction.
    step : int
        Optimizer steps done.
    seconds : float
        Since the run began, pauses left out.
    lr : float
        Learning rate of the last step.
    train_loss, train_accuracy : float, optional
        Means over the photos since the line before; accuracy 0-1.
    val_loss, val_accuracy : float, optional
        Of photos held out.
    photos_per_s : float, optional
        Photos trained on a second.
    memory_mb : float, optional
        Largest resident memory so far, in 10^6 bytes.
    """

    epoch: float
    step: int
    seconds: float
    lr: float
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    photos_per_s: float | None = None
    memory_mb: float | None = None


COLUMNS = tuple(field.name for field in fields(Row))
"""Header of results.csv."""

_NEEDED = ("epoch", "step", "seconds", "lr")
_SCALARS = {
    "lr": "lr",
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "val/loss": "val_loss",
    "val/accuracy": "val_accuracy",
    "photos_per_s": "photos_per_s",
    "memory_mb": "memory_mb",
}


class RunLog:
    """The log of one run; a context manager that closes it.

    Parameters
    ----------
    folder : Path
        Run folder; made where it is missing.
    sinks : sequence of SinkName
        Where to log besides results.csv.
    name : str, optional
        Of the run, shown by MLflow; that of the folder where not given.
    settings : mapping of str to object, optional
        Resolved options, shown by MLflow beside the run.
    resume_step : int, optional
        Step of the checkpoint that the run goes on from: lines after it are cut off. None begins a new file.

    Raises
    ------
    MissingPackageError
        If the package of a sink is not installed.
    StorageError
        If the folder or the file cannot be written.
    DataError
        If a file to go on with is damaged before its last line.

    Attributes
    ----------
    notes : list of str
        What went wrong with a sink since; results.csv goes on without it.
    ending : Ending
        What is told of the run where the block is left without an error; whoever handles one inside sets it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sinks: Sequence[SinkName] = (),
        name: str = "",
        settings: Mapping[str, object] | None = None,
        resume_step: int | None = None,
    ) -> None:
        self.ending: Ending = "FINISHED"
        self.path = make_folder(folder) / RESULTS_NAME
        begin_results(self.path, resume_step)
        with contextlib.ExitStack() as opened:
            self._sinks: list[_Sink] = []
            self.notes: list[str] = []
            for sink in dict.fromkeys(sinks):
                self._sinks.append(_open_sink(sink, folder, name or folder.name, settings or {}, resume_step))
                opened.callback(self._sinks[-1].close, "FAILED")
            with storage_errors(f"write {self.path}"):
                self._stream = self.path.open("ab", buffering=0)
            opened.pop_all()

    def write(self, row: Row) -> None:
        """Add a line; it is on disk when this returns.

        Raises
        ------
        StorageError
            If it cannot be written, by a full disk for one.
        """
        line = _write_line([_write_cell(value) for value in astuple(row)]).encode()
        with storage_errors(f"write {self.path}"):
            # One call, so that a process killed in between leaves the whole line or nothing.
            self._stream.write(line)
            os.fsync(self._stream.fileno())
        for sink in list(self._sinks):
            try:
                sink.write(row)
            except sink.faults as error:  # a server that went away is no reason to lose a run
                self._sinks.remove(sink)
                self.notes.append(f"logging to {sink.name} stopped at step {row.step:,}: {str(error)[:200]}")

    def close(self) -> None:
        """Close the file and the sinks, and tell them the `ending`."""
        self._stream.close()
        for sink in self._sinks:
            with contextlib.suppress(*sink.faults):  # all lines were taken; only the word that it ended is lost
                sink.close(self.ending)
        self._sinks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.ending = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self.close()


# --- results.csv ----------------------------------------------------------------------------------------------------


def begin_results(path: Path, resume_step: int | None) -> None:
    """Begin results.csv, or cut off all lines after a step; in one move, so that a crash leaves the old or the new."""
    kept = [] if resume_step is None or not path.exists() else read_results(path)
    rows = [row for row in kept if row.step <= (resume_step or 0)]
    lines = [list(COLUMNS), *([_write_cell(value) for value in astuple(row)] for row in rows)]
    write_atomic(path, "".join(_write_line(line) for line in lines))


def read_results(path: Path) -> list[Row]:
    """Read results.csv, also of a run that was killed.

    A last line without its end is left out. Columns that are not known are passed over, and missing ones are None.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    list of Row
        In the order of the file.

    Raises
    ------
    StorageError
        If the file cannot be read.
    DataError
        If a line is no line of results.
    """
    with storage_errors(f"read {path}"):
        text = path.read_bytes().decode("utf-8-sig", "replace")
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole, newline="")))
    if lines and not set(_NEEDED) <= set(lines[0]):
        raise DataError(f"{path}: wanted the columns {', '.join(_NEEDED)}, got {', '.join(lines[0])[:80]}")
    return [_read_line(path, number, lines[0], line) for number, line in enumerate(lines[1:], 2)]


def _read_line(path: Path, number: int, header: Sequence[str], line: Sequence[str]) -> Row:
    try:
        cells = {name: float(cell) for name, cell in zip(header, line, strict=True) if cell and name in COLUMNS}
        return Row(**(cells | {"step": int(cells["step"])}))  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}, line {number}: wanted {len(header)} numbers, got {','.join(line)[:80]!r}; remove the line"
        ) from error


def _write_line(cells: Sequence[str]) -> str:
    return ",".join(cells) + "\n"


def _write_cell(value: float | None) -> str:
    """Seven digits tell all that was measured, and a whole number stays one."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def measure_memory() -> float | None:
    """Largest resident memory of this process so far, in 10^6 bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# --- sinks ----------------------------------------------------------------------------------------------------------


class _Sink(Protocol):
    name: SinkName
    faults: tuple[type[Exception], ...]

    def write(self, row: Row) -> None: ...

    def close(self, ending: Ending) -> None: ...


def _open_sink(
    sink: SinkName, folder: Path, name: str, settings: Mapping[str, object], resume_step: int | None
) -> _Sink:
    if sink == "tensorboard":
        return _Tensorboard(folder / TENSORBOARD_NAME, resume_step)
    if sink == "mlflow":
        return _Mlflow(folder, name, settings, resume_step)
    raise OptionError(f"log: wanted tensorboard or mlflow, got {sink!r}")


def _list_scalars(row: Row) -> dict[str, float]:
    """What is finite among a row: neither sink draws NaN, and MLflow's stores refuse it."""
    found = {tag: getattr(row, name) for tag, name in _SCALARS.items()}
    return {tag: float(value) for tag, value in found.items() if value is not None and math.isfinite(value)}


class _Tensorboard:
    name: SinkName = "tensorboard"
    faults: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError("tensorboard", "log", "to log for TensorBoard") from error
        with storage_errors(f"write {folder}"):
            # TensorBoard hides what an earlier process wrote from this step on.
            purge_step = None if resume_step is None else resume_step + 1
            self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, row: Row) -> None:
        for tag, value in _list_scalars(row).items():
            self._writer.add_scalar(tag, value, row.step)
        self._writer.flush()

    def close(self, ending: Ending) -> None:  # noqa: ARG002 - an event file has no end
        self._writer.close()


class _Mlflow:
    name: SinkName = "mlflow"
    faults: tuple[type[Exception], ...]

    def __init__(self, folder: Path, name: str, settings: Mapping[str, object], resume_step: int | None) -> None:
        # Read when mlflow is imported: without them it tells its makers how it is used.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingPackageError("mlflow-skinny", "mlflow", "to log for MLflow") from error
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # A database would need SQLAlchemy; files need nothing, and mlflow asks for this word since version 3.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder.resolve().parent / MLFLOW_STORE_NAME).as_uri()
        # Otherwise a server that is away holds training up for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Besides its own errors, its file store raises bare ones, and none of them is worth a run.
        self.faults = (Exception,)
        self._metric = Metric
        try:
            self._client = MlflowClient(tracking_uri=uri)
            known = self._find_run(folder / MLFLOW_NAME, resume_step)
            self._run_id = known or self._begin_run(folder / MLFLOW_NAME, name, settings)
            self._logged = {tag: self._find_last(tag) for tag in _SCALARS} if known else {}
        except self.faults as error:
            raise StorageError(
                f"could not log to MLflow at {uri}: {str(error)[:200]}; check MLFLOW_TRACKING_URI"
            ) from error

    def _find_run(self, path: Path, resume_step: int | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if resume_step is None or not path.is_file():
            return None
        run_id = path.read_text(encoding="utf-8").strip()
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException:  # another store, or deleted there
            return None
        return run_id

    def _find_last(self, tag: str) -> int:
        """Last step that is logged: a run that was killed may have logged more than its checkpoint knows."""
        return max((one.step for one in self._client.get_metric_history(self._run_id, tag)), default=-1)

    def _begin_run(self, path: Path, name: str, settings: Mapping[str, object]) -> str:
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = known.experiment_id if known else self._client.create_experiment(_EXPERIMENT)
        run_id = str(self._client.create_run(experiment, run_name=name).info.run_id)
        params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in settings.items()]
        for first in range(0, len(params), 100):  # the most that a store takes at once
            self._client.log_batch(run_id, params=params[first : first + 100])
        write_atomic(path, f"{run_id}\n")
        return run_id

    def write(self, row: Row) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [
            self._metric(tag, value, now_ms, row.step)
            for tag, value in _list_scalars(row).items()
            if row.step > self._logged.get(tag, -1)
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, ending: Ending) -> None:
        self._client.set_terminated(self._run_id, ending)


# --- when to stop ---------------------------------------------------------------------------------------------------


@dataclass
class EarlyStopping:
    """Says when waiting for a better score has lasted long enough.

    Parameters
    ----------
    patience : int
        Scores in a row that may be no better, 1 or more.
    min_delta : float
        By how much a score has to be larger to be better, 0 or more.
    best : float
        Largest score so far.
    n_waited : int
        Scores since then.

    Raises
    ------
    OptionError
        If patience or distance cannot be used.

    Examples
    --------
    >>> stopping = EarlyStopping(patience=2)
    >>> [stopping.update(score) for score in (0.5, 0.7, 0.6, 0.7)], stopping.is_over
    ([True, True, False, False], True)
    """

    patience: int
    min_delta: float = 0.0
    best: float = -math.inf
    n_waited: int = 0

    def __post_init__(self) -> None:
        if self.patience < 1 or not 0 <= self.min_delta < math.inf:
            raise OptionError(
                "early stopping: wanted a patience of 1 or more and a distance of 0 or more,"
                f" got {self.patience} and {self.min_delta:g}"
            )

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return self.n_waited >= self.patience

    def update(self, score: float) -> bool:
        """Take a score in, larger is better; whether it is the best so far. NaN never is."""
        better = score > self.best + self.min_delta
        self.best = score if better else self.best
        self.n_waited = 0 if better else self.n_waited + 1
        return better

    def to_dict(self) -> dict[str, float | None]:
        """What a checkpoint keeps, fit for JSON."""
        best = self.best if math.isfinite(self.best) else None
        return {"patience": self.patience, "min_delta": self.min_delta, "best": best, "n_waited": self.n_waited}

    @classmethod
    def from_dict(cls, state: Mapping[str, float | None]) -> EarlyStopping:
        """Go on from a `to_dict`."""
        best = state["best"]
        numbers = {name: value or 0 for name, value in state.items()}
        return cls(
            int(numbers["patience"]),
            float(numbers["min_delta"]),
            -math.inf if best is None else float(best),
            int(numbers["n_waited"]),
        )
