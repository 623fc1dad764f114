from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from training.columns import codes, infer_kind
from training.describe import describe
from training.errors import TableError

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2.5e3", None, ".5"], "numeric"),
        (["0", "1"], "numeric"),
        (["true", "No", "YES", "false"], "boolean"),
        (["2024-01-31", None], "datetime"),
        (["2024-01-31 12:00", "2024-01-31T12:00:00.5Z", "2024-01-31"], "datetime"),
        (["12-01-31"], "categorical"),
        (["2024-13-31"], "categorical"),
        (["1", "2", "many"], "categorical"),
        (["true", "maybe"], "categorical"),
    ],
)
def test_the_kind_of_text_is_what_all_of_its_values_are(values, kind):
    assert infer_kind(pl.Series("f", values)) == kind


@pytest.mark.parametrize(
    ("series", "kind", "values"),
    [
        (pl.Series("f", [1, None, 200], dtype=pl.UInt8), "numeric", [1, np.nan, 200]),
        (pl.Series("f", [-1, 2**62], dtype=pl.Int64), "numeric", [-1, 2.0**62]),
        (pl.Series("f", [1.5, float("nan")], dtype=pl.Float32), "numeric", [1.5, np.nan]),
        (pl.Series("f", [Decimal("1.25"), Decimal(-2)]), "numeric", [1.25, -2]),
        (pl.Series("f", [True, None, False]), "boolean", [1, np.nan, 0]),
        (pl.Series("f", [date(2024, 1, 31), None]), "datetime", [NOON - 43200, np.nan]),
        (pl.Series("f", ["2024-01-31T12:00:00.5"]).str.to_datetime(time_unit="ns"), "datetime", [NOON + 0.5]),
        (
            pl.Series("f", ["2024-01-31T12:00:00"]).str.to_datetime().dt.replace_time_zone("Europe/Berlin"),
            "datetime",
            [NOON - 3600],
        ),
        (pl.Series("f", [time(0, 1, 0, 500_000)]), "numeric", [60.5]),
        (pl.Series("f", [timedelta(minutes=1, milliseconds=500)]), "numeric", [60.5]),
        (pl.Series("f", ["b", "a", None], dtype=pl.Categorical), "categorical", [1, 0, np.nan]),
        (pl.Series("f", ["b", "a"], dtype=pl.Enum(["b", "a", "c"])), "categorical", [1, 0]),
    ],
)
def test_every_single_value_type_of_parquet_has_a_kind_and_values(series, kind, values):
    column, found, _ = describe(series, categorical=False, max_categories=9, rows=np.arange(1, len(series) + 1))
    assert column.kind == kind
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "series",
    [
        pl.Series("f", [[1], [2]]),
        pl.Series("f", [{"a": 1}]),
        pl.Series("f", [b"x"]),
        pl.Series("f", [[1, 2]] * 2, dtype=pl.Array(pl.Int8, 2)),
    ],
)
@pytest.mark.parametrize("categorical", [True, False])
def test_nested_and_binary_columns_are_refused(series, categorical):
    with pytest.raises(TableError, match="no single value a row; leave it out with --exclude f"):
        describe(series, categorical=categorical, max_categories=9, rows=np.arange(1, 3))


@pytest.mark.parametrize("values", [[2, 1, 2], ["b", "a", "b"], [2.5, 1.0, 2.5], [timedelta(2), timedelta(1), timedelta(2)]])
def test_values_of_any_type_make_groups(values):
    groups = codes(pl.Series("g", values))
    assert groups[0] == groups[2] != groups[1]
    assert set(groups.tolist()) == {0, 1}


def test_numbers_longer_than_any_id_are_texts():
    column, *_ = describe(pl.Series("k", ["1" * 5000, "2" * 5000]), categorical=True, max_categories=9, rows=np.arange(2))
    assert (column.integer, column.categories) == (False, ["1" * 5000, "2" * 5000])
