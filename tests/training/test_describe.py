import re
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from service.codecs.cells import codes_of, read_cell
from service.codecs.cells import seconds_since_1970 as seconds_of_request
from training.describe import describe
from training.errors import TableError
from training.schema import encode

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC).timestamp()


def described(values, *, dtype=None, categorical=False, max_categories=256):
    series = pl.Series("f", values, dtype=dtype, strict=False)
    rows = np.arange(1, len(series) + 1)
    return describe(series, categorical=categorical, max_categories=max_categories, rows=rows)


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
