import json
import logging

import pytest

from service.telemetry import _JsonFormatter
from tests.service.conftest import running

pytestmark = pytest.mark.anyio


async def test_a_request_id_is_echoed_or_made(repository):
    async with running(repository) as service:
        given = await service.http.get("/v2", headers={"X-Request-Id": "abc-123/x"})
        assert given.headers["x-request-id"] == "abc-123/x"
        made = {(await service.http.get("/v2")).headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        failed = await service.http.get("/nowhere", headers={"X-Request-Id": "abc"})
        assert failed.headers["x-request-id"] == "abc"


@pytest.mark.parametrize("unsafe", ["a b", 'a"b', "x" * 129, "<script>", ""])
async def test_an_unsafe_request_id_is_replaced(repository, unsafe):
    async with running(repository) as service:
        assert (await service.http.get("/v2", headers={"X-Request-Id": unsafe})).headers["x-request-id"] != unsafe


async def test_a_bug_is_a_500_with_a_request_id_and_no_trace_and_stands_in_the_log(repository, monkeypatch, caplog):
    async with running(repository) as service:

        def bug(*_, **__):
            raise RuntimeError("secret detail")

        monkeypatch.setattr("service.routes.predict.read_request", bug)
        answer = await service.predict(instances=[[1, 2]])
        assert service.state.metrics.rejected == {"bug": 1}
    assert answer.status_code == 500
    body = answer.json()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["error"] == f"internal error; the server's log has it under request id {body['request_id']}"
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert body["request_id"] in record.getMessage()


async def test_a_request_has_one_access_line_without_its_payload(repository, caplog):
    async with running(repository) as service:
        with caplog.at_level(logging.INFO, "service.access"):
            await service.predict(instances=[[1.2345, 2]])
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    assert (record.method, record.path, record.status) == ("POST", "/v1/models/m:predict", 200)
    assert "1.2345" not in _JsonFormatter().format(record)


async def test_a_newline_in_a_path_makes_no_second_log_line(repository, caplog):
    async with running(repository) as service:
        with caplog.at_level(logging.INFO, "service.access"):
            await service.http.get("/x%0aFORGED")
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    assert "\n" not in record.getMessage()


async def test_access_lines_can_be_switched_off(repository, caplog):
    async with running(repository, access_log=False) as service:
        with caplog.at_level(logging.INFO, "service.access"):
            await service.http.get("/v2")
    assert not [record for record in caplog.records if record.name == "service.access"]


def test_a_json_line_carries_the_extra_facts_and_the_trace():
    error = RuntimeError("inner")
    record = logging.LogRecord("service", logging.ERROR, "", 1, "failed: %s", ("x",), (RuntimeError, error, None))
    record.request_id = "abc"
    line = json.loads(_JsonFormatter().format(record))
    assert (line["level"], line["message"], line["request_id"]) == ("error", "failed: x", "abc")
    assert "RuntimeError: inner" in line["trace"]
