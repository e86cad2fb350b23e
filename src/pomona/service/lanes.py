"""Threads that take the next photo, whichever request it is of.

In: photos of many requests. Out: for each what was said of it, to the request it belongs to.
Why: photos of all requests wait in one queue, so that every core is busy as soon as there are as many photos as cores,
and a request of fifty does not make the next one wait for all of them: requests take turns. How long a newcomer would
wait is known, and who would wait too long is told so at once instead.

A lane is a thread with its own process to decode and its own request to the network, and one photo at a time goes
through both. Larger batches of the network were measured and gain nothing here (decision 23).
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pomona.errors import ServiceError
from pomona.service.decode_worker import DecodeLimits, DecodeWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pomona.prediction import Prediction

_WATCH_S = 0.1
_REMEMBERED = 0.05  # share that the newest photo has in the mean time of one


@dataclass(frozen=True, eq=False)
class Said:
    """What was said of one photo.

    Parameters
    ----------
    prediction : Prediction
        The answer.
    fault : str or None
        Why the photo could not be used, for machines.
    probabilities : ndarray of shape (C,), float32, or None
        Of the classes.
    explanation : dict or None
        Map, seen and nearest photos, as JSON has them; where it was asked for and can be had.
    """

    prediction: Prediction
    fault: str | None = None
    probabilities: NDArray[np.float32] | None = None
    explanation: dict[str, object] | None = None


class Work(Protocol):
    """What a request wants done with each of its photos."""

    def __call__(self, number: int, lane: Lane) -> Said:
        """Do it with one of them, in a lane."""


class BusyError(Exception):
    """Too many photos wait.

    Parameters
    ----------
    wait_s : float
        After how long there will be room, as far as is known.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"busy for {wait_s:.1f} s")
        self.wait_s = wait_s


class Ticket:
    """Photos of one request, on their way.

    Parameters
    ----------
    n_photos : int
        How many.
    work : callable
        What is done with each.
    on_done : callable
        Called once from some lane, when the last is done or one failed for a reason that is not its own.
    """

    def __init__(self, n_photos: int, work: Work, on_done: Callable[[Ticket], None]) -> None:
        self.said: list[Said | None] = [None] * n_photos
        self.error: Exception | None = None
        self.is_cancelled = False
        self.n_taken = 0
        self.n_done = 0
        self.work = work
        self.on_done = on_done


@dataclass(eq=False)
class Lane:
    """One thread's own things.

    Parameters
    ----------
    number : int
        Which lane it is.
    worker : DecodeWorker
        Its process.
    """

    number: int
    worker: DecodeWorker
    is_busy: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Take the time of a stage of the photo under way."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - started_s


