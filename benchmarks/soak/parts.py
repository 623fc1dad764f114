"""The parts of the soak: each puts load on a service of its own while something happens to it, and tells what was wrong."""

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from benchmarks.page import table
from benchmarks.serving.candidates import ENVIRONMENT, FEATURES
from benchmarks.serving.models import NETWORKS, publish_model
from benchmarks.serving.processes import resident
from benchmarks.soak.clients import Check, Found, load
from benchmarks.soak.service import BODY, PATH, ROW, Service, request, started
from models.artifact import cpu_session, read_model
from training.publish import publish
from training.publish import versions as versions_in

_TRAINER = Path(__file__).parents[2] / "scripts" / "train-and-publish.sh"
_SHORT_TRAINING = ("--size", "small", "--epochs", "2", "--calibration", "split", "--no-baselines")
_NETWORK = {"members": 2, "width": 32, "depth": 1, "frequencies": 0}


def _mean(path: Path) -> float:
    session = cpu_session(read_model(path)[0], threads=1)
    return float(session.run(["mean"], {"x": np.array([ROW]), "coverage": np.array([0.9])})[0][0, 0])


def _models(folder: Path, count: int) -> list[Path]:
    """Model files that differ."""
    return [publish_model(folder / "made", name=f"m{seed}", network=_NETWORK | {"seed": seed}) for seed in range(count)]


def _right(mean: float) -> Check:
    """200 with this mean."""

    def check(status: int, body: bytes) -> str | None:
        if status != 200:
            return _told(status, body)
        found = orjson.loads(body)["predictions"][0]["mean"]
        return None if np.isclose(found, mean, rtol=1e-4) else f"mean {found} instead of {mean}"

    return check


def _told(status: int, body: bytes) -> str:
    return f"{status}: {body[:200].decode(errors='replace')}"


def _load(service: Service, connections: int, check: Check) -> AbstractAsyncContextManager[Found]:
    return load(service.port, request(), connections, check)


