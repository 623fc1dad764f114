"""What the networks of the beta-NLL paper's comparison put out, how each is trained, and what it predicts.

Tensors stand features first: an output is [networks, outputs, rows], targets are [networks, targets, rows], in standardised
units. Source: Seitzer et al. 2022 and its authors' code (martius-lab/beta-nll).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from benchmarks.quality.scores import Independent
from benchmarks.quality.sets import Values
from models.distributions import Gaussian, StudentT

VARIANCE_RANGE = (1e-8, 100.0)
ALPHA_RANGE = (1.001, 1000.0)
BETA_RANGE = (1e-11, 999_000.0)
LOG_2PI = math.log(2 * math.pi)


def _softplus_inverse(value: float) -> float:
    return math.log(math.expm1(value))


_VARIANCE_OFFSET = _softplus_inverse(1 - VARIANCE_RANGE[0])
_ALPHA_START = math.log(2) + ALPHA_RANGE[0]
_BETA_OFFSET = _softplus_inverse(_ALPHA_START - 1 - BETA_RANGE[0])

Tensors = dict[str, Tensor]
"""By name, the first dimension the networks: hidden [.., units, inputs + 1], out [.., outputs, units], bias [.., outputs, 1],
and what a head adds."""


class Start(NamedTuple):
    """What a head adds to its networks: parameters that are trained, and constants that are not."""

    trained: Tensors
    fixed: Tensors


class Predictive(NamedTuple):
    """Mean; with a variance alone a normal distribution; with alpha a Student-t one of 2 alpha degrees of freedom and that
    variance; with neither a point.
    """

    mean: Tensor
    variance: Tensor | None = None
    alpha: Tensor | None = None


Loss = Callable[[Tensors, Tensor, Tensor, Generator], Tensor]
"""Of a network's tensors, its output, and y: mean over rows, summed over networks."""
Starter = Callable[[str, Tensor, int, Generator], Start]
"""For one network: of its method, its first batch's inputs [1, inputs, rows], and the number of targets."""


def _nothing(_method: str, _first_batch: Tensor, _targets: int, _generator: Generator) -> Start:
    return Start({}, {})


@dataclass(frozen=True)
class Head:
    """The part of a network that belongs to its loss.

    widths: outputs a target of each linear map from the hidden layer. predictive: of the output of the first `predicting`
    outputs a target. block: how many networks train in one go, so that a block's activations stay in a core's cache.
    """

    widths: tuple[int, ...]
    predicting: int
    predictive: Callable[[Tensor], Predictive]
    loss: Loss
    start: Starter = _nothing
    block: int = 48


def forward(tensors: Tensors, x: Tensor, *, outputs: int | None = None) -> Tensor:
    """The first `outputs` outputs (default: all) of one hidden layer of rectified units: [networks, outputs, rows].

    x: [networks, inputs + 1, rows], the last of ones.
    """
    hidden = torch.bmm(tensors["hidden"], x).relu_()
    return torch.baddbmm(tensors["bias"][:, :outputs], tensors["out"][:, :outputs], hidden)


def positive(raw: Tensor) -> Tensor:
    """Softplus, shifted so that 0 gives 1, and bounded: the second output of a Gaussian head."""
    return (softplus(raw + _VARIANCE_OFFSET) + VARIANCE_RANGE[0]).clamp(*VARIANCE_RANGE)


