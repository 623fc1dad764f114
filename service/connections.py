"""HTTP connections with the limits that uvicorn has not: how long a request may take to arrive, how large its headers and how
many the connections may be. What breaks one is refused as every other request is, with a sentence and a count.

Small, plain requests for predictions are answered from here without ASGI (service/direct.py).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.direct import Direct
from service.errors import OverloadedError, error_body
from service.heads import Head
from service.metrics import ServiceMetrics
from service.routes.bodies import HeldBody
from service.stand_ins import Exchange, Flow, UntilRead

logger = logging.getLogger("service")

HEADER_BYTES = 64 * 1024
"""Limit in bytes of a request's headers, and of consecutive bytes that add no body data. Checked once a read."""
MOST_WAITING = 500
"""At most this many requests of one connection may wait for the answers to those before them."""
LEFTOVER_BYTES = 256 * 1024 * 1024
"""This much of a request that is refused already is still read, and dropped, so that the client gets to see the answer.

A connection that is closed while it sends is reset. To a proxy that is a failing server, which it leaves out for a while.
"""

_LAST_SECONDS = 0.25
_READ_BYTES = 256 * 1024
"""A client must read at least this much of a long answer per `request_seconds`."""
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one connection, and of all together."""

    request_seconds: float
    """A request must arrive in it, from its first byte or the connection's start; a client may not pause reading for longer."""
    connections: int


