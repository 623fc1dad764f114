import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.quality import paper, paper_heads, paper_networks, paper_variational
from benchmarks.quality.paper_networks import Trial, train
from benchmarks.quality.sets import Set, Split

HEADS = {method: head for head, methods in paper.FAMILIES for method in methods}


def made_up(rows=400, splits=2, targets=1, seed=0):
    """Noise that grows with the second input; the last column is constant."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.uniform(-2, 2, (rows, 2)), np.full(rows, 0.1)])
    noise = 0.02 * np.exp(1.2 * x[:, 1:2])
    y = 30 + 5 * (np.sin(x[:, :1]) + noise * rng.normal(size=(rows, targets)))
    cut = []
    for number in range(splits):
        order = rng.permutation(rows)
        train_rows = np.sort(order[rows // 10 :])
        cut.append(Split(number, train_rows, np.sort(order[-rows // 5 :]), np.sort(order[: rows // 10])))
    return Set("made-up", "made-up", (), ["a", "b", "c"], [f"y{t}" for t in range(targets)], x, y, cut)


def test_every_method_has_a_head_and_nll_is_beta_0():
    assert paper.METHODS[:2] == ("nll", "beta_nll_0")
    assert len(set(paper.METHODS)) == 13


def test_a_step_of_adam_is_that_of_torch_for_every_network():
    generator = torch.Generator().manual_seed(0)
    start, rates = torch.randn(3, 5, generator=generator), (1e-4, 1e-3, 1e-2)
    ours = start.clone()
    adam = paper_networks.Adam(ours, torch.tensor(rates).view(-1, 1))
    theirs = [row.clone().requires_grad_() for row in start]
    optimisers = [torch.optim.Adam([row], lr=rate) for row, rate in zip(theirs, rates, strict=True)]
    for _ in range(20):
        gradient = torch.randn(3, 5, generator=generator) * 1e-3
        adam.step(ours, gradient)
        for row, optimiser, own in zip(theirs, optimisers, gradient, strict=True):
            row.grad = own
            optimiser.step()
    torch.testing.assert_close(ours, torch.stack(theirs).detach(), rtol=1e-5, atol=1e-7)


def test_the_network_with_scratch_memory_has_the_gradients_of_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(2, *shape, generator=generator).requires_grad_()
        for name, shape in {"hidden": (6, 4), "out": (3, 6), "bias": (3, 1)}.items()
    }
    x, weight = torch.randn(2, 4, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    plain = paper_heads.forward(tensors, x)
    ours = paper_networks._Network.apply(*tensors.values(), x, torch.empty(2, 2, 6, 8))
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad((plain * weight).sum(), list(tensors.values()))
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), list(tensors.values())), expected)


@pytest.mark.parametrize("method", ["beta_nll_0.5", "moment_matching", "mse", "student_t"])
def test_networks_trained_together_become_what_each_becomes_alone(method):
    data, head = made_up(), HEADS[method]
    trials = [Trial(0, method, 1e-3, 3), Trial(0, method, 7e-3, 12), Trial(1, method, 3e-3, 5), Trial(1, method, 7e-3, 8)]
    together = train(data, head, trials, held_out=True)
    for trial, one in zip(trials, together, strict=True):
        (alone,) = train(data, head, [trial], held_out=True)
        assert one.epochs == alone.epochs
        assert one.score == pytest.approx(alone.score, rel=1e-3)
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(one.tensors[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_beta_is_a_networks_own():
    y, output = torch.randn(2, 1, 7), torch.randn(2, 2, 7).requires_grad_()
    together = HEADS["beta_nll_0.5"].loss({"beta": torch.tensor([0.0, 0.5]).view(2, 1, 1)}, output, y, torch.Generator())
    (gradient,) = torch.autograd.grad(together, output)
    for i, beta in enumerate((0.0, 0.5)):
        leaf = output[i : i + 1].detach().requires_grad_()
        variance = torch.nn.functional.softplus(leaf[:, 1:] + math.log(math.e - 1))
        plain = torch.nn.functional.gaussian_nll_loss(leaf[:, :1], y[i : i + 1], variance, reduction="none")
        expected = torch.autograd.grad((plain * variance.detach() ** beta).mean(), leaf)[0]
        torch.testing.assert_close(gradient[i : i + 1], expected, rtol=1e-4, atol=1e-6)


def test_heads_start_at_the_papers_values():
    zero = torch.zeros(1, 3, 1)
    assert paper_heads.positive(zero[:, :1]).item() == pytest.approx(1)
    _, alpha, beta = paper_heads.normal_gamma(zero)
    assert alpha.item() == pytest.approx(1.694, abs=5e-4)
    assert beta.item() == pytest.approx(0.694, abs=5e-4)


def test_the_student_t_nll_is_scipys():
    mean, alpha, beta, y = (torch.tensor(value) for value in (0.3, 1.7, 0.4, 1.1))
    expected = -stats.t.logpdf(1.1, df=3.4, loc=0.3, scale=math.sqrt(0.4 / 1.7))
    assert paper_heads.student_t_nll(mean, alpha, beta, y).item() == pytest.approx(expected, rel=1e-5)
    predictive = paper_heads.Predictive(*(value.view(1, 1, 1) for value in (mean, beta / (alpha - 1), alpha)))
    scored = paper_heads.score(predictive, y.view(1, 1, 1), scale=torch.ones(1, 1, 1))
    assert scored.item() == pytest.approx(expected, rel=1e-5)
    raw = paper_heads.raw_distribution(predictive, centre=np.array([10.0]), scale=np.array([2.0]), residual=np.array([1.0]))
    assert raw.log_density(np.array([[12.2]]))[0] == pytest.approx(-expected - math.log(2), rel=1e-5)


def test_the_first_term_of_the_bound_is_the_expected_log_density():
    rng = np.random.default_rng(0)
    precision = rng.gamma(2.5, 1 / 1.5, 400_000)
    expected = -stats.norm.logpdf(0.8, loc=0.1, scale=precision**-0.5).mean()
    found = paper_variational.expected_nll(*(torch.tensor(value) for value in (0.1, 2.5, 1.5, 0.8)))
    assert found.item() == pytest.approx(expected, abs=0.01)  # the mean's standard error is 0.0011


def test_the_divergence_from_one_component_is_that_between_two_gamma_distributions():
    posterior = torch.distributions.Gamma(torch.tensor(2.5), torch.tensor(1.5))
    prior = torch.distributions.Gamma(torch.tensor(1.2), torch.tensor(0.7))
    torch.manual_seed(0)
    draws = posterior.sample((1, 40_000, 1))
    cross = paper_variational.mixture_log_density(
        draws, torch.zeros(1, 1, 1), prior.concentration.view(1, 1), prior.rate.view(1, 1)
    )
    found = paper_variational.negative_entropy(posterior.concentration, posterior.rate) - cross
    expected = torch.distributions.kl_divergence(posterior, prior).item()
    assert found.item() == pytest.approx(expected, abs=0.02)


def test_the_mixtures_log_density_and_its_gradients_are_those_of_plain_operators():
    generator = torch.Generator().manual_seed(0)
    k, components, samples, rows = 2, 7, 23, 5
    precision = (torch.rand(k, samples, rows, generator=generator) + 0.1).requires_grad_()
    logits = torch.randn(k, components, rows, generator=generator).requires_grad_()
    alpha, beta = ((torch.rand(k, components, generator=generator) + 0.2).requires_grad_() for _ in range(2))
    weight = logits.log_softmax(dim=1)
    density = torch.distributions.Gamma(alpha[:, :, None, None], beta[:, :, None, None]).log_prob(precision.unsqueeze(1))
    plain = (density + weight.unsqueeze(2)).logsumexp(dim=1).mean(dim=1).sum()
    ours = paper_variational.mixture_log_density(precision, weight, alpha, beta)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    leaves = [precision, logits, alpha, beta]
    expected = torch.autograd.grad(plain, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "moves"), [("xvamp", None), ("xvamp_star", "pseudo"), ("vbem", None), ("vbem_star", "shape")]
)
def test_only_a_starred_prior_is_trained(method, moves):
    data, head = made_up(targets=2), HEADS[method]
    block = paper_networks._Block(data, head, [Trial(0, method, 1e-3, 2)], held_out=True, seed=0)
    before = {name: tensor.detach().clone() for name, tensor in block.tensors.items()}
    (one,) = block.run()
    changed = {name for name in before if not torch.equal(before[name], one.tensors[name])}
    assert changed - {"hidden", "out", "bias"} == ({"shape", "rate"} if moves == "shape" else {moves} - {None})
    assert before["out"].shape[1] == 2 * (3 + (144 if method == "vbem" else 100))


def test_standardising_looks_at_the_rows_given_and_leaves_a_constant_column_alone():
    data = made_up()
    rows = data.splits[0].train
    table = paper_networks.scaling(data, rows).table(data, rows)
    np.testing.assert_allclose(table[[0, 1, 4]].mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(table[[0, 1, 4]].std(axis=1), 1)
    assert np.abs(table[2]).max() < 1e-12
    assert (table[3] == 1).all()


@pytest.mark.parametrize("method", ["beta_nll_0.5", "mse"])
def test_test_rows_have_no_influence(method):
    data = made_up(splits=1)
    poisoned = dataclasses.replace(data, x=data.x.copy(), y=data.y.copy())
    poisoned.x[data.splits[0].test] = poisoned.y[data.splits[0].test] = np.nan
    found = []
    for one in (data, poisoned):
        chosen = paper.choose(one, HEADS[method], [method], full_grid=True, updates=40)
        found.append((chosen, train(one, HEADS[method], chosen, held_out=False)[0].tensors["out"]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_validation_rows_train_only_the_last_network():
    data = made_up(splits=1)
    moved = dataclasses.replace(data, y=data.y.copy())
    moved.y[data.splits[0].validation] += 3
    trial = [Trial(0, "mse", 1e-3, 4)]
    for held_out in (True, False):
        a, b = (train(one, HEADS["mse"], trial, held_out=held_out)[0].tensors["out"] for one in (data, moved))
        assert torch.equal(a, b) == held_out


def test_the_best_epoch_is_kept_and_patience_ends_a_run():
    data = made_up(splits=1, rows=60)  # few rows and a high rate: overfits soon
    (one,) = train(data, HEADS["beta_nll_0"], [Trial(0, "beta_nll_0", 7e-3, 5000)], held_out=True)
    (stopped,) = train(data, HEADS["beta_nll_0"], [Trial(0, "beta_nll_0", 7e-3, one.epochs)], held_out=True)
    assert one.epochs < 5000 - paper_networks.PATIENCE
    assert stopped.epochs == one.epochs
    assert stopped.score == pytest.approx(one.score)


def test_splits_of_different_lengths_train_in_one_call():
    data = made_up()
    short = dataclasses.replace(data.splits[1], train=data.splits[1].train[:-7])
    data = dataclasses.replace(data, splits=[data.splits[0], short])
    trials = [Trial(s, "mse", 1e-3, 2) for s in (0, 1)]
    alone = train(data, HEADS["mse"], trials[:1], held_out=True)
    together = train(data, HEADS["mse"], trials, held_out=True)
    assert together[0].score == alone[0].score
    assert math.isfinite(together[1].score)


def test_the_epochs_hold_the_updates_of_whole_batches():
    split = Split(0, np.arange(1000), np.arange(200), np.arange(1000, 1100))
    assert paper.epochs_at_most(split, updates=20_000) == 6667  # three batches of 256 in 800 rows
    small = Split(0, np.arange(100), np.arange(20), np.arange(100, 110))
    assert paper.epochs_at_most(small, updates=20_000) == 20_000


def test_rate_and_epochs_are_chosen_on_every_split_or_the_rate_on_the_first():
    data = made_up(splits=3)
    chosen = paper.choose(data, HEADS["mse"], ["mse"], full_grid=False, updates=60)
    assert [trial.split for trial in chosen] == [0, 1, 2]
    assert len({trial.rate for trial in chosen}) == 1
    everywhere = paper.choose(data, HEADS["mse"], ["mse"], full_grid=True, updates=60)
    assert [trial.split for trial in everywhere] == [0, 1, 2]
    assert everywhere[0] == chosen[0]


def test_growing_noise_is_learned_and_the_alias_is_the_same_network():
    data = made_up(rows=900, splits=1)
    (nll, alias, homoscedastic) = paper.run(
        data, ["nll", "beta_nll_0", "mse"], full_grid=False, most_updates=1500
    )  # in the order of the families
    y = data.y[data.splits[0].test]
    assert (nll.method, alias.method, homoscedastic.method) == ("nll", "beta_nll_0", "mse")
    assert dataclasses.replace(alias, method="nll") == nll
    assert nll.ll > homoscedastic.ll + 0.2
    assert nll.rmse < 0.3 * y.std()
    assert 0.75 < nll.coverage90 <= 1


def test_every_score_of_a_variational_method_is_finite():
    data = made_up(rows=150, splits=2, targets=2)
    scores = list(paper.run(data, ["vbem_star", "xvamp"], full_grid=False, most_updates=6))
    assert [(score.method, score.split) for score in scores] == [
        ("xvamp", 0),
        ("xvamp", 1),
        ("vbem_star", 0),
        ("vbem_star", 1),
    ]
    for score in scores:
        assert all(math.isfinite(value) for value in (score.ll, score.rmse, score.crps, score.width90, score.seconds))


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="no method 'beta_nll_2'; it has nll, beta_nll_0"):
        next(paper.run(made_up(), ["beta_nll_2"], full_grid=False))
