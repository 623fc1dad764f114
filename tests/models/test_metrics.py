import numpy as np
import pytest
from scipy import integrate, stats

from models.distributions import distribution
from models.metrics import (
    calibration_error,
    crps_of_nodes,
    interval_score,
    mae,
    mean_width,
    nll,
    observed_coverage,
    pit_histogram,
    r2,
    rmse,
)

Y = np.array([1.0, 2.0, 4.0])


def test_nll_is_the_mean_of_minus_the_log_densities():
    assert nll(np.array([-1.0, -2.0, 0.5])) == pytest.approx(2.5 / 3)


def test_nll_of_the_truth_is_its_entropy():
    truth = distribution("gaussian", mean=0.0, std=2.0)
    y = truth.quantile((np.arange(100_000) + 0.5) / 100_000)
    assert nll(truth.log_density(y)) == pytest.approx(float(stats.norm(0, 2).entropy()), abs=1e-4)


def test_rmse_and_mae_by_hand():
    predicted = np.array([1.0, 4.0, 0.0])
    assert rmse(Y, predicted) == pytest.approx(np.sqrt(20 / 3))
    assert mae(Y, predicted) == pytest.approx(2.0)


def test_r2_is_one_for_the_truth_zero_for_the_mean_and_negative_for_worse():
    assert r2(Y, Y) == 1.0
    assert r2(Y, np.full(3, Y.mean())) == pytest.approx(0, abs=1e-12)
    assert r2(Y, Y[::-1]) < 0


def test_r2_of_a_constant_target_is_none():
    constant = np.full(7, 0.1)  # 0.1 * 7 / 7 is not 0.1 in floats
    assert r2(constant, constant + 1) is None
    assert r2(np.array([3.0]), np.array([3.0])) is None


def test_crps_of_nodes_equals_the_double_sum_of_its_definition():
    rng = np.random.default_rng(0)
    nodes, weights = np.sort(rng.normal(size=(3, 7)), axis=1), rng.dirichlet(np.ones(7))
    spread = [np.abs(row[:, None] - row) @ weights @ weights / 2 for row in nodes]
    expected = np.mean([np.abs(row - y) @ weights - half for row, y, half in zip(nodes, Y, spread, strict=True)])
    assert crps_of_nodes(Y, nodes, weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("family", ["gaussian", "laplace", "student_t"])
def test_crps_of_many_nodes_nears_the_closed_forms(family):
    constants = {"degrees_of_freedom": 5.0} if family == "student_t" else {}
    rng = np.random.default_rng(0)
    ours = distribution(family, mean=rng.normal(size=50), std=rng.uniform(0.1, 3, 50), **constants)
    y = ours.quantile(rng.uniform(size=50))
    levels = (np.arange(4000) + 0.5) / 4000
    nodes = np.stack([ours.quantile(level) for level in levels], axis=1)
    assert crps_of_nodes(y, nodes, np.full(4000, 1 / 4000)) == pytest.approx(ours.crps(y).mean(), rel=1e-3)


def test_crps_of_a_point_is_the_absolute_error():
    assert crps_of_nodes(Y, np.full((3, 1), 2.5), np.ones(1)) == mae(Y, np.full(3, 2.5))


def test_observed_coverage_counts_the_ends():
    assert observed_coverage(Y, np.array([1.0, 2.5, 0.0]), np.array([2.0, 3.0, 4.0])) == pytest.approx(2 / 3)


def test_an_infinite_interval_covers_everything_and_is_infinitely_wide():
    lower, upper = np.full(3, -np.inf), np.full(3, np.inf)
    assert observed_coverage(Y, lower, upper) == 1.0
    assert mean_width(lower, upper) == interval_score(Y, lower, upper, coverage=0.9) == np.inf


def test_mean_width_by_hand():
    assert mean_width(np.array([0.0, 1.0]), np.array([1.0, 4.0])) == 2.0


def test_interval_score_by_hand():
    lower, upper = np.array([0.0, 2.5, 0.0]), np.array([2.0, 3.5, 3.0])
    # Widths 2, 1, 3; 0.5 below and 1 above, at 2 / 0.2 each.
    assert interval_score(Y, lower, upper, coverage=0.8) == pytest.approx((6 + 10 * 1.5) / 3)


def test_interval_score_is_a_sum_of_two_pinball_losses():
    rng = np.random.default_rng(5)
    y, lower, upper = rng.normal(size=200), rng.normal(-1, 0.1, 200), rng.normal(1, 0.1, 200)

    def pinball(quantile, p):
        return np.maximum(p * (y - quantile), (p - 1) * (y - quantile)).mean()

    expected = 2 / 0.2 * (pinball(lower, 0.1) + pinball(upper, 0.9))
    assert interval_score(y, lower, upper, coverage=0.8) == pytest.approx(expected)


def test_the_expected_interval_score_equals_its_integral_and_is_smallest_at_the_quantiles():
    truth = distribution("gaussian", mean=0.0, std=1.0)
    y = truth.quantile((np.arange(20_000) + 0.5) / 20_000)

    def score(half_width):
        return interval_score(y, np.full_like(y, -half_width), np.full_like(y, half_width), coverage=0.9)

    best = float(truth.quantile(0.95))
    outside, _ = integrate.quad(lambda t: (t - best) * stats.norm.pdf(t), best, np.inf)
    assert score(best) == pytest.approx(2 * best + 2 / 0.1 * 2 * outside, rel=1e-3)
    assert score(best) < min(score(0.9 * best), score(1.1 * best))


def test_calibration_error_is_zero_for_a_uniform_pit_and_half_at_the_worst():
    assert calibration_error((np.arange(10_000) + 0.5) / 10_000) < 1e-4
    assert calibration_error(np.zeros(10)) == calibration_error(np.ones(10)) == pytest.approx(0.5)


def test_calibration_error_by_hand_counts_a_pit_at_its_own_probability():
    # One pit at 0.25: off by p below it, by 1 - p from it on.
    assert calibration_error(np.array([0.25])) == pytest.approx((sum(range(1, 25)) + sum(range(1, 76))) / 100 / 99)


def test_calibration_error_equals_the_integral_for_a_std_twice_too_large():
    quantiles = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    expected, _ = integrate.quad(lambda p: abs(stats.norm.cdf(2 * stats.norm.ppf(p)) - p), 0, 1)
    assert calibration_error(stats.norm.cdf(quantiles / 2)) == pytest.approx(expected, rel=0.02)


def test_calibration_error_by_chance_is_what_the_docstring_says():
    pit = np.random.default_rng(2).uniform(size=(2000, 400))
    assert np.mean([calibration_error(row) for row in pit]) == pytest.approx(0.31 / np.sqrt(400), rel=0.04)


def test_pit_histogram_gives_shares_that_sum_to_one_and_keeps_the_ends():
    shares = pit_histogram(np.array([0.0, 0.05, 0.5, 1.0]))
    assert shares.shape == (20,)
    assert shares.sum() == 1
    assert (shares[0], shares[1], shares[10], shares[-1]) == (0.25, 0.25, 0.25, 0.25)
    assert pit_histogram(np.array([0.1, 0.9, 0.95]), bins=2).tolist() == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("metric", [calibration_error, pit_histogram])
@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_a_pit_that_is_no_probability_is_refused(metric, bad):
    with pytest.raises(ValueError, match=f"must be between 0 and 1, not {bad}"):
        metric(np.array([0.5, bad]))
