import math

import numpy as np
import pytest
import torch

from models.manifest import Column
from models.networks import Features
from training.preprocess import feature_statistics, known_to, seen_columns

DAY = 86400.0
WEEK, YEAR = 7 * DAY, 365.2425 * DAY
MIDNIGHT = 19_700 * DAY


def column(kind, name="a"):
    return Column(name=name, kind=kind, categories=["x", "y", "z"] if kind == "categorical" else None)


def of_one(values, kind="numeric"):
    """Statistics of a table with one column."""
    return feature_statistics(np.array(values, dtype=np.float64)[:, None], [column(kind)])


def test_normal_values_get_their_mean_and_standard_deviation_back():
    statistics = of_one(np.random.default_rng(0).normal(50, 4, 20_000))
    assert statistics.centre == pytest.approx([50], abs=0.1)
    assert statistics.scale == pytest.approx([4], rel=0.03)


def test_outliers_move_neither_centre_nor_scale():
    values = np.random.default_rng(0).normal(size=1000)
    clean, dirty = of_one(values), of_one([*values, 1e9, -1e12])
    assert dirty.centre == pytest.approx(clean.centre, abs=0.01)
    assert dirty.scale == pytest.approx(clean.scale, rel=0.01)


def test_values_whose_quartiles_meet_are_scaled_by_half_their_range():
    statistics = of_one([0.0] * 90 + [6.0] * 10)
    assert (statistics.centre, statistics.scale) == ([0.0], [3.0])


def test_a_constant_has_scale_one():
    statistics = of_one([7.0] * 10)
    assert (statistics.centre, statistics.scale) == ([7.0], [1.0])


@pytest.mark.parametrize("kind", ["numeric", "datetime"])
def test_a_column_all_missing_in_the_fit_rows_is_harmless(kind):
    statistics = of_one([math.nan] * 5, kind)
    assert (statistics.centre, statistics.scale, statistics.indicated, statistics.cyclic) == ([0.0], [1.0], [0], [])


def test_missing_values_are_indicated_and_leave_the_statistics_alone():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    whole, holed = of_one(values), of_one([*values, math.nan])
    assert (whole.indicated, holed.indicated) == ([], [0])
    assert (whole.centre, whole.scale) == (holed.centre, holed.scale)


def test_false_and_true_become_minus_one_and_one_whatever_their_shares():
    statistics = of_one([0.0] * 99 + [1.0], "boolean")
    assert (statistics.centre, statistics.scale, statistics.embedded) == ([0.5], [0.5], [])


def test_a_category_without_a_fit_row_counts_as_unknown():
    statistics = of_one([0.0, 2.0, math.nan], "categorical")
    assert (statistics.one_hot, statistics.one_hot_code) == ([0, 0], [0.0, 2.0])
    assert (statistics.scaled, statistics.indicated) == ([], [0])


def test_columns_are_described_by_the_rows_that_may_be_seen():
    columns = [
        Column(name="size", kind="numeric", minimum=0.0, maximum=99.0, quantiles={"0.5": 3.0}, missing=0.2),
        Column(name="colour", kind="categorical", categories=["blue", "green", "red"]),
        Column(name="open", kind="boolean"),
    ]
    x = np.array([[1.0, 2.0, 0.0], [math.nan, 0.0, 1.0], [5.0, math.nan, 1.0], [99.0, 1.0, math.nan]])
    seen, coded = seen_columns(columns, x, np.array([0, 1, 2]))
    assert (seen[0].minimum, seen[0].maximum, seen[0].quantiles) == (1.0, 5.0, {"0.5": 3.0})
    assert seen[0].missing == pytest.approx(1 / 3)
    assert seen[1].categories == ["blue", "red"]
    np.testing.assert_array_equal(coded[:, 1], [1.0, 0.0, math.nan, math.nan], "green is in the last row only: unknown")
    np.testing.assert_array_equal(coded[:, [0, 2]], x[:, [0, 2]])
    assert x[3, 1] == 1.0, "the table itself stays as it is"


def test_categories_that_some_rows_have_not_are_unknown_to_them():
    columns = [Column(name="size", kind="numeric"), Column(name="colour", kind="categorical", categories=["a", "b", "c"])]
    x = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, math.nan], [4.0, 2.0]])
    known = known_to(np.array([0, 2]), x, columns)
    np.testing.assert_array_equal(known, [[1.0, 0.0], [2.0, math.nan], [3.0, math.nan], [4.0, math.nan]])
    assert x[1, 1] == 1.0


@pytest.mark.parametrize(
    ("times", "cycles"),
    [
        (np.arange(0, 1.9 * DAY, 3600), []),  # the second day is not whole
        (np.arange(0, 2 * DAY + 1, 3600), [DAY]),
        (np.arange(0, 15 * DAY, 3600), [DAY, WEEK]),
        (np.arange(0, 15 * DAY, DAY), [WEEK]),  # dates have no time of day
        (np.arange(0, 15 * DAY, DAY) + 0.5 * DAY, [WEEK]),
        (np.arange(0, 10 * WEEK, WEEK), []),  # always the same day of the week
        (np.arange(0, 2.1 * YEAR, DAY), [WEEK, YEAR]),
        (np.arange(0, 2.1 * YEAR, 5 * 3600), [DAY, WEEK, YEAR]),
        ([0.0] * 5, []),
    ],
)
def test_a_datetime_has_the_cycles_that_its_rows_show(times, cycles):
    statistics = of_one(MIDNIGHT + np.asarray(times), "datetime")
    assert statistics.cycle_seconds == cycles
    assert statistics.cyclic == [0] * len(cycles)


def test_columns_of_all_kinds_keep_their_places():
    kinds = ("categorical", "numeric", "boolean", "datetime", "numeric")
    x = np.column_stack([np.arange(60) % 3, np.arange(60), np.arange(60) % 2, MIDNIGHT + 3600 * np.arange(60), np.ones(60)])
    x[5, 4] = math.nan
    statistics = feature_statistics(x, [column(kind, str(number)) for number, kind in enumerate(kinds)])
    assert statistics.scaled == [1, 2, 3, 4]
    assert statistics.embedded == [0, 2, 3]  # places in `scaled`: all but the boolean
    assert (statistics.one_hot, statistics.indicated, statistics.cyclic) == ([0, 0, 0], [4], [3])
    assert statistics.width == 4 + 2 + 1 + 3 + 2  # a copy and a constant leave two components


def test_components_are_uncorrelated_and_show_what_columns_that_move_together_differ_by():
    random = np.random.default_rng(0)
    shared, difference = random.normal(size=(2, 500))
    x = np.column_stack([shared, shared + 1e-3 * difference, random.normal(size=500)])
    statistics = feature_statistics(x, [column("numeric", str(number)) for number in range(3)])
    components = Features(statistics)(torch.from_numpy(x))[:, 3:].numpy()
    assert components.shape == (500, 3)
    np.testing.assert_allclose(np.corrcoef(components, rowvar=False), np.eye(3), atol=0.05)
    assert np.abs(np.corrcoef(components[:, 0], difference)[0, 1]) > 0.95
    assert np.all((components.std(axis=0) > 0.8) & (components.std(axis=0) < 1))  # the clip takes a little


def test_copies_constants_and_single_columns_make_no_component():
    values = np.random.default_rng(0).normal(size=200)

    def components(*columns):
        x = np.column_stack(columns)
        return len(feature_statistics(x, [column("numeric", str(n)) for n in range(x.shape[1])]).component_centre)

    assert components(values) == 0
    assert components(values, 3 * values + 1, np.ones(200)) == 1
    assert components(np.ones(200), np.ones(200)) == 0
