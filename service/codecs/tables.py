"""Tables for bulk scoring: CSV, NDJSON and Arrow bodies to arrays, predictions to a body of the same format.

What JSON says beside the rows (coverage, quantiles ...) stands in the query of the URL.
"""

import csv
import io
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import orjson

from models.manifest import Column
from models.words import MISSING
from service.codecs.cells import read_number
from service.codecs.features import Features, Rows, UnknownCategory, first_names, joined, read_column, read_instances
from service.codecs.parts import ROWS_AT_ONCE, by_rows
from service.codecs.rows import OPTIONS, RowsRequest, numbers_that_json_has_not, understood
from service.codecs.rows_answer import row_numbers, row_texts
from service.codecs.terms import Terms
from service.codecs.unusual import infinite
from service.codecs.words import first_repeated, nearest
from service.errors import ENOUGH_PROBLEMS, InvalidRequestError, Problem, refuse
from service.predictions import Prediction, check_finite

_MOST_OPTIONS = 100


@dataclass(frozen=True)
class Format:
    """How a table is read and written."""

    count: Callable[[bytes, Features, int], tuple[int, Callable[[], Rows]]]
    """`count(body, features, most_rows)`: how many rows it has, and what reads them, once, where they are not too many."""
    write: Callable[[Prediction, RowsRequest, tuple[str, ...]], bytes]
    """`write(prediction, request, targets)`."""
    dense: bool = False
    """Whether a small body may hold many rows."""


def read_table(body: bytes, query: bytes, form: Format, terms: Terms) -> RowsRequest:
    """The request that a table and the query of its URL make. Raises InvalidRequestError, TooLargeError."""
    problems: list[Problem] = []
    options = _options(query, problems)
    rows, read = form.count(body, terms.features, terms.limits.rows)
    return understood(options, read, problems, terms, rows=rows)


def refuse_options(query: bytes) -> None:
    """Raise InvalidRequestError where a query has an option, though the body is JSON and has a place of its own for it."""
    if not query:
        return
    misplaced = [name for name, _ in _pairs(query) if name in OPTIONS]
    if misplaced:
        raise InvalidRequestError(f"{misplaced[0]!r} stands in the query, which tables have; a JSON request has it in its body")


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_OPTIONS)
    except ValueError:
        raise InvalidRequestError(f"the query has more than {_MOST_OPTIONS} options (known: {', '.join(OPTIONS)})") from None


def _options(query: bytes, problems: list[Problem]) -> dict[str, Any]:
    """The query as the options of a JSON request: numbers with commas between are an array, each a column of its own."""
    options: dict[str, Any] = {}
    for name, text in _pairs(query):
        if name not in OPTIONS:
            known = ", ".join(OPTIONS)
            problems.append(Problem(f"{name[:100]!r} is no option of the query{nearest(name, OPTIONS)} (known: {known})"))
        elif name in options:
            problems.append(Problem(f"{name!r} stands twice in the query; put commas between its values"))
        else:
            values = [*dict.fromkeys(_option(part.strip()) for part in text.split(","))] if text.strip() else []
            single = len(values) == 1 and name in ("samples", "seed", "strict")
            options[name] = values[0] if single else values
    return options


def _option(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.isdecimal() and text.isascii() and len(text) < 20:
        return int(text)
    number = read_number(text)
    return number if isinstance(number, float) and math.isfinite(number) else text


def _count_csv(body: bytes, features: Features, most_rows: int) -> tuple[int, Callable[[], Rows]]:
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header, rows = _header(lines, features)
        count, parts = 0, []
        for part in by_rows(rows):
            count += len(part)
            if count <= most_rows:
                parts.append(part)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8 (byte {error.start})") from None
    except csv.Error as error:
        raise InvalidRequestError(f"the body is not valid CSV: {error}") from None
    return count, lambda: _read_csv(parts, header, features)


def _header(lines: Iterator[list[str]], features: Features) -> tuple[list[str], Iterator[list[str]]]:
    """The names of the columns, and the rows; without a header, they are the model's features in order.

    An empty line is no row, unless there is but one column: then it is a missing value.
    """
    line, empty = next(lines, None), 0
    while line == []:
        line, empty = next(lines, None), empty + 1
    line = line or []
    first = [cell.strip() for cell in line]
    if not any(cell in features.positions for cell in first):
        if len(first) not in (0, len(features.names)):
            raise InvalidRequestError(
                f"the first line has {len(first)} cells and none is a feature; give a header of feature names, or rows of all "
                f"{len(features.names)} features ({first_names(features)}), with commas between"
            )
        before: list[list[str]] = [[]] * empty if line else []
        return list(features.names), _filled(chain(before, [line] if line else [], lines), columns=len(features.names))
    check_names(first, features)
    return first, _filled(lines, columns=len(first))


def _filled(lines: Iterator[list[str]], *, columns: int) -> Iterator[list[str]]:
    return filter(None, lines) if columns > 1 else (line or [""] for line in lines)


def check_names(names: Sequence[str], features: Features) -> None:
    """Raise InvalidRequestError unless the names of columns are features, each at most once."""
    for name in names:
        if not name:
            raise InvalidRequestError("a column has no name; write the table without its row index (index=False in pandas)")
        if name not in features.positions:
            raise InvalidRequestError(f"column {name[:100]!r} is no feature of this model{nearest(name, features.names)}")
    twice = first_repeated(names)
    if twice is not None:
        raise InvalidRequestError(f"column {twice!r} stands twice in the header")


def _read_csv(parts: list[list[list[str]]], header: list[str], features: Features) -> Rows:
    """Empties `parts` on its way: to free the memory of all lines at once takes long, and no other thread would run."""
    uneven = ((row, line) for row, line in enumerate(chain.from_iterable(parts)) if len(line) != len(header))
    problems = [
        Problem(f"has {len(line)} cells; the header has {len(header)}", row=row)
        for row, line in islice(uneven, ENOUGH_PROBLEMS)
    ]
    if problems:
        return np.empty((0, len(features.names))), [], problems
    parts.reverse()
    return joined((_read_lines(parts.pop(), header, features) for _ in range(len(parts))), features)


def _read_lines(lines: list[list[str]], header: list[str], features: Features) -> Rows:
    problems: list[Problem] = []
    unknown: list[UnknownCategory] = []
    x = np.full((len(lines), len(features.names)), math.nan)
    for name, cells in zip(header, zip(*lines, strict=True), strict=False):
        position = features.positions[name]
        column, codes = features.columns[position], features.codes[position]
        values: list[Any] = [_cell(cell.strip(), column, codes) for cell in cells]
        x[:, position] = read_column(values, position, features, unknown, problems)
    problems += infinite(x, features)
    return x, unknown, sorted(problems, key=lambda problem: problem.row or 0)


def _cell(text: str, column: Column, codes: Container[Any]) -> Any:
    """A cell as JSON would have it: None where missing, a number where it is one and the column is not of texts."""
    if text in MISSING and text not in codes:  # an older model may know `#N/A` as a category
        return None
    return text if column.kind == "categorical" else read_number(text)


def _write_csv(prediction: Prediction, request: RowsRequest, targets: tuple[str, ...]) -> bytes:
    check_finite(prediction, targets)
    names, columns = zip(*answer_columns(prediction, request, targets), strict=True)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*names, "warnings") if request.warnings else names)
    for start in range(0, len(prediction.mean), ROWS_AT_ONCE):
        texts = [column[start : start + ROWS_AT_ONCE].astype(str).tolist() for column in columns]
        if request.warnings:
            texts.append(["; ".join(request.warnings.get(start + row, ())) for row in range(len(texts[0]))])
        writer.writerows(zip(*texts, strict=True))
    return stream.getvalue().encode()


