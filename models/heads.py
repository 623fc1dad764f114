"""Predictive distributions as network outputs: how many raw outputs, how they become valid parameters, how likely y is.

Everything is stacked over members and in units of the standardised, transformed target: shapes [members, n, targets].
Every family is parametrised by its mean and standard deviation, so that members can be mixed by moments whatever the family.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distributions import Family as FamilyName

INITIAL_VARIANCE_OFFSET = math.log(math.e - 1)
"""softplus of it is 1: a raw output of 0 means variance 1, the spread of a standardised target."""
SMALLEST_DEGREES_OF_FREEDOM = 2.1
"""Above 2, below which a Student-t has no variance; 2.1 keeps the ratio of std to scale under 4.6."""


class Prediction(NamedTuple):
    """What the members predict: moments [members, n, targets], and the family's learned constant [members, 1, targets]."""

    mean: Tensor
    std: Tensor
    constant: Tensor | None = None


class Family(Protocol):
    """A location-scale family, given by mean and std."""

    name: FamilyName
    initial_constant: float | None
    """Start of the one constant a target that the family learns besides mean and std, if it has one."""

    def log_density(self, y: Tensor, prediction: Prediction) -> Tensor:
        """Elementwise log density of `y`, with all constants."""
        ...


class Gaussian:
    """Log N(y; mean, std)."""

    name: FamilyName = "gaussian"
    initial_constant: float | None = None

    def log_density(self, y: Tensor, prediction: Prediction) -> Tensor:
        """-0.5 log(2 pi) - log std - (y - mean)^2 / (2 std^2)."""
        standardised = (y - prediction.mean) / prediction.std
        return -0.5 * math.log(2 * math.pi) - prediction.std.log() - 0.5 * standardised.square()


class Laplace:
    """The double exponential; scale b = std / sqrt(2)."""

    name: FamilyName = "laplace"
    initial_constant: float | None = None

    def log_density(self, y: Tensor, prediction: Prediction) -> Tensor:
        """-log 2b - |y - mean| / b."""
        scale = prediction.std / math.sqrt(2)
        return -(2 * scale).log() - (y - prediction.mean).abs() / scale


class StudentT:
    """Student's t with learned degrees of freedom; scale = std sqrt((df - 2) / df). Detlefsen et al. 2019."""

    name: FamilyName = "student_t"
    initial_constant: float | None = 8.0

    def log_density(self, y: Tensor, prediction: Prediction) -> Tensor:
        """Log t((y - mean) / scale; df) - log scale."""
        df = degrees_of_freedom(prediction.constant)
        scale = prediction.std * ((df - 2) / df).sqrt()
        standardised = (y - prediction.mean) / scale
        normaliser = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log()
        return normaliser - scale.log() - (df + 1) / 2 * torch.log1p(standardised.square() / df)


FAMILIES: dict[str, Family] = {family.name: family for family in (Gaussian(), Laplace(), StudentT())}


def degrees_of_freedom(constant: Tensor | None) -> Tensor:
    """The degrees of freedom behind the learned constant of a Student-t prediction."""
    if constant is None:
        raise ValueError("a student_t prediction needs its learned constant: build the head with family student_t")
    return SMALLEST_DEGREES_OF_FREEDOM + functional.softplus(constant)


class Head(nn.Module):
    """The members' trunk features -> mean and std of each target.

    heteroscedastic: std is a function of the row; otherwise one learned constant per member and target.
    minimum_std, maximum_std: floor and cap of std, in units of the standardised target's spread. Without a floor,
    a repeated target value makes the log-likelihood grow without bound; without a cap, infinite noise could explain an outlier.
    """

    def __init__(
        self,
        *,
        members: int,
        width: int,
        targets: int,
        family: Family,
        heteroscedastic: bool,
        minimum_std: float,
        maximum_std: float,
    ) -> None:
        super().__init__()
        self.family = family
        self.minimum_variance, self.maximum_variance = minimum_std**2, maximum_std**2
        bound = 1 / math.sqrt(width)
        self.mean_weight = nn.Parameter(torch.empty(members, width, targets).uniform_(-bound, bound))
        self.mean_bias = nn.Parameter(torch.zeros(members, 1, targets))
        self.scale_weight = (
            nn.Parameter(torch.empty(members, width, targets).uniform_(-bound, bound)) if heteroscedastic else None
        )
        self.scale_bias = nn.Parameter(torch.zeros(members, 1, targets))
        start = family.initial_constant
        self.constant = None if start is None else nn.Parameter(torch.full((members, 1, targets), start))

    def forward(self, trunk: Tensor, *, detach_scale: bool = False) -> Prediction:
        """trunk: [members, n, width] -> moments [members, n, targets]; `detach_scale` cuts the scale's gradient there."""
        if self.scale_weight is None:
            mean = _product(trunk, self.mean_weight, self.mean_bias)
            raw = self.scale_bias.expand_as(mean)
        elif detach_scale:
            mean = _product(trunk, self.mean_weight, self.mean_bias)
            raw = _product(trunk.detach(), self.scale_weight, self.scale_bias)
        else:  # one product for both
            weight = torch.cat([self.mean_weight, self.scale_weight], dim=2)
            mean, raw = _product(trunk, weight, torch.cat([self.mean_bias, self.scale_bias], dim=2)).chunk(2, dim=2)
        variance = functional.softplus(raw + INITIAL_VARIANCE_OFFSET) + self.minimum_variance
        return Prediction(mean, variance.clamp(max=self.maximum_variance).sqrt(), self.constant)

    @torch.no_grad()
    def set_constant_std(self, std: Tensor) -> None:
        """Make a homoscedastic head answer `std` [members, targets], within its floor and cap."""
        if self.scale_weight is not None:
            raise ValueError("only a homoscedastic head has a constant std")
        variance = std.square().clamp(2 * self.minimum_variance, self.maximum_variance) - self.minimum_variance
        raw = variance + torch.log(-torch.expm1(-variance))  # the inverse of softplus, in the form that cannot overflow
        self.scale_bias.copy_((raw - INITIAL_VARIANCE_OFFSET)[:, None, :])


def _product(trunk: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The members' trunk [members, n, width] @ weight [members, width, outputs] + bias; computed transposed: faster."""
    return torch.baddbmm(bias.mT, weight.mT, trunk.mT).mT
