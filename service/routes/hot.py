"""The routes that answer predictions, reached without FastAPI's routing, which takes a third of a small request's time."""

import re
import time
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import MethodNotAllowedError, ServiceError
from service.inference.model import ServedModel
from service.metrics import OK
from service.routes.answers import CLIENT_GONE, Content, error_answer
from service.routes.infer import infer
from service.routes.predict import invocations, predict
from service.settings import Settings
from service.state import ServiceState

Respond = Callable[[Settings, ServedModel, Scope, Receive], Awaitable[Content]]

ROUTES: tuple[tuple[re.Pattern[str], Respond], ...] = (
    (
        re.compile(r"/v1/models/(?P<name>[^/]+?)(?:/versions/(?P<version>[^/]+)|/labels/(?P<label>[^/]+))?:predict"),
        predict,
    ),
    (re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer"), infer),
    (re.compile("/invocations"), invocations),
)


class HotRoutes:
    """ASGI middleware that answers the prediction paths itself."""

    def __init__(self, app: ASGIApp, *, state: ServiceState):
        self._app = app
        self._state = state
        vertex = state.settings.vertex_predict_route
        self._routes = ROUTES if vertex is None else ((re.compile(re.escape(vertex)), invocations), *ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            for pattern, respond in self._routes:
                path = pattern.fullmatch(scope["path"])
                if path is not None:
                    await self._respond(respond, path.groupdict(), scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _respond(self, respond: Respond, names: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        metrics, model = self._state.metrics, None
        metrics.in_flight += 1
        outcome = "bug"
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError(f"{scope['method']} is not allowed here; use POST")
            model = self._state.repository.model(**names) if names else self._state.default_model()
            content = await respond(self._state.settings, model, scope, receive)
            outcome = OK
        except ServiceError as error:
            outcome = error.reason
            metrics.rejected[outcome] += 1
            allow = {"Allow": "POST"} if isinstance(error, MethodNotAllowedError) else None
            await error_answer(error, headers=allow)(scope, receive, send)
        except ClientDisconnect:
            outcome = "client_gone"
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
        finally:
            metrics.in_flight -= 1
            if model is not None:
                model.metrics.finished(outcome, time.perf_counter() - started)
        if outcome == OK:
            headers = [
                (b"content-type", content.media_type),
                (b"content-length", b"%d" % len(content.body)),
                *content.headers,
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content.body})
