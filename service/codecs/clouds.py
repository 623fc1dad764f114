"""The JSON forms in which cloud containers and MLflow's clients send rows, as a V1 request."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from service.codecs.words import first_repeated, json_type
from service.errors import InvalidRequestError

KEYS_OF_ROWS = ("instances", "dataframe_records", "inputs", "data")
_FORMS = ("instances", "dataframe_split", "dataframe_records", "inputs")
_PLACES_OF_OPTIONS = ("parameters", "params")
KEYS_OF_REQUESTS = (*_FORMS, *_PLACES_OF_OPTIONS)
"""Beside the options themselves."""


def as_v1(request: dict[str, Any]) -> dict[str, Any]:
    """`request` with its rows as `instances` and, beside them, what Vertex AI puts into `parameters` and MLflow into `params`.

    Rows come as `instances` (V1, Vertex AI), `dataframe_split` {columns, data}, `dataframe_records` [{column: value}], or
    `inputs`, rows or an object of columns (MLflow). Raises InvalidRequestError where none or several are there, or one has a
    wrong form. An iterator over parts of the rows stays one.
    """
    given = [form for form in _FORMS if form in request]
    if len(given) != 1:
        found = " and ".join(given) if given else "no rows"
        raise InvalidRequestError(f"the request has {found}; give one of {', '.join(_FORMS)}")
    (form,) = given
    rest = {key: value for key, value in request.items() if key not in (form, *_PLACES_OF_OPTIONS)}
    for place in _PLACES_OF_OPTIONS:
        options = request.get(place)
        if options is not None and not isinstance(options, dict):
            raise InvalidRequestError(f"{place!r} is {json_type(options)}; give an object")
        rest |= options or {}
    rows = request[form]
    if form == "dataframe_split":
        rows = _split(rows)
    elif form == "inputs" and isinstance(rows, dict):
        rows = _by_column(rows)
    elif not isinstance(rows, list | Iterator) and form != "instances":
        raise InvalidRequestError(f"{form!r} is {json_type(rows)}; give an array of rows")
    return rest | {"instances": rows}


def places_of_rows(document: Any) -> list[tuple[Any, str]]:
    """Where rows may stand, each with its key."""
    if not isinstance(document, dict):
        return []
    return [(document.get("dataframe_split") if key == "data" else document, key) for key in KEYS_OF_ROWS]


def _split(frame: Any) -> list[Any] | Iterator[list[Any]]:
    columns, data = (frame.get("columns"), frame.get("data")) if isinstance(frame, dict) else (None, None)
    if not isinstance(data, list | Iterator) or not (columns is None or isinstance(columns, list)):
        raise InvalidRequestError("'dataframe_split' is not an object of columns and data; give {columns: [], data: [[]]}")
    if columns is None:
        return data
    names, numbers = [_name(column) for column in columns], count()
    twice = first_repeated(names)
    if twice is not None:
        raise InvalidRequestError(f"'dataframe_split' names the column {twice[:100]!r} twice")

    def named(rows: list[Any]) -> list[dict[str, Any]]:
        for row, number in zip(rows, numbers, strict=False):
            if not isinstance(row, list) or len(row) != len(names):
                found = f"has {len(row)} values" if isinstance(row, list) else f"is {json_type(row)}"
                raise InvalidRequestError(f"row {number} of 'dataframe_split' {found}; there are {len(names)} columns")
        return [dict(zip(names, row, strict=True)) for row in rows]

    return named(data) if isinstance(data, list) else map(named, data)


def _by_column(columns: dict[str, Any]) -> list[dict[str, Any]]:
    lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise InvalidRequestError("'inputs' has columns that are no arrays of one length")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _name(column: Any) -> str:
    if not isinstance(column, str):
        raise InvalidRequestError(f"'dataframe_split' names a column {json_type(column)}; give texts")
    return column
