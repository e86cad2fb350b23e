"""Commands measured as whole processes, the machine they ran on, and where results are kept."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
POMONA = [sys.executable, "-m", "pomona"]


def measure(command: list[str], environment: dict[str, str]) -> dict:
    """Run a command as a whole process: wall seconds, peak memory in MB, its JSON if it printed one."""
    started_s = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    if status:
        sys.exit(f"{' '.join(command)} ended with status {status}")
    result = json.loads(output) if output[:1] == b"{" else None
    return {"wall_s": wall_s, "peak_mb": usage.ru_maxrss / 1000, "result": result}


def describe_machine() -> str:
    """Cores, versions and commit, in one line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    installed = [name for name in ("openvino", "numpy", "torch") if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in installed)
    system = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return f"{system}; {versions}; commit {commit.stdout.strip() or 'none'}"


def write_results(claim: str, content: dict) -> None:
    """Keep what was measured as dated JSON in bench/results."""
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    content = {"when": now.isoformat(), "machine": describe_machine(), **content}
    (folder / f"{now:%Y%m%d-%H%M%S}-{claim}.json").write_text(json.dumps(content, indent=2))


def tabulate(rows: Sequence[tuple[str, str, str]]) -> str:
    """Figures as a table in Markdown."""
    return "\n".join(["| Figure | Goal | Measured |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


def read_newest(claim: str) -> dict:
    """What was measured last of a claim."""
    found = sorted((ROOT / "bench" / "results").glob(f"*-{claim}.json"))
    if not found:
        sys.exit(f"--readme: wanted a result of {claim}, got none: measure it")
    return json.loads(found[-1].read_text("utf-8"))


def write_readme_table(mark: str, text: str) -> None:
    """Put a table in its place, between two marks, in both READMEs."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    for name in ("README.md", "README.zh.md"):
        path = ROOT / name
        content = path.read_text("utf-8")
        if begin not in content or end not in content:
            sys.exit(f"--readme: wanted {begin} and {end} in {name}, where the table is to go")
        head, rest = content.split(begin)
        path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", "utf-8")
