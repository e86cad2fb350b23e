"""What stands before every endpoint: hosts, headers, patience, one line a request.

In: a connection. Out: the reply of an endpoint with the headers that keep a browser safe, or a refusal.
Why: what holds for every request is in one place, so that no endpoint can forget it. The lines name the route, never
the path, file name, header or content that a client chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from pomona.service.faults import RequestError, say_busy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from pomona.service.lanes import Lanes
    from pomona.service.measures import Measures
    from pomona.service.options import ServeOptions

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_LINGER_S = 2.0
_LINGER_BYTES = 1_000_000_000
_SEND_S = 30.0
_HELD_BYTES = 512_000_000
_HUNG_UP = 499  # as nginx counts clients that did not wait


class Guard:
    """Stands before an application.

    Parameters
    ----------
    app : callable
        The application, as ASGI has it.
    options : ServeOptions
        Names and limits.
    measures : Measures
        Where requests are counted.
    lanes : Lanes
        Whose queue must have room for a request with photos.
    show_traceback : bool
        Whether a fault of Pomona's own is written to stderr in full.
    """

    def __init__(
        self, app: App, options: ServeOptions, measures: Measures, lanes: Lanes, *, show_traceback: bool = False
    ) -> None:
        self.app = app
        self.lanes = lanes
        self.options = options
        self.measures = measures
        self.show_traceback = show_traceback
        self.n_held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), 0
        method = scope["method"] if scope["method"] in _METHODS else "-"
        if method == "HEAD":  # the server leaves the body away; the framework knows no HEAD, and health checks ask so
            scope = {**scope, "method": "GET"}
        body = _Body(self, receive)

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
                if not any(name == b"cache-control" for name, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"no-store"))
            async with asyncio.timeout(_SEND_S):  # a client that reads nothing holds no reply for ever
                await send(message)

        try:
            require_host(scope, self.options.allowed_names)
            body.require_announced(scope)
            self._require_room(scope)
            await self.app(scope, body.receive, send_safely)
        except RequestError as error:
            await refuse(error, scope, receive, send_safely)
        except (asyncio.CancelledError, TimeoutError):
            status = status or _HUNG_UP
        # The edge of the service: the application has said so to its client, and the next request gets an answer.
        except Exception as error:  # noqa: BLE001
            log(f"fault: unexpected {type(error).__name__} (POMONA_TRACEBACK=1 shows where)")
            if self.show_traceback:
                traceback.print_exception(error, file=sys.stderr)
        finally:
            self.n_held -= body.n_bytes
            route = getattr(scope.get("route"), "path", None) or ("/predict" if _asks_plainly(scope) else "-")
            took_s = time.perf_counter() - started_s
            self.measures.count_request(route, status, took_s)
            log(f"{status} {method} {route} {1000 * took_s:.0f} ms")

    def _require_room(self, scope: Message) -> None:
        """Refuse photos that would wait too long, before the application spends time on them.

        Where ten times as many come as can be answered, nine of ten end here; the application would spend time on each.
        """
        if _asks_plainly(scope) and self.lanes.wait_s > self.lanes.max_wait_s:
            raise say_busy(self.lanes.wait_s)


def _asks_plainly(scope: Message) -> bool:
    return bool(scope["method"] == "POST" and scope["path"] == "/predict")


class _Body:
    """The body of a request as it arrives, within limits, whichever endpoint reads it."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard = guard
        self.n_bytes = 0
        self._receive = receive
        self._is_whole = False
        self._is_refused = False
        self._due_s = time.monotonic() + guard.options.patience_s

    def require_announced(self, scope: Message) -> None:
        """Refuse a body by the length that it announces."""
        announced = find_header(scope, b"content-length")
        if announced.isdigit() and int(announced[:20]) > self.guard.options.max_request_bytes:
            raise self._say_too_large()

    async def receive(self) -> Message:
        """The next part; once it is whole, this waits for the client to hang up."""
        if self._is_whole or self._is_refused:
            return await self._receive()
        options = self.guard.options
        try:
            async with asyncio.timeout(self._due_s - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            self._is_refused = True
            text = f"wanted the request within {options.patience_s:g} s, it is still on its way: send it again"
            raise RequestError("too_slow", text, is_unread=True) from error
        if message["type"] != "http.request":
            raise asyncio.CancelledError  # it hung up halfway
        n_bytes = len(message.get("body", b""))
        self.n_bytes += n_bytes
        self.guard.n_held += n_bytes
        self._is_whole = not message.get("more_body")
        if self.n_bytes > options.max_request_bytes:
            raise self._say_too_large()
        if self.guard.n_held > max(_HELD_BYTES, 2 * options.max_request_bytes):
            self._is_refused = True
            raise RequestError("busy", "too much is on its way already: try again", wait_s=1, is_unread=True)
        return message

    def _say_too_large(self) -> RequestError:
        self._is_refused = True
        most = self.guard.options.max_request_bytes
        text = f"wanted at most {most:,} bytes, the request has more: send fewer or smaller photos"
        return RequestError("too_large", text, is_unread=not self._is_whole)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def log(text: str) -> None:
    """Write a line to stderr."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")


def find_header(scope: Message, name: bytes) -> str:
    """Value of a header of a request; empty where it has none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def require_host(scope: Message, allowed_names: frozenset[str]) -> None:
    """Refuse a request that was meant for another host.

    A page of another site can lead its own name to this machine's address and then read what is answered (DNS
    rebinding). It cannot do so with an address, so that these are always let in.

    Raises
    ------
    RequestError
        If it names a host that this is not.
    """
    host = find_header(scope, b"host").lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.removeprefix("[").removesuffix("]").removesuffix(".")
    if name in allowed_names:
        return
    try:
        ipaddress.ip_address(name)
    except ValueError as error:
        raise RequestError(
            "host", "this service is not known by that name: start it with --allow-host NAME", is_unread=True
        ) from error


def require_token(header: str, token: str) -> None:
    """Refuse a request that may not write; takes the same time whatever is wrong.

    Parameters
    ----------
    header : str
        Its ``Authorization``.
    token : str
        What it must carry.

    Raises
    ------
    RequestError
        If it carries none or another.
    """
    scheme, _, given = header.partition(" ")
    is_right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise RequestError("token", "wanted the header Authorization: Bearer TOKEN, with the token of this service")


async def refuse(error: RequestError, scope: Message, receive: Receive, send: Send) -> None:
    """Send what is wrong, and let a client that is still sending its body come to read it."""
    content = error.to_json(scope["path"])
    headers = [*error.headers(), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    # Closing while bytes arrive would make the client's system throw the reply away: the reply goes out whole, and
    # what still arrives is read for a moment and forgotten.
    await send({"type": "http.response.body", "body": content, "more_body": error.is_unread})
    if error.is_unread:
        with contextlib.suppress(TimeoutError):
            await _linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _linger(receive: Receive) -> None:
    n_bytes = 0
    async with asyncio.timeout(_LINGER_S):
        while n_bytes < _LINGER_BYTES:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return
            n_bytes += len(message.get("body", b""))
