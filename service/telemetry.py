"""Request ids and logs. A request's payload is never logged."""

import json
import logging
import random
import re
import sys
import time
from datetime import UTC, datetime

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import error_body

access_logger = logging.getLogger("service.access")
logger = logging.getLogger("service")

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class RequestTelemetry:
    """ASGI middleware: every response carries a request id, every request its log line, and every bug a 500 with that id."""

    def __init__(self, app: ASGIApp, *, access_log: bool):
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        status = 0
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            name = request_id.decode()
            logger.exception("request %s failed: this is a bug", name, extra={"request_id": name})
            if status:  # half an answer is out: the server closes the connection
                raise
            sentence = f"internal error; the server's log has it under request id {name}"
            await _send_json(send_with_id, 500, error_body(sentence) | {"request_id": name})
        finally:
            if self._access_log:
                _log_access(scope, status=status, seconds=time.perf_counter() - started, request_id=request_id.decode())


def configure_logging(*, log_format: str, level: str) -> None:
    """Send all logs to standard error, as lines for people (`text`) or as one JSON object a line (`json`)."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(_JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("watchfiles", "httpx", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _ATTRIBUTES},
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_REQUEST_ID.fullmatch(value.decode("latin-1")):
            accepted: bytes = value
            return accepted
    return b"%016x" % random.getrandbits(64)


def _log_access(scope: Scope, *, status: int, seconds: float, request_id: str) -> None:
    client = scope["client"][0] if scope.get("client") else "-"
    path = scope["path"].encode("unicode_escape").decode()  # a newline in a path must not make a second line
    extra = {
        "request_id": request_id,
        "client": client,
        "method": scope["method"],
        "path": path,
        "status": status,
        "milliseconds": round(seconds * 1e3, 3),
    }
    outcome = status or "no answer (client gone)"
    access_logger.info("%s %s %s %s %.1f ms %s", client, scope["method"], path, outcome, seconds * 1e3, request_id, extra=extra)


async def _send_json(send: Send, status: int, body: object) -> None:
    content = orjson.dumps(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
