import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import Column
from service.codecs.features import features_of, read_instances
from service.codecs.unusual import unknown_category_problems
from tests.model_files import MIXED, NUMERIC

NUMERIC_FEATURES = features_of(NUMERIC)
MIXED_FEATURES = features_of(MIXED)

numbers = st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)


def array_of(instances, features=NUMERIC_FEATURES):
    x, unknown, problems = read_instances(instances, features)
    assert not problems
    assert not unknown
    return x


def problems_of(instances, features=NUMERIC_FEATURES):
    return [(p.row, p.feature, p.problem) for p in read_instances(instances, features)[2]]


def one(kind, value, **facts):
    """x of one row of one column."""
    x, unknown, problems = read_instances([[value]], features_of([Column(name="c", kind=kind, **facts)]))
    assert not problems
    return math.nan if unknown else x[0, 0]


@given(st.lists(st.tuples(numbers, numbers)))
def test_numbers_arrive_as_they_are_whether_rows_are_arrays_or_objects_in_any_order(rows):
    expected = np.array([[math.nan if v is None else float(v) for v in row] for row in rows]).reshape(-1, 2)
    np.testing.assert_array_equal(array_of([list(row) for row in rows]), expected)
    np.testing.assert_array_equal(array_of([{"a": a, "b": b} for a, b in rows]), expected)
    np.testing.assert_array_equal(array_of([{"b": b, "a": a} for a, b in rows]), expected)


@given(st.lists(st.tuples(numbers, numbers), min_size=1))
def test_the_column_by_column_path_reads_numbers_as_the_fast_path_does(rows):
    mixed = [[a, b, "red", True, 1.65e9] for a, b in rows]
    np.testing.assert_array_equal(array_of(mixed, MIXED_FEATURES)[:, :2], array_of([list(row) for row in rows]))


def test_an_absent_number_and_null_are_missing():
    np.testing.assert_array_equal(array_of([{"b": 1}, {"a": None, "b": 1}, {}]), [[math.nan, 1], [math.nan, 1], [math.nan] * 2])


def test_a_single_feature_is_read_from_objects():
    assert array_of([{"c": 3}], features_of([Column(name="c", kind="numeric")])) == [[3.0]]


@pytest.mark.parametrize("text", ["1970-01-02", "1970-01-02T00:00:00Z", "1970-01-02T01:00:00+01:00", "1970-01-02T00:00"])
def test_a_datetime_is_iso_8601_in_utc_unless_it_names_a_zone(text):
    assert one("datetime", text) == 86400.0


def test_a_datetime_may_be_epoch_seconds():
    assert one("datetime", 86400.5) == 86400.5


@pytest.mark.parametrize("value", [True, 1, 1.0])
def test_a_boolean_is_true_or_one(value):
    assert one("boolean", value) == 1.0


@pytest.mark.parametrize("value", [3, 3.0, "3", "3.0", " 3.00 "])
def test_a_whole_number_category_may_be_sent_as_number_or_text(value):
    assert one("categorical", value, categories=["1", "3"], integer=True) == 1.0


@pytest.mark.parametrize("value", ["4", 4, 3.5, "", "3.5", "3."])
def test_an_unknown_category_counts_as_missing(value):
    assert math.isnan(one("categorical", value, categories=["1", "3"], integer=True))


def test_a_text_of_nothing_but_noughts_is_an_unknown_category():
    features = features_of([Column(name="c", kind="categorical", categories=["1", "3"], integer=True)])
    assert [item.value for item in read_instances([[".0"]], features)[1]] == [".0"]


@pytest.mark.parametrize("value", [True, 1.0])
def test_true_is_no_category_1(value):
    features = features_of([Column(name="c", kind="categorical", categories=["1", "3"], integer=True)])
    assert bool(read_instances([[value]], features)[2]) == (value is True)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("row", [0, 150, 299])
@pytest.mark.parametrize("others", [0.5, 1, None])
def test_a_flag_among_many_numbers_is_found(value, row, others):
    instances = [[2, others] for _ in range(300)]
    assert array_of(instances).shape == (300, 2)
    instances[row][1] = value
    ((problem,),) = read_instances(instances, NUMERIC_FEATURES)[2:]
    assert (problem.row, problem.feature) == (row, "b")
    assert "is a boolean; give a number" in problem.problem


