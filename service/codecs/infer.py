"""The Open Inference Protocol (V2): a request's tensors to the question that it asks of a model."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import orjson

from service.codecs.cells import NOT_EXACT, Values, read_number
from service.codecs.features import Features, UnknownCategory, first_names, read_column
from service.codecs.parts import in_parts
from service.codecs.rows import OPTIONS, SEARCHED_BYTES
from service.codecs.tensors import NUMBERS, TEXT, Tensor, flag, parameters, raw_numbers, read_tensors
from service.codecs.terms import Terms, check_levels, check_size
from service.codecs.unusual import find_unusual, infinite, unknown_category_problems, warnings_about
from service.codecs.words import json_type, nearest, shortened
from service.errors import ENOUGH_PROBLEMS, LISTED_PROBLEMS, InvalidRequestError, Problem, refuse
from service.predictions import Question

OUTPUTS = ("mean", "std", "epistemic_std", "aleatoric_std", "lower", "upper")
INTERVALS = ("lower", "upper")
WHOLE = "x"
COVERAGE = "coverage"
DATATYPE_OF_RAW = "FP64"
"""Of a body that is nothing but the bytes of x."""

_PARAMETERS = (COVERAGE, "strict", "timeout", "binary_data_output")
_KNOWN_PARAMETERS = frozenset(_PARAMETERS)
_LOOKED_AT = 20
_MISSPELT = 0.82
"""How like a parameter a misspelling is: `timeout_ms` is 0.824, `covered`, which may be a client's own, 0.8."""
_REMEMBERED_BYTES = 1000
_NOT_EXACT = {"FP16": 2**11, "FP32": 2**24}
"""As NOT_EXACT, of narrower floats."""
_LITERALS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(slots=True)
class InferRequest:
    """A request that was understood."""

    id: str | None
    question: Question
    outputs: tuple[str, ...]
    binary: frozenset[str]
    """Outputs wanted as raw bytes."""
    timeout_seconds: float | None
    warnings: dict[int, list[str]]
    """About the first unusual rows."""
    unusual_rows: int


