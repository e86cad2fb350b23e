"""A command that is killed leaves the old run or the new one, whole, and the next one leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILL = Path(__file__).parent / "killed_runs.py"
N_POINTS = 6


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the commands share: photos and the run to begin with are made once."""
    return tmp_path_factory.mktemp("killed")


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks with threads, and exchanges folders in one step"
)
@pytest.mark.parametrize("command", ["train", "add-class", "remove-class"])
def test_a_killed_command_does_no_harm(work: Path, tmp_path: Path, command: str) -> None:
    results = tmp_path / "rows.jsonl"
    call = [sys.executable, str(KILL), command, str(work), str(results), "2", str(N_POINTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(call, env=environment, check=True, timeout=600)
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert len(rows) == N_POINTS
    assert [row for row in rows if row["state"] not in {"old", "new"}] == []
    assert [row for row in rows if row["ended"] == "failed"] == []
    assert sum(row["ended"] == "killed" for row in rows) >= N_POINTS / 2, "points after the end try nothing"
    again = [row for row in rows if row.get("next") not in {None, "done before"}]
    assert [
        row for row in again if (row["next"], row["next_state"], row["next_left"]) != ("done", "new", ["run"])
    ] == []
