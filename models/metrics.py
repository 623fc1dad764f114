"""How good predictions are: arrays of one target in, a number out. Lower is better except for `r2`.

Every array is [rows] and in the target's own unit unless it says otherwise. Means are over rows.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def nll(log_density: Values) -> float:
    """The mean negative log-likelihood, in nats, from the log density that was predicted at each observation."""
    return -float(np.mean(log_density))


def rmse(y: Values, mean: Values) -> float:
    """The root of the mean squared error."""
    return float(np.sqrt(np.mean((y - mean) ** 2)))


def mae(y: Values, mean: Values) -> float:
    """The mean absolute error."""
    return float(np.mean(np.abs(y - mean)))


def r2(y: Values, mean: Values) -> float | None:
    """The share of the variance of `y` that the mean explains; 1 is perfect, and below 0 is worse than a constant.

    None where `y` does not vary: there is nothing to explain, and the ratio is 0 / 0.
    """
    # Not the sum of squares: rounding makes the deviations of a constant column tiny, not 0.
    if np.ptp(y) == 0:
        return None
    return 1 - float(np.sum((y - mean) ** 2) / np.sum((y - np.mean(y)) ** 2))


def crps_by_quantiles(y: Values, quantile: Callable[[float], Values], *, nodes: int = 200) -> float:
    """The mean continuous ranked probability score of a distribution that is known by its quantile function.

    quantile: from a probability in (0, 1) to that quantile for each row, [rows], finite.

    The score is twice the integral of the pinball loss over p in (0, 1) (Laio and Tamea 2007; Gneiting and
    Ranjan 2011), here by the midpoint rule in u with p = u^2 (3 - 2u), which puts more nodes where quantiles run away. For
    one row of a Gaussian, or a log-normal with log-std up to 2, observed within four stds, it is off by at most 6e-5
    of the score (plain midpoints: 1e-3), and by about a quarter of that with twice the nodes.
    """
    total = 0.0
    for node in range(nodes):
        u = (node + 0.5) / nodes
        p = u * u * (3 - 2 * u)
        error = y - quantile(p)
        total += 6 * u * (1 - u) * float(np.mean(np.maximum(p * error, (p - 1) * error)))
    return 2 * total / nodes


def observed_coverage(y: Values, lower: Values, upper: Values) -> float:
    """The share of rows within their interval, ends included."""
    return float(np.mean((lower <= y) & (y <= upper)))


def mean_width(lower: Values, upper: Values) -> float:
    """The mean length of the intervals."""
    return float(np.mean(upper - lower))


def interval_score(y: Values, lower: Values, upper: Values, *, coverage: float) -> float:
    """The mean interval (Winkler) score: width, plus 2 / (1 - coverage) times how far outside an observation lies.

    Source: Gneiting and Raftery 2007, eq. 43.
    """
    outside = np.maximum(lower - y, 0) + np.maximum(y - upper, 0)
    return float(np.mean(upper - lower + 2 / (1 - coverage) * outside))


def calibration_error(pit: Values) -> float:
    """The mean absolute difference between nominal and observed probability, over p = 0.01, 0.02 ... 0.99.

    pit: the predicted P(Y <= y) at each observation; observed is the share of rows with pit <= p. 0 is calibrated and
    0.5 the worst (every observation below, or above, all that was predicted); a calibrated model has about
    0.31 / sqrt(rows) by chance alone. Source: Kuleshov et al. 2018, with absolute instead of squared differences.
    """
    _check_probabilities(pit)
    nominal = np.arange(1, 100) / 100
    observed = np.searchsorted(np.sort(pit), nominal, side="right") / pit.size
    return float(np.mean(np.abs(observed - nominal)))


def pit_histogram(pit: Values, *, bins: int = 20) -> Values:
    """The share of rows in each of `bins` equally wide bins of the probability integral transform: [bins].

    Flat is calibrated; a U means intervals too narrow, a hump too wide, a slope a mean that is off.
    """
    _check_probabilities(pit)
    return np.histogram(pit, bins=bins, range=(0, 1))[0] / pit.size


def _check_probabilities(pit: Values) -> None:
    # NumPy's histogram drops what is out of range without a word.
    outside = ~((pit >= 0) & (pit <= 1))
    if outside.any():
        raise ValueError(f"a probability must be between 0 and 1, not {float(pit[outside][0])}")
