"""Who is loaded: how each is started, and how rows are said to it."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

Values = NDArray[np.float64]

_START_SECONDS = 120.0


@dataclass(frozen=True)
class Request:
    """One request: its body and headers."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Candidate:
    """A server. command(repository, port): what starts it. path: where it predicts. say(x): rows [n, features] in its words.
    mean(answer): the first row's mean that it answered; None where it predicts nothing.
    """

    command: Callable[[Path, int], list[str]]
    path: str
    say: Callable[[Values], Request]
    mean: Callable[[httpx.Response], float] | None


def _app(name: str) -> Callable[[Path, int], list[str]]:
    def command(repository: Path, port: int) -> list[str]:
        model = repository / "m" / "1" / "model.onnx"
        return [sys.executable, "-m", "benchmarks.serving.apps", name, str(model), str(port)]

    return command


def _errorbar(repository: Path, port: int) -> list[str]:
    flags = ["--repository", str(repository), "--port", str(port), "--no-access-log", "--log-level", "warning"]
    return [sys.executable, "-m", "service", *flags]


def _objects(x: Values) -> Request:
    return Request(orjson.dumps({"instances": [{f"f{k}": value for k, value in enumerate(row)} for row in x.tolist()]}))


def _tensor(x: Values, *, binary: bool) -> Request:
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP64"}
    wanted = [{"name": name, "parameters": {"binary_data": binary}} for name in ("mean", "std", "lower", "upper")]
    if not binary:
        return Request(orjson.dumps({"inputs": [tensor | {"data": x.ravel().tolist()}], "outputs": wanted}))
    raw = x.tobytes()
    head = orjson.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}], "outputs": wanted})
    return Request(head + raw, {"Inference-Header-Content-Length": str(len(head))})


def _v1_mean(answer: httpx.Response) -> float:
    return float(answer.json()["predictions"][0]["mean"])


def _v2_mean(answer: httpx.Response) -> float:
    length = answer.headers.get("inference-header-content-length")
    head = orjson.loads(answer.content if length is None else answer.content[: int(length)])
    output = head["outputs"][0]
    if length is None:
        return float(output["data"][0])
    kind = np.float32 if output["datatype"] == "FP32" else np.float64
    return float(np.frombuffer(answer.content[int(length) :], dtype=kind, count=1)[0])


CANDIDATES = {
    "hello world": Candidate(_app("hello"), "/", _objects, None),
    "naive FastAPI": Candidate(_app("naive"), "/predict", _objects, _v1_mean),
    "errorbar V1": Candidate(_errorbar, "/v1/models/m:predict", _objects, _v1_mean),
    "errorbar V2 JSON": Candidate(_errorbar, "/v2/models/m/infer", lambda x: _tensor(x, binary=False), _v2_mean),
    "errorbar V2 binary": Candidate(_errorbar, "/v2/models/m/infer", lambda x: _tensor(x, binary=True), _v2_mean),
}


@contextlib.contextmanager
def started(candidate: Candidate, repository: Path, *, core: int | None) -> Iterator[str]:
    """The candidate's address, once it answers. Raises RuntimeError where it does not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    process = subprocess.Popen([*pinned, *candidate.command(repository, port)])  # noqa: S603 - a command of our own
    url = f"http://127.0.0.1:{port}{candidate.path}"
    request = candidate.say(np.zeros((1, 13)))
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                if httpx.post(url, content=request.body, headers=dict(request.headers)).is_success:
                    break
            except httpx.HTTPError:
                pass
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"{candidate.path} does not answer")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
