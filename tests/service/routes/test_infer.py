import asyncio
import gzip

import numpy as np
import orjson
import pytest
from jsonschema import Draft202012Validator

from models.artifact import open_model
from models.manifest import Target
from service.routes.infer import V2
from tests.model_files import MIXED, write_formula_model
from tests.service.conftest import running, slowed

pytestmark = pytest.mark.anyio


def body(x, **more):
    x = np.asarray(x)
    return {"inputs": [{"name": "x", "shape": x.shape, "datatype": "FP64", "data": x.ravel().tolist()}]} | more


async def infer(service, request, path="m", **headers):
    content = request if isinstance(request, bytes) else orjson.dumps(request)
    return await service.http.post(f"/v2/models/{path}/infer", content=content, headers=headers)


async def test_an_answer_is_what_the_bare_graph_says_as_json_and_as_bytes(repository):
    run, _ = open_model(repository / "m" / "1" / "model.onnx")
    x = np.random.default_rng(0).uniform(0, 3, size=(700, 2))
    expected = run(x, np.array([0.5, 0.9]))
    async with running(repository) as service:
        as_json = await infer(service, body(x, parameters={"coverage": "0.5,0.9"}))
        wanted = body(x, parameters={"coverage": "0.5,0.9", "binary_data_output": True})
        as_bytes = await infer(service, wanted)
    assert (as_json.status_code, as_json.headers["content-type"]) == (200, "application/json")
    assert (as_bytes.status_code, as_bytes.headers["content-type"]) == (200, "application/octet-stream")
    length = int(as_bytes.headers["inference-header-content-length"])
    start = length
    for text, raw in zip(as_json.json()["outputs"], orjson.loads(as_bytes.content[:length])["outputs"], strict=True):
        array = expected[text["name"]]
        assert text["shape"] == raw["shape"] == list(array.shape)
        assert np.float32(text["data"]).tolist() == array.ravel().tolist()
        end = start + raw["parameters"]["binary_data_size"]
        assert as_bytes.content[start:end] == array.tobytes()
        start = end
    assert start == len(as_bytes.content)


async def test_a_body_of_nothing_but_x(repository):
    x = np.array([[1.0, 2.0], [0.5, 3.0]])
    async with running(repository) as service:
        raw = await infer(service, x.tobytes(), **{"Inference-Header-Content-Length": "0"})
        usual = await infer(service, body(x, parameters={"binary_data_output": True}))
    assert raw.status_code == 200
    assert raw.content == usual.content


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "text/plain", "application/json"])
async def test_the_content_type_decides_nothing(repository, content_type):
    async with running(repository) as service:
        headers = {} if content_type is None else {"content-type": content_type}
        answer = await infer(service, body([[1, 2]]), **headers)
    assert answer.status_code == 200


async def test_versions_answer_with_their_model(repository):
    write_formula_model(repository / "m" / "2" / "model.onnx")
    async with running(repository) as service:
        answers = [(await infer(service, body([[1, 2]]), path)).json() for path in ("m", "m/versions/1", "m/versions/2")]
        unknown = await infer(service, body([[1, 2]]), "m/versions/3")
    assert [answer["model_version"] for answer in answers] == ["2", "1", "2"]
    assert unknown.status_code == 404


async def test_requests_that_share_a_run_are_answered_as_if_alone(repository):
    asked = [
        body([[1, 2]]),
        body([[0, 1], [2, 2]]),
        body([[1, 2]], outputs=[{"name": "mean"}]),
        body([[1, 2]], outputs=[{"name": "mean"}], parameters={"coverage": 0.5}),
        body([[1, 2]], parameters={"coverage": 0.5}),
    ]
    async with running(repository) as service:
        together = await asyncio.gather(*(infer(service, request) for request in asked))
        alone = [await infer(service, request) for request in asked]
    assert [answer.content for answer in together] == [answer.content for answer in alone]


async def test_a_compressed_body(repository):
    async with running(repository) as service:
        answer = await infer(service, gzip.compress(orjson.dumps(body([[1, 2]]))), **{"Content-Encoding": "gzip"})
    assert answer.status_code == 200


@pytest.mark.parametrize("length", ["-1", "abc", "9" * 30, "1e3", ""])
async def test_a_bad_length_header_is_refused(repository, length):
    async with running(repository) as service:
        answer = await infer(service, body([[1, 2]]), **{"Inference-Header-Content-Length": length})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("Inference-Header-Content-Length is ")


async def test_a_coverage_that_the_calibration_rows_cannot_support_is_refused_where_it_matters(repository):
    async with running(repository) as service:
        refused = await infer(service, body([[1, 2]], parameters={"coverage": 0.999}))
        of_no_matter = await infer(service, body([[1, 2]], parameters={"coverage": 0.999}, outputs=[{"name": "std"}]))
    assert refused.status_code == 400
    assert "the largest supported coverage is 0.99" in refused.json()["error"]
    assert of_no_matter.status_code == 200


async def test_a_timeout_that_passes_in_the_queue_is_504(repository):
    async with running(repository, inline_milliseconds=0) as service:
        slowed(service, seconds=0.2)
        before = asyncio.create_task(infer(service, body([[1, 2]])))
        await asyncio.sleep(0.05)
        late, patient = await asyncio.gather(
            infer(service, body([[1, 2]], parameters={"timeout": 1000})), infer(service, body([[1, 2]]))
        )
        assert (await before).status_code == 200
    assert late.status_code == 504
    assert "waited too long" in late.json()["error"]
    assert patient.status_code == 200


