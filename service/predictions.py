"""What is asked of a model and what it answers: the graph's outputs, and quantiles, probabilities and samples from its
calibration residuals. Intervals are the graph's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from models.artifact import Arrays
from models.conformal import (
    IntervalKind,
    largest_coverage,
    outward_slack,
    probability_up_to,
    quantile_factors,
    rounded_outwards,
    sample_factors,
    supported_probabilities,
    supports,
)
from models.manifest import SAME_VALUE, Manifest, Target
from models.transforms import TRANSFORMS, TargetTransform
from service.errors import ENOUGH_PROBLEMS, Problem, refuse

Values = NDArray[np.float64]

_MOMENTS = ("mean", "std", "epistemic_std")
_INTERVALS = ("lower", "upper")
_DISTRIBUTION = ("location", "scale")
_OUTPUTS = _MOMENTS + _INTERVALS
_ALL_OUTPUTS = _OUTPUTS + _DISTRIBUTION


@dataclass(slots=True)
class Question:
    """What a request asks about the rows x [n, features]."""

    x: Values
    coverage: tuple[float, ...]
    quantiles: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    samples: int = 0
    seed: int | None = None

    @property
    def of_the_calibration(self) -> bool:
        """Whether the answer takes more than the graph's own outputs: the calibration residuals."""
        return bool(self.quantiles or self.thresholds or self.samples)

    @property
    def numbers(self) -> int:
        """How many numbers the answer holds for each target."""
        of_row = 3 + 2 * len(self.coverage) + len(self.quantiles) + len(self.thresholds) + self.samples
        return len(self.x) * of_row

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs that the answer needs."""
        return _ALL_OUTPUTS if self.of_the_calibration else _OUTPUTS


@dataclass
class Prediction:
    """The answer: moments [n, targets], the others [n, targets, how many were asked] or None where not asked."""

    mean: NDArray[np.floating]
    std: NDArray[np.floating]
    epistemic_std: NDArray[np.floating]
    lower: NDArray[np.floating]
    upper: NDArray[np.floating]
    quantiles: NDArray[np.floating] | None = None
    cdf: NDArray[np.floating] | None = None
    samples: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Few:
    """The values of a target of few ones, and where, transformed, the predictive distribution passes from one to the next.

    It spreads each value over the way to its neighbours.
    """

    values: Values
    """[values], ascending."""
    middles: Values
    """[values + 1]: between neighbours, and as far before the first and behind the last."""

    def between(self, thresholds: Values, forward: Values) -> Values:
        """Where to ask for P(Y <= t), transformed: the same for all t between two values. forward: [thresholds] transformed."""
        place = np.searchsorted(self.values - SAME_VALUE * np.abs(self.values), thresholds, side="right")
        middle = self.middles[place]
        asked = np.where(place == 0, np.minimum(forward, middle), middle)
        return np.where(place == len(self.values), np.maximum(forward, middle), asked)

    def nearest(self, transformed: Values) -> Values:
        """The value that is nearest to each transformed number."""
        return self.values[np.searchsorted(self.middles[1:-1], transformed)]


def _few(target: Target) -> Few | None:
    if target.values is None:
        return None
    values = np.array(target.values)
    places = TRANSFORMS[target.transform].forward(values)
    halves = np.diff(places) / 2
    return Few(values, np.concatenate([[places[0] - halves[0]], places[:-1] + halves, [places[-1] + halves[-1]]]))


@dataclass(frozen=True)
class CalibratedTargets:
    """A model's calibration residuals with what turns them into answers; made once per model by `calibrated_targets`."""

    names: tuple[str, ...]
    transforms: tuple[TargetTransform, ...]
    values: tuple[Few | None, ...]
    """Of targets of few values; None of any other."""
    interval: IntervalKind
    residuals: tuple[Values, ...]
    """By group, each [targets, rows]; the first is of all rows."""
    residual_rows: tuple[int, ...]
    scale: tuple[float, ...] | None
    """The unit of the network's arithmetic; None where the file does not tell it."""
    group_column: str | None
    group_values: tuple[str, ...]
    groups: Callable[[Values], NDArray[np.int64]]
    """The group of each row of x."""


