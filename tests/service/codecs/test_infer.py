import json
import math
from dataclasses import asdict

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.manifest import Column
from service.codecs import infer, parts
from service.codecs.features import features_of
from service.codecs.infer import OUTPUTS, read_infer
from service.codecs.terms import Limits, Terms
from service.errors import InvalidRequestError, ServiceError, TooLargeError
from tests.model_files import MIXED, NUMERIC

NUMERIC_FEATURES, MIXED_FEATURES = features_of(NUMERIC), features_of(MIXED)
X = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}


def read(request, features=NUMERIC_FEATURES, json_bytes=None, **limits):
    body = request if isinstance(request, bytes) else orjson.dumps(request)
    limits = Limits(**({"rows": 100, "answer_values": 1000} | limits))
    return read_infer(body, Terms(features, 1, 0.9, limits), json_bytes=json_bytes)


def refusal(request, **arguments):
    with pytest.raises(InvalidRequestError) as caught:
        read(request, **arguments)
    return caught.value


def column(name, datatype, *data):
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def test_a_whole_tensor_with_defaults():
    request = read({"inputs": [X], "model_name": "ignored"})
    assert request.question.x.tolist() == [[1, 2]]
    assert (request.question.coverage, request.outputs, request.binary) == ((0.9,), OUTPUTS, frozenset())
    assert (request.id, request.timeout_seconds, request.warnings) == (None, None, {})


def test_a_tensor_for_each_feature_in_any_order():
    inputs = [
        column("when", "BYTES", "2021-01-01", None),
        column("colour", "BYTES", "red", None),
        column("open", "BOOL", True, False),
        column("b", "INT32", 4, 5),
        {"name": "a", "shape": [2, 1], "datatype": "FP32", "data": [[0.5], [1.5]]},
    ]
    x = read({"inputs": inputs}, MIXED_FEATURES).question.x
    np.testing.assert_equal(x, [[0.5, 4, 2, 1, 1609459200.0], [1.5, 5, math.nan, 0, math.nan]])


def test_a_feature_with_gaps_in_training_may_be_left_out():
    inputs = [column("a", "FP64", 1), column("b", "FP64", 1), column("open", "INT8", 1)]
    assert np.isnan(read({"inputs": inputs}, MIXED_FEATURES).question.x).tolist() == [[False, False, True, False, True]]


@pytest.mark.parametrize("data", [[1, None], [None, None]])
def test_a_value_missing_where_none_was_in_training_is_refused(data):
    assert "feature 'b': is missing (NaN, null, or no tensor); it never was in training" in str(
        refusal({"inputs": [X | {"data": data}]}).problems[-1]
    )


def test_a_missing_value_is_told_beside_other_problems_and_none_twice():
    features = features_of((*NUMERIC, Column(name="colour", kind="categorical", categories=["red"])))
    inputs = [column("a", "FP64", None), column("b", "FP64", 1), column("colour", "BYTES", "pink")]
    error = refusal({"inputs": inputs, "parameters": {"strict": True}}, features=features)
    assert [(problem.row, problem.feature) for problem in error.problems] == [(0, "a"), (0, "colour")]


def test_nan_in_raw_bytes_is_a_missing_value_too():
    body = np.array([[1, math.nan]]).tobytes()
    assert [str(problem) for problem in refusal(body, json_bytes=0).problems] == [
        "row 0, feature 'b': is missing (NaN, null, or no tensor); it never was in training"
    ]
    complete = np.array([[1, 2, math.nan, 1, 1.65e9]])
    np.testing.assert_equal(read(complete.tobytes(), MIXED_FEATURES, json_bytes=0).question.x, complete)


def test_infinity_is_refused_by_row_and_feature():
    body = np.array([[1, 2], [math.inf, 2]]).tobytes()
    assert [str(problem) for problem in refusal(body, json_bytes=0).problems] == [
        "row 1, feature 'a': is infinite; give a finite number"
    ]


def test_what_cannot_be_read_is_not_said_to_be_missing_too():
    inputs = [column("a", "FP64", 1, 2), column("b", "BYTES", "4", "five")]
    assert [str(problem) for problem in refusal({"inputs": inputs}).problems] == [
        "row 0, feature 'b': '4' is a text; give a number, without quotes",
        "row 1, feature 'b': 'five' is a text; give a number",
    ]


