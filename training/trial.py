"""Options that the table decides, by short trial fits: whether dropout helps, and how fine the embedding of numbers begins."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.networks import FeatureStatistics
from training.config import NetworkOptions
from training.fit import FREQUENCY_SCALE, epochs_and_batch, fit

DROPOUT = 0.1
DROPOUT_RATIO = 0.9
"""Ratio of held-out CRPS under which the networks without dropout win. Noise hides a smooth function less than dropout does
(naval: 0.4); elsewhere the two differ by a few per cent, and dropout is the safer one when a few rows say so."""
FINER = (1.0, 3.0)
FINER_RATIO = 0.95
"""Ratio of held-out CRPS under which finer frequencies win: a target that jumps, or differs from day to day, needs them; on a
smooth one they are noise."""
ENOUGH_ROWS = 500
"""Early-stopping rows of a trial under which finer frequencies are not tried: chance says 5 % on fewer (decision 014)."""
_NETWORKS = 2
_MOST_ROWS = 20_000


def chosen_options(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    statistics: FeatureStatistics,
    fit_rows: list[NDArray[np.int64]],
    stop_rows: list[NDArray[np.int64]],
    options: NetworkOptions,
    weights: NDArray[np.float64] | None = None,
    on_trial: Callable[[str], None] = lambda option: None,  # noqa: ARG005
) -> dict[str, float]:
    """The `dropout` and the `frequency_scale`: those of `options`, else 0.1 and 0.3, or what a trial says is clearly better.

    The arguments are those of `fit`; on_trial hears which option is tried. A trial fits the first two members for half of the
    epochs, on at most 20 000 rows each; its result is their CRPS on their early-stopping rows. Finer frequencies are tried
    where these are many, as long as they gain.
    """
    random = np.random.default_rng(options.seed)
    some = [random.permutation(rows)[:_MOST_ROWS] for rows in fit_rows[:_NETWORKS]]
    stop = stop_rows[:_NETWORKS]
    epochs, _ = epochs_and_batch(options, max(map(len, some)))

    @cache
    def crps(dropout: float, scale: float) -> float:
        trial = options.model_copy(update={"dropout": dropout, "frequency_scale": scale, "epochs": max(1, epochs // 2)})
        fitted = fit(x, y, statistics=statistics, fit_rows=some, stop_rows=stop, options=trial, weights=weights)
        return fitted.history[-1].best_crps

    dropout, scale = options.dropout, options.frequency_scale or FREQUENCY_SCALE
    if dropout is None:
        on_trial("dropout")
        dropout = 0.0 if crps(0.0, scale) < DROPOUT_RATIO * crps(DROPOUT, scale) else DROPOUT
    enough = sum(map(len, stop)) >= ENOUGH_ROWS
    if enough and options.frequency_scale is None and options.frequencies and statistics.embedded:
        on_trial("frequencies")
        finer = scale
        for next_finer in FINER:
            if crps(dropout, next_finer) >= crps(dropout, finer):
                break
            finer = next_finer
        if crps(dropout, finer) < FINER_RATIO * crps(dropout, scale):
            scale = finer
    return {"dropout": dropout, "frequency_scale": scale}
