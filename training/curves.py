"""The curves that a training report shows, as arrays: calibration, error by std, sweeps of a feature. Draws nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import conformal, metrics
from models.artifact import Run
from models.manifest import Column, Manifest
from training.calibrate import transformed
from training.evaluate import Predictions

Values = NDArray[np.float64]

BEYOND = 0.25
"""How far the sweep of an only feature goes beyond the training values, as a share of their range."""
_BAND = 1.645
"""Standard errors each side that hold 90 % of a normal distribution."""
_TIMES = (-59_011_459_200.0, 221_845_392_000.0)
"""The years 100 and 9000, in seconds since 1970: within what matplotlib can draw."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The answers along `grid` [points], values of one feature with all others fixed: [points, targets] each."""

    grid: Values
    mean: Values
    lower: Values
    upper: Values


def drawn_coverage(manifest: Manifest) -> float:
    """The default coverage, or the largest that every calibration group supports where that is less."""
    return min(manifest.default_coverage, manifest.calibration.common_coverage or manifest.default_coverage)


def calibration_curve(predictions: Predictions, x: Values, manifest: Manifest, *, target: int) -> tuple[Values, Values]:
    """Nominal and observed coverage of the prediction intervals of one target, [coverages] each.

    x: [n, columns], the rows of the predictions. Nominal: 0.01, 0.02 ... up to what every calibration group supports.
    """
    calibration = manifest.calibration
    nominal = np.arange(1, 100) / 100
    nominal = nominal[nominal <= calibration.common_coverage]
    residual = ((transformed(predictions.y, manifest.targets) - predictions.location) / predictions.scale)[:, target]
    group_of_row = manifest.calibration_groups(x)
    covered = np.zeros(len(nominal))
    for number in np.unique(group_of_row):
        lower, upper = conformal.interval_factors(manifest.residuals(number), nominal, interval=calibration.interval)
        rows = residual[group_of_row == number]
        covered += [np.sum((low <= rows) & (rows <= high)) for low, high in zip(lower[target], upper[target], strict=True)]
    return nominal, covered / len(x)


def sampling_band(share: Values, *, rows: int, calibration_rows: int) -> tuple[Values, Values]:
    """Where 90 % of the observed shares lie, for `rows` test rows of a model calibrated on as many exchangeable rows.

    share: what is expected. The number of rows is beta-binomial, Beta from the calibration rows and binomial from the test rows
    (Vovk 2012); this is its normal approximation, cut to [0, 1].
    """
    standard_error = np.sqrt(share * (1 - share) * (1 / rows + (1 - 1 / rows) / (calibration_rows + 2)))
    return np.maximum(share - _BAND * standard_error, 0), np.minimum(share + _BAND * standard_error, 1)


def error_by_std(y: Values, mean: Values, std: Values) -> tuple[Values, Values]:
    """Root mean square of the predicted std and of the error, in up to 10 equally large bins of rows by std: [bins] each.

    All [n]. A bin has at least 20 rows, if there are as many.
    """
    bins = np.array_split(np.argsort(std, kind="stable"), np.clip(len(y) // 20, 1, 10))
    predicted = [np.sqrt(np.mean(std[rows] ** 2)) for rows in bins]
    return np.array(predicted), np.array([metrics.rmse(y[rows], mean[rows]) for rows in bins])


def typical_row(columns: Sequence[Column], x: Values) -> Values:
    """Medians of numbers and times, the most frequent value in `x` [n, columns] of categories and booleans: [columns]."""
    return np.array([_typical_value(column, x[:, index]) for index, column in enumerate(columns)])


def sweep_grid(column: Column, *, points: int = 200, beyond: float | None = None) -> Values:
    """The values to sweep a feature through, ascending: [points], or every category, or 0 and 1.

    From the 1 % to the 99 % quantile of the training values; with `beyond`, their range and that share of it on either side.
    """
    if column.kind == "boolean" or column.categories is not None:
        return np.arange(len(column.categories or "01"), dtype=np.float64)
    low, high = (np.nan if end is None else end for end in (column.minimum, column.maximum))
    if beyond is not None:
        low, high = low - beyond * (high - low), high + beyond * (high - low)
    elif column.quantiles.get("0.01", low) < column.quantiles.get("0.99", high):
        low, high = column.quantiles.get("0.01", low), column.quantiles.get("0.99", high)
    grid = np.linspace(low, high, points)
    return np.clip(grid, *_TIMES) if column.kind == "datetime" else grid


def sweep(run: Run, row: Values, *, feature: int, grid: Values, coverage: float) -> Sweep:
    """The answers at `row` [columns] with its `feature` set to each value of `grid`."""
    x = np.tile(row, (len(grid), 1))
    x[:, feature] = grid
    answers = run(x, np.array([coverage]))
    lower, upper = (finite(answers[name][..., 0]) for name in ("lower", "upper"))
    return Sweep(grid=grid, mean=answers["mean"].astype(np.float64), lower=lower, upper=upper)


def most_influential_features(run: Run, columns: Sequence[Column], row: Values) -> NDArray[np.int64]:
    """The index of the feature whose sweep, from `row` [columns], moves the mean most, for each target: [targets]."""
    moved = [
        np.ptp(sweep(run, row, feature=index, grid=sweep_grid(column, points=41), coverage=0.5).mean, axis=0)
        for index, column in enumerate(columns)
    ]
    features: NDArray[np.int64] = np.argmax(np.array(moved), axis=0)
    return features


def finite(values: NDArray[np.floating]) -> Values:
    """NaN, which is not drawn, for an infinite end: a coverage that the calibration rows do not support."""
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def _typical_value(column: Column, values: Values) -> float:
    if column.kind in ("categorical", "boolean"):
        known, counts = np.unique(values[~np.isnan(values)], return_counts=True)
        return float(known[counts.argmax()]) if len(known) else 0.0
    return column.quantiles.get("0.5", np.nan)
