import csv
import io

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import Column
from models.words import MISSING
from service.codecs.features import features_of
from service.codecs.tables import FORMATS, read_table, refuse_options
from service.codecs.terms import Limits, Terms
from service.errors import InvalidRequestError, TooLargeError
from service.predictions import Prediction
from tests.model_files import MIXED, NUMERIC

NUMERIC_FEATURES, MIXED_FEATURES = features_of(NUMERIC), features_of(MIXED)
NEITHER = (
    "the first line has 3 cells and none is a feature; give a header of feature names, or rows of all 2 features (a, b), "
    "with commas between"
)
CSV, NDJSON = FORMATS[b"text/csv"], FORMATS[b"application/x-ndjson"]


def read(body, query="", form=CSV, features=NUMERIC_FEATURES, **limits):
    text = body if isinstance(body, bytes) else body.encode()
    limits = Limits(**({"rows": 100, "answer_values": 10_000} | limits))
    return read_table(text, query.encode(), form, Terms(features, 1, 0.9, limits))


def refusal(*arguments, **more):
    with pytest.raises(InvalidRequestError) as caught:
        read(*arguments, **more)
    return [str(problem) for problem in caught.value.problems] or [caught.value.sentence]


@pytest.mark.parametrize("body", ["a,b\n1,2\n3,4\n", "b,a\r\n2,1\r\n4,3", "1,2\n3,4\n", '\ufeff"a", b\n\n" 1 ",2e0\n3,4.0\n'])
def test_csv_with_a_header_in_any_order_or_none(body):
    assert read(body).question.x.tolist() == [[1, 2], [3, 4]]


def test_an_empty_line_is_a_missing_value_where_there_is_one_column():
    one = features_of([NUMERIC[0].model_copy(update={"missing": 1})])
    assert read("\n\n", features=one).question.x.shape == (0, 1)
    for header in ("a\n", "\na\n", ""):
        np.testing.assert_equal(read(f"{header}1\n\n2\n", features=one).question.x, [[1], [np.nan], [2]])
    np.testing.assert_equal(read("\n1\n\n2\n", features=one).question.x, [[np.nan], [1], [np.nan], [2]])
    np.testing.assert_equal(read("b\n1\n\n2\n").question.x, [[np.nan, 1], [np.nan, np.nan], [np.nan, 2]])
    assert read("1,2\n\n3,4\n").question.x.tolist() == [[1, 2], [3, 4]]


def test_csv_of_all_kinds_of_columns():
    body = (
        "when,colour,open,b,a\n"
        "2021-01-01,red,true,4,0.5\n"
        "1609459200,?, 1 ,5,1.5\n"
    )  # fmt: skip
    expected = [[0.5, 4, 2, 1, 1609459200.0], [1.5, 5, np.nan, 1, 1609459200.0]]
    np.testing.assert_equal(read(body, features=MIXED_FEATURES).question.x, expected)


@pytest.mark.parametrize("word", sorted(MISSING))
def test_a_cell_that_is_missing_in_a_training_table_is_missing_here(word):
    request = read(f"a,b\n{word},2\n1,2\n")
    assert np.isnan(request.question.x).tolist() == [[True, False], [False, False]]
    assert request.warnings == {0: ["a is missing; it never was in training"]}


def test_a_word_for_a_missing_value_is_the_category_that_an_older_model_has():
    columns = (Column(name="colour", kind="categorical", categories=["#N/A", "red"]), Column(name="b", kind="numeric"))
    request = read("colour,b\n#N/A,1\nNA,#N/A\n", features=features_of(columns))
    np.testing.assert_equal(request.question.x, [[0, 1], [np.nan, np.nan]])


@pytest.mark.parametrize("cell", ["1_000", "٣", "nAn", "+nan", "0x1"])
def test_what_only_python_takes_for_a_number_is_a_text(cell):
    assert refusal(f"a,b\n{cell},2\n") == [f"row 0, feature 'a': {cell!r} is a text; give a number"]
    assert refusal("1,2\n", f"samples={cell}") == ["'samples' is a text; give a whole number from 0 to 10000"]


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e999"])
def test_a_threshold_is_finite(number):
    assert refusal("1,2\n", f"thresholds=4,{number}") == ["'thresholds' holds a text; give a number or an array of numbers"]


