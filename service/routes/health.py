"""Health of the server and its models, in the form of the Open Inference Protocol."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.answers import json_answer
from service.errors import UnavailableError
from service.state import state_of

router = APIRouter(tags=["health"])


@router.get("/v2/health/live", summary="Is the server live?")
async def live() -> Response:
    """200 as long as the server answers at all."""
    return json_answer({"live": True})


@router.get("/ping", summary="Is the server ready? (SageMaker)")
@router.get("/v2/health/ready", summary="Is the server ready?")
async def ready(request: Request) -> Response:
    """200 when the models can answer and the server is not shutting down; otherwise 503 and what is waited for."""
    reason = state_of(request).not_ready()
    if reason is None:
        return json_answer({"ready": True, "live": True})
    return _not_ready({"ready": False, "live": True, "error": f"not ready: {reason}"})


@router.get("/v2/models/{name}/versions/{version}/ready", summary="Is a version of a model ready?")
@router.get("/v2/models/{name}/ready", summary="Is a model ready?")
async def model_ready(request: Request) -> Response:
    """200 when the model, or this version of it, can answer, 503 when it cannot, 404 when there is none."""
    name = request.path_params["name"]
    try:
        state_of(request).repository.model(**request.path_params)
    except UnavailableError as error:
        return _not_ready({"name": name, "ready": False} | error.body())
    return json_answer({"name": name, "ready": True})


def _not_ready(body: dict[str, Any]) -> Response:
    return json_answer(body, status=UnavailableError.status, headers=UnavailableError.headers)
