import numpy as np
import pytest
from scipy import integrate, optimize, stats

from models.distributions import (
    LEAST_DEGREES_OF_FREEDOM,
    distribution,
    likeliest_degrees_of_freedom,
    maximum_likelihood_scale,
)

MEAN, STD, DF = 1.3, 0.6, 4.5
ORACLES = {
    "gaussian": stats.norm(MEAN, STD),
    "laplace": stats.laplace(MEAN, STD / np.sqrt(2)),
    "student_t": stats.t(DF, MEAN, STD * np.sqrt((DF - 2) / DF)),
}
POINTS = MEAN + STD * np.array([-12.0, -3.0, -1.0, -0.1, 0.0, 0.4, 2.0, 9.0])
families = pytest.mark.parametrize("family", ORACLES)


def constants(family, df=DF):
    return {"degrees_of_freedom": df} if family == "student_t" else {}


def predicted(family):
    return distribution(family, mean=MEAN, std=STD, **constants(family))


@families
def test_log_density_and_quantile_equal_scipys(family):
    ours, oracle = predicted(family), ORACLES[family]
    np.testing.assert_allclose(ours.log_density(POINTS), oracle.logpdf(POINTS), rtol=1e-12)
    p = np.array([1e-12, 1e-4, 0.05, 0.3, 0.5, 0.9, 0.999999])
    np.testing.assert_allclose(ours.quantile(p), oracle.ppf(p), rtol=1e-9)


@families
def test_quantiles_at_the_ends_are_infinite(family):
    assert predicted(family).quantile([0.0, 1.0]).tolist() == [-np.inf, np.inf]


@families
def test_quantiles_are_symmetric_about_the_mean(family):
    standard = distribution(family, mean=0, std=1, **constants(family))
    p = np.arange(1, 64) / 128  # exact in binary, and so is 1 - p
    np.testing.assert_array_equal(standard.quantile(p), -standard.quantile(1 - p))


@families
def test_mean_and_std_are_the_moments(family):
    ours = predicted(family)

    def moment(power):
        return integrate.quad(lambda y: y**power * np.exp(ours.log_density(y)), -np.inf, np.inf, epsabs=1e-10)[0]

    assert moment(0) == pytest.approx(1, abs=1e-8)
    assert moment(1) == pytest.approx(MEAN, abs=1e-7)
    assert moment(2) - MEAN**2 == pytest.approx(STD**2, rel=1e-5)


@families
@pytest.mark.parametrize("y", [-2.0, 1.0, 1.3, 1.9, 6.0])
def test_crps_is_the_integral_of_the_squared_cdf_difference(family, y):
    oracle = ORACLES[family]
    below, _ = integrate.quad(lambda t: oracle.cdf(t) ** 2, -np.inf, y)
    above, _ = integrate.quad(lambda t: oracle.sf(t) ** 2, y, np.inf)
    assert predicted(family).crps(y) == pytest.approx(below + above, abs=1e-7)


@families
def test_crps_is_smallest_in_expectation_for_the_true_distribution(family):
    truth = predicted(family)
    y = truth.quantile((np.arange(2000) + 0.5) / 2000)
    wrong = [(MEAN + 0.2, STD), (MEAN, 0.7 * STD), (MEAN, 1.4 * STD)]
    others = [distribution(family, mean=m, std=s, **constants(family)).crps(y).mean() for m, s in wrong]
    assert truth.crps(y).mean() < min(others)


def test_student_t_with_many_degrees_of_freedom_is_the_gaussian():
    t = distribution("student_t", mean=MEAN, std=STD, degrees_of_freedom=1e6)
    gaussian = distribution("gaussian", mean=MEAN, std=STD)
    near = POINTS[1:-1]
    np.testing.assert_allclose(t.log_density(near), gaussian.log_density(near), atol=1e-4)
    np.testing.assert_allclose(t.crps(near), gaussian.crps(near), atol=1e-5)


@families
def test_parameters_and_arguments_broadcast(family):
    mean, std = np.zeros((5, 2, 1)), np.ones((5, 2, 1))
    ours = distribution(family, mean=mean, std=std, **constants(family, df=np.array([[3.0], [9.0]])))
    for method in (ours.log_density, ours.crps):
        assert method(np.array([-1.0, 0.0, 1.0])).shape == (5, 2, 3)
    assert ours.quantile([0.1, 0.9, 0.95, 0.99]).shape == (5, 2, 4)


