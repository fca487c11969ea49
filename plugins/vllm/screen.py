"""Refuses a specification that cannot be followed before an answer begins: a streamed one has its status by then."""

import json
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse

from engrain.core.errors import EngrainError
from engrain.plugins.vllm.admission import KEY, Admission, refusal

_ARGUMENTS = "vllm_xargs"


def bad_request(message: str) -> JSONResponse:
    """Return an error in the form that vLLM gives its own."""
    error = {"message": message, "type": "BadRequestError", "param": KEY, "code": 400}
    return JSONResponse({"error": error}, status_code=400)


class ScreenMiddleware:
    """Reads the extra arguments of each request of an ASGI application; requests without any go by unread.

    vLLM admits a streamed request when its answer is first read, after status 200 was sent. What passes here is
    resolved again then.
    """

    def __init__(self, app: Any, admission: Callable[[], Admission | None]) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        admission = self._admission()
        if scope["type"] != "http" or scope["method"] != "POST" or admission is None:
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        try:
            admission.admit(_arguments(body))
        except EngrainError as error:
            await bad_request(refusal(error))(scope, receive, send)
            return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def _arguments(body: bytes) -> dict[str, Any] | None:
    """Return the extra arguments in a request's body; None when it has none, or is not for us to judge."""
    if _ARGUMENTS.encode() not in body:
        return None
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = request.get(_ARGUMENTS) if isinstance(request, dict) else None
    return found if isinstance(found, dict) else None
