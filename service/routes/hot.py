"""The routes that answer predictions, reached without FastAPI's routing, which takes a third of a small request's time."""

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import MethodNotAllowedError, ServiceError
from service.inference.model import ServedModel
from service.metrics import OK
from service.routes.answers import CLIENT_GONE, Content, error_content, send_content
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


@dataclass(frozen=True)
class Route:
    """What a path asks for: how to respond, and the name, version and label that the path tells; none is the default model."""

    respond: Respond
    names: dict[str, str]


class Predictions:
    """Answers what is posted to the prediction paths."""

    def __init__(self, state: ServiceState):
        self._state = state
        vertex = state.settings.vertex_predict_route
        self._routes = ROUTES if vertex is None else ((re.compile(re.escape(vertex)), invocations), *ROUTES)

    def route(self, path: str) -> Route | None:
        """What this path asks for; None where it is no prediction path."""
        for pattern, respond in self._routes:
            found = pattern.fullmatch(path)
            if found is not None:
                return Route(respond, found.groupdict())
        return None

    async def answer(self, route: Route, scope: Scope, receive: Receive) -> Content:
        """The prediction that a request asks for, or what refuses it."""
        started = time.perf_counter()
        metrics, model = self._state.metrics, None
        metrics.in_flight += 1
        outcome = "bug"
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowedError(f"{scope['method']} is not allowed here; use POST", headers={"Allow": "POST"})
            model = self._state.repository.model(**route.names) if route.names else self._state.default_model()
            content = await route.respond(self._state.settings, model, scope, receive)
            outcome = OK
        except ServiceError as error:
            outcome = error.reason
            metrics.rejected[outcome] += 1
            content = error_content(error)
        except ClientDisconnect:
            outcome = "client_gone"
            content = Content(b"", status=CLIENT_GONE)
        finally:
            metrics.in_flight -= 1
            if model is not None:
                model.metrics.finished(outcome, time.perf_counter() - started)
        return content


class HotRoutes:
    """ASGI middleware that answers the prediction paths itself."""

    def __init__(self, app: ASGIApp, *, predictions: Predictions):
        self._app = app
        self._predictions = predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._predictions.route(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
        else:
            await send_content(await self._predictions.answer(route, scope, receive), send)