class Connection(HttpToolsProtocol):
    """One connection. `check` must be called now and then.

    While the service drains, each answer is the last of its connection: a connection that is closed idle may meet a request.
    """

    cycle: Any

    def __init__(
        self,
        *arguments: Any,
        limits: ConnectionLimits,
        metrics: ServiceMetrics,
        draining: Callable[[], bool],
        direct: Direct | None = None,
        **more: Any,
    ):
        super().__init__(*arguments, **more)
        self._direct = direct
        self._held = None if direct is None else HeldBody(direct.bodies)
        """The body of an exchange that is arriving."""
        self._draining = draining
        self._limits = limits
        self._metrics = metrics
        self._arriving_since: float | None = None
        self.unread_since: float | None = None
        """Since when the client has not read much of an answer that waits for it."""
        self._unread_bytes = 0  # in the write buffer at that time
        self._in_head = False
        self._headers = 0
        self._progress = 0  # grows with each head and each piece of a body
        self._quiet_bytes = 0
        self._refusal: tuple[int, str] | None = None  # sent once the requests before it are answered
        self._running: Any = None  # which of several cycles is being answered
        self._leftover_bytes: int | None = None
        self._idle_since: float | None = None
        self._closing_since: float | None = None
        self._last = False  # the connection ends once the rest of this request has come
        self._again = b""  # the head of a request with `Upgrade`, without that header: to be parsed anew

    def connection_made(self, transport: Any) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        self._arriving_since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            limit = self._limits.connections
            self._refuse(
                503, f"overloaded: {limit} connections are open (setting max_connections); try again later", "overloaded"
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        super().connection_lost(exc)
        if self._held is not None:
            self._held.free()
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):  # uvicorn tells only the newest
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self.transport.is_closing() or self._refusal is not None:
            return
        between_requests = self._idle_since is not None and self._arriving_since is None
        self._idle_since = None
        if between_requests and self._begin_known(data):
            return
        headers_before, progress_before = self._headers, self._progress
        self._feed(data)
        if between_requests and self._headers == headers_before + 1:
            self._remember(data)
        if self._leftover_bytes is not None:
            self._leftover_bytes += len(data)
            if self._leftover_bytes > LEFTOVER_BYTES:
                self.transport.close()
        if self._arriving_since is None:
            if not self._busy():  # what came is of no request, or was the rest of one that was answered early
                self._idle_since = self.loop.time()
        elif self._progress > progress_before:
            self._quiet_bytes = 0
        else:
            self._quiet_bytes += len(data)
            if self._quiet_bytes > HEADER_BYTES:
                self._refuse(431, f"the headers are larger than {HEADER_BYTES} bytes", "too_large")

    def on_message_begin(self) -> None:
        """Called by the parser. Raises HttpParserError where too many requests wait."""
        super().on_message_begin()
        self._in_head = True
        self._headers += 1
        self._progress += 1
        self._arriving_since = self.loop.time()
        self._idle_since = None  # one before it in the same data may have been answered at once
        if len(self.pipeline) >= MOST_WAITING:
            sentence = f"overloaded: {MOST_WAITING} requests of this connection wait for an answer; read the answers first"
            self._refuse(503, sentence, "overloaded")
            raise httptools.HttpParserError(sentence)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser. Raises HttpParserError for trailers: they would count as headers, and have no limit."""
        if not self._in_head:
            raise httptools.HttpParserError("a request has no trailers here")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by the parser. Raises HttpParserError for CONNECT, and for an invalid URL, which the parser lets pass."""
        self._progress += 1
        if self.parser.get_method() == b"CONNECT":
            raise httptools.HttpParserError("this is no proxy")
        if self.parser.should_upgrade():
            self._again = self._head_without_upgrade()
            return
        exchange = self._exchange()
        if exchange is not None:
            self.cycle = exchange
            self._in_head = False
            return
        try:
            super().on_headers_complete()
            self._in_head = False
            self.cycle.transport = UntilRead(self.transport, close=self.close_when_read)
            if self._draining():
                self.cycle.keep_alive = False
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as error:
            raise httptools.HttpParserError("the address is not valid") from error

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._progress += 1
        exchange = self.cycle
        if self._direct is None or self._held is None or not isinstance(exchange, Exchange):
            super().on_body(body)
        elif not exchange.response_complete:
            exchange.chunks.append(body)
            try:
                self._held.grow(len(body))
            except OverloadedError as error:
                self._held.free()
                exchange.chunks.clear()
                scope: Any = self.scope
                self._direct.refuse(scope, error, done=partial(self._answer, exchange))

    def close_when_read(self) -> None:
        """Close the connection, once the request that was answered is here whole."""
        self._last = self._arriving_since is not None and not self._in_head and not self.pipeline
        if not self._last:
            self.transport.close()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._again:
            return
        if self._last:
            self.transport.close()
        self._arriving_since = self._leftover_bytes = None
        exchange = self.cycle
        if self._direct is None or self._held is None or not isinstance(exchange, Exchange):
            super().on_message_complete()
            return
        if exchange.response_complete:  # refused while it arrived
            return
        chunks, exchange.chunks = exchange.chunks, []
        self._held.free()  # it is read now, or held anew
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        exchange.body_bytes = len(body)
        self._begin(self._direct, exchange, self.scope, body)

    def on_response_complete(self) -> None:
        """Called when an answer is out."""
        if self._arriving_since is not None and not self._in_head and not self.pipeline:
            self._leftover_bytes = 0  # of this request, which was refused early: the rest of it is of no use
        if self.transport.is_closing():
            return
        if self.pipeline:
            following = self.pipeline.pop()
            if self._arriving_since is not None:
                self._arriving_since = self.loop.time()  # until now nothing was read
            self.flow.resume_reading()
            self._start_asgi_task(*following)
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self._refusal is not None:
            self._write_refusal(*self._refusal)
        elif self._arriving_since is None:
            self._idle_since = self.loop.time()  # `check` closes it: no timer for every request, as uvicorn has

    def shutdown(self) -> None:
        """Called when the service has stopped listening. A request may be on its way: the connection stays a little longer."""
        self.loop.call_later(_LAST_SECONDS, super().shutdown)

    def pause_writing(self) -> None:
        """Called by the transport when the client reads too slowly."""
        self.unread_since = self.loop.time()
        self._unread_bytes = self.transport.get_write_buffer_size()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Called by the transport when the client has read on."""
        self.unread_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called where the bytes are no HTTP."""
        self._refuse(400, msg, "invalid")

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def check(self, now: float) -> None:
        """Close the connection where its client lets the service wait for too long."""
        longest = self._limits.request_seconds
        if self.transport is None:
            return
        if self.unread_since is not None:  # closing, too, waits for the client to read
            left = self.transport.get_write_buffer_size()
            if self._unread_bytes - left >= _READ_BYTES:
                self.unread_since, self._unread_bytes = now, left
            if now - self.unread_since > longest:
                self.drop_unread()
        elif self.transport.is_closing():  # a few bytes that the client does not read keep it from closing
            self._closing_since = self._closing_since or now
            if now - self._closing_since > longest:
                self.drop_unread()
        elif self._arriving_since is not None and not self.pipeline and now - self._arriving_since > longest:
            sentence = f"the request did not arrive within {longest:g} seconds (setting request_seconds)"
            self._refuse(408, sentence, "slow")
        elif self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()

    def drop_unread(self) -> None:
        """Close the connection now, with what its client has not read."""
        logger.info("%s has not read its answers, and is cut off", self.client[0] if self.client else "a client")
        self._metrics.rejected["unread"] += 1
        self.transport.abort()

    def _feed(self, data: bytes) -> None:
        """Give the parser what came.

        It takes what follows an `Upgrade` header for another protocol, and none is spoken here: a request with that header
        (Java's HttpClient sends it by default) is parsed anew without it.
        """
        rest = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    head, self._again = self._again, b""
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                    self.parser.feed_data(head)
                else:
                    return
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _exchange(self) -> Exchange | None:
        """The exchange that begins if the request is a plain one for a prediction and none is before it."""
        if self._direct is None or self.flow.write_paused or not (self.cycle is None or self.cycle.response_complete):
            return None
        path, _, query = self.url.partition(b"?")
        route = self._direct.route(path)
        parser = self.parser
        if route is None or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        if not self._direct.takes(route, self.headers):
            return None
        scope: Any = self.scope
        scope["method"], scope["path"], scope["query_string"] = "POST", path.decode(), query
        return Exchange(route, keep_alive=parser.should_keep_alive() and not self._draining())

    def _begin_known(self, data: bytes) -> bool:
        """If `data` is one request with a head that is known, begin it."""
        if self._direct is None or self.flow.write_paused:
            return False
        known = self._direct.heads.find(data)
        if known is None:
            return False
        head, body = known
        self.cycle = Exchange(head.route, keep_alive=not self._draining())
        self._begin(self._direct, self.cycle, {**head.scope, "client": self.client}, body)
        return True

    def _remember(self, data: bytes) -> None:
        """If `data` was one whole request, remember its head."""
        exchange = self.cycle
        complete = self._arriving_since is None
        if self._direct is not None and isinstance(exchange, Exchange) and exchange.keep_alive and complete:
            scope: Any = self.scope
            self._direct.heads.add(data, Head(exchange.route, scope, body_bytes=exchange.body_bytes))

    def _begin(self, direct: Direct, exchange: Exchange, scope: Any, body: bytes) -> None:
        self._running = exchange
        exchange.give_up = direct.begin(exchange.route, scope, body, done=partial(self._answer, exchange))

    def _answer(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        exchange.response_started = exchange.response_complete = True
        exchange.give_up = None
        if exchange.disconnected or self.transport.is_closing():
            return
        lines = [head]
        for name, value in self.server_state.default_headers:
            lines.append(b"%b: %b" % (name, value))
        if not exchange.keep_alive:
            lines.append(b"connection: close")
        lines += (b"", body)
        self.transport.write(b"\r\n".join(lines))
        if not exchange.keep_alive:
            self.close_when_read()
        self.on_response_complete()

    def _busy(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self.pipeline) or not (self.cycle is None or self.cycle.response_complete)

    def _refuse(self, status: int, sentence: str, reason: str) -> None:
        """Answer what is arriving without the application, unless that has begun to, after all that came before; and close."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._metrics.rejected[reason] += 1
        in_body = self._arriving_since is not None and not self._in_head and self.cycle is not None
        if in_body and not self.pipeline:
            if self.cycle.response_started:
                self.transport.close()
            else:
                self._write_refusal(status, sentence)
            return
        if in_body:
            self.pipeline.popleft()
        self._refusal = status, sentence
        self._arriving_since = None
        if self._running is None or self._running.response_complete:
            self._write_refusal(status, sentence)

    def _write_refusal(self, status: int, sentence: str) -> None:
        body = orjson.dumps(error_body(sentence))
        retry = "retry-after: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n{retry}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