def test_a_column_that_is_left_out_is_missing():
    request = read("b\n2\n")
    assert np.isnan(request.question.x).tolist() == [[True, False]]


@pytest.mark.parametrize(("form", "body"), [(CSV, ""), (CSV, "a,b\n"), (NDJSON, ""), (NDJSON, "\n\n")])
def test_no_rows(form, body):
    assert read(body, form=form).question.x.shape == (0, 2)


def test_ndjson_rows_are_objects_or_arrays():
    assert read('{"b": 2, "a": 1}\n\n[3, 4]\n', form=NDJSON).question.x.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("form", [CSV, NDJSON])
def test_options_stand_in_the_query(form):
    query = "coverage=0.5,0.9&quantiles=0.1&thresholds=-1,4e0&samples=3&seed=7"
    question = read("", query, form=form).question
    assert (question.coverage, question.quantiles, question.thresholds) == ((0.5, 0.9), (0.1,), (-1.0, 4.0))
    assert (question.samples, question.seed) == (3, 7)
    assert read("", "coverage=", form=form).question.coverage == ()
    twice = read("", "coverage=0.9,0.5,0.9&thresholds=20,20.0", form=form).question
    assert (twice.coverage, twice.thresholds) == ((0.9, 0.5), (20.0,)), "each is a column, and no two have one name"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("coverages=0.5", "'coverages' is no option of the query; did you mean 'coverage'? (known: coverage, quantiles"),
        ("coverage=0.5&coverage=0.9", "'coverage' stands twice in the query; put commas between its values"),
        ("coverage=high", "'coverage' holds a text; give a number or an array of numbers"),
        ("coverage=90", "'coverage' 90 is not between 0 and 1"),
        ("samples=1,2", "'samples' is an array; give a whole number"),
        ("seed=1", "'seed' does nothing without 'samples'"),
        ("strict=perhaps", "'strict' is a text; give true or false"),
    ],
)
def test_what_is_wrong_with_the_query_is_said(query, sentence):
    assert refusal("1,2\n", query)[0].startswith(sentence)