def test_infinity_in_the_place_of_a_category_is_refused_without_a_warning():
    body = np.array([[1, 2, math.inf, -math.inf, 1.65e9]]).tobytes()
    assert [str(problem) for problem in refusal(body, json_bytes=0, features=MIXED_FEATURES).problems] == [
        "row 0, feature 'colour': is infinite; give a finite number",
        "row 0, feature 'open': is infinite; give a finite number",
    ]


def test_unknown_categories_warn_or_with_strict_refuse():
    inputs = [column("a", "FP64", 1), column("b", "FP64", 1), column("open", "BOOL", True), column("colour", "BYTES", "gren")]
    assert read({"inputs": inputs}, MIXED_FEATURES).warnings == {
        0: ["colour 'gren' is an unknown category (known: blue, green, red)"]
    }
    refused = refusal({"inputs": inputs, "parameters": {"strict": True}}, features=MIXED_FEATURES)
    assert "did you mean 'green'" in refused.sentence


@pytest.mark.parametrize("datatype", ["INT64", "UINT64", "FP64"])
def test_category_numbers_that_float64_does_not_tell_apart_are_given_as_texts(datatype):
    ids = [str(2**53 + more) for more in (0, 1, 3)]
    features = features_of([Column(name="id", kind="categorical", categories=[*ids, "7"], integer=True)])
    sentence = refusal({"inputs": [column("id", datatype, 7, 2**53 + 1)]}, features=features).sentence
    assert sentence.startswith("input 'id' holds category numbers of 9007199254740992 or more")
    assert sentence.endswith("give them as texts, BYTES")
    read_as = read({"inputs": [column("id", "BYTES", ids[1], ids[2])]}, features=features)
    assert read_as.question.x.tolist() == [[1], [2]]
    assert read({"inputs": [column("id", datatype, 7)]}, features=features).question.x.tolist() == [[3]]


@pytest.mark.parametrize(("datatype", "limit"), [("FP16", 2048), ("FP32", 16_777_216)])
def test_narrow_floats_do_not_tell_large_category_numbers_apart(datatype, limit):
    categories = [str(limit - 1), str(limit), str(limit + 1)]
    features = features_of([Column(name="id", kind="categorical", categories=categories, integer=True)])
    assert read({"inputs": [column("id", datatype, limit - 1)]}, features=features).question.x.tolist() == [[0]]
    assert read({"inputs": [column("id", "INT64", limit + 1)]}, features=features).question.x.tolist() == [[2]]
    sentence = refusal({"inputs": [column("id", datatype, limit + 1)]}, features=features).sentence
    assert sentence.startswith(f"input 'id' holds category numbers of {limit} or more, which {datatype} does not tell apart")


def test_numbers_that_are_no_category_are_refused_in_the_whole_tensor():
    data = [1, 1, 3, 2, 1.65e9]
    problems = refusal({"inputs": [X | {"shape": [1, 5], "data": data}]}, features=MIXED_FEATURES).problems
    assert [str(problem) for problem in problems] == [
        "row 0, feature 'colour': 3 in x is not the number of a category, 0 to 2",
        "row 0, feature 'open': 2 in x is not 0 or 1",
    ]


@pytest.mark.parametrize("name", ["x", "coverage"])
def test_features_with_the_names_of_other_tensors_stand_in_the_whole_tensor(name):
    features = features_of([NUMERIC[0].model_copy(update={"name": name}), NUMERIC[1]])
    sentence = f"this model has a feature '{name}', and V2 a tensor of that name for something else; give all features in one"
    assert refusal({"inputs": [column(name, "FP64", 0.5), column("b", "FP64", 1)]}, features=features).sentence.startswith(
        sentence
    )
    request = read({"inputs": [X, column("coverage", "FP64", 0.5)]}, features)
    assert (request.question.x.tolist(), request.question.coverage) == ([[1, 2]], (0.5,))


