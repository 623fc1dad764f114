"""Options that the table decides, by a short trial fit: whether dropout helps."""

import numpy as np
from numpy.typing import NDArray

from models.networks import FeatureStatistics
from training.config import NetworkOptions
from training.fit import epochs_and_batch, fit

DROPOUT = 0.1
CLEARLY_BETTER = 0.9
"""Ratio of held-out CRPS under which the networks without dropout win. Noise hides a smooth function less than dropout does
(naval: 0.4); elsewhere the two differ by a few per cent, and dropout is the safer one when a few rows say so."""
_NETWORKS = 2
_MOST_ROWS = 20_000


def chosen_dropout(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    statistics: FeatureStatistics,
    fit_rows: list[NDArray[np.int64]],
    stop_rows: list[NDArray[np.int64]],
    options: NetworkOptions,
    weights: NDArray[np.float64] | None = None,
) -> float:
    """The dropout rate: `options.dropout` where it is given, else 0.1, or 0 where a trial says that this is clearly better.

    The arguments are those of `fit`. The trial fits the first two members for half of the epochs with either rate, on at most
    20 000 rows each, and compares their CRPS on their early-stopping rows.
    """
    if options.dropout is not None:
        return options.dropout
    random = np.random.default_rng(options.seed)
    some = [random.permutation(rows)[:_MOST_ROWS] for rows in fit_rows[:_NETWORKS]]
    epochs, _ = epochs_and_batch(options, max(map(len, some)))

    def crps(dropout: float) -> float:
        tried = options.model_copy(update={"dropout": dropout, "epochs": max(1, epochs // 2)})
        return (
            fit(x, y, statistics=statistics, fit_rows=some, stop_rows=stop_rows[:_NETWORKS], options=tried, weights=weights)
            .history[-1]
            .best_crps
        )

    return 0.0 if crps(0.0) < CLEARLY_BETTER * crps(DROPOUT) else DROPOUT
