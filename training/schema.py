"""What the columns of a table are, and their values as the rows of `x` and `y`.

A `pl.Series` here is a column as `files.scan` gives it: text without blanks around it and null where missing, or a type
of Parquet. Rows are named in errors as data rows of the file: data row 1 is the first below the header.
"""

import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.manifest import SAME_VALUE, Column, Kind, Target
from models.transforms import TRANSFORMS
from models.words import FLAGS, MISSING
from training.errors import TableError
from training.files import require_columns

Rows = NDArray[np.int64]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MAX_CATEGORIES = 256
TEXT_VALUES = 100
"""Text with more different values than this, and in more than half of its rows, is an id or free text."""

_FEW_VALUES, _ROWS_OF_A_VALUE = 256, 10
_LARGEST_VALUE = 1e300
"""The difference of larger ones may have no float64."""
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
_EXCEL_ERRORS = ("#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!")
"""What Excel writes for a formula that failed; its #N/A is a missing value."""


def known_words(columns: Sequence[Column]) -> dict[str, frozenset[str]]:
    """By column, categories that elsewhere are words for a missing value: a model may be from before the word was one."""
    return {column.name: MISSING.intersection(column.categories or ()) for column in columns}


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


def infer_kind(series: pl.Series) -> Kind:
    """The kind of a column, from all of its values. Raises TableError for a type that is no feature."""
    if series.dtype == pl.String:
        if _all_filled(series, series.cast(pl.Float64, strict=False)):
            return "numeric"
        if _all_filled(series, _flags(series)):
            return "boolean"
        return "datetime" if _all_filled(series, _instants(series)) else "categorical"
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
        texts = _texts(series, integer=integer)
        found = _replaced(texts, codes)
        if integer:  # 8001 is the category 08001, unless there is one 8001 too
            plain = _without_zeros(pl.Series(codes.keys(), dtype=pl.String))
            found = found.fill_null(_replaced(_without_zeros(texts), dict(zip(plain, codes.values(), strict=True)) | codes))
        return _floats(found)
    _refuse_nested(series)
    convert, wanted = {
        "numeric": (_numbers, "a number"),
        "boolean": (_flags, "true or false"),
        "datetime": (_instants, "an ISO date or time such as 2024-01-31T12:00:00Z"),
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


def target_values(series: pl.Series, transform: str, *, rows: Rows) -> NDArray[np.float64]:
    """A target in raw units: [n] float64, NaN where missing. Raises TableError where it cannot be one."""
    name = series.name
    numbers = _numbers(series) if series.dtype == pl.String or series.dtype.is_numeric() else _nothing(series)
    wrong = (series.is_not_null() & numbers.is_null()).to_numpy()
    if wrong.any():
        i, hint = int(wrong.argmax()), _hint(series.filter(wrong))
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


def codes(series: pl.Series) -> NDArray[np.int64]:
    """Group codes: [n], the same for rows with the same value. Raises TableError where a value is missing."""
    _require_all(series, "group")
    return (_texts(series).rank("dense") - 1).cast(pl.Int64).to_numpy()


def moments(series: pl.Series, *, rows: Rows) -> NDArray[np.float64]:
    """The sortable values of a time column: [n], numbers or epoch seconds. Raises TableError where it has none."""
    _require_all(series, "time")
    kind = infer_kind(series)
    if kind not in ("numeric", "datetime"):
        raise TableError(
            f"time column {series.name!r} is {kind}, which has no order; give one of numbers or ISO dates{_hint(series)}"
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


def _require_all(series: pl.Series, role: str) -> None:
    missing = missing_count(series)
    if missing:
        raise TableError(f"{role} column {series.name!r} is missing in {missing} of {len(series)} rows; every row needs one")


def _categories(series: pl.Series, max_categories: int, *, named: bool, rows: Rows) -> tuple[list[str], bool, list[str]]:
    """The values to keep, whether all of them are whole numbers, and notes on what was decided."""
    name, notes = series.name, []
    mixed = ""
    if series.dtype == pl.String and not named:
        _refuse_excel_errors(series, rows)
        mixed = _mixed(series, rows)
    texts = _texts(series)
    integer = bool(texts.drop_nulls().str.contains(r"^-?\d{1,100}(\.0+)?$").all())
    if integer:
        texts = _texts(series, integer=True)
    counts = texts.drop_nulls().value_counts(name="rows").sort(["rows", name], descending=[True, False])
    filled = int(counts["rows"].sum())
    if not named and counts.height > (0 if mixed else TEXT_VALUES) and counts.height * 2 > filled:
        reason = mixed or f"it reads as an id or free text{_hint(series)}"
        raise TableError(
            f"column {name!r} is text with {counts.height} different values in {filled} rows; {reason}: "
            f"{leave_out(name)}, or keep it with --categorical {shlex.quote(name)}"
        )
    why = f": {mixed}" if mixed else "" if named else _hint(series)
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


def leave_out(name: str) -> str:
    """The way out where a column cannot be a feature."""
    return f"leave it out with --exclude {shlex.quote(name)}"


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
    for what, converted in (("numbers", _numbers(series)), ("ISO dates", _instants(series))):
        if converted.count() * 2 > series.count():
            i = int((series.is_not_null() & converted.is_null()).to_numpy().argmax())
            way_out = _hint(series.filter(converted.is_null())) or " (write an empty cell or NA where that means missing)"
            return f"most of its values are {what}, but data row {rows[i]} holds {series[i]!r}{way_out}"
    return ""


def _texts(series: pl.Series, *, integer: bool = False) -> pl.Series:
    """Values as text; those of a float column, and with `integer` of a text column, without a trailing `.0`."""
    _refuse_nested(series)
    if series.dtype.is_float():
        series, integer = series.fill_nan(None), True
    if series.dtype == pl.Duration:  # polars casts it to no text
        series = series.cast(pl.Int64)
    text = series.cast(pl.String)
    return text.str.replace(r"\.0+$", "") if integer else text


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


def _numbers(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Duration:
        return _seconds(series.dt.total_microseconds(), per_second=10**6)
    if series.dtype == pl.Time:
        return _seconds(series.cast(pl.Int64), per_second=10**9)
    if series.dtype == pl.String or series.dtype == pl.Boolean or series.dtype.is_numeric():
        return series.cast(pl.Float64, strict=False)
    return _nothing(series)


def _flags(series: pl.Series) -> pl.Series:
    """1 and 0, also where a new table writes a boolean column as 1 and 0."""
    if series.dtype == pl.Boolean or series.dtype.is_numeric():
        values = series.cast(pl.Float64)
        return values.set(~values.is_in([0.0, 1.0]) & values.is_not_nan(), None)
    words = FLAGS | {"1": 1.0, "0": 0.0}
    lower = series.cast(pl.String, strict=False).str.to_lowercase()
    return lower.replace_strict(list(words), list(words.values()), default=None, return_dtype=pl.Float64)


def _instants(series: pl.Series) -> pl.Series:
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
        return _nothing(series)
    return _seconds(instants.dt.epoch("us"), per_second=10**6)


def _seconds(counts: pl.Series, *, per_second: int) -> pl.Series:
    """The float nearest to each count of fractions of a second: as the service has it, which divides integers."""
    # Divided by NumPy: polars multiplies with the reciprocal, and 60.5 s become 60.50000000000001.
    floats = _floats(counts)
    whole = counts // per_second
    split = _floats(whole) + _floats(counts - whole * per_second) / per_second  # two roundings; they show near 1970 alone
    seconds = np.where(np.abs(floats) < 2**53, floats / per_second, split)  # larger counts were rounded already as floats
    return pl.Series(counts.name, seconds, nan_to_null=True)


def _nothing(series: pl.Series) -> pl.Series:
    return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)


def _all_filled(series: pl.Series, converted: pl.Series) -> bool:
    return converted.count() == series.count()


def _floats(series: pl.Series) -> NDArray[np.float64]:
    return series.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _hint(series: pl.Series) -> str:
    """What most values of a text column that are no numbers may have meant."""
    if series.dtype != pl.String:
        return ""
    texts = series.filter(_numbers(series).is_null()).drop_nulls()
    for pattern, advice in _UNREAD:
        meant = texts.filter(texts.str.contains(pattern))
        if 2 * len(meant) > len(texts):
            return f" ({meant[0]!r}: {advice})"
    return ""
