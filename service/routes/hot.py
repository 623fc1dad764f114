"""The routes that answer predictions, reached without FastAPI's routing, which takes a third of a small request's time."""

import asyncio
import math
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import (
    CLIENT_GONE,
    Content,
    content_length,
    error_content,
    send_content,
)
from service.errors import DeadlineError, MethodNotAllowedError, ServiceError
from service.inference.batcher import TOO_LATE, Part
from service.metrics import OK
from service.model import ServedModel
from service.predictions import check_support
from service.routes.bodies import SMALL_BYTES, BodyRoom, HeldBody, beginning, decompressed, encoding_of, receive_body
from service.routes.infer import V2
from service.routes.predict import INVOCATIONS, V1
from service.routes.protocol import LARGE_BYTES, Asked, Protocol, terms_of
from service.state import ServiceState

_ROUTES: tuple[tuple[re.Pattern[str], Protocol], ...] = (
    (
        re.compile(r"/v1/models/(?P<name>[^/]+?)(?:/versions/(?P<version>[^/]+)|/labels/(?P<label>[^/]+))?:predict"),
        V1,
    ),
    (re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer"), V2),
    (re.compile("/invocations"), INVOCATIONS),
)

_SHORT_BYTES = 1000
"""No shorter body takes long to read, whatever it holds."""

GiveUp = Callable[[], None]
"""To be called when the client has gone: what is not run yet will not be run."""


@dataclass(frozen=True)
class Route:
    """What a path asks for, and the name, version and label that it tells; without a name it is the default model."""

    protocol: Protocol
    names: dict[str, str]


def find_route(path: str) -> Route | None:
    """What this path asks for; None where it is no prediction path."""
    for pattern, protocol in _ROUTES:
        found = pattern.fullmatch(path)
        if found is not None:
            return Route(protocol, found.groupdict())
    return None


class Predictions:
    """Answers what is posted to the prediction paths."""

    def __init__(self, state: ServiceState):
        self._state = state
        self._vertex_route = state.settings.vertex_predict_route
        self.bodies = BodyRoom(state.settings.max_body_bytes)
        self._long_work = asyncio.Semaphore(1)  # Python runs one thread at a time, and the event loop waits behind all of them
        self._aside: set[asyncio.Task[Content]] = set()  # the event loop keeps only weak references to them

    def route(self, path: str) -> Route | None:
        """What this path asks for; None where it is no prediction path."""
        return Route(INVOCATIONS, {}) if path == self._vertex_route else find_route(path)

    async def answer(self, route: Route, scope: Scope, receive: Receive) -> Content:
        """The prediction that a request asks for, or what refuses it. What takes long is done in threads."""
        work, held = _Work(self._state, route.protocol, scope), HeldBody(self.bodies)
        result: Content | Exception = RuntimeError("the request was cancelled")
        try:
            model = work.find_model(route.names)
            if content_length(scope) > LARGE_BYTES:
                model.batcher.check_room()  # a request costs least to refuse before it is read
            body = await receive_body(scope, receive, limit=self._state.settings.max_body_bytes, held=held)
            work.arrived()
            asked = await self._read(work, route.protocol, model, scope, body)
            del body
            held.free()
            question, seconds = asked.question, asked.timeout_seconds
            outputs = model.batcher.outputs(
                question.x, coverage=question.coverage, outputs=asked.outputs, timeout_seconds=seconds, since=work.waiting_since
            )
            part = await _while_connected(outputs, receive)
            large = route.protocol.writing_takes_long(asked)
            result = await self._in_thread(work.write, model, asked, part) if large else work.write(model, asked, part)
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is raised below, once it is counted
            result = error
        finally:
            held.free()
            result = work.end(result)
        if isinstance(result, Exception):
            raise result
        return result

    async def _read(self, work: "_Work", protocol: Protocol, model: ServedModel, scope: Scope, body: bytes) -> Asked[Any]:
        """What a body asks for. Raises DeadlineError where it waits too long to be read."""
        encoded = encoding_of(scope) is not None
        large = encoded and len(body) > SMALL_BYTES  # however little it may hold
        plain = beginning(body, size=SMALL_BYTES + 1) if encoded and not large else body
        large = large or (encoded and len(plain) > SMALL_BYTES)
        if not large and not protocol.reading_takes_long(model, scope, plain):
            return work.read(model, body)
        last = work.waiting_since + self._state.settings.deadline_seconds
        asked: Asked[Any] = await self._in_thread(work.read, model, body, last=last)
        return asked

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any, last: float = math.inf) -> Any:
        """`function(*arguments)` in a thread, one such at a time. Raises DeadlineError where its turn comes after `last`."""
        async with self._long_work:
            if time.perf_counter() > last:
                raise DeadlineError(TOO_LATE)
            return await asyncio.to_thread(function, *arguments)

    def begin(self, route: Route, scope: Scope, body: bytes, *, end: Callable[[Content | Exception], None]) -> GiveUp | None:
        """As `answer`, for a small POST whose body is here, without a task: `end` gets the answer, or a bug, now or soon.

        None where it has got it.
        """
        work = _Work(self._state, route.protocol, scope)

        def ran(result: Part | Exception) -> None:
            if isinstance(result, Exception):
                end(work.end(result))
                return
            if route.protocol.writing_takes_long(asked):
                self._keep(self._in_thread(work.write, model, asked, result), written)
                return
            try:
                content: Content | Exception = work.write(model, asked, result)
            except Exception as error:  # noqa: BLE001 - the caller tells of it
                content = error
            end(work.end(content))

        def written(result: Content | Exception) -> None:
            end(work.end(result))

        try:
            model = work.find_model(route.names)
            if len(body) > LARGE_BYTES:
                model.batcher.check_room()
            if len(body) > _SHORT_BYTES and route.protocol.reading_takes_long(model, scope, body):
                work.hand_over()
                return self._begin_aside(route, scope, body, end)
            asked = work.read(model, body)
            question, seconds = asked.question, asked.timeout_seconds
            call = model.batcher.submit(
                question.x, coverage=question.coverage, outputs=asked.outputs, done=ran, timeout_seconds=seconds
            )
        except Exception as error:  # noqa: BLE001 - the caller tells of it
            end(work.end(error))
            return None
        return lambda: model.batcher.give_up(call, ClientDisconnect())

    def _begin_aside(self, route: Route, scope: Scope, body: bytes, end: Callable[[Content | Exception], None]) -> GiveUp:
        """As `begin`, for a body that takes long to read though it is small."""
        gone = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            message = next(messages, None)
            if message is None:
                await gone.wait()
            return message or {"type": "http.disconnect"}

        self._keep(self.answer(route, scope, receive), end)
        return gone.set

    def _keep(self, answer: Coroutine[Any, Any, Content], end: Callable[[Content | Exception], None]) -> None:
        """Let `end` have what `answer` gives or raises."""

        def answered(task: asyncio.Task[Content]) -> None:
            self._aside.discard(task)
            if task.cancelled():  # the process ends
                return
            error = task.exception()
            end(error if isinstance(error, Exception) else task.result())

        task = asyncio.create_task(answer)
        self._aside.add(task)
        task.add_done_callback(answered)


