"""JSON instances to the array that a model reads, with every problem found by row and feature."""

import difflib
import math
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from heapq import nsmallest
from itertools import chain, islice
from operator import itemgetter, le
from types import NoneType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.manifest import Column
from service.errors import ENOUGH_PROBLEMS, Problem

Values = NDArray[np.float64]

PLAIN_NUMBERS = frozenset({int, float, NoneType})
"""The types of what a number may be in JSON: null is a missing one."""
_FEW = 50
_NOUGHTS = re.compile(r"(?<=\d)\.0+$")
"""Behind whole numbers, which pandas writes so in a column with gaps."""
_FLAGS: dict[object, float] = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "": math.nan}
_LISTED_CATEGORIES = 10
_MOST_LIKE = 200
_SUGGESTIONS = 3
"""Of names most like unknown ones: to find one takes some milliseconds."""
_DESCRIBED = 10_000
_UNDESCRIBED = [f"is unusual; the first {_DESCRIBED:,} unusual values of a request are described"]
_SHOWN_CHARACTERS = 100
_JSON_TYPES = {
    dict: "an object", list: "an array", str: "a text", bool: "a boolean", int: "a number", float: "a number", NoneType: "null",
}  # fmt: skip


@dataclass(frozen=True)
class UnknownCategory:
    """A category that the model was not trained on; the model takes it for a missing value."""

    row: int
    feature: int
    value: object


Rows = tuple[Values, list[UnknownCategory], list[Problem]]
"""x [n, features] float64, its unknown categories, and all problems: where there are some, x is of no use."""


@dataclass(frozen=True)
class Features:
    """What is needed to read instances of one model; made once per model by `features_of`."""

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    positions: dict[str, int]
    pick: Callable[[dict[str, Any]], Sequence[Any]]
    """The values of a complete instance in the model's order; KeyError where one is absent."""
    codes: tuple[dict[Any, float], ...]
    """By feature: categories, as JSON may spell them, to codes; empty where the feature is not categorical."""
    all_numeric: bool
    minimum: Values
    maximum: Values
    """[features]: the training range, or that of all finite numbers."""
    bounds: tuple[list[float], list[float]]
    """Both ends of the training range, as numbers of Python."""
    ranges: tuple[str, ...]
    """The training range, as people write it."""
    never_missing: NDArray[np.bool_]
    """[features]: whether no training row missed this value."""


def features_of(columns: Sequence[Column]) -> Features:
    """The reading plan for a model's columns."""
    # As orjson reads them: it keeps keys, and one that is the same object is looked up in half the time
    names = tuple(orjson.loads(orjson.dumps({column.name: None for column in columns})))
    one = names[0]
    ranged = [column if column.kind != "categorical" else None for column in columns]
    largest = sys.float_info.max
    minimum = [-largest if c is None or c.minimum is None else c.minimum for c in ranged]
    maximum = [largest if c is None or c.maximum is None else c.maximum for c in ranged]
    return Features(
        columns=tuple(columns),
        names=names,
        positions={name: position for position, name in enumerate(names)},
        pick=itemgetter(*names) if len(names) > 1 else lambda row: (row[one],),
        codes=tuple(_codes(column) for column in columns),
        all_numeric=all(column.kind == "numeric" for column in columns),
        minimum=np.array(minimum),
        maximum=np.array(maximum),
        bounds=(minimum, maximum),
        ranges=tuple(f"{_text(column.minimum, column)} to {_text(column.maximum, column)}" for column in columns),
        never_missing=np.array([column.missing == 0 for column in columns]),
    )


def read_instances(instances: list[Any], features: Features) -> Rows:
    """JSON instances, objects or arrays. Their numbers must be finite, as JSON's are."""
    problems: list[Problem] = []
    cells = _in_order(instances, features, problems)
    if features.all_numeric:
        flat = numbers(cells[0] if len(cells) == 1 else list(chain.from_iterable(cells)))
        if flat is not None:
            return flat.reshape(len(cells), len(features.names)), [], problems
    x = np.empty((len(cells), len(features.names)))
    unknown: list[UnknownCategory] = []
    for position, values in enumerate(zip(*cells, strict=True)):
        x[:, position] = read_column(values, position, features, unknown, problems)
    problems.sort(key=lambda problem: problem.row or 0)
    return x, unknown, problems


