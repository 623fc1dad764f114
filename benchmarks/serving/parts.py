"""The parts of the growth benchmark: each measures errorbar on the 5 x 128 x 128 ensemble, and tells it as a section."""

import contextlib
import math
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from benchmarks.page import table
from benchmarks.serving.candidates import (
    FEATURES,
    Candidate,
    Request,
    Values,
    errorbar,
    objects,
    started,
    tensor,
    tensor_as_bytes,
)
from benchmarks.serving.charts import Line, draw
from benchmarks.serving.load import Load, loaded
from benchmarks.serving.models import NETWORKS, publish_model
from benchmarks.serving.processes import resident, running

MOST_ROWS = 100_000
"""Of a request: the service's own limit."""
MOST_COVERAGES = 50
_LARGE_BODIES = ("--max-body-bytes", str(2**27))  # 100 000 rows of V1 are 34 MB, more than the default takes
_NETWORK = NETWORKS["ensemble"]
_SLOW_REQUESTS = 30
"""Of a request that takes long, at least so many are waited for, within a minute."""
_MOST_SECONDS = 60
_V1, _V2, _V2_JSON = "V1 JSON", "V2 binary", "V2 JSON"
_COLLECTOR_AS_IT_COMES = """
import gc, sys
gc.freeze = gc.set_threshold = lambda *_: None
from service.cli import main
sys.exit(main())
"""
"""errorbar, but for what it sets of the garbage collector."""
_MIB = 2**20


def rows(options: Namespace) -> str:
    """Latency by the rows of a request."""
    lines, curves = [], _Curves((_V1, _V2))
    with _serving(options, *_LARGE_BODIES) as url:
        for size in options.rows:
            line: list[object] = [f"{size:,}"]
            for label, path, request in _ways(_rows(size)):
                load = _latency(url + path, request, options)
                curves.add(label, size, load)
                line += [*_times(load), f"{load.requests_per_second * size:,.0f}", f"{load.requests:,}"]
            lines.append(line)
    figure = curves.draw(options.out / "growth-rows.svg", x="rows of a request")
    header = ["rows", *(f"{label}, {what}" for label in (_V1, _V2) for what in ("p50 ms", "p99 ms", "rows/s", "requests"))]
    return (
        f"One connection, {FEATURES} features. With few requests, p99 is the slowest. V1 has an object a row; for its largest "
        f"requests `max_body_bytes` is raised.\n\n{table(header, lines)}\n\n{figure}\n\nSolid: p50; dashed: p99."
    )


def members(options: Namespace) -> str:
    """Latency by the members of the ensemble."""
    sizes = {"1 row": 1, "1,000 rows": 1000}
    labels = [f"{way}, {size}" for size in sizes for way in (_V1, _V2)]
    lines, curves = [], _Curves(labels)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        files = {
            number: publish_model(repository, name=f"m{number}", network={**_NETWORK, "members": number})
            for number in options.members
        }
        candidate = _candidate(model=f"m{options.members[0]}")
        with started(candidate, repository, core=options.server_core) as (_, server):
            url = f"http://127.0.0.1:{server.port}"
            for number, file in files.items():
                line: list[object] = [number, f"{file.stat().st_size / _MIB:.1f}"]
                for size, count in sizes.items():
                    for label, path, request in _ways(_rows(count), model=f"m{number}"):
                        load = _latency(url + path, request, options)
                        curves.add(f"{label}, {size}", number, load)
                        line += _times(load)
                lines.append(line)
    figure = curves.draw(options.out / "growth-members.svg", x="members of the ensemble")
    header = ["members", "file MiB", *(f"{label}, {what}" for label in labels for what in ("p50 ms", "p99 ms"))]
    return (
        f"One connection; members of {_NETWORK['depth']} x {_NETWORK['width']}.\n\n{table(header, lines)}\n\n{figure}\n\n"
        "Solid: p50; dashed: p99."
    )


