import json
from dataclasses import asdict

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.codecs import parts, rows
from service.codecs.clouds import as_v1
from service.codecs.features import features_of
from service.codecs.rows import read_request
from service.codecs.terms import Limits, Terms
from service.errors import InvalidRequestError, ServiceError, TooLargeError
from tests.model_files import MIXED, NUMERIC

NUMERIC_FEATURES, MIXED_FEATURES = features_of(NUMERIC), features_of(MIXED)
LIMITS = Limits(rows=100, answer_values=10_000)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.sampled_from(["a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)
keys = st.sampled_from(["instances", "coverage", "quantiles", "thresholds", "samples", "seed", "strict"])


def read(request, features=NUMERIC_FEATURES, **limits):
    body = request if isinstance(request, bytes) else orjson.dumps(request)
    limits = Limits(**({"rows": 100, "answer_values": 10_000} | limits))
    return read_request(body, Terms(features, 1, 0.9, limits))


def refusal(request, **arguments):
    with pytest.raises(InvalidRequestError) as caught:
        read(request, **arguments)
    return caught.value


def test_a_request_is_read_whole():
    question = read(
        {"instances": [[1, 2]], "coverage": [0.9, 0.5, 0.9], "quantiles": 0.5, "thresholds": [-1, 4.5], "samples": 3, "seed": 7}
    ).question
    assert question.x.tolist() == [[1.0, 2.0]]
    assert question.coverage == (0.9, 0.5, 0.9)
    assert (question.quantiles, question.thresholds, question.samples, question.seed) == ((0.5,), (-1.0, 4.5), 3, 7)


def test_the_models_coverage_is_the_default_and_an_empty_list_asks_for_no_interval():
    assert read({"instances": []}).question.coverage == (0.9,)
    assert read({"instances": [], "coverage": None}).question.coverage == (0.9,)
    assert read({"instances": [], "coverage": []}).question.coverage == ()


def test_a_misspelt_key_is_refused_with_the_nearest():
    assert "'coverages' is no key of a request; did you mean 'coverage'?" in refusal({"instances": [], "coverages": 1}).sentence


def test_the_only_signature_of_a_model_may_be_named():
    assert read({"instances": [[1, 2]], "signature_name": "serving_default"}).question.x.tolist() == [[1.0, 2.0]]
    sentence = "'signature_name' is not 'serving_default', the only one of a model"
    assert refusal({"instances": [], "signature_name": ["serving_default"]}).sentence == sentence


def test_a_row_alone_is_told_first_that_rows_stand_in_instances():
    error = refusal({"a": 1, "b": 2})
    assert error.sentence == "the request has 3 problems; the first: 'instances' is missing; give an array of rows"
    assert error.problems[1].problem.startswith("'a' is no key of a request")


@pytest.mark.parametrize("key", ["dataframe_split", "dataframe_records", "inputs", "parameters", "params"])
def test_a_form_of_the_clouds_is_told_where_it_is_taken(key):
    error = refusal({"instances": [], key: {}})
    assert error.sentence.startswith(f"{key!r} is no key of a request here; /invocations takes this form (known: instances, ")


def test_every_problem_with_the_options_is_listed_with_those_of_the_rows():
    error = refusal(
        {"instances": [["1", 2]], "coverage": [90, 0.5], "quantiles": ["x"], "samples": 1.5, "seed": -1, "strict": 1}
    )
    assert [problem.problem for problem in error.problems] == [
        "'coverage' 90 is not between 0 and 1, both excluded (90 % is 0.9)",
        "'quantiles' holds a text; give a number or an array of numbers",
        "'samples' is 1.5; give a whole number from 0 to 10000",
        "'seed' is -1; give a whole number from 0 to 9223372036854775807",
        "'strict' is a number; give true or false",
        "'1' is a text; give a number, without quotes",
    ]
    assert error.sentence.startswith("the request has 6 problems; the first: 'coverage' 90")


def test_a_seed_without_samples_is_refused():
    assert refusal({"instances": [], "seed": 1, "samples": 0}).sentence == "'seed' does nothing without 'samples'"
    assert refusal({"instances": [], "seed": 1, "samples": 1.5}).sentence.startswith("'samples' is 1.5; give a whole number")
    assert refusal({"instances": [], "seed": 1}).sentence == "'seed' does nothing without 'samples'"


def test_true_is_no_number():
    assert refusal({"instances": [], "coverage": True}).sentence.startswith("'coverage' holds a boolean")
    assert refusal({"instances": [], "samples": True}).sentence.startswith("'samples' is a boolean")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "1" * 400])
