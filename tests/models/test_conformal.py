import doctest
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models import conformal
from models.conformal import (
    conformal_rank,
    coverage_range,
    cumulative_probability,
    equal_tailed_ranks,
    family_residuals,
    guarantee,
    interval_factors,
    largest_coverage,
    least_observed,
    probability_up_to,
    quantile_factors,
    residual_nodes,
    sample_factors,
    supported_probabilities,
    supports,
)
from models.distributions import distribution

INTERVALS = ("symmetric", "equal_tailed")
intervals = pytest.mark.parametrize("interval", INTERVALS)
coverages = st.integers(1, 9999).map(lambda ten_thousandths: ten_thousandths / 10_000)
row_counts = st.integers(1, 20_000)


def sorted_residuals(y, location, scale):
    """All three [rows, targets] -> [targets, rows]."""
    return np.sort(((y - location) / scale).T, axis=1)


def scores_within(coverage, rows, interval):
    """How many of the `rows` + 1 equally likely places of a new score lie within the interval."""
    if interval == "symmetric":
        return min(conformal_rank(coverage, rows=rows), rows + 1)
    lower, upper = equal_tailed_ranks(coverage, rows=rows)
    return upper - lower


def test_the_docstring_examples_hold():
    outcome = doctest.testmod(conformal)
    assert outcome.attempted >= 5
    assert outcome.failed == 0


# Ranks


def test_the_rank_is_exact_where_floats_are_not():
    assert conformal_rank(0.28, rows=99) == 28  # 100 * 0.28 is 28.000000000000004
    assert conformal_rank(np.float64(0.28), rows=99) == 28
    assert conformal_rank(np.float32(0.9), rows=9) == 9


def test_ranks_equal_integer_arithmetic_for_all_row_counts_and_four_decimal_coverages():
    ten_thousandths = np.random.default_rng(0).integers(1, 10_000, size=(5000, 15)).tolist()
    for rows, row in enumerate(ten_thousandths, start=1):
        for c in row:
            assert conformal_rank(c / 10_000, rows=rows) == -((rows + 1) * -c // 10_000)
            lower = (rows + 1) * (10_000 - c) // 20_000
            upper = -((rows + 1) * -(10_000 + c) // 20_000)
            assert equal_tailed_ranks(c / 10_000, rows=rows) == (lower, upper)


@given(coverage=coverages, rows=row_counts)
def test_the_rank_is_the_smallest_that_is_enough(coverage, rows):
    rank, wanted = conformal_rank(coverage, rows=rows), Fraction(str(coverage))
    assert Fraction(rank, rows + 1) >= wanted > Fraction(rank - 1, rows + 1)


@given(coverage=coverages, rows=row_counts)
def test_equal_tails_leave_at_most_half_of_the_rest_on_either_side(coverage, rows):
    lower, upper = equal_tailed_ranks(coverage, rows=rows)
    tail = (1 - Fraction(str(coverage))) / 2
    assert Fraction(lower, rows + 1) <= tail < Fraction(lower + 1, rows + 1)
    assert upper == rows + 1 - lower > lower


@pytest.mark.parametrize(("rows", "coverage"), [(9, 0.9), (19, 0.95), (99, 0.99), (999, 0.999), (4, 0.8)])
def test_the_largest_score_is_used_exactly_at_the_corner(rows, coverage):
    assert conformal_rank(coverage, rows=rows) == rows
    assert conformal_rank(coverage, rows=rows - 1) == rows  # one row fewer is too few
    assert largest_coverage(rows, interval="symmetric") == coverage


@given(rows=st.integers(1, 60), thousandths=st.integers(1, 999))
@pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
def test_a_coverage_is_supported_where_its_interval_is_finite(interval, rows, thousandths):
    residuals = np.sort(np.random.default_rng(rows).normal(size=(1, rows)))
    for coverage in (thousandths / 1000, rows / (rows + 1), 0.99 * (rows / (rows + 1))):
        lower, upper = interval_factors(residuals, [coverage], interval=interval)
        finite = bool(np.isfinite([lower, upper]).all())
        assert supports(coverage, rows=rows, interval=interval) == finite


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0, -0.5, float("nan"), float("inf")])
def test_a_coverage_outside_zero_and_one_is_refused(coverage):
    with pytest.raises(ValueError, match=f"coverage {coverage} is not between 0 and 1, both excluded"):
        conformal_rank(coverage, rows=99)
    with pytest.raises(ValueError, match="coverage"):
        equal_tailed_ranks(coverage, rows=99)


