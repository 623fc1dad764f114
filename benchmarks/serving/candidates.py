"""Who is loaded: how each is started, and how rows are said to it."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.serving.processes import Server, running

Values = NDArray[np.float64]

FEATURES = 13
LIBRARIES = ("errorbar", "fastapi", "uvicorn", "onnxruntime", "orjson")
"""Those whose versions a page names."""
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}
"""Of servers, which run in folders of their own and need this project's packages."""
_START_SECONDS = 180.0
_TOLD_CHARACTERS = 200
_UNOBSERVED = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""Peers that would tell their makers of their use do not."""


@dataclass(frozen=True)
class Request:
    """One request: its body and headers."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Candidate:
    """A server. command(python, repository, port): what starts it. path: where it predicts. say(x): rows [n, features] in its
    words. mean(answer): the first row's mean that it answered; None where it predicts nothing. peer: the environment that it
    needs; None for this one.
    """

    command: Callable[[Path, Path, int], list[str]]
    path: str
    say: Callable[[Values], Request]
    mean: Callable[[httpx.Response], float] | None
    peer: str | None = None


def errorbar(*flags: str) -> Callable[[Path, Path, int], list[str]]:
    """The command that starts errorbar with these flags."""

    def command(python: Path, repository: Path, port: int) -> list[str]:
        given = ["--repository", str(repository), "--port", str(port), "--no-access-log", "--log-level", "warning"]
        return [str(python), "-m", "service", *given, *flags]

    return command


def _module(name: str, *arguments: str) -> Callable[[Path, Path, int], list[str]]:
    def command(python: Path, repository: Path, port: int) -> list[str]:
        return [str(python), "-m", f"benchmarks.serving.{name}", str(model_file(repository)), str(port), *arguments]

    return command


def model_file(repository: Path) -> Path:
    """The model that all serve."""
    return repository / "m" / "1" / "model.onnx"


def objects(x: Values) -> Request:
    """V1: an object a row."""
    return Request(orjson.dumps({"instances": [{f"f{k}": value for k, value in enumerate(row)} for row in x.tolist()]}))


def arrays(x: Values) -> Request:
    """V1: an array a row."""
    return Request(orjson.dumps({"instances": x.tolist()}))


def tensor(x: Values, *, binary: bool, coverage: str | None = None) -> Request:
    """V2: one tensor, as JSON or as raw bytes."""
    one = {"name": "x", "shape": x.shape, "datatype": "FP64"}
    wanted = [{"name": name, "parameters": {"binary_data": binary}} for name in ("mean", "std", "lower", "upper")]
    rest = {"outputs": wanted} | ({} if coverage is None else {"parameters": {"coverage": coverage}})
    if not binary:
        return Request(orjson.dumps({"inputs": [one | {"data": x.ravel().tolist()}], **rest}))
    raw = x.tobytes()
    head = orjson.dumps({"inputs": [one | {"parameters": {"binary_data_size": len(raw)}}], **rest})
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return Request(head + raw, headers)


def tensor_as_json(x: Values) -> Request:
    """V2: one tensor as JSON."""
    return tensor(x, binary=False)


def tensor_as_bytes(x: Values) -> Request:
    """V2: one tensor as raw bytes."""
    return tensor(x, binary=True)


def _split_table(x: Values) -> Request:
    columns = [f"f{number}" for number in range(x.shape[1])]
    return Request(orjson.dumps({"dataframe_split": {"columns": columns, "data": x.tolist()}}))


def _lists(x: Values) -> Request:
    return Request(orjson.dumps({"x": x.tolist()}))


def _v1_mean(answer: httpx.Response) -> float:
    return float(answer.json()["predictions"][0]["mean"])


def _v2_mean(answer: httpx.Response) -> float:
    length = answer.headers.get("inference-header-content-length")
    head = orjson.loads(answer.content if length is None else answer.content[: int(length)])
    output = head["outputs"][0]
    if length is None:
        return float(np.ravel(output["data"])[0])
    kind = np.float32 if output["datatype"] == "FP32" else np.float64
    return float(np.frombuffer(answer.content[int(length) :], dtype=kind, count=1)[0])


def _column_mean(answer: httpx.Response) -> float:
    return float(answer.json()["mean"][0])


def _table_mean(answer: httpx.Response) -> float:
    return float(answer.json()[0][0])


