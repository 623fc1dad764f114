"""V1 predictions: rows in, readable predictions out."""

from collections.abc import Callable

import orjson
from starlette.types import Scope

from service.answers import JSON, Content, header
from service.codecs.clouds import as_v1
from service.codecs.rows import SEARCHED_BYTES, Rewrite, RowsRequest, read_request
from service.codecs.rows_answer import RowNumbers, answer, row_numbers
from service.codecs.tables import FORMATS, OTHER_NAMES, read_table, refuse_options
from service.codecs.terms import Terms
from service.errors import InvalidRequestError, NotJSONError
from service.inference.batcher import Part
from service.model import ServedModel
from service.predictions import CalibratedTargets, Question, check_finite, predict
from service.routes.protocol import LARGE_BYTES, LARGE_CELLS, LARGE_NUMBERS, Asked, Protocol

_PREFIX = "/v1/models/{name}"
_CELLS_WORTH_COUNTING = 1_000_000
"""Bytes by features: with less, even a body of `{},` alone takes no more than some 20 ms."""
PATHS = (f"{_PREFIX}:predict", f"{_PREFIX}/versions/{{version}}:predict", f"{_PREFIX}/labels/{{label}}:predict")


def _reader(rewrite: Rewrite | None) -> Callable[[Terms, Scope, bytes], Asked[RowsRequest]]:
    def read(terms: Terms, scope: Scope, body: bytes) -> Asked[RowsRequest]:
        form = FORMATS.get(_media_type(scope))
        if form is None:
            refuse_options(scope["query_string"])
            try:
                request = read_request(body, terms, rewrite=rewrite)
            except NotJSONError as error:
                raise InvalidRequestError(error.sentence + _what_else(scope, body)) from error
        else:
            request = read_table(body, scope["query_string"], form, terms)
        return Asked(request.question, request.question.outputs, request, unusual_rows=len(request.warnings))

    return read


def _write(model: ServedModel, scope: Scope, asked: Asked[RowsRequest], part: Part) -> Content:
    request, question, targets = asked.request, asked.question, model.targets
    media_type = _media_type(scope)
    form = FORMATS.get(media_type)
    if form is not None:
        return Content(form.write(predict(question, part.arrays, targets), request, targets.names), media_type)
    numbers = _numbers(question, part, targets)
    if b"null" in numbers.texts:
        check_finite(predict(question, part.arrays, targets), targets.names)
    return Content(answer(numbers, request.warnings, model={"name": model.name, "version": str(model.version)}))


def _numbers(question: Question, part: Part, targets: CalibratedTargets) -> RowNumbers:
    """The numbers of the answer. Where they are the graph's own, those of the whole run are written at once."""
    if question.of_the_calibration:
        return row_numbers(predict(question, part.arrays, targets), coverage=question.coverage, targets=targets.names)
    whole: RowNumbers | None = part.shared.get(V1.name)
    if whole is None:
        prediction = predict(question, part.run, targets)
        whole = part.shared[V1.name] = row_numbers(prediction, coverage=question.coverage, targets=targets.names)
    return whole.of(part.start, part.end)


def _media_type(scope: Scope) -> bytes:
    """Of the body and of the answer."""
    given = header(scope, b"content-type")
    if given is None or given == JSON:
        return JSON
    base = given.partition(b";")[0].strip().lower()
    base = OTHER_NAMES.get(base, base)
    return base if base in FORMATS else JSON  # clients send JSON under all kinds of names


def _what_else(scope: Scope, body: bytes) -> str:
    """What to add where a body that is read as JSON is none."""
    given = (header(scope, b"content-type") or JSON).partition(b";")[0]
    if b"json" not in given.lower():
        tables = ", ".join(name.decode() for name in FORMATS)
        return f" (Content-Type {given[:100].decode('latin-1')!r} is read as JSON here; tables are {tables})"
    line, _, rest = body[:SEARCHED_BYTES].partition(b"\n")
    try:
        instance = orjson.loads(line) if rest.lstrip()[:1] in (b"{", b"[") else None
    except orjson.JSONDecodeError:
        return ""
    return " (its first line is: for an instance a line, send Content-Type application/x-ndjson)" if instance else ""


def _reading_takes_long(model: ServedModel, scope: Scope, body: bytes) -> bool:
    form = FORMATS.get(_media_type(scope))
    if len(body) > LARGE_BYTES or (form is not None and form.dense):
        return True
    features = len(model.features.names)
    if len(body) * features <= _CELLS_WORTH_COUNTING:
        return False
    rows = body.count(b"{") + body.count(b"[") if form is None else body.count(b"\n")  # `{}` takes as long as a full one
    return rows * features > LARGE_CELLS


def _writing_takes_long(asked: Asked[RowsRequest]) -> bool:
    return asked.question.numbers > LARGE_NUMBERS


V1 = Protocol("predict", _reader(None), _write, _reading_takes_long, _writing_takes_long)
INVOCATIONS = Protocol("invocations", _reader(as_v1), _write, _reading_takes_long, _writing_takes_long)
"""As V1, for the forms in which cloud containers and MLflow's clients send rows."""