@given(rows=st.integers(2, 2_000_000))
@pytest.mark.parametrize(("interval", "lacking"), [("symmetric", 1), ("equal_tailed", 2)])
def test_the_largest_coverage_is_accepted_and_close_to_the_bound(interval, lacking, rows):
    largest = largest_coverage(rows, interval=interval)
    assert scores_within(largest, rows, interval) <= rows
    bound = Fraction(rows + 1 - lacking, rows + 1)
    assert 0 <= bound - Fraction(str(largest)) < min(Fraction(1, 10_000), Fraction(1, 10 * (rows + 1)))


@pytest.mark.parametrize(
    ("rows", "interval", "largest"),
    [
        (412, "symmetric", 0.9975),
        (412, "equal_tailed", 0.9951),
        (100_000, "symmetric", 0.99999),
        (2, "symmetric", 0.6666),
        (2, "equal_tailed", 0.3333),
        (1, "equal_tailed", 0.0),
        (0, "symmetric", 0.0),
    ],
)
def test_the_largest_coverage_is_a_short_decimal(rows, interval, largest):
    assert largest_coverage(rows, interval=interval) == largest


@given(rows=row_counts)
def test_supported_probabilities_reach_from_the_first_rank_to_the_last(rows):
    smallest, largest = (Fraction(str(probability)) for probability in supported_probabilities(rows))
    assert 0 <= smallest - Fraction(1, rows + 1) < Fraction(1, 10_000)
    assert 0 <= Fraction(rows, rows + 1) - largest < Fraction(1, 10_000)
    residuals = np.arange(1.0, rows + 1)[None]
    assert np.isfinite(quantile_factors(residuals, supported_probabilities(rows))).all()


# Intervals on arrays


def test_interval_factors_are_the_scores_at_the_ranks():
    residuals = np.array([[-3.0, -1.0, -0.5, 0.0, 0.2, 0.7, 1.1, 2.0, 9.0], np.arange(9.0)])
    lower, upper = interval_factors(residuals, [0.5, 0.9, 0.91], interval="symmetric")
    assert upper.tolist() == [[1.0, 9.0, np.inf], [4.0, 8.0, np.inf]]
    np.testing.assert_array_equal(lower, -upper)
    lower, upper = interval_factors(residuals, [0.5, 0.8, 0.81], interval="equal_tailed")
    assert lower.tolist() == [[-1.0, -3.0, -np.inf], [1.0, 0.0, -np.inf]]
    assert upper.tolist() == [[2.0, 9.0, np.inf], [7.0, 8.0, np.inf]]


@intervals
def test_no_coverage_asked_gives_no_interval(interval):
    lower, upper = interval_factors(np.zeros((2, 5)), [], interval=interval)
    assert lower.shape == upper.shape == (2, 0)


@given(asked=st.lists(coverages, min_size=2, max_size=6), rows=st.integers(1, 60), seed=st.integers(0, 99))
@pytest.mark.parametrize("interval", INTERVALS)
def test_intervals_of_larger_coverage_hold_those_of_smaller(interval, asked, rows, seed):
    residuals = np.sort(np.random.default_rng(seed).normal(size=(2, rows)), axis=1)
    lower, upper = interval_factors(residuals, sorted(asked), interval=interval)
    # Neighbouring infinities are equal, and their difference is not a number.
    assert (lower[:, 1:] <= lower[:, :-1]).all()
    assert (upper[:, 1:] >= upper[:, :-1]).all()
    assert (lower <= upper).all()


@intervals
def test_intervals_do_not_depend_on_a_constant_factor_of_the_scale(interval):
    rng = np.random.default_rng(4)
    y, location, scale = rng.normal(size=(3, 50, 2))
    scale = np.exp(scale)
    once = interval_factors(sorted_residuals(y, location, scale), [0.8], interval=interval)
    thrice = interval_factors(sorted_residuals(y, location, 4 * scale), [0.8], interval=interval)
    np.testing.assert_array_equal(once, 4 * np.array(thrice))


# The guarantee, by simulation. Every repetition draws its own calibration rows and one new row; repetitions stand in
# the place of targets. A two-sided binomial test per case, failing 1 in 10 000 seeds where the theory holds.


def well_specified(rng, shape):
    x = rng.uniform(-2, 2, shape)
    location, scale = np.sin(x), 0.2 + np.abs(x)
    return rng.normal(location, scale), location, scale


