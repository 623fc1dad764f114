import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from models.manifest import Column, Target
from service.codecs.cells import codes_of, read_cell
from service.codecs.cells import seconds_since_1970 as seconds_of_request
from training.errors import TableError
from training.schema import codes, describe, encode, encode_targets, few_values, infer_kind, values_with

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC).timestamp()


def described(values, *, dtype=None, categorical=False, max_categories=256):
    series = pl.Series("f", values, dtype=dtype, strict=False)
    rows = np.arange(1, len(series) + 1)
    return describe(series, categorical=categorical, max_categories=max_categories, rows=rows)


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


def test_a_time_zone_moves_the_instant_and_its_absence_means_utc():
    texts = ["2024-01-31T12:00:00Z", "2024-01-31T14:00:00+02:00", "2024-01-31 12:00:00", "2024-01-31T12:00"]
    texts += ["2024-01-31T14:00+02:00", "2024-01-31 12:00:00.250", "1969-12-31T23:59:59"]
    _, values, _ = described(texts)
    np.testing.assert_array_equal(values, [NOON] * 5 + [NOON + 0.25, -1])


def test_an_instant_is_the_same_number_in_a_table_and_in_a_request():
    rng = np.random.default_rng(0)
    counts = rng.integers(-62_135_596_800 * 10**6, 253_402_300_800 * 10**6, size=20_000)  # years 1 to 9999
    counts = [*counts, *rng.integers(-(10**10), 10**10, size=2_000), *(counts[:2_000] // 1000 * 1000)]
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(count)) for count in counts]
    texts = [moment.isoformat() for moment in moments] + ["9999-12-31 23:59:59.997", "0001-01-01T00:00:00.001"]
    _, values, _ = described(texts)
    assert values.tolist() == [seconds_of_request(text) for text in texts]
    _, stored, _ = described(pl.Series(moments, dtype=pl.Datetime("us", "UTC")))
    assert stored.tolist() == values[: len(moments)].tolist()


def test_a_numeric_column_has_range_quantiles_and_share_missing():
    column, _, notes = described([str(i) for i in range(100, -1, -1)] + [None])
    assert (column.minimum, column.maximum, column.integer) == (0, 100, True)
    assert column.quantiles == {"0.01": 1, "0.05": 5, "0.25": 25, "0.5": 50, "0.75": 75, "0.95": 95, "0.99": 99}
    assert column.missing == 1 / 102
    assert column.categories is None
    assert notes == []
    assert not described(["1", "1.5"])[0].integer


def test_categories_are_sorted_and_rare_ones_are_unknown():
    column, values, notes = described(["b"] * 5 + ["a"] * 4 + ["d", "c"], max_categories=3)
    assert column.categories == ["a", "b", "c"]  # of the equally rare ones the first by name
    np.testing.assert_array_equal(values, [1] * 5 + [0] * 4 + [np.nan, 2])
    assert notes == ["column 'f' keeps the 3 most frequent of 4 categories; the others (9.1% of its rows) count as unknown"]
    assert column.missing == 0


def test_integer_codes_named_categorical_sort_as_numbers_and_keep_their_zeros():
    column, values, _ = described(["10", "9", "007"], categorical=True)
    assert column.categories == ["007", "9", "10"]
    assert column.integer
    np.testing.assert_array_equal(values, [2, 1, 0])


@pytest.mark.parametrize("dtype", [pl.Int16, pl.Float64, pl.String])
def test_a_code_is_the_same_category_whatever_type_holds_it(dtype):
    column, _, _ = described([1, 2, 3], categorical=True)
    series = pl.Series("f", ["3.0", "1.0", None] if dtype == pl.String else [3, 1, None], dtype=dtype)
    x, unknown = encode(series.to_frame(), [column])
    np.testing.assert_array_equal(x[:, 0], [2, 0, np.nan])
    assert unknown == {}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        *((value, 2) for value in ("08001", "8001", "008001", "8001.0", 8001, 8001.0)),
        *((value, 1) for value in ("7", "07", "0007", 7)),
        ("007", 0),
        *((value, 3) for value in ("8002", "08002", 8002)),
        *((value, None) for value in ("-8001", "80010", "0", "x08001", 800)),
    ],
)
def test_a_code_with_leading_zeros_is_the_same_category_in_a_table_and_in_a_request(value, code):
    column, _, _ = described(["007", "7", "08001", "8002"], categorical=True)
    assert column.categories == ["007", "7", "08001", "8002"]
    x, unknown = encode(pl.DataFrame({"f": [value]}), [column])
    np.testing.assert_array_equal(x, [[np.nan if code is None else code]])
    assert unknown == ({"f": 1} if code is None else {})
    assert read_cell(value, column, codes_of(column)) == code


