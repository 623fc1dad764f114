"""Predictions without ASGI: what a connection asks of the service when a small, plain POST to a prediction path has come.

ASGI costs such a request as much as its prediction does: a task, messages to and fro, and a coroutine for every layer. What the
layers do is done here by the same objects; any other request goes through them.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus

from starlette.types import Scope

from service.answers import CLIENT_GONE, Content, error_content, length_of
from service.errors import ServiceError
from service.heads import KnownHeads
from service.metrics import ServiceMetrics
from service.routes.hot import GiveUp, Predictions, Route
from service.routes.infer import JSON_LENGTH_HEADER, V2, bytes_to_read
from service.security import Guard
from service.settings import Settings
from service.telemetry import RequestWatch

DIRECT_BYTES = 64 * 1024
"""A body that takes longer to read than so much JSON goes through ASGI, where what takes long is done in threads."""
_PLAIN_TYPES = frozenset(
    [b"application/json", b"application/json; charset=utf-8", b"application/octet-stream", b"application/x-www-form-urlencoded"]
)
"""Content-Types of JSON and of tensors, as clients name them. Tables go through ASGI, a few bytes of which may be many rows."""

_UNUSUAL = frozenset([b"content-encoding", b"transfer-encoding", b"expect"])
_ROUTES = 1000
_PATH_BYTES = 1000
_STATUS = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_STATUS[CLIENT_GONE] = b"%d Client Gone" % CLIENT_GONE  # none of HTTP's own


class Direct:
    """Answers requests for predictions, from their bytes to bytes."""

    def __init__(self, predictions: Predictions, *, guard: Guard, metrics: ServiceMetrics, settings: Settings):
        self._predictions = predictions
        self._guard = guard
        self._metrics = metrics
        self._access_log = settings.access_log
        self._most_bytes = settings.max_body_bytes
        self._known_route = lru_cache(_ROUTES)(self._route)
        self.bodies = predictions.bodies
        self.heads = KnownHeads()
        """Those of requests that were answered here."""

    def route(self, path: bytes) -> Route | None:
        """What a request line's path asks for; None where it is no prediction path, or not a plain and short one."""
        return self._known_route(path) if len(path) <= _PATH_BYTES else None

    def takes(self, route: Route, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a POST with these headers is small and plain."""
        length = json_length = None
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == JSON_LENGTH_HEADER and route.protocol is V2 and json_length is None:
                json_length = value
            elif name in _UNUSUAL or (name == b"content-type" and value not in _PLAIN_TYPES):
                return False
        size = length_of(length)
        return size is not None and size <= self._most_bytes and bytes_to_read(size, json_length) <= DIRECT_BYTES

    def begin(self, route: Route, scope: Scope, body: bytes, *, done: Callable[[bytes, bytes], None]) -> GiveUp | None:
        """Answer a POST: `done(head, body)` is called exactly once. `head` lacks its final CRLF, so that headers can be added.

        None where it has been called already.
        """
        end = self._end(scope, done)
        refusal = self._guard.refusal(scope)
        if refusal is None:
            return self._predictions.begin(route, scope, body, end=end)
        end(refusal)
        return None

    def refuse(self, scope: Scope, error: ServiceError, *, done: Callable[[bytes, bytes], None]) -> None:
        """Answer a POST that has not arrived whole, as `begin` does."""
        self._metrics.rejected[error.reason] += 1
        self._end(scope, done)(error_content(error))

    def _end(self, scope: Scope, done: Callable[[bytes, bytes], None]) -> Callable[[Content | Exception], None]:
        watch = RequestWatch(scope, self._metrics)

        def end(result: Content | Exception) -> None:
            content = watch.bug(result) if isinstance(result, Exception) else result
            if self._access_log:
                watch.log(content.status)
            done(*_response(content, watch.request_id))

        return end

    def _route(self, path: bytes) -> Route | None:
        plain = path.isascii() and b"%" not in path
        return self._predictions.route(path.decode()) if plain else None


def _response(content: Content, request_id: bytes) -> tuple[bytes, bytes]:
    more = b"".join([b"\r\n%b: %b" % header for header in content.headers])
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b%b"
    return head % (_STATUS[content.status], content.media_type, len(content.body), request_id, more), content.body
