"""Statistics of the columns: what the network's Features module needs to turn raw rows into features."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.manifest import Column
from models.networks import FeatureStatistics, smoothly_clipped

_DAY = 86400.0
_CYCLES = ((_DAY, 2 * _DAY), (7 * _DAY, 14 * _DAY), (365.2425 * _DAY, 2 * 365.2425 * _DAY))
"""(period, shortest range of training times that shows it repeat), in seconds: day, week, year."""
LEAST_COMPONENT_VARIANCE = 1e-9
"""Of the largest: a component of less is the rounding of the table, a copy of a column, or a constant."""
_NORMAL_QUARTILES = 1.349
"""Distance between the quartiles of the standard normal: makes the robust scale of normal data its standard deviation."""


def feature_statistics(x: NDArray[np.float64], columns: list[Column]) -> FeatureStatistics:
    """Statistics of the fit rows `x` [n, columns], raw, NaN where missing."""
    scaled: list[int] = []
    centre: list[float] = []
    scale: list[float] = []
    embedded: list[int] = []
    indicated: list[int] = []
    one_hot: list[int] = []
    one_hot_code: list[float] = []
    cyclic: list[int] = []
    cycle_seconds: list[float] = []
    for index, column in enumerate(columns):
        values = x[:, index]
        known = values[~np.isnan(values)]
        if column.kind == "categorical":
            codes = np.unique(known).tolist()  # one without a fit row would keep its initial weights: it counts as unknown
            one_hot += [index] * len(codes)
            one_hot_code += codes
        else:
            middle, spread = (0.5, 0.5) if column.kind == "boolean" else _robust_centre_and_scale(known)
            if column.kind != "boolean":
                embedded.append(len(scaled))
            scaled.append(index)
            centre.append(middle)
            scale.append(spread)
        if len(known) < len(values):
            indicated.append(index)
        if column.kind == "datetime":
            periods = _visible_cycles(known)
            cyclic += [index] * len(periods)
            cycle_seconds += periods
    component_weight, component_centre = _components(x[:, scaled], centre, scale)
    return FeatureStatistics(
        scaled=scaled,
        centre=centre,
        scale=scale,
        embedded=embedded,
        indicated=indicated,
        one_hot=one_hot,
        one_hot_code=one_hot_code,
        cyclic=cyclic,
        cycle_seconds=cycle_seconds,
        component_weight=component_weight,
        component_centre=component_centre,
    )


def seen_columns(
    columns: list[Column], x: NDArray[np.float64], rows: NDArray[np.int64]
) -> tuple[list[Column], NDArray[np.float64]]:
    """The columns as `rows` of x [n, columns] describe them, and x in their codes; what other rows hold is not known.

    Ranges, quantiles and shares missing are those of `rows`. A category that is not among them is unknown: NaN in x, as what is
    missing; so the share missing of a categorical column stays that of all rows.
    """
    seen, coded = [], x.copy()
    for index, column in enumerate(columns):
        values = x[rows, index]
        known = values[~np.isnan(values)]
        if column.categories is not None:
            codes = np.unique(known).astype(np.int64)
            names = [column.categories[code] for code in codes]
            recoded = np.full(len(column.categories) + 1, np.nan)  # the last entry is for what is missing already
            recoded[codes] = np.arange(len(codes))
            coded[:, index] = recoded[np.where(np.isnan(x[:, index]), -1, x[:, index]).astype(np.int64)]
            seen.append(column.model_copy(update={"categories": names}))
        else:
            update: dict[str, object] = {"missing": 1 - len(known) / len(values)}
            if column.minimum is not None and len(known):
                quantiles = np.quantile(known, [float(level) for level in column.quantiles]).tolist()
                update |= {"minimum": float(known.min()), "maximum": float(known.max())}
                update |= {"quantiles": dict(zip(column.quantiles, quantiles, strict=True))}
            seen.append(column.model_copy(update=update))
    return seen, coded


def known_to(rows: NDArray[np.int64], x: NDArray[np.float64], columns: list[Column]) -> NDArray[np.float64]:
    """`x` [n, columns] with NaN for the categories that none of `rows` has: what networks of these rows do not know."""
    known = x.copy()
    for index, column in enumerate(columns):
        if column.kind == "categorical":
            known[~np.isin(x[:, index], x[rows, index]), index] = np.nan
    return known


def _components(x: NDArray[np.float64], centre: list[float], scale: list[float]) -> tuple[list[list[float]], list[float]]:
    """Weights and means of the principal components of the scaled columns, to unit variance; none of a single column.

    The small differences between correlated columns can carry the signal.
    """
    if x.shape[1] < 2:
        return [], []
    standardised = np.nan_to_num((x - centre) / scale, nan=0.0, posinf=1e6, neginf=-1e6).clip(-1e6, 1e6)
    clipped = smoothly_clipped(torch.from_numpy(standardised)).numpy()
    mean = clipped.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov(clipped, rowvar=False, bias=True))
    kept = variance > LEAST_COMPONENT_VARIANCE * max(variance.max(), LEAST_COMPONENT_VARIANCE)
    weight = (directions[:, kept] / np.sqrt(variance[kept])).T
    return weight.tolist(), (weight @ mean).tolist()


def _robust_centre_and_scale(known: NDArray[np.float64]) -> tuple[float, float]:
    """Median, and the quartile distance in normal units; half the range where the quartiles meet; 1 for a constant."""
    if not len(known):
        return 0.0, 1.0
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
    spread = (high - low) / _NORMAL_QUARTILES or (known.max() - known.min()) / 2 or 1.0
    return float(middle), float(spread)


def _visible_cycles(times: NDArray[np.float64]) -> list[float]:
    """The periods that the times repeat at least twice, and within which they differ (dates have no time of day)."""
    if not len(times):
        return []
    span = times.max() - times.min()
    return [period for period, needed in _CYCLES if span >= needed and np.ptp(times % period) > 0]
