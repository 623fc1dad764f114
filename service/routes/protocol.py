"""What a protocol is: how a request for predictions is read, and how its answer is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.types import Scope

from service.answers import Content
from service.codecs.terms import Limits, Terms
from service.inference.batcher import Part
from service.model import ServedModel
from service.predictions import Question

Request = TypeVar("Request")

LARGE_BYTES = 100_000
LARGE_CELLS = 20_000
LARGE_NUMBERS = 2500
"""Beyond any, reading or writing takes over a millisecond and moves to a thread, so that others are served meanwhile."""


@dataclass(slots=True)
class Asked(Generic[Request]):
    """What a request asks of a model; request is its own form of that, for the writer."""

    question: Question
    outputs: tuple[str, ...]
    request: Request
    unusual_rows: int
    """Rows that the answer warns of."""
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Protocol:
    """read(terms, scope, body) raises the errors of service/errors.py; so does write(model, scope, asked, part)."""

    name: str
    read: Callable[[Terms, Scope, bytes], Asked[Any]]
    write: Callable[[ServedModel, Scope, Asked[Any], Part], Content]
    reading_takes_long: Callable[[ServedModel, Scope, bytes], bool]
    """Whether reading this body may take long, and belongs in a thread."""
    writing_takes_long: Callable[[Asked[Any]], bool]
    """Likewise the writing of this answer."""


def terms_of(model: ServedModel, limits: Limits) -> Terms:
    """What a request for this model is read by."""
    return Terms(model.features, len(model.targets.names), model.manifest.default_coverage, limits)
