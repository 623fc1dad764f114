"""JSON instances to the array that a model reads, with every problem found by row and feature."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.manifest import Column
from service.codecs.cells import Values, codes_of, converted_column, numbers, read_cell
from service.codecs.words import SUGGESTIONS, json_type, nearest, shortened, written
from service.errors import ENOUGH_PROBLEMS, Problem


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
    # As orjson makes them: it reuses keys, and looking up the very same object takes half the time
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
        codes=tuple(codes_of(column) for column in columns),
        all_numeric=all(column.kind == "numeric" for column in columns),
        minimum=np.array(minimum),
        maximum=np.array(maximum),
        bounds=(minimum, maximum),
        ranges=tuple(f"{written(column.minimum, column)} to {written(column.maximum, column)}" for column in columns),
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
    """Concatenate the parts' rows, renumber them, and keep up to ENOUGH_PROBLEMS problems."""
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
    converted = converted_column(values, column, codes)
    if converted is not None:
        return converted
    cells = np.full(len(values), math.nan)
    room = len(problems) + ENOUGH_PROBLEMS
    for row, value in enumerate(values):
        try:
            code = read_cell(value, column, codes)
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


def first_names(features: Features) -> str:
    """The first names of features, for a sentence."""
    shown = ", ".join(features.names[:5])
    return shown if len(features.names) <= 5 else f"{shown}, ..."


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
        like = nearest(name, features.names) if row + number < SUGGESTIONS else ""
        yield Problem(f"is no feature of this model{like}", row=row, feature=shortened(name))


def _wrong_form(row: int, instance: object, features: Features) -> Problem:
    found = f"an array of {len(instance)}" if isinstance(instance, list) else json_type(instance)
    width = len(features.names)
    return Problem(f"is {found}; give an object of feature names, or an array of {width} ({first_names(features)})", row=row)
