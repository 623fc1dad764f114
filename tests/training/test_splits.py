import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import FitOptions
from training.errors import OptionError, TableError
from training.splits import MOST_CALIBRATION_ROWS, MOST_STOP_ROWS, Plan, plan_rows


def planned(rows: int, **changes) -> Plan:
    columns = {name: changes.pop(name) for name in ("groups", "time") if name in changes}
    options = {"target": ["y"], "members": 5, "fold_members": 2, "test_share": 0.1}
    return plan_rows(rows, FitOptions.model_construct(**options | changes), **columns)  # unchecked: some have no effect


def uses_of(plan: Plan) -> list[list[np.ndarray]]:
    """For each network, every row set of the plan that must not share a row or group with another."""
    held_out = [plan.calibration] * plan.members + [fold for fold in plan.folds for _ in range(plan.fold_members)]
    return [list(sets) for sets in zip([plan.test] * len(plan.fit), held_out, plan.fit, plan.stop, strict=True)]


plans = st.fixed_dictionaries(
    {
        "members": st.integers(1, 9),
        "folds": st.integers(2, 5),
        "fold_members": st.integers(1, 3),
        "test_share": st.sampled_from([0.0, 0.1, 0.3]),
        "calibration": st.sampled_from(["auto", "split", "cross", "none"]),
        "stop_share": st.sampled_from([0.1, 0.3, 0.5]),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(100, 400), options=plans)
def test_for_every_network_each_row_has_exactly_one_use(rows, options):
    plan = planned(rows, **options)
    for sets in uses_of(plan):
        assert np.array_equal(np.sort(np.concatenate(sets)), np.arange(rows))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(200, 400), options=plans, group_count=st.integers(15, 60), shuffle=st.integers(0, 99))
def test_a_group_is_never_on_two_sides(rows, options, group_count, shuffle):
    groups = np.random.default_rng(shuffle).permutation(np.arange(rows) % group_count)
    plan = planned(rows, groups=groups, **options)
    for sets in uses_of(plan):
        assert np.array_equal(np.sort(np.concatenate(sets)), np.arange(rows))
        sides = [set(groups[rows_of_use]) for rows_of_use in sets]
        assert sum(map(len, sides)) == len(set.union(*sides))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(200, 400), shuffle=st.integers(0, 99), instants=st.integers(20, 500))
def test_with_time_calibration_is_later_than_fitting_and_test_later_than_calibration(rows, shuffle, instants):
    time = np.random.default_rng(shuffle).integers(0, instants, rows).astype(float)
    plan = planned(rows, time=time)
    assert plan.method == "split"
    assert time[plan.test].min() > time[plan.calibration].max()
    for fit, stop in zip(plan.fit, plan.stop, strict=True):
        assert time[plan.calibration].min() > max(time[fit].max(), time[stop].max())


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(100, 300), options=plans)
def test_the_same_seed_gives_the_same_plan_and_another_seed_another(rows, options):
    one, same, other = planned(rows, **options), planned(rows, **options), planned(rows, **options | {"seed": 5000})
    assert all(np.array_equal(a, b) for a, b in zip(one.fit + one.stop, same.fit + same.stop, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.fit, other.fit, strict=True))


def test_the_test_rows_do_not_depend_on_how_the_rest_is_used():
    plans = [planned(500, calibration=method, members=m) for method in ("split", "cross", "none") for m in (5, 8)]
    assert all(np.array_equal(plan.test, plans[0].test) for plan in plans)


@pytest.mark.parametrize(("rows", "method"), [(2221, "cross"), (2222, "split")])
def test_auto_crosses_below_2000_rows_outside_the_test_rows(rows, method):
    assert planned(rows).method == method


def test_shares_are_kept():
    plan = planned(10_000, calibration="split")
    assert len(plan.test) == 1000
    assert len(plan.calibration) == 2000
    assert [len(stop) for stop in plan.stop] == [700] * 5
    assert len(planned(1000, test_share=0.0).test) == 0


@pytest.mark.parametrize("seed", range(30))
def test_a_large_group_does_not_become_a_small_share(seed):
    groups = np.repeat(np.arange(21), [1900] + [10] * 20)
    plan = planned(2100, groups=groups, calibration="split", seed=seed)
    assert [len(plan.test), len(plan.calibration)] == [100, 50]
    equal = planned(2100, groups=np.repeat(np.arange(6), 350), calibration="split", calibration_share=0.1, seed=seed)
    assert [len(equal.test), len(equal.calibration)] == [350, 350]


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_of_one_size_where_groups_allow_it(seed):
    groups = np.repeat(np.arange(21), [100] + [20] * 20)
    plan = planned(500, groups=groups, calibration="cross", test_share=0.0, seed=seed)
    assert [len(fold) for fold in plan.folds] == [100] * 5


