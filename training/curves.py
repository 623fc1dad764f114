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


def drawn_interval(predictions: Predictions, *, most: float, target: int) -> tuple[float, Values, Values]:
    """The largest coverage up to `most` that the predictions have intervals of, with their lower and upper ends [n].

    Where there is none, the ends of `most` are infinite.
    """
    index = sum(coverage <= most for coverage in predictions.coverages) - 1
    if index < 0:
        nowhere = np.full(len(predictions.y), np.inf)
        return most, -nowhere, nowhere
    return predictions.coverages[index], predictions.lower[:, target, index], predictions.upper[:, target, index]


def covered(predictions: Predictions, manifest: Manifest, *, target: int) -> tuple[Values, NDArray[np.bool_]]:
    """Nominal coverages, and whether each row's interval holds its value: [coverages] and [n, coverages].

    Nominal: 0.01, 0.02 ... up to what the calibration rows of every row's interval support.
    """
    interval = manifest.calibration.interval
    rows = min(residuals.shape[1] for _, residuals in predictions.sources)
    nominal = np.array([c for c in np.arange(1, 100) / 100 if conformal.supports(c, rows=rows, interval=interval)])
    y = ((transformed(predictions.y, manifest.targets) - predictions.location) / predictions.scale)[:, target, None]
    slack = conformal.outward_slack(predictions.location, manifest.network.target_scale, float64=True)
    near = (slack / predictions.scale)[:, target, None]
    inside = np.empty((len(y), len(nominal)), dtype=np.bool_)
    for rows, residuals in predictions.sources:
        lower, upper = conformal.interval_factors(residuals, nominal, interval=interval)
        lower, upper = conformal.rounded_outwards(lower[target], -1), conformal.rounded_outwards(upper[target], 1)
        inside[rows] = (lower - near[rows] <= y[rows]) & (y[rows] <= upper + near[rows])
    return nominal, inside


def coverage_by_std(inside: NDArray[np.bool_], std: Values) -> Values:
    """Observed coverage, [coverages], of the thirds of the rows with the lowest, a middle and the highest std: [3, coverages].

    inside: [n, coverages]. std: [n]. NaN where there are fewer than three rows.
    """
    if len(std) < 3:
        return np.full((3, inside.shape[1]), np.nan)
    return np.array([inside[rows].mean(axis=0) for rows in np.array_split(np.argsort(std, kind="stable"), 3)])


def third_band(share: Values, *, rows: int) -> tuple[Values, Values]:
    """Where 90 % of the shares observed in a third of `rows` rows lie if that third is as well covered as the others.

    For rows whose intervals are made of each other's residuals: all thirds together have the `share` that is expected, so that
    the share of one varies by p (1 - p) / (rows / 3), less the third of it that all three have in common. Normal approximation.
    """
    standard_error = np.sqrt(2 * share * (1 - share) / rows)
    return np.maximum(share - _BAND * standard_error, 0), np.minimum(share + _BAND * standard_error, 1)


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
