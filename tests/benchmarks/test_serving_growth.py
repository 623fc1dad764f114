import contextlib
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import orjson
import pytest

from benchmarks.serving import charts, growth, parts
from benchmarks.serving.candidates import FEATURES
from benchmarks.serving.load import Load
from benchmarks.serving.models import publish_model
from models.artifact import read_manifest
from models.manifest import Column
from service.app import create_app
from service.settings import Settings
from tests.model_files import write_formula_model

ROOT = Path(__file__).parents[2]


def write(repository, *, name="m", **_):
    path = repository / name / "1" / "model.onnx"
    columns = tuple(Column(name=f"f{k}", kind="numeric", minimum=-9.0, maximum=9.0) for k in range(FEATURES))
    write_formula_model(path, columns=columns)
    return path


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_both_ways_ask_for_all_rows_and_coverages(tmp_path, anyio_backend):
    write(tmp_path, name="m4")
    app = create_app(Settings(repository=tmp_path))
    x = np.random.default_rng(0).normal(size=(3, FEATURES))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        v1, v2 = [
            await client.post(path, content=request.body, headers=dict(request.headers))
            for _, path, request in parts._ways(x, model="m4", coverages=[0.9, 0.41])
        ]
    assert [[one["coverage"] for one in row["intervals"]] for row in v1.json()["predictions"]] == [[0.9, 0.41]] * 3
    head = orjson.loads(v2.content[: int(v2.headers["inference-header-content-length"])])
    shapes = {output["name"]: output["shape"] for output in head["outputs"]}
    assert shapes == {"mean": [3, 1], "std": [3, 1], "lower": [3, 1, 2], "upper": [3, 1, 2]}


def test_the_model_has_the_members_asked_for(tmp_path):
    file = publish_model(tmp_path, name="m2", network={"members": 2, "width": 8, "depth": 1, "frequencies": 0})
    manifest = read_manifest(file)
    assert file == tmp_path / "m2" / "1" / "model.onnx"
    assert (manifest.network.members, len(manifest.columns)) == (2, FEATURES)
    assert manifest.calibration.method == "split"  # enough calibration rows for every coverage that is asked


