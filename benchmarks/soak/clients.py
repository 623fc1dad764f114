"""Clients in closed loops: each sends its next request when its answer is there."""

import asyncio
import contextlib
import time
from collections import Counter
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
    seconds: list[float] = field(default_factory=list)
    """Of the answers with status 200."""
    away: bool = False
    """Whether clients no longer connect anew, as a load balancer that has seen that the service is not ready."""

    @property
    def answers(self) -> int:
        """Of all statuses."""
        return sum(self.statuses.values())

    def milliseconds(self, percent: float) -> float:
        """A percentile of the latency of answers with status 200."""
        return float(np.percentile(self.seconds, percent)) * 1e3 if self.seconds else float("nan")


Check = Callable[[int, bytes], str | None]
"""`check(status, body)`: what is wrong with an answer."""


class _Client(asyncio.Protocol):
    """One connection in a closed loop. It connects anew where the service closes it between two requests."""

    def __init__(self, port: int, request: bytes, found: Found, check: Check):
        self._port = port
        self._request = request
        self._found = found
        self._check = check
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body = b""
        self._sent = 0.0
        self.waits = False
        self._closes = False
        self.stopped = False

    async def connect(self) -> None:
        with contextlib.suppress(ConnectionError):  # the service has ended
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._send()

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
        if status == 200:
            self._found.seconds.append(time.perf_counter() - self._sent)
        if not self._closes:
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        assert self._transport is not None
        if self.stopped or self._transport.is_closing():
            self._transport.close()
            return
        self.waits, self._closes, self._sent = True, False, time.perf_counter()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._request)


@contextlib.asynccontextmanager
async def load(port: int, request: bytes, connections: int, check: Check) -> AsyncIterator[Found]:
    """So many clients; they finish what they have asked before this ends."""
    found = Found()
    clients = [_Client(port, request, found, check) for _ in range(connections)]
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
