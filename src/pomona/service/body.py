"""Photos out of the body of a request, within limits.

In: a request as it arrives. Out: content and name of each photo, in memory alone.
Why: nothing of a request is written to disk, and a body that is too large is refused before it is read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pomona.service.faults import RequestError
from pomona.service.guard import find_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from python_multipart.multipart import MultipartCallbacks

    from pomona.service.guard import Message, Receive

_ELSEWHERE_BYTES = 200_000  # from here on parsing is done in a thread: the loop has others to serve
_MAX_NAME = 200
_MAX_PARTS = 100  # of a form, beside photos
_MAX_ITEMS = 10_000  # of JSON, whose photos are one text each
_ITEM_MARKS = (b",", b"[", b"{", b":")


@dataclass(frozen=True)
class PhotoLimits:
    """What a request may hold.

    Parameters
    ----------
    max_photo_bytes : int
        Largest photo.
    max_photos : int
        How many.
    """

    max_photo_bytes: int
    max_photos: int


@dataclass(frozen=True)
class Upload:
    """A photo of a request.

    Parameters
    ----------
    name : str
        What the client calls it; ``-`` where it does not.
    content : bytes
        Of its file.
    """

    name: str
    content: bytes


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request; `pomona.service.guard` keeps it within limits."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


class Intake:
    """Reads photos.

    Parameters
    ----------
    limits : PhotoLimits
        What one request may hold.
    """

    def __init__(self, limits: PhotoLimits) -> None:
        self.limits = limits

    async def read_photos(self, scope: Message, receive: Receive) -> list[Upload]:
        """Photos of a request: multipart, the bytes of one, or JSON with base64.

        Raises
        ------
        RequestError
            If there are none, too many, or they come in another way.
        """
        kind, options = parse_options_header(find_header(scope, b"content-type"))
        parse = {b"multipart/form-data": _parse_multipart, b"application/json": _parse_json}.get(kind)
        is_raw = kind.startswith(b"image/") or kind == b"application/octet-stream"
        if parse is None and not is_raw:
            raise RequestError(
                "content_type",
                "wanted multipart/form-data, application/json, application/octet-stream or image/*, with photos in it; "
                "curl sends them with -F photo=@FILE",
                is_unread=True,
            )
        body = await read_body(receive)
        if not body:
            raise RequestError("empty", "wanted a photo, the request has no body")
        if parse is None:
            uploads = [Upload("-", body)]
        elif len(body) > _ELSEWHERE_BYTES:
            uploads = await asyncio.to_thread(parse, body, options, self.limits)
        else:
            uploads = parse(body, options, self.limits)
        self.require_few(len(uploads))
        self.require_small([upload.content for upload in uploads])
        return uploads

    def require_small(self, photos: Sequence[bytes]) -> None:
        """Refuse a photo that is too large."""
        if max(map(len, photos), default=0) > self.limits.max_photo_bytes:
            raise RequestError(
                "too_large", f"wanted photos of at most {self.limits.max_photo_bytes:,} bytes, one has more: shrink it"
            )

    def require_few(self, n_photos: int) -> None:
        """Refuse no photos, and too many."""
        if n_photos < 1:
            raise RequestError("empty", "wanted a photo, the request holds none")
        if n_photos > self.limits.max_photos:
            raise say_too_many(self.limits.max_photos)


def say_too_many(max_photos: int) -> RequestError:
    """Refusal of a request with more photos than that."""
    return RequestError("too_many_photos", f"wanted at most {max_photos} photos a request: send them in parts")


def _parse_json(body: bytes, _: object, limits: PhotoLimits) -> list[Upload]:
    content = load_json(body, max_items=_MAX_ITEMS)
    photos = content.get("photos") if isinstance(content, dict) else None
    if not isinstance(photos, list):
        raise RequestError("cannot_be_read", 'wanted JSON such as {"photos": ["BASE64", ...]}, got something else')
    if len(photos) > limits.max_photos:
        raise say_too_many(limits.max_photos)
    return [Upload("-", decode_base64(photo)) for photo in photos]


def load_json(body: bytes, *, max_items: int) -> Any:
    """Content of JSON.

    Parameters
    ----------
    body : bytes
        The JSON.
    max_items : int
        Most values in it: an empty list takes two bytes here and seventy in memory.

    Raises
    ------
    RequestError
        If it is none, or holds too many values.
    """
    if sum(map(body.count, _ITEM_MARKS)) > max_items:
        raise RequestError("too_large", f"wanted JSON of at most {max_items:,} values: send photos or pixels in binary")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("cannot_be_read", "wanted JSON, the body is none") from error


def decode_base64(text: object) -> bytes:
    """Bytes that a text stands for; a data URL is taken too.

    Raises
    ------
    RequestError
        If it is no base64.
    """
    if not isinstance(text, str):
        raise RequestError("cannot_be_read", "wanted each photo as a text of base64, got something else")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("cannot_be_read", "wanted each photo as base64, one is none") from error


class _Parts:
    """Files of a form, gathered from what the parser calls."""

    def __init__(self, limits: PhotoLimits) -> None:
        self.limits = limits
        self.uploads: list[Upload] = []
        self.n_parts = 0
        self.is_ended = False
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._content: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_field,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._field = self._value = self._disposition = b""
        self._content = []
        self.n_parts += 1
        if self.n_parts > self.limits.max_photos + _MAX_PARTS:
            raise say_too_many(self.limits.max_photos)

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            return
        if len(self.uploads) >= self.limits.max_photos:
            raise say_too_many(self.limits.max_photos)
        name = options[b"filename"].decode("utf-8", "replace")[:_MAX_NAME]
        self.uploads.append(Upload(name or "-", b"".join(self._content)))

    def _end(self) -> None:
        self.is_ended = True


def _parse_multipart(body: bytes, options: dict[bytes, bytes], limits: PhotoLimits) -> list[Upload]:
    parts = _Parts(limits)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), parts.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise RequestError("cannot_be_read", "wanted multipart/form-data, the body is damaged") from error
    if not parts.is_ended:
        raise RequestError("cannot_be_read", "wanted multipart/form-data, the body is cut short")
    return parts.uploads