_ERRORBAR = errorbar()
_KSERVE = _module("peers.kserve_model")
_BATCH = ("64", "0.002")
"""Requests in a batch, and how long a batch may wait for more."""

CANDIDATES = {
    "hello world": Candidate(_module("apps", "hello"), "/", objects, None),
    "naive FastAPI": Candidate(_module("apps", "naive"), "/predict", objects, _v1_mean),
    "errorbar V1": Candidate(_ERRORBAR, "/v1/models/m:predict", objects, _v1_mean),
    "errorbar V1 arrays": Candidate(_ERRORBAR, "/v1/models/m:predict", arrays, _v1_mean),
    "errorbar V2 JSON": Candidate(_ERRORBAR, "/v2/models/m/infer", tensor_as_json, _v2_mean),
    "errorbar V2 binary": Candidate(_ERRORBAR, "/v2/models/m/infer", tensor_as_bytes, _v2_mean),
}
"""What runs in errorbar's own environment."""

PEERS = {
    "kserve V1": Candidate(_KSERVE, "/v1/models/m:predict", arrays, _v1_mean, "kserve"),
    "kserve V2 JSON": Candidate(_KSERVE, "/v2/models/m/infer", tensor_as_json, _v2_mean, "kserve"),
    "kserve V2 binary": Candidate(_KSERVE, "/v2/models/m/infer", tensor_as_bytes, _v2_mean, "kserve"),
    "mlserver": Candidate(_module("peers.mlserver_runtime"), "/v2/models/m/infer", tensor_as_json, _v2_mean, "mlserver"),
    "mlserver batched": Candidate(
        _module("peers.mlserver_runtime", *_BATCH), "/v2/models/m/infer", tensor_as_json, _v2_mean, "mlserver"
    ),
    "mlflow": Candidate(_module("peers.mlflow_pyfunc"), "/invocations", _split_table, _v1_mean, "mlflow"),
    "bentoml": Candidate(_module("peers.bentoml_service"), "/predict", _lists, _table_mean, "bentoml"),
    "bentoml batched": Candidate(_module("peers.bentoml_service", "8192", "10"), "/predict", _lists, _table_mean, "bentoml"),
    "litserve": Candidate(_module("peers.litserve_api"), "/predict", _lists, _column_mean, "litserve"),
    "litserve batched": Candidate(_module("peers.litserve_api", *_BATCH), "/predict", _lists, _column_mean, "litserve"),
    "ray": Candidate(_module("peers.ray_deployment"), "/", _lists, _column_mean, "ray"),
    "ray batched": Candidate(_module("peers.ray_deployment", *_BATCH), "/", _lists, _column_mean, "ray"),
}
"""What else people serve such a model with, each in its own environment."""


@contextlib.contextmanager
def started(
    candidate: Candidate, repository: Path, *, core: int | None, python: Path = Path(sys.executable)
) -> Iterator[tuple[str, Server]]:
    """The candidate's address, and its process, once it answers. python: of its environment.

    Raises RuntimeError where it does not answer.
    """
    request = candidate.say(np.zeros((1, FEATURES)))
    last = ""

    def ready(port: int) -> bool:
        nonlocal last
        try:
            url = f"http://127.0.0.1:{port}{candidate.path}"
            answer = httpx.post(url, content=request.body, headers=dict(request.headers), timeout=30)
        except httpx.HTTPError:
            return False
        last = f"; it answered {answer.status_code} {answer.text[:_TOLD_CHARACTERS]}"
        return answer.is_success

    with tempfile.TemporaryDirectory(prefix="serving-", ignore_cleanup_errors=True) as folder:
        environment = dict(ENVIRONMENT)
        if candidate.peer is not None:
            path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn by name
            environment |= _UNOBSERVED | {"PATH": path, "HOME": folder, "TMPDIR": folder}
        server = running(
            lambda port: candidate.command(python, repository, port),
            ready=ready,
            seconds=_START_SECONDS,
            folder=Path(folder),
            environment=environment,
            core=core,
        )
        with contextlib.ExitStack() as stack:
            try:
                process = stack.enter_context(server)
            except RuntimeError as error:
                raise RuntimeError(f"{error}{last}") from error
            yield f"http://127.0.0.1:{process.port}{candidate.path}", process
