"""V1 predictions: rows in, readable predictions out."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypedDict

from starlette.types import Receive, Scope

from service.codecs.clouds import as_v1
from service.codecs.rows import Limits, RowsRequest, answer, read_request
from service.codecs.tables import FORMATS, read_table
from service.inference.model import ServedModel
from service.inference.predictions import Prediction
from service.routes.answers import LARGE_BYTES, LARGE_ROWS, Content, header, read_body
from service.settings import Settings

_PREFIX = "/v1/models/{name}"
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")

_JSON = b"application/json"
Rewrite = Callable[[dict[str, Any]], dict[str, Any]]


class _Reading(TypedDict):
    targets: int
    default_coverage: float
    limits: Limits


async def predict(settings: Settings, model: ServedModel, scope: Scope, receive: Receive) -> Content:
    """The answer to a V1 request, in the format of its body. Raises ServiceError, ClientDisconnect."""
    return await _predict(settings, model, scope, receive, rewrite=None)


async def invocations(settings: Settings, model: ServedModel, scope: Scope, receive: Receive) -> Content:
    """As `predict`, for the forms in which cloud containers and MLflow's clients send rows."""
    return await _predict(settings, model, scope, receive, rewrite=as_v1)


async def _predict(
    settings: Settings, model: ServedModel, scope: Scope, receive: Receive, *, rewrite: Rewrite | None
) -> Content:
    body = await read_body(scope, receive, limit=settings.max_body_bytes)
    media_type = _media_type(scope)
    read, write = _reader(settings, model, scope, body, media_type, rewrite), _writer(model, media_type)
    started = time.perf_counter()
    large = len(body) > LARGE_BYTES or (media_type in FORMATS and FORMATS[media_type].dense)
    asked = await asyncio.to_thread(read) if large else read()
    model.metrics.seconds["read"] += time.perf_counter() - started
    model.metrics.unusual_rows += len(asked.warnings)
    prediction = await model.answer(asked.question)
    started = time.perf_counter()
    large = len(asked.question.x) > LARGE_ROWS
    written = await asyncio.to_thread(write, prediction, asked) if large else write(prediction, asked)
    model.metrics.seconds["write"] += time.perf_counter() - started
    return Content(written, media_type)


def _media_type(scope: Scope) -> bytes:
    given = header(scope, b"content-type")
    if given is None:
        return _JSON
    base = given.partition(b";")[0].strip().lower()
    return base if base in FORMATS else _JSON  # clients send JSON under all kinds of names


def _reader(
    settings: Settings, model: ServedModel, scope: Scope, body: bytes, media_type: bytes, rewrite: Rewrite | None
) -> Callable[[], RowsRequest]:
    what: _Reading = {
        "targets": len(model.targets.names),
        "default_coverage": model.manifest.default_coverage,
        "limits": Limits(rows=settings.max_rows, answer_values=settings.max_answer_values),
    }
    form = FORMATS.get(media_type)
    if form is None:
        return lambda: read_request(body, model.features, rewrite=rewrite, **what)
    return lambda: read_table(body, scope["query_string"], form, model.features, **what)


def _writer(model: ServedModel, media_type: bytes) -> Callable[[Prediction, RowsRequest], bytes]:
    form = FORMATS.get(media_type)
    if form is not None:
        return lambda prediction, asked: form.write(prediction, asked, model.targets.names)
    return lambda prediction, asked: answer(
        prediction,
        asked.warnings,
        coverage=asked.question.coverage,
        targets=model.targets.names,
        model={"name": model.name, "version": str(model.version)},
    )
