"""One column of a table: its kind, and its values as numbers or texts.

A `pl.Series` here is a column as `files.scan` gives it: text without blanks around it and null where missing, or a type
of Parquet. Rows are named in errors as data rows of the file: data row 1 is the first below the header.
"""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.manifest import Kind
from models.words import FLAGS
from training.errors import TableError

Rows = NDArray[np.int64]

_ISO_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
)
_UNREAD = (
    (r"^[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$", "write 1,234 as 1234, or as 1.234 if the comma is a decimal comma"),
    (r"^[-+]?[\d.]*\d,\d+$", "write decimals with a point"),
    (
        r"^(\d{1,2}[/.]\d{1,2}[/.]\d{2}(\d{2})?|\d{4}[/.]\d{1,2}[/.]\d{1,2}|\d{1,2}-\d{1,2}-\d{4})\b",
        "write dates as 2024-01-31",
    ),
    (r"^(\d{1,2}[-. ]+\p{L}{3,9}[-., ]+\d{2,4}|\p{L}{3,9}[. ]+\d{1,2}, *\d{4})\b", "write dates as 2024-01-31"),
    (r"^\d{4}(-?Q[1-4]|-(0[1-9]|1[0-2]))$", "write a quarter or month as its first day, 2024-01-01"),
    (r"^[-+]?([$€£¥]\s?\d[\d.,']*|\d[\d.,']*\s?[%$€£¥]|\d{1,3}([,' ]\d{3}){2,})$", "write plain numbers, such as 1234.5"),
    (
        r"^[-+]?((\d[\d.,]*\s+|\d+[.,]\d+)[\p{L}°]\S{0,9}|\d+(km|cm|mm|m2|m²|kg|mg))$",
        "if that is a unit, write the number alone; --unit names it",
    ),
)
"""What is text here and was meant as a number or a date, and how to write it."""


def infer_kind(series: pl.Series) -> Kind:
    """The kind of a column, from all of its values. Raises TableError for a type that is no feature."""
    if series.dtype == pl.String:
        if _all_filled(series, series.cast(pl.Float64, strict=False)):
            return "numeric"
        if _all_filled(series, _flags(series)):
            return "boolean"
        return "datetime" if _all_filled(series, as_instants(series)) else "categorical"
    if series.dtype == pl.Boolean:
        return "boolean"
    if series.dtype in (pl.Date, pl.Datetime):
        return "datetime"
    if series.dtype.is_numeric() or series.dtype in (pl.Time, pl.Duration):
        return "numeric"
    _refuse_nested(series)
    return "categorical"


def column_values(
    series: pl.Series, kind: Kind, *, categories: Sequence[str] | None = None, integer: bool = False, rows: Rows
) -> NDArray[np.float64]:
    """A column as a column of `x`: [n] float64, NaN where missing or an unknown category.

    A time of day counts as seconds since midnight, a duration as seconds.

    Raises TableError with the data row for a value that is not of the kind, and for an infinite one.
    """
    if kind == "categorical":
        codes = {category: float(code) for code, category in enumerate(categories or ())}
        texts = as_texts(series, integer=integer)
        found = _replaced(texts, codes)
        if integer:  # 8001 is the category 08001, unless there is one 8001 too
            plain = _without_zeros(pl.Series(codes.keys(), dtype=pl.String))
            found = found.fill_null(_replaced(_without_zeros(texts), dict(zip(plain, codes.values(), strict=True)) | codes))
        return _floats(found)
    _refuse_nested(series)
    convert, wanted = {
        "numeric": (as_numbers, "a number"),
        "boolean": (_flags, "true or false"),
        "datetime": (as_instants, "an ISO date or time such as 2024-01-31T12:00:00Z"),
    }[kind]
    converted = convert(series)
    wrong = (series.is_not_null() & converted.is_null()).to_numpy()
    if wrong.any():
        i = int(wrong.argmax())
        if kind == "datetime" and series.dtype in (pl.Date, pl.Datetime):  # Python has no such date to show
            raise TableError(
                f"column {series.name!r} holds a date in data row {rows[i]} that is more than 290 000 years from now; make it "
                "missing, or correct it"
            )
        raise TableError(f"column {series.name!r} holds {series[i]!r} in data row {rows[i]}, which is not {wanted}")
    values = _floats(converted)
    infinite = np.isinf(values)
    if infinite.any():
        i = int(infinite.argmax())
        raise TableError(
            f"column {series.name!r} holds an infinite value ({values[i]}) in data row {rows[i]}; make it missing, or "
            "correct it"
        )
    return values


def codes(series: pl.Series) -> NDArray[np.int64]:
    """Group codes: [n], the same for rows with the same value. Raises TableError where a value is missing."""
    _require_all(series, "group")
    return (as_texts(series).rank("dense") - 1).cast(pl.Int64).to_numpy()


def moments(series: pl.Series, *, rows: Rows) -> NDArray[np.float64]:
    """The sortable values of a time column: [n], numbers or epoch seconds. Raises TableError where it has none."""
    _require_all(series, "time")
    kind = infer_kind(series)
    if kind not in ("numeric", "datetime"):
        raise TableError(
            f"time column {series.name!r} is {kind}, which has no order; give one of numbers or ISO dates{meaning(series)}"
        )
    return column_values(series, kind, rows=rows)


def weight_values(series: pl.Series, *, rows: Rows) -> NDArray[np.float64]:
    """Row weights: [n], none negative, not all zero. Raises TableError where they are not."""
    _require_all(series, "weight")
    values = column_values(series, "numeric", rows=rows)
    if values.min() < 0:
        i = int(values.argmin())
        raise TableError(f"weight column {series.name!r} holds {values[i]:g} in data row {rows[i]}; weights are 0 or more")
    if not values.any():
        raise TableError(f"weight column {series.name!r} is 0 in every row; at least one row must count")
    return values