@pytest.fixture
def quick(monkeypatch):
    """No wrk, no training, no server: each load takes a millisecond a row, a member and a coverage, and half without V1."""
    commands, asked = [], []

    @contextlib.contextmanager
    def started(candidate, repository, *, core):
        commands.append((candidate.command("python", repository, 80), core))
        yield "", SimpleNamespace(port=len(commands), pid=1)

    def loaded(url, body, headers, *, connections, seconds, core):
        asked.append((url, connections, seconds, core))
        head = orjson.loads(body[: int(headers.get("Inference-Header-Content-Length", len(body)))])
        rows = len(head["instances"]) if "instances" in head else head["inputs"][0]["shape"][0]
        coverages = head.get("coverage") or str(head.get("parameters", {}).get("coverage", "0.9")).split(",")
        members = int(re.search(r"/m(\d*)[:/]", url)[1] or 1)
        p50 = 1000.0 * rows * len(coverages) * members / (1 if "instances" in head else 2)
        rate = 1e6 * connections / p50
        return Load(requests=7, requests_per_second=rate, p50=p50, p99=3 * p50, refused=0, broken=0)

    monkeypatch.setattr(parts, "started", started)
    monkeypatch.setattr(parts, "loaded", loaded)
    monkeypatch.setattr(parts, "_ask", lambda url, request: None)
    monkeypatch.setattr(parts, "publish_model", write)
    monkeypatch.setattr(parts.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return SimpleNamespace(commands=commands, asked=asked)


def run(out, *arguments):
    assert growth.main(["--out", str(out), "--seconds", "2", "--rounds", "1", *arguments]) == 0
    return (out / "growth.md").read_text()


def test_latency_by_rows(tmp_path, quick):
    text = run(tmp_path, "--parts", "rows", "--rows", "1,1000")
    assert "| 1 | 1.00 | 3.00 | 1,000 | 7 | 0.50 | 1.50 | 2,000 | 7 |" in text
    assert "| 1,000 | 1000.00 | 3000.00 | 1,000 | 7 | 500.00 | 1500.00 | 2,000 | 7 |" in text
    assert "![latency in ms by rows of a request](growth-rows.svg)" in text
    assert "134217728" in quick.commands[0][0]
    assert {one[1:3] for one in quick.asked} == {(1, 2)}


def test_latency_by_members_and_by_coverages(tmp_path, quick):
    text = run(tmp_path, "--parts", "members,coverages", "--members", "1,3", "--coverages", "1,2")
    assert re.search(
        r"^\| 3 \| 0\.0 \| 3\.00 \| 9\.00 \| 1\.50 \| 4\.50 \| 3000\.00 \| 9000\.00 \| 1500\.00 ", text, re.MULTILINE
    )
    assert "| 2 | 2.00 | 6.00 | 1.00 | 3.00 | 200.00 | 600.00 | 100.00 | 300.00 |" in text
    assert (tmp_path / "growth-members.svg").exists()
    assert (tmp_path / "growth-coverages.svg").exists()


def test_small_requests_beside_large_ones(tmp_path, quick):
    text = run(tmp_path, "--parts", "beside", "--large", "5000")
    assert "| nothing | 1.0 | 3.0 | 16,000 | 0 |  |  |" in text
    assert "| V1 JSON, 5,000 rows | 1.0 | 3.0 | 16,000 | 0 | 0.20 | 5,000 |" in text
    assert "| V2 binary, 5,000 rows | 1.0 | 3.0 | 16,000 | 0 | 0.40 | 2,500 |" in text
    assert "| V2 JSON, 5,000 rows | 1.0 | 3.0 | 16,000 | 0 | 0.40 | 2,500 |" in text
    assert sorted(one[1:3] for one in quick.asked) == [(1, 5)] * 3 + [(16, 2)] * 4


def test_throughput_by_workers_has_all_cores(tmp_path, quick):
    text = run(tmp_path, "--parts", "workers", "--workers", "1,2")
    assert "| V1 JSON, 100 rows | 2 | 640 | 1.00 | 100.0 | 300.0 |" in text
    assert [(command[-2:], core) for command, core in quick.commands] == [
        (["--workers", "1"], None),
        (["--workers", "2"], None),
    ]
    assert {one[3] for one in quick.asked} == {None}


def test_with_and_without_settings_of_the_garbage_collector(tmp_path, quick):
    text = run(tmp_path, "--parts", "collector")
    assert "| 16 | as errorbar sets it | 16,000 | 1.0 | 3.0 |\n| 16 | as it comes | 16,000 | 1.0 | 3.0 |" in text
    (ordinary, _), (other, _) = quick.commands
    assert (ordinary[:3], other[:2], ordinary[3:]) == (["python", "-m", "service"], ["python", "-c"], other[3:])
    shown = subprocess.run([sys.executable, "-c", other[2], "--help"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (shown.returncode, "usage: python -m service" in shown.stdout) == (0, True), shown.stderr


def test_start_and_memory_by_models(tmp_path, quick, monkeypatch):
    def start(repository, number, options):
        files = sorted(repository.glob("*/1/model.onnx"))
        assert len({file.parts[-3] for file in files}) == number
        return 1.5 + 0.01 * (number - 1), (100 + 2 * (number - 1)) * 2**20

    monkeypatch.setattr(parts, "_start", start)
    text = run(tmp_path, "--parts", "models", "--models", "1,11")
    assert "| 1 | 1.50 | 100 |  |  |" in text
    assert "| 11 | 1.60 | 120 | 10.0 | 2.00 |" in text
    assert "(growth-models-start.svg)" in text
    assert "(growth-models-memory.svg)" in text


def test_a_real_process_is_ready_with_all_its_models(tmp_path):
    parts._fill(tmp_path / "repository", write(tmp_path / "one"), 3)
    seconds, memory = parts._start(tmp_path / "repository", 3, Namespace(server_core=None))
    assert 0 < seconds < 120
    assert 2**24 < memory < 2**32


def test_a_part_that_runs_anew_keeps_the_others(tmp_path, quick):
    run(tmp_path, "--parts", "beside,workers")
    text = run(tmp_path, "--parts", "rows", "--rows", "1")
    titles = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert titles == ["# Growth of serving", "## Rows of a request", "## Small requests beside large ones", "## Workers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "speed"], "there is no part 'speed'; there are rows, members"),
        (["--rows", "1,200000"], "a request has at most 100000 rows"),
        (["--coverages", "51"], "a request has at most 50 coverages"),
        (["--models", "0"], "'0' is no whole number above 0"),
    ],
)
def test_a_wrong_argument_is_one_sentence(quick, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        growth.main(arguments)
    assert message in capsys.readouterr().err


def test_a_chart_is_small_text_and_the_same_again(tmp_path):
    def drawn():
        line = [(1, 0.5), (100_000, 1500.0)]
        link = charts.draw(tmp_path / "c.svg", x="rows", y="ms", solid={"V1": line}, dashed={"V1": line})
        return link, (tmp_path / "c.svg").read_bytes()

    link, first = drawn()
    assert link == "![ms by rows](c.svg)"
    assert drawn()[1] == first
    for word in (b">V1<", b">100,000<", b">rows<"):
        assert word in first
    assert len(first) < 40_000
