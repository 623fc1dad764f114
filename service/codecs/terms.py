"""What a request is read by, whatever its protocol: what must be known of its model, and how large it may be."""

from dataclasses import dataclass

from service.codecs.features import Features
from service.errors import TooLargeError


@dataclass(frozen=True)
class Limits:
    """How large a request may be."""

    rows: int
    answer_values: int
    levels: int = 1000


@dataclass(slots=True)
class Terms:
    """What a request for one model is read by."""

    features: Features
    targets: int
    """How many."""
    default_coverage: float
    limits: Limits


def check_levels(count: int, *, limits: Limits) -> None:
    """Raise TooLargeError where a request asks for too many coverages and quantiles."""
    if count > limits.levels:
        raise TooLargeError(
            f"the request asks for {count} coverages and quantiles; at most {limits.levels} are allowed (setting max_levels)"
        )


def check_size(rows: int, values_per_row: int, *, limits: Limits) -> None:
    """Raise TooLargeError where a request has too many rows, or its answer would have too many numbers."""
    if rows > limits.rows:
        raise TooLargeError(
            f"the request has {rows} rows; at most {limits.rows} are allowed (setting max_rows): send them in parts"
        )
    values = max(rows, 1) * values_per_row  # a request without rows must not ask for too much either
    if values > limits.answer_values:
        raise TooLargeError(
            f"the answer would hold {values} numbers; at most {limits.answer_values} are allowed "
            "(setting max_answer_values): ask for fewer rows, coverages, quantiles, thresholds or samples at once"
        )
