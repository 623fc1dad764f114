import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.service.conftest import running

pytestmark = pytest.mark.anyio


@pytest.fixture
def collector(monkeypatch):
    """What a collector of traces is sent."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield received
    server.shutdown()
    server.server_close()
    thread.join()


async def test_requests_are_traced_where_an_exporter_is_configured(repository, collector):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running(repository) as service:
        await service.http.post("/v1/models/m:predict", json={"instances": [[1, 2]]}, headers={"traceparent": parent})
        await service.http.post("/v2/models/m/versions/1/infer", content=b"{")
        await service.http.get("/v1/models")
    spans = [
        (span, {item.key: item.value for item in span.attributes})
        for path, request in collector
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if path == "/v1/traces"
    ]
    assert [span.name for span, _ in spans] == ["POST predict", "POST infer", "GET v1"]
    predict, infer = spans[0], spans[1]
    assert predict[0].trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert predict[0].parent_span_id.hex() == "b7ad6b7169203331"
    assert predict[1]["errorbar.name"].string_value == "m"
    assert infer[1]["errorbar.version"].string_value == "1"
    status = {key: value.int_value for key, value in infer[1].items() if "status_code" in key}
    assert set(status.values()) == {400}


async def test_without_an_exporter_nothing_is_loaded(repository, monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    async with running(repository) as service:
        assert not any("OpenTelemetry" in middleware.cls.__name__ for middleware in service.app.user_middleware)


async def test_a_missing_package_is_said(repository, monkeypatch, caplog):
    import sys

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    async with running(repository) as service:
        assert (await service.predict(instances=[[1, 2]])).status_code == 200
    assert "pip install '.[tracing]'" in caplog.text


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "errorbar"),
        ({"OTEL_SERVICE_NAME": "prices"}, "prices"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a,service.name=prices"}, "prices"),
    ],
)
async def test_the_service_is_named_as_the_variables_say(repository, collector, monkeypatch, variables, name):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    async with running(repository) as service:
        await service.http.get("/v1/models")
    (resource,) = [resource.resource for _, request in collector for resource in request.resource_spans]
    assert {item.key: item.value.string_value for item in resource.attributes}["service.name"] == name


async def test_a_request_for_the_whole_server_is_traced_like_others(repository, collector):
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    async with running(repository) as service:
        scope = {"type": "http", "method": "OPTIONS", "path": "*", "headers": [], "query_string": b"", "client": None}
        await service.app(scope, receive, send)
    assert sent[0]["status"] == 404