def test_each_target_has_its_own_degrees_of_freedom():
    both = distribution("student_t", mean=0, std=1, degrees_of_freedom=[3.0, 30.0]).log_density(-2.0)
    single = [distribution("student_t", mean=0, std=1, degrees_of_freedom=df).log_density(-2.0) for df in (3.0, 30.0)]
    np.testing.assert_array_equal(both, single)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"family": "cauchy"}, "no family 'cauchy'; there are gaussian, laplace, student_t"),
        ({"family": "student_t"}, "student_t needs degrees_of_freedom, and only it: 'student_t' came with None"),
        ({"family": "gaussian", "degrees_of_freedom": 5.0}, "'gaussian' came with 5.0"),
        ({"family": "student_t", "degrees_of_freedom": 2.0}, "must be above 2 for a std to exist, not 2.0"),
        ({"family": "laplace", "std": [1.0, 0.0]}, "a std must be positive; the smallest here is 0.0"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        distribution(**{"mean": 0.0, "std": 1.0} | arguments)


@families
@pytest.mark.parametrize("df", [2.05, 5.0, 200.0])
@pytest.mark.parametrize("zeros", [0, 100])
def test_the_maximum_likelihood_scale_maximises_the_likelihood(family, df, zeros):
    residuals = 3.0 * np.random.default_rng(7).standard_t(4, size=500)
    residuals[:zeros] = 0

    def loss(log_factor):
        fitted = distribution(family, mean=0.0, std=np.exp(log_factor), **constants(family, df))
        return -fitted.log_density(residuals).mean()

    best = optimize.minimize_scalar(loss, bounds=(-4, 6), method="bounded", options={"xatol": 1e-9})
    factor = maximum_likelihood_scale(residuals, family=family, **constants(family, df))
    assert np.log(factor) == pytest.approx(best.x, abs=1e-6)


@families
@pytest.mark.parametrize("truth", [1e-3, 1.0, 40.0])
def test_the_maximum_likelihood_scale_finds_the_std_of_its_own_family(family, truth):
    true = distribution(family, mean=0.0, std=truth, **constants(family))
    residuals = true.quantile((np.arange(20_000) + 0.5) / 20_000)
    assert maximum_likelihood_scale(residuals, family=family, **constants(family)) == pytest.approx(truth, rel=2e-3)


@families
def test_residuals_of_one_size_have_a_closed_form_scale(family):
    closed_form = {"gaussian": 0.5, "laplace": 0.5 * np.sqrt(2), "student_t": 0.5 * np.sqrt(DF / (DF - 2))}
    factor = maximum_likelihood_scale([0.5, -0.5, 0.5], family=family, **constants(family))
    assert factor == pytest.approx(closed_form[family], rel=1e-12)


@families
def test_residuals_without_a_likeliest_scale_are_refused(family):
    with pytest.raises(ValueError, match="10 of 10 residuals are exactly 0"):
        maximum_likelihood_scale(np.zeros(10), family=family, **constants(family))


def test_too_many_zeros_leave_student_t_without_a_likeliest_scale():
    residuals = np.array([0.0] * 9 + [1.0])
    with pytest.raises(ValueError, match="9 of 10 residuals are exactly 0"):
        maximum_likelihood_scale(residuals, family="student_t", degrees_of_freedom=3.0)


@pytest.mark.parametrize("truth", [3.5, 6.0, 15.0])
def test_the_likeliest_degrees_of_freedom_are_those_of_the_residuals_whatever_their_scale(truth):
    true = distribution("student_t", mean=0.0, std=7.0, degrees_of_freedom=truth)
    residuals = true.quantile((np.arange(20_000) + 0.5) / 20_000)
    assert likeliest_degrees_of_freedom(residuals) == pytest.approx(truth, rel=0.1)


def test_heavier_tails_than_three_degrees_of_freedom_count_as_three():
    residuals = stats.cauchy.rvs(size=500, random_state=0)
    assert likeliest_degrees_of_freedom(residuals) == pytest.approx(LEAST_DEGREES_OF_FREEDOM)


@pytest.mark.parametrize("rows", [30, 3000])
def test_normal_residuals_pay_for_no_degrees_of_freedom(rows):
    found = [likeliest_degrees_of_freedom(stats.norm.rvs(size=rows, random_state=seed)) for seed in range(20)]
    assert sum(df is not None for df in found) <= 2  # the criterion lets pass one in twenty or fewer
