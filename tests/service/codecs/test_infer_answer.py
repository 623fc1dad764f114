import math

import numpy as np
import orjson
import pytest

from service.codecs.features import features_of
from service.codecs.infer import InferRequest, read_infer
from service.codecs.infer_answer import answer, check_finite
from service.codecs.terms import Limits, Terms
from service.errors import InvalidRequestError
from service.predictions import Question
from tests.model_files import NUMERIC


def made(**changes):
    fields = {"id": None, "outputs": ("mean", "lower"), "binary": frozenset(), "timeout_seconds": None}
    fields |= {"warnings": {}, "unusual_rows": len(changes.get("warnings", ()))}
    return InferRequest(question=Question(np.zeros((2, 2)), coverage=(0.5, 0.9)), **(fields | changes))


ARRAYS = {"mean": np.array([[1.5], [2.5]], dtype=np.float32), "lower": np.arange(4, dtype=np.float64).reshape(2, 1, 2)}


def test_an_answer_as_json():
    written = answer(made(id="7", warnings={1: ["a is odd", "b too"]}), ARRAYS, name="m", version="3")
    assert written.json_bytes is None
    assert orjson.loads(written.body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "parameters": {"warnings": "row 1: a is odd, b too"},
        "outputs": [
            {"name": "mean", "datatype": "FP32", "shape": [2, 1], "data": [1.5, 2.5]},
            {"name": "lower", "datatype": "FP64", "shape": [2, 1, 2], "data": [0, 1, 2, 3]},
        ],
    }


def test_many_numbers_are_written_as_few_are():
    mean = np.random.default_rng(0).normal(size=(25_001, 1)).astype(np.float32)
    written = orjson.loads(answer(made(outputs=("mean",)), {"mean": mean}, name="m", version="3").body)
    assert written["outputs"] == [
        {
            "name": "mean",
            "datatype": "FP32",
            "shape": [25_001, 1],
            "data": orjson.loads(orjson.dumps(mean.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)),
        }
    ]


def test_an_answer_with_raw_bytes():
    written = answer(made(binary=frozenset(["lower"])), ARRAYS, name="m", version="3")
    mean, lower = orjson.loads(written.body[: written.json_bytes])["outputs"]
    assert mean["data"] == [1.5, 2.5]
    assert lower == {"name": "lower", "datatype": "FP64", "shape": [2, 1, 2], "parameters": {"binary_data_size": 32}}
    assert np.frombuffer(written.body[written.json_bytes :]).tolist() == [0, 1, 2, 3]


def test_an_answer_never_holds_a_number_that_is_not_finite():
    arrays = ARRAYS | {"lower": np.array([[[0.0, 1.0]], [[math.inf, 1.0]]])}
    with pytest.raises(InvalidRequestError, match="row 1: lower is not a finite number: the row is too far from"):
        check_finite(arrays, ["mean", "lower"])
    check_finite(ARRAYS, ["mean", "lower"])


def test_an_answer_of_raw_bytes_alone_is_that_of_its_own_form():
    for rows in (1, 2, 1):
        arrays = {name: array[:rows] for name, array in ARRAYS.items()}
        for version in ("3", "4"):
            written = answer(made(binary=frozenset(ARRAYS)), arrays, name="m", version=version)
            head = orjson.loads(written.body[: written.json_bytes])
            assert (head["model_version"], [output["shape"][0] for output in head["outputs"]]) == (version, [rows, rows])
            raw = b"".join(array.tobytes() for array in arrays.values())
            assert written.body[written.json_bytes :] == raw
            warned = answer(made(binary=frozenset(ARRAYS), warnings={0: ["odd"]}), arrays, name="m", version=version)
            assert orjson.loads(warned.body[: warned.json_bytes])["outputs"] == head["outputs"]


def test_many_warnings_are_cut():
    far = {"name": "x", "datatype": "FP64", "shape": [25, 2], "data": [4.0, 1.0] * 25}
    limits = Limits(rows=100, answer_values=1000)
    body, features = orjson.dumps({"inputs": [far]}), features_of(NUMERIC)
    request = read_infer(body, Terms(features, 1, 0.9, limits), json_bytes=None)
    assert (request.unusual_rows, list(request.warnings)) == (25, list(range(20)))
    written = answer(made(warnings={row: ["odd"] for row in range(20)}, unusual_rows=25), ARRAYS, name="m", version="1")
    assert orjson.loads(written.body)["parameters"]["warnings"].endswith("row 19: odd; and 5 more rows")


def test_long_warnings_are_of_whole_rows_and_the_others_are_counted():
    def told(warnings, unusual_rows):
        written = answer(made(warnings=warnings, unusual_rows=unusual_rows), ARRAYS, name="m", version="1")
        return orjson.loads(written.body)["parameters"]["warnings"]

    sentence = "f is 1000000, above the training range " + "." * 200
    text = told({row: [sentence] for row in range(20)}, 60)
    rows = text.split("; ")
    assert 1500 < len(text) < 2100
    assert rows == [f"row {row}: {sentence}" for row in range(len(rows) - 1)] + [f"and {61 - len(rows)} more rows"]
    assert told({3: ["." * 5000]}, 1) == f"row 3: {'.' * 1993}", "at most 2000 characters"
