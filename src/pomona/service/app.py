"""The endpoints of the service.

In: requests. Out: answers as JSON.
Why: what the service offers is in one place, and each endpoint is a few lines: reading, computing and refusing have
modules of their own.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pomona import __version__
from pomona.errors import MissingPackageError
from pomona.service.body import Intake, PhotoLimits, read_body
from pomona.service.docs_page import write_docs_page
from pomona.service.faults import ERROR_SCHEMA, FAULT_TEXTS, Fault, RequestError, describe_faults, say_busy
from pomona.service.guard import Guard, find_header, refuse
from pomona.service.kserve import describe_model, describe_server, read_inference, write_inference
from pomona.service.lanes import BusyError
from pomona.service.live import Wish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from pomona.service.lanes import Said
    from pomona.service.live import LiveBundle, OpenBundle
    from pomona.service.measures import Measures
    from pomona.service.options import ServeOptions

_Result = TypeVar("_Result")

PAGE_FOLDER = Path(__file__).parents[1] / "web" / "page"
_DOCS_STYLE = Path(__file__).parents[1] / "web" / "docs.css"
_JSON = "application/json"


def build_app(options: ServeOptions, live: LiveBundle, measures: Measures) -> Guard:
    """The application, with all that stands before it.

    Parameters
    ----------
    options : ServeOptions
        Limits, names, token.
    live : LiveBundle
        What answers.
    measures : Measures
        Where requests are counted.

    Returns
    -------
    Guard
        An ASGI application.
    """
    app = FastAPI(
        title="Pomona",
        version=__version__,
        description="Photos in, answers out. Limits, metrics and safety: docs/service.md.",
        docs_url=None,
        redoc_url=None,
    )
    intake = Intake(PhotoLimits(options.max_photo_bytes, options.max_photos))
    _add_faults(app)
    _add_answers(app, live, intake, can_teach=options.teach)
    _add_kserve(app, live, intake)
    _add_state(app, live, measures)
    _add_pages(app)
    if options.teach:
        _add_teaching(app, options, live)
    show = bool(os.environ.get("POMONA_TRACEBACK"))
    return Guard(app, options, measures, live.lanes, show_traceback=show)


def _add_faults(app: FastAPI) -> None:
    async def say(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            kinds: dict[int, Fault] = {404: "not_found", 405: "method"}
            text = {404: "there is nothing here: /docs lists what there is", 405: "this is asked for in another way"}
            found = RequestError(
                kinds.get(error.status_code, "cannot_be_read"), text.get(error.status_code, str(error.detail))
            )
            return Response(
                found.to_json(request.url.path), error.status_code, dict(error.headers or {}), media_type=_JSON
            )
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            found = RequestError("option", f"{where}: {first['msg']}")
            return Response(found.to_json(request.url.path), found.status, media_type=_JSON)
        if isinstance(error, RequestError):
            return _Refusal(error)
        return _Refusal(RequestError("fault", "something in the service is at fault: its log says more"))

    for kind in (HTTPException, RequestValidationError, RequestError, Exception):
        app.add_exception_handler(kind, say)


class _Refusal(Response):
    """Says what is wrong, and waits for a client that is still sending."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(status_code=error.status)
        self.error = error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await refuse(self.error, scope, receive, send)


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do something for a client for as long as it is there; what is left is dropped when it hangs up."""
    task = asyncio.current_task()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if task is not None:
            task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await work
    finally:
        watching.cancel()


def _require_ready(live: LiveBundle) -> None:
    if not live.is_ready:
        raise RequestError("starting", "the service is starting: try again in a moment", wait_s=1)


def _add_answers(app: FastAPI, live: LiveBundle, intake: Intake, *, can_teach: bool) -> None:
    binary = {"schema": {"type": "string", "format": "binary"}}
    photos_form = {
        "type": "object",
        "properties": {"photo": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "required": ["photo"],
    }
    photos_json = {
        "type": "object",
        "properties": {"photos": {"type": "array", "items": {"type": "string", "format": "byte"}, "minItems": 1}},
        "required": ["photos"],
    }
    body = {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": photos_form},
            _JSON: {"schema": photos_json},
            "application/octet-stream": binary,
            "image/*": binary,
        },
    }
    answers = {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "predictions": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["model", "version", "predictions"],
    }
    replies = describe_faults(400, 408, 413, 415, 429, 503)
    replies[200] = {
        "description": "What each photo shows, in the order given.",
        "content": {_JSON: {"schema": answers}},
    }
    replies[422] = {
        "description": "Not one photo could be used: each says why. Or an option cannot be used.",
        "content": {_JSON: {"schema": {"anyOf": [answers, ERROR_SCHEMA]}}},
    }

    @app.post(
        "/predict",
        summary="Say what photos show.",
        description="One photo as it is, many as a form, or as base64 in JSON. A photo that cannot be used is an "
        "answer with an error, and the others are answered.",
        openapi_extra={"requestBody": body},
        responses=replies,
        response_class=Response,
    )
    async def predict(
        request: Request,
        topk: Annotated[int, Query(ge=1, le=1000, description="How many of the most probable classes to name.")] = 5,
        explain: Annotated[bool, Query(description="Say why: a map, and the nearest photos learnt from.")] = False,
    ) -> Response:
        opened, said = await _answer(
            request, live, lambda: intake.read_photos(request.scope, request.receive), Wish(topk, explain)
        )
        content = {
            "model": live.name,
            "version": opened.version,
            "predictions": [write_prediction(one, explain=explain) for one in said],
        }
        status = 200 if any(one.fault is None for one in said) else 422
        return write_json(content, status)

    @app.get("/model", summary="What answers: its classes, and what it can do.", responses=describe_faults(503))
    async def model() -> Response:
        _require_ready(live)
        bundle = live.bundle
        entry = bundle.manifest.trust
        content = {
            "name": live.name,
            "version": live.version,
            "created": bundle.manifest.created,
            "classes": bundle.speaker.describe_classes(),
            "preprocessing": asdict(bundle.preprocessing),
            "promise": None if bundle.promise is None else bundle.promise.share,
            "can_tell_unknown": entry is not None and entry.unknown is not None,
            "can_explain": await asyncio.to_thread(lambda: live.can_explain),
            "can_teach": can_teach,
            "max_photo_bytes": intake.limits.max_photo_bytes,
            "max_photos": intake.limits.max_photos,
        }
        return write_json(content)


async def _answer(
    request: Request, live: LiveBundle, read: Callable[[], Awaitable[list[Any]]], wish: Wish
) -> tuple[OpenBundle, list[Said]]:
    """Take photos in, and answer for them, as long as there is room and the client is there."""
    _require_ready(live)
    try:
        with live.lanes.expect():
            uploads = await read()
        names = [upload.name for upload in uploads]
        photos = [upload.content for upload in uploads]
        opened, said = await while_connected(request, live.predict(photos, names=names, wish=wish))
    except BusyError as error:
        raise say_busy(error.wait_s) from error
    return opened, said


def write_prediction(said: Said, *, explain: bool) -> dict[str, Any]:
    """What is said of a photo, as JSON has it."""
    content = {**said.prediction.to_dict(), "fault": said.fault}
    if explain:
        content |= said.explanation or {"heat_map": None, "seen": None, "nearest": []}
    return content


def write_json(content: Any, status: int = 200) -> Response:
    """A reply of JSON in UTF-8."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status, media_type=_JSON)


