"""Commands that are killed at some point of their life, and what stands on the disk after it.

In: a command, a folder to work in, a range of points. Out: a line of JSON a point.
Why: a power cut or `kill -9` asks nobody. Where a run folder stood, there must stand the old one or the new one, whole,
and the next command must work and leave nothing of the killed one behind.

    python tests/killed_runs.py train|add-class|remove-class FOLDER RESULTS.jsonl FIRST COUNT

Commands run in forks of this process, which has loaded all that they need and nothing that starts threads. A quarter of
the points each: anywhere in the command's life (two quarters), anywhere while the new folder is built beside the old
one, and around the exchange: as the new manifest appears, and as the new folder takes the old one's place.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pomona.bundle
import pomona.learnt
import pomona.teaching
import pomona.training
from pomona.bundle import load_bundle
from pomona.effort import Machine
from pomona.errors import PomonaError
from pomona.files import MANIFEST_NAME
from pomona.samples import KINDS, SampleOptions, write_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FORGOTTEN = "Orange"
MACHINE = Machine(2.0, 1.0, 1.0)
"""What every command takes this machine for: if it were measured, a busy moment would choose another precision."""

TOLERANCE = 1e-5
PATIENCE_S = 120


def run_fork(work: Callable[[], Any]) -> Any:
    """What a fork of this process comes to, as JSON; None where it died."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        try:
            content = json.dumps(work()).encode()
        except PomonaError as error:
            content = json.dumps(f"{type(error).__name__}: {error}").encode()
        with os.fdopen(write, "wb") as stream:
            stream.write(content)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        content = stream.read()
    os.waitpid(pid, 0)
    return json.loads(content) if content else None


