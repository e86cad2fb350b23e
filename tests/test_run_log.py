"""results.csv is whole whenever a run is killed, goes on from a step, and TensorBoard and MLflow read the same."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.errors import DataError, MissingPackageError, OptionError, StorageError
from pomona.run_log import (
    COLUMNS,
    MLFLOW_NAME,
    MLFLOW_STORE_NAME,
    RESULTS_NAME,
    TENSORBOARD_NAME,
    EarlyStopping,
    Row,
    RunLog,
    measure_memory,
    read_results,
)

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = st.one_of(st.none(), st.floats(0, 1e6, width=32))
ROWS = st.lists(
    st.builds(
        Row,
        st.integers(0, 99).map(lambda n: n / 4),
        st.integers(0, 10**9),
        st.floats(0, 1e6),
        st.floats(1e-9, 10),
        *(NUMBERS,) * 6,
    ),
    max_size=4,
)


def make_row(step: int) -> Row:
    return Row(step / 10, step, 1.5 * step, 1e-3, 1 / step, 0.5, 2 / step, 0.25, 49.0, 512.5)


def write_rows(folder: Path, steps: range, **options: Any) -> list[Row]:
    with RunLog(folder, **options) as log:
        for step in steps:
            log.write(make_row(step))
        assert log.notes == []
    return read_results(folder / RESULTS_NAME)


# --- results.csv ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("log")
    with RunLog(folder) as log:
        for row in rows:
            log.write(row)
    found = read_results(folder / RESULTS_NAME)
    assert len(found) == len(rows)
    for one, other in zip(found, rows, strict=True):
        for value, wanted in zip(astuple(one), astuple(other), strict=True):
            assert value == (wanted if wanted is None else pytest.approx(wanted, rel=1e-6))
        assert one.step == other.step


def test_the_file_is_what_people_expect(tmp_path: Path) -> None:
    write_rows(tmp_path / "new" / "run", range(1, 2))
    text = (tmp_path / "new" / "run" / RESULTS_NAME).read_bytes()
    assert text == f"{','.join(COLUMNS)}\n0.1,1,1.5,0.001,1,0.5,2,0.25,49,512.5\n".encode()


def test_a_run_that_goes_on_loses_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "whole", range(1, 9))
    write_rows(tmp_path / "cut", range(1, 7))
    with (tmp_path / "cut" / RESULTS_NAME).open("a") as stream:
        stream.write("0.7,7,10.")  # what a lost power leaves
    assert write_rows(tmp_path / "cut", range(5, 9), resume_step=4) == whole
    same = (tmp_path / "cut" / RESULTS_NAME).read_bytes() == (tmp_path / "whole" / RESULTS_NAME).read_bytes()
    assert same
    assert write_rows(tmp_path / "cut", range(1, 3)) == whole[:2]
    assert write_rows(tmp_path / "fresh", range(1, 3), resume_step=0) == whole[:2]
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [RESULTS_NAME]


@given(st.integers(0, 400))
@settings(max_examples=25, deadline=None)
def test_any_beginning_of_the_file_can_be_read(tmp_path_factory: pytest.TempPathFactory, n_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    whole = write_rows(folder, range(1, 8))
    path = folder / RESULTS_NAME
    data = path.read_bytes()[:n_bytes]
    path.write_bytes(data)
    assert read_results(path) == whole[: max(data.count(b"\n") - 1, 0)]


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    script = f"""
        import pathlib
        from pomona.run_log import Row, RunLog
        log = RunLog(pathlib.Path({str(tmp_path)!r}))
        for step in range(10**6):
            log.write(Row(step / 10, step, step * 1.5, 0.001, 0.123456, 0.5))
            print(step, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = 0
    try:
        while told < 20:
            told = int(process.stdout.readline())
        time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0].split("\n")
    told = max([told, *(int(line) for line in rest[:-1] if line)])
    text = (tmp_path / RESULTS_NAME).read_text()
    assert text.endswith("\n")
    steps = [row.step for row in read_results(tmp_path / RESULTS_NAME)]
    assert steps == list(range(len(steps)))
    assert len(steps) > told  # what was told was on disk