def _add_kserve(app: FastAPI, live: LiveBundle, intake: Intake) -> None:
    def require_model(name: str) -> None:
        if name != live.name:
            raise RequestError("not_found", f"there is one model here, {live.name}, and no other")

    faults = describe_faults(404, 422, 503, is_kserve=True)

    @app.get("/v2", summary="KServe: what this server is.")
    async def server() -> Response:
        return write_json(describe_server(__version__))

    @app.get("/v2/health/live", summary="KServe: whether the server runs.")
    async def health_live() -> Response:
        return write_json({"live": True})

    @app.get("/v2/health/ready", summary="KServe: whether the server is warm.", responses=describe_faults(503))
    async def health_ready() -> Response:
        return write_json({"ready": live.is_ready}, 200 if live.is_ready else 503)

    @app.get("/v2/models/{name}", summary="KServe: what the model takes and gives.", responses=faults)
    async def model_metadata(name: str) -> Response:
        require_model(name)
        return write_json(describe_model(live.bundle, live.name, live.version))

    @app.get("/v2/models/{name}/ready", summary="KServe: whether the model is warm.", responses=faults)
    async def model_ready(name: str) -> Response:
        require_model(name)
        return write_json({"name": live.name, "ready": live.is_ready}, 200 if live.is_ready else 503)

    tensors = {
        "type": "object",
        "properties": {"inputs": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 1}},
        "required": ["inputs"],
    }

    @app.post(
        "/v2/models/{name}/infer",
        summary="KServe: say what photos show.",
        description="One input: BYTES with photos, as base64 or in binary, or UINT8 with squares [N, S, S, 3]. A photo "
        "that cannot be used has zeros, an empty label, and the reason in the output error.",
        openapi_extra={"requestBody": {"required": True, "content": {_JSON: {"schema": tensors}}}},
        responses=describe_faults(400, 404, 408, 413, 422, 429, 503, is_kserve=True),
        response_class=Response,
    )
    async def infer(name: str, request: Request) -> Response:
        require_model(name)
        _require_ready(live)
        try:
            with live.lanes.expect():
                body = await read_body(request.receive)
            if not body:
                raise RequestError("empty", "wanted a request of KServe's protocol, got no body")
            size_px, header = live.bundle.preprocessing.size_px, "inference-header-content-length"
            asked, photos = await asyncio.to_thread(
                read_inference,
                body,
                find_header(request.scope, header.encode()),
                size_px=size_px,
                max_photos=intake.limits.max_photos,
            )
            intake.require_few(len(photos))
            intake.require_small([photo for photo in photos if isinstance(photo, bytes)])
            opened, said = await while_connected(request, live.predict(photos))
        except BusyError as error:
            raise say_busy(error.wait_s) from error
        n_classes = len(opened.bundle.tree)
        content, n_json = write_inference(asked, said, name=live.name, version=opened.version, n_classes=n_classes)
        if n_json is None:
            return Response(content, media_type=_JSON)
        return Response(content, headers={header: str(n_json)}, media_type="application/octet-stream")


