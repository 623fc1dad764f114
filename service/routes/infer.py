"""V2 inference: the Open Inference Protocol, tensors in, tensors out."""

import asyncio
import time

from starlette.types import Receive, Scope

from service.codecs.infer import InferAnswer, InferRequest, answer, read_infer
from service.codecs.rows import Limits
from service.errors import InvalidRequestError
from service.inference.model import ServedModel
from service.routes.answers import LARGE_BYTES, LARGE_ROWS, Content, header, read_body
from service.settings import Settings

PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")

JSON_LENGTH_HEADER = b"inference-header-content-length"


async def infer(settings: Settings, model: ServedModel, scope: Scope, receive: Receive) -> Content:
    """The answer to a V2 request. Raises ServiceError, ClientDisconnect.

    Content-Type decides nothing: of the clients in use some send none, and some call JSON an octet-stream.
    """
    json_bytes = _json_bytes(scope)
    body = await read_body(scope, receive, limit=settings.max_body_bytes)

    def read() -> InferRequest:
        return read_infer(
            body,
            json_bytes=json_bytes,
            features=model.features,
            targets=len(model.targets.names),
            default_coverage=model.manifest.default_coverage,
            limits=Limits(rows=settings.max_rows, answer_values=settings.max_answer_values),
        )

    started = time.perf_counter()
    asked = read() if len(body) <= LARGE_BYTES else await asyncio.to_thread(read)
    model.metrics.seconds["read"] += time.perf_counter() - started
    model.metrics.unusual_rows += len(asked.warnings)
    arrays = await model.outputs(asked.question, asked.outputs, timeout_seconds=asked.timeout_seconds)

    def write() -> InferAnswer:
        return answer(asked, arrays, name=model.name, version=str(model.version))

    started = time.perf_counter()
    written = write() if len(asked.question.x) <= LARGE_ROWS else await asyncio.to_thread(write)
    model.metrics.seconds["write"] += time.perf_counter() - started
    if written.json_bytes is None:
        return Content(written.body)
    return Content(written.body, b"application/octet-stream", ((JSON_LENGTH_HEADER, b"%d" % written.json_bytes),))


def _json_bytes(scope: Scope) -> int | None:
    """The length of the body's JSON part, where the binary tensor data extension is used."""
    given = header(scope, JSON_LENGTH_HEADER)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 18:
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {given[:40].decode('latin-1')!r}; give the length of the JSON part in bytes"
        )
    return int(given)