def badly_wrong(rng, shape):
    x = rng.uniform(-2, 2, shape)
    y = np.sin(x) + (0.2 + np.abs(x)) * rng.exponential(size=shape)
    return y, 3 * x + 1, np.full(shape, 0.05)


@intervals
@pytest.mark.parametrize("predictor", [well_specified, badly_wrong])
@pytest.mark.parametrize("rows", [9, 20, 99, 1000])
def test_marginal_coverage_is_exactly_the_share_of_ranks(rows, predictor, interval):
    repetitions = 3000 if rows == 1000 else 10_000
    y, location, scale = predictor(np.random.default_rng(rows), (rows + 1, repetitions))
    residuals = sorted_residuals(y[:-1], location[:-1], scale[:-1])
    new = (y[-1] - location[-1]) / scale[-1]
    asked = [0.5, 0.8, 0.9, 0.99]
    lower, upper = interval_factors(residuals, asked, interval=interval)
    covered = ((new >= lower.T) & (new <= upper.T)).sum(axis=1)
    for coverage, hits in zip(asked, covered.tolist(), strict=True):
        exact = scores_within(coverage, rows, interval) / (rows + 1)
        assert coverage <= exact < coverage + (1 if interval == "symmetric" else 2) / (rows + 1)
        assert stats.binomtest(hits, repetitions, exact).pvalue > 1e-4


@pytest.mark.parametrize("predictor", [well_specified, badly_wrong])
def test_each_equal_tail_misses_its_own_half(predictor):
    rows, repetitions = 99, 10_000
    y, location, scale = predictor(np.random.default_rng(3), (rows + 1, repetitions))
    lower, upper = interval_factors(sorted_residuals(y[:-1], location[:-1], scale[:-1]), [0.9], interval="equal_tailed")
    new = (y[-1] - location[-1]) / scale[-1]
    for missed in (new < lower[:, 0], new > upper[:, 0]):
        assert stats.binomtest(int(missed.sum()), repetitions, 0.05).pvalue > 1e-4


@intervals
@pytest.mark.parametrize(("rows", "coverage"), [(20, 0.8), (50, 0.9), (400, 0.95)])
def test_given_the_calibration_rows_coverage_follows_the_beta_law(interval, rows, coverage):
    # The truth is a standard normal, the predictor says 0.7 +- 2: the coverage of every interval is known exactly.
    y = np.random.default_rng(rows).normal(size=(rows, 2000))
    residuals = sorted_residuals(y, np.full_like(y, 0.7), np.full_like(y, 2.0))
    lower, upper = interval_factors(residuals, [coverage], interval=interval)
    realised = (stats.norm.cdf(0.7 + 2 * upper) - stats.norm.cdf(0.7 + 2 * lower))[:, 0]
    within = scores_within(coverage, rows, interval)
    assert stats.kstest(realised, stats.beta(within, rows + 1 - within).cdf).pvalue > 0.001
    low, high = coverage_range(coverage, rows=rows, interval=interval, probability=0.8)
    inside = int(((low <= realised) & (realised <= high)).sum())
    assert stats.binomtest(inside, 2000, 0.8).pvalue > 0.001


def test_the_coverage_range_is_that_of_the_beta_law():
    low, high = coverage_range(0.9, rows=100)
    assert (low, high) == pytest.approx(stats.beta(91, 10).interval(0.9))
    assert coverage_range(0.95, rows=9) == (1.0, 1.0)
    assert coverage_range(0.9, rows=9, interval="equal_tailed") == (1.0, 1.0)


def ridge(x, y):
    return np.linalg.solve(np.swapaxes(x, -1, -2) @ x + np.eye(x.shape[-1]), np.swapaxes(x, -1, -2) @ y)


@intervals
def test_cross_fitted_residuals_cover_close_to_nominal(interval):
    repetitions, folds, rows, new_rows, features, coverage = 1500, 5, 60, 20, 6, 0.9
    rng = np.random.default_rng(11)
    x = rng.normal(size=(repetitions, rows + new_rows, features))
    y = x @ rng.normal(size=(features, 1)) + rng.normal(size=(repetitions, rows + new_rows, 1)) * (1 + np.abs(x[..., :1]))
    fold = np.arange(rows) % folds
    held_out, member_means = np.empty((repetitions, rows)), []
    for k in range(folds):
        weights = ridge(x[:, :rows][:, fold != k], y[:, :rows][:, fold != k])
        held_out[:, fold == k] = (x[:, :rows][:, fold == k] @ weights)[..., 0]
        member_means.append((x[:, rows:] @ weights)[..., 0])
    mean, one = np.mean(member_means, axis=0), np.ones((rows, repetitions))
    residuals = sorted_residuals(y[:, :rows, 0].T, held_out.T, one)
    lower, upper = interval_factors(residuals, [coverage], interval=interval)
    error = y[:, rows:, 0] - mean
    observed = ((lower <= error) & (error <= upper)).mean()
    assert observed > 1 - 2 * (1 - coverage)
    assert observed == pytest.approx(coverage, abs=0.02)


