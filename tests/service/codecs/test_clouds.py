import pytest

from service.codecs.clouds import as_v1
from service.errors import InvalidRequestError

ROWS = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(
    "request_",
    [
        {"instances": ROWS},
        {"dataframe_records": ROWS},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]], "index": [0, 1]}},
        {"inputs": ROWS},
        {"inputs": {"a": [1, 3], "b": [2, 4]}},
    ],
)
def test_rows_in_every_form(request_):
    assert as_v1(request_) == {"instances": ROWS}


def test_options_stand_beside_the_rows_or_in_parameters():
    assert as_v1({"instances": [], "coverage": 0.5, "parameters": {"samples": 3}}) == {
        "instances": [], "coverage": 0.5, "samples": 3,
    }  # fmt: skip
    assert as_v1({"instances": [], "parameters": None}) == {"instances": []}
    assert as_v1({"inputs": [], "params": {"coverage": 0.5}}) == {"instances": [], "coverage": 0.5}


def test_data_without_columns_are_rows_in_the_models_order():
    assert as_v1({"dataframe_split": {"data": [[1, 2]]}}) == {"instances": [[1, 2]]}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "the request has no rows; give one of instances, dataframe_split, dataframe_records, inputs"),
        ({"instances": [], "inputs": []}, "the request has instances and inputs; give one of"),
        ({"instances": [], "parameters": 3}, "'parameters' is a number; give an object"),
        ({"instances": [], "params": 3}, "'params' is a number; give an object"),
        ({"dataframe_split": []}, "'dataframe_split' is not an object of columns and data"),
        ({"dataframe_split": {"columns": "ab", "data": []}}, "'dataframe_split' is not an object of columns and data"),
        ({"dataframe_split": {"columns": [1], "data": [[1]]}}, "'dataframe_split' names a column a number; give texts"),
        (
            {"dataframe_split": {"columns": ["a"], "data": [[1], [1, 2]]}},
            "row 1 of 'dataframe_split' has 2 values; there are 1",
        ),
        ({"dataframe_split": {"columns": ["a"], "data": [1]}}, "row 0 of 'dataframe_split' is a number; there are 1 columns"),
        ({"inputs": {"a": [1], "b": [1, 2]}}, "'inputs' has columns that are no arrays of one length"),
        ({"inputs": {"a": 1}}, "'inputs' has columns that are no arrays of one length"),
        ({"dataframe_split": {"columns": ["a", "b", "a"], "data": []}}, "'dataframe_split' names the column 'a' twice"),
        (  # very many, which must not take long
            {"dataframe_split": {"columns": [*map(str, range(500_000)), "b", "b"], "data": []}},
            "'dataframe_split' names the column 'b' twice",
        ),
        ({"inputs": None}, "'inputs' is null; give an array of rows"),
        ({"dataframe_records": {"a": [1]}}, "'dataframe_records' is an object; give an array of rows"),
    ],
)
def test_what_is_wrong_is_said(request_, sentence):
    with pytest.raises(InvalidRequestError) as caught:
        as_v1(request_)
    assert caught.value.sentence.startswith(sentence)
