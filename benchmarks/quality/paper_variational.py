"""Variational variance (Stirn and Knowles 2020): a Gamma posterior for the precision of every row, and a mixture prior.

The bound is E_q[log N(y | mean, 1 / precision)] - KL(q(precision | x) || p(precision | x)); its first term has a closed form,
the mixture's cross-entropy is estimated from SAMPLES draws. The prediction is the Student-t distribution with 2 alpha degrees
of freedom and squared scale beta / alpha. As in the beta-NLL paper's code, and unlike in Stirn's, mean, alpha, beta and the
mixture's logits share one hidden layer, and every target has logits of its own. Not verified against either code by running it.
"""

import itertools
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from benchmarks.quality.paper_heads import LOG_2PI, Head, Start, Starter, Tensors, forward, normal_gamma, student_t_predictive

SAMPLES = 20
COMPONENTS = 100
GRID = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Shapes and rates of VBEM's fixed prior, every pair of them a component."""
_SMALLEST_PRECISION = 1e-30
_PART = 10
"""Samples whose [components, samples, rows] stay in cache."""


def expected_nll(mean: Tensor, alpha: Tensor, beta: Tensor, y: Tensor) -> Tensor:
    """-E[log N(y | mean, 1 / precision)] over precision ~ Gamma(alpha, rate beta), elementwise."""
    return 0.5 * (alpha / beta * (y - mean).square() - torch.digamma(alpha) + beta.log() + LOG_2PI)


def negative_entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    """Of Gamma(alpha, rate beta), elementwise."""
    return beta.log() - alpha - torch.lgamma(alpha) - (1 - alpha) * torch.digamma(alpha)


class _LogSumExp(torch.autograd.Function):
    """Mean over samples of log sum over components of exp(term . statistic + log weight), summed over the rest: a scalar.

    term: [k, 3, components]. statistic: [k, 3, samples, rows]. log_weight: [k, components, rows]. The gradients are taken
    on the way, part by part in one piece of memory that a core's cache holds: three times as fast as operators that each make
    a new [k, components, samples, rows].
    """

    @staticmethod
    def forward(ctx: Any, term: Tensor, statistic: Tensor, log_weight: Tensor) -> Tensor:
        k, components, rows = log_weight.shape
        samples = statistic.shape[2]
        of_term, of_statistic, of_weight = torch.zeros_like(term), torch.empty_like(statistic), torch.zeros_like(log_weight)
        memory, total = log_weight.new_empty(components * _PART * rows), log_weight.new_zeros(())
        for i in range(k):
            for first in range(0, samples, _PART):
                part = statistic[i, :, first : first + _PART].flatten(1)
                share = torch.mm(term[i].T, part, out=memory[: components * part.shape[1]].view(components, -1))
                by_sample = share.view(components, -1, rows)
                by_sample += log_weight[i].unsqueeze(1)
                largest = share.amax(dim=0)
                norm = share.sub_(largest).exp_().sum(dim=0)
                share /= norm
                total += (norm.log_() + largest).sum()
                of_term[i].addmm_(part, share.T)
                of_statistic[i, :, first : first + _PART] = (term[i] @ share).view(3, -1, rows)
                of_weight[i] += by_sample.sum(dim=1)
        ctx.save_for_backward(of_term, of_statistic, of_weight)
        return total / samples

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        share = gradients[0] / ctx.saved_tensors[1].shape[2]
        return tuple(gradient * share for gradient in ctx.saved_tensors)


def mixture_log_density(precision: Tensor, log_weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Of a mixture of Gamma distributions, averaged over samples, summed over the rest: a scalar.

    precision: [k, samples, rows]. log_weight: [k, components, rows]. alpha, beta (rate): [k, components].
    """
    term = torch.stack([alpha - 1, -beta, alpha * beta.log() - torch.lgamma(alpha)], dim=1)
    statistic = torch.stack([precision.log(), precision, torch.ones_like(precision)], dim=1)
    return _LogSumExp.apply(term, statistic, log_weight)  # type: ignore[no-any-return, no-untyped-call]


def _vamp_start(_method: str, first_batch: Tensor, _targets: int, _generator: Generator) -> Start:
    chosen = torch.arange(COMPONENTS) % first_batch.shape[2]  # a batch of fewer rows begins again
    return Start({}, {"pseudo": first_batch[:, :, chosen]})


def _trained_vamp_start(method: str, first_batch: Tensor, targets: int, generator: Generator) -> Start:
    return Start(_vamp_start(method, first_batch, targets, generator).fixed, {})


def _grid_start(_method: str, _first_batch: Tensor, targets: int, _generator: Generator) -> Start:
    pairs = torch.tensor(list(itertools.product(GRID, GRID))).expm1().log().T
    return Start({}, {name: row.expand(1, targets, -1) for name, row in zip(("shape", "rate"), pairs, strict=True)})


def _uniform_start(_method: str, _first_batch: Tensor, targets: int, generator: Generator) -> Start:
    uniform = torch.rand(2, 1, targets, COMPONENTS, generator=generator) * 6 - 3
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
    """Mean over rows, summed over targets and networks."""
    networks, targets, rows = y.shape
    mean, alpha, beta = normal_gamma(output[:, : 3 * targets])
    log_weight = output[:, 3 * targets :].reshape(networks * targets, -1, rows).log_softmax(dim=1)
    draws = torch._standard_gamma(alpha.reshape(-1, 1, rows).expand(-1, SAMPLES, -1), generator=generator)  # noqa: SLF001
    precision = (draws / beta.reshape(-1, 1, rows)).clamp_min(_SMALLEST_PRECISION)
    log_prior = mixture_log_density(precision, log_weight, *_prior(tensors, targets))
    return (expected_nll(mean, alpha, beta, y).sum() + negative_entropy(alpha, beta).sum() - log_prior) / rows


def _head(components: int, start: Starter) -> Head:
    return Head((3, components), 3, student_t_predictive, negative_bound, start=start, block=8)


XVAMP = _head(COMPONENTS, _vamp_start)
"""Components are the network's own posteriors at fixed inputs, the first COMPONENTS rows of the first batch."""
XVAMP_STAR = _head(COMPONENTS, _trained_vamp_start)
"""As XVAMP, the inputs trained from there."""
VBEM = _head(len(GRID) ** 2, _grid_start)
"""Components are fixed."""
VBEM_STAR = _head(COMPONENTS, _uniform_start)
"""Components are trained, their shapes and rates uniform in [-3, 3] before the softplus at first."""
