"""The Open Inference Protocol (V2) beside inference and health: what server and models are, and the model repository."""

from collections.abc import Iterable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

import service
from service.answers import json_answer
from service.codecs.tensors import parameters
from service.codecs.words import json_type
from service.errors import InvalidRequestError, TooLargeError
from service.metrics import statistics
from service.model import ServedModel
from service.repository import Entry
from service.routes.bodies import decompressed, receive_body
from service.routes.metadata import tensor_metadata
from service.state import state_of

_BODY_BYTES = 64 * 1024
EXTENSIONS = ("binary_tensor_data", "model_repository", "schedule_policy", "statistics")

router = APIRouter(tags=["open inference protocol"])


@router.get("/v2", summary="Server metadata")
@router.get("/v2/", include_in_schema=False)
async def server_metadata() -> Response:
    """Name, version and protocol extensions of the server."""
    return json_answer({"name": "errorbar", "version": service.__version__, "extensions": EXTENSIONS})


@router.get("/v2/models/stats", summary="Statistics of all models")
async def all_statistics(request: Request) -> Response:
    """Requests, rows, runs and their time, of every version that is served."""
    return _statistics_of(request, state_of(request).models())


@router.get("/v2/models/{name}/versions/{version}", summary="Metadata of a model's version")
@router.get("/v2/models/{name}", summary="Model metadata")
async def model_metadata(request: Request) -> Response:
    """Inputs and outputs as tensors."""
    repository = state_of(request).repository
    model = repository.model(**request.path_params)
    return json_answer(tensor_metadata(model, [*repository.entry(model.name).served]))


@router.get("/v2/models/{name}/stats", summary="Statistics of a model")
async def model_statistics(request: Request) -> Response:
    """Requests, rows, runs and their time, of every version of a model that is served."""
    return _statistics_of(request, state_of(request).repository.entry(request.path_params["name"]).served.values())


@router.get("/v2/models/{name}/versions/{version}/stats", summary="Statistics of a version of a model")
async def version_statistics(request: Request) -> Response:
    """Requests, rows, runs and their time of a version."""
    return _statistics_of(request, [state_of(request).repository.model(**request.path_params)])


@router.post("/v2/repository/index", summary="Index of the model repository")
async def repository_index(request: Request) -> Response:
    """Every version that the repository holds, with its state; `{"ready": true}` asks for those that can answer only."""
    state = state_of(request)
    only_ready = (await _asked(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequestError(f"'ready' is {json_type(only_ready)}; give true or false")
    index = [line for name, entry in sorted(state.repository.entries.items()) for line in _index(name, entry)]
    return json_answer([line for line in index if line["state"] == "READY" or not only_ready])


@router.post("/v2/repository/models/{name}/load", summary="Load a model")
async def load(request: Request) -> Response:
    """Take a model in again after `unload`, and try again what failed. Needs a key of scope `admin`."""
    await _no_overrides(request)
    await state_of(request).repository.load(request.path_params["name"])
    return Response()


@router.post("/v2/repository/models/{name}/unload", summary="Unload a model")
async def unload(request: Request) -> Response:
    """Take a model out of service until it is loaded again; its files stay. Needs a key of scope `admin`."""
    await _no_overrides(request)
    await state_of(request).repository.unload(request.path_params["name"])
    return Response()


async def _no_overrides(request: Request) -> None:
    """Raise InvalidRequestError for parameters that would bring a model from elsewhere than the repository."""
    for name in parameters(await _asked(request), "the request"):
        if name != "unload_dependents":  # what Triton's client always sends; no model depends on another here
            raise InvalidRequestError(f"parameter {name[:100]!r} is not taken; models come from the repository only")


def _statistics_of(request: Request, models: Iterable[ServedModel]) -> Response:
    versions = sorted((model.name, model.version) for model in models)
    return json_answer(statistics(state_of(request).snapshots(), [(name, str(version)) for name, version in versions]))


def _index(name: str, entry: Entry) -> list[dict[str, Any]]:
    lines = []
    for version in entry.versions:
        ready = version in entry.served
        reason = entry.failures.get(version, "" if ready else "unloaded" if entry.unloaded_by_hand else "not loaded")
        lines.append({"name": name, "version": str(version), "state": "READY" if ready else "UNAVAILABLE", "reason": reason})
    return lines


async def _asked(request: Request) -> dict[str, Any]:
    """The optional object that a repository request holds."""
    try:
        body = await receive_body(request.scope, request.receive, limit=_BODY_BYTES)
        body = decompressed(request.scope, body, limit=_BODY_BYTES)
    except TooLargeError:
        raise TooLargeError(f"the body is larger than {_BODY_BYTES} bytes, and this route takes a few parameters") from None
    try:
        asked = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(asked, dict):
        raise InvalidRequestError(f"the body is {json_type(asked)}; send an object, or nothing")
    return asked
