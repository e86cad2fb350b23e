"""What the service may be told, and the limits it keeps.

In: flags. Out: `ServeOptions`.
Why: each limit has one name and one default, for the command line, the page of the API and those who read the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - read at run time: it is a flag
from typing import Annotated

from pomona.errors import OptionError

MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `serve` takes; the command line offers the same names, defaults and help.

    Parameters
    ----------
    run : Path
        Run folder that `pomona train` wrote; while the service runs, what replaces it there is taken over.
    host : str
        Address to listen at.
    port : int
        Port; 0 takes a free one.
    workers : int, optional
        Threads of the network, and one process more to decode photos; every core where not given.
    token : str, optional
        What a request that writes must carry; where not given, that of the environment's `POMONA_TOKEN`.
    teach : bool
        Whether photos may be sent to learn from; needs a token.
    inbox : str, optional
        Database of these photos, as an SQLAlchemy URL; where not given, a file beside the run.
    allow_host : str
        Further names that the service may be called by, with commas.
    max_photo_mb, max_request_mb : int
        Largest photo and largest request, in millions of bytes.
    max_photos : int
        Most photos of one request.
    max_megapixels : int
        Largest photo, in millions of pixels.
    max_wait_s : float
        A request that would wait longer for its turn is refused at once.
    photo_s : float
        Longest time that decoding one photo may take.
    worker_mb : int
        Most memory of a process that decodes.
    patience_s : float
        Longest time that a client may take to send a request.

    Raises
    ------
    OptionError
        If a value cannot be used.
    """

    run: Annotated[Path, "Run folder that `pomona train` wrote."]
    host: Annotated[str, "Address to listen at; 0.0.0.0 is every one of this machine."] = "127.0.0.1"
    port: Annotated[int, "Port; 0 takes a free one."] = 8000
    workers: Annotated[int | None, "Threads of the network; by default every core."] = None
    token: Annotated[str | None, "What a request that writes must carry; or set POMONA_TOKEN."] = None
    teach: Annotated[bool, "Let photos be sent to learn from; needs a token."] = False
    inbox: Annotated[str | None, "Database of these photos, as a URL; by default a file beside the run."] = None
    allow_host: Annotated[str, "Further names that the service may be called by, with commas."] = ""
    max_photo_mb: Annotated[int, "Largest photo, in MB."] = 20
    max_request_mb: Annotated[int, "Largest request, in MB."] = 64
    max_photos: Annotated[int, "Most photos of one request."] = 64
    max_megapixels: Annotated[int, "Largest photo, in millions of pixels."] = 60
    max_wait_s: Annotated[float, "A request that would wait longer for its turn is refused at once."] = 1.5
    photo_s: Annotated[float, "Longest time that decoding one photo may take."] = 5.0
    worker_mb: Annotated[int, "Most memory of a process that decodes, in MB."] = 512
    patience_s: Annotated[float, "Longest time that a client may take to send a request."] = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise OptionError(f"port: wanted 0 to 65535, got {self.port}")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers: wanted 1 or more, got {self.workers}")
        counts = (
            "max_photo_mb",
            "max_request_mb",
            "max_photos",
            "max_megapixels",
            "max_wait_s",
            "photo_s",
            "patience_s",
        )
        for name in counts:
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}: wanted more than 0, got {getattr(self, name)}")
        if self.worker_mb < 128:
            raise OptionError(f"worker_mb: wanted 128 or more, which decoding takes at least, got {self.worker_mb}")
        if self.token is not None and (not self.token.isascii() or not self.token.isprintable() or " " in self.token):
            raise OptionError(
                "token: wanted printable ASCII without spaces, as a header carries it, got something else"
            )
        if self.token is not None and len(self.token) < 8:
            raise OptionError(f"token: wanted 8 characters or more, got {len(self.token)}")

    @property
    def max_photo_bytes(self) -> int:
        """Largest photo."""
        return self.max_photo_mb * MB

    @property
    def max_request_bytes(self) -> int:
        """Largest request."""
        return max(self.max_request_mb, self.max_photo_mb) * MB

    @property
    def allowed_names(self) -> frozenset[str]:
        """Names that the service may be called by, beside addresses."""
        named = {name.strip().lower() for name in self.allow_host.split(",") if name.strip()}
        return frozenset({"localhost", self.host.lower(), *named})
