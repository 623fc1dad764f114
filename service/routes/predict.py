"""V1 predictions: rows in, readable predictions out."""

import asyncio
import re

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.codecs.rows import Limits, RowsRequest, answer, read_request
from service.errors import MethodNotAllowedError, ServiceError
from service.routes.answers import CLIENT_GONE, error_answer, read_body
from service.state import ServiceState

_PREFIX = "/v1/models/{name}"
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")

_PATH = re.compile(r"/v1/models/(?P<name>[^/]+?)(?:/versions/(?P<version>[^/]+)|/labels/(?P<label>[^/]+))?:predict")
_LARGE_BYTES = 100_000
_LARGE_ROWS = 500
"""Beyond either, reading or writing takes over a millisecond and moves to a thread, so that others are served meanwhile."""


class PredictRoutes:
    """ASGI middleware that answers the predict paths itself.

    The way through FastAPI's and Starlette's routing takes a third of a whole small request's time.
    """

    def __init__(self, app: ASGIApp, *, state: ServiceState):
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError(f"{scope['method']} is not allowed here; use POST")
            content = await predict(self._state, scope, receive, **path.groupdict())
        except ServiceError as error:
            headers = {"Allow": "POST"} if isinstance(error, MethodNotAllowedError) else None
            await error_answer(error, headers=headers)(scope, receive, send)
        except ClientDisconnect:
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
        else:
            headers_sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
            await send({"type": "http.response.start", "status": 200, "headers": headers_sent})
            await send({"type": "http.response.body", "body": content})


async def predict(
    state: ServiceState, scope: Scope, receive: Receive, *, name: str, version: str | None, label: str | None
) -> bytes:
    """The JSON answer to a V1 request, by the model that its path names. Raises ServiceError, ClientDisconnect."""
    settings = state.settings
    model = state.repository.model(name, version=version, label=label)
    body = await read_body(scope, receive, limit=settings.max_body_bytes)

    def read() -> RowsRequest:
        return read_request(
            body,
            model.features,
            targets=len(model.targets.names),
            default_coverage=model.manifest.default_coverage,
            limits=Limits(rows=settings.max_rows, answer_values=settings.max_answer_values),
        )

    asked = read() if len(body) <= _LARGE_BYTES else await asyncio.to_thread(read)
    prediction = await model.answer(asked.question)

    def write() -> bytes:
        return answer(
            prediction,
            asked.warnings,
            coverage=asked.question.coverage,
            targets=model.targets.names,
            model={"name": model.name, "version": str(model.version)},
        )

    return write() if len(asked.question.x) <= _LARGE_ROWS else await asyncio.to_thread(write)
