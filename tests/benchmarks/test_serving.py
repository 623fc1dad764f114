import ast
import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from benchmarks.serving import __main__ as program
from benchmarks.serving import apps, environments, processes
from benchmarks.serving.candidates import CANDIDATES, FEATURES, PEERS
from benchmarks.serving.load import Load, loaded
from benchmarks.serving.peers.model import Model
from models.artifact import open_model
from models.manifest import Column
from service.app import create_app
from service.settings import Settings
from tests.model_files import write_formula_model

X = np.random.default_rng(0).normal(size=(3, FEATURES))


def write(repository, *, name="m", **_):
    path = repository / name / "1" / "model.onnx"
    columns = tuple(Column(name=f"f{k}", kind="numeric", minimum=-9.0, maximum=9.0) for k in range(FEATURES))
    write_formula_model(path, columns=columns)
    return path


@pytest.fixture
def repository(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.fixture
def expected(repository):
    return open_model(repository / "m" / "1" / "model.onnx")[0](X, np.array([0.9]))


def load(rate, **given):
    return Load(**{"requests": 9, "requests_per_second": rate, "p50": 2000.0, "p99": 3000.0, "refused": 0, "broken": 0} | given)


@contextlib.asynccontextmanager
async def asked(app):
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        yield client


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in CANDIDATES if CANDIDATES[name].mean])
async def test_what_is_said_is_understood_and_answered_as_the_model_does(name, repository, expected, anyio_backend):
    candidate = CANDIDATES[name]
    app = apps.naive(repository / "m" / "1" / "model.onnx") if "naive" in name else create_app(Settings(repository=repository))
    request = candidate.say(X)
    async with asked(app) as client:
        answer = await client.post(candidate.path, content=request.body, headers=dict(request.headers))
    assert answer.status_code == 200, answer.text
    assert candidate.mean(answer) == pytest.approx(expected["mean"][0, 0], rel=1e-6)


@pytest.fixture
def anyio_backend():
    return "asyncio"


ANSWERS = {
    "kserve": {"predictions": [{"mean": 1.5, "std": 2.0, "lower": 0.0, "upper": 3.0}]},
    "mlserver": {"model_name": "m", "outputs": [{"name": "mean", "shape": [1, 1], "datatype": "FP32", "data": [1.5]}]},
    "mlflow": {"predictions": [{"mean": 1.5, "std": 2.0, "lower": 0.0, "upper": 3.0}]},
    "bentoml": [[1.5, 2.0, 0.0, 3.0]],
    "litserve": {"mean": [1.5], "std": [2.0], "lower": [0.0], "upper": [3.0]},
    "ray": {"mean": [1.5], "std": [2.0], "lower": [0.0], "upper": [3.0]},
}
"""As each peer has answered."""


@pytest.mark.parametrize("name", [name for name in PEERS if " V2" not in name])
def test_a_peer_is_asked_for_all_rows_and_its_answer_read(name):
    candidate = PEERS[name]
    body = orjson.loads(candidate.say(X).body)
    if candidate.peer == "mlserver":
        values = np.reshape(body["inputs"][0]["data"], body["inputs"][0]["shape"])
    elif candidate.peer == "mlflow":
        assert body["dataframe_split"]["columns"] == [f"f{k}" for k in range(FEATURES)]
        values = body["dataframe_split"]["data"]
    else:
        values = body["instances" if candidate.peer == "kserve" else "x"]
    assert np.array_equal(values, X)
    assert candidate.mean(httpx.Response(200, json=ANSWERS[candidate.peer])) == 1.5


def test_a_peer_runs_the_model_file_without_errorbar(repository, expected):
    model = Model(repository / "m" / "1" / "model.onnx")
    answers = model.answers(X)
    assert model.features == FEATURES
    for name, values in answers.items():
        assert np.array_equal(values, expected[name].ravel()), name
    assert np.all(model.answers(X, 0.5)["lower"] > answers["lower"])
    for file in Path(apps.__file__).parent.joinpath("peers").glob("*.py"):
        trees = ast.walk(ast.parse(file.read_text()))
        sources = {node.module.split(".")[0] for node in trees if isinstance(node, ast.ImportFrom)}
        assert not sources & {"models", "service", "training"}, file


