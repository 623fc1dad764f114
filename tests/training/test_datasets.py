import socket

import numpy as np
import polars as pl
import pytest

from training.datasets import DATASETS, dataset
from training.errors import TableError

LINES = {
    "sine": {"y": (lambda x: np.sin(1.3 * x), lambda x: 0.15 + 0.25 * np.abs(x))},
    "sinusoid": {"y": (lambda x: 0.4 * np.sin(2 * np.pi * x), lambda x: np.full_like(x, 0.01))},
    "heteroscedastic_sine": {"y": (lambda x: x * np.sin(x), lambda x: 0.3 * np.sqrt(1 + x**2))},
    "three_targets": {
        "y1": (lambda x: 2 * x, lambda x: np.full_like(x, 0.3)),
        "y2": (lambda x: 2 * x, lambda x: 0.3 * x),
        "y3": (lambda x: 2 * x + 5 * np.sin(x / 2), lambda x: 0.3 * x),
    },
}
RANGES = {"sine": (-3, 3), "sinusoid": (0, 12), "heteroscedastic_sine": (0, 10), "three_targets": (0, 20)}


@pytest.mark.parametrize("name", LINES)
def test_what_is_left_after_the_formula_is_standard_normal(name):
    table = dataset(name, rows=20_000, seed=3)
    x = table["x"].to_numpy()
    low, high = RANGES[name]
    assert low <= x.min() < low + 0.01
    assert high - 0.01 < x.max() <= high
    for target, (mean, std) in LINES[name].items():
        e = (table[target].to_numpy() - mean(x)) / std(x)
        for part in np.array_split(e[np.argsort(x)], 4):  # five standard errors, in each quarter of x
            assert abs(part.mean()) < 5 / np.sqrt(5000)
            assert abs(part.std() - 1) < 5 / np.sqrt(2 * 5000)


@pytest.mark.parametrize("name", DATASETS)
def test_the_seed_makes_the_table(name):
    assert dataset(name, rows=100, seed=1).equals(dataset(name, rows=100, seed=1))
    assert not dataset(name, rows=100, seed=1).equals(dataset(name, rows=100, seed=2))


@pytest.mark.parametrize(("name", "rows"), [("sine", 1000), ("sinusoid", 1000), ("diabetes", 442)])
def test_every_dataset_has_its_usual_number_of_rows(name, rows):
    assert dataset(name).height == rows


def test_diabetes_holds_the_measurements_and_needs_no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    table = dataset("diabetes")
    assert table.row(0, named=True) == {
        "age": 59,
        "sex": "group 2",
        "bmi": 32.1,
        "blood_pressure": 101.0,
        "total_cholesterol": 157.0,
        "ldl": 93.2,
        "hdl": 38.0,
        "cholesterol_ratio": 4.0,
        "log_triglycerides": 4.8598,
        "glucose": 87,
        "progression": 151.0,
    }
    assert set(table["sex"]) == {"group 1", "group 2"}
    assert table.filter(pl.any_horizontal(pl.all().is_null())).is_empty()


def test_an_unknown_name_lists_the_names():
    with pytest.raises(TableError, match="no dataset 'sinus'; there are sine, sinusoid, heteroscedastic_sine"):
        dataset("sinus")


@pytest.mark.parametrize(("name", "rows"), [("sine", 0), ("diabetes", 443)])
def test_a_number_of_rows_that_cannot_be_is_refused(name, rows):
    with pytest.raises(TableError, match=f"{rows}"):
        dataset(name, rows=rows)
