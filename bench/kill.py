"""What stands on the disk after `kill -9` at any point of train, add-class and remove-class.

    python bench/kill.py [--points 100] [--parts 5] [--folder FOLDER] [--commands train,add-class,remove-class]

Points are those of tests/killed_runs.py, where it is said how they are chosen. After each, the run folder must load and
answer as the old run or as the new one. After every third the same command is given again: it must work, and nothing of
the killed one may be left beside the run. Each part is a process of its own, and one whose results are whole is not run
again, so that a stopped bench goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from process import ROOT, write_results

CHILD = ROOT / "tests" / "killed_runs.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pomona-kill")
    parser.add_argument("--commands", default="train,add-class,remove-class")
    options = parser.parse_args()
    found = {}
    for command in options.commands.split(","):
        rows, size = [], -(-options.points // options.parts)
        for first in range(0, options.points, size):
            rows += run_part(options.folder / command, command, first, min(size, options.points - first))
            print(f"{command}: {sum_up(rows)}", flush=True)
        found[command] = sum_up(rows) | {"rows": rows}
    write_results("kill", found)


def run_part(folder: Path, command: str, first: int, count: int) -> list[dict]:
    """Rows of a range of points."""
    folder.mkdir(parents=True, exist_ok=True)
    done, place = folder / f"{first}-{count}.json", folder / "rows.jsonl"
    if not done.exists():
        place.unlink(missing_ok=True)
        arguments = [command, str(folder / "work"), str(place), str(first), str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, str(CHILD), *arguments], env=environment, check=True)
        done.write_text(json.dumps([json.loads(line) for line in place.read_text().splitlines()]))
    rows: list[dict] = json.loads(done.read_text())
    return rows


def sum_up(rows: list[dict]) -> dict:
    """Counts, and what was neither the old run nor the new one, or left something behind."""
    return {
        "n": len(rows),
        "n_killed": sum(row["ended"] == "killed" for row in rows),
        "states": dict(Counter(f"{row['kind']}: {row['state']}" for row in rows)),
        "n_left_something": sum(len(row["left"]) > 1 for row in rows),
        "n_next": sum(row.get("next") == "done" for row in rows),
        "wrong": [row for row in rows if not is_sound(row)],
    }


def is_sound(row: dict) -> bool:
    """Whether a point did no harm."""
    if row["state"] not in {"old", "new"} or row["ended"] == "failed":
        return False
    if row.get("next") != "done":
        return row.get("next") in {None, "done before"}
    return row["next_state"] == "new" and row["next_left"] == ["run"]


if __name__ == "__main__":
    main()