@pytest.mark.parametrize(("value", "code"), [("0", 1), ("00", 0), ("000", 1), (0, 1), (0.0, 1), ("0.0", 1)])
def test_a_code_of_noughts_is_the_category_0_unless_it_is_one_of_its_own(value, code):
    column, _, _ = described(["00", "0", "1"], categorical=True)
    column = column.model_copy(update={"categories": ["00", "0", "1"]})
    if not isinstance(value, float):
        x, _ = encode(pl.DataFrame({"f": [value]}), [column])
        assert x.tolist() == [[code]]
    for categories in (["00", "0", "1"], ["0", "00", "1"]):
        other = column.model_copy(update={"categories": categories})
        assert categories[int(read_cell(value, other, codes_of(other)))] == ["00", "0"][code]


def test_text_of_too_many_values_is_refused_with_the_likely_reason():
    with pytest.raises(TableError, match="text with 101 different values in 200 rows; it reads as an id or free text"):
        described([f"id {i % 101}" for i in range(200)])
    assert len(described([f"id {i % 100}" for i in range(200)])[0].categories) == 100
    assert len(described([f"id {i % 101}" for i in range(203)])[0].categories) == 101
    assert len(described([f"id {i}" for i in range(200)], categorical=True)[0].categories) == 200
    with pytest.raises(TableError, match="most of its values are numbers, but data row 151 holds 'abc'"):
        described([str(i) for i in range(150)] + ["abc"])
    with pytest.raises(TableError, match="write decimals with a point"):
        described([f"{i},5" for i in range(150)])
    with pytest.raises(TableError, match="write dates as 2024-01-31"):
        described([f"{1 + i % 28}/{1 + i % 12}/{2000 + i}" for i in range(150)])


WAY_OUT = "(write an empty cell or NA where that means missing)"


def test_one_word_among_numbers_that_repeat_makes_categories_and_a_note():
    column, _, notes = described(["1", "2", "1", "4A", "2", "1"])
    assert column.categories == ["1", "2", "4A"]
    assert notes == [f"column 'f' is taken as categories: most of its values are numbers, but data row 4 holds '4A' {WAY_OUT}"]


def test_one_word_among_few_numbers_that_do_not_repeat_is_refused_unless_they_are_named_categories():
    areas = [*(f"{60 + i / 2}" for i in range(89)), "n.a."]
    with pytest.raises(TableError) as refused:
        described(areas)
    assert str(refused.value) == (
        "column 'f' is text with 90 different values in 90 rows; most of its values are numbers, but data row 90 holds 'n.a.' "
        f"{WAY_OUT}: leave it out with --exclude f, or keep it with --categorical f"
    )
    with pytest.raises(TableError, match="most of its values are ISO dates, but data row 3 holds 'soon'"):
        described(["2024-01-31", "2024-02-01", "soon"])
    assert len(described(areas, categorical=True)[0].categories) == 90


@pytest.mark.parametrize("word", ["#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!"])
def test_an_error_of_excel_is_no_category(word):
    with pytest.raises(TableError, match=re.escape(f"column 'f' holds '{word}' in data row 5, which Excel writes where")):
        described(["1", "1", "2", None, word, "2"])
    assert word in described(["a", "b", word], categorical=True)[0].categories


def test_the_way_out_of_mixed_values_is_what_the_others_may_have_meant():
    with pytest.raises(TableError, match=r"data row 3 holds '1,250' \('1,250': write 1,234 as 1234, .*\): leave it out"):
        described(["950", "980", "1,250"])


