"""What is unusual about rows that can be answered: unknown categories, values outside the training range, gaps."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import nsmallest
from operator import le

import numpy as np
from numpy.typing import NDArray

from service.codecs.cells import Values
from service.codecs.features import Features, UnknownCategory
from service.codecs.words import SUGGESTIONS, known_categories, nearest, shown, written
from service.errors import ENOUGH_PROBLEMS, Problem

_FEW = 50
_DESCRIBED = 10_000
_UNDESCRIBED = [f"is unusual; the first {_DESCRIBED:,} unusual values of a request are described"]


@dataclass(frozen=True)
class Unusual:
    """What is unusual about rows: unknown categories, values outside the training range, and gaps where training had none."""

    unknown: Sequence[UnknownCategory] = ()
    row: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """[k]: of each value outside the training range, and of each gap; in order."""
    feature: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """[k]: the column of each such value."""
    values: Values = field(default_factory=lambda: np.empty(0))
    """[k]: the value; NaN for a gap."""

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

    Where there are very many, the last rows are only told that they are unusual.
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
    described = bisect_left(unusual.row, end)
    places = (array[:described].tolist() for array in (unusual.row, unusual.feature, unusual.values))
    for row, position, value in zip(*places, strict=True):
        if math.isnan(value):
            gaps.append((row, position))
        else:
            column = features.columns[position]
            outside = f"{written(value, column)} is outside the training range {features.ranges[position]}"
            sentences[row].append(f"{column.name} {outside}")
    for row, position in gaps:
        sentences[row].append(f"{features.names[position]} is missing; it never was in training")
    return sentences


def unknown_category_problems(unknown: Sequence[UnknownCategory], features: Features) -> list[Problem]:
    """Unknown categories as problems, for requests that asked to be strict."""
    first = nsmallest(ENOUGH_PROBLEMS, unknown, key=lambda item: (item.row, item.feature))
    like = [_alike(item, features) if number < SUGGESTIONS else "" for number, item in enumerate(first)]
    return [
        Problem(_about_unknown(item, features) + alike, row=item.row, feature=features.names[item.feature])
        for item, alike in zip(first, like, strict=True)
    ]


def infinite(x: Values, features: Features) -> list[Problem]:
    """Where x [n, features] is infinite, which JSON cannot say and other forms can."""
    places = np.argwhere(np.isinf(x))[:ENOUGH_PROBLEMS].tolist()
    return [Problem("is infinite; give a finite number", row=row, feature=features.names[at]) for row, at in places]


def _about_unknown(item: UnknownCategory, features: Features) -> str:
    column = features.columns[item.feature]
    return f"{shown(item.value)} is an unknown category (known: {known_categories(column)})"


def _alike(item: UnknownCategory, features: Features) -> str:
    return nearest(item.value, features.columns[item.feature].categories or []) if isinstance(item.value, str) else ""