def read_infer(body: bytes, terms: Terms, *, json_bytes: int | None) -> InferRequest:
    """The request that a V2 body holds. json_bytes: what the header Inference-Header-Content-Length says; None without it.

    Raises InvalidRequestError with all problems of the rows, or with the first one of the form; TooLargeError.
    """
    if json_bytes == 0:
        return _raw_request(body, terms)
    if json_bytes is not None and json_bytes > len(body):
        raise InvalidRequestError(f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes")
    features = terms.features
    text, raw = (body, memoryview(b"")) if json_bytes is None else (body[:json_bytes], memoryview(body)[json_bytes:])
    request, tensors = _read_in_parts(text, raw) or _read_whole(text, raw)
    options = parameters(request, "the request")
    if not options.keys() <= _KNOWN_PARAMETERS:
        _refuse_misspelt(options)
    outputs, binary = _outputs(request.get("outputs"), default=flag(options, "binary_data_output", "the request") or False)
    _check_names(tensors, features)
    coverage = _coverage(options, tensors.pop(COVERAGE, None), default=terms.default_coverage)
    if not any(name in INTERVALS for name in outputs):
        coverage = ()  # it matters to nothing that is asked for, and must not keep requests from sharing a run
    check_levels(len(coverage), limits=terms.limits)
    rows = _rows(tensors, features)
    values_per_row = sum(terms.targets * (len(coverage) if name in INTERVALS else 1) for name in outputs)
    check_size(rows, values_per_row, limits=terms.limits)
    problems: list[Problem] = []
    unknown: list[UnknownCategory] = []
    x = (
        _whole(tensors[WHOLE], features, problems)
        if WHOLE in tensors
        else _by_feature(tensors, rows, features, unknown, problems)
    )
    warnings, unusual_rows = _looked_at(x, unknown, features, problems)
    if flag(options, "strict", "the request"):
        problems += unknown_category_problems(unknown, features)
    if problems:
        raise refuse(sorted(problems, key=lambda problem: problem.row or 0))
    return InferRequest(
        id=_id(request),
        question=Question(x, coverage=coverage),
        outputs=outputs,
        binary=binary,
        timeout_seconds=_timeout(options),
        warnings=warnings,
        unusual_rows=unusual_rows,
    )


def _raw_request(body: bytes, terms: Terms) -> InferRequest:
    """A body without JSON: the bytes of x, FP64, row after row. Every output goes back as bytes."""
    features = terms.features
    width = len(features.names)
    row_bytes = width * NUMBERS[DATATYPE_OF_RAW].itemsize
    if not body or len(body) % row_bytes:
        raise InvalidRequestError(
            f"the body has {len(body)} bytes; rows of {width} features as {DATATYPE_OF_RAW} take {row_bytes} bytes each"
        )
    shape = (len(body) // row_bytes, width)
    check_size(shape[0], terms.targets * len(OUTPUTS), limits=terms.limits)
    tensor = Tensor(DATATYPE_OF_RAW, shape, raw_numbers(body, DATATYPE_OF_RAW, shape, "the body"))
    problems: list[Problem] = []
    x = _whole(tensor, features, problems)
    warnings, unusual_rows = _looked_at(x, [], features, problems)
    if problems:
        raise refuse(problems)
    return InferRequest(
        id=None,
        question=Question(x, coverage=(terms.default_coverage,)),
        outputs=OUTPUTS,
        binary=frozenset(OUTPUTS),
        timeout_seconds=None,
        warnings=warnings,
        unusual_rows=unusual_rows,
    )


def _read_in_parts(text: bytes, raw: memoryview) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """A large request and its tensors; None where it is to be read whole: it is small, of another form, or wrong somewhere."""
    request = in_parts(text, ["data"], _places_of_data)
    if request is None:
        return None
    try:
        return request, read_tensors(request["inputs"], raw)
    except (orjson.JSONDecodeError, InvalidRequestError):
        return None


def _places_of_data(document: Any) -> list[tuple[Any, str]]:
    inputs = document.get("inputs") if isinstance(document, dict) else None
    return [(given, "data") for given in inputs] if isinstance(inputs, list) else []


def _read_whole(text: bytes, raw: memoryview) -> tuple[dict[str, Any], dict[str, Tensor]]:
    request = _document(text)
    return request, read_tensors(request.get("inputs"), raw)


def _document(text: bytes) -> dict[str, Any]:
    if not text:
        raise InvalidRequestError("the body is empty; send JSON")
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}{_literal(text)}") from error
    if not isinstance(request, dict):
        raise InvalidRequestError(f'the body is {json_type(request)}; send an object: {{"inputs": [...]}}')
    return request


def _literal(text: bytes) -> str:
    """What to add where only NaN, Infinity or a huge number makes the text no JSON; nothing for a long text."""
    if len(text) > SEARCHED_BYTES:
        return ""
    found: list[str] = []

    def note(literal: str) -> float:
        found.append(literal)
        return _LITERALS[literal]

    try:
        json.loads(text, parse_constant=note, parse_int=float)
    except (ValueError, RecursionError):
        return ""
    return f" ({found[0]} is no number of JSON; a missing value is null)" if found else " (a number is beyond float64)"


def _outputs(given: object, *, default: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """The outputs asked for, and those of them wanted as raw bytes."""
    if given is None or given == []:
        return OUTPUTS, frozenset(OUTPUTS if default else ())
    if not isinstance(given, list):
        raise InvalidRequestError(f"'outputs' is {json_type(given)}; give an array")
    try:
        text = orjson.dumps(given)  # a client asks for the same outputs again and again
    except TypeError:  # nested so deep that orjson does not write it
        return _read_outputs(given, default)
    return _understood_outputs(text, default) if len(text) <= _REMEMBERED_BYTES else _read_outputs(given, default)


@lru_cache(maxsize=256)
def _understood_outputs(text: bytes, default: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    return _read_outputs(orjson.loads(text), default)


def _read_outputs(given: list[Any], default: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    binary: dict[str, bool] = {}
    for number, output in enumerate(given):
        name = output.get("name") if isinstance(output, dict) else output
        if not isinstance(output, dict) or not isinstance(name, str):
            raise InvalidRequestError(f'output {number} has no name; give an object such as {{"name": "mean"}}')
        if name not in OUTPUTS:
            raise InvalidRequestError(
                f"{name[:100]!r} is no output of this model{nearest(name, OUTPUTS)} (known: {', '.join(OUTPUTS)})"
            )
        if name in binary:
            raise InvalidRequestError(f"output {name!r} is asked for twice")
        what = f"output {name!r}"
        options = parameters(output, what)
        for key in ("classification", "shared_memory_region"):
            if options.get(key):
                raise InvalidRequestError(f"{what} is wanted with {key!r}, which this server does not offer")
        wanted = flag(options, "binary_data", what)
        binary[name] = default if wanted is None else wanted
    return tuple(binary), frozenset(name for name, wanted in binary.items() if wanted)


def _coverage(options: Mapping[str, Any], tensor: Tensor | None, *, default: float) -> tuple[float, ...]:
    """From the parameter, a number or numbers with commas between, or from the tensor."""
    given = options.get(COVERAGE)
    if given is not None and tensor is not None:
        raise InvalidRequestError("coverage is given as a parameter and as a tensor; give one of them")
    if tensor is not None:
        if tensor.datatype not in ("FP16", "FP32", "FP64") or len(tensor.shape) != 1:
            raise InvalidRequestError(
                f"input 'coverage' is {tensor.datatype} of shape {list(tensor.shape)}; give FP64 of shape [k]"
            )
        # FP32 0.9 is 0.899999976, whose rank among the calibration rows may be another
        values = tuple(float(str(NUMBERS[tensor.datatype].type(value))) for value in tensor.values)
    elif given is None:
        return (default,)
    elif isinstance(given, str):
        found = [read_number(part.strip()) for part in given.split(",")]
        values = tuple(number for number in found if isinstance(number, float))
        if len(values) < len(found):
            raise InvalidRequestError(f"parameter 'coverage' is {given[:100]!r}; give numbers with commas between")
    elif isinstance(given, int | float) and not isinstance(given, bool):
        values = (float(given),)
    else:
        raise InvalidRequestError(f"parameter 'coverage' is {json_type(given)}; give a number, or a text such as '0.5,0.9'")
    for value in values:
        if not 0 < value < 1:
            raise InvalidRequestError(f"coverage {value:g} is not between 0 and 1, both excluded")
    return values


def _check_names(tensors: Mapping[str, Tensor], features: Features) -> None:
    """Raise InvalidRequestError where a tensor for a feature would be taken for all of them, or for the coverage."""
    reserved = [name for name in (WHOLE, COVERAGE) if name in features.positions]
    if reserved and not tensors.keys() <= {WHOLE, COVERAGE}:
        raise InvalidRequestError(
            f"this model has a feature {reserved[0]!r}, and V2 a tensor of that name for something else; give all features in "
            f"one tensor x [rows, {len(features.names)}]"
        )


def _rows(tensors: Mapping[str, Tensor], features: Features) -> int:
    """How many rows the tensors hold, once their names and shapes are known to fit the model."""
    width = len(features.names)
    whole = tensors.get(WHOLE)
    if whole is not None:
        others = [name for name in tensors if name != WHOLE]
        if others:
            raise InvalidRequestError(f"input {others[0][:100]!r} comes beside 'x'; give x alone, or a tensor for each feature")
        if len(whole.shape) != 2 or whole.shape[1] != width:
            raise InvalidRequestError(
                f"input 'x' has shape {list(whole.shape)}; this model takes [rows, {width}] ({first_names(features)})"
            )
        return whole.shape[0]
    rows: int | None = None
    for name, tensor in tensors.items():
        if name not in features.positions:
            known = (*features.names, WHOLE)
            raise InvalidRequestError(
                f"{name[:100]!r} is no input of this model{nearest(name, known)}; give x [rows, {width}], or a tensor for each "
                f"feature ({first_names(features)})"
            )
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
            raise InvalidRequestError(f"input {name!r} has shape {list(tensor.shape)}; a feature takes [rows] or [rows, 1]")
        if rows not in (None, tensor.shape[0]):
            raise InvalidRequestError(f"input {name!r} has {tensor.shape[0]} rows, an input before it has {rows}")
        rows = tensor.shape[0]
    if rows is None:
        raise InvalidRequestError(f"no input holds rows; give x [rows, {width}], or a tensor for each feature")
    return rows


def _whole(tensor: Tensor, features: Features, problems: list[Problem]) -> Values:
    """The tensor x as it is: numbers in the model's order, a category as its number in the list of categories."""
    if tensor.datatype in (TEXT, "BOOL") or isinstance(tensor.values, list):
        raise InvalidRequestError(
            f"input 'x' is {tensor.datatype}; give FP64, FP32 or an integer type, or texts in a tensor for each feature"
        )
    x = tensor.values.reshape(tensor.shape)
    for position, column in enumerate(() if features.all_numeric else features.columns):
        if column.kind in ("boolean", "categorical"):
            largest = 1 if column.kind == "boolean" else len(column.categories or []) - 1
            values = x[:, position]
            with np.errstate(invalid="ignore"):  # infinity, which `infinite` refuses
                wrong = np.isfinite(values) & ((values % 1 != 0) | (values < 0) | (values > largest))
            expected = "0 or 1" if column.kind == "boolean" else f"the number of a category, 0 to {largest}"
            problems += [
                Problem(f"{values[row]:g} in x is not {expected}", row=row, feature=column.name)
                for row in np.flatnonzero(wrong)[:ENOUGH_PROBLEMS].tolist()
            ]
    return x


def _by_feature(
    tensors: Mapping[str, Tensor], rows: int, features: Features, unknown: list[UnknownCategory], problems: list[Problem]
) -> Values:
    """Rows from a tensor for each feature; a feature without one is missing."""
    x = np.full((rows, len(features.names)), math.nan)
    for name, tensor in tensors.items():
        position = features.positions[name]
        values: Any = tensor.values
        if not isinstance(values, list):
            column = features.columns[position]
            if column.kind in ("numeric", "datetime"):
                x[:, position] = values
                continue
            limit = _NOT_EXACT.get(tensor.datatype, NOT_EXACT)
            if column.integer and (np.abs(values) >= limit).any():
                raise InvalidRequestError(
                    f"input {name[:100]!r} holds category numbers of {limit} or more, which {tensor.datatype} "
                    "does not tell apart here: give them as texts, BYTES"
                )
            values = [None if math.isnan(value) else value for value in values.tolist()]
        x[:, position] = read_column(values, position, features, unknown, problems)
    return x


def _looked_at(
    x: Values, unknown: Sequence[UnknownCategory], features: Features, problems: list[Problem]
) -> tuple[dict[int, list[str]], int]:
    """Warnings of the first unusual rows of x, and how many such rows there are.

    Adds to `problems` what is infinite, and what is missing but never was in training. V1 only warns of the latter: here a NaN
    is far more often a client's mistake, and what it does with a warning is unknown.
    """
    unusual = find_unusual(x, unknown, features)
    if len(unusual.values) and not np.isfinite(unusual.values).all():
        problems += infinite(x, features)
        told = {(problem.row, problem.feature) for problem in problems}
        sentence = "is missing (NaN, null, or no tensor); it never was in training"
        gaps = np.flatnonzero(np.isnan(unusual.values))[: ENOUGH_PROBLEMS + len(told)]
        places = [(row, features.names[column]) for row, column in zip(unusual.row[gaps], unusual.feature[gaps], strict=True)]
        problems += [Problem(sentence, row=int(row), feature=name) for row, name in places if (row, name) not in told]
    return warnings_about(unusual, features, rows=LISTED_PROBLEMS), len(unusual.rows)


def _id(request: Mapping[str, Any]) -> str | None:
    given = request.get("id")
    if given is not None and not isinstance(given, str):
        raise InvalidRequestError(f"'id' is {json_type(given)}; give a text")
    return given


def _refuse_misspelt(options: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError where a parameter is meant for this service and does nothing; a client's own are let be."""
    for name in islice(options.keys() - _KNOWN_PARAMETERS, _LOOKED_AT):
        near = nearest(name.lower(), [known for known in _PARAMETERS if known[0] == name[:1].lower()], cutoff=_MISSPELT)
        known = f"(known: {', '.join(_PARAMETERS)})"
        if near:
            raise InvalidRequestError(f"{shortened(name)!r} is no parameter of a request{near} {known}")
        if name in OPTIONS:
            raise InvalidRequestError(f"{name!r} is an option of the V1 routes (/v1/models/...:predict) and none of V2 {known}")


def _timeout(options: Mapping[str, Any]) -> float | None:
    """In seconds; None without one, and for 0, as in Triton."""
    given = options.get("timeout")
    if given is None:
        return None
    if type(given) is not int or given < 0:
        raise InvalidRequestError(f"parameter 'timeout' is {given if isinstance(given, int | float) else json_type(given)}; "
                                  "give whole microseconds")  # fmt: skip
    return given / 1e6 or None
