import asyncio
import time

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import Target
from service.metrics import DURATIONS, FAMILIES, Histogram, ModelMetrics, merged, page, statistics
from service.security import add_key
from tests.model_files import MIXED, write_formula_model
from tests.service.conftest import running, slowed
from tests.service.live import HEAD, answers, connected, read
from tests.service.live import ROW as TEXT

ROW = {"instances": [[1, 2]]}


async def metrics(service, **headers):
    answer = await service.http.get("/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(answer.text)


@given(st.lists(st.floats(0, 100) | st.sampled_from(DURATIONS)))
def test_a_histogram_counts_bounds_in_one_by_one_as_all_at_once(values):
    one, many = Histogram(DURATIONS), Histogram(DURATIONS)
    for value in values:
        one.observe(value)
    many.observe_all(np.array(values))
    assert one.counts == many.counts
    assert one.counts == [
        sum(low < value <= high for value in values)
        for low, high in zip((-np.inf, *DURATIONS), (*DURATIONS, np.inf), strict=True)
    ]
    assert one.total == pytest.approx(many.total)


def test_std_and_width_are_shares_of_the_training_range():
    counted = ModelMetrics([Target(name="y", minimum=0.0, maximum=10.0), Target(name="z", minimum=1.0, maximum=1.0)])
    std, lower = np.array([[1.0, 0.04]]), np.zeros((1, 2, 2))
    upper = np.array([[[1.0, 5.0], [0.3, 9.0]]])
    counted.ran({"std": std, "lower": lower, "upper": upper}, rows=1, requests=1, seconds=0.1)
    counted.settle()
    assert counted.std.total == pytest.approx(0.1 + 0.04)
    assert counted.width.total == pytest.approx(0.1 + 0.5 + 0.3 + 9)
    assert counted.std.count == 2


def test_few_predictions_are_counted_as_many_are():
    rng, targets = (
        np.random.default_rng(0),
        [Target(name="y", minimum=0.0, maximum=2.0), Target(name="z", minimum=1.0, maximum=5.0)],
    )
    std, lower, upper = (rng.normal(size=(20, 2, k)).astype(np.float32) for k in (1, 2, 2))
    std[3], upper[5], lower[7] = np.inf, np.nan, -np.inf
    alone, together = ModelMetrics(targets), ModelMetrics(targets)
    together.ran({"std": std[:, :, 0], "lower": lower, "upper": upper}, rows=20, requests=1, seconds=0.1)
    for row in range(20):
        arrays = {"std": std[row : row + 1, :, 0], "lower": lower[row : row + 1], "upper": upper[row : row + 1]}
        alone.ran(arrays, rows=1, requests=1, seconds=0.1)
    assert not alone._aside
    together.settle()
    for name in ("std", "width"):
        few, many = getattr(alone, name), getattr(together, name)
        assert few.counts == many.counts
        assert few.total == pytest.approx(many.total)
    assert (alone.std.count, alone.width.count) == (38, 72)


def test_a_row_whose_answer_is_not_finite_leaves_the_sums_finite():
    counted = ModelMetrics([Target(name="y", minimum=0.0, maximum=10.0)])
    std, bound = np.array([[np.inf], [1.0], [np.nan]]), np.array([[[np.inf]], [[3.0]], [[np.nan]]])
    counted.ran({"std": std, "lower": bound, "upper": bound}, rows=3, requests=1, seconds=0.1)
    counted.settle()
    assert (counted.std.count, counted.std.total) == (1, pytest.approx(0.1))
    assert (counted.width.count, counted.width.total) == (1, 0)


@pytest.mark.parametrize("rows", [2, 1000])
def test_sums_stay_finite_however_large_the_answers_are(rows):
    counted = ModelMetrics([Target(name="y", minimum=0.0, maximum=10.0)])
    huge, nought = np.full((rows, 1), 1e308), np.zeros((rows, 1, 1))
    for _ in range(3):
        counted.ran({"std": huge, "lower": nought, "upper": huge[:, :, None]}, rows=rows, requests=1, seconds=0.1)
    counted.settle()
    for one in (counted.std, counted.width):
        assert one.counts[-1] == one.count == 3 * rows
        assert one.total == pytest.approx(3 * rows * 1e12)


@pytest.mark.parametrize("outputs", [["mean"], ["lower"], ["upper", "mean"], ["std"]])
def test_runs_are_counted_whatever_outputs_they_have(outputs):
    counted = ModelMetrics([Target(name="y", minimum=0.0, maximum=10.0)])
    counted.ran({name: np.ones((3, 1)) for name in outputs}, rows=3, requests=1, seconds=0.1)
    counted.settle()
    assert (counted.rows, counted.width.count, counted.std.count) == (3, 0, 3 * ("std" in outputs))


@pytest.mark.anyio
async def test_what_alerts_look_for_is_there_before_it_happens(repository):
    async with running(repository) as service:
        told = await metrics(service)
    assert told["errorbar_reloads_total", "refused"] == 0
    assert told["errorbar_requests_total", "m", "bug", "1"] == 0


def test_counts_of_several_processes_add_up():
    one = {
        "errorbar_requests": [(["m", "1", "ok"], [2.0])],
        "errorbar_run_rows": [(["m", "1"], [1.0, 0.0, 3.0])],
        "errorbar_last_run_timestamp_seconds": [(["m", "1"], [5.0])],
        "errorbar_up": [([], [1.0])],
    }
    other = {
        "errorbar_requests": [(["m", "1", "ok"], [3.0]), (["m", "2", "ok"], [1.0])],
        "errorbar_run_rows": [(["m", "1"], [1.0, 2.0, 4.0])],
        "errorbar_last_run_timestamp_seconds": [(["m", "1"], [4.0])],
        "errorbar_up": [([], [1.0])],
    }
    together = merged([one, orjson.loads(orjson.dumps(other))])
    assert together["errorbar_requests"] == {("m", "1", "ok"): [5.0], ("m", "2", "ok"): [1.0]}
    assert together["errorbar_run_rows"] == {("m", "1"): [2.0, 2.0, 7.0]}
    assert together["errorbar_last_run_timestamp_seconds"] == {("m", "1"): [5.0]}
    assert together["errorbar_up"] == {(): [2.0]}


def test_a_page_of_nothing_is_a_page():
    assert read(page([])) == {}
    assert statistics([], [("m", "1")])["model_stats"][0]["inference_count"] == 0


def test_names_follow_prometheus():
    for name, family in FAMILIES.items():
        if family.kind != "hidden":
            assert name.startswith("errorbar_")
            assert not name.endswith("_total")  # which counters get
            assert family.help
            assert not set(family.labels) - {"model", "version", "outcome", "reason", "phase", "sha256", "device"}


@pytest.mark.anyio
async def test_requests_rows_and_runs_are_counted(repository):
    async with running(repository) as service:
        await asyncio.gather(*(service.predict(instances=[[1, 2]] * rows) for rows in (1, 2, 4)))
        await service.predict(instances=[[100, 2], [1, 2]])
        counted = await metrics(service)
        stats = (await service.http.get("/v2/models/m/stats")).json()
    of = ("m", "1")
    assert counted["errorbar_requests_total", "m", "ok", "1"] == 4
    assert counted["errorbar_rows_total", *of] == 9
    assert counted["errorbar_out_of_range_rows_total", *of] == 1
    assert counted["errorbar_run_rows_count", *of] == 2  # three requests shared the first
    assert counted["errorbar_run_rows_sum", *of] == 9
    assert counted["errorbar_request_duration_seconds_count", *of] == 4
    assert counted["errorbar_queue_duration_seconds_count", *of] == 4
    assert counted["errorbar_predicted_std_share_count", *of] == 9
    assert counted["errorbar_interval_width_share_count", *of] == 9
    assert counted["errorbar_in_flight_requests",] == 0
    assert counted["errorbar_queued_rows", *of] == 0
    assert counted["errorbar_reloads_total", "ok"] == 1
    assert counted["errorbar_last_run_timestamp_seconds", *of] > 1.7e9
    assert [key for key in counted if key[0] == "errorbar_model_info"] == [
        ("errorbar_model_info", "cpu", "m", service.state.repository.model("m").sha256, "1")
    ]
    (one,) = stats["model_stats"]
    assert (one["inference_count"], one["execution_count"]) == (9, 2)
    assert {key: one["inference_stats"][key]["count"] for key in ("success", "fail", "queue")} == {
        "success": 4, "fail": 0, "queue": 4,
    }  # fmt: skip
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in one["batch_stats"]] == [(2, 1), (7, 1)]
    phases = one["inference_stats"]
    parts = sum(phases[key]["ns"] for key in ("compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= phases["success"]["ns"]


@pytest.mark.anyio
async def test_statistics_of_versions(repository):
    write_formula_model(repository / "m" / "2" / "model.onnx")
    write_formula_model(repository / "n" / "1" / "model.onnx")
    async with running(repository) as service:

        async def listed(path):
            answer = await service.http.get(f"/v2/models{path}/stats")
            return [(one["name"], one["version"]) for one in answer.json()["model_stats"]]

        assert await listed("") == [("m", "1"), ("m", "2"), ("n", "1")]
        assert await listed("/m") == [("m", "1"), ("m", "2")]
        assert await listed("/m/versions/1") == [("m", "1")]
        assert (await service.http.get("/v2/models/x/stats")).status_code == 404
        assert (await service.http.get("/v2/models/m/versions/7/stats")).status_code == 404


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "content", "settings", "reason"),
    [
        ("/v1/models/m:predict", b"{", {}, "invalid"),
        ("/v2/models/m/infer", b"{", {}, "invalid"),
        ("/v1/models/m:predict", b" " * 100, {"max_body_bytes": 50}, "too_large"),
        ("/v1/models/nothing:predict", b"{}", {}, "not_found"),
        ("/v1/models/broken:predict", b"{}", {}, "not_ready"),
        ("/v1/models/m:predict", orjson.dumps({"instances": [[1, 2]] * 3}), {"max_rows": 2, "max_queued_rows": 2}, "too_large"),
        ("/v2/repository/models/m/unload", b"", {}, "forbidden"),
        ("/v2/repository/index", b"[", {}, "invalid"),
        ("/nowhere", b"", {}, "not_found"),
        ("/v1/models", b"", {}, "method"),
    ],
)
async def test_every_refusal_moves_its_metric(repository, path, content, settings, reason):
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    async with running(repository, **settings) as service:
        before = await metrics(service)
        answer = await service.http.post(path, content=content)
        after = await metrics(service)
    assert answer.status_code >= 400
    assert before.get(("errorbar_rejected_total", reason), 0) == 0
    assert after["errorbar_rejected_total", reason] == 1
    assert after["errorbar_reloads_total", "refused"] == 1
    if (":predict" in path and "/m:" in path) or path.endswith("infer"):
        assert after["errorbar_requests_total", "m", reason, "1"] == 1
    assert not [key for key in after if "nothing" in key]  # a name that a client made up is no label


