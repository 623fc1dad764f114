"""`python -m benchmarks.soak`: what the service does under load for long, while the worst happens to it.

Every part starts a service of its own on a free port, puts clients in closed loops on it (each sends its next request when its
answer is there) and counts what must not be: an answer that is wrong, a connection that breaks. The status is 1 where there is
any.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httptools
import httpx
import numpy as np
import orjson

from benchmarks.machine import machine, versions
from benchmarks.serving.candidates import FEATURES
from benchmarks.serving.models import publish_model
from benchmarks.serving.processes import resident
from benchmarks.training_speed.page import merged, table
from models.artifact import cpu_session, read_model
from training.publish import publish
from training.publish import versions as versions_in

TITLE = "# The service under load, while the worst happens to it"
_NETWORK = {"members": 2, "width": 32, "depth": 1, "frequencies": 0}
_ROW = [0.1 * number for number in range(FEATURES)]
_BODY = orjson.dumps({"instances": [_ROW]})
_PATH = "/v1/models/m:predict"
_START_SECONDS = 60.0


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


@dataclass
class _Service:
    url: str
    port: int
    process: Process
    log: Path

    def request(self, body: bytes = _BODY, *, path: str = _PATH, headers: str = "") -> bytes:
        return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def _service(repository: Path, *flags: str) -> AsyncIterator[_Service]:
    """A service that is ready; killed afterwards if it still runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = repository.parent / f"log-{port}"
    command = ["-m", "service", "--repository", str(repository), "--port", str(port), "--no-access-log", *flags]
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=stream)
    service = _Service(f"http://127.0.0.1:{port}", port, process, log)
    try:
        end = time.monotonic() + _START_SECONDS
        async with httpx.AsyncClient() as http:
            while not await _is_ready(http, service):
                if process.returncode is not None or time.monotonic() > end:
                    raise RuntimeError(f"the service is not ready: {log.read_text()}")
                await asyncio.sleep(0.1)
        yield service
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _is_ready(http: httpx.AsyncClient, service: _Service) -> bool:
    try:
        return (await http.get(f"{service.url}/v2/health/ready")).is_success
    except httpx.HTTPError:
        return False


@contextlib.asynccontextmanager
async def _load(service: _Service, connections: int, check: Check, request: bytes | None = None) -> AsyncIterator[Found]:
    """So many clients; they finish what they have asked before this ends."""
    found = Found()
    clients = [_Client(service.port, request or service.request(), found, check) for _ in range(connections)]
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


def _mean(path: Path) -> float:
    session = cpu_session(read_model(path)[0], threads=1)
    return float(session.run(["mean"], {"x": np.array([_ROW]), "coverage": np.array([0.9])})[0][0, 0])


def _models(folder: Path, count: int) -> list[Path]:
    """Model files that differ."""
    return [publish_model(folder / "made", name=f"m{seed}", network=_NETWORK | {"seed": seed}) for seed in range(count)]


def _right(mean: float) -> Check:
    """200 with this mean."""

    def check(status: int, body: bytes) -> str | None:
        if status != 200:
            return f"{status}: {body[:200].decode(errors='replace')}"
        found = orjson.loads(body)["predictions"][0]["mean"]
        return None if np.isclose(found, mean, rtol=1e-4) else f"mean {found} instead of {mean}"

    return check