def test_options_of_a_json_request_do_not_stand_in_the_query():
    refuse_options(b"")
    refuse_options(b"api-version=1&Coverage=2")
    with pytest.raises(InvalidRequestError, match="'coverage' stands in the query, which tables have; a JSON request has it"):
        refuse_options(b"trace=1&coverage=0.5")


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ("a,b\n1,x\n", ["row 0, feature 'b': 'x' is a text; give a number"]),
        ("a,b\n1,2\ninf,2\n1,-1e999\n", ["row 1, feature 'a': is infinite; give a finite number",
                                        "row 2, feature 'b': is infinite; give a finite number"]),
        ("a,b\n1\n1,2,3\n", ["row 0: has 1 cells; the header has 2", "row 1: has 3 cells; the header has 2"]),
        ("a,c\n1,2\n", ["column 'c' is no feature of this model"]),
        (",a\n0,1\n", ["a column has no name; write the table without its row index (index=False in pandas)"]),
        ("a,a\n1,2\n", ["column 'a' stands twice in the header"]),
        ("1,2,3\n", [NEITHER]),
        ("a;b\n1;2\n", [NEITHER.replace("3 cells", "1 cells")]),
        ('a,b\n"1,2\n', ["the body is not valid CSV: unexpected end of data"]),
        (b"a,b\n\xff,2\n", ["the body is not UTF-8 (byte 4)"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_csv_is_said(body, problems):
    assert refusal(body) == problems


def test_what_is_wrong_with_ndjson_is_said_by_line_or_row():
    assert refusal("[1, 2]\n{\n", form=NDJSON)[0].startswith("line 2 of the body is not valid JSON")
    not_finite = "row 1, feature 'b': nan is not a finite number; leave a missing value out or send null"
    assert refusal('[1, 2]\n\n{"b": NaN}\n', form=NDJSON) == [not_finite]
    assert refusal('[1, 2]\n\n[1, "2"]\n', form=NDJSON) == ["row 1, feature 'b': '2' is a text; give a number, without quotes"]


@pytest.mark.parametrize("form", [CSV, NDJSON])
def test_many_rows_are_numbered_through(form):
    lines = [f"{row},2" if form is CSV else f"[{row},2]" for row in range(2500)]
    question = read("\n".join(lines), form=form, rows=2500, answer_values=100_000).question
    assert question.x[:, 0].tolist() == list(range(2500))
    lines[2400] = "1,x" if form is CSV else '[1,"x"]'
    assert refusal("\n".join(lines), form=form, rows=2500, answer_values=100_000)[0].startswith(
        "row 2400, feature 'b': 'x' is a text"
    )
    names = "a,b,colour,open,when\n" if form is CSV else ""
    row = "1,2,pink,true,0" if form is CSV else '{"a":1,"b":2,"colour":"pink","open":true,"when":0}'
    known = row.replace("pink", "red")
    body = names + "\n".join([*[known] * 1500, row])
    request = read(body, form=form, features=MIXED_FEATURES, rows=2500, answer_values=100_000)
    assert [row for row, sentences in request.warnings.items() if any("colour" in sentence for sentence in sentences)] == [1500]


def test_too_many_rows_are_refused():
    with pytest.raises(TooLargeError, match="3 rows; at most 2"):
        read("1,2\n" * 3, rows=2)


def made(rows):
    request = read("100,2\n" * rows, "coverage=0.5,0.9&quantiles=0.1&thresholds=4&samples=2")
    numbers = np.arange(rows, dtype=np.float32)[:, None]
    pair = np.stack([numbers, numbers + 0.1], axis=2)
    one = numbers[:, :, None]
    return Prediction(numbers, numbers, numbers, pair, pair, quantiles=one, cdf=one.astype(float), samples=pair), request


def test_csv_answers_are_named_as_the_command_line_names_them():
    lines = list(csv.DictReader(io.StringIO(CSV.write(*made(2), ["y, in m"]).decode())))
    assert list(lines[0]) == [
        "y, in m_mean", "y, in m_std", "y, in m_epistemic_std", "y, in m_lower_0.5", "y, in m_upper_0.5", "y, in m_lower_0.9",
        "y, in m_upper_0.9", "y, in m_quantile_0.1", "y, in m_cdf_4.0", "y, in m_sample_0", "y, in m_sample_1", "warnings",
    ]  # fmt: skip
    assert [line["y, in m_upper_0.9"] for line in lines] == ["0.1", "1.1"]
    assert lines[0]["warnings"] == "a 100 is outside the training range -3 to 3"


def test_ndjson_answers_are_those_of_json():
    lines = [orjson.loads(line) for line in NDJSON.write(*made(2), ("y",)).splitlines()]
    assert [line["mean"] for line in lines] == [0, 1]
    assert lines[1]["intervals"][1] == {"coverage": 0.9, "lower": 1.1, "upper": 1.1}
    assert lines[1]["warnings"]


@pytest.mark.parametrize("form", [CSV, NDJSON])
def test_a_number_that_is_not_finite_is_refused(form):
    prediction, request = made(2)
    prediction.mean[1, 0] = np.inf
    with pytest.raises(InvalidRequestError, match="row 1: the prediction of y is not a finite number"):
        form.write(prediction, request, ("y",))


@given(st.text(max_size=60) | st.binary(max_size=60), st.text(max_size=20), st.sampled_from([CSV, NDJSON]))
def test_no_table_whatever_is_a_bug(body, query, form):
    for features in (NUMERIC_FEATURES, MIXED_FEATURES):
        try:
            text = body if isinstance(body, bytes) else body.encode(errors="surrogatepass")
            limits = Limits(rows=100, answer_values=1000)
            question = read_table(text, query.encode(), form, Terms(features, 1, 0.9, limits)).question
        except (InvalidRequestError, TooLargeError):
            continue
        assert not np.isinf(question.x).any()