class Lanes:
    """Threads, their processes, and the queue before them.

    Parameters
    ----------
    n_lanes : int
        How many.
    limits : DecodeLimits
        What decoding a photo may take.
    max_wait_s : float
        A request that would wait longer for its turn is refused.
    max_waiting : int
        Most photos that wait, however quick they are.
    on_photo : callable, optional
        Told of each photo done: seconds by stage and what was said.
    """

    def __init__(
        self,
        n_lanes: int,
        limits: DecodeLimits,
        *,
        max_wait_s: float = 1.0,
        max_waiting: int = 1024,
        on_photo: Callable[[dict[str, float], Said], None] | None = None,
    ) -> None:
        self.max_wait_s = max_wait_s
        self.max_waiting = max_waiting
        self.on_photo = on_photo
        self.lanes = [Lane(number, DecodeWorker(limits)) for number in range(n_lanes)]
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._n_waiting = 0
        self._n_expected = 0
        self._photo_s = 0.0
        self._is_closed = threading.Event()
        self._turn = threading.Condition(threading.Lock())
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"pomona-lane-{lane.number}", daemon=True)
            for lane in self.lanes
        ]
        self._watch = threading.Thread(target=self._end_overdue, name="pomona-lane-watch", daemon=True)

    def start_first(self) -> None:
        """Start one process, so that it gets ready while other things do."""
        self.lanes[0].worker.start()

    def start(self) -> None:
        """Start all threads and their processes."""
        for thread in (*self._threads, self._watch):
            thread.start()

    def close(self) -> None:
        """End all of it; what is under way is lost."""
        with self._turn:
            self._is_closed.set()
            self._turn.notify_all()
        for lane in self.lanes:
            lane.worker.close()
        for thread in (*self._threads, self._watch):
            if thread.is_alive():
                thread.join(timeout=5)

    @property
    def n_waiting(self) -> int:
        """Photos that wait for their turn."""
        return self._n_waiting

    @property
    def n_restarts(self) -> int:
        """Processes that were replaced."""
        return sum(lane.worker.n_restarts for lane in self.lanes)

    @property
    def wait_s(self) -> float:
        """How long a newcomer would wait for its turn."""
        return (self._n_waiting + self._n_expected) * self._photo_s / len(self.lanes)

    @contextlib.contextmanager
    def expect(self) -> Iterator[None]:
        """Count a request whose photos are still on their way here.

        Raises
        ------
        BusyError
            If it would wait too long.
        """
        if self.wait_s > self.max_wait_s:
            raise BusyError(self.wait_s)
        self._n_expected += 1
        try:
            yield
        finally:
            self._n_expected -= 1

    def put(self, n_photos: int, work: Work, on_done: Callable[[Ticket], None], *, is_urgent: bool = False) -> Ticket:
        """Put photos of a request into the queue.

        Parameters
        ----------
        n_photos : int
            How many.
        work : callable
            What is done with each.
        on_done : callable
            As `Ticket` takes it.
        is_urgent : bool
            Whether they come first however many wait: what the service does for itself is no request to refuse.

        Raises
        ------
        BusyError
            If there is no room for them.
        ServiceError
            If the lanes are closed.
        """
        ticket = Ticket(n_photos, work, on_done)
        with self._turn:
            if self._is_closed.is_set():
                raise ServiceError("the service is ending")
            wait_s = self._n_waiting * self._photo_s / len(self.lanes)
            is_full = wait_s > self.max_wait_s or (self._n_waiting and self._n_waiting + n_photos > self.max_waiting)
            if is_full and not is_urgent:
                raise BusyError(wait_s)
            if is_urgent:
                self._waiting.appendleft(ticket)
            else:
                self._waiting.append(ticket)
            self._n_waiting += n_photos
            self._turn.notify(n_photos)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget what waits of a request whose client is gone."""
        with self._turn:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._n_waiting -= len(ticket.said) - ticket.n_taken

    def _take(self) -> tuple[Ticket, int] | None:
        """The next photo: requests take turns, and each gives one photo a turn."""
        with self._turn:
            while not self._waiting:
                if self._is_closed.is_set():
                    return None
                self._turn.wait()
            ticket = self._waiting.popleft()
            number = ticket.n_taken
            ticket.n_taken += 1
            self._n_waiting -= 1
            if ticket.n_taken < len(ticket.said):
                self._waiting.append(ticket)
            return ticket, number

    def _run(self, lane: Lane) -> None:
        try:
            with contextlib.suppress(ServiceError):  # too little memory just now: each photo tries again
                lane.worker.start()
            while (taken := self._take()) and not self._is_closed.is_set():
                self._do(lane, *taken)
        finally:
            lane.worker.clear()

    def _do(self, lane: Lane, ticket: Ticket, number: int) -> None:
        started_s = time.perf_counter()
        lane.seconds = {}
        error: Exception | None = None
        said: Said | None = None
        try:
            said = ticket.work(number, lane)
            if self.on_photo:
                self.on_photo(lane.seconds, said)
        # A lane must outlive whatever a photo or a bundle brings about: the request gets a 500, the next one an answer.
        except Exception as found:  # noqa: BLE001
            error = found
        took_s = time.perf_counter() - started_s
        with self._turn:
            self._photo_s += (took_s - self._photo_s) * (_REMEMBERED if self._photo_s else 1.0)
            ticket.said[number] = said
            ticket.error = ticket.error or error
            ticket.n_done += 1
            is_last = ticket.n_done == len(ticket.said)
        if is_last and not ticket.is_cancelled:
            ticket.on_done(ticket)

    def _end_overdue(self) -> None:
        while not self._is_closed.wait(_WATCH_S):
            for lane in self.lanes:
                lane.worker.end_overdue()


def require_all(said: Sequence[Said | None]) -> list[Said]:
    """What was said of every photo of a request that is done."""
    return [one for one in said if one is not None]
