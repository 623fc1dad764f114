"""What can go wrong with a request: one small hierarchy, each kind with its HTTP status.

A route raises one of these; `{"error": sentence, "details": [...]}` is what the client reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

LISTED_PROBLEMS = 20
"""Most details of one error."""
ENOUGH_PROBLEMS = LISTED_PROBLEMS + 1
"""Collect at most this many problems: one more than is listed is enough to say 'more than 20'."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request: what, and where (row counted from 0)."""

    problem: str
    row: int | None = None
    feature: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The form it takes in an answer."""
        place = {"row": self.row, "feature": self.feature}
        return {key: value for key, value in place.items() if value is not None} | {"problem": self.problem}

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f"feature {self.feature!r}"] if self.feature is not None else []
        return f"{', '.join(place)}: {self.problem}" if place else self.problem


class ServiceError(Exception):
    """A request that is not answered with a prediction."""

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "bug"
    """What metrics count it as."""
    headers: Mapping[str, str] = {}
    """What the answer says beside its body."""

    def __init__(self, sentence: str, *, problems: Sequence[Problem] = (), headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        if headers is not None:
            self.headers = headers
        self.sentence = sentence
        self.problems = tuple(problems)

    def body(self) -> dict[str, Any]:
        """The JSON that the client reads."""
        return error_body(self.sentence, problems=self.problems)


class InvalidRequestError(ServiceError):
    """The request cannot be understood, or the model cannot answer it."""

    status = 400
    reason = "invalid"


class NotJSONError(InvalidRequestError):
    """The body is no JSON."""


class UnauthorizedError(ServiceError):
    """No key, or none that the service knows."""

    status = 401
    reason = "unauthorized"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ServiceError):
    """The key does not allow this."""

    status = 403
    reason = "forbidden"


class NotFoundError(ServiceError):
    """There is no such route, model, version or label."""

    status = 404
    reason = "not_found"


class MethodNotAllowedError(ServiceError):
    """The route exists, but not for this HTTP method."""

    status = 405
    reason = "method"


class TooLargeError(ServiceError):
    """The request is larger than a limit; the sentence names the limit and its setting."""

    status = 413
    reason = "too_large"


class UnavailableError(ServiceError):
    """Not now: the model is not ready, or no longer."""

    status = 503
    reason = "not_ready"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class OverloadedError(UnavailableError):
    """Not now: too many rows wait already."""

    reason = "overloaded"


class DeadlineError(ServiceError):
    """The request waited for longer than it may."""

    status = 504
    reason = "deadline"


def error_body(sentence: str, *, problems: Sequence[Problem] = ()) -> dict[str, Any]:
    """`{"error", "details"}`, with details only where there are some."""
    body: dict[str, Any] = {"error": sentence}
    if problems:
        body["details"] = [problem.as_json() for problem in problems[:LISTED_PROBLEMS]]
    return body


def refuse(problems: Sequence[Problem]) -> InvalidRequestError:
    """The error about `problems`; whoever looks for them may stop at ENOUGH_PROBLEMS."""
    if len(problems) == 1:
        return InvalidRequestError(str(problems[0]), problems=problems)
    many = f"{len(problems)}" if len(problems) <= LISTED_PROBLEMS else f"more than {LISTED_PROBLEMS}"
    return InvalidRequestError(f"the request has {many} problems; the first: {problems[0]}", problems=problems)