@pytest.mark.parametrize(
    ("options", "tensors", "expected"),
    [
        ({"coverage": 0.5}, [], (0.5,)),
        ({"coverage": None}, [], (0.9,)),
        ({"coverage": "0.5, 0.9"}, [], (0.5, 0.9)),
        ({}, [column("coverage", "FP64", 0.5, 0.95)], (0.5, 0.95)),
        ({}, [column("coverage", "FP32", 0.9)], (0.9,)),
        ({}, [{"name": "coverage", "shape": [0], "datatype": "FP64", "data": []}], ()),
    ],
)
def test_coverage_as_parameter_or_tensor(options, tensors, expected):
    assert read({"inputs": [X, *tensors], "parameters": options}).question.coverage == expected


def test_only_the_outputs_asked_for_in_the_form_asked_for():
    asked = [{"name": "std"}, {"name": "mean", "parameters": {"binary_data": False}}]
    request = read({"inputs": [X], "outputs": asked, "parameters": {"binary_data_output": True, "coverage": 0.5}})
    assert (request.outputs, request.binary) == (("std", "mean"), {"std"})
    assert request.question.coverage == ()  # of no matter to mean and std


@pytest.mark.parametrize(("timeout", "seconds"), [(1500, 0.0015), (0, None)])
def test_timeout_is_in_microseconds_and_0_is_none(timeout, seconds):
    own = {"sequence_id": 7, "priority": 1, "x-trace": "a"}
    assert read({"inputs": [X], "parameters": own | {"timeout": timeout}}).timeout_seconds == seconds


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (b"", "the body is empty; send JSON"),
        (b'{"inputs": [', "the body is not valid JSON: "),
        (b"[" * 100_000, "the body is not valid JSON: "),
        (b'{"inputs": [{"data": [NaN]}]}', "(NaN is no number of JSON; a missing value is null)"),
        (b'{"inputs": [{"data": [1e999]}]}', "(a number is beyond float64)"),
        (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, ' + b"9" * 5000 + b"]}]}", ""),
        ([], "the body is an array; send an object"),
        ({"inputs": [X | {"shape": [1, 3], "data": [1, 2, 3]}]}, "'x' has shape [1, 3]; this model takes [rows, 2] (a, b)"),
        ({"inputs": [X | {"shape": [2]}]}, "input 'x' has shape [2]; this model takes [rows, 2] (a, b)"),
        ({"inputs": [X | {"datatype": "BYTES", "data": ["1", "2"]}]}, "'x' is BYTES; give FP64, FP32 or an integer type"),
        ({"inputs": [X | {"name": "X"}]}, "'X' is no input of this model; give x [rows, 2], or a tensor for"),
        ({"inputs": [X, column("a", "FP64", 1)]}, "input 'a' comes beside 'x'; give x alone, or a tensor for each feature"),
        ({"inputs": [column("a", "FP64", 1), column("b", "FP64", 1, 2)]}, "input 'b' has 2 rows, an input before it has 1"),
        ({"inputs": [X | {"name": "a"}]}, "input 'a' has shape [1, 2]; a feature takes [rows] or [rows, 1]"),
        ({"inputs": [column("coverage", "FP64", 0.5)]}, "no input holds rows; give x [rows, 2], or a tensor for each feature"),
        ({"inputs": [X], "outputs": [{"name": "means"}]}, "'means' is no output of this model; did you mean 'mean'"),
        ({"inputs": [X], "outputs": [{"name": "mean"}, {"name": "mean"}]}, "output 'mean' is asked for twice"),
        ({"inputs": [X], "outputs": ["mean"]}, "output 0 has no name"),
        ({"inputs": [X], "outputs": {}}, "'outputs' is an object; give an array"),
        ({"inputs": [X], "outputs": [{"name": "mean", "parameters": {"classification": 2}}]}, "which this server"),
        ({"inputs": [X], "outputs": [{"name": "mean", "parameters": {"binary_data": 1}}]}, "is a number; give true or"),
        ({"inputs": [X], "parameters": {"coverage": 1.5}}, "coverage 1.5 is not between 0 and 1, both excluded"),
        ({"inputs": [X], "parameters": {"coverage": "0.1_5"}}, "parameter 'coverage' is '0.1_5'; give numbers with commas"),
        ({"inputs": [X], "parameters": {"coverage": "a,b"}}, "parameter 'coverage' is 'a,b'; give numbers with commas between"),
        ({"inputs": [X], "parameters": {"coverage": [0.5]}}, "parameter 'coverage' is an array; give a number, or a text"),
        ({"inputs": [X, column("coverage", "INT8", 1)]}, "input 'coverage' is INT8 of shape [1]; give FP64 of shape [k]"),
        ({"inputs": [X, column("coverage", "FP64", 0.5)], "parameters": {"coverage": 0.5}}, "coverage is given as a parameter"),
        ({"inputs": [X], "parameters": {"coverge": 0.5}}, "'coverge' is no parameter of a request; did you mean 'coverage'?"),
        ({"inputs": [X], "parameters": {"thresholds": 1}}, "'thresholds' is an option of the V1 routes (/v1/models"),
        ({"inputs": [X], "parameters": {"timeout": "soon"}}, "parameter 'timeout' is a text; give whole microseconds"),
        ({"inputs": [X], "parameters": {"timeout": -5}}, "parameter 'timeout' is -5; give whole microseconds"),
        ({"inputs": [X], "parameters": 3}, "the parameters of the request are a number; give an object"),
        ({"inputs": [X], "id": 7}, "'id' is a number; give a text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said(request_, sentence):
    assert sentence in refusal(request_).sentence


@pytest.mark.parametrize("name", ["coverges", "coverages", "Coverage", "time_out", "timeout_ms", "stirct", "binary_output"])
def test_a_misspelt_parameter_is_refused(name):
    assert f"{name!r} is no parameter of a request; did you mean " in refusal({"inputs": [X], "parameters": {name: 1}}).sentence


def test_parameters_of_a_clients_own_are_let_be():
    own = ["timestamp", "time", "timer", "timezone", "district", "average", "beverage", "covered", "binary_data", "sample"]
    assert read({"inputs": [X], "parameters": dict.fromkeys(own, 1)}).timeout_seconds is None


@pytest.mark.parametrize(
    ("body", "json_bytes", "sentence"),
    [
        (b"{}", 3, "Inference-Header-Content-Length is 3, but the body has 2 bytes"),
        (b"", 0, "the body has 0 bytes; rows of 2 features as FP64 take 16 bytes each"),
        (bytes(15), 0, "the body has 15 bytes; rows of 2 features as FP64 take 16 bytes each"),
        (orjson.dumps({"inputs": [X]}) + b"1234", len(orjson.dumps({"inputs": [X]})), "the body has 4 bytes more than"),
    ],
)
def test_what_is_wrong_with_the_length_header_is_said(body, json_bytes, sentence):
    assert sentence in refusal(body, json_bytes=json_bytes).sentence


def test_too_many_rows_or_numbers_are_refused():
    inputs = [X | {"shape": [3, 2], "data": [1, 2] * 3}]
    with pytest.raises(TooLargeError, match="3 rows; at most 2 are allowed"):
        read({"inputs": inputs}, rows=2)
    with pytest.raises(TooLargeError, match="18 numbers; at most 17"):
        read({"inputs": inputs}, answer_values=17)
    with pytest.raises(TooLargeError, match="asks for 3 coverages and quantiles; at most 2"):
        read({"inputs": inputs, "parameters": {"coverage": "0.5,0.6,0.7"}}, levels=2)
    assert read({"inputs": inputs, "outputs": [{"name": "mean"}]}, answer_values=3).outputs == ("mean",)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(["x", "a", "b", "colour", "open", "when", "coverage"])
shapes = st.lists(st.integers(-1, 3), max_size=3)
datatypes = st.sampled_from(["FP64", "FP32", "INT8", "BOOL", "BYTES", "FLOAT"])
options = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "coverage", "timeout", "strict"]), json_values, max_size=2
)
tensors = st.fixed_dictionaries(
    {"name": names | json_values, "shape": shapes | json_values, "datatype": datatypes | json_values},
    optional={"data": st.lists(json_values, max_size=6) | json_values, "parameters": options},
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=4) | json_values},
    optional={"outputs": json_values, "parameters": options, "id": json_values},
)


