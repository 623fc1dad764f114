"""The OpenAPI document: the fixed routes as FastAPI knows them, and the predict routes as the loaded models make them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import service
from service.codecs import schemas
from service.codecs.documents import (
    answer_schema,
    example_infer_request,
    example_request,
    example_tables,
    request_schema,
)
from service.codecs.schemas import OPTIONS, Schema
from service.codecs.tables import FORMATS
from service.model import ServedModel
from service.repository import Entry, Repository
from service.routes import infer, predict
from service.security import ADMIN_PATHS, OPEN_PATHS

_SHOWN_MODELS = 20
_DESCRIPTION = (
    "Predictions that say how sure they are: mean, std and calibrated prediction intervals. "
    "`POST /v1/models/{name}:predict` answers rows of raw columns; `GET /v1/models` lists the models. "
    'Every failure is `{"error": sentence, "details": [{"row", "feature", "problem"}]}`.'
)
_JSON, _BYTES = "application/json", "application/octet-stream"
_TABLES: dict[str, Schema] = {_JSON: {}, **{name.decode(): {"type": "string"} for name in FORMATS}}
"""Bodies of the predict routes by media type; what JSON holds differs."""
_FAILURES = {
    400: "The request is invalid; `details` says where",
    401: "No key, or none that the service knows",
    403: "Not with this key: it takes one of scope `admin`",
    404: "There is no such model, version or label",
    413: "The request is too large",
    503: "Overloaded or not ready; try again later",
    504: "Waited too long",
}
_HEADERS = {401: "WWW-Authenticate", 503: "Retry-After"}
_PREDICT_FAILURES = (400, 404, 413, 503, 504)


@dataclass(frozen=True)
class _Fixed:
    """What is told of a fixed route. schema: of its answer; None where that is empty."""

    schema: Schema | None
    failures: tuple[int, ...] = ()
    request: Schema | None = None
    unready: Schema | None = None
    """Of status 503, where that says more than `error`."""
    media_type: str = _JSON


_ROUTES = {
    "/v2/health/live": _Fixed(schemas.LIVE),
    "/v2/health/ready": _Fixed(schemas.READY, (503,), unready=schemas.NOT_READY),
    "/ping": _Fixed(schemas.READY, (503,), unready=schemas.NOT_READY),
    "/v2/models/{name}/ready": _Fixed(schemas.MODEL_READY, (404, 503), unready=schemas.MODEL_NOT_READY),
    "/v2/models/{name}/versions/{version}/ready": _Fixed(schemas.MODEL_READY, (404, 503), unready=schemas.MODEL_NOT_READY),
    "/v2": _Fixed(schemas.SERVER),
    "/v2/models/stats": _Fixed(schemas.STATISTICS),
    "/v2/models/{name}": _Fixed(schemas.TENSOR_METADATA, (404, 503)),
    "/v2/models/{name}/versions/{version}": _Fixed(schemas.TENSOR_METADATA, (404, 503)),
    "/v2/models/{name}/stats": _Fixed(schemas.STATISTICS, (404,)),
    "/v2/models/{name}/versions/{version}/stats": _Fixed(schemas.STATISTICS, (404, 503)),
    "/v2/repository/index": _Fixed(schemas.INDEX, (400, 413), schemas.INDEX_REQUEST),
    "/v2/repository/models/{name}/load": _Fixed(None, (400, 403, 404, 413, 503), schemas.LOAD_REQUEST),
    "/v2/repository/models/{name}/unload": _Fixed(None, (400, 403, 404, 413, 503), schemas.LOAD_REQUEST),
    "/v1/models": _Fixed(schemas.MODELS),
    "/v1/models/{name}": _Fixed(schemas.MODEL, (404,)),
    "/v1/models/{name}/metadata": _Fixed(schemas.METADATA, (404, 503)),
    "/v1/models/{name}/versions/{version}/metadata": _Fixed(schemas.METADATA, (404, 503)),
    "/v1/models/{name}/labels/{label}/metadata": _Fixed(schemas.METADATA, (404, 503)),
    "/metrics": _Fixed({"type": "string"}, media_type="text/plain"),
}


def openapi_document(app: FastAPI, repository: Repository, *, keys: bool) -> dict[str, Any]:
    """The document for the models that are loaded now. keys: whether the service asks for them."""
    document = get_openapi(title="errorbar", version=service.__version__, description=_DESCRIPTION, routes=app.routes)
    entries = [entry for _, entry in sorted(repository.entries.items()) if entry.default is not None]
    models = [entry.default for entry in entries[:_SHOWN_MODELS] if entry.default is not None]
    paths: dict[str, Any] = {f"/v1/models/{model.name}:predict": _predict_with(model) for model in models}
    model = models[0] if models else None
    examples = {} if model is None else _names(model, entries[0])
    for path, what in zip(predict.PATHS, ("model", "model's version", "model's labelled version"), strict=True):
        paths[path] = _predict(f"Predict with a {what}", request_schema(None), answer_schema(None), model)
    for path, what in zip(infer.PATHS, ("model", "model's version"), strict=True):
        paths[path] = _infer(f"Infer with a {what}", model)
    only = "Predict with the only model (SageMaker, MLflow's forms)"
    paths["/invocations"] = _predict(only, schemas.INVOCATIONS_REQUEST, answer_schema(None), None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation |= _fixed(_ROUTES[path])
    document["paths"] = paths | document["paths"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["parameters"] = _path_parameters(path, examples) + operation.get("parameters", [])
            if keys and path not in OPEN_PATHS:
                operation["responses"] |= _failures([401, 403] if path.startswith(ADMIN_PATHS) else [401])
                operation["security"] = [{"bearer": []}, {"header": []}]
    if keys:
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["components"] = {"securitySchemes": schemes}
    return document


def _predict_with(model: ServedModel) -> dict[str, Any]:
    """The operation of one model, with its own features and targets."""
    manifest = model.manifest
    answer = answer_schema(manifest.target_names)
    return _predict(f"Predict with {model.name}", request_schema(manifest.columns), answer, model)


def _predict(summary: str, request: Schema, answer: Schema, model: ServedModel | None) -> dict[str, Any]:
    """A V1 operation: JSON with all options, or a table with its options in the query, which is answered by a table.

    model: of the examples.
    """
    asked: dict[str, Any] = {name: {"schema": schema} for name, schema in (_TABLES | {_JSON: request}).items()}
    answered = {name: {"schema": schema} for name, schema in (_TABLES | {_JSON: answer}).items()}
    if model is not None:
        for name, example in {_JSON: example_request(model.manifest), **example_tables(model.manifest)}.items():
            asked[name]["example"] = example
    operation = {
        "tags": ["predict"],
        "summary": summary,
        "description": "Rows as JSON, or a table: CSV with a header, or JSON lines. The query is read for tables only.",
        "parameters": [
            {"name": name, "in": "query", "explode": False, "schema": option, "description": option["description"]}
            for name, option in OPTIONS.items()
        ],
        "requestBody": {"required": True, "content": asked},
        "responses": {"200": {"description": "One prediction a row", "content": answered}} | _failures(_PREDICT_FAILURES),
    }
    return {"post": operation}


def _infer(summary: str, model: ServedModel | None) -> dict[str, Any]:
    """A V2 inference operation."""
    request: dict[str, Any] = {"schema": schemas.INFER_REQUEST}
    if model is not None:
        request["example"] = example_infer_request(model.manifest)
    raw = {"schema": {"type": "string", "format": "binary"}}
    length = {"description": "Bytes of the JSON part, where raw bytes follow it", "schema": {"type": "integer", "minimum": 0}}
    operation = {
        "tags": ["open inference protocol"],
        "summary": summary,
        "description": "Tensors in, tensors out; with the binary tensor data extension also as raw bytes.",
        "parameters": [{"name": "Inference-Header-Content-Length", "in": "header", **length}],
        "requestBody": {"required": True, "content": {_JSON: request, _BYTES: raw}},
        "responses": {
            "200": {
                "description": "The outputs asked for",
                "content": {_JSON: {"schema": schemas.INFER_ANSWER}, _BYTES: raw},
                "headers": {"Inference-Header-Content-Length": length},
            },
            **_failures(_PREDICT_FAILURES),
        },
    }
    return {"post": operation}


def _fixed(told: _Fixed) -> dict[str, Any]:
    """What a fixed route takes and answers."""
    answer: dict[str, Any] = {"description": "Done" if told.schema is None else "The answer"}
    if told.schema is not None:
        answer["content"] = {told.media_type: {"schema": told.schema}}
    operation: dict[str, Any] = {"responses": {"200": answer} | _failures(told.failures, unready=told.unready)}
    if told.request is not None:
        operation["requestBody"] = {"required": False, "content": {_JSON: {"schema": told.request}}}
    return operation


def _names(model: ServedModel, entry: Entry) -> dict[str, str]:
    """What may stand in a path: examples by parameter."""
    labels = [label for label, version in sorted(entry.labels.items()) if version in entry.served]
    return {"name": model.name, "version": str(model.version)} | ({"label": labels[0]} if labels else {})


def _path_parameters(path: str, examples: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        | ({"example": examples[name]} if name in examples else {})
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _failures(statuses: tuple[int, ...] | list[int], *, unready: Schema | None = None) -> dict[str, Any]:
    """Responses by status."""
    responses = {}
    for status in statuses:
        schema = unready if status == 503 and unready is not None else schemas.ERROR
        responses[str(status)] = {"description": _FAILURES[status], "content": {_JSON: {"schema": schema}}}
        if status in _HEADERS:
            responses[str(status)]["headers"] = {_HEADERS[status]: {"required": True, "schema": {"type": "string"}}}
    return responses