def coverages(options: Namespace) -> str:
    """Latency by the coverages of a request."""
    sizes = {"1 row": 1, "100 rows": 100}
    labels = [f"{way}, {size}" for size in sizes for way in (_V1, _V2)]
    lines, curves = [], _Curves(labels)
    with _serving(options) as url:
        for number in options.coverages:
            asked = [round(0.9 - 0.01 * step, 2) for step in range(number)]
            line: list[object] = [number]
            for size, count in sizes.items():
                for label, path, request in _ways(_rows(count), coverages=asked):
                    load = _latency(url + path, request, options)
                    curves.add(f"{label}, {size}", number, load)
                    line += _times(load)
            lines.append(line)
    figure = curves.draw(options.out / "growth-coverages.svg", x="coverages of a request")
    header = ["coverages", *(f"{label}, {what}" for label in labels for what in ("p50 ms", "p99 ms"))]
    return f"One connection.\n\n{table(header, lines)}\n\n{figure}\n\nSolid: p50; dashed: p99."


def models(options: Namespace) -> str:
    """Start and memory by the models loaded."""
    lines: list[list[object]] = []
    seconds: list[tuple[float, float]] = []
    memory: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = publish_model(Path(folder) / "one", name="m", network=_NETWORK)
        for number in options.models:
            with tempfile.TemporaryDirectory() as other:
                repository = Path(other) / "repository"
                _fill(repository, file, number)
                took, used = _start(repository, number, options)
            seconds.append((number, took))
            memory.append((number, used / _MIB))
            line: list[object] = [f"{number:,}", f"{took:.2f}", f"{used / _MIB:,.0f}"]
            if more := number - seconds[0][0]:
                line += [f"{1000 * (took - seconds[0][1]) / more:.1f}", f"{(memory[-1][1] - memory[0][1]) / more:.2f}"]
            lines.append(line if more else [*line, "", ""])
        size = file.stat().st_size / _MIB
    figures = [
        draw(options.out / f"growth-models-{name}.svg", x="models loaded", y=what, solid={what: line}, dashed={})
        for name, what, line in (("start", "seconds until ready", seconds), ("memory", "resident MiB", memory))
    ]
    header = ["models", "s until ready", "resident MiB", "ms a further model", "MiB a further model"]
    return (
        f"A new process each: from its start until `/v2/health/ready` says that all models are, and its resident memory after "
        f"a request to each. The same file of {size:.1f} MiB under as many names.\n\n{table(header, lines)}\n\n"
        + "\n\n".join(figures)
    )


def beside(options: Namespace) -> str:
    """Small requests beside large ones."""
    large = _rows(options.large)
    requests = {label: (path, request) for label, path, request in _ways(large)}
    requests[_V2_JSON] = (requests[_V2][0], tensor(large, binary=False))
    path, small = next((path, request) for label, path, request in _ways(_rows(1)) if label == _V1)
    beside: dict[str, list[tuple[Load, Load | None]]] = {label: [] for label in ("nothing", *requests)}
    with _serving(options, *_LARGE_BODIES) as url:
        for _ in range(options.rounds):
            beside["nothing"].append((_small(url + path, small, options), None))
            for label, (other, request) in requests.items():
                with ThreadPoolExecutor(1) as pool:
                    meanwhile = pool.submit(_large, url + other, request, options)
                    time.sleep(1)
                    load = _small(url + path, small, options)
                beside[label].append((load, meanwhile.result()))
    lines = []
    for label, found in beside.items():
        alone = [both for both, _ in found]
        others = [other for _, other in found if other is not None]
        line: list[object] = [label if label == "nothing" else f"{label}, {options.large:,} rows"]
        line += [f"{_median(alone, key) / 1000:.1f}" for key in ("p50", "p99")]
        line += [f"{_median(alone, 'requests_per_second'):,.0f}", sum(load.refused + load.broken for load in alone)]
        line += (
            [f"{_median(others, 'requests_per_second'):.2f}", f"{_median(others, 'p50') / 1000:,.0f}"] if others else ["", ""]
        )
        lines.append(line)
    header = ["beside", "p50 ms", "p99 ms", "requests/s", "failed", "large requests/s", "their p50 ms"]
    return (
        f"V1 requests of one row from 16 connections, while one more connection sends large requests all the time; medians of "
        f"{options.rounds} rounds.\n\n{table(header, lines)}"
    )