@pytest.mark.anyio
async def test_a_missing_key_moves_its_metric(repository, tmp_path):
    file = tmp_path / "keys.json"
    key = {"Authorization": f"Bearer {add_key(file, name='k', scopes=frozenset(['predict']))}"}
    async with running(repository, keys=file) as service:
        await service.http.get("/v1/models")
        await service.http.post("/v2/repository/models/m/load", headers=key)
        counted = await metrics(service, **key)
    assert (counted["errorbar_rejected_total", "unauthorized"], counted["errorbar_rejected_total", "forbidden"]) == (1, 1)


@pytest.mark.anyio
async def test_overload_and_deadline_move_their_metrics(repository):
    async with running(repository, inline_milliseconds=0, max_rows=2, max_queued_rows=2) as service:
        slowed(service, seconds=0.3)
        first = asyncio.create_task(service.predict(instances=[[1, 2]]))
        await asyncio.sleep(0.05)
        x = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}
        late = await service.http.post("/v2/models/m/infer", json={"inputs": [x], "parameters": {"timeout": 1000}})
        assert not first.done()  # it heard of its deadline when it passed
        over = await service.predict(instances=[[1, 2]] * 2)
        assert (await first).status_code == 200
        counted = await metrics(service)
    assert (late.status_code, over.status_code, over.headers["retry-after"]) == (504, 503, "1")
    assert (counted["errorbar_rejected_total", "deadline"], counted["errorbar_rejected_total", "overloaded"]) == (1, 1)


@pytest.mark.anyio
async def test_metrics_of_a_version_go_with_it(tmp_path):
    write_formula_model(tmp_path / "mixed" / "1" / "model.onnx", columns=MIXED)
    async with running(tmp_path) as service:
        assert [key for key in await metrics(service) if "mixed" in key]
        (tmp_path / "mixed" / "1" / "model.onnx").unlink()
        await service.state.repository.rescan()
        assert not [key for key in await metrics(service) if "mixed" in key]


def test_the_duration_of_a_request_begins_when_it_is_here(repository, start):
    service = start(repository)
    for more in (b"", b"Content-Type: text/plain\r\n"):  # without and with ASGI
        with connected(service) as client:
            client.sendall(HEAD % len(TEXT) + more + b"\r\n" + TEXT[:-1])
            time.sleep(0.5)
            client.sendall(TEXT[-1:])
            assert answers(client, 1)[0][0] == 200
    told = read(httpx.get(f"{service.url}/metrics").text)
    assert told["errorbar_request_duration_seconds_count", "m", "1"] == 2
    assert told["errorbar_request_duration_seconds_sum", "m", "1"] < 0.4