def test_a_number_that_is_not_finite_is_found_by_row_and_feature(number):
    for instance in (f'{{"b": {number}}}', f"[1, {number}]"):
        (problem,) = refusal(f'{{"instances": [[1, 2], {instance}]}}'.encode()).problems
        assert (problem.row, problem.feature) == (1, "b")
        assert "not a finite number" in problem.problem


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [[1, 2], [1, NaN]]}',
        '{"dataframe_split": {"columns": ["b", "a"], "data": [[2, 1], [NaN, 1]]}}',
        '{"dataframe_records": [{}, {"b": NaN}]}',
        '{"inputs": {"a": [1, 1], "b": [2, NaN]}}',
    ],
)
def test_a_number_that_is_not_finite_is_found_in_every_form(body):
    with pytest.raises(InvalidRequestError) as caught:
        read_request(body.encode(), Terms(NUMERIC_FEATURES, 1, 0.9, LIMITS), rewrite=as_v1)
    assert caught.value.sentence.startswith("row 1, feature 'b': nan is not a finite number")


@pytest.mark.parametrize("body", ["NaN", "[NaN]", '["inputs", NaN]', '{"inputs": NaN}', '{"dataframe_split": [NaN]}'])
def test_a_number_that_is_not_finite_elsewhere_is_no_bug(body):
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        read_request(body.encode(), Terms(NUMERIC_FEATURES, 1, 0.9, LIMITS), rewrite=as_v1)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is empty; send JSON"),
        (b'{"instances": [', "the body is not valid JSON: unexpected end of data: line 1 column 16 (char 15)"),
        (b'{"instances": [], "coverage": NaN}', "the body is not valid JSON"),
        (b"[" * 100_000, "the body is not valid JSON"),
        (b"\xff\xfe", "the body is not valid JSON"),
        (b"[1, 2]", 'the body is an array; send an object: {"instances": [...]}'),
        (b"{}", "'instances' is missing; give an array of rows"),
        (b'{"instances": {"a": 1}}', "'instances' is an object; give an array of rows"),
    ],
)
def test_a_body_of_another_form_is_refused_in_a_sentence(body, sentence):
    assert refusal(body).sentence.startswith(sentence)


def test_an_unknown_category_is_a_warning_or_when_strict_a_refusal():
    request = {"instances": [[1, 2, "pink", True, None]]}
    assert read(request, features=MIXED_FEATURES).warnings[0] == [
        "colour 'pink' is an unknown category (known: blue, green, red)"
    ]
    assert refusal(request | {"strict": True}, features=MIXED_FEATURES).problems[0].feature == "colour"


def test_too_many_rows_are_refused_with_the_limit_and_its_setting():
    with pytest.raises(TooLargeError, match=r"has 101 rows; at most 100 .*max_rows"):
        read({"instances": [[1, 2]] * 101})


def test_an_answer_that_would_explode_is_refused_with_the_limit_and_its_setting():
    with pytest.raises(TooLargeError, match=r"would hold 10050 numbers; at most 10000 .*max_answer_values"):
        read({"instances": [[1, 2]] * 10, "samples": 1000})
    assert read({"instances": [[1, 2]] * 10, "samples": 995}).question.numbers == 10_000


def test_too_many_coverages_and_quantiles_are_refused_with_the_limit_and_its_setting():
    with pytest.raises(
        TooLargeError, match=r"asks for 3 coverages and quantiles; at most 2 are allowed \(setting max_levels\)"
    ):
        read({"instances": [[1, 2]], "coverage": [0.5, 0.6], "quantiles": 0.5}, levels=2)
    assert read({"instances": [], "coverage": [0.5, 0.6]}, levels=2).question.coverage == (0.5, 0.6)


def test_no_rows_may_not_be_asked_without_end_either():
    with pytest.raises(TooLargeError, match=r"would hold 20005 numbers"):
        read({"instances": [], "thresholds": [1] * 20_000})


@pytest.mark.parametrize("request_", [{f"k{number}": 0 for number in range(1000)}, {"coverage": [2] * 1000}])
def test_no_more_problems_are_looked_for_than_are_told(request_):
    error = refusal({"instances": []} | request_)
    assert len(error.problems) == 21
    assert error.sentence.startswith("the request has more than 20 problems; the first: ")


def read_or_refused(body, features, **form):
    try:
        return read_request(body, Terms(features, 2, 0.9, LIMITS), **form)
    except (InvalidRequestError, TooLargeError) as error:
        return error


