"""The routes that answer predictions, reached without FastAPI's routing, which takes a third of a small request's time."""

import re
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import MethodNotAllowedError, ServiceError
from service.routes.answers import CLIENT_GONE, Content, error_answer
from service.routes.infer import infer
from service.routes.predict import predict
from service.state import ServiceState

_ROUTES: tuple[tuple[re.Pattern[str], Callable[..., Awaitable[Content]]], ...] = (
    (
        re.compile(r"/v1/models/(?P<name>[^/]+?)(?:/versions/(?P<version>[^/]+)|/labels/(?P<label>[^/]+))?:predict"),
        predict,
    ),
    (re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer"), infer),
)


class HotRoutes:
    """ASGI middleware that answers the prediction paths itself."""

    def __init__(self, app: ASGIApp, *, state: ServiceState):
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            for pattern, respond in _ROUTES:
                path = pattern.fullmatch(scope["path"])
                if path is not None:
                    await self._respond(respond, path.groupdict(), scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _respond(
        self, respond: Callable[..., Awaitable[Content]], names: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError(f"{scope['method']} is not allowed here; use POST")
            content = await respond(self._state, scope, receive, **names)
        except ServiceError as error:
            allow = {"Allow": "POST"} if isinstance(error, MethodNotAllowedError) else None
            await error_answer(error, headers=allow)(scope, receive, send)
        except ClientDisconnect:
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
        else:
            headers = [
                (b"content-type", content.media_type),
                (b"content-length", b"%d" % len(content.body)),
                *content.headers,
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content.body})