class _Work:
    """What one request needs on its way, and what is counted of it."""

    def __init__(self, state: ServiceState, protocol: Protocol, scope: Scope):
        self._state = state
        self._protocol = protocol
        self._scope = scope
        self._model: ServedModel | None = None
        self._asked: Asked[Any] | None = None
        self._started = time.perf_counter()
        self._read_seconds = self._write_seconds = 0.0
        state.metrics.in_flight += 1

    def find_model(self, names: Mapping[str, str]) -> ServedModel:
        method = self._scope["method"]
        if method != "POST":
            raise MethodNotAllowedError(f"{method} is not allowed here; use POST", headers={"Allow": "POST"})
        self._model = model = self._state.repository.model(**names) if names else self._state.default_model()
        return model

    def arrived(self) -> None:
        """The body is here whole: what it takes a client to send is no matter of the model's."""
        self._started = time.perf_counter()

    @property
    def waiting_since(self) -> float:
        """When the body was here whole; the time that reading it took is none of waiting."""
        return self._started + self._read_seconds

    def hand_over(self) -> None:
        """The request goes another way, which counts it."""
        self._state.metrics.in_flight -= 1

    def read(self, model: ServedModel, body: bytes) -> Asked[Any]:
        """In any thread. Decompressed here, no more bodies take their full size at a time than there are threads."""
        started = time.perf_counter()
        body = decompressed(self._scope, body, limit=self._state.settings.max_body_bytes)
        self._asked = asked = self._protocol.read(terms_of(model, self._state.limits), self._scope, body)
        check_support(asked.question, model.targets)
        self._read_seconds = time.perf_counter() - started
        return asked

    def write(self, model: ServedModel, asked: Asked[Any], part: Part) -> Content:
        started = time.perf_counter()
        content = self._protocol.write(model, self._scope, asked, part)
        self._write_seconds = time.perf_counter() - started
        return content

    def end(self, result: Content | Exception) -> Content | Exception:
        """What the client gets: `result`, or what reports a ServiceError or a client that has gone. A bug stays as it is."""
        metrics, outcome = self._state.metrics, OK
        metrics.in_flight -= 1
        if isinstance(result, ServiceError):
            outcome = result.reason
            metrics.rejected[outcome] += 1
            result = error_content(result)
        elif isinstance(result, ClientDisconnect):
            outcome = "client_gone"
            result = Content(b"", status=CLIENT_GONE)
        elif isinstance(result, Exception):
            outcome = "bug"
        if self._model is not None:
            counted = self._model.metrics
            counted.finished(outcome, time.perf_counter() - self._started)
            counted.seconds["read"] += self._read_seconds
            counted.seconds["write"] += self._write_seconds
            if self._asked is not None:
                counted.unusual_rows += self._asked.unusual_rows
        return result


async def _while_connected(outputs: Coroutine[Any, Any, Part], receive: Receive) -> Part:
    """What `outputs` gives. Where the client goes first, it is cancelled; raises ClientDisconnect.

    The body must have been received: ASGI then has nothing to tell but that the client has gone.
    """
    running, message = asyncio.ensure_future(outputs), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((running, message), return_when=asyncio.FIRST_COMPLETED)
        if not running.done() and message.result()["type"] == "http.disconnect":
            raise ClientDisconnect
        return await running
    finally:
        running.cancel()
        message.cancel()


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
