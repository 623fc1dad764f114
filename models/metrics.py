"""How good predictions are: arrays of one target in, a number out. Lower is better except for `r2`.

Every array is [rows] and in the target's own unit unless it says otherwise. Means are over rows.
"""

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


def crps_of_nodes(y: Values, nodes: Values, weights: Values) -> float:
    """The mean continuous ranked probability score of discrete distributions.

    nodes: [rows, nodes], ascending. weights: [nodes], their probabilities.

    E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21); finite, whatever tail the nodes stand for.
    """
    after = np.cumsum(weights)
    spread = nodes @ (weights * (2 * after - weights - 1))
    return float(np.mean(np.abs(nodes - y[:, None]) @ weights - spread))


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
