"""One row of the results: how well a method did on one split."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.quality.sets import Set, Split, Values
from models import distributions

COVERAGE = 0.9


class Distribution(Protocol):
    """What a method predicts for n rows, raw units."""

    def log_density(self, y: Values) -> Values:
        """Log density of the targets of every row together: [n]."""

    @property
    def mean(self) -> Values:
        """[n, targets]."""

    def crps(self, y: Values) -> Values:
        """[n, targets]."""

    def interval(self, coverage: float) -> tuple[Values, Values]:
        """Lower and upper ends, [n, targets] each."""


@dataclass(frozen=True, eq=False)
class Independent:
    """Targets that are independent given the row: the parameters of `marginal` are [n, targets], raw units."""

    marginal: distributions.Distribution

    @property
    def mean(self) -> Values:
        """[n, targets]."""
        return self.marginal.mean

    def log_density(self, y: Values) -> Values:
        """Log density of the targets of every row together: [n]."""
        density: Values = self.marginal.log_density(y).sum(axis=1)
        return density

    def crps(self, y: Values) -> Values:
        """[n, targets]."""
        return self.marginal.crps(y)

    def interval(self, coverage: float) -> tuple[Values, Values]:
        """The ends of the central interval, the marginal's own quantiles: [n, targets] each."""
        return self.marginal.quantile((1 - coverage) / 2), self.marginal.quantile((1 + coverage) / 2)


@dataclass(frozen=True)
class Score:
    """A line of results.csv.

    ll: mean test log-likelihood in nats, original units, summed over targets. rmse: root of the mean over rows and targets.
    crps, coverage90, width90: means over rows and targets. NaN where a method has no such answer. seconds: of training, on the
    threads that the run had; for splits trained together, their share.
    """

    dataset: str
    method: str
    split: int
    ll: float
    rmse: float
    crps: float
    coverage90: float
    width90: float
    seconds: float


def scored(data: Set, split: Split, method: str, predicted: Distribution, *, seconds: float) -> Score:
    """The scores of `predicted`, a distribution for the test rows of `split` in their order."""
    y = data.y[split.test]
    lower, upper = predicted.interval(COVERAGE)
    return Score(
        dataset=data.name,
        method=method,
        split=split.number,
        ll=float(np.mean(predicted.log_density(y))),
        rmse=float(np.sqrt(np.mean((predicted.mean - y) ** 2))),
        crps=float(np.mean(predicted.crps(y))),
        coverage90=float(np.mean((lower <= y) & (y <= upper))),
        width90=float(np.mean(upper - lower)),
        seconds=seconds,
    )
