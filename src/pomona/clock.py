"""How long each step takes, and how far it is.

In: steps as they begin and go on. Out: a `Stage` each, and calls to whoever shows progress.
Why: what trains and what teaches tell their steps in the same way.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
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
