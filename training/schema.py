"""Rows of a table as a model takes them: features as `x`, targets as `y`, and what of them is unlike the training table.

Series and rows are as in `columns`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.manifest import SAME_VALUE, Column, Target
from models.transforms import TRANSFORMS
from models.words import MISSING
from training.columns import Rows, all_null, as_numbers, column_values, meaning, missing_count
from training.errors import TableError
from training.files import require_columns

_FEW_VALUES, _ROWS_OF_A_VALUE = 256, 10


def known_words(columns: Sequence[Column]) -> dict[str, frozenset[str]]:
    """By column, categories that elsewhere are words for a missing value: a model may be from before the word was one."""
    return {column.name: MISSING.intersection(column.categories or ()) for column in columns}


def encode(
    frame: pl.DataFrame, columns: Sequence[Column], *, rows: Rows | None = None
) -> tuple[NDArray[np.float64], dict[str, int]]:
    """The rows of a new table as a model's `x`, and how many values of each column were unknown categories.

    frame: from `read_batches`, any order, other columns are ignored. x: [n, columns] as `manifest.Column` says.
    rows: [rows of the frame], which data rows of the file these are, for errors; default: the first. Columns without unknown
    values are not in the counts.

    Raises TableError for a column that is not there, a value that is not of the column's kind, an infinite value.
    """
    require_columns([column.name for column in columns], frame.columns, what="the table has no column")
    rows = np.arange(1, frame.height + 1) if rows is None else rows
    x = np.empty((frame.height, len(columns)))
    unknown = {}
    for j, column in enumerate(columns):
        series = frame[column.name]
        x[:, j] = column_values(series, column.kind, categories=column.categories, integer=column.integer, rows=rows)
        if column.kind == "categorical":
            count = int(np.isnan(x[:, j]).sum()) - missing_count(series)
            unknown.update({column.name: count} if count else {})
    return x, unknown


def unusual(x: NDArray[np.float64], columns: Sequence[Column], unknown: Mapping[str, int]) -> dict[str, int]:
    """What of a new table's rows is unlike the training table, in sentences, with the number of rows.

    x [rows, columns] and unknown: as `encode` gives them.
    """
    rows_by_sentence: dict[str, int] = {}
    for values, column in zip(x.T, columns, strict=True):
        unknown_here = unknown.get(column.name, 0)
        missing = int(np.isnan(values).sum()) - unknown_here if column.missing == 0 else 0
        outside = 0
        if column.kind in ("numeric", "datetime") and column.minimum is not None and column.maximum is not None:
            outside = int(((values < column.minimum) | (values > column.maximum)).sum())
        rows_by_sentence |= {
            f"{column.name} holds a category that the model does not know, which counts as missing": unknown_here,
            f"{column.name} is missing, which it never was in training": missing,
            f"{column.name} is outside of its training range, {range_in_words(column)}": outside,
        }
    return {sentence: rows for sentence, rows in rows_by_sentence.items() if rows}


def range_in_words(column: Column) -> str:
    """`-3 to 3` or `2024-01-01 to 2024-12-31 12:00:00`; empty for what has no range."""
    if column.minimum is None or column.maximum is None:
        return ""
    ends = (column.minimum, column.maximum)
    return " to ".join(instant(end) if column.kind == "datetime" else f"{end:g}" for end in ends)


def instant(seconds: float) -> str:
    """Seconds since 1970 as date and time, UTC; midnight as the date alone."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ").removesuffix(" 00:00:00")


def encode_targets(frame: pl.DataFrame, targets: Sequence[Target], *, first_row: int = 1) -> NDArray[np.float64]:
    """The targets of a new table as `y`: [n, targets] in raw units, NaN where missing.

    Raises TableError for a target that is not there, not a number, infinite, or outside its transform's domain.
    """
    require_columns([target.name for target in targets], frame.columns, what="the table has no column")
    rows = np.arange(first_row, first_row + frame.height)
    values = [target_values(frame[target.name], target.transform, rows=rows) for target in targets]
    return np.column_stack(values)


def target_values(series: pl.Series, transform: str, *, rows: Rows) -> NDArray[np.float64]:
    """A target in raw units: [n] float64, NaN where missing. Raises TableError where it cannot be one."""
    name = series.name
    numbers = as_numbers(series) if series.dtype == pl.String or series.dtype.is_numeric() else all_null(series)
    wrong = (series.is_not_null() & numbers.is_null()).to_numpy()
    if wrong.any():
        i, hint = int(wrong.argmax()), meaning(series.filter(wrong))
        raise TableError(
            f"target {name!r} is not a number in {int(wrong.sum())} of {len(series)} rows: data row {rows[i]} holds "
            f"{str(series[i])!r}{hint}; a target is a quantity, so correct these or choose another column"
        )
    values = column_values(series, "numeric", rows=rows)
    domain = TRANSFORMS[transform]
    outside = (values <= domain.minimum) | (values >= domain.maximum)
    if outside.any():
        i = int(outside.argmax())
        needed = "values above 0" if transform == "log" else "values between 0 and 1, both excluded"
        raise TableError(
            f"target {name!r} holds {values[i]:g} in data row {rows[i]}, and the transform {transform} needs {needed}; "
            "leave such rows out, or fit a model without this transform"
        )
    return values


def few_values(y: NDArray[np.float64], groups: Rows | None = None) -> list[float] | None:
    """All values of a target [n] of few ones (counts, ratings), ascending; None of any other.

    That are at most 256, each in ten rows on average, or in ten groups [n]: what was measured once a group is no count.
    """
    values = np.unique(y)
    values = values[np.diff(values, prepend=-np.inf) > SAME_VALUE * np.abs(values)]
    number_of, _ = _nearest(y, values)
    counted = len(y) if groups is None else len(np.unique(np.column_stack([number_of, groups]), axis=0))
    few = 2 <= len(values) <= min(_FEW_VALUES, counted / _ROWS_OF_A_VALUE)
    return values.tolist() if few else None


def values_with(known: Sequence[float], y: NDArray[np.float64]) -> list[float] | None:
    """The values of a target of few ones, and those of `y` [n]; None where too many of these are new for it to be one."""
    values = np.array(known)
    new = np.unique(y[~_nearest(y, values)[1]])
    return np.sort([*known, *new]).tolist() if len(new) <= len(y) / _ROWS_OF_A_VALUE else None


def _nearest(y: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[Rows, NDArray[np.bool_]]:
    """[n] each: the number of the last of `values` that is no larger, and whether it is this one."""
    slack = SAME_VALUE * np.abs(y)
    number = np.searchsorted(values, y + slack, side="right") - 1
    return number, (number >= 0) & (np.abs(y - values[number]) <= slack)