@intervals
def test_calibrating_by_group_holds_in_every_group(interval):
    rows, spread, repetitions, coverage = {"a": 9, "b": 30, "c": 150}, {"a": 10.0, "b": 3.0, "c": 1.0}, 4000, 0.8
    rng = np.random.default_rng(6)
    y = {group: spread[group] * rng.normal(size=(rows[group] + 1, repetitions)) for group in rows}

    def missed(group, residuals):
        lower, upper = interval_factors(residuals, [coverage], interval=interval)
        return int(((y[group][-1] < lower[:, 0]) | (y[group][-1] > upper[:, 0])).sum())

    def residuals_of(*groups):
        of_groups = np.concatenate([y[group][:-1] for group in groups])
        return sorted_residuals(of_groups, np.zeros_like(of_groups), np.ones_like(of_groups))

    for group in rows:
        exact = scores_within(coverage, rows[group], interval) / (rows[group] + 1)
        assert exact >= coverage
        assert stats.binomtest(missed(group, residuals_of(group)), repetitions, 1 - exact).pvalue > 1e-4
    # What the groups are for: calibrated together, the loudest group falls far short.
    assert missed("a", residuals_of("a", "b", "c")) / repetitions > 0.5


# Quantiles, probabilities, samples


@given(
    probabilities=st.lists(st.floats(1e-9, 1 - 1e-9), min_size=2, max_size=20),
    residuals=st.lists(st.floats(-5, 5), min_size=1, max_size=40),
)
def test_quantiles_never_cross(probabilities, residuals):
    quantiles = quantile_factors(np.sort(residuals)[None], sorted(probabilities))[0]
    assert (quantiles[1:] >= quantiles[:-1]).all()
    assert quantiles[0] > -np.inf


def test_quantiles_are_the_residuals_at_exact_ranks():
    residuals = np.arange(1.0, 100.0)[None]
    assert quantile_factors(residuals, [0.005, 0.01, 0.28, 0.5, 0.99, 0.991]).tolist() == [[1, 1, 28, 50, 99, np.inf]]


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.5, 0.95])
def test_a_new_row_stays_below_a_quantile_with_its_probability(probability):
    rows, repetitions = 20, 10_000
    y, location, scale = badly_wrong(np.random.default_rng(8), (rows + 1, repetitions))
    quantile = quantile_factors(sorted_residuals(y[:-1], location[:-1], scale[:-1]), [probability])[:, 0]
    below = int(((y[-1] - location[-1]) / scale[-1] <= quantile).sum())
    exact = np.ceil(21 * probability) / 21
    assert stats.binomtest(below, repetitions, exact).pvalue > 1e-4


@given(
    residuals=st.lists(st.integers(-20, 20), min_size=1, max_size=40, unique=True),
    probability=st.integers(1, 9999).map(lambda p: p / 10_000),
)
def test_the_cdf_of_a_quantile_is_its_probability_to_one_step(residuals, probability):
    ordered = np.sort(np.array(residuals, dtype=float))[None]
    rows = ordered.shape[1]
    quantile = quantile_factors(ordered, [probability])
    cdf = cumulative_probability(ordered, quantile[None])[0, 0, 0]
    if np.isfinite(quantile[0, 0]):
        assert -1e-12 <= cdf - probability < 1 / (rows + 1) + 1e-12
    else:
        assert probability > rows / (rows + 1)
        assert cdf == (rows + 0.5) / (rows + 1)


@given(residuals=st.lists(st.floats(-3, 3), min_size=1, max_size=30), z=st.lists(st.floats(-4, 4), min_size=2, max_size=9))
def test_the_cdf_rises_strictly_within_zero_and_one_and_mirrors(residuals, z):
    ordered, z = np.sort(residuals)[None], np.sort(z)[None, None]
    cdf = cumulative_probability(ordered, z)
    assert (np.diff(cdf) >= 0).all()
    assert ((cdf > 0) & (cdf < 1)).all()
    mirrored = cumulative_probability(-ordered[:, ::-1], -z)
    np.testing.assert_allclose(mirrored, 1 - cdf, atol=1e-12)


