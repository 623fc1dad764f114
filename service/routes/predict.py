"""V1 predictions: rows in, readable predictions out."""

from collections.abc import Callable
from typing import Any

from starlette.types import Scope

from models.artifact import Arrays
from service.codecs.clouds import as_v1
from service.codecs.rows import Limits, RowsRequest, answer, read_request
from service.codecs.tables import FORMATS, read_table
from service.inference.model import ServedModel
from service.inference.predictions import predict
from service.routes.answers import JSON, Content, header
from service.routes.protocol import Asked, Protocol
from service.settings import Settings

_PREFIX = "/v1/models/{name}"
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")

Rewrite = Callable[[dict[str, Any]], dict[str, Any]]


def _reader(rewrite: Rewrite | None) -> Callable[[Settings, ServedModel, Scope, bytes], Asked[RowsRequest]]:
    def read(settings: Settings, model: ServedModel, scope: Scope, body: bytes) -> Asked[RowsRequest]:
        targets, coverage = len(model.targets.names), model.manifest.default_coverage
        limits = Limits(rows=settings.max_rows, answer_values=settings.max_answer_values)
        form = FORMATS.get(_media_type(scope))
        if form is None:
            request = read_request(
                body, model.features, rewrite=rewrite, targets=targets, default_coverage=coverage, limits=limits
            )
        else:
            query = scope["query_string"]
            request = read_table(body, query, form, model.features, targets=targets, default_coverage=coverage, limits=limits)
        return Asked(request.question, request.question.outputs, request, unusual_rows=len(request.warnings))

    return read


def _write(model: ServedModel, scope: Scope, asked: Asked[RowsRequest], arrays: Arrays) -> Content:
    request, targets = asked.request, model.targets.names
    prediction = predict(asked.question, arrays, model.targets)
    media_type = _media_type(scope)
    form = FORMATS.get(media_type)
    if form is not None:
        return Content(form.write(prediction, request, targets), media_type)
    described = {"name": model.name, "version": str(model.version)}
    return Content(answer(prediction, request.warnings, coverage=asked.question.coverage, targets=targets, model=described))


def _media_type(scope: Scope) -> bytes:
    """Of the body and of the answer."""
    given = header(scope, b"content-type")
    if given is None or given == JSON:
        return JSON
    base = given.partition(b";")[0].strip().lower()
    return base if base in FORMATS else JSON  # clients send JSON under all kinds of names


V1 = Protocol("predict", _reader(None), _write)
INVOCATIONS = Protocol("invocations", _reader(as_v1), _write)
"""As V1, for the forms in which cloud containers and MLflow's clients send rows."""