def joined(parts: Iterable[Rows], features: Features) -> Rows:
    """The rows of parts as those of one, numbered through, with as many problems as are enough."""
    pieces: list[Values] = [np.empty((0, len(features.names)))]
    unknown: list[UnknownCategory] = []
    problems: list[Problem] = []
    rows = 0
    for x, more_unknown, more_problems in parts:
        pieces.append(x)
        unknown += [replace(item, row=rows + item.row) for item in more_unknown]
        if len(problems) < ENOUGH_PROBLEMS:
            problems += [replace(problem, row=rows + (problem.row or 0)) for problem in more_problems]
        rows += len(x)
    return np.concatenate(pieces), unknown, problems


def read_column(
    values: Sequence[Any], position: int, features: Features, unknown: list[UnknownCategory], problems: list[Problem]
) -> Sequence[float] | Values:
    """JSON values of one feature as x holds them; None is missing. Adds to `unknown` and `problems`.

    Where there are problems, what is returned is of no use.
    """
    column, codes = features.columns[position], features.codes[position]
    converted = _converted(values, column, codes)
    if converted is not None:
        return converted
    cells = np.full(len(values), math.nan)
    room = len(problems) + ENOUGH_PROBLEMS
    for row, value in enumerate(values):
        try:
            code = _cell(value, column, codes)
        except ValueError as error:
            problems.append(Problem(str(error), row=row, feature=column.name))
            if len(problems) == room:
                break
            continue
        if code is None:
            unknown.append(UnknownCategory(row, position, value))
        else:
            cells[row] = code
    return cells


def numbers(values: Sequence[Any]) -> Values | None:
    """Numbers and nulls of JSON as float64 [n], where null is NaN; None where something else is among them."""
    packed = np.empty(len(values))
    try:
        struct.pack_into(f"{len(values)}d", packed.data, 0, *values)  # four times as fast as np.array
    except struct.error:
        return np.array(values, dtype=np.float64) if set(map(type, values)) <= PLAIN_NUMBERS else None
    # What could be packed is a number, or a flag in the place of a 0 or a 1: few have to be looked for one by one
    flags_possible = len(values) < _FEW or ((packed == 0) | (packed == 1)).any()
    return None if flags_possible and bool in map(type, values) else packed


def read_number(text: str) -> float | str:
    """The number that a text is in a training table too; Python alone takes 1_000, nAn and the digits of other scripts."""
    try:
        number = float(text)
    except ValueError:
        return text
    return text if number != number or "_" in text or not text.isascii() else number


def unknown_category_problems(unknown: Sequence[UnknownCategory], features: Features) -> list[Problem]:
    """Unknown categories as problems, for requests that asked to be strict."""
    first = nsmallest(ENOUGH_PROBLEMS, unknown, key=lambda item: (item.row, item.feature))
    like = [_alike(item, features) if number < _SUGGESTIONS else "" for number, item in enumerate(first)]
    return [
        Problem(_about_unknown(item, features) + alike, row=item.row, feature=features.names[item.feature])
        for item, alike in zip(first, like, strict=True)
    ]


def infinite(x: Values, features: Features) -> list[Problem]:
    """Where x [n, features] is infinite, which JSON cannot say and other forms can."""
    places = np.argwhere(np.isinf(x))[:ENOUGH_PROBLEMS].tolist()
    return [Problem("is infinite; give a finite number", row=row, feature=features.names[at]) for row, at in places]


@dataclass(frozen=True)
class Unusual:
    """What is unusual about rows: unknown categories, values outside the training range, and gaps where training had none."""

    unknown: Sequence[UnknownCategory] = ()
    row: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """[k]: of each value outside the training range, and of each gap; in order."""
    feature: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """[k]: of the same."""
    values: Values = field(default_factory=lambda: np.empty(0))
    """[k]: of the same; a gap is NaN."""

    @cached_property
    def rows(self) -> list[int]:
        """The rows that are unusual in some way, in order."""
        if len(self.row) <= _FEW:  # NumPy would take longer
            return sorted({*self.row.tolist(), *(item.row for item in self.unknown)})
        rows: list[int] = np.unique(self.row_of_each).tolist()
        return rows

    @property
    def row_of_each(self) -> NDArray[np.intp]:
        """The row of each unusual value."""
        return np.concatenate([self.row, np.array([item.row for item in self.unknown], dtype=np.intp)])


_USUAL = Unusual()


