"""V2 inference: the Open Inference Protocol, tensors in, tensors out."""

from starlette.types import Scope

from service.answers import Content, header, length_of
from service.codecs.infer import InferRequest, read_infer
from service.codecs.infer_answer import answer, check_finite, finite
from service.codecs.terms import Terms
from service.errors import InvalidRequestError
from service.inference.batcher import Part
from service.model import ServedModel
from service.routes.protocol import LARGE_BYTES, LARGE_NUMBERS, Asked, Protocol

PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")

_FINITE = "finite"
_RAW_TO_JSON = 20
"""Reading one JSON byte takes about as long as reading this many raw bytes of numbers."""
_JSON_TO_RAW_TEXTS = 4
"""Reading one raw byte of short texts takes about as long as reading this many JSON bytes."""
JSON_LENGTH_HEADER = b"inference-header-content-length"


def _read(terms: Terms, scope: Scope, body: bytes) -> Asked[InferRequest]:
    """Content-Type decides nothing: of the clients in use some send none, and some call JSON an octet-stream."""
    request = read_infer(body, terms, json_bytes=_json_bytes(scope))
    return Asked(
        request.question,
        request.outputs,
        request,
        unusual_rows=request.unusual_rows,
        timeout_seconds=request.timeout_seconds,
    )


def _write(model: ServedModel, _: Scope, asked: Asked[InferRequest], part: Part) -> Content:
    request, arrays = asked.request, part.arrays
    if _FINITE not in part.shared:
        part.shared[_FINITE] = finite(part.run, request.outputs)
    if not part.shared[_FINITE]:
        check_finite(arrays, request.outputs)
    written = answer(request, arrays, name=model.name, version=str(model.version))
    if written.json_bytes is None:
        return Content(written.body)
    return Content(written.body, b"application/octet-stream", ((JSON_LENGTH_HEADER, b"%d" % written.json_bytes),))


def _json_bytes(scope: Scope) -> int | None:
    """The length of the body's JSON part, where the binary tensor data extension is used."""
    given = header(scope, JSON_LENGTH_HEADER)
    if given is None:
        return None
    length = length_of(given)
    if length is None:
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {given[:40].decode('latin-1')!r}; give the length of the JSON part in bytes"
        )
    return length


def bytes_to_read(length: int, json_length: bytes | None) -> int:
    """How many bytes of JSON take as long to read as a body of `length`. json_length: its header; None without it."""
    told = length_of(json_length)
    text = length if told is None else min(told, length)
    return text + (length - text) // _RAW_TO_JSON


def _reading_takes_long(_: ServedModel, scope: Scope, body: bytes) -> bool:
    told = header(scope, JSON_LENGTH_HEADER)
    text = length_of(told)
    if text is not None and (body.find(b'"BYTES"', 0, text) >= 0 or body.find(b"\\", 0, text) >= 0):  # or spelt otherwise
        return text + _JSON_TO_RAW_TEXTS * (len(body) - text) > LARGE_BYTES
    return bytes_to_read(len(body), told) > LARGE_BYTES


def _writing_takes_long(asked: Asked[InferRequest]) -> bool:
    raw = asked.request.binary.issuperset(asked.request.outputs)
    return asked.question.numbers > LARGE_NUMBERS * (_RAW_TO_JSON if raw else 1)


V2 = Protocol("infer", _read, _write, _reading_takes_long, _writing_takes_long)
