"""The OpenAPI document: the fixed routes as FastAPI knows them, and the predict routes as the loaded models make them."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import service
from service.codecs.documents import (
    answer_schema,
    example_infer_request,
    example_request,
    infer_answer_schema,
    infer_request_schema,
    request_schema,
)
from service.inference.model import ServedModel
from service.repository import Repository
from service.routes import infer, predict

_SHOWN_MODELS = 20
_DESCRIPTION = (
    "Predictions that say how sure they are: mean, std and calibrated prediction intervals. "
    "`POST /v1/models/{name}:predict` answers rows of raw columns; `GET /v1/models` lists the models. "
    'Every failure is `{"error": sentence, "details": [{"row", "feature", "problem"}]}`.'
)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["problem"],
                "properties": {"row": {"type": "integer"}, "feature": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}
_FAILURES = {
    "400": "The request is invalid; `details` says where",
    "404": "There is no such model, version or label",
    "413": "The request is too large",
    "503": "Overloaded or not ready; try again later",
    "504": "Waited too long",
}


def openapi_document(app: FastAPI, repository: Repository) -> dict[str, Any]:
    """The document for the models that are loaded now."""
    document = get_openapi(title="errorbar", version=service.__version__, description=_DESCRIPTION, routes=app.routes)
    models = [entry.default for _, entry in sorted(repository.entries.items()) if entry.default is not None]
    paths: dict[str, Any] = {
        f"/v1/models/{model.name}:predict": {"post": _operation(f"Predict with {model.name}", model=model, parameters=[])}
        for model in models[:_SHOWN_MODELS]
    }
    model = models[0] if models else None
    for path, what in zip(predict.PATHS, (None, "version", "label"), strict=True):
        names = ["name"] if what is None else ["name", what]
        summary = "Predict with a model" if what is None else f"Predict with the model of a {what}"
        paths[path] = {"post": _operation(summary, model=model, parameters=names)}
    for path, names in zip(infer.PATHS, (["name"], ["name", "version"]), strict=True):
        paths[path] = {"post": _infer_operation(model, parameters=names)}
    paths["/invocations"] = {
        "post": _operation("Predict with the only model (SageMaker, MLflow's forms)", model=None, parameters=[])
    }
    return document | {"paths": paths | document["paths"]}


def _operation(summary: str, *, model: ServedModel | None, parameters: list[str]) -> dict[str, Any]:
    """One predict operation; with `parameters` it is for any model, and `model` only gives the example."""
    specific = model if not parameters else None
    columns = specific.manifest.columns if specific else None
    targets = specific.manifest.target_names if specific else None
    request: dict[str, Any] = {"schema": request_schema(columns)}
    if model is not None:
        request["example"] = example_request(model.manifest)
    return {
        "tags": ["predict"],
        "summary": summary,
        "parameters": _parameters(parameters, model),
        "requestBody": {"required": True, "content": {"application/json": request}},
        "responses": _responses("One prediction a row", answer_schema(targets)),
    }


def _infer_operation(model: ServedModel | None, *, parameters: list[str]) -> dict[str, Any]:
    """One V2 inference operation."""
    request: dict[str, Any] = {"schema": infer_request_schema()}
    if model is not None:
        request["example"] = example_infer_request(model.manifest)
    return {
        "tags": ["open inference protocol"],
        "summary": f"Infer with a {'version of a ' if 'version' in parameters else ''}model",
        "description": "Tensors in, tensors out; with the binary tensor data extension also as raw bytes.",
        "parameters": _parameters(parameters, model),
        "requestBody": {"required": True, "content": {"application/json": request}},
        "responses": _responses("The outputs asked for", infer_answer_schema()),
    }


def _parameters(names: list[str], model: ServedModel | None) -> list[dict[str, Any]]:
    examples = {} if model is None else {"name": model.name, "version": str(model.version)}
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        | ({"example": examples[name]} if name in examples else {})
        for name in names
    ]


def _responses(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {"description": description, "content": {"application/json": {"schema": schema}}},
        **{
            status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
            for status, text in _FAILURES.items()
        },
    }
