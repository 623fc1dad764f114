"""The V1 protocol: a JSON body of rows to the question that it asks of a model."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import orjson

from service.codecs.clouds import KEYS_OF_REQUESTS, KEYS_OF_ROWS, places_of_rows
from service.codecs.features import Features, Rows, joined, read_instances
from service.codecs.parts import by_rows, in_parts
from service.codecs.terms import Terms, check_levels, check_size
from service.codecs.unusual import find_unusual, unknown_category_problems, warnings_about
from service.codecs.words import json_type, nearest
from service.errors import ENOUGH_PROBLEMS, InvalidRequestError, NotJSONError, Problem, refuse
from service.predictions import Question

OPTIONS = ("coverage", "quantiles", "thresholds", "samples", "seed", "strict")
SIGNATURE = ("signature_name", "serving_default")
"""What TensorFlow Serving's clients send beside the rows; it does nothing."""
_KEYS = ("instances", *OPTIONS)
_CLOUD_KEYS = (*KEYS_OF_REQUESTS, *OPTIONS)
_ROWS_ALONE = frozenset(["instances"])
_LARGEST_SEED = 2**63 - 1
SEARCHED_BYTES = 1_000_000
"""Invalid JSON up to this size is searched for what made it so; json.loads takes about 20 ms for it."""

