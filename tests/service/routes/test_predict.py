import asyncio
import gzip
import logging
import threading
import zlib

import numpy as np
import orjson
import pyarrow as pa
import pytest

from models.artifact import open_model
from models.manifest import Target
from service.codecs import arrow
from service.routes import predict
from tests.model_files import MIXED, write_formula_model
from tests.service.conftest import running

pytestmark = pytest.mark.anyio

TWO = (Target(name="y", minimum=-50.0, maximum=50.0), Target(name="z", minimum=0.1, maximum=50.0, transform="log"))


ARROW = "application/vnd.apache.arrow.stream"


def arrow_stream(columns):
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def rows(n, seed=0):
    return np.random.default_rng(seed).uniform(0, 3, size=(n, 2)).tolist()


async def test_an_answer_is_what_the_bare_graph_says(repository):
    run, _ = open_model(repository / "m" / "1" / "model.onnx")
    x = rows(20)
    expected = run(np.array(x), np.array([0.5, 0.9]))
    async with running(repository) as service:
        answer = await service.predict(instances=x, coverage=[0.5, 0.9])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["model"] == {"name": "m", "version": "1"}
    for row, prediction in enumerate(body["predictions"]):
        assert set(prediction) == {"mean", "std", "epistemic_std", "intervals"}
        assert np.float32(prediction["mean"]) == expected["mean"][row, 0]
        assert [interval["coverage"] for interval in prediction["intervals"]] == [0.5, 0.9]
        assert [np.float32(interval["upper"]) for interval in prediction["intervals"]] == expected["upper"][row, 0].tolist()
        assert [np.float32(interval["lower"]) for interval in prediction["intervals"]] == expected["lower"][row, 0].tolist()


async def test_everything_can_be_asked_of_a_model_with_several_targets_and_all_kinds_of_columns(tmp_path):
    write_formula_model(tmp_path / "mixed" / "1" / "model.onnx", columns=MIXED, targets=TWO, group_column="colour")
    instance = {"a": 0.1, "b": 0, "colour": "blue", "open": False, "when": "1970-01-01"}
    asked = {"coverage": 0.9, "quantiles": [0.1, 0.9], "thresholds": [1], "samples": 3, "seed": 1}
    async with running(tmp_path) as service:
        first = await service.predict("mixed", instances=[instance], **asked)
        again = await service.predict("mixed", instances=[instance], **asked)
    assert first.json() == again.json()
    (prediction,) = first.json()["predictions"]
    assert set(prediction) == {"y", "z", "warnings"}
    for target in ("y", "z"):
        answer = prediction[target]
        assert (len(answer["quantiles"]), len(answer["cdf"]), len(answer["samples"])) == (2, 1, 3)
        assert answer["quantiles"][0] < answer["quantiles"][1]
    assert prediction["warnings"] == [
        "when 1970-01-01 is outside the training range 2020-09-13T12:26:40Z to 2023-11-14T22:13:20Z"
    ]


async def test_versions_and_labels_answer_with_their_model(repository):
    write_formula_model(repository / "m" / "2" / "model.onnx")
    (repository / "m" / "labels.json").write_text('{"stable": 1}')
    async with running(repository) as service:
        answers = [
            (await service.http.post(f"/v1/models/{path}:predict", json={"instances": [[1, 2]]})).json()["model"]["version"]
            for path in ("m", "m/versions/1", "m/versions/2", "m/labels/stable")
        ]
    assert answers == ["2", "1", "2", "1"]


async def test_requests_that_share_a_run_are_answered_as_if_alone(repository):
    many = [rows(n, seed=n) for n in (1, 2, 1, 5, 300, 1, 7, 0)]
    async with running(repository) as service:
        runs = count_runs(service)
        together = await asyncio.gather(*(service.predict(instances=x) for x in many))
        shared_runs = len(runs)
        alone = [await service.predict(instances=x) for x in many]
    assert [answer.content for answer in together] == [answer.content for answer in alone]
    assert shared_runs < len(many)