async def publishing(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Connections for minutes, with a new version every few seconds."""
    files = _models(folder, 3)
    means = [_mean(file) for file in files]
    repository = folder / "repository"
    publish(files[0], repository, name="m")
    by_version: Counter[str] = Counter()

    def check(status: int, body: bytes) -> str | None:
        if status != 200:
            return f"{status}: {body[:200].decode(errors='replace')}"
        answer = orjson.loads(body)
        version, mean = answer["model"]["version"], answer["predictions"][0]["mean"]
        by_version[version] += 1
        right = means[(int(version) - 1) % len(means)]
        return None if np.isclose(mean, right, rtol=1e-4) else f"version {version} answers {mean} instead of {right}"

    published, memory = 1, []
    async with _service(repository) as service, _load(service, options.connections, check) as found:
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < 60 * options.minutes:
            await asyncio.sleep(options.every)
            await asyncio.to_thread(publish, files[published % len(files)], repository, name="m")
            published += 1
            memory.append(resident(service.process.pid))
        await asyncio.sleep(2)
    mib = [size / 2**20 for size in memory]
    parts = [mib[len(mib) * share // 8] for share in (0, 2, 4, 6)] + [mib[-1]]
    rows = [
        ["connections, minutes", f"{options.connections}, {passed / 60:.1f}"],
        ["versions published, answering", f"{published}, {len(by_version)}"],
        ["requests answered, per second", f"{found.answers:,}, {found.answers / passed:,.0f}"],
        ["failed, or of no single version", str(len(found.wrong))],
        [
            "p50, p99, largest latency",
            f"{found.milliseconds(50):.1f}, {found.milliseconds(99):.1f}, {found.milliseconds(100):.1f} ms",
        ],
        ["resident memory at the start, after each quarter", ", ".join(f"{size:.0f}" for size in parts) + " MiB"],
    ]
    missing = [] if len(by_version) == published else [f"{published} versions were published, {len(by_version)} answered"]
    return table(["Published under load", ""], rows), found.wrong + missing


async def bad_files(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Files that are no models, dropped in under load: the old version serves on, and the reason can be read."""
    (file,) = _models(folder, 1)
    good, repository = file.read_bytes(), folder / "repository"
    publish(file, repository, name="m")
    rng = random.Random(0)  # noqa: S311 - not for secrets
    flipped = bytearray(good)
    for _ in range(20):
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
    bad = {
        "empty": b"",
        "noise": rng.randbytes(100_000),
        "truncated": good[: len(good) // 2],
        "bits flipped": bytes(flipped),
        "of another program": b"\x08\x09" + b"\x3a\x00",
        "two joined": good + good,
    }
    rows, wrong, version = [], [], 1
    async with (
        _service(repository) as service,
        _load(service, options.connections // 4, _right(_mean(file))) as found,
        httpx.AsyncClient() as http,
    ):
        for what, content in [*bad.items(), ("3 GiB of zeros", None)]:
            version += 1
            path = repository / "m" / str(version) / "model.onnx"
            path.parent.mkdir()
            with path.open("wb") as stream:
                stream.write(content or b"")
                if content is None:
                    stream.truncate(3 * 2**30)
            reason = await _reason(http, service, version, repository)
            rows.append([what, reason or "(none)"])
            if reason is None:
                wrong.append(f"{what}: no reason can be read")
            shutil.rmtree(path.parent)
        memory = resident(service.process.pid) / 2**20
    rows.append([f"{found.answers:,} answers meanwhile, wrong ones; memory", f"{len(found.wrong)}; {memory:.0f} MiB"])
    return table(["File dropped in", "reason told"], rows), wrong + found.wrong


async def _reason(http: httpx.AsyncClient, service: _Service, version: int, repository: Path) -> str | None:
    end = time.monotonic() + 40
    while time.monotonic() < end:
        described = (await http.get(f"{service.url}/v1/models/m")).json()
        for one in described["versions"]:
            if one["version"] == str(version) and "reason" in one:
                return str(one["reason"]).replace(f"{repository}/", "")[:160]
        await asyncio.sleep(0.2)
    return None


async def overload(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Five times what the service can do: the accepted keep their latency, the rest are refused at once."""
    (file,) = _models(folder, 1)
    repository, rows_each = folder / "repository", 1000
    publish(file, repository, name="m")
    flags = ["--max-rows", str(rows_each), "--max-queued-rows", str(4 * rows_each)]
    head = "Inference-Header-Content-Length: 0\r\n"
    wrong, rows = [], []

    def check(status: int, body: bytes) -> str | None:
        return None if status in (200, 503) else f"{status}: {body[:200].decode(errors='replace')}"

    async with _service(repository, *flags) as service:
        request = service.request(np.tile(_ROW, rows_each).tobytes(), path="/v2/models/m/infer", headers=head)
        for connections in (1, 4, 20, 4):
            async with _load(service, connections, check, request) as found:
                await asyncio.sleep(options.seconds)
            wrong += found.wrong
            rows.append(
                [
                    connections,
                    f"{found.statuses[200] / options.seconds:,.0f}",
                    f"{found.statuses[503] / options.seconds:,.0f}",
                    f"{found.milliseconds(50):.1f}",
                    f"{found.milliseconds(99):.1f}",
                    f"{resident(service.process.pid) / 2**20:.0f}",
                ]
            )
        begun = time.monotonic()
        async with httpx.AsyncClient() as http:
            answer = await http.post(service.url + _PATH, content=_BODY)
        rows.append(["then one small request", answer.status_code, "", f"{(time.monotonic() - begun) * 1e3:.1f}", "", ""])
        if answer.status_code != 200:
            wrong.append("it has not recovered")
    header = ["connections, each 1 000 rows at a time", "answered/s", "503/s", "p50 ms", "p99 ms", "memory MiB"]
    return table(header, rows) + f"\n\nRoom for {4 * rows_each} rows in the queue.", wrong


async def signals(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """SIGTERM under load, and kill -9 of one worker of two."""
    (file,) = _models(folder, 1)
    repository = folder / "repository"
    publish(file, repository, name="m")
    right, wrong, drained, answers = _right(_mean(file)), [], 0, 0
    for _ in range(options.times):
        async with _service(repository, "--drain-seconds", "1") as service, _load(service, 50, right) as found:
            await asyncio.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            async with httpx.AsyncClient() as http:
                if (await http.get(f"{service.url}/v2/health/ready")).status_code != 503:
                    wrong.append("ready though it was told to end")
            found.away = True
            status = await service.process.wait()
            drained += status == 0
            answers += found.answers
        wrong += found.wrong + ([f"exit status {status}"] if status else [])
    rows = [
        [f"SIGTERM under 50 connections, {options.times} times", f"{answers:,}", len(wrong), f"{drained} ended with status 0"]
    ]
    broken, replaced, killed = 0, 0, max(1, options.times // 2)
    async with _service(repository, "--workers", "2") as service:
        async with _load(service, 50, right) as found:
            for _ in range(killed):
                await asyncio.sleep(6)
                before = await _workers(service)
                os.kill(min(before), signal.SIGKILL)
                for _ in range(200):
                    await asyncio.sleep(0.1)
                    if len(now := await _workers(service)) == 2 and now != before:
                        replaced += 1
                        break
        others = [problem for problem in found.wrong if "broke" not in problem]
        broken = len(found.wrong) - len(others)
        wrong += others + ([] if replaced == killed else [f"{killed - replaced} workers were not replaced"])
        if broken > 50 * killed:
            wrong.append(f"{broken} connections broke")
    rows.append([f"kill -9 of a worker of two, {killed} times", f"{found.answers:,}", len(others),
                 f"{replaced} replaced; {broken} requests were with those killed"])  # fmt: skip
    return table(["What", "answers", "wrong", ""], rows), wrong


async def _workers(service: _Service) -> set[int]:
    """The processes that serve, as the supervisor's log has them."""
    alive: set[int] = set()
    for line in service.log.read_text().splitlines():
        words = line.split()
        if "worker" in words:
            pid = int(words[words.index("worker") + 1])
            alive = alive | {pid} if "started" in words else alive - {pid}
    return alive


_PUBLISHER = """
import sys
from pathlib import Path
from training import publish
print("begun", flush=True)
while True:
    publish.publish(Path(sys.argv[1]), Path(sys.argv[2]), name="m")
"""


async def publishers(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Publishers that are killed at random moments: every version that is there is whole, and the service goes on."""
    (file,) = _models(folder, 1)
    repository, rng = folder / "repository", random.Random(0)  # noqa: S311 - not for secrets
    publish(file, repository, name="m")
    models, seen, wrong = repository / "m", {1}, []
    async with _service(repository) as service, _load(service, 2, _right(_mean(file))) as found:
        for _ in range(options.kills):
            command = ["-c", _PUBLISHER, str(file), str(repository)]
            process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
            assert process.stdout is not None
            await process.stdout.readline()
            await asyncio.sleep(rng.uniform(0, 0.1))
            process.kill()
            await process.wait()
            there = versions_in(models)
            seen |= {*there}
            whole = {version: (models / str(version) / "model.onnx").read_bytes() == file.read_bytes() for version in there}
            wrong += [f"version {version} is not whole" for version in there if not whole[version]]
            for version in there[:-5]:  # or the disk fills up
                shutil.rmtree(models / str(version))
        unfinished = len([*models.glob(".publishing-*")])
        states = await _states_with(service, publish(file, repository, name="m").parent.name)
    wrong += [f"version {version} is {state}" for version, state in states.items() if state != "ready"] + found.wrong
    rows = [
        ["publishers killed", str(options.kills)],
        ["versions published, all whole", f"{len(seen):,}"],
        ["unfinished folders left, which nobody sees", str(unfinished)],
        ["answers meanwhile, wrong ones", f"{found.answers:,}, {len(found.wrong)}"],
    ]
    return table(["Publishers killed at random moments", ""], rows), wrong


async def _states_with(service: _Service, version: str) -> dict[str, str]:
    """States of all versions, once this one is ready, or after too long."""
    end = time.monotonic() + 40
    async with httpx.AsyncClient() as http:
        while True:
            shown = (await http.get(f"{service.url}/v1/models/m")).json()["versions"]
            states = {version: "not there"} | {one["version"]: one["state"] for one in shown}
            if states[version] == "ready" or time.monotonic() > end:
                return states
            await asyncio.sleep(0.2)


async def one_connection(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Many tiny requests on one connection, a hundred at a time."""
    (file,) = _models(folder, 1)
    repository, at_once = folder / "repository", 100
    publish(file, repository, name="m")
    async with _service(repository) as service:
        memory = [resident(service.process.pid)]
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        request, answers, begun = service.request() * at_once, 0, time.monotonic()
        for _ in range(options.requests // at_once):
            writer.write(request)
            seen = 0
            while seen < at_once:
                seen += (await reader.readuntil(b"}]}]}")).count(b"HTTP/1.1 200 OK")
            answers += seen
        seconds = time.monotonic() - begun
        writer.close()
        memory.append(resident(service.process.pid))
    rows = [[f"{answers:,}", f"{answers / seconds:,.0f}", ", ".join(f"{size / 2**20:.0f}" for size in memory) + " MiB"]]
    wrong = [] if answers == options.requests // at_once * at_once else ["answers are missing"]
    return table(["requests on one connection, 100 at a time", "per second", "memory before, after"], rows), wrong


PARTS: dict[str, tuple[str, Callable[[Path, argparse.Namespace], Coroutine[Any, Any, tuple[str, list[str]]]]]] = {
    "publishing": ("Published under load", publishing),
    "files": ("Files that are no models", bad_files),
    "overload": ("Overload", overload),
    "signals": ("Signals", signals),
    "publishers": ("Publishers that are killed", publishers),
    "connection": ("One connection", one_connection),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for, put their sections into DIR/soak.md, print them; 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=10, help="of part publishing")
    parser.add_argument("--every", type=float, default=5, metavar="SECONDS", help="a version is published")
    parser.add_argument("--connections", type=int, default=200, help="of part publishing")
    parser.add_argument("--seconds", type=float, default=10, help="of each load of part overload")
    parser.add_argument("--times", type=int, default=10, help="of SIGTERM; half as many of kill -9")
    parser.add_argument("--kills", type=int, default=100, help="of publishers")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of part connection")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file, status = options.out / "soak.md", 0
    for name in options.parts:
        title, part = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            text, wrong = asyncio.run(part(Path(folder), options))
        facts = f"{machine()}; {versions(('errorbar', 'uvicorn', 'onnxruntime'))}; {datetime.now(UTC):%Y-%m-%d}."
        verdict = "Nothing was wrong." if not wrong else f"WRONG, {len(wrong)} times: " + "; ".join(dict.fromkeys(wrong[:5]))
        section = f"{facts}\n\n{text}\n\n{verdict}"
        print(f"## {title}\n{section}\n", flush=True)
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        order = [one for one, _ in PARTS.values()]
        file.write_text(merged(page, {title: section}, order=order, title=TITLE), encoding="utf-8")
        status = status or bool(wrong)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
