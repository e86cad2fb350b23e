"""Connections of clients that take their time.

In: bytes of a connection. Out: requests, or its end.
Why: uvicorn waits for ever for the head of a request, so that a few thousand silent connections would use up a
service's files. Its own parser is kept; this adds the limits that it lacks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pomona.service.faults import RequestError

if TYPE_CHECKING:
    from asyncio import TimerHandle

MAX_HEADER_BYTES = 32_768
_STALLS = 5
MAX_CONNECTIONS = 800  # a process may have 1,024 files open on many systems


class PatientProtocol(HttpToolsProtocol):
    """A connection whose requests must begin in time.

    Parameters
    ----------
    patience_s : float
        How long the head of a request may take, and how long a client may read nothing of what waits for it.
    """

    def __init__(self, *args: Any, patience_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience_s = patience_s
        self._timer: TimerHandle | None = None
        self._n_data = self._n_head = 0
        self._is_in_head = True
        self._reader_timer: TimerHandle | None = None
        self._n_unread = self._n_stalls = 0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request, unless there are too many already."""
        super().connection_made(transport)
        self._watch_reader()
        if len(self.connections) > MAX_CONNECTIONS:
            self._end(RequestError("busy", "too many connections: try again in a moment", wait_s=1))
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the head of a request may be so long and no longer."""
        self._n_data = len(data)
        if self._is_in_head:
            self._n_head += len(data)
        super().data_received(data)
        if self._is_in_head and self._n_head > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._end(RequestError("cannot_be_read", "the head of the request is too long"))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_in_head, self._n_head = True, self._n_data
        self._wait()

    def on_headers_complete(self) -> None:
        """Its head is here; how long its body may take is for the endpoint to say."""
        self._is_in_head = False
        self._stop()
        super().on_headers_complete()

    def _watch_reader(self) -> None:
        """Cut a client off that reads nothing of its reply: closing in order would wait for it for ever."""
        n_unread = self.transport.get_write_buffer_size()
        self._n_stalls = self._n_stalls + 1 if n_unread and n_unread == self._n_unread else 0
        self._n_unread = n_unread
        if self._n_stalls >= _STALLS:
            self.transport.abort()
            return
        self._reader_timer = asyncio.get_running_loop().call_later(self.patience_s / _STALLS, self._watch_reader)

    def _wait(self) -> None:
        self._stop()
        self._timer = asyncio.get_running_loop().call_later(self.patience_s, self._give_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._end(RequestError("too_slow", f"wanted the head of a request within {self.patience_s:g} s"))

    def _end(self, error: RequestError) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        content = error.to_json("/")
        lines = [b"HTTP/1.1 %d " % error.status, b"connection: close", b"content-length: %d" % len(content)]
        lines += [name + b": " + value for name, value in error.headers()]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + content)
        self.transport.close()