async def test_only_post(repository):
    async with running(repository) as service:
        answer = await service.http.get("/v2/models/m/infer")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_what_a_model_says_of_itself(tmp_path):
    write_formula_model(tmp_path / "mixed" / "1" / "model.onnx", columns=MIXED, float64=True)
    write_formula_model(tmp_path / "mixed" / "3" / "model.onnx", columns=MIXED)
    async with running(tmp_path) as service:
        server = (await service.http.get("/v2")).json()
        newest = (await service.http.get("/v2/models/mixed")).json()
        first = (await service.http.get("/v2/models/mixed/versions/1")).json()
        answer = (await infer(service, body([[1, 1, 0, 1, 1.65e9]]), "mixed/versions/1")).json()
        missing = await service.http.get("/v2/models/nothing")
    assert server["extensions"] == ["binary_tensor_data", "model_repository", "schedule_policy", "statistics"]
    assert (newest["name"], newest["versions"], newest["platform"]) == ("mixed", ["1", "3"], "onnx_onnxv1")
    assert newest["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 5]}]
    assert newest["outputs"][0] == {"name": "mean", "datatype": "FP32", "shape": [-1, 1]}
    assert newest["outputs"][-1] == {"name": "upper", "datatype": "FP32", "shape": [-1, 1, -1]}
    assert newest["properties"]["features"] == "a, b, colour, open, when"
    assert all(isinstance(value, str) for value in newest["properties"].values())
    assert [(o["name"], o["datatype"]) for o in answer["outputs"]] == [(o["name"], o["datatype"]) for o in first["outputs"]]
    assert missing.status_code == 404


async def test_the_index_of_the_repository(repository):
    write_formula_model(repository / "n" / "1" / "model.onnx")
    (repository / "m" / "2").mkdir()
    (repository / "m" / "2" / "model.onnx").write_bytes(b"not a model")
    async with running(repository) as service:
        everything = (await service.http.post("/v2/repository/index")).json()
        ready = (await service.http.post("/v2/repository/index", json={"ready": True})).json()
        wrong = [await service.http.post("/v2/repository/index", content=c) for c in (b"[]", b"{", b'{"ready": 1}')]
    assert [(line["name"], line["version"], line["state"]) for line in everything] == [
        ("m", "1", "READY"), ("m", "2", "UNAVAILABLE"), ("n", "1", "READY"),
    ]  # fmt: skip
    assert "is not an ONNX file" in everything[1]["reason"]
    assert [(line["name"], line["version"]) for line in ready] == [("m", "1"), ("n", "1")]
    assert [answer.status_code for answer in wrong] == [400, 400, 400]


async def test_the_documented_example_is_answered_in_the_documented_form(tmp_path):
    write_formula_model(tmp_path / "mixed" / "1" / "model.onnx", columns=MIXED, group_column="colour")
    async with running(tmp_path) as service:
        document = (await service.http.get("/openapi.json")).json()
        operation = document["paths"]["/v2/models/{name}/infer"]["post"]
        asked = operation["requestBody"]["content"]["application/json"]
        answer = await infer(service, asked["example"], "mixed")
    assert answer.status_code == 200
    assert "parameters" not in answer.json()  # no warnings
    Draft202012Validator(asked["schema"]).validate(asked["example"])
    Draft202012Validator(operation["responses"]["200"]["content"]["application/json"]["schema"]).validate(answer.json())


@pytest.mark.parametrize("binary", [False, True])
async def test_of_a_shared_run_only_the_request_with_the_row_too_far_is_refused(tmp_path, binary):
    targets = (Target(name="z", minimum=0.1, maximum=50.0, transform="log"),)
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", targets=targets)
    async with running(tmp_path) as service:
        asked = [body(x, parameters={"binary_data_output": binary}) for x in ([[0, 0]], [[300, 300]], [[1, 1]])]
        near, far, other = await asyncio.gather(*(infer(service, request) for request in asked))
        metrics = service.state.repository.model("m").metrics
    assert metrics.run_rows.counts[2] == 1  # one run of 3 or 4 rows
    assert (near.status_code, far.status_code, other.status_code) == (200, 400, 200)
    assert "row 0: " in far.json()["error"]
    assert "too far from the training rows" in far.json()["error"]


@pytest.mark.parametrize(("rows", "binary", "long"), [(10, True, False), (10_000, True, False), (200_000, True, True),
                                                       (10, False, False), (20_000, False, True)])  # fmt: skip
def test_only_what_takes_long_to_read_is_read_in_a_thread(rows, binary, long):
    x = np.full((rows, 2), 1.5)
    if binary:
        content, headers = x.tobytes(), [(b"inference-header-content-length", b"0")]
    else:
        content, headers = orjson.dumps(body(x)), []
    assert V2.reading_takes_long(None, {"headers": headers}, content) is long


@pytest.mark.parametrize(("datatype", "long"), [("BYTES", True), (r"\u0042YTES", True), ("FP64", False)])
def test_raw_texts_take_longer_to_read_than_raw_numbers(datatype, long):
    head = b'{"inputs":[{"name":"a","datatype":"%b","parameters":{"binary_data_size":40000}}]}' % datatype.encode()
    headers = [(b"inference-header-content-length", b"%d" % len(head))]
    assert V2.reading_takes_long(None, {"headers": headers}, head + bytes(40_000)) is long