def calibrated_targets(manifest: Manifest) -> CalibratedTargets:
    """The part of `manifest` that answers are made of."""
    calibration = manifest.calibration
    residuals = tuple(manifest.residuals(group) for group in range(len(calibration.groups)))
    return CalibratedTargets(
        names=tuple(manifest.target_names),
        transforms=tuple(TRANSFORMS[target.transform] for target in manifest.targets),
        values=tuple(_few(target) for target in manifest.targets),
        interval=calibration.interval,
        residuals=residuals,
        residual_rows=tuple(array.shape[1] for array in residuals),
        scale=None if manifest.network.target_scale is None else tuple(manifest.network.target_scale),
        group_column=calibration.group_column,
        group_values=tuple(str(group.value) for group in calibration.groups[1:]),
        groups=manifest.calibration_groups,
    )


def check_support(question: Question, targets: CalibratedTargets) -> None:
    """Raise InvalidRequestError where some row's calibration rows are too few for a coverage or a probability asked for."""
    extremes = _extremes(question.coverage)[1:], _extremes(question.quantiles)
    unsupported = _too_small(*extremes, targets.residual_rows, targets.interval)
    if not unsupported:
        return
    if targets.group_column is None:
        raise refuse([Problem(sentence) for sentence in _lacks(question, targets, group=0)])
    groups = targets.groups(question.x)
    problems = [
        Problem(f"{_group_name(group, targets)}: {sentence}", row=row, feature=targets.group_column)
        for row in np.flatnonzero(np.isin(groups, unsupported))[:ENOUGH_PROBLEMS].tolist()
        for group in (int(groups[row]),)
        for sentence in _lacks(question, targets, group=group)
    ]
    if problems:
        raise refuse(problems)


def predict(question: Question, outputs: Arrays, targets: CalibratedTargets) -> Prediction:
    """The answer to `question` from the graph's `outputs` on its rows."""
    moments = {name: outputs[name] for name in _MOMENTS + _INTERVALS}
    if not question.of_the_calibration:
        return Prediction(**moments)
    location, scale = (outputs[name].astype(np.float64) for name in _DISTRIBUTION)
    groups = targets.groups(question.x)
    kind = outputs["location"].dtype
    extra = {}
    if question.quantiles:
        present, places = np.unique(groups, return_inverse=True)
        factors = [quantile_factors(targets.residuals[group], question.quantiles) for group in present]
        shape = (len(targets.names), len(question.quantiles))
        by_row = rounded_outwards(np.reshape(factors, (-1, *shape)), 1)[places]  # P(Y <= quantile) is p at least
        slack = outward_slack(location, targets.scale, float64=kind == np.float64)
        extra["quantiles"] = _raw(location + slack, scale, by_row, targets).astype(kind)
    if question.thresholds:
        standardised = _standardised(np.array(question.thresholds), location, scale, targets)
        rounding = _rounding(location, scale, targets.scale, kind)
        inside = _by_group(groups, targets, probability_up_to, standardised, rounding)
        extra["cdf"] = np.where(np.isinf(standardised), standardised > 0, inside)  # certain beyond the target's domain
    if question.samples:
        rng = np.random.default_rng(question.seed)
        empty = np.empty((*location.shape, question.samples))
        drawn = _by_group(
            groups,
            targets,
            lambda residuals, rows: sample_factors(residuals, rng, rows=len(rows), samples=question.samples),
            empty,
        )
        samples = _raw(location, scale, drawn, targets)
        for t, few in enumerate(targets.values):
            if few is not None:
                samples[:, t] = few.nearest(location[:, t, None] + scale[:, t, None] * drawn[:, t])
        extra["samples"] = samples.astype(kind)
    return Prediction(**moments, **extra)


def check_finite(prediction: Prediction, targets: Sequence[str]) -> None:
    """Raise InvalidRequestError about rows with a number that is not finite: the model's arithmetic overflows that far out."""
    arrays = [array for array in vars(prediction).values() if array is not None]
    wrong = np.any([~np.isfinite(array).all(axis=tuple(range(2, array.ndim))) for array in arrays], axis=0)
    places = np.argwhere(wrong)[:ENOUGH_PROBLEMS].tolist()
    if places:
        far = "is not a finite number: the row is too far from the training rows"
        raise refuse([Problem(f"the prediction of {targets[target]} {far}", row=row) for row, target in places])


