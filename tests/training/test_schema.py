from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from models.manifest import Column, Target
from training.describe import describe
from training.errors import TableError
from training.schema import encode, encode_targets, few_values, values_with

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2**31 - 1, pl.Date),
        (2_145_031_948, pl.Date),
        (-(2**31), pl.Date),
        (2**63 - 1, pl.Datetime("ms")),
        (2**63 - 1, pl.Datetime("ms", "Europe/Berlin")),
    ],
)
def test_a_date_beyond_all_years_is_refused_with_its_place(value, dtype):
    series = pl.Series("d", [1, None, value]).cast(pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)
    sentence = "column 'd' holds a date in data row 3 that is more than 290 000 years from now; make it missing"
    with pytest.raises(TableError, match=sentence):
        describe(series, categorical=False, max_categories=9, rows=np.arange(1, 4))
    with pytest.raises(TableError, match=sentence):
        encode(series.to_frame(), [Column(name="d", kind="datetime")])


COLUMNS = [
    Column(name="n", kind="numeric"),
    Column(name="b", kind="boolean"),
    Column(name="c", kind="categorical", categories=["u", "v"]),
    Column(name="d", kind="datetime"),
]


def test_a_new_table_is_encoded_by_name():
    frame = pl.DataFrame(
        {
            "d": ["2024-01-31T12:00Z", None, "2024-01-31"],
            "extra": ["x", "y", "z"],
            "c": ["v", "w", None],
            "b": ["Yes", "0", None],
            "n": ["1e3", None, "-2"],
        }
    )
    x, unknown = encode(frame, COLUMNS)
    np.testing.assert_array_equal(x, [[1000, 1, 1, NOON], [np.nan, 0, np.nan, np.nan], [-2, np.nan, np.nan, NOON - 43200]])
    assert unknown == {"c": 1}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("n", "many", "column 'n' holds 'many' in data row 12, which is not a number"),
        ("n", "inf", r"column 'n' holds an infinite value \(inf\) in data row 12"),
        ("b", "2", "column 'b' holds '2' in data row 12, which is not true or false"),
        ("d", "5", "column 'd' holds '5' in data row 12, which is not an ISO date"),
        ("b", 0.5, "column 'b' holds 0.5 in data row 12"),
        ("d", 5.0, "column 'd' holds 5.0 in data row 12"),
        ("n", [1], "no single value a row"),
        ("c", [1], "no single value a row"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_row(name, value, sentence):
    frame = pl.DataFrame({other.name: pl.Series([None, None], dtype=pl.String) for other in COLUMNS})
    with pytest.raises(TableError, match=sentence):
        encode(frame.with_columns(pl.Series(name, [None, value])), COLUMNS, rows=np.array([11, 12]))


def test_a_missing_feature_is_refused_with_the_nearest_names():
    with pytest.raises(TableError, match="the table has no column 'd'; there are 'n', 'b', 'c'"):
        encode(pl.DataFrame({"n": ["1"], "b": ["1"], "c": ["u"]}), COLUMNS)


def test_an_empty_batch_is_encoded_as_no_rows():
    x, unknown = encode(pl.DataFrame(schema=dict.fromkeys("nbcd", pl.String)), COLUMNS)
    assert x.shape == (0, 4)
    assert unknown == {}


def test_targets_of_a_new_table_keep_missing_values():
    targets = [Target(name="y", minimum=0, maximum=1), Target(name="z", minimum=0, maximum=1, transform="log")]
    y = encode_targets(pl.DataFrame({"z": [1, 2], "y": ["0.5", None]}), targets)
    np.testing.assert_array_equal(y, [[0.5, 1], [np.nan, 2]])
    with pytest.raises(TableError, match="target 'z' holds 0 in data row 8, and the transform log needs values above 0"):
        encode_targets(pl.DataFrame({"z": [1, 0], "y": [1, 2]}), targets, first_row=7)


@pytest.mark.parametrize(
    ("transform", "value", "domain"), [("log", 0.0, "above 0"), ("logit", 1.0, "between 0 and 1, both excluded")]
)
def test_a_value_outside_a_transform_is_refused_with_advice_that_also_holds_for_a_model_that_is_there(transform, value, domain):
    target = Target(name="y", minimum=0, maximum=1, transform=transform)
    with pytest.raises(TableError, match=domain) as refused:
        encode_targets(pl.DataFrame({"y": [0.5, value]}), [target])
    assert str(refused.value).endswith("; leave such rows out, or fit a model without this transform")


@pytest.mark.parametrize(("different", "few"), [(1, False), (2, True), (20, True), (21, False)])
def test_a_target_of_few_values_has_them(different, few):
    y = 0.1 * (np.arange(200) % different)
    y[100:] *= 1 + 1e-9  # 0.30000000000000004 and 0.3 are one
    assert few_values(y) == (pytest.approx(0.1 * np.arange(different), rel=1e-6) if few else None)
    assert few_values(np.arange(2570) % 257.0) is None, "too many, however often they are there"


def test_what_is_measured_once_a_group_is_no_target_of_few_values():
    y, groups = np.repeat([36.6, 37.1, 38.0, 40.2], 50), np.repeat(np.arange(4), 50)
    assert few_values(y) is not None
    assert few_values(y, groups) is None
    assert few_values(y, np.arange(200) % 25) is not None


def test_the_values_of_a_target_are_joined_by_new_ones_unless_these_are_many():
    known = [0.1, 0.2, 0.3]
    assert values_with(known, np.float64(np.float32([0.3, 0.1] * 3))) == known
    assert values_with(known, np.array([0.1] * 18 + [0.4] * 2)) == [0.1, 0.2, 0.3, 0.4]
    assert values_with(known, np.array([0.1] * 17 + [0.4, 0.5, 0.6])) is None