def test_a_file_from_elsewhere_is_read_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_NAME
    path.write_bytes(
        "\ufeffstep,lr,mood,epoch,seconds\r\n3,0.1,good,1,9\r\n4,nan,,1,\r\n".replace(",\r", ",9\r").encode()
    )
    first, second = read_results(path)
    assert first == Row(1, 3, 9, 0.1)
    assert math.isnan(second.lr)
    path.write_text("")
    assert read_results(path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n1,2\n", "wanted the columns epoch, step, seconds, lr, got step, loss"),
        ("epoch,step,seconds,lr\n1,2,3,4\n1,2\n", r"results.csv, line 3: wanted 4 numbers, got '1,2'"),
        ("epoch,step,seconds,lr\n1,two,3,4\n", "line 2: wanted 4 numbers, got '1,two,3,4'; remove the line"),
        ("epoch,step,seconds,lr\n1,,3,4\n", "line 2: wanted 4 numbers"),
    ],
)
def test_a_file_that_is_no_log_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RESULTS_NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        read_results(tmp_path / RESULTS_NAME)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        RunLog(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="could not read"):
        read_results(tmp_path / "missing.csv")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log._stream.close()
    log._stream = open("/dev/full", "ab", buffering=0)  # noqa: PTH123, SIM115
    with pytest.raises(StorageError, match="the disk is full"):
        log.write(make_row(1))
    log.close()


# --- sinks ----------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="TensorBoard's writer is torch's, and torch is not installed")
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    with RunLog(tmp_path, sinks=["tensorboard"]) as log:
        log.write(make_row(1))
        log.write(replace(make_row(2), train_loss=math.nan, val_loss=None))
        log.write(make_row(3))
    time.sleep(1.1)  # event files are told apart, and ordered, by their second
    with RunLog(tmp_path, sinks=["tensorboard"], resume_step=2) as log:
        log.write(replace(make_row(3), lr=0.5))
    events = reader.EventAccumulator(str(tmp_path / TENSORBOARD_NAME))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "lr",
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "photos_per_s",
        "memory_mb",
    }
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(1, 1.0), (3, pytest.approx(1 / 3))]
    rates = [(one.step, one.value) for one in events.Scalars("lr")]
    assert rates == [(1, pytest.approx(1e-3)), (2, pytest.approx(1e-3)), (3, 0.5)]


def run_mlflow(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Skip without mlflow; otherwise note every address that is looked up or called."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    calls: list[Any] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: (calls.append(a), look_up(*a, **k))[1])
    monkeypatch.setattr(socket.socket, "connect", lambda *a: (calls.append(a[1:]), connect(*a))[1])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def test_mlflow_reads_back_what_was_logged_and_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = run_mlflow(monkeypatch)
    folder = tmp_path / "runs" / "fruit"
    write_rows(folder, range(1, 4), sinks=["mlflow"], settings={"lr": 0.1, "note": "x" * 9000})
    run_id = (folder / MLFLOW_NAME).read_text().strip()
    write_rows(folder, range(4, 6), sinks=["mlflow"], resume_step=3)
    assert (folder / MLFLOW_NAME).read_text().strip() == run_id

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "runs" / MLFLOW_STORE_NAME).as_uri())
    run = client.get_run(run_id)
    assert run.info.run_name == "fruit"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "note": "x" * 500}
    history = client.get_metric_history(run_id, "val/loss")
    assert [(one.step, one.value) for one in history] == [(step, pytest.approx(2 / step)) for step in range(1, 6)]
    with pytest.raises(KeyboardInterrupt), RunLog(folder, sinks=["mlflow"], resume_step=5):
        raise KeyboardInterrupt
    assert client.get_run(run_id).info.status == "KILLED"
    write_rows(folder, range(1, 2), sinks=["mlflow"])
    assert (folder / MLFLOW_NAME).read_text().strip() != run_id
    assert calls == []


