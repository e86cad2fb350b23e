"""Whether `kill -9` in the midst of teaching leaves one bundle whole and an inbox that heals.

    python bench/teach_kill.py [--points 100] [--seed 0]

Trains on rendered photos, measures how long it takes to send four photos, to propose, to confirm and to go back, and
then does it again and again, killed after a random share of that time. After each kill the bundle on disk must be the
old one or the new one with every hash right, every version whole, SQLite's own check must pass, every photo that was
acknowledged must be there with its file, and the inbox must agree with the bundle once the two are held together.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from process import ROOT, write_results

LABEL = "Berry/Grapes"
TEACH = """
import sys
from pathlib import Path
from pomona.bundle import load_bundle
from pomona.inbox import open_inbox
from pomona.learnt import load_learnt
from pomona.proposal import confirm_proposal, make_proposal, settle_inbox
from pomona.versions import keep_version, list_versions, restore_version

run, label, photos = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
first = load_bundle(run)
first.engine
print("ready", flush=True)
sys.stdin.readline()
with open_inbox(run) as inbox:
    for photo in photos:
        print("has", inbox.add(Path(photo).read_bytes(), label).sha256, flush=True)
    number = keep_version(run).number
    print("stage propose", flush=True)
    proposal = make_proposal(first, load_learnt(first), inbox.list_photos("waiting"), None)
    print("stage confirm", flush=True)
    confirm_proposal(first, proposal, inbox)
    print("stage restore", flush=True)
    bundle = restore_version(run, number)
    settle_inbox(inbox, bundle, load_learnt(bundle), number)
print("stage done", flush=True)
"""


def teach(run: Path, photos: list[Path], kill_after_s: float | None) -> tuple[list[str], float]:
    """Teach in a process of its own, killed after some time; what it said, and how long it took."""
    command = [sys.executable, "-c", TEACH, str(run), LABEL, *map(str, photos)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline() != "ready\n":
        sys.exit("the process that teaches did not begin")
    started_s = time.perf_counter()
    process.stdin.write("go\n")
    process.stdin.flush()
    if kill_after_s is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # done before, where the machine has less to do by now
            process.wait(timeout=kill_after_s)
        process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    return output.splitlines(), time.perf_counter() - started_s


def check(run: Path, first: frozenset[str], photos: set[str], said: list[str]) -> tuple[str, list[str]]:
    """Which bundle stands there, and everything that is wrong."""
    from pomona.bundle import load_bundle
    from pomona.errors import PomonaError
    from pomona.inbox import find_inbox_folder, open_inbox
    from pomona.learnt import load_learnt
    from pomona.proposal import settle_inbox
    from pomona.versions import keep_version, list_versions

    wrong = []
    try:
        bundle = load_bundle(run)
        for version in list_versions(run):
            load_bundle(version.folder)
        learnt = load_learnt(bundle)
    except PomonaError as error:
        return "none", [str(error)]
    added = bundle.learnt_from - first
    state = "old" if not added else "new" if added == photos else "neither"
    if state == "neither":
        wrong.append(f"learnt {len(added)} of {len(photos)} photos")
    if (find_inbox_folder(run) / "inbox.sqlite").exists():
        with sqlite3.connect(find_inbox_folder(run) / "inbox.sqlite") as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()
        connection.close()
        wrong += [f"sqlite: {found}"] if found != ("ok",) else []
    with open_inbox(find_inbox_folder(run)) as inbox:
        acknowledged = {line.split()[1] for line in said if line.startswith("has ")}
        missing = acknowledged - {one.sha256 for one in inbox.list_photos()}
        wrong += [f"{len(missing)} photos lost"] if missing else []
        wrong += [f"{one.sha256} has no file" for one in inbox.list_lost()]
        settle_inbox(inbox, bundle, learnt, keep_version(run).number)
        wrong += [
            f"{one.sha256} is {one.state}"
            for one in inbox.list_photos()
            if (one.state == "taught") != (one.sha256 in bundle.learnt_from)
        ]
    return state, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    from pomona.bundle import load_bundle
    from pomona.files import hash_file
    from pomona.samples import KINDS, SampleOptions, write_samples
    from pomona.training import TrainOptions, train

    generator = random.Random(options.seed)  # noqa: S311 - points in time, nothing secret
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["POMONA_CACHE"] = str(work / "cache")
        write_samples(work / "fruit", SampleOptions(n_per_kind=8, kinds=KINDS[2:5], size_px=72, n_workers=1))
        write_samples(work / "new", SampleOptions(n_per_kind=4, kinds=KINDS[8:9], size_px=72, n_workers=1))
        train(TrainOptions(data=work / "fruit", output=work / "first", effort="instant", imgsz=64))
        photos = sorted((work / "new").rglob("*.jpg"))
        hashes, first = {hash_file(photo) for photo in photos}, load_bundle(work / "first").learnt_from

        def copy_run() -> Path:
            for path in work.glob("run*"):
                shutil.rmtree(path)
            return Path(shutil.copytree(work / "first", work / "run"))

        whole_s = sorted(teach(copy_run(), photos, None)[1] for _ in range(3))[1]
        states: Counter[str] = Counter()
        stages: Counter[str] = Counter()
        wrong = []
        for number in range(options.points):
            said, _ = teach(copy_run(), photos, generator.random() * whole_s)
            state, found = check(work / "run", first, hashes, said)
            states[state] += 1
            stages[next((line[6:] for line in reversed(said) if line.startswith("stage ")), "add")] += 1
            wrong += [f"point {number}: {one}" for one in found]
    print(f"{options.points} kills within {whole_s:.2f} s: {dict(states)}; while it was to {dict(stages)}")
    print("\n".join(wrong) or "nothing was wrong")
    write_results(
        "teach-kill",
        {"options": vars(options), "whole_s": whole_s, "states": states, "stages": stages, "wrong": wrong},
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