def test_the_cdf_stands_half_a_step_within_a_gap_also_at_infinity():
    residuals = np.array([[-1.0, 0.0, 1.0], [10.0, 20.0, 30.0]])
    z = np.array([[[-np.inf, 0.0, 0.5, np.inf], [5.0, 15.0, 20.0, 40.0]]])
    assert cumulative_probability(residuals, z).tolist() == [[[0.125, 0.5, 0.625, 0.875], [0.125, 0.375, 0.5, 0.875]]]


def test_the_probability_up_to_a_value_counts_all_rows_that_have_it():
    residuals = np.array([[-1.0, 0.0, 0.0, 0.0, 1.0]])
    z = np.array([[[-2.0, -1.0, -0.5, 0.0, 1e-7, -1e-7, 0.5, 1.0, 3.0]]])
    expected = np.array([0.5, 1, 1.5, 4, 4, 4, 4.5, 5, 5.5]) / 6
    np.testing.assert_allclose(probability_up_to(residuals, z, np.array([[1e-6]]))[0, 0], expected)
    apart = np.array([[-1.0, 0.0, 1.0], [10.0, 20.0, 30.0]])
    z = np.array([[[-np.inf, 0.0, 0.5, np.inf], [5.0, 15.0, 20.0, 40.0]]])
    assert np.array_equal(probability_up_to(apart, z, np.full((1, 2), 1e-6)), cumulative_probability(apart, z))


def test_the_cdf_at_the_truth_is_uniform_for_a_badly_wrong_predictor():
    rows, repetitions = 200, 3000
    y, location, scale = badly_wrong(np.random.default_rng(9), (rows + 1, repetitions))
    residuals = sorted_residuals(y[:-1], location[:-1], scale[:-1])
    pit = cumulative_probability(residuals, ((y[-1] - location[-1]) / scale[-1])[None, :, None]).ravel()
    assert stats.kstest(pit, "uniform").pvalue > 0.001


def test_samples_are_calibration_residuals_each_as_often_as_any_other():
    residuals = np.array([[-2.0, 0.0, 1.0, 5.0], [10.0, 20.0, 30.0, 40.0]])
    draws = sample_factors(residuals, np.random.default_rng(0), rows=30, samples=500)
    assert draws.shape == (30, 2, 500)
    for target in range(2):
        values, counts = np.unique(draws[:, target], return_counts=True)
        assert values.tolist() == residuals[target].tolist()
        assert stats.chisquare(counts).pvalue > 0.001


def test_samples_of_two_targets_are_independent():
    residuals = np.tile(np.arange(50.0), (2, 1))
    draws = sample_factors(residuals, np.random.default_rng(1), rows=1, samples=10_000)[0]
    assert abs(np.corrcoef(draws)[0, 1]) < 0.04


