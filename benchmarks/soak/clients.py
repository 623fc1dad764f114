"""Clients that send their next request when their answer is there, or at a pace."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
import numpy as np


@dataclass
class Found:
    """What clients have met."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that must not be, and connections that were broken in the middle of a request."""
    seconds: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of the answers, by status."""
    away: bool = False
    """Whether clients no longer connect anew, as a load balancer that has seen that the service is not ready."""

    @property
    def answers(self) -> int:
        """Of all statuses."""
        return sum(self.statuses.values())

    def milliseconds(self, percent: float, *, status: int = 200) -> float:
        """A percentile of the latency of answers with a status."""
        seconds = self.seconds[status]
        return float(np.percentile(seconds, percent)) * 1e3 if seconds else float("nan")


Check = Callable[[int, bytes], str | None]
"""`check(status, body)`: what is wrong with an answer."""


class _Client(asyncio.Protocol):
    """One connection. It connects anew where the service closes it between two requests."""

    def __init__(self, port: int, request: bytes, found: Found, check: Check, *, begin: float, pace: float):
        """begin: of its requests, on the event loop's clock; pace: seconds from one to the next, at least."""
        self._port = port
        self._request = request
        self._found = found
        self._check = check
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body = b""
        self._sent = 0.0
        self._due = begin
        self._pace = pace
        self._timer: asyncio.TimerHandle | None = None
        self.waits = False
        self._closes = False
        self.stopped = False

    async def connect(self) -> None:
        with contextlib.suppress(ConnectionError):  # the service has ended
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._send_when_due()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waits and not self.stopped:
            self._found.wrong.append(f"the connection broke in the middle of a request ({exc!r})")
        self.waits = False
        if not self.stopped and not self._found.away:
            asyncio.get_running_loop().create_task(self.connect())

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"connection" and value.lower() == b"close":
            self._closes = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.waits = False
        status, body, self._body = self._parser.get_status_code(), self._body, b""
        self._found.statuses[status] += 1
        problem = self._check(status, body)
        if problem is not None:
            self._found.wrong.append(problem)
        self._found.seconds[status].append(time.perf_counter() - self._sent)
        if not self._closes:
            self._send_when_due()

    def _send_when_due(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = max(self._due, loop.time())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._due, self._send)
        self._due += self._pace

    def _send(self) -> None:
        assert self._transport is not None
        if self.stopped or self._transport.is_closing():
            self._transport.close()
            return
        self.waits, self._closes, self._sent = True, False, time.perf_counter()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._request)


@contextlib.asynccontextmanager
async def load(
    port: int, request: bytes, connections: int, check: Check, *, per_second: float | None = None
) -> AsyncIterator[Found]:
    """So many clients; they finish what they have asked before this ends.

    per_second: requests of all of them together; None: each sends its next when its answer is there.
    """
    found = Found()
    begin = asyncio.get_running_loop().time()
    apart = 0.0 if per_second is None else 1 / per_second
    clients = [
        _Client(port, request, found, check, begin=begin + number * apart, pace=connections * apart)
        for number in range(connections)
    ]
    for client in clients:
        await client.connect()
    try:
        yield found
    finally:
        for client in clients:
            client.stopped = True
        end = time.monotonic() + 10
        while any(client.waits for client in clients) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        found.wrong += ["a request was not answered within 10 s" for client in clients if client.waits]