@given(st.lists(st.dictionaries(keys, json_values)) | st.dictionaries(keys | st.text(), json_values) | json_values)
@example({"instances": [[10**25, 1]]})
def test_whatever_json_comes_is_read_or_refused(request):
    body = json.dumps(request).encode()
    for features in (NUMERIC_FEATURES, MIXED_FEATURES):
        outcome = read_or_refused(body, features)
        if isinstance(outcome, ServiceError):
            assert orjson.loads(orjson.dumps(outcome.body()))["error"]
            assert len(outcome.body().get("details", [])) <= 20
        else:
            assert not np.isinf(outcome.question.x).any()


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"a": st.floats(-9, 9), "b": json_values | st.integers(0, 9), "colour": st.sampled_from(["red", "x"])}
        )
    ),
    st.dictionaries(keys.filter(lambda key: key != "instances"), st.sampled_from([0.5, [0.5, 0.9], 7, True]) | json_values),
    st.sampled_from(["V1", "instances", "dataframe_records", "inputs", "dataframe_split", "dataframe_split without columns"]),
)
def test_a_large_request_is_read_as_a_small_one(instances, options, form):
    rewrite = {} if form == "V1" else {"rewrite": as_v1}
    said = {"instances" if form == "V1" else form: instances}
    if form.startswith("dataframe_split"):
        columns = {} if form.endswith("columns") else {"columns": ["a", "b"]}
        said = {"dataframe_split": columns | {"data": [list(instance.values()) for instance in instances]}}
    body = json.dumps(said | options).encode()
    for features in (NUMERIC_FEATURES, MIXED_FEATURES):
        whole = read_or_refused(body, features, **rewrite)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "PART_BYTES", 30)
            parted = read_or_refused(body, features, **rewrite)
        if isinstance(whole, ServiceError):
            assert isinstance(parted, ServiceError)
            assert parted.body() == whole.body()
        else:
            assert not isinstance(parted, ServiceError)
            np.testing.assert_equal(asdict(parted.question), asdict(whole.question))
            assert parted.warnings == whole.warnings


OBJECTS, ARRAYS = [{"a": row, "b": 0.123456789} for row in range(20_000)], [[row, 0.123456789] for row in range(20_000)]


@pytest.mark.parametrize(
    ("said", "rewrite"),
    [
        ({"instances": OBJECTS}, None),
        ({"instances": ARRAYS}, None),
        ({"instances": OBJECTS}, as_v1),
        ({"dataframe_records": OBJECTS}, as_v1),
        ({"inputs": ARRAYS}, as_v1),
        ({"dataframe_split": {"columns": ["a", "b"], "data": ARRAYS}}, as_v1),
    ],
    ids=["V1 objects", "V1 arrays", "instances", "dataframe_records", "inputs", "dataframe_split"],
)
def test_a_large_request_is_read_in_parts(said, rewrite, monkeypatch):
    monkeypatch.setattr(rows, "_document", None)  # what reads a body whole
    body = orjson.dumps({"coverage": [0.5]} | said | {"seed": 7, "samples": 1})
    limits = Limits(rows=20_000, answer_values=10**6)
    question = read_request(body, Terms(NUMERIC_FEATURES, 1, 0.9, limits), rewrite=rewrite).question
    assert question.x.tolist() == ARRAYS
    assert (question.coverage, question.seed, question.samples) == ((0.5,), 7, 1)


def test_a_key_of_another_form_within_a_large_frame_hides_no_rows():
    row, columns = [1.5, 2.5], orjson.dumps(["a", "b"])
    frame = b'{"columns":%b,"inputs":%b,"data":%b,"index":%b}'
    frame %= (columns, orjson.dumps([row] * 30_000), orjson.dumps([row] * 2), orjson.dumps([[0, 1]] * 60_000))
    body = b'{"dataframe_split":%b}' % frame
    request = read_request(body, Terms(NUMERIC_FEATURES, 1, 0.9, LIMITS), rewrite=as_v1)
    assert request.question.x.tolist() == [row] * 2


def test_too_many_rows_of_a_large_request_are_counted(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 30)
    with pytest.raises(TooLargeError, match="the request has 1000 rows; at most 100 are allowed"):
        read({"instances": [[1, 2]] * 1000})


@pytest.mark.parametrize("cell", [b"[" * 1018 + b"]" * 1018, b'{"a":' * 1018 + b"1" + b"}" * 1018], ids=["arrays", "objects"])
@pytest.mark.parametrize("feature", ["a", "colour", "open", "when"])
def test_a_cell_that_is_nested_as_deep_as_json_may_be_is_refused(cell, feature):
    error = refusal(b'{"instances": [{"%b": %b}]}' % (feature.encode(), cell), features=MIXED_FEATURES)
    assert f"row 0, feature '{feature}': " in str(error.problems[0])
    assert " is an array; give" in error.sentence or " is an object; give" in error.sentence


@given(st.binary())
def test_whatever_bytes_come_are_refused_in_a_sentence(body):
    with pytest.raises(ServiceError):
        read_request(body, Terms(NUMERIC_FEATURES, 1, 0.9, LIMITS))