def _add_state(app: FastAPI, live: LiveBundle, measures: Measures) -> None:
    @app.get("/health", summary="Whether the service is warm.", responses={503: {"description": FAULT_TEXTS[503]}})
    async def health() -> Response:
        if not live.is_ready:
            return write_json({"status": "starting"}, 503)
        return write_json({"status": "ready", "model": live.name, "version": live.version})

    @app.get("/metrics", summary="Counts, for Prometheus.", response_class=Response)
    async def metrics() -> Response:
        return Response(measures.write(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    page = ""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        nonlocal page
        page = page or write_docs_page(app.openapi())
        return Response(page, media_type="text/html")

    @app.get("/docs.css", include_in_schema=False)
    async def docs_style() -> Response:
        return _send_file(_DOCS_STYLE)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _send_file(PAGE_FOLDER / "index.html")

    files = {path.name: path for path in PAGE_FOLDER.glob("*") if path.is_file()}
    files["recogniser.js"] = files[
        "service_recogniser.js"
    ]  # the page knows its recogniser by one name, whichever it is

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise RequestError("not_found", "there is no such file of the page")
        return _send_file(files[name])


def _send_file(path: Path) -> Response:
    kind = {".js": "text/javascript"}.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return Response(path.read_bytes(), media_type=kind or "application/octet-stream")


def _add_teaching(app: FastAPI, options: ServeOptions, live: LiveBundle) -> None:
    try:
        from pomona.service.teach import make_teach_router
    except ImportError as error:
        raise MissingPackageError(error.name or "sqlalchemy", "teach", "to teach") from error
    app.include_router(make_teach_router(live, options))
