"""JSON values of one feature to the numbers that a model reads."""

import math
import re
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Column
from models.words import FLAGS
from service.codecs.words import json_type, known_categories, shown

Values = NDArray[np.float64]

PLAIN_NUMBERS = frozenset({int, float, NoneType})
"""The types of what a number may be in JSON: null is a missing one."""
NOT_EXACT = 2**53
"""From here on float64 cannot hold every whole number."""
_FEW = 50
_NOUGHTS = re.compile(r"(?<=\d)\.0+$")
"""The `.0` of a whole number, which pandas writes in a column with gaps."""
_LEADING_NOUGHTS = re.compile(r"^(-?)0+(?=[0-9])")
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_FLAGS: dict[Any, float] = {True: 1.0, False: 0.0, **FLAGS, "": math.nan}


def numbers(values: Sequence[Any]) -> Values | None:
    """Numbers and nulls of JSON as float64 [n], where null is NaN; None where something else is among them."""
    packed = np.empty(len(values))
    try:
        struct.pack_into(f"{len(values)}d", packed.data, 0, *values)  # four times as fast as np.array
    except struct.error:
        return np.array(values, dtype=np.float64) if set(map(type, values)) <= PLAIN_NUMBERS else None
    # A flag is packed too, as 0 or 1: only where these occur must each value's type be looked at
    flags_possible = len(values) < _FEW or ((packed == 0) | (packed == 1)).any()
    return None if flags_possible and bool in map(type, values) else packed


def read_number(text: str) -> float | str:
    """The number that a text is in a training table too; Python alone takes 1_000 and the digits of other scripts."""
    try:
        number = float(text)
    except ValueError:
        return text
    return text if number != number or "_" in text or not text.isascii() else number


def codes_of(column: Column) -> dict[Any, float]:
    """Categories, as JSON may spell them, to codes; empty where the column is not categorical."""
    if column.categories is None:
        return {}
    codes: dict[Any, float] = {category: float(code) for code, category in enumerate(column.categories)}
    if column.integer:  # 3, 3.0, "3" and "03" are one category unless there are several, and 3 == 3.0 as a key
        plain = {_LEADING_NOUGHTS.sub(r"\1", category): code for category, code in codes.items()}
        exact = {int(category): code for category, code in codes.items() if category == str(int(category))}
        codes = plain | codes | {int(category): code for category, code in codes.items()} | exact
    return codes | {None: math.nan}


def converted_column(values: Sequence[Any], column: Column, codes: dict[Any, float]) -> Sequence[float] | Values | None:
    """A whole column at once; None where some value needs a look of its own."""
    if column.kind not in ("categorical", "boolean"):
        return numbers(values)
    types = set(map(type, values))
    if column.kind == "categorical":
        if not types <= ({str, int, float, NoneType} if column.integer else {str, NoneType}):
            return None
        if float in types and any(type(value) is float and abs(value) >= NOT_EXACT for value in values):
            return None
        found = [codes.get(value) for value in values]
        return None if None in found else np.array(found)
    if not types <= {bool, int, float, NoneType}:
        return None
    flags = np.array(values, dtype=np.float64)
    return flags if np.all(np.isnan(flags) | (flags == 0) | (flags == 1)) else None


def read_cell(value: object, column: Column, codes: dict[Any, float]) -> float | None:
    """One value as x holds it; None for an unknown category; ValueError says what would be right."""
    if value is None:
        return math.nan
    match column.kind:
        case "categorical":
            return _category(value, column, codes)
        case "boolean":
            word = value.strip().lower() if isinstance(value, str) else value
            if isinstance(word, str | int | float) and word in _FLAGS:
                return _FLAGS[word]
            raise ValueError(f"{shown(value)} is {json_type(value)}; give true or false (or 1 or 0)")
        case "datetime":
            return seconds_since_1970(value)
        case _:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            raise ValueError(f"{shown(value)} is {json_type(value)}; give a number{_unquoted(value)}")


def _category(value: object, column: Column, codes: dict[Any, float]) -> float | None:
    if isinstance(value, str):
        text = value.strip()  # as in a table
        if column.integer:
            text = _NOUGHTS.sub("", text)
            text = text if text in codes else _LEADING_NOUGHTS.sub(r"\1", text)
        return codes.get(text) if text else math.nan
    if column.integer and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and abs(value) >= NOT_EXACT:
            raise ValueError(f"{shown(value)} may stand for several whole numbers; give it as a whole number, or as a text")
        return codes.get(value)
    expected = "a whole number or its text" if column.integer else "a text"
    raise ValueError(f"{shown(value)} is {json_type(value)}; give {expected}: {known_categories(column)}")


def seconds_since_1970(value: object) -> float:
    """A date or time, or seconds, as x holds it; ValueError says what would be right."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = "give an ISO 8601 date or time such as '2026-11-21T12:00:00Z', or seconds since 1970-01-01 UTC"
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is {json_type(value)}; {expected}")  # noqa: TRY004 - the type is the client's
    text = value.strip()
    if not text:
        return math.nan
    digits = len(text) > 8 and text[:9].isdigit()  # fromisoformat takes twenty digits for a date
    try:
        moment = datetime.fromisoformat("" if digits else text.upper())
    except ValueError:
        raise ValueError(f"{shown(value)} is no date; {expected}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def _unquoted(value: object) -> str:
    return ", without quotes" if isinstance(value, str) and _JSON_NUMBER.fullmatch(value.strip()) else ""