def test_one_other_date_among_iso_dates_makes_categories_and_a_note():
    dates = [f"2024-01-{1 + i % 28:02}" for i in range(400)]
    column, _, notes = described([*dates, None, "31/01/2024"])
    assert column.kind == "categorical"
    (note,) = notes
    assert note.startswith(
        "column 'f' is taken as categories: most of its values are ISO dates, but data row 402 holds '31/01/"
    )
    assert note.endswith("('31/01/2024': write dates as 2024-01-31)")
    assert described(["2024-01-31", "2024-01-31", "today", "today"])[2] == []
    assert described(["2024-01-31", "2024-01-31", "today"], categorical=True)[2] == []


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (["12,3", "4,5", None, "-1.234,5"], "('12,3': write decimals with a point)"),
        (["01.05.2023", "2.5.2023"], "('01.05.2023': write dates as 2024-01-31)"),
        (["2023/5/1", "2023/05/02", "soon"], "('2023/5/1': write dates as 2024-01-31)"),
        (["12%", "3.5 %"], "('12%': write plain numbers, such as 1234.5)"),
        (["$5", "-€1,200", "free"], "('$5': write plain numbers, such as 1234.5)"),
        (["1'234'567", "-2 345 678"], "(\"1'234'567\": write plain numbers, such as 1234.5)"),
        (["310,588", "-1,234,567", "99"], "('310,588': write 1,234 as 1234, or as 1.234 if the comma is a decimal comma)"),
        (["310,587.67", "12,000.5"], "('310,587.67': write 1,234 as 1234, or as 1.234 if the comma is a decimal comma)"),
        (["0,125", "0,250"], "('0,125': write decimals with a point)"),
        (["123.0 sqm", "1,250 m²"], "('123.0 sqm': if that is a unit, write the number alone; --unit names it)"),
        (["-1.5kg", "80kg", "21 °C"], "('-1.5kg': if that is a unit, write the number alone; --unit names it)"),
        (["19-Aug-2023", "1 May 24", "Aug 19, 2023"], "('19-Aug-2023': write dates as 2024-01-31)"),
        (["19-08-2023", "1-9-2023"], "('19-08-2023': write dates as 2024-01-31)"),
        (["2023Q3", "2023-Q4", "2024-01"], "('2023Q3': write a quarter or month as its first day, 2024-01-01)"),
    ],
)
def test_categories_that_were_meant_as_numbers_or_dates_are_noted(values, advice):
    column, _, notes = described(values)
    assert column.kind == "categorical"
    assert notes == [f"column 'f' is taken as categories {advice}"]
    assert described(values, categorical=True)[2] == []


@pytest.mark.parametrize(
    "values",
    [
        ["1.2.3", "1.2.4"],
        ["a,1", "b,2"],
        ["10.0.0.1", "x"],
        ["12%", "some", "more"],
        ["5-10", "10-15"],
        ["2019-20", "2020-21"],
        ["4A", "5B"],
        ["1st", "2nd"],
        ["2a 10", "12 Main Street"],
    ],
)
def test_other_categories_are_not(values):
    assert described(values)[2] == []


@pytest.mark.parametrize("value", [1.7e308, -1e308])
def test_a_stand_in_for_missing_near_the_largest_float_is_refused(value):
    with pytest.raises(
        TableError, match=r"holds -?1.*e\+308 in data row 2, about the largest that float64 has; make it missing"
    ):
        described([1.0, value, 3.0])


@pytest.mark.parametrize("values", [["3", None, "3"], ["a", "a"], ["yes", "yes"], ["2024-01-31"] * 2])
def test_a_constant_column_is_kept_and_noted(values):
    column, _, notes = described(values)
    assert column.name == "f"
    assert notes == ["column 'f' has the same value in every row that has one: it carries nothing"]


def test_a_column_that_counts_the_rows_is_noted():
    assert "counts the rows" in described(["7", "8", "9"])[2][0]
    assert described(["7", "9", "8"])[2] == []


@pytest.mark.parametrize(("values", "dtype"), [([None, None], pl.String), ([None], pl.Null), ([float("nan")], pl.Float64)])
def test_a_column_without_a_value_is_refused(values, dtype):
    with pytest.raises(TableError, match="column 'f' has no value in any row; leave it out with --exclude f"):
        described(values, dtype=dtype)


@pytest.mark.parametrize("values", [["1", "-inf", "2"], ["1", "-1e999", "2"], [1.0, -np.inf, 2.0]])
def test_an_infinite_value_is_refused_with_its_place(values):
    with pytest.raises(TableError, match=r"column 'f' holds an infinite value \(-inf\) in data row 2"):
        described(values)


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


def test_numbers_longer_than_any_id_are_texts():
    column, *_ = describe(pl.Series("k", ["1" * 5000, "2" * 5000]), categorical=True, max_categories=9, rows=np.arange(2))
    assert (column.integer, column.categories) == (False, ["1" * 5000, "2" * 5000])


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