class Kills:
    """One command, killed again and again."""

    def __init__(self, command: str, folder: Path) -> None:
        pomona.training.measure_machine = lambda _n_workers: MACHINE
        self.command, self.folder, self.place = command, folder, folder / "point" / "run"
        os.environ["POMONA_CACHE"] = str(folder / "cache")
        self.life_s = self.build_s = 0.0

    def work(self) -> None:
        """The command itself."""
        if self.command == "train":
            options = {"effort": "instant", "imgsz": 64, "check": "none", "seed": 1, "workers": 1}
            pomona.training.train(
                pomona.training.TrainOptions(data=self.folder / "fruit", output=self.place, **options)
            )
        elif self.command == "add-class":
            pomona.teaching.add_class(self.place, "Kiwi", self.folder / "kiwi", n_workers=1)
        else:
            pomona.teaching.remove_class(self.place, FORGOTTEN)

    def answer(self) -> list[list[float]]:
        """Probabilities of a few photos, by a bundle that is checked."""
        bundle = load_bundle(self.place, n_workers=1)
        photos = sorted((self.folder / "fruit").rglob("*.jpg"))[::5]
        return [[float(share) for share in row] for row in bundle.predict_proba(photos)[0]]

    def prepare(self) -> None:
        """Photos, a run to begin with, what it answers, what the command makes of it, and how long that takes."""
        if not (self.folder / "old").is_dir():
            for kinds, name in ((KINDS[2:5], "fruit"), (KINDS[7:8], "kiwi")):
                options = SampleOptions(n_per_kind=8, kinds=kinds, size_px=72, n_workers=1)
                write_samples(self.folder / name, options)
            first = pomona.training.TrainOptions(
                data=self.folder / "fruit", output=self.folder / "old", effort="instant", imgsz=64, workers=1
            )
            run_fork(lambda: str(pomona.training.train(first).bundle.folder))
        self.reset()
        self.old = run_fork(self.answer)
        run_fork(self.work)  # fills the cache with what it needs, so that its life is as long as that of the others
        self.reset()
        self.kill(lambda _: False)
        self.new = run_fork(self.answer)
        if not isinstance(self.old, list) or not isinstance(self.new, list) or is_same(self.old, self.new):
            raise SystemExit(f"wanted two runs that answer differently, got {self.old} and {self.new}")

    def reset(self) -> None:
        """Put the old run in place, alone."""
        shutil.rmtree(self.place.parent, ignore_errors=True)
        self.place.parent.mkdir()
        shutil.copytree(self.folder / "old", self.place)

    def find_staging(self) -> Path | None:
        """The folder that the command builds beside the old one."""
        return next((Path(one.path) for one in os.scandir(self.place.parent) if one.name.endswith(".partial")), None)

    def kill(self, is_time: Callable[[Kills], bool]) -> str:
        """Start the command, and kill it as soon as it is time; how it ended."""
        started_s = time.perf_counter()
        self.staged_s: float | None = None
        self.inode = self.place.stat().st_ino
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                self.work()
            except BaseException:  # noqa: BLE001 - a fork must never go on where its parent does
                os._exit(1)
            os._exit(0)
        while True:
            self.now_s = time.perf_counter() - started_s
            if self.staged_s is None and self.find_staging():
                self.staged_s = self.now_s
            if is_time(self) or self.now_s > PATIENCE_S:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.0002)
        if not os.WIFSIGNALED(status):
            self.life_s, self.build_s = self.now_s, self.now_s - (self.staged_s or self.now_s)
            return "ended" if status == 0 else "failed"
        return "killed"

    def try_point(self, number: int) -> dict[str, Any]:
        """Kill at one point, and look at what is left."""
        draw = random.Random(f"{self.command} {number}")
        kind = ("life", "build", "life", ("manifest", "exchange")[number // 4 % 2])[number % 4]
        delay_s = (
            draw.random() * {"life": self.life_s, "build": self.build_s, "manifest": 0.05, "exchange": 0.003}[kind]
        )
        self.reset()
        reached_s: list[float] = []

        def is_time(kills: Kills) -> bool:
            if kind == "life":
                return kills.now_s >= delay_s
            if kind == "build":
                return kills.staged_s is not None and kills.now_s - kills.staged_s >= delay_s
            if not reached_s:
                staging = kills.find_staging()
                is_there = kind == "manifest" and staging is not None and (staging / MANIFEST_NAME).exists()
                if is_there or kills.place.stat().st_ino != kills.inode:
                    reached_s.append(kills.now_s)
            return bool(reached_s) and kills.now_s - reached_s[0] >= delay_s

        ended = self.kill(is_time)
        at_s, left = self.now_s, sorted(one.name for one in self.place.parent.iterdir())
        found = run_fork(self.answer)
        state = name_state(found, self.old, self.new)
        row = {"number": number, "kind": kind, "ended": ended, "at_s": round(at_s, 4), "state": state, "left": left}
        if number % 3 == 0 or state not in {"old", "new"}:
            row |= self.go_on(state)
        return row

    def go_on(self, state: str) -> dict[str, Any]:
        """Give the same command again, as a user would; where it was done already, the whole of it anew."""
        if state == "new" and self.command != "train":
            return {"next": "done before"}
        said = run_fork(lambda: self.work() or "done")
        left = sorted(one.name for one in self.place.parent.iterdir())
        return {"next": said, "next_state": name_state(run_fork(self.answer), self.old, self.new), "next_left": left}


def is_same(one: Any, other: Any) -> bool:
    a, b = np.array(one), np.array(other)
    return a.shape == b.shape and bool(np.abs(a - b).max() <= TOLERANCE)


def name_state(found: Any, old: NDArray[Any] | Any, new: Any) -> str:
    """Which of two runs answers like that."""
    if not isinstance(found, list):
        return f"broken: {found}"
    return "old" if is_same(found, old) else "new" if is_same(found, new) else "other"


def main() -> None:
    command, folder, place, first, count = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
    folder.mkdir(parents=True, exist_ok=True)
    kills = Kills(command, folder)
    kills.prepare()
    with place.open("a", buffering=1) as results:
        for number in range(first, first + count):
            results.write(json.dumps(kills.try_point(number)) + "\n")


if __name__ == "__main__":
    main()