Rewrite = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes a V1 request of an object in another form."""


@dataclass(slots=True)
class RowsRequest:
    """A request that was understood: what to answer, and what its answer warns of."""

    question: Question
    warnings: dict[int, list[str]]
    """By row, in order."""


def read_request(body: bytes, terms: Terms, *, rewrite: Rewrite | None = None) -> RowsRequest:
    """The request that a V1 body holds; `rewrite` makes a V1 request of an object in another form.

    Raises InvalidRequestError with all its problems, NotJSONError, or TooLargeError.
    """
    request = in_parts(body, KEYS_OF_ROWS, places_of_rows)
    if request is not None:
        with suppress(orjson.JSONDecodeError):  # the whole tells what is wrong, if anything is
            return _read(request, terms, rewrite)
    return _read(_document(body, terms.features, rewrite), terms, rewrite)


def understood(
    request: dict[str, Any], read: Callable[[], Rows], problems: list[Problem], terms: Terms, *, rows: int
) -> RowsRequest:
    """The request that asks for the options in `request` about so many rows, which `read` gives.

    Raises InvalidRequestError with all its problems, those of `problems` first; TooLargeError before `read` is called.
    """
    features, limits = terms.features, terms.limits
    coverage: tuple[float, ...] = (terms.default_coverage,)
    quantiles: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    samples, seed, strict = 0, None, False
    if not request.keys() <= _ROWS_ALONE:
        options = _Options(request, problems)
        coverage = options.probabilities("coverage") if request.get("coverage") is not None else coverage
        quantiles = options.probabilities("quantiles")
        thresholds = options.numbers("thresholds")
        samples = options.whole_number("samples", largest=limits.answer_values) or 0
        seed = options.whole_number("seed", largest=_LARGEST_SEED)
        if seed is not None and request.get("samples") in (None, 0):
            problems.append(Problem("'seed' does nothing without 'samples'"))
        strict = options.flag("strict")
        check_levels(len(coverage) + len(quantiles), limits=limits)
    check_size(rows, terms.targets * (3 + 2 * len(coverage) + len(quantiles) + len(thresholds) + samples), limits=limits)
    x, unknown, row_problems = read()
    problems += row_problems
    if strict:
        problems += unknown_category_problems(unknown, features)
    if problems:
        raise refuse(problems)
    question = Question(x, coverage=coverage, quantiles=quantiles, thresholds=thresholds, samples=samples, seed=seed)
    return RowsRequest(question, warnings_about(find_unusual(x, unknown, features), features))


def _read(request: Any, terms: Terms, rewrite: Rewrite | None) -> RowsRequest:
    """The request of a document, in which an iterator over their parts may stand for the rows; raises what that raises, too."""
    if rewrite is not None and isinstance(request, dict):
        request = rewrite(request)
    if not isinstance(request, dict):
        raise InvalidRequestError(f'the body is {json_type(request)}; send an object: {{"instances": [...]}}')
    strange = [key for key in request if key not in _KEYS and (key, request[key]) != SIGNATURE]
    problems = [Problem(_about_key(key, _KEYS if rewrite is None else _CLOUD_KEYS)) for key in strange[:ENOUGH_PROBLEMS]]
    instances = request.get("instances")
    if isinstance(instances, list):
        count, read = len(instances), partial(read_instances, instances, terms.features)
    elif isinstance(instances, Iterator):
        count, parts = _read_parts(instances, terms.features, most_rows=terms.limits.rows)
        read = partial(joined, parts, terms.features)
    else:
        what = f"is {json_type(instances)}" if "instances" in request else "is missing"
        raise refuse([Problem(f"'instances' {what}; give an array of rows"), *problems])
    return understood(request, read, problems, terms, rows=count)


def _about_key(key: str, known: Sequence[str]) -> str:
    """Why a request has no such key."""
    if key == SIGNATURE[0]:
        return f"{key!r} is not {SIGNATURE[1]!r}, the only one of a model"
    if key in _CLOUD_KEYS and key not in known:
        return f"{key!r} is no key of a request here; /invocations takes this form (known: {', '.join(known)})"
    return f"{key[:100]!r} is no key of a request{nearest(key, known)} (known: {', '.join(known)})"


def _read_parts(parts: Iterator[list[Any]], features: Features, *, most_rows: int) -> tuple[int, list[Rows]]:
    """How many rows there are, and those up to the limit."""
    count, read = 0, []
    for rows in by_rows(chain.from_iterable(parts)):
        count += len(rows)
        if count <= most_rows:
            read.append(read_instances(rows, features))
    return count, read


def _document(body: bytes, features: Features, rewrite: Rewrite | None) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problems = numbers_that_json_has_not(body, features, rewrite)
        if problems:
            raise refuse(problems) from error
        raise NotJSONError(f"the body is not valid JSON: {error}" if body else "the body is empty; send JSON") from error


def numbers_that_json_has_not(body: bytes, features: Features, rewrite: Rewrite | None = None) -> list[Problem]:
    """NaN, Infinity and numbers beyond float64, where in the rows they stand; none where JSON is wrong otherwise, or long."""
    if len(body) > SEARCHED_BYTES:
        return []
    try:
        # Python's reader takes them; a whole number as float, since int() of a long text takes quadratic time
        request = json.loads(body, parse_int=float)
        instances = (rewrite(request) if rewrite is not None and isinstance(request, dict) else request)["instances"]
        rows = [(row, instance) for row, instance in enumerate(instances) if isinstance(instance, dict | list)]
    except (ValueError, TypeError, KeyError, RecursionError, InvalidRequestError):
        return []
    return [
        Problem(f"{value} is not a finite number; leave a missing value out or send null", row=row, feature=name)
        for row, instance in rows
        for name, value in (instance.items() if isinstance(instance, dict) else zip(features.names, instance, strict=False))
        if isinstance(value, float) and not math.isfinite(value) and name in features.positions
    ]


class _Options:
    """Reads the optional parts of a request and notes what is wrong with them."""

    def __init__(self, request: dict[str, Any], problems: list[Problem]):
        self._request = request
        self._problems = problems

    def numbers(self, key: str) -> tuple[float, ...]:
        """A number or a list of numbers, as a tuple; empty where absent or null."""
        given = self._request.get(key)
        if given is None:
            return ()
        values = given if isinstance(given, list) else [given]
        wrong = [value for value in values if type(value) not in (int, float)]
        if wrong:
            self._problems.append(Problem(f"{key!r} holds {json_type(wrong[0])}; give a number or an array of numbers"))
            return ()
        return tuple(map(float, values))

    def probabilities(self, key: str) -> tuple[float, ...]:
        """As `numbers`, each between 0 and 1."""
        values = self.numbers(key)
        for value in islice((value for value in values if not 0 < value < 1), ENOUGH_PROBLEMS):
            percent = f" ({value:g} % is {value / 100:g})" if 1 < value < 100 else ""
            self._problems.append(Problem(f"{key!r} {value:g} is not between 0 and 1, both excluded{percent}"))
        return values

    def whole_number(self, key: str, *, largest: int) -> int | None:
        """A whole number from 0 to `largest`; None where absent."""
        value = self._request.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= largest:
            shown = value if type(value) in (int, float) else json_type(value)
            self._problems.append(Problem(f"{key!r} is {shown}; give a whole number from 0 to {largest}"))
            return None
        return value

    def flag(self, key: str) -> bool:
        """True or false; false where absent."""
        value = self._request.get(key)
        if value is not None and type(value) is not bool:
            self._problems.append(Problem(f"{key!r} is {json_type(value)}; give true or false"))
        return value is True