def find_unusual(x: Values, unknown: Sequence[UnknownCategory], features: Features) -> Unusual:
    """What is unusual about the rows of x [n, features], in which unknown categories are missing values."""
    if len(x) == 1:  # NumPy's operations take five times as long on so few numbers
        (cells,) = x.tolist()
        lowest, largest = features.bounds
        if all(map(le, lowest, cells)) and all(map(le, cells, largest)):
            return _USUAL
    places = np.flatnonzero(~((x >= features.minimum) & (x <= features.maximum)))
    if not len(places):
        return _USUAL
    values, width = x.ravel()[places], len(features.names)
    row, feature = np.divmod(places, width)
    told = features.never_missing[feature] | ~np.isnan(values)
    if unknown:
        told &= np.isin(places, [item.row * width + item.feature for item in unknown], invert=True)
    return Unusual(unknown, row[told], feature[told], values[told])


def warnings_about(unusual: Unusual, features: Features, *, rows: int | None = None) -> dict[int, list[str]]:
    """Sentences about unusual rows, by row; rows: about the first so many only.

    Where there are very many, the last rows hear no more than that they are unusual.
    """
    if unusual is _USUAL:
        return {}
    told = unusual.rows[:rows]
    if not told:
        return {}
    end = told[-1] + 1
    if len(unusual.row) + len(unusual.unknown) > _DESCRIBED:
        end = min(end, max(int(np.sort(unusual.row_of_each)[_DESCRIBED]), told[0] + 1))
    sentences: dict[int, list[str]] = {row: [] if row < end else _UNDESCRIBED for row in told}
    for item in unusual.unknown:
        if item.row < end:
            sentences[item.row].append(f"{features.names[item.feature]} {_about_unknown(item, features)}")
    gaps = []
    described = np.searchsorted(unusual.row, end)
    places = (array[:described].tolist() for array in (unusual.row, unusual.feature, unusual.values))
    for row, position, value in zip(*places, strict=True):
        if math.isnan(value):
            gaps.append((row, position))
        else:
            column = features.columns[position]
            outside = f"{_text(value, column)} is outside the training range {features.ranges[position]}"
            sentences[row].append(f"{column.name} {outside}")
    for row, position in gaps:
        sentences[row].append(f"{features.names[position]} is missing; it never was in training")
    return sentences


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the names most like `name`; nothing where none is, or there are too many to look."""
    if len(known) > _MOST_LIKE:
        return ""
    near = difflib.get_close_matches(name[:_SHOWN_CHARACTERS], known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(other) for other in near)}?" if near else ""


def json_type(value: object) -> str:
    """What a JSON value is, in words."""
    return _JSON_TYPES[type(value)]


def _codes(column: Column) -> dict[Any, float]:
    if column.categories is None:
        return {}
    codes: dict[Any, float] = {category: float(code) for code, category in enumerate(column.categories)}
    if column.integer:  # 3, 3.0 and "3" are one category, and 3 == 3.0 as a key
        codes |= {int(category): float(code) for code, category in enumerate(column.categories)}
    return codes | {None: math.nan}


def _in_order(instances: list[Any], features: Features, problems: list[Problem]) -> list[Sequence[Any]]:
    """Each instance's values in the model's order; absent ones are None."""
    whole = _whole(instances, features)
    if whole is not None:
        return whole
    width = len(features.names)
    cells: list[Sequence[Any]] = []
    for row, instance in enumerate(instances):
        if type(instance) is dict:
            if not instance.keys() <= features.positions.keys():
                problems.extend(islice(_unknown_names(row, instance, features), ENOUGH_PROBLEMS - len(problems)))
            cells.append([instance.get(name) for name in features.names])
        elif type(instance) is list and len(instance) == width:
            cells.append(instance)
        else:
            if len(problems) < ENOUGH_PROBLEMS:
                problems.append(_wrong_form(row, instance, features))
            cells.append([None] * width)
    return cells


def _whole(instances: list[Any], features: Features) -> list[Sequence[Any]] | None:
    """The values of rows that are all arrays or all objects of every feature; None where one is not."""
    try:
        if set(map(len, instances)) != {len(features.names)}:
            return None
        if type(instances[0]) is dict:
            return list(map(features.pick, instances))
    except (KeyError, TypeError):  # a name that is none, a row that is no object
        return None
    return instances if set(map(type, instances)) == {list} else None


def _unknown_names(row: int, instance: dict[str, Any], features: Features) -> Iterator[Problem]:
    for number, name in enumerate(name for name in instance if name not in features.positions):
        like = nearest(name, features.names) if row + number < _SUGGESTIONS else ""
        yield Problem(f"is no feature of this model{like}", row=row, feature=_shortened(name))


def _wrong_form(row: int, instance: object, features: Features) -> Problem:
    found = f"an array of {len(instance)}" if isinstance(instance, list) else json_type(instance)
    width = len(features.names)
    return Problem(f"is {found}; give an object of feature names, or an array of {width} ({_first_names(features)})", row=row)


def _first_names(features: Features) -> str:
    shown = ", ".join(features.names[:5])
    return shown if len(features.names) <= 5 else f"{shown}, ..."


def _converted(values: Sequence[Any], column: Column, codes: dict[Any, float]) -> Sequence[float] | Values | None:
    """A whole column at once; None where some value needs a look of its own."""
    if column.kind not in ("categorical", "boolean"):
        return numbers(values)
    types = set(map(type, values))
    if column.kind == "categorical":
        if not types <= ({str, int, float, NoneType} if column.integer else {str, NoneType}):
            return None
        found = [codes.get(value) for value in values]
        return None if None in found else np.array(found)
    if not types <= {bool, int, float, NoneType}:
        return None
    flags = np.array(values, dtype=np.float64)
    return flags if np.all(np.isnan(flags) | (flags == 0) | (flags == 1)) else None


def _cell(value: object, column: Column, codes: dict[Any, float]) -> float | None:
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
            raise ValueError(f"{_shown(value)} is {json_type(value)}; give true or false (or 1 or 0)")
        case "datetime":
            return _seconds(value)
        case _:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            raise ValueError(f"{_shown(value)} is {json_type(value)}; give a number{_unquoted(value)}")


def _category(value: object, column: Column, codes: dict[Any, float]) -> float | None:
    if isinstance(value, str):
        text = value.strip()  # as in a table
        if column.integer:
            text = _NOUGHTS.sub("", text)
        return codes.get(text) if text else math.nan
    if column.integer and isinstance(value, int | float) and not isinstance(value, bool):
        return codes.get(value)
    expected = "a whole number or its text" if column.integer else "a text"
    raise ValueError(f"{_shown(value)} is {json_type(value)}; give {expected}: {_known(column)}")


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = "give an ISO 8601 date or time such as '2026-11-21T12:00:00Z', or seconds since 1970-01-01 UTC"
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is {json_type(value)}; {expected}")  # noqa: TRY004 - the type is the client's
    text = value.strip()
    if not text:
        return math.nan
    digits = len(text) > 8 and text[:9].isdigit()  # fromisoformat takes twenty digits for a date
    try:
        moment = datetime.fromisoformat("" if digits else text)
    except ValueError:
        raise ValueError(f"{_shown(value)} is no date; {expected}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def _unquoted(value: object) -> str:
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return ""
    return ", without quotes" if math.isfinite(number) else ""


def _shown(value: object) -> str:
    if isinstance(value, list | dict):  # may be nested deeper than repr goes
        return "[...]" if isinstance(value, list) else "{...}"
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]  # a long one may stand in many rows
    return _shortened(str(value).lower() if isinstance(value, bool) else repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _known(column: Column) -> str:
    categories = column.categories or []
    shown = ", ".join(categories[:_LISTED_CATEGORIES])
    return shown if len(categories) <= _LISTED_CATEGORIES else f"{shown}, ... ({len(categories)} in all)"


def _about_unknown(item: UnknownCategory, features: Features) -> str:
    column = features.columns[item.feature]
    return f"{_shown(item.value)} is an unknown category (known: {_known(column)})"


def _alike(item: UnknownCategory, features: Features) -> str:
    return nearest(item.value, features.columns[item.feature].categories or []) if isinstance(item.value, str) else ""


def _text(value: float | None, column: Column) -> str:
    """A value as people write it: whole numbers without a point, moments as dates."""
    if value is None:
        return "any"
    if column.kind == "datetime":
        try:
            moment = datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError):
            return f"{value:.12g} s"
        return moment.strftime("%Y-%m-%d" if value % 86400 == 0 else "%Y-%m-%dT%H:%M:%SZ")
    return f"{value:.12g}"
