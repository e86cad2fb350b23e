"""The endpoints that teach: only with a token, and only where the service was started to be taught.

In: photos with labels, and decisions. Out: proposals and versions as JSON.
Why: whoever may teach changes what everybody is answered, so every one of these asks for the token first, and nothing
changes without a second request that confirms what the first one proposed.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request

from pomona.errors import OptionError, PomonaError
from pomona.service.body import Intake, PhotoLimits
from pomona.service.faults import RequestError, describe_faults, say_busy
from pomona.service.guard import find_header, require_token
from pomona.service.lanes import BusyError
from pomona.service.teacher import Teacher, say_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from pomona.service.live import LiveBundle
    from pomona.service.options import ServeOptions

_Result = TypeVar("_Result")
_N_THREADS = 8

_PHOTO_BODY = {
    "required": True,
    "content": {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("application/octet-stream", "image/*")
    },
}


def _describe(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return describe_faults(401, 429, 500, 503, *statuses)


def make_teach_router(live: LiveBundle, options: ServeOptions) -> APIRouter:
    """The endpoints that teach a service.

    Parameters
    ----------
    live : LiveBundle
        What answers, and is taught.
    options : ServeOptions
        Token, inbox and limits.

    Returns
    -------
    APIRouter
        To be included in the application; what is slow begins in the background.

    Raises
    ------
    OptionError
        If there is no token.
    PomonaError
        If the inbox cannot be opened.
    """
    token = options.token
    if not token:
        raise OptionError("teach: wanted a token too, since whoever may teach changes the answers: add --token TOKEN")
    teacher = Teacher(live, options.inbox)
    teacher.start()
    # Threads of its own: who waits to teach keeps no reader of other requests.
    pool = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="pomona-teach")
    intake = Intake(PhotoLimits(options.max_photo_bytes, options.max_photos))

    async def allow(request: Request) -> None:
        try:
            require_token(find_header(request.scope, b"authorization"), token)
        except RequestError as error:
            error.is_unread = request.method == "POST"  # its photo is still on the way
            raise
        if not live.is_ready:
            raise RequestError("starting", "the service is starting: try again in a moment", wait_s=1)

    async def work(step: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, step)
        except PomonaError as error:
            raise say_fault(error, teacher.run) from error

    router = APIRouter(dependencies=[Depends(allow)], tags=["teaching"])

    @router.post(
        "/teach",
        status_code=201,
        summary="Send a photo with its label.",
        description="It waits until a proposal with it is confirmed. The label is a known class by name or path or by "
        "what people call it, or the path of a new class.",
        openapi_extra={"requestBody": _PHOTO_BODY},
        responses=_describe(400, 408, 413, 415, 422),
    )
    async def add(
        request: Request,
        label: Annotated[str, Query(min_length=1, max_length=1000, description="What the photo shows.")],
    ) -> dict[str, Any]:
        wanted = await work(lambda: teacher.find_label(label))
        try:
            with live.lanes.expect():
                uploads = await intake.read_photos(request.scope, request.receive)
            if len(uploads) != 1:
                raise RequestError("too_many_photos", f"wanted one photo with its label, got {len(uploads)}")
            _, said = await live.predict([uploads[0].content])  # decoded where a hostile one does no harm
        except BusyError as error:
            raise say_busy(error.wait_s) from error
        if said[0].fault is not None:
            raise RequestError("option", f"the photo cannot be used: {said[0].prediction.error}")
        photo, n_waiting = await work(lambda: teacher.add(uploads[0].content, wanted))
        return {"photo": photo.sha256, "label": photo.label, "state": photo.state, "n_waiting": n_waiting}

    @router.get("/teach", summary="What waits, what is proposed, and the versions.", responses=_describe())
    async def state() -> dict[str, Any]:
        return await work(teacher.describe)

    @router.delete("/teach/{sha256}", summary="Take a photo back that waits.", responses=_describe(404, 422))
    async def withdraw(sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]) -> dict[str, Any]:
        if await work(lambda: teacher.inbox.find(sha256)) is None:
            raise RequestError("not_found", "there is no such photo: GET /teach lists those that wait")
        return {"photo": sha256, "n_waiting": await work(lambda: teacher.withdraw(sha256))}

    @router.post(
        "/teach/proposal",
        summary="Refit the head to all photos that wait, and compare; nothing changes yet.",
        responses=_describe(422),
    )
    async def propose() -> dict[str, Any]:
        return (await work(teacher.propose)).to_dict()

    @router.post(
        "/teach/proposal/{number}/confirm", summary="Let what was proposed answer.", responses=_describe(404, 422)
    )
    async def confirm(number: str) -> dict[str, int]:
        return {"version": await work(lambda: teacher.confirm(number))}

    @router.delete("/teach/proposal/{number}", summary="Forget a proposal.", responses=_describe(404, 422))
    async def drop(number: str) -> dict[str, bool]:
        await work(lambda: teacher.drop(number))
        return {"dropped": True}

    @router.get("/versions", summary="Every version that there was.", responses=_describe())
    async def versions() -> list[dict[str, Any]]:
        return await work(teacher.list_versions)

    @router.post("/versions/{number}/restore", summary="Bring a version back.", responses=_describe(404, 422))
    async def restore(number: Annotated[int, Path(ge=1, le=999_999)]) -> dict[str, int]:
        return {"version": await work(lambda: teacher.restore(number))}

    return router
