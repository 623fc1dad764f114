"""JSON out, and the one error form of every failure."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope, Send

from service.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, ServiceError
from service.state import state_of

KEY_NAME = "errorbar.key"
"""In the ASGI scope: the name of the key that a request came with."""
CLIENT_GONE = 499
"""The status of a request whose client closed the connection; read by nobody, it stands in the access log."""
JSON = b"application/json"
_LENGTH_DIGITS = 18


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as a JSON response."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


@dataclass(slots=True)
class Content:
    """An answer: body, headers and status."""

    body: bytes
    media_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    status: int = 200

    @property
    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of the body first."""
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


def content_length(scope: Scope) -> int:
    """How many bytes the body has by its header; 0 without one."""
    return length_of(header(scope, b"content-length")) or 0


def error_content(error: ServiceError) -> Content:
    """The answer that reports `error`."""
    headers = tuple((name.lower().encode(), value.encode()) for name, value in error.headers.items())
    return Content(orjson.dumps(error.body()), headers=headers, status=error.status)


def add_error_handlers(app: FastAPI) -> None:
    """Let every failure of `app` leave as `{"error": sentence}`."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


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