def answer_columns(prediction: Prediction, request: RowsRequest, targets: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of the answer's columns, as `python -m training predict` names them."""
    question = request.question
    for number, target in enumerate(targets):
        for name in ("mean", "std", "epistemic_std"):
            yield f"{target}_{name}", getattr(prediction, name)[:, number]
        for k, coverage in enumerate(question.coverage):
            yield f"{target}_lower_{coverage}", prediction.lower[:, number, k]
            yield f"{target}_upper_{coverage}", prediction.upper[:, number, k]
        asked = (
            ("quantile", question.quantiles, prediction.quantiles),
            ("cdf", question.thresholds, prediction.cdf),
            ("sample", range(question.samples), prediction.samples),
        )
        for what, values, array in asked:
            if array is not None:
                for k, value in enumerate(values):
                    yield f"{target}_{what}_{value}", array[:, number, k]


def _count_ndjson(body: bytes, features: Features, _: int) -> tuple[int, Callable[[], Rows]]:
    return sum(1 for line in io.BytesIO(body) if line.strip()), lambda: _read_ndjson(body, features)


def _read_ndjson(body: bytes, features: Features) -> Rows:
    filled = ((number, line) for number, line in enumerate(io.BytesIO(body), start=1) if line.strip())
    instances = (_instance(line, features, number=number, row=row) for row, (number, line) in enumerate(filled))
    return joined((read_instances(part, features) for part in by_rows(instances)), features)


def _instance(line: bytes, features: Features, *, number: int, row: int) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        problems = numbers_that_json_has_not(b'{"instances": [%b]}' % line, features)
        if problems:
            raise refuse([replace(problem, row=row) for problem in problems]) from None
        raise InvalidRequestError(f"line {number} of the body is not valid JSON: {error}") from None


def _write_ndjson(prediction: Prediction, request: RowsRequest, targets: tuple[str, ...]) -> bytes:
    check_finite(prediction, targets)
    numbers = row_numbers(prediction, coverage=request.question.coverage, targets=targets)
    return row_texts(numbers, request.warnings, between=b"\n") + b"\n" * bool(numbers.texts)


def _count_arrow(body: bytes, features: Features, _: int) -> tuple[int, Callable[[], Rows]]:
    try:
        from service.codecs import arrow
    except ImportError:
        raise InvalidRequestError("this service reads no Arrow until it has pyarrow: pip install pyarrow") from None
    return arrow.count(body, features)


def _write_arrow(prediction: Prediction, request: RowsRequest, targets: Sequence[str]) -> bytes:
    from service.codecs import arrow

    return arrow.write(prediction, request, targets)


FORMATS: dict[bytes, Format] = {
    b"text/csv": Format(_count_csv, _write_csv),
    b"application/x-ndjson": Format(_count_ndjson, _write_ndjson),
    b"application/jsonl": Format(_count_ndjson, _write_ndjson),
    b"application/vnd.apache.arrow.stream": Format(_count_arrow, _write_arrow, dense=True),
}
"""By media type. Everything else is taken for JSON."""
OTHER_NAMES = {
    b"application/csv": b"text/csv",
    b"application/ndjson": b"application/x-ndjson",
    b"application/jsonlines": b"application/jsonl",  # SageMaker's
    b"application/x-jsonlines": b"application/jsonl",
}
"""Of the same formats. The answer has the usual name."""
