import math

import numpy as np
import pytest
import torch
from scipy import stats

from models.distributions import Gaussian
from models.heads import FAMILIES, SMALLEST_DEGREES_OF_FREEDOM, Head, Prediction
from models.losses import LOSSES, beta_nll, faithful, loss, moment_matching, mse, nll, normal_crps

GAUSSIAN = FAMILIES["gaussian"]
SHAPE = (2, 40, 3)  # members, rows, targets
betas = pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])


@pytest.fixture
def y():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def prediction():
    """Leaves that gather gradients: mean, and variance through the std."""
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(SHAPE, generator=generator, dtype=torch.float64).requires_grad_()
    std = (0.1 + 3 * torch.rand(SHAPE, generator=generator, dtype=torch.float64)).requires_grad_()
    return Prediction(mean, std)


def gradients(elementwise, y, prediction):
    """d loss / d mean and d loss / d variance, elementwise."""
    total = elementwise(y, prediction, GAUSSIAN).sum()
    by_mean, by_std = torch.autograd.grad(total, (prediction.mean, prediction.std))
    return by_mean, by_std / (2 * prediction.std.detach())


def test_the_gaussian_nll_is_its_formula(y, prediction):
    variance = prediction.std.square()
    expected = 0.5 * variance.log() + (y - prediction.mean).square() / (2 * variance) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(nll(y, prediction, GAUSSIAN), expected)


def test_gradients_of_mse_and_nll_for_the_mean_differ_by_twice_the_variance(y, prediction):
    by_mse = torch.autograd.grad(mse(y, prediction, GAUSSIAN).sum(), prediction.mean)[0]
    by_nll, _ = gradients(nll, y, prediction)
    torch.testing.assert_close(by_mse, 2 * prediction.std.detach().square() * by_nll)


@betas
def test_gradients_of_beta_nll_are_equations_8_and_9_of_the_paper(y, prediction, beta):
    by_mean, by_variance = gradients(beta_nll(beta), y, prediction)
    mean, std = prediction.mean.detach(), prediction.std.detach()
    torch.testing.assert_close(by_mean, (mean - y) / std ** (2 - 2 * beta))
    torch.testing.assert_close(by_variance, (std**2 - (y - mean) ** 2) / (2 * std ** (4 - 2 * beta)))


def test_beta_zero_is_nll(y, prediction):
    torch.testing.assert_close(beta_nll(0.0)(y, prediction, GAUSSIAN), nll(y, prediction, GAUSSIAN))


def test_beta_one_gives_the_mean_the_gradient_of_half_the_squared_error(y, prediction):
    by_mean, _ = gradients(beta_nll(1.0), y, prediction)
    torch.testing.assert_close(by_mean, prediction.mean.detach() - y)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_beta_outside_0_to_1_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta {beta} is outside 0 to 1"):
        beta_nll(beta)


def test_faithful_gives_the_mean_the_gradient_of_half_the_squared_error_and_the_scale_that_of_nll(y, prediction):
    by_mean, by_variance = gradients(faithful, y, prediction)
    torch.testing.assert_close(by_mean, prediction.mean.detach() - y)
    torch.testing.assert_close(by_variance, gradients(nll, y, prediction)[1])


def test_faithful_gives_the_trunk_no_gradient_from_the_scale(y):
    chosen = loss("faithful")
    head = linear_head(features=4, heteroscedastic=True, members=2, targets=3)
    trunk = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    prediction = head(trunk, detach_scale=chosen.detach_scale)
    from_faithful = torch.autograd.grad(chosen.elementwise(y, prediction, chosen.family).sum(), trunk, retain_graph=True)[0]
    from_half_mse = torch.autograd.grad(0.5 * mse(y, prediction, GAUSSIAN).sum(), trunk)[0]
    torch.testing.assert_close(from_faithful, from_half_mse)


