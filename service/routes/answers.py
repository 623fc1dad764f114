"""Bodies in, JSON out, and the one error form of every failure."""

import zlib
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, ServiceError, TooLargeError


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as a JSON response."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def read_body(request: Request, *, limit: int) -> bytes:
    """The request's body, decompressed where `Content-Encoding` says gzip or deflate.

    `limit`: bytes, before and after decompression; a larger body is refused (TooLargeError) without reading on.
    """
    message = await request.receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _rest_of_body(request, body, limit=limit)
    elif message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(body) > limit:
        raise _too_large(limit)
    encoding = request.headers.get("content-encoding", "identity").lower()
    return body if encoding == "identity" else _decompressed(body, encoding, limit=limit)


def add_error_handlers(app: FastAPI) -> None:
    """Let every failure of `app` leave as `{"error": sentence}`."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _rest_of_body(request: Request, start: bytes, *, limit: int) -> bytes:
    body, more = bytearray(start), True
    while more:
        if len(body) > limit:
            raise _too_large(limit)
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _decompressed(body: bytes, encoding: str, *, limit: int) -> bytes:
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
    return plain


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit} bytes (setting max_body_bytes): send the rows in parts")


async def _on_service_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return json_answer(error.body(), status=error.status, headers=headers)


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
    return json_answer(mapped.body(), status=error.status_code, headers=error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # read by nobody; stands in the access log
