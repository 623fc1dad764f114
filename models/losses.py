"""Training losses: elementwise functions of y and the members' prediction, [members, n, targets] each.

The caller sums over targets and averages over rows; the members' losses are added, never the loss of the members' mean. The
values of `beta_nll`, `moment_matching` and `faithful` say nothing about quality: compare models by their plain NLL.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.heads import FAMILIES, Family, Prediction

Elementwise = Callable[[Tensor, Prediction, Family], Tensor]


def nll(y: Tensor, prediction: Prediction, family: Family) -> Tensor:
    """Negative log-likelihood. Gaussian: 0.5 log s2 + (y - m)^2 / (2 s2) + 0.5 log 2 pi (Nix and Weigend 1994)."""
    return -family.log_density(y, prediction)


def beta_nll(beta: float) -> Elementwise:
    """stop_gradient(s2^beta) * nll; beta 0 is nll, beta 1 gives the mean the gradient of the squared error.

    Source: Seitzer et al. 2022, eq. 7.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta {beta} is outside 0 to 1")

    def weighted(y: Tensor, prediction: Prediction, family: Family) -> Tensor:
        return prediction.std.detach() ** (2 * beta) * nll(y, prediction, family)

    return weighted


def mse(y: Tensor, prediction: Prediction, family: Family) -> Tensor:  # noqa: ARG001 - every loss takes the family
    """(y - m)^2; the one std of all rows is set from the residuals (fit.py), not learned."""
    return (y - prediction.mean).square()


def moment_matching(y: Tensor, prediction: Prediction, family: Family) -> Tensor:  # noqa: ARG001
    """(y - m)^2 + (stop_gradient(abs(y - m)) - s)^2. Source: Seitzer et al. 2022, appendix A."""
    residual = y - prediction.mean
    return residual.square() + (residual.detach().abs() - prediction.std).square()


def faithful(y: Tensor, prediction: Prediction, family: Family) -> Tensor:
    """0.5 (y - m)^2 for the mean, NLL with a detached mean for the scale; the head detaches the trunk (Stirn et al. 2023)."""
    detached = prediction._replace(mean=prediction.mean.detach())
    return 0.5 * (y - prediction.mean).square() + nll(y, detached, family)


def normal_crps(y: Tensor, prediction: Prediction) -> Tensor:
    """CRPS of the normal distribution with the predicted moments, in the unit of y; also the score of early stopping.

    s (z erf(z / sqrt 2) + sqrt(2 / pi) exp(-z^2 / 2) - 1 / sqrt(pi)), z = (y - m) / s. Source: Gneiting and Raftery 2007.
    """
    z = (y - prediction.mean) / prediction.std
    return prediction.std * (
        z * torch.erf(z / math.sqrt(2)) + math.sqrt(2 / math.pi) * torch.exp(-0.5 * z.square()) - 1 / math.sqrt(math.pi)
    )


def crps(y: Tensor, prediction: Prediction, family: Family) -> Tensor:  # noqa: ARG001
    """`normal_crps` as a loss: large errors count in proportion, as with the absolute error, not squared."""
    return normal_crps(y, prediction)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A named loss with the head that it needs."""

    elementwise: Elementwise
    family: Family = FAMILIES["gaussian"]
    heteroscedastic: bool = True
    detach_scale: bool = False
    residual_std: bool = False
    """The one std of all rows is the maximum-likelihood scale of the residuals."""


LOSSES = ("beta_nll", "nll", "mse", "homoscedastic", "moment_matching", "faithful", "crps", "laplace", "student_t")


def loss(name: str, *, beta: float = 0.5) -> Loss:
    """The loss called `name`, one of LOSSES; `beta` is used by `beta_nll` alone. Raises ValueError for any other name."""
    match name:
        case "nll":
            return Loss(elementwise=nll)
        case "beta_nll":
            return Loss(elementwise=beta_nll(beta))
        case "mse":
            return Loss(elementwise=mse, heteroscedastic=False, residual_std=True)
        case "homoscedastic":
            return Loss(elementwise=nll, heteroscedastic=False)
        case "moment_matching":
            return Loss(elementwise=moment_matching)
        case "faithful":
            return Loss(elementwise=faithful, detach_scale=True)
        case "crps":
            return Loss(elementwise=crps)
        case "laplace" | "student_t":
            return Loss(elementwise=nll, family=FAMILIES[name])
    raise ValueError(f"no loss is called {name!r}; there are {', '.join(LOSSES)}")