def test_a_long_text_that_is_no_json_is_not_searched():
    short = refusal(b'{"inputs": [NaN]}').sentence
    assert "(NaN is no number of JSON" in short
    assert "NaN" not in refusal(b'{"inputs": [NaN]}' + b" " * 1_000_000).sentence


@given(requests, st.binary(max_size=40), st.none() | st.integers(0, 60))
@example({"inputs": [X | {"data": [1, 10**400]}]}, b"", None)
def test_no_request_whatever_is_a_bug(request_, raw, json_bytes):
    try:
        text = orjson.dumps(request_)
    except TypeError:  # an integer beyond 64 bits
        text = json.dumps(request_).encode()
    for features in (NUMERIC_FEATURES, MIXED_FEATURES):
        for body, length in ((text, None), (text + raw, len(text)), (text + raw, json_bytes), (raw, json_bytes)):
            try:
                question = read(body, features, json_bytes=length).question
            except (InvalidRequestError, TooLargeError):
                continue
            assert not np.isinf(question.x).any()


def outcome(body, features, json_bytes=None):
    """The request as it was understood, or the answer that refuses it."""
    try:
        request = asdict(read(body, features, json_bytes=json_bytes))
    except ServiceError as error:
        return error.body()
    return request | {"question": request["question"] | {"x": request["question"]["x"].tolist()}}


