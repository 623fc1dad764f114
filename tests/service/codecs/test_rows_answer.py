import math

import numpy as np
import orjson
import pytest

from service.codecs import rows_answer
from service.codecs.rows_answer import row_numbers
from service.errors import InvalidRequestError
from service.predictions import Prediction, check_finite


def answer(prediction, warnings, *, coverage, targets, model):
    return rows_answer.answer(row_numbers(prediction, coverage=coverage, targets=targets), warnings, model=model)


def prediction(n, targets, k, **extra):
    values = np.arange(n * targets * 1.0).reshape(n, targets).astype(np.float32) / 3
    bounds = np.repeat(values[:, :, None], k, axis=2)
    return Prediction(values, values + 1, values + 2, bounds - 1, bounds + 1, **extra)


@pytest.mark.parametrize("warned", [{}, {3: ["odd"], 9: ["odder"]}])
@pytest.mark.parametrize("at_once", [1, 20, 100])
def test_answers_are_the_same_however_many_numbers_are_written_at_once(warned, at_once, monkeypatch):
    def text():
        return answer(
            prediction(10, 2, 3), warned, coverage=(0.5, 0.8, 0.9), targets=("y", "z"), model={"name": "m", "version": "3"}
        )

    expected = text()
    monkeypatch.setattr(rows_answer, "NUMBERS_AT_ONCE", at_once)
    assert text() == expected
    assert [row for row, one in enumerate(orjson.loads(expected)["predictions"]) if "warnings" in one] == list(warned)


def test_an_answer_for_one_target_is_flat_and_in_the_order_asked():
    extra = {"quantiles": np.array([[[1.5, 2.5]]]), "cdf": np.array([[[0.25]]]), "samples": np.array([[[3.0, 4.0]]])}
    text = answer(
        prediction(1, 1, 2, **extra), {0: ["odd"]}, coverage=(0.9, 0.5), targets=("y",), model={"name": "m", "version": "3"}
    )
    assert orjson.loads(text) == {
        "model": {"name": "m", "version": "3"},
        "predictions": [
            {
                "mean": 0.0,
                "std": 1.0,
                "epistemic_std": 2.0,
                "intervals": [{"coverage": 0.9, "lower": -1.0, "upper": 1.0}, {"coverage": 0.5, "lower": -1.0, "upper": 1.0}],
                "quantiles": [1.5, 2.5],
                "cdf": [0.25],
                "samples": [3.0, 4.0],
                "warnings": ["odd"],
            }
        ],
    }


def test_several_targets_stand_by_name_with_the_warnings_of_their_row():
    text = answer(prediction(2, 2, 1), {1: ["odd"]}, coverage=(0.9,), targets=("y", "z"), model={})
    first, second = orjson.loads(text)["predictions"]
    assert set(first) == {"y", "z"}
    assert set(second) == {"y", "z", "warnings"}
    assert math.isclose(second["z"]["mean"], 1.0)


@pytest.mark.parametrize("targets", [("share %",), ("moisture %", "50%b")])
def test_percent_signs_of_targets_and_warnings_are_written_as_they_are(targets):
    warnings = {1: ["'50%' is an unknown category", "%d"]}
    text = answer(prediction(2, len(targets), 1), warnings, coverage=(0.9,), targets=targets, model={})
    first, second = orjson.loads(text)["predictions"]
    assert second["warnings"] == warnings[1]
    assert len(targets) == 1 or set(first) == set(targets)


def test_a_float32_is_written_with_the_digits_it_has():
    assert b'"mean":0.33333334,' in answer(prediction(2, 1, 1), {}, coverage=(0.9,), targets=("y",), model={})


@pytest.mark.parametrize("name", ["mean", "std", "epistemic_std", "lower", "upper", "quantiles", "cdf", "samples"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_json_has_not_is_seen_wherever_it_stands(name, number):
    extra = {kind: np.zeros((2, 1, 1)) for kind in ("quantiles", "cdf", "samples")}
    unusual = prediction(2, 1, 1, **extra)
    getattr(unusual, name)[1] = number
    numbers = row_numbers(unusual, coverage=(0.9,), targets=("y",))
    assert b"null" in numbers.of(1, 2).texts
    assert b"null" not in numbers.of(0, 1).texts
    with pytest.raises(InvalidRequestError, match="row 1: the prediction of y is not a finite number"):
        check_finite(unusual, ["y"])


def test_a_warning_may_hold_the_word_null():
    assert b"null" in answer(prediction(1, 1, 1), {0: ["a null"]}, coverage=(0.9,), targets=("y",), model={})


def test_no_rows_get_no_predictions():
    assert b'"predictions":[]' in answer(prediction(0, 1, 1), {}, coverage=(0.9,), targets=("y",), model={})


def test_templates_of_long_answers_are_not_kept():
    rows_answer._template.cache_clear()
    for samples in (3, 4, 5000, 5001):
        numbers = row_numbers(prediction(1, 1, 1, samples=np.zeros((1, 1, samples))), coverage=(0.9,), targets=("y",))
        assert numbers.per_row == 5 + samples
    assert rows_answer._template.cache_info().currsize == 2
