"""V1 predictions: rows in, readable predictions out."""

import asyncio

from starlette.types import Receive, Scope

from service.codecs.rows import Limits, RowsRequest, answer, read_request
from service.routes.answers import LARGE_BYTES, LARGE_ROWS, Content, read_body
from service.state import ServiceState

_PREFIX = "/v1/models/{name}"
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")


async def predict(
    state: ServiceState, scope: Scope, receive: Receive, *, name: str, version: str | None, label: str | None
) -> Content:
    """The JSON answer to a V1 request, by the model that its path names. Raises ServiceError, ClientDisconnect."""
    settings = state.settings
    model = state.repository.model(name, version=version, label=label)
    body = await read_body(scope, receive, limit=settings.max_body_bytes)

    def read() -> RowsRequest:
        return read_request(
            body,
            model.features,
            targets=len(model.targets.names),
            default_coverage=model.manifest.default_coverage,
            limits=Limits(rows=settings.max_rows, answer_values=settings.max_answer_values),
        )

    asked = read() if len(body) <= LARGE_BYTES else await asyncio.to_thread(read)
    prediction = await model.answer(asked.question)

    def write() -> bytes:
        return answer(
            prediction,
            asked.warnings,
            coverage=asked.question.coverage,
            targets=model.targets.names,
            model={"name": model.name, "version": str(model.version)},
        )

    return Content(write() if len(asked.question.x) <= LARGE_ROWS else await asyncio.to_thread(write))