def workers(options: Namespace) -> str:
    """Throughput by workers, with all cores for both sides."""
    ways = {f"{label}, {size} rows": (path, request) for size in (1, 100) for label, path, request in _ways(_rows(size))}
    found: dict[tuple[str, int], list[Load]] = {(label, number): [] for label in ways for number in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        publish_model(Path(folder), name="m", network=_NETWORK)
        for _ in range(options.rounds):
            for number in options.workers:
                candidate = _candidate("--workers", str(number))
                with started(candidate, Path(folder), core=None) as (_, server):
                    for label, (path, request) in ways.items():
                        url = f"http://127.0.0.1:{server.port}{path}"
                        found[label, number].append(_load(url, request, connections=64, seconds=options.seconds, core=None))
    lines = []
    for label in ways:
        first = found[label, options.workers[0]]
        for number in options.workers:
            loads = found[label, number]
            pairs = zip(loads, first, strict=True)
            ratio = statistics.median(load.requests_per_second / other.requests_per_second for load, other in pairs)
            rate = f"{_median(loads, 'requests_per_second'):,.0f}"
            lines.append(
                [label, number, rate, f"{ratio:.2f}", *(f"{_median(loads, key) / 1000:.1f}" for key in ("p50", "p99"))]
            )
    header = ["request", "workers", "requests/s", f"to {options.workers[0]}", "p50 ms", "p99 ms"]
    return (
        f"64 connections; server and wrk share {len(os.sched_getaffinity(0))} cores, so that wrk takes a part of what a "
        f"further worker could have. Medians of {options.rounds} rounds in turn.\n\n{table(header, lines)}"
    )


def collector(options: Namespace) -> str:
    """Latency with what the service sets of Python's garbage collector, and without."""
    ordinary = _candidate()

    def command(python: Path, repository: Path, port: int) -> list[str]:
        _, _, _, *flags = ordinary.command(python, repository, port)
        return [str(python), "-c", _COLLECTOR_AS_IT_COMES, *flags]

    candidates = {"as errorbar sets it": ordinary, "as it comes": replace(ordinary, command=command)}
    connections = (16, 64)
    found: dict[tuple[str, int], list[Load]] = {(label, number): [] for number in connections for label in candidates}
    ((path, small),) = ((path, request) for label, path, request in _ways(_rows(1)) if label == _V1)
    with tempfile.TemporaryDirectory() as folder:
        publish_model(Path(folder), name="m", network=_NETWORK)
        for _ in range(options.rounds):
            for label, candidate in candidates.items():
                with started(candidate, Path(folder), core=options.server_core) as (_, server):
                    url = f"http://127.0.0.1:{server.port}{path}"
                    for number in connections:
                        load = _load(url, small, connections=number, seconds=options.seconds, core=options.load_core)
                        found[label, number].append(load)
    lines = [
        [number, label, f"{_median(loads, 'requests_per_second'):,.0f}"]
        + [f"{_median(loads, key) / 1000:.1f}" for key in ("p50", "p99")]
        for (label, number), loads in found.items()
    ]
    header = ["connections", "garbage collector", "requests/s", "p50 ms", "p99 ms"]
    return (
        "V1 requests of one row. errorbar freezes what is there once its models are loaded, and has young objects looked at "
        f"less often (service/app.py). Medians of {options.rounds} rounds in turn.\n\n{table(header, lines)}"
    )


PARTS: dict[str, tuple[str, Callable[[Namespace], str]]] = {
    "rows": ("Rows of a request", rows),
    "members": ("Members of the ensemble", members),
    "coverages": ("Coverages of a request", coverages),
    "models": ("Models loaded", models),
    "beside": ("Small requests beside large ones", beside),
    "workers": ("Workers", workers),
    "collector": ("Garbage collector", collector),
}
"""The parts: the titles of their sections, and what measures them."""


class _Curves:
    """p50 and p99 in milliseconds, by label."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._p50: dict[str, list[tuple[float, float]]] = {label: [] for label in labels}
        self._p99: dict[str, list[tuple[float, float]]] = {label: [] for label in labels}

    def add(self, label: str, place: float, load: Load) -> None:
        self._p50[label].append((place, load.p50 / 1000))
        self._p99[label].append((place, load.p99 / 1000))

    def draw(self, path: Path, *, x: str) -> str:
        solid: dict[str, Line] = dict(self._p50)
        return draw(path, x=x, y="latency in ms", solid=solid, dashed=dict(self._p99))


def _candidate(*flags: str, model: str = "m") -> Candidate:
    return Candidate(errorbar(*flags), f"/v1/models/{model}:predict", objects, None)


@contextlib.contextmanager
def _serving(options: Namespace, *flags: str) -> Iterator[str]:
    """The address of errorbar with the model m."""
    with tempfile.TemporaryDirectory() as folder:
        publish_model(Path(folder), name="m", network=_NETWORK)
        with started(_candidate(*flags), Path(folder), core=options.server_core) as (_, server):
            yield f"http://127.0.0.1:{server.port}"


def _rows(size: int) -> Values:
    return np.random.default_rng(0).normal(size=(size, FEATURES))


def _ways(x: Values, *, model: str = "m", coverages: Sequence[float] = ()) -> Iterator[tuple[str, str, Request]]:
    """V1 as JSON and V2 as raw bytes: label, path, request."""
    plain = objects(x)
    if coverages:
        plain = Request(orjson.dumps(orjson.loads(plain.body) | {"coverage": list(coverages)}))
        raw = tensor(x, binary=True, coverage=",".join(map(str, coverages)))
    else:
        raw = tensor_as_bytes(x)
    yield _V1, f"/v1/models/{model}:predict", plain
    yield _V2, f"/v2/models/{model}/infer", raw


def _latency(url: str, request: Request, options: Namespace) -> Load:
    """One connection, long enough for some requests at least."""
    _ask(url, request)
    start = time.perf_counter()
    _ask(url, request)
    seconds = min(max(options.seconds, math.ceil(_SLOW_REQUESTS * (time.perf_counter() - start))), _MOST_SECONDS)
    return _load(url, request, connections=1, seconds=seconds, core=options.load_core)


def _small(url: str, request: Request, options: Namespace) -> Load:
    return _load(url, request, connections=16, seconds=options.seconds, core=options.load_core)


def _large(url: str, request: Request, options: Namespace) -> Load:
    return _load(url, request, connections=1, seconds=options.seconds + 3, core=options.load_core)  # all through the small ones


def _load(url: str, request: Request, *, connections: int, seconds: int, core: int | None) -> Load:
    return loaded(url, request.body, request.headers, connections=connections, seconds=seconds, core=core)


def _ask(url: str, request: Request) -> None:
    answer = httpx.post(url, content=request.body, headers=dict(request.headers), timeout=120)
    if not answer.is_success:
        raise RuntimeError(f"{url} answers {answer.status_code} {answer.text[:200]}")


def _fill(repository: Path, file: Path, number: int) -> None:
    """Publish `file` under so many names."""
    for k in range(number):
        folder = repository / f"m{k}" / "1"
        folder.mkdir(parents=True)
        os.link(file, folder / "model.onnx")


def _start(repository: Path, number: int, options: Namespace) -> tuple[float, int]:
    """Seconds until all models are ready, and resident bytes once each has answered."""

    def ready(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=120).is_success
        except httpx.HTTPError:
            return False

    with (
        tempfile.TemporaryDirectory() as folder,
        running(
            lambda port: _candidate().command(Path(sys.executable), repository, port),
            ready=ready,
            seconds=120 + number,
            folder=Path(folder),
            core=options.server_core,
        ) as server,
    ):
        took = time.monotonic() - server.begun
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as client:
            for k in range(number):
                request = objects(_rows(1))
                client.post(f"/v1/models/m{k}:predict", content=request.body).raise_for_status()
        return took, resident(server.pid)


def _times(load: Load) -> list[str]:
    return [f"{load.p50 / 1000:.2f}", f"{load.p99 / 1000:.2f}"]


def _median(loads: Sequence[Load], key: str) -> float:
    values: list[Any] = [getattr(load, key) for load in loads]
    return float(statistics.median(values))
