"""How long each step takes, how far it is, and what a process that is measured held.

In: steps as they begin and go on. Out: a `Stage` each, and calls to whoever shows progress.
Why: what trains and what teaches tell their steps in the same way, and processes that are measured are measured alike.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """How long one step took.

    Parameters
    ----------
    name : str
        What was done.
    seconds : float
        Wall time.
    n_photos : int or None
        Photos it went through, where that makes a rate.
    """

    name: str
    seconds: float
    n_photos: int | None = None


class Clock:
    """Times the steps, and passes their progress on."""

    def __init__(self, on_progress: Progress | None) -> None:
        self.stages: list[Stage] = []
        self.started_s = time.monotonic()
        self._on_progress = on_progress
        self._step = ""
        self._n_photos: int | None = None

    @contextmanager
    def step(self, name: str, n_photos: int | None = None) -> Iterator[None]:
        """Time what is done inside; `n_photos` make a rate of it."""
        self._step, self._n_photos = name, n_photos
        self.count(0, 0)
        started_s = time.perf_counter()
        yield
        self.stages.append(Stage(name, time.perf_counter() - started_s, self._n_photos))
        self.count(1, 1)

    def set_photos(self, n_photos: int) -> None:
        """Say how many photos the current step went through, where that is known at its end alone."""
        self._n_photos = n_photos

    def count(self, n_done: int, n_total: int) -> None:
        """Pass on how much of the current step is done."""
        if self._on_progress:
            self._on_progress(self._step, n_done, n_total)

    def counter(self, n_total: int) -> Callable[[], None]:
        """What to call after each of `n_total` parts of the current step."""
        n_done = 0

        def advance() -> None:
            nonlocal n_done
            n_done += 1
            self.count(n_done, n_total)

        return advance


def read_peak_mb() -> float | None:
    """Most memory that this process held.

    Linux hands `ru_maxrss` on from the process that started this one, so its own line is read first.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return None


def end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of the pipe closes then."""

    def wait() -> None:
        os.read(0, 1)  # not through `sys.stdin`, whose lock a thread must not hold when Python ends
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
