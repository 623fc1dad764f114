"""V1 predictions: rows in, readable predictions out."""

import asyncio
import time

from starlette.types import Receive, Scope

from service.codecs.rows import Limits, RowsRequest, answer, read_request
from service.inference.model import ServedModel
from service.routes.answers import LARGE_BYTES, LARGE_ROWS, Content, read_body
from service.settings import Settings

_PREFIX = "/v1/models/{name}"
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")


async def predict(settings: Settings, model: ServedModel, scope: Scope, receive: Receive) -> Content:
    """The JSON answer to a V1 request. Raises ServiceError, ClientDisconnect."""
    body = await read_body(scope, receive, limit=settings.max_body_bytes)

    def read() -> RowsRequest:
        return read_request(
            body,
            model.features,
            targets=len(model.targets.names),
            default_coverage=model.manifest.default_coverage,
            limits=Limits(rows=settings.max_rows, answer_values=settings.max_answer_values),
        )

    started = time.perf_counter()
    asked = read() if len(body) <= LARGE_BYTES else await asyncio.to_thread(read)
    model.metrics.seconds["read"] += time.perf_counter() - started
    model.metrics.unusual_rows += len(asked.warnings)
    prediction = await model.answer(asked.question)

    def write() -> bytes:
        return answer(
            prediction,
            asked.warnings,
            coverage=asked.question.coverage,
            targets=model.targets.names,
            model={"name": model.name, "version": str(model.version)},
        )

    started = time.perf_counter()
    body = write() if len(asked.question.x) <= LARGE_ROWS else await asyncio.to_thread(write)
    model.metrics.seconds["write"] += time.perf_counter() - started
    return Content(body)