def normal_gamma(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, and shape alpha and rate beta of the precision's Gamma distribution; alpha starts at 1.694, beta at 0.694."""
    mean, alpha, beta = output.chunk(3, dim=1)
    return (
        mean,
        (softplus(alpha) + ALPHA_RANGE[0]).clamp(*ALPHA_RANGE),
        (softplus(beta + _BETA_OFFSET) + BETA_RANGE[0]).clamp(*BETA_RANGE),
    )


def gaussian_nll(mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """In nats, elementwise."""
    return 0.5 * ((y - mean).square() / variance + variance.log() + LOG_2PI)


def student_t_nll(mean: Tensor, alpha: Tensor, beta: Tensor, y: Tensor) -> Tensor:
    """Of 2 alpha degrees of freedom and squared scale beta / alpha, in nats, elementwise."""
    tail = torch.log1p(0.5 * (y - mean).square() / beta)
    return (alpha + 0.5) * tail + 0.5 * (beta.log() + LOG_2PI) + torch.lgamma(alpha) - torch.lgamma(alpha + 0.5)


def score(predictive: Predictive, y: Tensor, *, scale: Tensor) -> Tensor:
    """What validation rows are judged by, lower better: [networks, rows].

    The NLL, but for the standardised target's constant; for a point the squared error in raw units. scale: [networks,
    targets, 1], of the raw targets.
    """
    mean, variance, alpha = predictive
    if variance is None:
        return ((mean - y) * scale).square().mean(dim=1)
    nll = gaussian_nll(mean, variance, y) if alpha is None else student_t_nll(mean, alpha, variance * (alpha - 1), y)
    return nll.sum(dim=1)


def raw_distribution(predictive: Predictive, *, centre: Values, scale: Values, residual: Values) -> Independent:
    """In raw units, for one network: all of [targets]; rows are the predictive's.

    residual: root mean squared residual of the rows trained on, standardised units. The paper gives the network of the squared
    error no density; here it has the normal one with this standard deviation, the maximum-likelihood one.
    """
    mean, variance, alpha = (None if part is None else part[0].T.double().numpy() for part in predictive)
    assert mean is not None
    std = scale * (np.broadcast_to(residual, mean.shape) if variance is None else np.sqrt(variance))
    mean = centre + scale * mean
    return Independent(Gaussian(mean, std) if alpha is None else StudentT(mean, std, 2 * alpha))


def _beta_start(method: str, _first_batch: Tensor, _targets: int, _generator: Generator) -> Start:
    return Start({}, {"beta": torch.full((1, 1, 1), float(method.removeprefix("beta_nll_")))})


def _beta_nll(tensors: Tensors, output: Tensor, y: Tensor, _generator: Generator) -> Tensor:
    mean, raw = output.chunk(2, dim=1)
    variance = positive(raw)
    return (gaussian_nll(mean, variance, y) * variance.detach() ** tensors["beta"]).sum() / y.shape[2]


def _gaussian(output: Tensor) -> Predictive:
    mean, raw = output.chunk(2, dim=1)
    return Predictive(mean, positive(raw))


def _moment_matching(_tensors: Tensors, output: Tensor, y: Tensor, _generator: Generator) -> Tensor:
    mean, raw = output.chunk(2, dim=1)
    residual = y - mean
    deviation = positive(raw) - residual.detach().abs()
    return (residual.square() + deviation.square()).sum() / (y.shape[2] * y.shape[1])


def _moments(output: Tensor) -> Predictive:
    mean, raw = output.chunk(2, dim=1)
    return Predictive(mean, positive(raw).square())


def _mse(_tensors: Tensors, output: Tensor, y: Tensor, _generator: Generator) -> Tensor:
    return (output - y).square().sum() / (y.shape[2] * y.shape[1])


def _student_t(_tensors: Tensors, output: Tensor, y: Tensor, _generator: Generator) -> Tensor:
    return student_t_nll(*normal_gamma(output), y).sum() / y.shape[2]


def student_t_predictive(output: Tensor) -> Predictive:
    """Of a normal-gamma head: the precision integrated out."""
    mean, alpha, beta = normal_gamma(output)
    return Predictive(mean, beta / (alpha - 1), alpha)


BETA_NLL = Head((1, 1), 2, _gaussian, _beta_nll, start=_beta_start)
"""Gaussian NLL weighted by the variance to the power beta, per target (Seitzer et al. 2022); beta 0 is the plain NLL."""
MOMENT_MATCHING = Head((1, 1), 2, _moments, _moment_matching)
"""Squared error for the mean; for the second output, read as the standard deviation, its squared distance from the absolute
residual; means over targets (Seitzer et al. 2022, appendix A)."""
MSE = Head((1,), 1, Predictive, _mse)
STUDENT_T = Head((3,), 3, student_t_predictive, _student_t)
"""Likelihood with a Gamma-distributed precision integrated out (Takahashi et al. 2018; Detlefsen et al. 2019)."""