async def test_the_same_rows_at_once_and_one_by_one_get_the_same_answer(repository):
    x = rows(50)
    async with running(repository) as service:
        at_once = (await service.predict(instances=x)).json()["predictions"]
        one_by_one = [(await service.predict(instances=[row])).json()["predictions"][0] for row in x]
    assert at_once == one_by_one


async def test_a_cancelled_request_leaves_the_others_of_its_run_intact(repository):
    async with running(repository) as service:
        expected = (await service.predict(instances=[[1, 2]])).content
        tasks = [asyncio.create_task(service.predict(instances=[[1, 2]])) for _ in range(8)]
        batcher = service.state.repository.model("m").batcher
        while batcher.queued_rows < 8:  # turns of the event loop, not time
            await asyncio.sleep(0)
        tasks[3].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(3), asyncio.CancelledError)
    assert [answer.content for answer in answers] == [expected] * 7


async def test_large_requests_are_read_run_and_written_in_threads_and_answered_alike(repository):
    x = rows(3000)
    async with running(repository, run_rows=1024) as service:
        large = await service.predict(instances=x)
        small = await service.predict(instances=x[-3:])
    assert len(large.json()["predictions"]) == 3000
    assert large.json()["predictions"][-3:] == small.json()["predictions"]


async def test_no_instances_get_no_predictions(repository):
    async with running(repository) as service:
        answer = await service.predict(instances=[], quantiles=[0.5], samples=2)
    assert (answer.status_code, answer.json()["predictions"]) == (200, [])


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"])
async def test_the_content_type_decides_nothing(repository, content_type):
    headers = {"content-type": content_type} if content_type else {}
    async with running(repository) as service:
        answer = await service.http.post("/v1/models/m:predict", content=b'{"instances": [[1, 2]]}', headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_read(repository, encoding, encode):
    body = encode(b'{"instances": [[1, 2]]}')
    async with running(repository) as service:
        answer = await service.http.post("/v1/models/m:predict", content=body, headers={"content-encoding": encoding})
    assert answer.status_code == 200


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(repository):
    async with running(repository, max_body_bytes=1000) as service:
        answer = await service.http.post("/v1/models/m:predict", content=b"{}", headers={"content-length": "1001"})
    assert answer.status_code == 413
    assert "larger than 1000 bytes" in answer.json()["error"]


@pytest.mark.parametrize(
    ("encoding", "body", "sentence"),
    [
        ("br", b"x", "Content-Encoding 'br' is not read here; send gzip, deflate or no encoding"),
        ("gzip", b"{}", "the body is not gzip: "),
        ("gzip", gzip.compress(b"{}")[:-4], "the body is not gzip: it is cut short"),
        ("gzip", gzip.compress(b"{}") + b"more", "the body holds 4 bytes after its gzip data; send one stream"),
    ],
)
async def test_a_body_that_cannot_be_decompressed_is_a_400(repository, encoding, body, sentence):
    async with running(repository) as service:
        answer = await service.http.post("/v1/models/m:predict", content=body, headers={"content-encoding": encoding})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(sentence)


async def chunks(size, count, taken):
    for _ in range(count):
        taken.append(size)
        yield b" " * size


async def test_a_body_over_the_limit_is_a_413_and_not_read_to_its_end(repository):
    taken = []
    async with running(repository, max_body_bytes=1000) as service:
        answer = await service.http.post("/v1/models/m:predict", content=chunks(300, 100, taken))
    assert answer.status_code == 413
    assert answer.json() == {"error": "the body is larger than 1000 bytes (setting max_body_bytes): send the rows in parts"}
    assert len(taken) < 10


async def test_a_compressed_body_is_measured_by_what_it_holds(repository):
    async with running(repository, max_body_bytes=10_000) as service:
        bomb = gzip.compress(b" " * 50_000_000)
        answer = await service.http.post("/v1/models/m:predict", content=bomb[:9_000], headers={"content-encoding": "gzip"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("settings", "request_", "status"),
    [
        ({"max_rows": 2}, {"instances": [[1, 2]] * 3}, 413),
        ({"max_answer_values": 10}, {"instances": [[1, 2]], "samples": 6}, 413),
        ({"max_levels": 2}, {"instances": [[1, 2]], "coverage": [0.5, 0.6], "quantiles": [0.5]}, 413),
        ({"max_levels": 2}, {"instances": [[1, 2]], "coverage": [0.5], "quantiles": [0.5]}, 200),
        ({"max_rows": 2, "max_queued_rows": 2}, {"instances": [[1, 2]] * 2}, 200),
    ],
)
async def test_every_limit_holds(repository, settings, request_, status):
    async with running(repository, **settings) as service:
        assert (await service.predict(**request_)).status_code == status


async def test_an_overloaded_model_answers_503_with_retry_after(repository):
    async with running(repository, max_rows=2, max_queued_rows=2) as service:
        answers = await asyncio.gather(*(service.predict(instances=[[1, 2]]) for _ in range(5)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 3
    assert refused[0].headers["retry-after"] == "1"
    assert "max_queued_rows" in refused[0].json()["error"]


async def test_large_requests_keep_no_small_ones_out_and_are_refused_before_they_are_read(repository):
    held, may_run = threading.Event(), threading.Event()
    async with running(repository, max_rows=3000, max_queued_rows=3000) as service:
        batcher = service.state.repository.model("m").batcher
        batcher._inline_rows, run = 10, batcher._run

        def slow(x, *arguments):
            if len(x) > 10:
                held.set()
                assert may_run.wait(10)
            return run(x, *arguments)

        batcher._run = slow
        large = asyncio.create_task(service.predict(instances=rows(3000)))
        assert await asyncio.to_thread(held.wait, 10)
        refused = await service.http.post("/v1/models/m:predict", content=b"nothing that could be read" * 5000)
        small = await service.predict(instances=[[1, 2]])
        may_run.set()
        assert (await large).status_code == 200
    assert (refused.status_code, small.status_code) == (503, 200)
    assert "3000 rows wait" in refused.json()["error"]


def noting_threads(monkeypatch, function):
    """The threads in which a function of the protocol is called."""
    threads, called = [], getattr(predict, function)

    def noted(*arguments, **more):
        threads.append(threading.current_thread())
        return called(*arguments, **more)

    monkeypatch.setattr(predict, function, noted)
    return threads


def begin(service, body):
    """Ask without ASGI: a future of the answer's head and body, and what gives up."""
    scope = {"type": "http", "method": "POST", "path": "/v1/models/m:predict", "headers": [], "query_string": b""}
    direct, answer = service.app.state.direct, asyncio.get_running_loop().create_future()
    route = direct.route(b"/v1/models/m:predict")
    return answer, direct.begin(route, scope, body, done=lambda *answered: answer.set_result(answered))


@pytest.mark.parametrize(("samples", "on_the_loop"), [(10, True), (100_000, False)])
async def test_a_small_request_for_many_numbers_is_written_in_a_thread(repository, monkeypatch, samples, on_the_loop):
    threads = noting_threads(monkeypatch, "answer")
    async with running(repository) as service:
        answer, _ = begin(service, orjson.dumps({"instances": [[1, 2]], "samples": samples}))
        head, content = await asyncio.wait_for(answer, 20)
    assert (threads == [threading.main_thread()]) is on_the_loop
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert len(orjson.loads(content)["predictions"][0]["samples"]) == samples


@pytest.mark.parametrize(("count", "on_the_loop"), [(3000, True), (15_000, False)])
async def test_a_small_request_of_many_rows_is_read_in_a_thread(repository, monkeypatch, count, on_the_loop):
    monkeypatch.setattr(predict, "_CELLS_WORTH_COUNTING", 1000)
    threads = noting_threads(monkeypatch, "read_request")
    body = b'{"instances":[%b]}' % b",".join([b"{}"] * count)
    async with running(repository) as service:
        answer, _ = begin(service, body)
        head, content = await asyncio.wait_for(answer, 20)
        refused, _ = begin(service, body[:-1])
        refused_head, _ = await asyncio.wait_for(refused, 20)
        left, give_up = begin(service, body)
        give_up()
        left_head, _ = await asyncio.wait_for(left, 20)
        assert service.state.metrics.in_flight == 0
        outcomes = {outcome: count for outcome, count in service.state.repository.model("m").metrics.requests.items() if count}
    assert (set(threads) == {threading.main_thread()}) is on_the_loop
    assert [one[9:12] for one in (head, refused_head, left_head)] == [b"200", b"400", b"499"]
    assert len(orjson.loads(content)["predictions"]) == count
    assert outcomes == {"ok": 1, "invalid": 1, "client_gone": 1}


async def test_a_length_with_many_noughts_is_that_length(repository):
    async with running(repository, max_body_bytes=1000) as service:
        for length, status in ((b"0" * 5000 + b"2", 400), (b"9" * 5000, 413)):
            answer = await service.http.post("/v1/models/m:predict", content=b"{}", headers={b"content-length": length})
            assert answer.status_code == status


@pytest.mark.parametrize("media_type", ["text/csv", "application/json"])
async def test_a_query_of_very_many_options_is_refused(repository, media_type):
    async with running(repository) as service:
        query, headers = "&".join(["coverages"] * 101), {"content-type": media_type}
        answer = await service.http.post(f"/v1/models/m:predict?{query}", content=b"1,2\n", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the query has more than 100 options (known: coverage, quantiles")


async def test_a_request_past_its_deadline_is_a_504(repository):
    async with running(repository, deadline_seconds=1e-9) as service:
        answer = await service.predict(instances=[[1, 2]])
    assert answer.status_code == 504
    assert "deadline_seconds" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/v1/models/x:predict", "there is no model 'x'; there is m"),
        ("/v1/models/m/versions/2:predict", "model 'm' has no version 2; it has 1"),
        ("/v1/models/m/versions/one:predict", "'one' is no version; versions are whole numbers from 1"),
        ("/v1/models/m/labels/stable:predict", "model 'm' has no label 'stable'; it has none"),
        ("/v1/models/..%2f..%2fetc:predict", "there is no route POST /v1/models/../../etc:predict; /docs lists the routes"),
    ],
)
async def test_what_is_not_there_is_a_404_that_says_what_is(repository, path, sentence):
    async with running(repository) as service:
        answer = await service.http.post(path, json={"instances": [[1, 2]]})
    assert (answer.status_code, answer.json()) == (404, {"error": sentence})


async def test_the_details_of_a_400_name_row_and_feature(repository):
    async with running(repository) as service:
        answer = await service.predict(instances=[[1, 2], {"a": "x", "b": 2}])
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "row 1, feature 'a': 'x' is a text; give a number",
        "details": [{"row": 1, "feature": "a", "problem": "'x' is a text; give a number"}],
    }


async def test_get_on_predict_is_a_405_that_names_the_method(repository):
    async with running(repository) as service:
        for path in ("/v1/models/m:predict", "/v1/models/m/versions/1:predict", "/v1/models/m/labels/x:predict"):
            answer = await service.http.get(path)
            assert (answer.status_code, answer.json()) == (405, {"error": "GET is not allowed here; use POST"})
            assert answer.headers["allow"] == "POST"


async def test_requests_in_flight_finish_on_the_model_they_began_with(repository):
    """The old model's run is held until the new one has taken over."""
    async with running(repository, inline_milliseconds=0) as service:
        held, may_run = threading.Event(), threading.Event()
        old = service.state.repository.model("m").batcher
        run = old._run

        def slow(*arguments):
            held.set()
            assert may_run.wait(10)
            return run(*arguments)

        old._run = slow
        in_flight = asyncio.create_task(service.predict(instances=[[1, 2]]))
        assert await asyncio.to_thread(held.wait, 10)
        write_formula_model(repository / "m" / "2" / "model.onnx")
        await service.state.repository.rescan()
        assert (await service.predict(instances=[[1, 2]])).json()["model"]["version"] == "2"
        may_run.set()
        assert (await in_flight).json()["model"]["version"] == "1"


async def test_the_answer_has_no_number_that_json_has_not(tmp_path):
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", targets=TWO)
    async with running(tmp_path) as service:
        answer = await service.predict(instances=[[0, 0], [300, 300]])
    assert answer.status_code == 400
    assert orjson.loads(answer.content)["details"][0]["row"] == 1


async def test_of_a_shared_run_only_the_request_with_the_row_too_far_is_refused(tmp_path):
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", targets=TWO)
    async with running(tmp_path) as service:
        runs = count_runs(service)
        asked = ([[0, 0]], [[300, 300]], [[0, 0], [1, 1]])
        near, far, two = await asyncio.gather(*(service.predict(instances=rows) for rows in asked))
        (alone,) = (await service.predict(instances=[[1, 1]])).json()["predictions"]
    assert len(runs) == 2
    assert (near.status_code, far.status_code, two.status_code) == (200, 400, 200)
    assert two.json()["predictions"] == [*near.json()["predictions"], alone]


def count_runs(service):
    batcher = service.state.repository.model("m").batcher
    run, runs = batcher._run, []
    batcher._run = lambda *arguments: runs.append(1) or run(*arguments)
    return runs


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_bug(repository, caplog):
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/models/m:predict", "headers": [], "client": None}
    async with running(repository) as service:
        with caplog.at_level(logging.INFO):
            await service.app(scope, receive, send)
    assert sent[0]["status"] == 499
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("rows_", [3, 700])
async def test_tables_are_answered_as_json_is(repository, rows_):
    x = np.random.default_rng(0).uniform(0, 3, size=(rows_, 2)).tolist()
    async with running(repository) as service:

        async def ask(content, media_type):
            return await service.http.post(
                "/v1/models/m:predict?coverage=0.5", content=content, headers={"content-type": media_type}
            )

        as_json = (await service.predict(instances=x, coverage=0.5)).json()["predictions"]
        as_csv = await ask("b,a\n" + "".join(f"{b!r},{a!r}\n" for a, b in x), "text/csv; charset=utf-8")
        as_ndjson = await ask(b"\n".join(orjson.dumps(row) for row in x), "application/x-ndjson")
        as_arrow = await ask(arrow_stream({"b": np.array(x)[:, 1], "a": np.array(x)[:, 0]}), ARROW)
        refused = await ask("b,a\n1\n", "text/csv")
        refused_arrow = await ask(b"{}", ARROW)
    assert (as_csv.status_code, as_csv.headers["content-type"]) == (200, "text/csv")
    assert (as_ndjson.status_code, as_ndjson.headers["content-type"]) == (200, "application/x-ndjson")
    assert [orjson.loads(line) for line in as_ndjson.text.splitlines()] == as_json
    assert (as_arrow.status_code, as_arrow.headers["content-type"]) == (200, ARROW)
    answered = pa.ipc.open_stream(as_arrow.content).read_all()
    header, *lines = as_csv.text.splitlines()
    assert header.split(",") == answered.column_names
    assert header == "y_mean,y_std,y_epistemic_std,y_lower_0.5,y_upper_0.5"
    for line, row, cells in zip(lines, as_json, zip(*answered.to_pydict().values(), strict=True), strict=True):
        (interval,) = row["intervals"]
        expected = [row["mean"], row["std"], row["epistemic_std"], interval["lower"], interval["upper"]]
        assert [float(cell) for cell in line.split(",")] == expected
        assert np.float32(cells).tolist() == np.float32(expected).tolist()
    assert "not a valid Arrow stream" in refused_arrow.json()["error"]
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/json"


async def test_a_small_arrow_body_may_hold_many_rows_and_is_read_in_a_thread(repository, monkeypatch):
    threads = []

    def count(body, features):
        threads.append(threading.current_thread())
        return arrow_count(body, features)

    arrow_count = arrow.count
    monkeypatch.setattr(arrow, "count", count)
    async with running(repository) as service:
        body = arrow_stream({"a": pa.nulls(50_000), "b": pa.nulls(50_000)})
        answer = await service.http.post("/v1/models/m:predict", content=body, headers={"content-type": ARROW})
    assert len(body) < 1000
    assert pa.ipc.open_stream(answer.content).read_all().num_rows == 50_000
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize(
    ("name", "usual", "body"),
    [
        ("application/csv", "text/csv", "a,b\n1,2\n"),
        ("application/ndjson; charset=utf-8", "application/x-ndjson", "[1, 2]\n[3, 4]"),
        ("application/jsonlines", "application/jsonl", "[1, 2]\n[3, 4]"),
        ("application/x-jsonlines", "application/jsonl", '{"a": 1}'),
    ],
)
async def test_other_names_of_tables(repository, name, usual, body):
    async with running(repository) as service:
        asked = [
            await service.http.post("/v1/models/m:predict", content=body, headers={"content-type": one})
            for one in (name, usual)
        ]
    assert [(one.status_code, one.headers["content-type"], one.text) for one in asked] == [(200, usual, asked[1].text)] * 2


@pytest.mark.parametrize(
    ("media_type", "body", "told"),
    [
        (
            "application/x-parquet",
            b"PAR1\xff",
            "(Content-Type 'application/x-parquet' is read as JSON here; tables are text/csv, ",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\n",
            "(Content-Type 'multipart/form-data' is read as JSON here; tables are ",
        ),
        (
            "text/tab-separated-values",
            b"a\tb\n1\t2\n",
            "(Content-Type 'text/tab-separated-values' is read as JSON here; tables",
        ),
        (
            "application/json",
            b"[1, 2]\n[3, 4]\n",
            "(its first line is: for an instance a line, send Content-Type application/x-nd",
        ),
        (
            None,
            b'{"a": 1}\n\n{"a": 2}\n',
            "(its first line is: for an instance a line, send Content-Type application/x-ndjson)",
        ),
    ],
)
async def test_what_is_no_json_is_told_what_else_there_is(repository, media_type, body, told):
    async with running(repository) as service:
        headers = {"content-type": media_type} if media_type else {}
        for path in ("/v1/models/m:predict", "/invocations"):
            refused = await service.http.post(path, content=body, headers=headers)
            assert refused.status_code == 400
            assert refused.json()["error"].startswith("the body is not valid JSON: ")
            assert told in refused.json()["error"]


@pytest.mark.parametrize("body", [b'{"instances": [}', b'{"instances": [\n{', b"{}\n}", b""])
async def test_json_that_is_broken_is_taken_for_nothing_else(repository, body):
    async with running(repository) as service:
        refused = await service.http.post("/v1/models/m:predict", content=body, headers={"content-type": "application/json"})
    assert "first line" not in refused.json()["error"]


@pytest.mark.parametrize(
    ("media_type", "none", "one", "told"),
    [("text/csv", "a,b\n", "1,2\n", "y_mean,y_std,y_epistemic_std\n"), ("application/x-ndjson", "", "[1, 2]\n", "")],
)
async def test_tables_of_no_rows_or_no_intervals_are_answered(repository, media_type, none, one, told):
    async with running(repository) as service:

        async def ask(body):
            url = "/v1/models/m:predict?coverage=&samples=0"
            return await service.http.post(url, content=body, headers={"content-type": media_type})

        empty, row = await ask(none), await ask(one)
    assert (empty.status_code, empty.text) == (200, told)
    assert row.status_code == 200
    assert row.text.startswith(told)
    assert len(row.text.splitlines()) == 1 + len(told.splitlines())
