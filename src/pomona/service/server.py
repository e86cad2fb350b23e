"""The process that serves: its socket, its start, its end.

In: options. Out: a service that answers until it is told to stop.
Why: what takes long, the framework, the network and the first process that decodes, starts side by side; and whatever
ends the process, Ctrl-C or a supervisor, ends it in order.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import signal
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from pomona.engine import count_cpus
from pomona.errors import MissingPackageError, OptionError, PomonaError, ServiceError
from pomona.files import MANIFEST_NAME
from pomona.service.decode_worker import DecodeLimits
from pomona.service.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pomona.service.live import LiveBundle
    from pomona.service.options import ServeOptions

_GRACE_S = 10
_POLL_S = 1.0
_RETRY_POLLS = 5
_BACKLOG = 1024


def serve(options: ServeOptions, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Answer over HTTP until SIGINT or SIGTERM.

    Parameters
    ----------
    options : ServeOptions
        What to serve, where, within which limits.
    on_ready : callable, optional
        Told the address as soon as the service is warm.

    Raises
    ------
    OptionError
        If teaching is asked for without a token.
    BundleError
        If the run folder is no usable bundle.
    ServiceError
        If the port is in use, or processes cannot be started.
    MissingPackageError
        If what serves is not installed.
    """
    options = replace(options, token=options.token or os.environ.get("POMONA_TOKEN") or None)
    if options.teach and options.token is None:
        raise OptionError("teach: wanted a token too, since whoever may teach changes the answers: add --token TOKEN")
    listener = open_listener(options.host, options.port)
    n_workers = options.workers or count_cpus()
    limits = DecodeLimits(options.worker_mb, options.photo_s, options.max_megapixels * 1_000_000)
    lanes = Lanes(n_workers + 1, limits, max_wait_s=options.max_wait_s, max_waiting=16 * options.max_photos)
    try:
        lanes.start_first()  # it begins while this process is busy with its imports
        _serve_at(listener, options, lanes, n_workers, on_ready)
    finally:
        lanes.close()
        listener.close()


def open_listener(host: str, port: int) -> socket.socket:
    """A socket at an address, before anything slow begins.

    Raises
    ------
    ServiceError
        If the port is in use, or the address is not one of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = (
            "it is in use: name another with --port"
            if error.errno == errno.EADDRINUSE
            else error.strerror or str(error)
        )
        raise ServiceError(f"cannot listen at {host}, port {port}: {reason}") from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("localhost")
    (True, False, True)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _serve_at(
    listener: socket.socket,
    options: ServeOptions,
    lanes: Lanes,
    n_workers: int,
    on_ready: Callable[[str], None] | None,
) -> None:
    from pomona.bundle import load_bundle
    from pomona.service.live import LiveBundle

    bundle = load_bundle(options.run, n_workers=n_workers)
    live = LiveBundle(bundle, lanes)
    opening = _Opening(live)
    opening.start()
    try:
        import uvicorn

        from pomona.service.app import build_app
        from pomona.service.measures import Measures
        from pomona.service.patience import PatientProtocol
    except ImportError as error:
        raise MissingPackageError(error.name or "fastapi", "serve", "to serve") from error
    from pomona.service.guard import log

    measures = Measures()
    measures.watch(lanes, live)
    lanes.on_photo = measures.count_photo
    app = build_app(options, live, measures)
    config = uvicorn.Config(
        app,
        http=functools.partial(PatientProtocol, patience_s=options.patience_s),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    where = f"http://{_write_address(listener)}"
    ended = threading.Event()

    def finish_opening() -> None:
        opening.join()
        if opening.error is not None:
            server.should_exit = True
            return
        log(f"ready: {live.name}, {len(live.bundle.tree)} classes, at {where}")
        if on_ready:
            on_ready(where)
        live.open_why()
        follow_folder(live, ended, log)

    if not is_loopback(options.host) and options.token is None:
        log("warning: others can reach this service, and nothing but limits keeps them from asking it")
    watching = threading.Thread(target=finish_opening, name="pomona-follow", daemon=True)
    watching.start()
    # The server hands signals that it has seen on to whoever had them before: a good end is no signal any more.
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        ended.set()
        for one, handler in before.items():
            signal.signal(one, handler)
    watching.join(timeout=_GRACE_S)
    if opening.error is not None:
        raise opening.error
    log("ended")


class _Opening(threading.Thread):
    """Compiles the bundle while the framework is imported."""

    def __init__(self, live: LiveBundle) -> None:
        super().__init__(name="pomona-open", daemon=True)
        self.live = live
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.live.lanes.start()
            self.live.open()
        # Raised again in the main thread: a service whose opening ended without a word would be starting for ever.
        except Exception as error:  # noqa: BLE001
            self.error = error


def _write_address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def follow_folder(live: LiveBundle, ended: threading.Event, log: Callable[[str], None]) -> None:
    """Take over each new bundle that appears in the run folder, until the end.

    Parameters
    ----------
    live : LiveBundle
        What answers.
    ended : threading.Event
        Set when the service ends.
    log : callable
        Told what happens.
    """
    seen: tuple[int, ...] | None = None  # the folder may have changed since the first one was loaded
    refused, n_polls = "", 0
    while not ended.wait(_POLL_S):
        n_polls += 1
        stamp = _stamp(live.bundle.folder)
        # A refused one is tried again: it may have been copied file by file, its manifest before the rest.
        if stamp == seen and not (refused and n_polls % _RETRY_POLLS == 0):
            continue
        try:
            if live.follow():
                log(f"swapped: version {live.version}, {len(live.bundle.tree)} classes")
            seen, refused = stamp, ""
        except PomonaError as error:
            if str(error) != refused:
                log(f"refused, the old one goes on: {error}")
            seen, refused = stamp, str(error)


def _stamp(folder: Path) -> tuple[int, ...]:
    try:
        found = (folder / MANIFEST_NAME).stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
