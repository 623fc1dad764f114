"""Predictive distributions on arrays: one small class per family, given by its moments.

`mean`, `std` and every argument broadcast against each other; so `distribution(...)` of [rows, 1] parameters takes
[k] values and gives [rows, k]. `std` is always the standard deviation, never a family's own scale parameter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Values = NDArray[np.float64]
Family = Literal["gaussian", "laplace", "student_t"]

LEAST_DEGREES_OF_FREEDOM = 3.0
MOST_DEGREES_OF_FREEDOM = 100.0
"""From here on a Student-t is practically a normal distribution: its log density differs by under 0.01 within three std."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal distribution."""

    mean: Values
    std: Values

    def log_density(self, y: ArrayLike) -> Values:
        """The log of the density at `y`, in nats."""
        return -0.5 * self._z(y) ** 2 - np.log(self.std) - 0.5 * math.log(2 * math.pi)

    def quantile(self, p: ArrayLike) -> Values:
        """The value that Y stays below with probability `p`; infinite at 0 and 1."""
        return self.mean + self.std * special.ndtri(np.asarray(p, dtype=np.float64))

    def crps(self, y: ArrayLike) -> Values:
        """The continuous ranked probability score at `y`, in the unit of y. Source: Gneiting and Raftery 2007, section 4.2."""
        z = self._z(y)
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return self.std * (z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))

    def _z(self, y: ArrayLike) -> Values:
        return (np.asarray(y, dtype=np.float64) - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class Laplace:
    """The two-sided exponential distribution; its scale b is std / sqrt(2)."""

    mean: Values
    std: Values

    def log_density(self, y: ArrayLike) -> Values:
        """The log of the density at `y`, in nats."""
        return -np.abs(self._z(y)) - np.log(2 * self._scale)

    def quantile(self, p: ArrayLike) -> Values:
        """The value that Y stays below with probability `p`; infinite at 0 and 1."""
        p = np.asarray(p, dtype=np.float64)
        with np.errstate(divide="ignore"):
            z: Values = np.sign(0.5 - p) * np.log(2 * np.minimum(p, 1 - p))
        return self.mean + self._scale * z

    def crps(self, y: ArrayLike) -> Values:
        """The continuous ranked probability score at `y`, in the unit of y. Source: Jordan et al. 2019, appendix A."""
        z = np.abs(self._z(y))
        return self._scale * (z + np.exp(-z) - 0.75)

    @property
    def _scale(self) -> Values:
        return self.std / math.sqrt(2)

    def _z(self, y: ArrayLike) -> Values:
        return (np.asarray(y, dtype=np.float64) - self.mean) / self._scale


@dataclass(frozen=True, eq=False)
class StudentT:
    """Student's t distribution, shifted and scaled to `mean` and `std`; its scale is std * sqrt(1 - 2 / df)."""

    mean: Values
    std: Values
    degrees_of_freedom: Values

    def log_density(self, y: ArrayLike) -> Values:
        """The log of the density at `y`, in nats."""
        return self._standard_log_density(self._z(y)) - np.log(self._scale)

    def quantile(self, p: ArrayLike) -> Values:
        """The value that Y stays below with probability `p`; infinite at 0 and 1."""
        p = np.asarray(p, dtype=np.float64)
        # stdtrit gives +inf at 0 too, hence the sign by hand; the smaller tail keeps its digits.
        z: Values = np.sign(p - 0.5) * np.abs(special.stdtrit(self.degrees_of_freedom, np.minimum(p, 1 - p)))
        return self.mean + self._scale * z

    def crps(self, y: ArrayLike) -> Values:
        """The continuous ranked probability score at `y`, in the unit of y. Source: Jordan et al. 2019, appendix A."""
        df, z = self.degrees_of_freedom, self._z(y)
        spread = np.exp(special.betaln(0.5, df - 0.5) - 2 * special.betaln(0.5, 0.5 * df))
        density = np.exp(self._standard_log_density(z))
        around = 2 * density * (df + z**2) / (df - 1) - 2 * np.sqrt(df) / (df - 1) * spread
        score: Values = self._scale * (z * (2 * special.stdtr(df, z) - 1) + around)
        return score

    @property
    def _scale(self) -> Values:
        return self.std * np.sqrt(1 - 2 / self.degrees_of_freedom)

    def _z(self, y: ArrayLike) -> Values:
        return (np.asarray(y, dtype=np.float64) - self.mean) / self._scale

    def _standard_log_density(self, z: Values) -> Values:
        df = self.degrees_of_freedom
        normaliser = special.gammaln(0.5 * (df + 1)) - special.gammaln(0.5 * df) - 0.5 * np.log(math.pi * df)
        return normaliser - 0.5 * (df + 1) * np.log1p(z**2 / df)


Distribution = Gaussian | Laplace | StudentT


def distribution(
    family: Family, *, mean: ArrayLike, std: ArrayLike, degrees_of_freedom: ArrayLike | None = None
) -> Distribution:
    """The distribution of a family with these moments; `degrees_of_freedom` (above 2) belongs to student_t alone.

    Raises ValueError for an unknown family, a std that is not positive, and degrees of freedom that are missing,
    out of place, or at most 2 (there the std does not exist).
    """
    _check_family(family, degrees_of_freedom)
    mean, std = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    if not (std > 0).all():
        raise ValueError(f"a std must be positive; the smallest here is {std.min()}")
    if degrees_of_freedom is not None:
        return StudentT(mean, std, np.asarray(degrees_of_freedom, dtype=np.float64))
    return Gaussian(mean, std) if family == "gaussian" else Laplace(mean, std)


def maximum_likelihood_scale(residuals: ArrayLike, *, family: Family, degrees_of_freedom: float | None = None) -> float:
    """The factor that makes the std of standardised `residuals` [rows] right: their likeliest std, with mean 0.

    1 means that the network's std was right. Raises ValueError where the likelihood has no maximum: all residuals
    are 0, or, for student_t, at least df / (df + 1) of them.
    """
    _check_family(family, degrees_of_freedom)
    sizes = np.abs(np.asarray(residuals, dtype=np.float64)).ravel()
    nonzero = np.count_nonzero(sizes)
    needed = 0.0 if degrees_of_freedom is None else sizes.size / (degrees_of_freedom + 1)
    if nonzero <= needed:
        raise ValueError(f"{sizes.size - nonzero} of {sizes.size} residuals are exactly 0: no scale is the likeliest")
    if degrees_of_freedom is not None:
        return _student_t_scale(sizes, degrees_of_freedom) / math.sqrt(1 - 2 / degrees_of_freedom)
    if family == "gaussian":
        return math.sqrt(float(np.mean(sizes**2)))
    return math.sqrt(2) * float(np.mean(sizes))


def likeliest_degrees_of_freedom(residuals: ArrayLike) -> float | None:
    """The degrees of freedom of the Student-t that fits standardised `residuals` [rows] best, at its likeliest scale.

    At least 3: below that, the tail alone would decide the std. None where a normal distribution is as likely: where the
    gain in log-likelihood is below the Bayesian information criterion's price of a parameter, log(rows) / 2.
    """
    residuals = np.asarray(residuals, dtype=np.float64).ravel()

    def log_likelihood(family: Family, df: float | None) -> float:
        scale = maximum_likelihood_scale(residuals, family=family, degrees_of_freedom=df)
        return float(np.sum(distribution(family, mean=0.0, std=scale, degrees_of_freedom=df).log_density(residuals)))

    candidates = np.geomspace(LEAST_DEGREES_OF_FREEDOM, MOST_DEGREES_OF_FREEDOM, 40)  # finer steps would gain nothing
    gains = [log_likelihood("student_t", float(df)) for df in candidates]
    best = int(np.argmax(gains))
    return float(candidates[best]) if gains[best] - log_likelihood("gaussian", None) > math.log(residuals.size) / 2 else None


def _student_t_scale(sizes: Values, df: float) -> float:
    """The only root of the likelihood's derivative: 1 = (df + 1) mean(r^2 / (df scale^2 + r^2))."""
    nonzero = sizes[sizes > 0]
    share = nonzero.size / sizes.size

    def slope(scale: float) -> float:
        return (df + 1) * share * float(np.mean(1 / (1 + df * (scale / nonzero) ** 2))) - 1

    # With every size at the smallest, or at the largest, the root has a closed form: the true one lies between.
    reach = math.sqrt(((df + 1) * share - 1) / df)
    return _falling_root(slope, float(nonzero.min()) * reach, float(nonzero.max()) * reach)


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Bisection on the log scale: 64 halvings exhaust a double. (scipy.optimize would slow every start of a server.)"""
    for _ in range(64):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return math.sqrt(low) * math.sqrt(high)


def _check_family(family: Family, degrees_of_freedom: ArrayLike | None) -> None:
    if family not in get_args(Family):
        raise ValueError(f"no family {family!r}; there are {', '.join(get_args(Family))}")
    if (family == "student_t") != (degrees_of_freedom is not None):
        raise ValueError(f"student_t needs degrees_of_freedom, and only it: {family!r} came with {degrees_of_freedom!r}")
    if degrees_of_freedom is not None and not np.all(np.asarray(degrees_of_freedom) > 2):
        raise ValueError(f"degrees of freedom must be above 2 for a std to exist, not {degrees_of_freedom!r}")
