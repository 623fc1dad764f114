"""Bodies in, JSON out, and the one error form of every failure."""

import asyncio
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, ServiceError, TooLargeError
from service.state import state_of


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as a JSON response."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


CLIENT_GONE = 499
"""The status of a request whose client closed the connection; read by nobody, it stands in the access log."""
JSON = b"application/json"
_LENGTH_DIGITS = 18
LARGE_BYTES = 100_000
LARGE_CELLS = 20_000
LARGE_NUMBERS = 2500
"""Beyond any, reading or writing takes over a millisecond and moves to a thread, so that others are served meanwhile."""

_JOINED_ASIDE = 2**20
"""From so many bytes on, bytes.join lets other threads run."""


@dataclass(slots=True)
class Content:
    """What goes back."""

    body: bytes
    media_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    status: int = 200

    @property
    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Those that tell of the body first."""
        return [(b"content-type", self.media_type), (b"content-length", b"%d" % len(self.body)), *self.headers]


async def send_content(content: Content, send: Send) -> None:
    """Answer an ASGI request."""
    await send({"type": "http.response.start", "status": content.status, "headers": content.all_headers})
    await send({"type": "http.response.body", "body": content.body})


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of a lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def length_of(value: bytes | None) -> int | None:
    """The length that a header tells; None where there is none, or no plain number. A huge one is sys.maxsize."""
    if value is None or not value.isdigit():
        return None
    digits = value.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= _LENGTH_DIGITS else sys.maxsize


def error_content(error: ServiceError) -> Content:
    """What tells of `error`."""
    headers = tuple((name.lower().encode(), value.encode()) for name, value in error.headers.items())
    return Content(orjson.dumps(error.body()), headers=headers, status=error.status)


async def read_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """The request's body, decompressed where `Content-Encoding` says gzip or deflate.

    `limit`: bytes, before and after decompression; a larger body is refused (TooLargeError) without reading on.
    """
    encoding = None
    for name, value in scope["headers"]:
        if name == b"content-length" and (length_of(value) or 0) > limit:
            raise _too_large(limit)  # before it is sent
        if name == b"content-encoding":
            encoding = value.decode("latin-1").lower()
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _rest_of_body(receive, body, limit=limit)
    elif message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(body) > limit:
        raise _too_large(limit)
    return body if encoding is None else await asyncio.to_thread(_decompressed, body, encoding, limit=limit)


def add_error_handlers(app: FastAPI) -> None:
    """Let every failure of `app` leave as `{"error": sentence}`."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _rest_of_body(receive: Receive, start: bytes, *, limit: int) -> bytes:
    pieces, size, more = [start], len(start), True
    while more:
        if size > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        more = message.get("more_body", False)
    return b"".join(pieces) if size < _JOINED_ASIDE else await asyncio.to_thread(b"".join, pieces)


def _decompressed(body: bytes, encoding: str, *, limit: int) -> bytes:
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise InvalidRequestError(f"Content-Encoding {encoding[:40]!r} is not read here; send gzip, deflate or no encoding")
    reader = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # finds out by itself whether gzip or zlib
    try:
        plain = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"the body is not {encoding}: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not reader.eof:
        raise InvalidRequestError(f"the body is not {encoding}: it is cut short")
    if reader.unused_data:
        raise InvalidRequestError(f"the body holds {len(reader.unused_data)} bytes after its {encoding} data; send one stream")
    return plain


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit} bytes (setting max_body_bytes): send the rows in parts")


async def _on_service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    state_of(request).metrics.rejected[error.reason] += 1
    return json_answer(error.body(), status=error.status, headers=error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    if not isinstance(error, HTTPException):
        raise error
    allowed = (error.headers or {}).get("Allow", "")
    if error.status_code == MethodNotAllowedError.status:
        mapped: ServiceError = MethodNotAllowedError(f"{request.method} is not allowed here; use {allowed or 'another method'}")
    elif error.status_code == NotFoundError.status:
        mapped = NotFoundError(f"there is no route {request.method} {request.url.path[:200]}; /docs lists the routes")
    else:
        mapped = InvalidRequestError(str(error.detail))
    state_of(request).metrics.rejected[mapped.reason] += 1
    return json_answer(mapped.body(), status=error.status_code, headers=error.headers)
