"""Variational variance (Stirn and Knowles 2020): a Gamma posterior for the precision of every row, and a mixture prior.

The bound is E_q[log N(y | mean, 1 / precision)] - KL(q(precision | x) || p(precision | x)); its first term has a closed form,
the mixture's cross-entropy is estimated from SAMPLES draws. The prediction is the Student-t distribution with 2 alpha degrees
of freedom and squared scale beta / alpha. As in the beta-NLL paper's code, and unlike in Stirn's, mean, alpha, beta and the
mixture's logits share one hidden layer, and every target has logits of its own. Not verified against either code by running it.
"""

import itertools

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from benchmarks.quality.paper_heads import LOG_2PI, Head, Start, Starter, Tensors, forward, normal_gamma, student_t_predictive

SAMPLES = 20
COMPONENTS = 100
GRID = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Shapes and rates of VBEM's fixed prior, every pair of them a component."""
_SMALLEST_PRECISION = 1e-30


def expected_nll(mean: Tensor, alpha: Tensor, beta: Tensor, y: Tensor) -> Tensor:
    """-E[log N(y | mean, 1 / precision)] over precision ~ Gamma(alpha, rate beta), elementwise."""
    return 0.5 * (alpha / beta * (y - mean).square() - torch.digamma(alpha) + beta.log() + LOG_2PI)


def negative_entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    """Of Gamma(alpha, rate beta), elementwise."""
    return beta.log() - alpha - torch.lgamma(alpha) - (1 - alpha) * torch.digamma(alpha)


def mixture_log_density(precision: Tensor, log_weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """A scalar with the gradient of the mixture's log density, averaged over samples and summed over rows.

    precision: [k, samples, rows]. log_weight: [k, components, rows]. alpha, beta: [k, components]. The gradient of
    logsumexp(terms) is softmax(terms) times that of the terms, so only the sum of terms weighted by a constant softmax is
    built: one pass over [k, components, samples, rows] instead of six. Its value is the log density less the entropy of the
    shares, so the log density itself for one component.
    """
    k, samples, rows = precision.shape
    term = torch.stack([alpha - 1, -beta, alpha * beta.log() - torch.lgamma(alpha)], dim=1)
    precision = precision.reshape(k, 1, -1)
    statistic = torch.cat([precision.log(), precision, torch.ones_like(precision)], dim=1)
    with torch.no_grad():
        logits = torch.bmm(term.mT, statistic).view(k, -1, samples, rows)
        share = logits.add_(log_weight.unsqueeze(2)).softmax(dim=1)
    weighted = (torch.bmm(term, share.view(k, -1, samples * rows)) * statistic).sum() / samples
    return weighted + (share.mean(dim=2) * log_weight).sum()


def _vamp_start(_methods: list[str], first_batch: Tensor, _targets: int, _generator: Generator) -> Start:
    chosen = torch.arange(COMPONENTS) % first_batch.shape[2]  # a batch of fewer rows begins again
    return Start({}, {"pseudo": first_batch[:, :, chosen]})


def _trained_vamp_start(methods: list[str], first_batch: Tensor, targets: int, generator: Generator) -> Start:
    return Start(_vamp_start(methods, first_batch, targets, generator).fixed, {})


def _grid_start(_methods: list[str], first_batch: Tensor, targets: int, _generator: Generator) -> Start:
    pairs = torch.tensor(list(itertools.product(GRID, GRID))).expm1().log().T
    return Start(
        {}, {name: row.expand(len(first_batch), targets, -1) for name, row in zip(("shape", "rate"), pairs, strict=True)}
    )


def _uniform_start(_methods: list[str], first_batch: Tensor, targets: int, generator: Generator) -> Start:
    uniform = torch.rand(2, len(first_batch), targets, COMPONENTS, generator=generator) * 6 - 3
    return Start(dict(zip(("shape", "rate"), uniform, strict=True)), {})


def _prior(tensors: Tensors, targets: int) -> tuple[Tensor, Tensor]:
    """Shapes and rates of the components: [networks * targets, components] each."""
    if "pseudo" in tensors:
        pseudo = tensors["pseudo"]
        x = torch.cat([pseudo, torch.ones_like(pseudo[:, :1])], dim=1)
        _, alpha, beta = normal_gamma(forward(tensors, x, outputs=3 * targets))
    else:
        alpha, beta = softplus(tensors["shape"]), softplus(tensors["rate"])
    return alpha.flatten(0, 1), beta.flatten(0, 1)


def negative_bound(tensors: Tensors, output: Tensor, y: Tensor, generator: Generator) -> Tensor:
    """A scalar with the gradient of the negative bound: mean over rows, summed over targets and networks."""
    networks, targets, rows = y.shape
    mean, alpha, beta = normal_gamma(output[:, : 3 * targets])
    log_weight = output[:, 3 * targets :].reshape(networks * targets, -1, rows).log_softmax(dim=1)
    draws = torch._standard_gamma(alpha.reshape(-1, 1, rows).expand(-1, SAMPLES, -1), generator=generator)  # noqa: SLF001
    precision = (draws / beta.reshape(-1, 1, rows)).clamp_min(_SMALLEST_PRECISION)
    log_prior = mixture_log_density(precision, log_weight, *_prior(tensors, targets))
    return (expected_nll(mean, alpha, beta, y).sum() + negative_entropy(alpha, beta).sum() - log_prior) / rows


def _head(components: int, start: Starter) -> Head:
    return Head((3, components), 3, student_t_predictive, negative_bound, start=start, block=4)


XVAMP = _head(COMPONENTS, _vamp_start)
"""Components are the network's own posteriors at fixed inputs, the first COMPONENTS rows of the first batch."""
XVAMP_STAR = _head(COMPONENTS, _trained_vamp_start)
"""As XVAMP, the inputs trained from there."""
VBEM = _head(len(GRID) ** 2, _grid_start)
"""Components are fixed."""
VBEM_STAR = _head(COMPONENTS, _uniform_start)
"""Components are trained, their shapes and rates uniform in [-3, 3] before the softplus at first."""