def test_every_problem_of_a_request_is_found_with_row_and_feature():
    instances = [[1, "2"], {"a": True, "B": 1}, [1], 5, {"a": 1, "b": 2}, [None, {"x": 1}]]
    assert problems_of(instances) == [
        (0, "b", "'2' is a text; give a number, without quotes"),
        (1, "B", "is no feature of this model"),
        (1, "a", "true is a boolean; give a number"),
        (2, None, "is an array of 1; give an object of feature names, or an array of 2 (a, b)"),
        (3, None, "is a number; give an object of feature names, or an array of 2 (a, b)"),
        (5, "b", "{...} is an object; give a number"),
    ]


def test_what_is_said_of_a_long_name_or_text_takes_little_memory():
    name, features = "colours" * 500_000, features_of(MIXED)
    row = {"a": name, "colour": name, name: 1}
    tracemalloc.start()
    try:
        _, unknown, problems = read_instances([row], features)
        problems += unknown_category_problems(unknown, features)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(problems) == 3
    assert peak < 4 * len(name)  # looking for names that are like it would take ten times that


def test_a_misspelt_feature_is_told_the_nearest_names():
    features = features_of([Column(name="Cement", kind="numeric"), Column(name="Water", kind="numeric")])
    assert problems_of([{"cement": 1}], features) == [(0, "cement", "is no feature of this model; did you mean 'Cement'?")]


def test_the_problem_of_each_kind_says_what_would_be_right():
    found = {feature: problem for _, feature, problem in problems_of([[1, 2, 3, "ja", "1st May"]], MIXED_FEATURES)}
    assert found["open"] == "'ja' is a text; give true or false (or 1 or 0)"
    assert found["colour"] == "3 is a number; give a text: blue, green, red"
    assert found["when"].startswith("'1st May' is no date; give an ISO 8601 date")


def test_texts_are_read_as_in_a_table():
    x, unknown, problems = read_instances([[1, 2, " red ", "Yes", " 2020-01-02 "], [1, 2, " ", "", ""]], MIXED_FEATURES)
    assert (unknown, problems) == ([], [])
    assert x[0, 2:].tolist() == [2.0, 1.0, 1577923200.0]
    assert np.isnan(x[1, 2:]).all()


@pytest.mark.parametrize("digits", ["1" * 20, "1" * 9, "20200102030405"])
def test_a_row_of_digits_is_no_date(digits):
    assert [problem[1] for problem in problems_of([[1, 2, "red", True, digits]], MIXED_FEATURES)] == ["when"]
    assert problems_of([[1, 2, "red", True, "20200102"]], MIXED_FEATURES) == []


def test_a_request_full_of_problems_is_not_searched_to_its_end():
    assert len(problems_of([["x", "y"]] * 10_000)) == 42
    assert len(problems_of([{f"n{i}": 1 for i in range(10_000)}])) == 21
    assert len(problems_of([1] * 10_000)) == 21


def test_the_first_unknown_names_alone_are_told_what_they_are_like():
    names = [f"when{number}" for number in range(9)]
    (row,) = [read_instances([dict.fromkeys(names)], MIXED_FEATURES)[2]]
    assert [problem.feature for problem in row] == names
    assert ["did you mean 'when'?" in problem.problem for problem in row] == [True] * 3 + [False] * 6
    many = features_of([Column(name=f"f{number}", kind="numeric") for number in range(201)])
    assert "did you mean" not in read_instances([{"f999": 1}], many)[2][0].problem


def test_a_float_that_may_stand_for_several_whole_numbers_is_no_category():
    ids = [str(2**53 + more) for more in (0, 1)]
    features = features_of([Column(name="c", kind="categorical", categories=ids, integer=True)])
    x, unknown, problems = read_instances([{"c": 2**53 + 1}, {"c": f"{2**53}.0"}], features)
    assert (x.tolist(), unknown, problems) == ([[1], [0]], [], [])
    _, _, (problem,) = read_instances([{"c": 2.0**53}], features)
    assert str(problem).endswith("may stand for several whole numbers; give it as a whole number, or as a text")
