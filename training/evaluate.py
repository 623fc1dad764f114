"""Scores of a model on rows that nothing was fitted to, and of the baselines that it has to beat. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models import conformal, metrics
from models.artifact import Run
from models.conformal import IntervalKind
from models.distributions import distribution
from models.manifest import Calibration, Evaluation, IntervalScores, Manifest, Network, Scores, Target
from models.transforms import TRANSFORMS
from training.calibrate import Moments, Residuals, Values, calibrated, transformed

COVERAGES = (0.5, 0.8, 0.9, 0.95)
_CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The answers for n rows, raw units: moments [n, targets], intervals [n, targets, coverages], and the rows' PIT values.

    location, scale: mean and std of the transformed target. pit: P(Y <= y) of the conformal predictive distribution.
    residuals: [targets, rows], of all calibration rows. Coverages that these cannot support are left out; an interval is
    infinite where the row's own group has too few of them.
    """

    y: Values
    mean: Values
    std: Values
    location: Values
    scale: Values
    coverages: list[float]
    lower: Values
    upper: Values
    pit: Values
    residuals: Values


def supported_coverages(calibration: Calibration) -> list[float]:
    """Those of COVERAGES that the calibration rows, all together, can support."""
    largest = conformal.largest_coverage(calibration.rows, interval=calibration.interval)
    return [coverage for coverage in COVERAGES if coverage <= largest]


def predicted(run: Run, x: Values, y: Values, manifest: Manifest) -> Predictions:
    """The answers of a model at `x` [n, columns] for the observed `y` [n, targets]."""
    coverages = supported_coverages(manifest.calibration)
    parts = [run(x[rows], np.array(coverages)) for rows in _chunks(len(x))]
    answers = {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]}
    return Predictions(
        y=y,
        coverages=coverages,
        pit=_pit(x, (transformed(y, manifest.targets) - answers["location"]) / answers["scale"], manifest),
        residuals=manifest.residuals(),
        **{name: answers[name] for name in ("mean", "std", "location", "scale", "lower", "upper")},
    )


def baseline_predictions(
    moments: Moments, y: Values, residuals: Residuals | None, *, targets: list[Target], interval: IntervalKind
) -> Predictions:
    """The same for a Gaussian predictor known by its location and scale [n, targets], calibrated as a model is.

    residuals: None where nothing is calibrated. Mean and std in raw units are averages over the residuals, as in the graph.
    """
    calibration = calibrated(
        residuals,
        method="none" if residuals is None else "split",
        interval=interval,
        family="gaussian",
        freedom=[None] * len(targets),
        columns=[],
    )
    ordered = np.array(calibration.groups[0].residuals)
    location, scale = moments[0], moments[1] * np.array(calibration.scale_factor)
    coverages = supported_coverages(calibration)
    lower, upper = (
        _raw_units(location[..., None] + scale[..., None] * factor, targets)
        for factor in conformal.interval_factors(ordered, coverages, interval=interval)
    )
    mean, std = _raw_moments(location, scale, ordered, targets)
    standardised = (transformed(y, targets) - location) / scale
    pit = conformal.cumulative_probability(ordered, standardised[..., None])[..., 0]
    return Predictions(
        y=y,
        mean=mean,
        std=std,
        location=location,
        scale=scale,
        coverages=coverages,
        lower=lower,
        upper=upper,
        pit=pit,
        residuals=ordered,
    )


def scores(predictions: Predictions, *, targets: list[Target], network: Network) -> dict[str, Scores]:
    """The scores by target.

    NLL is that of the network's family with the predicted moments, and so is CRPS without a transform. With one, a family's
    CRPS may be infinite (log under Student-t): there it is the CRPS of the calibration residuals, mapped back.
    """
    return {target.name: _scores(predictions, t, target, network) for t, target in enumerate(targets)}


def evaluation(
    predictions: Predictions, *, targets: list[Target], network: Network, baselines: dict[str, Predictions]
) -> Evaluation:
    """The scores of a model and of its (Gaussian) baselines by name, on the same rows."""
    gaussian = network.model_copy(update={"family": "gaussian", "degrees_of_freedom": None})
    return Evaluation(
        rows=len(predictions.y),
        targets=scores(predictions, targets=targets, network=network),
        baselines={name: scores(one, targets=targets, network=gaussian) for name, one in baselines.items()},
    )


def _scores(predictions: Predictions, t: int, target: Target, network: Network) -> Scores:
    y, transform = predictions.y[:, t], TRANSFORMS[target.transform]
    freedom = network.degrees_of_freedom[t] if network.degrees_of_freedom else None
    predictive = distribution(
        network.family, mean=predictions.location[:, t], std=predictions.scale[:, t], degrees_of_freedom=freedom
    )
    if target.transform == "identity":
        crps = float(np.mean(predictive.crps(y)))
    else:
        nodes, weights = conformal.residual_nodes(predictions.residuals)
        reach = predictions.scale[:, t, None] * nodes[t]
        crps = metrics.crps_of_nodes(y, transform.inverse(predictions.location[:, t, None] + reach), weights)
    intervals = []
    for index, coverage in enumerate(predictions.coverages):
        lower, upper = predictions.lower[:, t, index], predictions.upper[:, t, index]
        finite = np.isfinite(lower) & np.isfinite(upper)
        if finite.any():  # a row of a group too small for this coverage has no interval to score
            lower, upper = lower[finite], upper[finite]
            intervals.append(
                IntervalScores(
                    coverage=coverage,
                    observed_coverage=metrics.observed_coverage(y[finite], lower, upper),
                    mean_width=metrics.mean_width(lower, upper),
                    interval_score=metrics.interval_score(y[finite], lower, upper, coverage=coverage),
                )
            )
    return Scores(
        nll=metrics.nll(predictive.log_density(transform.forward(y)) + transform.log_derivative(y)),
        rmse=metrics.rmse(y, predictions.mean[:, t]),
        mae=metrics.mae(y, predictions.mean[:, t]),
        r2=metrics.r2(y, predictions.mean[:, t]),
        crps=crps,
        calibration_error=metrics.calibration_error(predictions.pit[:, t]),
        intervals=intervals,
        pit_histogram=metrics.pit_histogram(predictions.pit[:, t]).tolist(),
    )


def _pit(x: Values, standardised: Values, manifest: Manifest) -> Values:
    """P(Y <= y) with the residuals of each row's own calibration group."""
    groups = manifest.calibration_groups(x)
    pit = np.empty_like(standardised)
    for group in np.unique(groups):
        rows = groups == group
        pit[rows] = conformal.cumulative_probability(manifest.residuals(group), standardised[rows][..., None])[..., 0]
    return pit


def _raw_units(values: Values, targets: list[Target]) -> Values:
    """Inverse transforms of [n, targets, anything]."""
    return np.stack([TRANSFORMS[target.transform].inverse(values[:, t]) for t, target in enumerate(targets)], axis=1)


def _raw_moments(location: Values, scale: Values, residuals: Values, targets: list[Target]) -> Moments:
    if all(target.transform == "identity" for target in targets):
        return location, scale
    nodes, weights = conformal.residual_nodes(residuals)
    raw = _raw_units(location[..., None] + scale[..., None] * nodes, targets)
    mean = raw @ weights
    std = np.sqrt((raw - mean[..., None]) ** 2 @ weights)
    plain = np.array([target.transform == "identity" for target in targets])
    return np.where(plain, location, mean), np.where(plain, scale, std)


def _chunks(rows: int) -> Iterator[slice]:
    for first in range(0, max(rows, 1), _CHUNK_ROWS):
        yield slice(first, first + _CHUNK_ROWS)
