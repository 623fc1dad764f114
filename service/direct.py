"""Predictions without ASGI: what a connection asks of the service when a small, plain POST to a prediction path has come.

ASGI costs such a request as much as its prediction does: a scope, two queues of messages and a coroutine for every layer. What
the layers do is done here by the same objects; any other request goes through them.
"""

from functools import lru_cache
from http import HTTPStatus

from starlette.types import Message, Scope

from service.routes.answers import Content
from service.routes.hot import Predictions, Route
from service.security import Guard
from service.telemetry import RequestWatch

_ROUTES = 1000
_STATUS = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}


class Direct:
    """Answers requests for predictions, from their bytes to bytes."""

    def __init__(self, predictions: Predictions, *, guard: Guard, access_log: bool):
        self._predictions = predictions
        self._guard = guard
        self._access_log = access_log
        self.route = lru_cache(_ROUTES)(self._route)
        """What a request line's path asks for; None where it is no prediction path, or not a plain one."""

    async def answer(self, route: Route, scope: Scope, body: bytes) -> tuple[bytes, bytes]:
        """The response to a POST: its head without the last line break, so that the connection can add to it, and its body."""
        watch = RequestWatch(scope)

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        try:
            content = self._guard.refusal(scope) or await self._predictions.answer(route, scope, receive)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client hears of it
            content = watch.bug(error)
        if self._access_log:
            watch.log(content.status)
        return _response(content, watch.request_id)

    def _route(self, path: bytes) -> Route | None:
        plain = path.isascii() and b"%" not in path
        return self._predictions.route(path.decode()) if plain else None


def _response(content: Content, request_id: bytes) -> tuple[bytes, bytes]:
    more = b"".join([b"\r\n%b: %b" % header for header in content.headers])
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b%b"
    return head % (_STATUS[content.status], content.media_type, len(content.body), request_id, more), content.body
