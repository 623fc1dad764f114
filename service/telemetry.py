"""Request ids and logs. A request's payload is never logged."""

import codecs
import io
import json
import logging
import queue
import random
import re
import threading
import time
from datetime import UTC, datetime
from typing import BinaryIO, TextIO, cast

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import KEY_NAME, Content, header, send_content
from service.errors import error_body
from service.metrics import ServiceMetrics

access_logger = logging.getLogger("service.access")
logger = logging.getLogger("service")

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_LOGGED_BYTES = 200
_LOGGED_CHARACTERS = 500
_STANDARD_ERROR = 2
_WAITING_LINES = 10_000
_LAST_SECONDS = 1.0
codecs.lookup("unicode_escape")  # imports it now: at its first use there may be no file descriptor left
_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class RequestWatch:
    """A request's id, its line in the access log, and what tells of a bug that it met."""

    def __init__(self, scope: Scope, metrics: ServiceMetrics):
        self._metrics = metrics
        self.request_id = _request_id(scope)
        """The client's, if it is a safe one."""
        self._scope = scope
        self._started = time.perf_counter()

    def bug(self, error: Exception) -> Content:
        """What a client hears of an error that nobody foresaw, which the log has in full."""
        self._metrics.rejected["bug"] += 1
        name = self.request_id.decode()
        logger.error("request %s failed: this is a bug", name, exc_info=error, extra={"request_id": name})
        sentence = f"internal error; the server's log has it under request id {name}"
        return Content(orjson.dumps(error_body(sentence) | {"request_id": name}), status=500)

    def log(self, status: int) -> None:
        """Write the line. status: 0 where there was no answer."""
        seconds, scope, request_id = time.perf_counter() - self._started, self._scope, self.request_id.decode()
        client = scope["client"][0] if scope.get("client") else "-"
        # a newline in a path must not make a second line
        path = scope["path"][:_LOGGED_CHARACTERS].encode("unicode_escape").decode()
        extra = {
            "request_id": request_id,
            "client": client,
            "method": scope["method"],
            "path": path,
            "status": status,
            "milliseconds": round(seconds * 1e3, 3),
        }
        if KEY_NAME in scope:
            extra["key"] = scope[KEY_NAME]
        forwarded = header(scope, b"x-forwarded-for")
        if forwarded is not None:
            extra["forwarded_for"] = forwarded[:_LOGGED_BYTES].decode("latin-1").encode("unicode_escape").decode()
        text = "%s %s %s %s %.1f ms %s"
        outcome = status or "no answer (client gone)"
        access_logger.info(text, client, scope["method"], path, outcome, seconds * 1e3, request_id, extra=extra)


class RequestTelemetry:
    """ASGI middleware: every response carries a request id, every request its log line, and every bug a 500 with that id."""

    def __init__(self, app: ASGIApp, *, access_log: bool, metrics: ServiceMetrics):
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = RequestWatch(scope, self._metrics)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", watch.request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            content = watch.bug(error)
            if status:  # half an answer is out: the server closes the connection
                raise
            await send_content(content, send_with_id)
        finally:
            if self._access_log:
                watch.log(status)


def configure_logging(*, log_format: str, level: str) -> None:
    """Send all logs to standard error, as lines for people (`text`) or as one JSON object a line (`json`)."""
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    handler = _LogWriter(_JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for noisy in ("watchfiles", "httpx", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _LogWriter(logging.Handler):
    """Writes lines to standard error in a thread: where nobody reads them, lines are lost, and no request waits."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self.setFormatter(formatter)
        # The only queue whose `put` may be called within itself: the garbage collector may run there, and its objects log
        self._lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._taken = self._written = self._lost = 0
        # Not sys.stderr itself: its lock, held by a thread that waits, would abort the process at its end
        raw = io.FileIO(_STANDARD_ERROR, "w", closefd=False)
        stream = io.TextIOWrapper(cast("BinaryIO", raw), "utf-8", errors="backslashreplace", write_through=True)
        threading.Thread(target=self._write_to, args=(stream,), daemon=True).start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Called by logging. Without its lock: a thread that the end of the process stops here would keep it for ever."""
        if self._lines.qsize() < _WAITING_LINES:
            self._taken += 1
            self._lines.put(record)
        else:
            self._lost += 1
        return True

    def flush(self) -> None:
        """Called when the process ends: give the thread a second to write what waits."""
        end = time.monotonic() + _LAST_SECONDS
        while self._written < self._taken and time.monotonic() < end:
            time.sleep(0.01)

    def _write_to(self, stream: TextIO) -> None:
        while True:
            record = self._lines.get()
            try:
                stream.write(f"{self.format(record)}\n")
            except OSError:  # closed at its other end
                pass
            except Exception:  # noqa: BLE001 - as all handlers of logging do
                self.handleError(record)
            if self._lost and self._lines.empty():
                lost, self._lost = self._lost, 0
                logger.warning("%d lines of the log were lost: they were not read fast enough", lost)
            self._written += 1


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