def test_moment_matching_is_least_at_the_sample_mean_and_the_mean_absolute_deviation():
    y = torch.randn(500, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mean = y.mean().requires_grad_()
    std = (y - y.mean()).abs().mean().requires_grad_()
    by_mean, by_std = torch.autograd.grad(moment_matching(y, Prediction(mean, std), GAUSSIAN).mean(), (mean, std))
    assert by_mean.item() == pytest.approx(0, abs=1e-12)
    assert by_std.item() == pytest.approx(0, abs=1e-12)
    least = moment_matching(y, Prediction(mean, std), GAUSSIAN).mean()
    for other in (Prediction(mean + 0.1, std), Prediction(mean, std + 0.1), Prediction(mean, std - 0.1)):
        assert moment_matching(y, other, GAUSSIAN).mean() > least


def test_moment_matching_gives_the_mean_no_gradient_through_the_std_target(y, prediction):
    by_mean, _ = gradients(moment_matching, y, prediction)
    torch.testing.assert_close(by_mean, 2 * (prediction.mean.detach() - y))


@pytest.mark.parametrize("df", [2.2, 3.0, 8.0, 50.0, 1e4])
def test_the_student_t_log_density_is_scipys_with_this_std(df, y, prediction):
    constant = torch.tensor(math.log(math.expm1(df - SMALLEST_DEGREES_OF_FREEDOM)) if df < 100 else df - 2.1)
    actual = FAMILIES["student_t"].log_density(y, prediction._replace(constant=constant.double()))
    mean, std = (moment.detach().numpy() for moment in prediction[:2])
    oracle = stats.t(df, loc=mean, scale=std * math.sqrt((df - 2) / df))
    np.testing.assert_allclose(actual.detach().numpy(), oracle.logpdf(y.numpy()), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(oracle.std(), std)


@pytest.mark.parametrize(("family", "oracle"), [("gaussian", stats.norm), ("laplace", stats.laplace)])
def test_log_densities_are_scipys_with_this_mean_and_std(family, oracle, y, prediction):
    mean, std = (moment.detach().numpy() for moment in prediction[:2])
    reference = oracle(loc=mean, scale=std / oracle.std())
    np.testing.assert_allclose(reference.std(), std)
    actual = FAMILIES[family].log_density(y, prediction)
    np.testing.assert_allclose(actual.detach().numpy(), reference.logpdf(y.numpy()), rtol=1e-12)


def linear_head(*, features, heteroscedastic, members=1, targets=1):
    torch.manual_seed(5)
    return Head(
        members=members,
        width=features,
        targets=targets,
        family=GAUSSIAN,
        heteroscedastic=heteroscedastic,
        minimum_std=1e-3,
        maximum_std=100.0,
    ).double()


def linear_table():
    """Rows whose noise grows with the first feature: x [1, 300, 3], y [1, 300, 1]."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(300, 3))
    y = x @ [1.5, -2.0, 0.5] + 0.7 + (0.3 + 0.4 * (x[:, 0] > 0)) * rng.normal(size=300)
    return torch.from_numpy(x)[None], torch.from_numpy(y)[None, :, None]


def trained(name, x, y):
    """A linear network at the optimum of a loss."""
    chosen = loss(name)
    head = linear_head(features=x.shape[2], heteroscedastic=chosen.heteroscedastic)
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = chosen.elementwise(y, head(x), chosen.family).mean()
        value.backward()
        return value

    optimiser.step(closure)
    return head


def least_squares(x, y, weights):
    """The normal equations: X' W X w = X' W y; [coefficients..., intercept]."""
    design = np.column_stack([x[0].numpy(), np.ones(x.shape[1])])
    return np.linalg.solve(design.T * weights @ design, design.T * weights @ y[0, :, 0].numpy())


def coefficients(head):
    return [*head.mean_weight.detach().flatten().tolist(), head.mean_bias.item()]


@pytest.mark.parametrize("name", ["mse", "homoscedastic"])
def test_a_linear_network_ends_at_the_normal_equations(name):
    x, y = linear_table()
    np.testing.assert_allclose(coefficients(trained(name, x, y)), least_squares(x, y, np.ones(300)), atol=1e-6)


def test_a_linear_network_with_nll_ends_at_the_normal_equations_weighted_by_its_own_variance():
    x, y = linear_table()
    head = trained("nll", x, y)
    weights = head(x).std.detach()[0, :, 0].numpy() ** -2
    assert weights.max() / weights.min() > 4
    np.testing.assert_allclose(coefficients(head), least_squares(x, y, weights), atol=1e-5)


def test_the_std_of_homoscedastic_and_of_mse_is_the_root_mean_squared_residual():
    x, y = linear_table()
    design = np.column_stack([x[0].numpy(), np.ones(300)])
    _, squared, *_ = np.linalg.lstsq(design, y[0, :, 0].numpy())
    expected = math.sqrt(squared[0] / 300)
    assert trained("homoscedastic", x, y)(x).std[0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert loss("mse").residual_std
    head = trained("mse", x, y)
    head.set_constant_std((y - head(x).mean).square().mean(dim=1).sqrt())
    assert head(x).std[0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_the_residual_scale_that_mse_sets_has_the_greatest_likelihood():
    x, y = linear_table()
    head = trained("mse", x, y)
    head.set_constant_std((y - head(x).mean).square().mean(dim=1).sqrt())
    value = nll(y, head(x), GAUSSIAN).mean()
    assert torch.autograd.grad(value, head.scale_bias)[0].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_finite_gradients_to_all_that_it_trains(name):
    chosen = loss(name)
    head = Head(
        members=2, width=4, targets=3, family=chosen.family, heteroscedastic=chosen.heteroscedastic,
        minimum_std=1e-3, maximum_std=10.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    prediction = head(torch.randn(2, 40, 4, generator=generator), detach_scale=chosen.detach_scale)
    values = chosen.elementwise(torch.randn(SHAPE, generator=generator), prediction, chosen.family)
    assert values.shape == SHAPE
    values.mean().backward()
    trained_by_gradient = {n: p for n, p in head.named_parameters() if not (chosen.residual_std and n == "scale_bias")}
    for parameter in trained_by_gradient.values():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no loss is called 'crossentropy'; there are beta_nll, nll, .*student_t"):
        loss("crossentropy")


def test_beta_reaches_beta_nll(y, prediction):
    chosen = loss("beta_nll", beta=1.0)
    torch.testing.assert_close(chosen.elementwise(y, prediction, GAUSSIAN), beta_nll(1.0)(y, prediction, GAUSSIAN))
    with pytest.raises(ValueError, match="beta 2"):
        loss("beta_nll", beta=2)


def test_the_crps_is_least_at_the_true_mean_and_std():
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    y = 0.3 + 2 * torch.special.ndtri(levels)
    crps = loss("crps")
    mean, std = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, 2.0))
    by_mean, by_std = torch.autograd.grad(crps.elementwise(y, Prediction(mean, std), crps.family).mean(), (mean, std))
    assert by_mean.item() == pytest.approx(0, abs=1e-3)
    assert by_std.item() == pytest.approx(0, abs=1e-3)
    wrong = Prediction(mean.detach(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.grad(crps.elementwise(y, wrong, crps.family).mean(), wrong.std)[0] < -0.05


def test_the_normal_crps_is_that_of_the_distribution(y, prediction):
    mean, std = prediction.mean.detach(), prediction.std.detach()
    expected = Gaussian(mean.numpy(), std.numpy()).crps(y.numpy())
    np.testing.assert_allclose(normal_crps(y, Prediction(mean, std)).numpy(), expected, rtol=1e-9, atol=1e-12)
