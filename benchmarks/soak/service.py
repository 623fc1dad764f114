"""The service that is put under load."""

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson

from benchmarks.serving.candidates import ENVIRONMENT, FEATURES
from benchmarks.serving.processes import Server, running

ROW = [0.1 * number for number in range(FEATURES)]
BODY = orjson.dumps({"instances": [ROW]})
PATH = "/v1/models/m:predict"
_START_SECONDS = 60.0


class Service:
    """A service that is ready."""

    def __init__(self, server: Server, log: Path):
        self.port = server.port
        self.process = server.process
        self.url = f"http://127.0.0.1:{server.port}"
        self._log = log

    def workers(self) -> set[int]:
        """The processes that serve, as the supervisor's log has them."""
        alive: set[int] = set()
        for line in self._log.read_text().splitlines():
            words = line.split()
            if "worker" in words:
                pid = int(words[words.index("worker") + 1])
                alive = alive | {pid} if "started" in words else alive - {pid}
        return alive


@contextlib.asynccontextmanager
async def started(repository: Path, *flags: str) -> AsyncIterator[Service]:
    """A service of this repository, gone afterwards."""

    def command(port: int) -> list[str]:
        given = ["--repository", str(repository), "--port", str(port), "--no-access-log", *flags]
        return [sys.executable, "-m", "service", *given]

    folder = repository.parent
    with running(command, ready=_is_ready, seconds=_START_SECONDS, folder=folder, environment=ENVIRONMENT) as server:
        yield Service(server, folder / "log")


def request(body: bytes = BODY, *, path: str = PATH, headers: str = "") -> bytes:
    """A request as it goes over the wire."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").is_success
    except httpx.HTTPError:
        return False