def test_a_peer_has_a_file_and_an_environment_of_pinned_versions(tmp_path):
    for name, candidate in PEERS.items():
        module = candidate.command(Path("python"), tmp_path, 80)[2]
        assert Path(apps.__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py").exists(), name
        assert all("==" in requirement for requirement in environments.REQUIREMENTS[candidate.peer])


@pytest.fixture
def installer(monkeypatch):
    """In the place of venv and pip: what they were asked for. `outcome` is pip's exit status."""

    class Installer:
        def __init__(self):
            self.asked = []
            self.outcome = 0

        def __call__(self, command, **_):
            self.asked.append(command)
            if "venv" in command:
                python = Path(command[-1]) / "bin" / "python"
                python.parent.mkdir(parents=True)
                python.touch()
                return subprocess.CompletedProcess(command, 0, "", "")
            if "-c" in command:
                return subprocess.CompletedProcess(command, 0, "kserve 1.0\nnumpy 2.0\n", "")
            return subprocess.CompletedProcess(command, self.outcome, "", "WARNING: a\nERROR: No matching distribution\n")

    made = Installer()
    monkeypatch.setattr(environments.subprocess, "run", made)
    return made


def test_an_environment_is_made_once_and_again_for_other_versions(tmp_path, installer, monkeypatch):
    made = environments.environment("kserve", tmp_path)
    assert made == (tmp_path / "kserve" / "bin" / "python", "kserve 1.0, numpy 2.0")
    assert installer.asked[1][-4:] == [*environments.REQUIREMENTS["kserve"], *environments.COMMON]
    assert environments.environment("kserve", tmp_path) == made
    assert sum("pip" in command for command in installer.asked) == 1
    monkeypatch.setitem(environments.REQUIREMENTS, "kserve", ("kserve==0.1",))
    environments.environment("kserve", tmp_path)
    assert any("kserve==0.1" in command for command in installer.asked)


def test_an_environment_that_cannot_be_made_says_why_and_leaves_nothing(tmp_path, installer):
    installer.outcome = 1
    with pytest.raises(environments.NoEnvironmentError, match=r"cannot be made: ERROR: No matching distribution$"):
        environments.environment("ray", tmp_path)
    assert not (tmp_path / "ray").exists()


FAMILY = """
import os, signal, socket, sys, time
from pathlib import Path

def child(name, deaf):
    if os.fork() == 0:
        os.setsid()
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:  # its parent ends at once
            Path(name).write_text(str(os.getpid()))
            time.sleep(600)
        os._exit(0)

child("orphan", deaf=False)
child("deaf", deaf=True)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""


def listens(port):
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.mark.skipif(os.getpid() not in processes._descendants(os.getppid()), reason="needs Linux's /proc")
def test_whatever_a_server_starts_is_gone_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_STOP_SECONDS", 6.0)
    (tmp_path / "family.py").write_text(FAMILY)

    def ready(port):
        return (tmp_path / "orphan").exists() and (tmp_path / "deaf").exists() and listens(port)

    with processes.running(
        lambda port: [sys.executable, "family.py", str(port)], ready=ready, seconds=60, folder=tmp_path
    ) as server:
        pids = [server.pid, *(int((tmp_path / name).read_text()) for name in ("orphan", "deaf"))]
        assert processes.resident(server.pid) > 2**20
        for pid in pids:
            os.kill(pid, 0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_server_that_ends_or_never_answers_says_its_last_line(tmp_path):
    def server(code):
        command = [sys.executable, "-c", code]
        return processes.running(lambda _: command, ready=lambda _: False, seconds=1, folder=tmp_path)

    with pytest.raises(RuntimeError, match=r"^it ended with status 3: no luck$"), server("print('no luck'); exit(3)"):
        pass
    with (
        pytest.raises(RuntimeError, match=r"^it did not answer within 1 s: \(it printed nothing\)$"),
        server("import time; time.sleep(600)"),
    ):
        pass


def test_sigterm_ends_the_program_after_its_servers():
    code = "import os, signal; from benchmarks.serving import processes\nprocesses.exit_on_sigterm()\n"
    code += "try: signal.raise_signal(signal.SIGTERM)\nfinally: print('stopped', flush=True)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (143, "stopped\n")


def measured(rate, ceiling=1000.0, bare=1000.0, **given):
    return program.Measured(load(rate, **given), load(ceiling, p50=500.0), bare)


def test_a_ratio_is_of_what_was_measured_beside():
    cell = program.Cell(1, 16)
    cell.measured = {
        "hello world": {0: measured(100.0, 100.0), 1: measured(1000.0), 2: measured(1000.0)},
        "errorbar V1": {0: measured(50.0, 200.0, 100.0), 1: measured(500.0, 2000.0), 2: measured(500.0)},
        "kserve V1": {1: measured(250.0, refused=2), 2: measured(125.0, 500.0, broken=1)},  # failed in the first round
    }
    text = program.section("ensemble", [cell], {"ray": "it ended"})
    assert "| 1 | 16 | hello world | 1,000 | 1.00 |  | 1,000 |  | 2,000 |  | 3,000 | 0 |" in text
    assert "| 1 | 16 | errorbar V1 | 500 | 0.25 | 1.00 | 500 | 0.50 | 2,000 | 1,500 | 3,000 | 0 |" in text
    assert "| 1 | 16 | kserve V1 | 188 | 0.25 | 1.50 | 188 | 0.19 | 2,000 | 1,500 | 3,000 | 3 |" in text
    assert "Not measured, or not to the end:\n- ray: it ended\n" in text
    assert text.endswith("Bare ONNX Runtime in one process: 1,000 rows/s with 1 rows")


def test_a_table_without_the_server_that_others_are_compared_with():
    cell = program.Cell(100, 1)
    cell.measured = {"naive FastAPI": {0: measured(10.0, bare=2000.0)}}
    line = "| 100 | 1 | naive FastAPI | 10 | 0.01 |  | 1,000 | 0.50 | 2,000 | 1,500 | 3,000 | 0 |"
    assert line in program.section("default", [cell], {})


@pytest.fixture
def quick(monkeypatch):
    """No wrk, no training, no servers: they answer as `answers` says, by path; an exception is raised."""
    answers = {}

    @contextlib.contextmanager
    def started(candidate, repository, **_):
        answer = answers.get(candidate.path, httpx.Response(200))
        if isinstance(answer, Exception):
            raise answer
        yield f"http://server{candidate.path}", None

    def post(url, **_):
        return answers.get(url.removeprefix("http://server"), httpx.Response(200))

    monkeypatch.setattr(program, "started", started)
    monkeypatch.setattr(program.httpx, "post", post)
    monkeypatch.setattr(program, "loaded", lambda *_, **__: load(10.0))
    monkeypatch.setattr(program, "publish_model", write)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return answers


def run(out, *arguments):
    return program.main(["--networks", "ensemble", "--rounds", "2", "--out", str(out), *arguments])


def test_a_server_that_fails_does_not_stop_the_others(tmp_path, quick, monkeypatch, capsys):
    def no_environment(name, folder):
        raise environments.NoEnvironmentError(f"no {name} in {folder}")

    monkeypatch.setattr(environments, "environment", no_environment)
    quick["/v1/models/m:predict"] = httpx.Response(200, json={"predictions": [{"mean": 1e9}]})
    quick["/predict"] = RuntimeError("it ended with status 1: a\n  b")
    servers = "hello world,naive FastAPI,errorbar V1,ray,ray batched"
    assert run(tmp_path, "--servers", servers, "--rows", "1", "--connections", "1,2", "--environments", "folder") == 1
    text = (tmp_path / "serving.md").read_text()
    assert text in capsys.readouterr().out
    assert [line.split(" | ")[2] for line in text.splitlines() if line.startswith("| 1 |")] == ["hello world"] * 2
    assert "- naive FastAPI: it ended with status 1: a b\n" in text
    assert "- errorbar V1: it answers 1000000000.0, the model " in text
    assert "- ray: no ray in folder\n- ray batched: no ray in folder\n" in text


def test_without_peers_nothing_is_installed(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(environments, "environment", None)
    assert run(tmp_path, "--servers", "hello world") == 0
    assert "Peers" not in (tmp_path / "serving.md").read_text()


def test_which_servers_run(quick):
    assert program.parsed([]).servers == list(CANDIDATES)
    assert program.parsed(["--peers"]).servers == [*CANDIDATES, *PEERS]
    assert program.parsed(["--servers", "ray,errorbar V1,ray"]).servers == ["ray", "errorbar V1"]
    assert program.parsed(["--rows", "1,7"]).rows == [1, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--servers", "errorbar"], "there is no server 'errorbar'; there are hello world, "),
        (["--rows", "0"], "'0' is no whole number above 0"),
        (["--seconds", "0.5"], "'0.5' is no whole number above 0"),
        (["--networks", "tiny"], "invalid choice: 'tiny'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(quick, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        program.main(arguments)
    assert message in capsys.readouterr().err


def test_without_wrk_the_program_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        program.main([])
    assert "apt install wrk" in capsys.readouterr().err


needs_wrk = pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("taskset")), reason="needs wrk and taskset")


@needs_wrk
def test_a_real_load_on_real_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "publish_model", write)
    arguments = ["--servers", "hello world,errorbar V1", "--rows", "2", "--connections", "2", "--seconds", "1"]
    assert program.main([*arguments, "--networks", "ensemble", "--rounds", "1", "--out", str(tmp_path)]) == 0
    lines = [line.split(" | ") for line in (tmp_path / "serving.md").read_text().splitlines() if line.startswith("| 2 |")]
    assert [line[2] for line in lines] == ["hello world", "errorbar V1"]
    for line in lines:
        assert int(line[3].replace(",", "")) > 0
        assert 0 < float(line[8].replace(",", "")) <= float(line[10].replace(",", ""))
        assert float(line[4]) > 0
        assert line[11] == "0 |"


class Refusing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard = self.headers["A"]
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_refusals_are_counted():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        try:
            found = loaded(url, b"{}", {"A": 'b"c'}, connections=1, seconds=1, core=None)
        finally:
            server.shutdown()
    assert found.refused == found.requests > 0
    assert found.broken == 0
    assert server.heard == 'b"c'
