"""What a feature of the table that trains is, as the manifest describes it, and what the user should be told of it."""

import shlex

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.manifest import Column, Kind
from training.columns import (
    Rows,
    as_instants,
    as_numbers,
    as_texts,
    column_values,
    infer_kind,
    leave_out,
    meaning,
    missing_count,
)
from training.errors import TableError

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MAX_CATEGORIES = 256
TEXT_VALUES = 100
"""Text with more different values than this, and in more than half of its rows, is an id or free text."""
_LARGEST_VALUE = 1e300
"""The difference of larger ones may have no float64."""
_EXCEL_ERRORS = ("#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!")
"""What Excel writes for a formula that failed; its #N/A is a missing value."""


def describe(
    series: pl.Series, *, categorical: bool, max_categories: int, rows: Rows
) -> tuple[Column, NDArray[np.float64], list[str]]:
    """A feature as the manifest describes it, its values ([n], as in `x`), and what the user should be told of it.

    categorical: the user says that it is, whatever it looks like.

    Raises TableError for a column that is all missing, nested, infinite somewhere, or text of too many values.
    """
    name = series.name
    missing = missing_count(series)
    if missing == len(series):
        raise TableError(f"column {name!r} has no value in any row; {leave_out(name)}")
    kind: Kind = "categorical" if categorical else infer_kind(series)
    categories, integer = None, False
    notes: list[str] = []
    if kind == "categorical":
        categories, integer, notes = _categories(series, max_categories, named=categorical, rows=rows)
    values = column_values(series, kind, categories=categories, integer=integer, rows=rows)
    known = values[~np.isnan(values)]
    if np.abs(known).max() > _LARGEST_VALUE:
        i = int(np.nanargmax(np.abs(values)))
        raise TableError(
            f"column {name!r} holds {values[i]:g} in data row {rows[i]}, about the largest that float64 has; make it missing "
            f"if it stands for that, or {leave_out(name)}"
        )
    column = Column(name=name, kind=kind, categories=categories, missing=missing / len(series), integer=integer)
    if kind in ("numeric", "datetime"):
        ranges = {
            "minimum": float(known.min()),
            "maximum": float(known.max()),
            "quantiles": dict(zip(map(str, QUANTILES), np.quantile(known, QUANTILES).tolist(), strict=True)),
            "integer": kind == "numeric" and bool(np.all(known == np.floor(known))),
        }
        column = column.model_copy(update=ranges)
    if known.min() == known.max():
        notes.append(f"column {name!r} has the same value in every row that has one: it carries nothing")
    elif column.integer and missing == 0 and len(known) > 1 and np.all(np.diff(known) == 1):
        notes.append(f"column {name!r} counts the rows; if it is only their number, {leave_out(name)}")
    return column, values, notes


def _categories(series: pl.Series, max_categories: int, *, named: bool, rows: Rows) -> tuple[list[str], bool, list[str]]:
    """The values to keep, whether all of them are whole numbers, and notes on what was decided."""
    name, notes = series.name, []
    mixed = ""
    if series.dtype == pl.String and not named:
        _refuse_excel_errors(series, rows)
        mixed = _mixed(series, rows)
    texts = as_texts(series)
    integer = bool(texts.drop_nulls().str.contains(r"^-?\d{1,100}(\.0+)?$").all())
    if integer:
        texts = as_texts(series, integer=True)
    counts = texts.drop_nulls().value_counts(name="rows").sort(["rows", name], descending=[True, False])
    filled = int(counts["rows"].sum())
    if not named and counts.height > (0 if mixed else TEXT_VALUES) and counts.height * 2 > filled:
        reason = mixed or f"it reads as an id or free text{meaning(series)}"
        raise TableError(
            f"column {name!r} is text with {counts.height} different values in {filled} rows; {reason}: "
            f"{leave_out(name)}, or keep it with --categorical {shlex.quote(name)}"
        )
    why = f": {mixed}" if mixed else "" if named else meaning(series)
    if why:
        notes.append(f"column {name!r} is taken as categories{why}")
    kept = counts.head(max_categories)
    if counts.height > kept.height:
        share = 1 - int(kept["rows"].sum()) / filled
        notes.append(
            f"column {name!r} keeps the {kept.height} most frequent of {counts.height} categories; the others "
            f"({share:.1%} of its rows) count as unknown"
        )
    categories = sorted(kept[name].to_list(), key=lambda text: (int(text), text) if integer else text)
    return categories, integer, notes


def _refuse_excel_errors(series: pl.Series, rows: Rows) -> None:
    errors = series.is_in(_EXCEL_ERRORS).fill_null(False).to_numpy()
    if errors.any():
        i = int(errors.argmax())
        raise TableError(
            f"column {series.name!r} holds {series[i]!r} in data row {rows[i]}, which Excel writes where a formula failed; "
            f"correct it, write an empty cell or NA where it means missing, or {leave_out(series.name)}"
        )


def _mixed(series: pl.Series, rows: Rows) -> str:
    """The first value of a text column that is not what most of its values are, if those are numbers or dates."""
    for what, converted in (("numbers", as_numbers(series)), ("ISO dates", as_instants(series))):
        if converted.count() * 2 > series.count():
            i = int((series.is_not_null() & converted.is_null()).to_numpy().argmax())
            way_out = meaning(series.filter(converted.is_null())) or " (write an empty cell or NA where that means missing)"
            return f"most of its values are {what}, but data row {rows[i]} holds {series[i]!r}{way_out}"
    return ""