def test_a_group_of_more_rows_than_early_stopping_needs_is_kept_whole():
    groups = np.repeat(np.arange(12), [MOST_STOP_ROWS + 500] + [1000] * 11)
    plan = planned(len(groups), groups=groups, calibration="none", test_share=0.0, stop_share=0.5, members=2)
    assert sorted(map(len, plan.stop)) == [MOST_STOP_ROWS, MOST_STOP_ROWS + 500]


def test_calibration_and_stop_rows_are_capped_and_the_others_fit():
    plan = planned(300_000, calibration="split", members=2)
    assert len(plan.calibration) == MOST_CALIBRATION_ROWS
    assert [len(stop) for stop in plan.stop] == [MOST_STOP_ROWS] * 2
    assert len(plan.fit[0]) == 300_000 - 30_000 - 2 * 10_000


def test_members_take_turns_so_that_every_row_fits_most_of_them():
    plan = planned(1000, calibration="none", members=10)
    fitted = np.bincount(np.concatenate(plan.fit), minlength=1000)
    outside_test = np.setdiff1d(np.arange(1000), plan.test)
    assert set(fitted[outside_test]) == {9}
    assert set(fitted[plan.test]) == {0}


def test_more_members_than_turns_do_not_share_their_stop_rows():
    stops = planned(1000, calibration="none", members=6, stop_share=0.5).stop
    assert len({tuple(stop) for stop in stops}) == 6


def test_the_networks_of_a_fold_leave_it_out_and_the_served_members_see_every_row():
    plan = planned(300, calibration="cross", members=10, folds=5, fold_members=3)
    rest = np.setdiff1d(np.arange(300), plan.test)
    assert np.array_equal(np.sort(np.concatenate(plan.folds)), rest)
    assert len(plan.calibration) == 0
    assert len(plan.fit) == 10 + 5 * 3
    for k, fold in enumerate(plan.folds):
        fits, stops = plan.fit[plan.fold_networks(k)], plan.stop[plan.fold_networks(k)]
        assert len(fits) == 3
        assert len({tuple(stop) for stop in stops}) == 3
        assert all(np.array_equal(np.union1d(f, s), np.setdiff1d(rest, fold)) for f, s in zip(fits, stops, strict=True))
    assert np.array_equal(np.unique(np.concatenate(plan.fit[:10])), rest)


def test_the_smallest_table_can_be_cross_fitted():
    plan = planned(30, members=10, folds=10)
    assert plan.method == "cross"
    assert len(plan.test) == 3


@pytest.mark.parametrize(
    ("rows", "changes", "sentence"),
    [
        (100, {"calibration": "cross", "time": np.arange(100.0)}, "older than those they were fitted to"),
        (100, {"time": np.arange(100.0), "groups": np.arange(100)}, "name only one of them"),
        (100, {"groups": np.zeros(100, dtype=int)}, "1 different .* left for test, which has to divide them 2 ways"),
        (100, {"groups": np.arange(100) % 4}, "3 different .* left for cross-fitting, .* 5 ways"),
        (100, {"time": np.zeros(100)}, "1 different .* left for test"),
        (40, {"calibration": "split"}, "8 rows are left for calibration, which needs at least 9; .* or --calibration cross"),
        (20, {"calibration": "none", "stop_share": 0.5}, "9 rows are left for fitting, which needs at least 10"),
        (100, {"test_share": 0.6}, "test_share 0.6 is not between 0 and 0.5"),
        (100, {"stop_share": 0.0}, "stop_share 0.0 is not above 0"),
        (100, {"calibration_share": 0.7}, "calibration_share 0.7"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_with_the_reason(rows, changes, sentence):
    with pytest.raises((OptionError, TableError), match=sentence):
        planned(rows, **changes)


def test_cross_fitting_is_no_advice_where_a_time_column_rules_it_out():
    with pytest.raises(TableError, match="8 rows are left for calibration") as refused:
        planned(40, time=np.arange(40.0))
    assert "cross" not in str(refused.value)