def missing(series: pl.Series) -> NDArray[np.bool_]:
    """Whether each value is missing: null, or NaN in a float column."""
    return (series.is_null() | series.is_nan() if series.dtype.is_float() else series.is_null()).to_numpy()


def missing_count(series: pl.Series) -> int:
    """The number of missing values."""
    return int(missing(series).sum())


def leave_out(name: str) -> str:
    """The way out where a column cannot be a feature."""
    return f"leave it out with --exclude {shlex.quote(name)}"


def meaning(series: pl.Series) -> str:
    """What most values of a text column that are no numbers may have meant."""
    if series.dtype != pl.String:
        return ""
    texts = series.filter(as_numbers(series).is_null()).drop_nulls()
    for pattern, advice in _UNREAD:
        meant = texts.filter(texts.str.contains(pattern))
        if 2 * len(meant) > len(texts):
            return f" ({meant[0]!r}: {advice})"
    return ""


def as_texts(series: pl.Series, *, integer: bool = False) -> pl.Series:
    """Values as text; those of a float column, and with `integer` of a text column, without a trailing `.0`."""
    _refuse_nested(series)
    if series.dtype.is_float():
        series, integer = series.fill_nan(None), True
    if series.dtype == pl.Duration:  # polars casts it to no text
        series = series.cast(pl.Int64)
    text = series.cast(pl.String)
    return text.str.replace(r"\.0+$", "") if integer else text


def as_numbers(series: pl.Series) -> pl.Series:
    """As float64, null where it is no number; times of day and durations in seconds."""
    if series.dtype == pl.Duration:
        return _seconds(series.dt.total_microseconds(), per_second=10**6)
    if series.dtype == pl.Time:
        return _seconds(series.cast(pl.Int64), per_second=10**9)
    if series.dtype == pl.String or series.dtype == pl.Boolean or series.dtype.is_numeric():
        return series.cast(pl.Float64, strict=False)
    return all_null(series)


def as_instants(series: pl.Series) -> pl.Series:
    """Seconds since 1970 UTC of dates, datetimes and ISO text; naive ones are UTC."""
    if series.dtype == pl.String:
        frame = series.alias("text").to_frame()
        iso = pl.col("text").str.replace(" ", "T", literal=True)
        iso = pl.when(iso.str.contains(r"^\d{4}-\d{2}-\d{2}")).then(iso)
        readings = [iso.str.to_datetime(form, strict=False, time_unit="us") for form in _ISO_FORMATS]
        naive = [reading.dt.replace_time_zone("UTC") for reading in readings[:3]]
        instants = frame.select(pl.coalesce(*naive, *readings[3:])).to_series()
    elif series.dtype in (pl.Date, pl.Datetime):
        instants = series.cast(pl.Datetime("us", getattr(series.dtype, "time_zone", None)), strict=False)
    else:
        return all_null(series)
    return _seconds(instants.dt.epoch("us"), per_second=10**6)


def all_null(series: pl.Series) -> pl.Series:
    """As many nulls."""
    return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)


def _require_all(series: pl.Series, role: str) -> None:
    missing = missing_count(series)
    if missing:
        raise TableError(f"{role} column {series.name!r} is missing in {missing} of {len(series)} rows; every row needs one")


def _without_zeros(texts: pl.Series) -> pl.Series:
    """Whole numbers as text, without leading zeros."""
    return texts.str.replace(r"^(-?)0+(\d)", "$1$2")


def _replaced(texts: pl.Series, numbers: Mapping[str, float]) -> pl.Series:
    return texts.replace_strict(list(numbers), list(numbers.values()), default=None, return_dtype=pl.Float64)


def _refuse_nested(series: pl.Series) -> None:
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        raise TableError(
            f"column {series.name!r} has the type {series.dtype.base_type()}, which is no single value a row; "
            f"{leave_out(series.name)}, or spread it over columns of its own"
        )


def _flags(series: pl.Series) -> pl.Series:
    """1 and 0, also where a new table writes a boolean column as 1 and 0."""
    if series.dtype == pl.Boolean or series.dtype.is_numeric():
        values = series.cast(pl.Float64)
        return values.set(~values.is_in([0.0, 1.0]) & values.is_not_nan(), None)
    words = FLAGS | {"1": 1.0, "0": 0.0}
    lower = series.cast(pl.String, strict=False).str.to_lowercase()
    return lower.replace_strict(list(words), list(words.values()), default=None, return_dtype=pl.Float64)


def _seconds(counts: pl.Series, *, per_second: int) -> pl.Series:
    """The float nearest to each count of fractions of a second: as the service has it, which divides integers."""
    # Divided by NumPy: polars multiplies with the reciprocal, and 60.5 s become 60.50000000000001.
    floats = _floats(counts)
    whole = counts // per_second
    split = _floats(whole) + _floats(counts - whole * per_second) / per_second  # two roundings; they show near 1970 alone
    seconds = np.where(np.abs(floats) < 2**53, floats / per_second, split)  # larger counts were rounded already as floats
    return pl.Series(counts.name, seconds, nan_to_null=True)


def _all_filled(series: pl.Series, converted: pl.Series) -> bool:
    return converted.count() == series.count()


def _floats(series: pl.Series) -> NDArray[np.float64]:
    return series.cast(pl.Float64).fill_null(np.nan).to_numpy()
