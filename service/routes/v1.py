"""The routes of V1 beside predictions: which models there are, and what is known about each."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response

from models.artifact import MODEL_NAME
from service.answers import json_answer
from service.repository import Entry
from service.routes.metadata import metadata
from service.state import state_of

router = APIRouter(tags=["models"])


class _ModelName(StringConvertor):
    regex = MODEL_NAME.pattern  # no colon: GET on `{name}:predict` is a 405, not a model of that name


register_url_convertor("model_name", _ModelName())


@router.get("/v1/models", summary="List the models")
async def list_models(request: Request) -> Response:
    """Models with their versions, states and labels; `waiting_for` says what keeps the service from being ready."""
    state = state_of(request)
    body: dict[str, Any] = {"models": [_described(name, entry) for name, entry in sorted(state.repository.entries.items())]}
    reason = state.not_ready()
    return json_answer(body if reason is None else body | {"waiting_for": reason})


@router.get("/v1/models/{name:model_name}", summary="State of a model")
async def show_model(request: Request) -> Response:
    """One entry of the list, with `ready`."""
    name = request.path_params["name"]
    entry = state_of(request).repository.entry(name)
    return json_answer(_described(name, entry) | {"ready": entry.default is not None})


@router.get("/v1/models/{name}/labels/{label}/metadata", summary="What is known about a labelled version of a model")
@router.get("/v1/models/{name}/versions/{version}/metadata", summary="What is known about a version of a model")
@router.get("/v1/models/{name}/metadata", summary="What is known about a model")
async def show_metadata(request: Request) -> Response:
    """The manifest without its long arrays, the device in use, the file's digest, and a JSON Schema of one instance."""
    return json_answer(metadata(state_of(request).repository.model(**request.path_params)))


def _described(name: str, entry: Entry) -> dict[str, Any]:
    versions = []
    for version in entry.versions:
        state = "ready" if version in entry.served else "failed" if version in entry.failures else "not loaded"
        reason = {"reason": entry.failures[version]} if version in entry.failures else {}
        versions.append({"version": str(version), "state": state} | reason)
    described = {
        "name": name,
        "default_version": None if entry.default is None else str(entry.default.version),
        "versions": versions,
        "labels": {label: str(version) for label, version in sorted(entry.labels.items())},
    }
    return described if entry.labels_problem is None else described | {"labels_problem": entry.labels_problem}
