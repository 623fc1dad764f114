"""The HTTP server process: uvicorn, with a drain phase before it closes its sockets."""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.connections import Connection, ConnectionLimits
from service.counts import SharedCounts
from service.settings import Settings
from service.state import ServiceState

logger = logging.getLogger("service")

_UNREAD_BYTES_OF_A_NUMBER = 128
"""So many bytes of answers may wait for clients to read them, of all together, for each number of the largest answer: room for
several of that size."""

_CHECK_TICKS = 5
_LAST_ACCEPT_SECONDS = 0.05
_LAST_THREAD_SECONDS = 3.0
"""A thread that waits for a file system which does not answer keeps the process no longer."""
_OTHER_FILES = 100
"""Open files that are no connections, and those that are being refused."""
_SWITCH_SECONDS = 0.0005
"""How long a thread keeps Python's global lock while another waits for it; Python's default is ten times that."""


def make_room(connections: Iterable[Connection], *, most_bytes: int) -> None:
    """Drop those whose clients have not read for longest, where more than `most_bytes` wait for several clients."""
    unread = sorted((one for one in connections if one.unread_since is not None), key=lambda one: one.unread_since or 0.0)
    excess = sum(one.transport.get_write_buffer_size() for one in unread) - most_bytes
    for one in unread[:-1]:
        if excess <= 0:
            return
        excess -= one.transport.get_write_buffer_size()
        one.drop_unread()


class DrainingServer(uvicorn.Server):
    """At SIGTERM: readiness turns to 503, requests are served for the drain time, what is in flight is finished.

    uvicorn alone closes its sockets at once, so that no load balancer could see the readiness change. Ctrl-C skips the drain
    time. Either way the process ends with status 0.
    """

    def __init__(self, config: uvicorn.Config, state: ServiceState):
        super().__init__(config)
        self._state = state
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the signal handler."""
        drain = self._state.settings.drain_seconds
        if sig == signal.SIGTERM and drain > 0 and self.started:
            if self._drained_at is None:
                self._state.draining = True
                self._drained_at = time.monotonic() + drain
            return
        self._state.draining = True
        if not self.started:
            self._end_soon()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # uvicorn would raise it again at the end, and the status would not be 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called when it is time to end. Connections that the kernel has made are accepted first: closing would reset them."""
        for server in self.servers:
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as same:
                    same.listen(0)  # no more than one can queue up from here on
        await asyncio.sleep(_LAST_ACCEPT_SECONDS)
        await super().shutdown(sockets)
        self._end_soon()

    def _end_soon(self) -> None:
        last = threading.Timer(_LAST_THREAD_SECONDS, os._exit, [0])
        last.daemon = True
        last.start()

    async def on_tick(self, counter: int) -> bool:
        """Called every 0.1 s."""
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        if counter % _CHECK_TICKS == 0:
            now = asyncio.get_running_loop().time()
            connections = [one for one in self.server_state.connections if isinstance(one, Connection)]
            for connection in connections:
                connection.check(now)
            most_bytes = _UNREAD_BYTES_OF_A_NUMBER * self._state.settings.max_answer_values
            make_room(connections, most_bytes=most_bytes)
        return await super().on_tick(counter)


def serve(settings: Settings) -> int:
    """Serve until a signal; returns the exit status. Raises DeviceError and KeysError as `create_app` does."""
    end_at_hangup()
    return _run(create_app(settings), settings)


def serve_worker(settings: Settings, listening: socket.socket, counts: SharedCounts) -> int:
    """Serve at a socket, as one process of several."""
    end_at_hangup()
    return _run(create_app(settings, counts=counts), settings, listening)


def _run(app: FastAPI, settings: Settings, listening: socket.socket | None = None) -> int:
    state: ServiceState = app.state.service
    limits = ConnectionLimits(request_seconds=settings.request_seconds, connections=_most_connections(settings))
    connection = partial(
        Connection, limits=limits, metrics=state.metrics, draining=lambda: state.draining, direct=app.state.direct
    )
    config = uvicorn.Config(
        app,
        http=cast("Any", connection),
        timeout_keep_alive=settings.keep_alive_seconds,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # ours knows the request id and writes JSON
        ws="none",
        server_header=False,
        proxy_headers=False,  # the client in the log is who connected; X-Forwarded-For stands beside it
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    logger.info("errorbar serves the models of %s on %s", settings.repository.absolute(), state.device.name)
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = DrainingServer(config, state)
    server.run(sockets=None if listening is None else [listening])
    return 0 if server.started else 1


def _most_connections(settings: Settings) -> int:
    """How many connections may be open: beyond what the process may open, they would be reset without a word."""
    wanted = settings.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings.max_connections
    most = max(1, soft - _OTHER_FILES)
    logger.warning(
        "at most %d connections, not %d (setting max_connections): this process may open %d files (ulimit -n)",
        most, settings.max_connections, soft,
    )  # fmt: skip
    return most


def end_at_hangup() -> None:
    """SIGHUP (the terminal is closed) ends the service as SIGTERM does, unless it is ignored (nohup)."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
