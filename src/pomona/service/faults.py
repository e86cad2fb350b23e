"""What is said to a client whose request cannot be answered.

In: what is wrong. Out: a status, a word for machines and a sentence that says what to do.
Why: one shape for every error of the service, and never a traceback in it.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

STATUSES = {
    "cannot_be_read": 400,
    "empty": 400,
    "host": 400,
    "token": 401,
    "not_found": 404,
    "method": 405,
    "too_slow": 408,
    "too_large": 413,
    "too_many_photos": 413,
    "content_type": 415,
    "option": 422,
    "busy": 429,
    "fault": 500,
    "starting": 503,
}
"""Status of each kind of fault."""

Fault = Literal[
    "cannot_be_read",
    "empty",
    "host",
    "token",
    "not_found",
    "method",
    "too_slow",
    "too_large",
    "too_many_photos",
    "content_type",
    "option",
    "busy",
    "fault",
    "starting",
]

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}
"""JSON schema of a refusal."""

FAULT_TEXTS = {
    400: "It cannot be read, is empty, or names another host.",
    401: "It carries no token, or another.",
    404: "There is no such thing.",
    408: "It took too long to arrive.",
    413: "It is too large, or has too many photos.",
    415: "It comes in a way that photos do not come in.",
    422: "What was sent cannot be used; the sentence says why.",
    429: "Too much waits, or is going on; Retry-After says when to come again.",
    500: "It cannot be written: the disk is full, or not to be written.",
    503: "The service is starting.",
}
"""What each status of a refusal means, for the description of the API."""

_KSERVE_SCHEMA = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def describe_faults(*statuses: int, is_kserve: bool = False) -> dict[int | str, dict[str, Any]]:
    """Replies of an endpoint that are refusals, for its description."""
    schema = _KSERVE_SCHEMA if is_kserve else ERROR_SCHEMA
    return {
        status: {"description": FAULT_TEXTS[status], "content": {"application/json": {"schema": schema}}}
        for status in statuses
    }


class RequestError(Exception):
    """A request that cannot be answered.

    Parameters
    ----------
    fault : Fault
        Of which kind.
    message : str
        What was wanted, what came, what to do.
    wait_s : float, optional
        After how long to come again.
    is_unread : bool
        Whether the rest of its body is still on the way, and the connection of no further use.
    """

    def __init__(self, fault: Fault, message: str, *, wait_s: float | None = None, is_unread: bool = False) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.wait_s = wait_s
        self.is_unread = is_unread

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return STATUSES[self.fault]

    def to_json(self, path: str) -> bytes:
        """Body of the reply; KServe's endpoints have the sentence alone, as their protocol wants it."""
        if path == "/v2" or path.startswith("/v2/"):
            return json.dumps({"error": self.message}).encode()
        return json.dumps({"error": {"code": self.fault, "message": self.message}}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the reply."""
        found = [(b"content-type", b"application/json")]
        if self.wait_s is not None:
            found.append((b"retry-after", str(max(1, math.ceil(self.wait_s))).encode()))
        if self.is_unread:
            found.append((b"connection", b"close"))
        if self.fault == "token":
            found.append((b"www-authenticate", b"Bearer"))
        return found


def say_busy(wait_s: float) -> RequestError:
    """Too many photos wait."""
    return RequestError("busy", "too many photos wait already: try again in a moment", wait_s=wait_s)
