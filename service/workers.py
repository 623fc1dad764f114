"""Several processes that serve one port, and what they share: nothing but the counts that they leave in a folder.

Each has its own socket on the port (SO_REUSEPORT), so the kernel spreads connections over them, and its own models. One that
dies is replaced. The parent serves nothing.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

from service.counts import SharedCounts, forget
from service.inference.session import DeviceError
from service.security import KeysError
from service.server import end_at_hangup, serve_worker
from service.settings import Settings
from service.telemetry import configure_logging

logger = logging.getLogger("service")

_CANNOT_START = 3
_KILL_SECONDS = 6.0
"""After the time that a worker may take to end."""
_SOON_SECONDS = 10.0
_MOST_SOON = 5
"""Where so many in a row have ended within _SOON_SECONDS of their start, the next would too."""


def supervise(settings: Settings) -> int:
    """Serve with `settings.workers` processes until a signal; the exit status."""
    end_at_hangup()
    with _reserved_port(settings) as port, _folder() as folder:
        supervisor = _Supervisor(settings.model_copy(update={"port": port}), folder)
        return supervisor.run()


class _Supervisor:
    def __init__(self, settings: Settings, folder: Path):
        self._settings = settings
        self._folder = folder
        self._spawn = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._stopping = threading.Event()
        self._last = math.inf
        """When workers that have not ended are killed."""
        self._begun: dict[str, float] = {}
        self._ended_soon = 0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        logger.info("%d workers serve http://%s:%d", self._settings.workers, host, self._settings.port)
        resource_tracker.ensure_running()  # not in `_start`, which blocks SIGINT: this unblocks it
        try:
            for place in range(self._settings.workers):
                self._start(place)
        except OSError:
            self._end()
            raise
        status = 0
        while True:
            ended = {process: process.exitcode for process in self._processes if process.exitcode is not None}
            for place, process in enumerate(self._processes):
                if process in ended:
                    of_this = self._after(place, process, ended[process])
                    status = status or of_this
            left = [process for process in self._processes if process not in ended]  # one that ends from here on is seen next
            if not left:
                return status if self._stopping.is_set() else 1
            connection.wait([process.sentinel for process in left], timeout=1.0)
            if time.monotonic() > self._last:
                self._last = math.inf
                _kill([process for process in left if process.is_alive()])

    def _after(self, place: int, process: BaseProcess, code: int) -> int:
        """Go on after a worker has ended: with another in its place, unless the service ends: then its status, else 0."""
        forget(self._folder, process.name)
        if self._stopping.is_set():
            return 0 if code in (-signal.SIGTERM, -signal.SIGHUP) else abs(code)  # which end it before it serves
        if code == _CANNOT_START or self._hopeless(process):
            logger.error("a worker ended with status %s, and another would too: the service ends", code)
            self._end()
            return 1
        logger.error("worker %d ended with status %s; another takes its place", process.pid, code)
        self._replace(place)
        return 0

    def _replace(self, place: int) -> None:
        try:
            self._start(place)
        except OSError as error:  # too many processes or open files, which may pass
            logger.error("it cannot be started; again in a second (%s)", error)  # noqa: TRY400

    def _start(self, place: int) -> None:
        """Start a worker at the end of the list, or in the place of one that has ended."""
        if self._stopping.is_set():
            return
        process = self._spawn.Process(target=_work, args=(self._settings, self._folder))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # a worker gets Ctrl-C too, while it imports
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self._processes[place : place + 1] = [process]
        self._begun[process.name] = time.monotonic()
        logger.info("worker %d started", process.pid)
        if self._stopping.is_set():  # by a signal that came before the process was in the list
            self._end()

    def _hopeless(self, ended: BaseProcess) -> bool:
        begun = self._begun.pop(ended.name, None)
        if begun is None:  # counted before, when no other could take its place
            return False
        soon = time.monotonic() - begun < _SOON_SECONDS
        self._ended_soon = self._ended_soon + 1 if soon else 0
        return self._ended_soon >= _MOST_SOON

    def _end(self, *_: object) -> None:
        """End all workers, on a signal or without; Ctrl-C reaches those that serve by itself."""
        if not self._stopping.is_set():
            self._last = time.monotonic() + self._settings.drain_seconds + self._settings.shutdown_seconds + _KILL_SECONDS
        self._stopping.set()
        for process in self._processes:
            if process.pid is not None and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)


def _kill(late: list[BaseProcess]) -> None:
    logger.error("%d workers have not ended in time, and are killed", len(late))
    for process in late:
        process.kill()


def _work(settings: Settings, folder: Path) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until it serves; the parent ends it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    parent = cast("BaseProcess", multiprocessing.parent_process())
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with own_socket(settings) as listening:
            status = serve_worker(settings, listening, SharedCounts(folder, multiprocessing.current_process().name))
    except (DeviceError, KeysError) as error:
        logger.error("the service does not start: %s", error)  # noqa: TRY400 - the reason says it all
        status = _CANNOT_START
    if not parent.is_alive():  # it was killed, and leaves the folder to its workers
        shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(status)


def _end_with(parent: BaseProcess) -> None:
    """A worker without its parent would keep the port, and nobody would replace it."""
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def own_socket(settings: Settings, *, reuse_address: bool = True) -> socket.socket:
    """A socket of this process alone on the port that all workers share."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does for a single process
    try:
        own.bind((settings.host, settings.port))
    except OSError:
        own.close()
        raise
    own.set_inheritable(True)
    return own


@contextlib.contextmanager
def _reserved_port(settings: Settings) -> Iterator[int]:
    """The port, kept from others while no worker listens; it is found here where the setting is 0."""
    if settings.port:  # another service's port would be shared silently, so it must be free without SO_REUSEPORT
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    with own_socket(settings) as reserved:
        port: int = reserved.getsockname()[1]
        # Another service's probe, which has SO_REUSEADDR, would succeed beside this socket, which has it and does not listen
        with own_socket(settings.model_copy(update={"port": port}), reuse_address=False):
            yield port


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="errorbar-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
