import math

import numpy as np
import pytest

from models.manifest import Column
from service.codecs.features import UnknownCategory, features_of, read_instances
from service.codecs.unusual import find_unusual, unknown_category_problems, warnings_about
from tests.model_files import MIXED, NUMERIC

NUMERIC_FEATURES, MIXED_FEATURES = features_of(NUMERIC), features_of(MIXED)


def test_unusual_rows_are_warned_of_in_words():
    instances = [
        {"a": 900, "b": 1, "colour": "red", "open": True, "when": 1.65e9},
        {"b": 1, "colour": "pink", "open": 0, "when": "2030-01-01"},
        {"a": 1, "b": 1, "open": False},
    ]
    x, unknown, _ = read_instances(instances, MIXED_FEATURES)
    assert warnings_about(find_unusual(x, unknown, MIXED_FEATURES), MIXED_FEATURES) == {
        0: ["a 900 is outside the training range -3 to 3"],
        1: [
            "colour 'pink' is an unknown category (known: blue, green, red)",
            "when 2030-01-01 is outside the training range 2020-09-13T12:26:40Z to 2023-11-14T22:13:20Z",
            "a is missing; it never was in training",
        ],
    }


def test_the_ends_of_the_training_range_are_inside_it():
    assert find_unusual(np.array([[-3.0, 0.0], [3.0, 10.0]]), [], NUMERIC_FEATURES).rows == []
    assert find_unusual(np.array([[-3.0, 0.0], [3.1, 10.0]]), [], NUMERIC_FEATURES).rows == [1]


def test_of_many_unusual_rows_the_first_are_told():
    instances = [
        [0, 1, "pink", True, 1.6e9],
        [0, 1, "red", True, 1.6e9],
        [9, 1, "red", True, 1.6e9],
        [9, 1, "red", True, 1.6e9],
    ]
    x, unknown, _ = read_instances(instances, MIXED_FEATURES)
    unusual = find_unusual(x, unknown, MIXED_FEATURES)
    assert unusual.rows == [0, 2, 3]
    assert list(warnings_about(unusual, MIXED_FEATURES, rows=2)) == [0, 2]


@pytest.mark.parametrize("more", [0, 100])
def test_a_row_is_told_once_in_its_place_for_whatever_is_unusual(more):
    odd = [[9, 99, "red", True, 1.6e9], [0, 1, "pink", True, 1.6e9], [0, 1, "red", True, 1.6e9], [9, 1, "pink", True, 1.6e9]]
    x, unknown, _ = read_instances(odd + more * odd[:1], MIXED_FEATURES)
    assert find_unusual(x, unknown, MIXED_FEATURES).rows == [0, 1, 3, *range(4, 4 + more)]


@pytest.mark.parametrize("categories", [0, 5])
def test_of_very_many_unusual_values_the_first_are_described(categories, monkeypatch):
    monkeypatch.setattr("service.codecs.unusual._DESCRIBED", 10)
    instances = [[9, 1, "pink" if row < categories else "red", True, 1.6e9] for row in range(20)]
    x, unknown, _ = read_instances(instances, MIXED_FEATURES)
    warnings = warnings_about(find_unusual(x, unknown, MIXED_FEATURES), MIXED_FEATURES)
    assert list(warnings) == list(range(20))
    described = [row for row, sentences in warnings.items() if "a 9 is outside the training range -3 to 3" in sentences]
    assert described == list(range(10 - categories))
    assert sum(map(len, warnings.values())) == 10 + 20 - len(described)
    assert all("is unusual; the first " in sentences[0] for row, sentences in warnings.items() if row not in described)


def test_the_first_unusual_row_is_described_whole(monkeypatch):
    monkeypatch.setattr("service.codecs.unusual._DESCRIBED", 1)
    x, unknown, _ = read_instances([[9, 99, "red", True, 1.6e9], [9, 99, "red", True, 1.6e9]], MIXED_FEATURES)
    warnings = warnings_about(find_unusual(x, unknown, MIXED_FEATURES), MIXED_FEATURES)
    assert [len(sentences) for sentences in warnings.values()] == [2, 1]


def test_a_gap_as_training_had_them_is_usual():
    features = features_of([Column(name="a", kind="numeric", minimum=0.0, maximum=1.0, missing=0.1)])
    assert find_unusual(np.array([[math.nan], [0.5]]), [], features).rows == []


def test_a_moment_beyond_the_calendar_is_still_warned_of():
    features = features_of([Column(name="t", kind="datetime", minimum=0.0, maximum=86400.0)])
    assert warnings_about(find_unusual(np.array([[1e18]]), [], features), features) == {
        0: ["t 1e+18 s is outside the training range 1970-01-01 to 1970-01-02"]
    }


def test_a_strict_request_is_told_of_categories_alike():
    _, unknown, _ = read_instances([[1, 1, "Blue", True, None]], MIXED_FEATURES)
    assert [str(problem) for problem in unknown_category_problems(unknown, MIXED_FEATURES)] == [
        "row 0, feature 'colour': 'Blue' is an unknown category (known: blue, green, red); did you mean 'blue'?"
    ]


def test_unknown_categories_are_problems_in_the_order_of_rows():
    unknown = [UnknownCategory(row, MIXED_FEATURES.positions["colour"], "x") for row in reversed(range(40))]
    assert [problem.row for problem in unknown_category_problems(unknown, MIXED_FEATURES)] == list(range(21))