def cells(datatype):
    kinds = {
        "BYTES": st.sampled_from(["red", "a,b", '"],["', "2021-01-01"]),
        "BOOL": st.booleans(),
        "INT8": st.integers(-1, 130),
    }
    return st.none() | kinds.get(datatype, st.floats(-9, 9)) | st.just(1)


@st.composite
def large_tensors(draw):
    """Tensors of about as many values as their shapes say, flat or nested, one or several."""
    rows, tensors = draw(st.integers(1, 12)), []
    for name in draw(st.just(["x"]) | st.lists(st.sampled_from(["a", "b", "colour", "open", "when"]), min_size=1, unique=True)):
        datatype = draw(st.sampled_from(["FP64", "FP32", "INT8", "BOOL", "BYTES"]))
        shape = draw(st.sampled_from([[rows, 2]] if name == "x" else [[rows], [rows, 1]]))
        nested = len(shape) > 1 and draw(st.booleans())
        size = shape[-1] if nested else 1
        data = draw(st.lists(cells(datatype), min_size=math.prod(shape), max_size=math.prod(shape)))
        data = [data[start : start + size] for start in range(0, len(data), size)] if nested else data
        if draw(st.integers(0, 3)) == 0:
            data.insert(draw(st.integers(0, len(data))), draw(json_values))
        tensors.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
    return tensors


@given(large_tensors(), st.dictionaries(st.sampled_from(["data", "outputs", "id", "parameters"]), json_values), st.booleans())
def test_a_large_request_is_read_as_a_small_one(inputs, more, spaced):
    body = json.dumps({"inputs": inputs} | more, separators=(", ", ": ") if spaced else (",", ":")).encode()
    for features in (NUMERIC_FEATURES, MIXED_FEATURES):
        whole = outcome(body, features)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "PART_BYTES", 12)
            assert repr(outcome(body, features)) == repr(whole)
            assert repr(outcome(body, features, json_bytes=len(body))) == repr(whole)


@pytest.mark.parametrize(
    "inputs",
    [
        [X | {"shape": [20_000, 2], "data": [0.123456789, None] * 20_000}],
        [X | {"shape": [20_000, 2], "data": [[0.123456789, None]] * 20_000}],
        [column("a", "FP64", *[0.123456789] * 20_000), column("b", "FP64", *[None] * 20_000)],
    ],
    ids=["flat", "nested", "by feature"],
)
def test_a_large_request_is_read_in_parts(inputs, monkeypatch):
    monkeypatch.setattr(infer, "_read_whole", None)
    features = features_of([NUMERIC[0], NUMERIC[1].model_copy(update={"missing": 1})])
    request = read({"inputs": inputs, "id": "7"}, features, rows=20_000, answer_values=10**6)
    np.testing.assert_equal(request.question.x, [[0.123456789, math.nan]] * 20_000)
    assert request.id == "7"