def _extremes(values: tuple[float, ...]) -> tuple[float, ...]:
    """(min, max); empty for an empty tuple."""
    return (min(values), max(values)) if len(values) > 1 else 2 * values


@lru_cache(maxsize=1024)
def _too_small(
    largest_coverage: tuple[float, ...], quantiles: tuple[float, ...], rows: tuple[int, ...], interval: IntervalKind
) -> list[int]:
    """The groups whose `rows` (by group) are too few. A group that supports the extremes supports all between them."""
    wanted = [(c, "coverage") for c in largest_coverage] + [(p, "quantile") for p in quantiles]
    return [group for group, count in enumerate(rows) if any(_lack(value, what, count, interval) for value, what in wanted)]


def _lacks(question: Question, targets: CalibratedTargets, *, group: int) -> list[str]:
    """What a group lacks for each coverage and quantile that it cannot give."""
    rows = targets.residual_rows[group]
    wanted = [(c, "coverage") for c in question.coverage] + [(p, "quantile") for p in question.quantiles]
    found = (_lack(value, what, rows, targets.interval) for value, what in wanted)
    return list(islice((sentence for sentence in found if sentence), ENOUGH_PROBLEMS))


@lru_cache(maxsize=4096)
def _lack(value: float, what: str, rows: int, interval: IntervalKind) -> str | None:
    """What `rows` calibration rows lack for a coverage or quantile, or None where they are enough."""
    if what == "coverage":
        if supports(value, rows=rows, interval=interval):
            return None
        largest = largest_coverage(rows, interval=interval)
        ask = f"the largest supported coverage is {largest}" if largest else "no coverage is supported"
        return f"coverage {value} needs more calibration rows than the {rows} there are: {ask}"
    if 1 <= Fraction(str(value)) * (rows + 1) <= rows:
        return None
    smallest, largest = supported_probabilities(rows)
    return f"quantile {value} needs more calibration rows than the {rows} there are: supported are {smallest} to {largest}"


def _group_name(group: int, targets: CalibratedTargets) -> str:
    return f"group {targets.group_values[group - 1]!r}" if group else "no group of its own"


def _by_group(
    groups: NDArray[np.int64], targets: CalibratedTargets, function: Callable[..., Values], *arrays: Values
) -> Values:
    """`function(residuals, *arrays)` on the rows of each group, with that group's residuals; shaped as the first array."""
    result = np.empty_like(arrays[0])
    for group in np.unique(groups):
        rows = groups == group
        result[rows] = function(targets.residuals[group], *(array[rows] for array in arrays))
    return result


def _raw(location: Values, scale: Values, factors: Values, targets: CalibratedTargets) -> Values:
    """Location + scale * factors [n, targets, anything] in the targets' own units."""
    transformed = location[:, :, None] + scale[:, :, None] * factors
    return np.stack([t.inverse(transformed[:, i]) for i, t in enumerate(targets.transforms)], axis=1)


def _rounding(location: Values, scale: Values, target_scale: Sequence[float] | None, kind: np.dtype[np.floating]) -> Values:
    """[n, targets]: what thresholds may be off by once standardised: more than ends are moved outwards by (`outward_slack`)."""
    of_location = 2.0**-20 if kind == np.float32 else 2.0**-43
    of_network = 0.0 if target_scale is None else 2.0**-20 * np.asarray(target_scale)
    rounding: Values = 2.0**-20 + (of_location * np.abs(location) + of_network) / scale
    return rounding


def _standardised(thresholds: Values, location: Values, scale: Values, targets: CalibratedTargets) -> Values:
    """[n, targets, thresholds]: (forward(t) - location) / scale; infinite for a threshold beyond the target's domain."""
    forward = np.empty((len(targets.transforms), len(thresholds)))
    for row, transform, few in zip(forward, targets.transforms, targets.values, strict=True):
        inside = (thresholds > transform.minimum) & (thresholds < transform.maximum)
        row[:] = np.where(thresholds <= transform.minimum, -np.inf, np.inf)
        row[inside] = transform.forward(thresholds[inside])
        if few is not None:
            row[:] = few.between(thresholds, row)
    return (forward - location[:, :, None]) / scale[:, :, None]