def test_samples_repeat_with_their_seed():
    residuals = np.arange(50.0)[None]
    first, second = (sample_factors(residuals, np.random.default_rng(5), rows=3, samples=4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


# Without calibration


@intervals
@pytest.mark.parametrize("family", ["gaussian", "laplace", "student_t"])
def test_an_uncalibrated_model_gives_its_familys_own_intervals(family, interval):
    constants = {"degrees_of_freedom": np.array([[3.0], [8.0]])} if family == "student_t" else {}
    standard = distribution(family, mean=np.zeros((2, 1)), std=np.ones((2, 1)), **constants)
    asked = [*(np.arange(1, 1000) / 1000), 0.9998]
    lower, upper = interval_factors(family_residuals(standard.quantile), asked, interval=interval)
    tails = (1 + np.array(asked)) / 2
    np.testing.assert_allclose(upper, standard.quantile(tails), rtol=1e-9)
    np.testing.assert_allclose(lower, -standard.quantile(tails), rtol=1e-9)


@pytest.mark.parametrize(("interval", "least", "most"), [("symmetric", -1e-4, 1e-4), ("equal_tailed", 0, 2e-4)])
def test_the_probability_of_a_familys_interval_is_as_close_as_the_docstring_says(interval, least, most):
    standard = distribution("gaussian", mean=0.0, std=1.0)
    asked = np.round(np.random.default_rng(0).uniform(0.01, 0.999, 500), 7)
    lower, upper = interval_factors(family_residuals(standard.quantile), asked, interval=interval)
    excess = stats.norm.cdf(upper[0]) - stats.norm.cdf(lower[0]) - asked
    assert excess.min() >= least - 1e-9
    assert excess.max() <= most + 1e-9
    assert np.ptp(excess) > 0.8 * (most - least)


def test_family_residuals_are_one_ascending_row_per_target():
    residuals = family_residuals(distribution("gaussian", mean=0.0, std=1.0).quantile, rows=99)
    assert residuals.shape == (1, 99)
    assert (np.diff(residuals) > 0).all()


# Words


def test_the_guarantee_of_a_split_names_its_bounds():
    words = guarantee("split", interval="symmetric", rows=412)
    assert "from c to c + 1/413, on average over calibration sets" in words
    low, high = coverage_range(0.9, rows=412)
    assert f"a 0.9 interval lies between {low:.3f} and {high:.3f} with probability 0.9" in words
    assert words.endswith("Finite intervals up to coverage 0.9975.")
    assert "from c to c + 2/413" in guarantee("split", interval="equal_tailed", rows=412)


@pytest.mark.parametrize("dependence", ["group", "time"])
def test_the_guarantee_of_rows_that_depend_on_each_other_has_no_range_of_coverage(dependence):
    assert "a 0.9 interval lies between" in guarantee("split", interval="symmetric", rows=412)
    assert "lies between" not in guarantee("split", interval="symmetric", rows=412, dependence=dependence)


def test_the_guarantee_of_a_tiny_split_makes_no_claim_at_90_percent():
    words = guarantee("split", interval="symmetric", rows=8)
    assert "0.9 interval" not in words
    assert words.endswith("Finite intervals up to coverage 0.8888.")


@pytest.mark.parametrize("method", ["split", "cross"])
@pytest.mark.parametrize(("interval", "excess", "largest"), [("symmetric", 1, "n"), ("equal_tailed", 2, "(n - 1)")])
def test_the_guarantee_by_group_is_that_of_the_rows_of_a_group(method, interval, excess, largest):
    words = guarantee(method, interval=interval, rows=150, group_column="sex")
    assert (f"from c to c + {excess}/(n + 1)" in words) == (method == "split")
    assert f"finite up to coverage {largest}/(n + 1)." in words
    assert "has no calibration rows, or is missing, gets those of all 150 together, without a promise." in words
    assert not re.search(r"151|probability 0\.9|Finite|the 150", words), "what all rows would promise"
    assert guarantee(method, interval=interval, rows=150, dependence="group", group_column="sex").startswith(f"{words} Rows of")


def test_the_guarantee_of_cross_fitting_is_said_to_be_weaker():
    words = guarantee("cross", interval="symmetric", rows=300)
    assert "no finite-sample guarantee is proven" in words
    assert "at least about 1 - 2 (1 - c)" in words


def test_no_calibration_means_no_guarantee():
    assert guarantee("none", interval="symmetric", rows=9999).startswith("No guarantee")


@pytest.mark.parametrize("rows", [1001, 2000, 10_000])
def test_few_nodes_average_exponentials_as_all_residuals_do(rows):
    residuals = np.sort(np.random.default_rng(rows).normal(size=(2, rows)), axis=1)
    nodes, weights = residual_nodes(residuals)
    assert nodes.shape == (2, 1000)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(nodes @ weights, residuals.mean(axis=1), atol=1e-12)
    few, every = np.exp(2 * nodes), np.exp(2 * residuals)
    for power in (1, 2):
        np.testing.assert_allclose(few**power @ weights, (every**power).mean(axis=1), rtol=0.005)


@pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
def test_the_least_observed_share_is_that_of_the_beta_binomial_law(interval):
    within = conformal_rank(0.9, rows=99) if interval == "symmetric" else 90
    exact = stats.betabinom(500, within, 100 - within).ppf(0.01) / 500
    assert least_observed(0.9, [(500, 99)], interval=interval) == pytest.approx(exact, abs=0.006)
    many = stats.binom(500, 0.9).ppf(0.01) / 500
    assert least_observed(0.9, [(500, 99_999)], interval=interval) == pytest.approx(many, abs=0.006)
    assert exact < least_observed(0.9, [(250, 99), (250, 99)], interval=interval) < many, "two groups even out"
    assert least_observed(0.99, [(7, 9)], interval=interval) == 1.0, "an infinite interval"
