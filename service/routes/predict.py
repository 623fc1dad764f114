"""V1 predictions: rows in, readable predictions out."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.codecs.rows import Limits, RowsRequest, answer, read_request
from service.routes.answers import read_body
from service.state import state_of

_PREFIX = "/v1/models/{name}"
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")

_LARGE_BYTES = 100_000
_LARGE_ROWS = 500
"""Beyond either, reading or writing takes over a millisecond and moves to a thread, so that others are served meanwhile."""


async def predict(request: Request) -> Response:
    """Answer a V1 request with the model that its path names."""
    state = state_of(request)
    settings = state.settings
    model = state.repository.model(**request.path_params)
    body = await read_body(request, limit=settings.max_body_bytes)
    limits = Limits(rows=settings.max_rows, answer_values=settings.max_answer_values)

    def read() -> RowsRequest:
        return read_request(
            body,
            model.features,
            targets=len(model.targets.names),
            default_coverage=model.manifest.default_coverage,
            limits=limits,
        )

    asked = read() if len(body) <= _LARGE_BYTES else await asyncio.to_thread(read)
    prediction = await model.answer(asked.question)

    def write() -> bytes:
        return answer(
            prediction,
            asked.warnings,
            coverage=asked.question.coverage,
            targets=model.targets.names,
            model={"name": model.name, "version": str(model.version)},
        )

    content = write() if len(asked.question.x) <= _LARGE_ROWS else await asyncio.to_thread(write)
    return Response(content, media_type="application/json")


routes = [Route(path, predict, methods=["POST"]) for path in PATHS]
"""Plain Starlette routes: FastAPI's own handling of a request takes longer than the prediction."""