async def publishing(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Connections for minutes, with a new version every few seconds."""
    files = _models(folder, 3)
    means = [_mean(file) for file in files]
    repository = folder / "repository"
    publish(files[0], repository, name="m")
    by_version: Counter[str] = Counter()

    def check(status: int, body: bytes) -> str | None:
        if status != 200:
            return _told(status, body)
        answer = orjson.loads(body)
        version, mean = answer["model"]["version"], answer["predictions"][0]["mean"]
        by_version[version] += 1
        right = means[(int(version) - 1) % len(means)]
        return None if np.isclose(mean, right, rtol=1e-4) else f"version {version} answers {mean} instead of {right}"

    published, memory = 1, []
    async with started(repository) as service, _load(service, options.connections, check) as found:
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
        started(repository) as service,
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


async def _reason(http: httpx.AsyncClient, service: Service, version: int, repository: Path) -> str | None:
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
    repository, rows_each, at_once = folder / "repository", 1000, 4
    publish_model(repository, name="m", network=NETWORKS["ensemble"])
    flags = ["--max-rows", str(rows_each), "--max-queued-rows", str(at_once * rows_each)]
    head = "Inference-Header-Content-Length: 0\r\n"
    wrong, rows = [], []

    def check(status: int, body: bytes) -> str | None:
        return None if status in (200, 503) else _told(status, body)

    async with started(repository, *flags) as service:
        large = request(np.tile(ROW, rows_each).tobytes(), path="/v2/models/m/infer", headers=head)

        async def measure(what: str, connections: int, per_second: float | None = None) -> float:
            async with load(service.port, large, connections, check, per_second=per_second) as found:
                await asyncio.sleep(options.seconds)
            wrong.extend(found.wrong)
            answered: float = found.statuses[200] / options.seconds
            refused = found.statuses[503] / options.seconds
            latency = [f"{found.milliseconds(percent):.1f}" for percent in (50, 99)]
            latency += [f"{found.milliseconds(percent, status=503):.1f}" if refused else "" for percent in (50, 99)]
            memory = f"{resident(service.process.pid) / 2**20:.0f}"
            rows.append(
                [what, connections, f"{answered + refused:,.0f}", f"{answered:,.0f}", f"{refused:,.0f}", *latency, memory]
            )
            return answered

        await measure("one by one", 1)
        capacity = await measure("all that it can do", at_once)
        if not capacity:
            return "", [*wrong, "nothing was answered"]
        async with httpx.AsyncClient() as http:
            await measure(f"five times that, {5 * capacity:,.0f}/s", 10 * at_once, 5 * capacity)
            begun = time.monotonic()
            answer = await http.post(service.url + PATH, content=BODY)
            recovered = time.monotonic() - begun
        await measure("all that it can do", at_once)
        if answer.status_code != 200:
            wrong.append("it has not recovered")
    latencies = ["p50 ms", "p99 ms", "503 p50 ms", "503 p99 ms"]
    header = ["asked", "connections", "requests/s", "answered/s", "503/s", *latencies, "MiB"]
    told = (
        f"Requests of {rows_each:,} rows, as bytes, to the 5 x 128 x 128 ensemble; room for {at_once} of them. "
        f"Right after the overload, one row was answered within {recovered * 1e3:.0f} ms."
    )
    return f"{table(header, rows)}\n\n{told}", wrong


async def signals(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """SIGTERM under load, and kill -9 of one worker of two."""
    (file,) = _models(folder, 1)
    repository = folder / "repository"
    publish(file, repository, name="m")
    right, wrong, drained, answers = _right(_mean(file)), [], 0, 0
    for _ in range(options.times):
        async with started(repository, "--drain-seconds", "1") as service, _load(service, 50, right) as found:
            await asyncio.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            async with httpx.AsyncClient() as http:
                if (await http.get(f"{service.url}/v2/health/ready")).status_code != 503:
                    wrong.append("ready though it was told to end")
            found.away = True
            status = await asyncio.to_thread(service.process.wait)
            drained += status == 0
            answers += found.answers
        wrong += found.wrong + ([f"exit status {status}"] if status else [])
    rows = [
        [f"SIGTERM under 50 connections, {options.times} times", f"{answers:,}", len(wrong), f"{drained} ended with status 0"]
    ]
    broken, replaced, killed = 0, 0, max(1, options.times // 2)
    async with started(repository, "--workers", "2") as service:
        async with _load(service, 50, right) as found:
            for _ in range(killed):
                await asyncio.sleep(6)
                before = service.workers()
                os.kill(min(before), signal.SIGKILL)
                for _ in range(200):
                    await asyncio.sleep(0.1)
                    if len(now := service.workers()) == 2 and now != before:
                        replaced += 1
                        break
        others = [problem for problem in found.wrong if "broke" not in problem]
        broken = len(found.wrong) - len(others)
        wrong += others + ([] if replaced == killed else [f"{killed - replaced} workers were not replaced"])
        if broken > 2 * 50 * killed:  # who connects anew at once may meet the socket of the one that is ending
            wrong.append(f"{broken} connections broke")
    rows.append([f"kill -9 of a worker of two, {killed} times", f"{found.answers:,}", len(others),
                 f"{replaced} replaced; {broken} requests were with those killed"])  # fmt: skip
    return table(["What", "answers", "wrong", ""], rows), wrong


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
    async with started(repository) as service, _load(service, 2, _right(_mean(file))) as found:
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


async def trainers(folder: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Trainers that are killed at random moments, with all that they have started: as with publishers."""
    (file,) = _models(folder, 1)
    repository, rng = folder / "repository", random.Random(0)  # noqa: S311 - not for secrets
    publish(file, repository, name="m")
    models = repository / "m"
    trainer = partial(_trainer, folder, _training_table(folder), repository)

    def check(status: int, body: bytes) -> str | None:
        return None if status == 200 and b'"mean":' in body else _told(status, body)

    flags = ["--loaded-versions", str(options.kills + 3)]
    async with (
        started(repository, *flags) as service,
        load(service.port, request(), 2, check, per_second=200) as found,
    ):
        begun = time.monotonic()
        statuses = [await trainer(within=600)]
        longest = time.monotonic() - begun
        statuses += [await trainer(within=rng.uniform(0, 1.1 * longest)) for _ in range(options.kills)]
        statuses.append(await trainer(within=600))
        there = versions_in(models)
        states = await _states_with(service, str(there[-1]))
    ended = statuses.count(0)
    wrong = [f"a trainer ended with status {status}" for status in statuses if status]
    wrong += [] if statuses[0] == statuses[-1] == 0 else ["a trainer that nobody killed did not end within 600 s"]
    wrong += [] if len(there) > ended else [f"{ended} trainers ended well, and {len(there) - 1} versions are there"]
    wrong += [f"version {version} is {state}" for version, state in states.items() if state != "ready"] + found.wrong
    rows = [
        ["trainers killed; ended before, or not to be killed", f"{statuses.count(None)}; {ended}"],
        ["seconds of one that is not killed", f"{longest:.1f}"],
        ["versions published, all served", f"{len(there) - 1}"],
        ["answers meanwhile, wrong ones", f"{found.answers:,}, {len(found.wrong)}"],
    ]
    return table(["Trainers killed at random moments", ""], rows), wrong


async def _trainer(folder: Path, rows: Path, repository: Path, *, within: float) -> int | None:
    """The status of a short training that publishes; None where it had to be killed. folder: for what it leaves."""
    command = ["bash", str(_TRAINER), str(rows), "--target", "y", "--name", "m", "--repository", str(repository)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        *_SHORT_TRAINING,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT, "PATH": path, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    try:
        return await asyncio.wait_for(process.wait(), within)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return None


def _training_table(folder: Path) -> Path:
    """A table of the features that `request` asks about."""
    path = folder / "rows.csv"
    names = [*(f"f{number}" for number in range(FEATURES)), "y"]
    rows = np.random.default_rng(0).normal(size=(60, len(names)))
    np.savetxt(path, rows, delimiter=",", header=",".join(names), comments="")
    return path


async def _states_with(service: Service, version: str) -> dict[str, str]:
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
    async with started(repository) as service:
        memory = [resident(service.process.pid)]
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        hundred, answers, begun = request() * at_once, 0, time.monotonic()
        for _ in range(options.requests // at_once):
            writer.write(hundred)
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
    "trainers": ("Trainers that are killed", trainers),
    "connection": ("One connection", one_connection),
}