def test_mlflow_hears_how_a_run_ended_and_each_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_mlflow(monkeypatch)
    from mlflow.tracking import MlflowClient

    folder, client = tmp_path / "fruit.tuning", MlflowClient(tracking_uri=(tmp_path / MLFLOW_STORE_NAME).as_uri())
    with RunLog(folder, sinks=["mlflow"], name="fruit") as log:
        for step in (1, 2, 3):
            log.write(make_row(step))
        log.ending = "KILLED"  # a key was pressed, and handled inside
    run_id = (folder / MLFLOW_NAME).read_text().strip()
    assert (client.get_run(run_id).info.run_name, client.get_run(run_id).info.status) == ("fruit", "KILLED")
    with RunLog(folder, sinks=["mlflow"], resume_step=2) as log:
        for step in (3, 4):  # the third was logged, and no checkpoint knows
            log.write(make_row(step))
    with pytest.raises(ValueError, match="a fault"), RunLog(folder, sinks=["mlflow"], resume_step=4):
        raise ValueError("a fault")
    assert client.get_run(run_id).info.status == "FAILED"
    assert [one.step for one in client.get_metric_history(run_id, "lr")] == [1, 2, 3, 4]


def test_mlflow_is_told_not_to_tell_before_it_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    script = f"""
        import pathlib, socket, sys, threading
        looked_up = []
        def refuse(*args, **_options):
            looked_up.append(args)
            raise OSError("no network here")
        socket.getaddrinfo = refuse
        from pomona.run_log import Row, RunLog
        assert "mlflow" not in sys.modules and "torch" not in sys.modules
        with RunLog(pathlib.Path({str(tmp_path / "run")!r}), sinks=["mlflow"]) as log:
            log.write(Row(1, 1, 1, 1))
        assert log.notes == []
        from mlflow.telemetry import get_telemetry_client
        print(get_telemetry_client(), threading.active_count(), looked_up)
    """
    # mlflow is silent anyway where it finds a test runner or a build service in the environment.
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "SYSTEMROOT") if name in os.environ}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=plain,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "None 1 []\n"), found.stderr


def test_a_server_that_is_away_is_said_at_once_and_later_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_mlflow(monkeypatch)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(StorageError, match=f"could not log to MLflow at {uri}: .*check MLFLOW_TRACKING_URI"):
            RunLog(tmp_path / "run", sinks=["mlflow"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with RunLog(tmp_path / "run", sinks=["mlflow"]) as log:
        log.write(make_row(1))
        (tmp_path / MLFLOW_STORE_NAME).rename(tmp_path / "gone")
        log.write(make_row(2))
        log.write(make_row(3))
    assert len(log.notes) == 1
    assert "logging to mlflow stopped at step 2: " in log.notes[0]
    assert len(read_results(tmp_path / "run" / RESULTS_NAME)) == 3


@pytest.mark.parametrize(
    ("sink", "module", "line"),
    [
        ("tensorboard", "torch.utils.tensorboard", r"pip install 'pomona\[log\]'"),
        ("mlflow", "mlflow.tracking", r"pip install 'pomona\[mlflow\]'"),
    ],
)
def test_a_missing_package_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: Any, module: str, line: str
) -> None:
    for name in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=line):
        RunLog(tmp_path, sinks=[sink])
    with pytest.raises(OptionError, match="log: wanted tensorboard or mlflow, got 'paper'"):
        RunLog(tmp_path, sinks=["paper"])  # type: ignore[list-item]


def test_memory_is_measured() -> None:
    megabytes = measure_memory()
    assert megabytes is None or 10 < megabytes < 1e5


# --- when to stop ---------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 10), max_size=30), st.integers(1, 5), st.floats(0, 1), st.integers(0, 30))
def test_stopping_goes_on_from_json_as_if_never_stopped(
    scores: list[float], patience: int, min_delta: float, cut: int
) -> None:
    whole, first = EarlyStopping(patience, min_delta), EarlyStopping(patience, min_delta)
    for score in scores:
        whole.update(score)
    for score in scores[:cut]:
        first.update(score)
    second = EarlyStopping.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False)))
    for score in scores[cut:]:
        second.update(score)
    assert second == whole


def test_it_stops_after_patience_scores_that_are_no_better() -> None:
    stopping = EarlyStopping(patience=3, min_delta=0.01)
    told = [(stopping.update(score), stopping.is_over) for score in (math.nan, 0.5, 0.505, 0.52, 0.5, math.nan, 0.52)]
    assert told == [
        (False, False),
        (True, False),
        (False, False),
        (True, False),
        (False, False),
        (False, False),
        (False, True),
    ]
    assert stopping.best == 0.52
    for patience, distance in ((0, 0.0), (1, -0.1), (1, math.nan)):
        with pytest.raises(OptionError, match="early stopping: wanted a patience of 1 or more"):
            EarlyStopping(patience, distance)
