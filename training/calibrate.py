"""Calibration of the exported network: residuals in ONNX Runtime, scale factor, conformal groups. Needs no torch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from models import conformal
from models.artifact import RUN_ROWS, Run, cpu_session, golden_rows, open_model, read_model, session_run, write_model
from models.conformal import CalibrationMethod, Dependence, IntervalKind
from models.distributions import (
    MOST_DEGREES_OF_FREEDOM,
    Family,
    distribution,
    likeliest_degrees_of_freedom,
    maximum_likelihood_scale,
)
from models.manifest import Calibration, Column, Golden, Manifest, ResidualGroup, Target
from models.transforms import TRANSFORMS
from training.errors import FitError, OptionError
from training.files import sha256_of
from training.graph import MEMBER_OUTPUTS, calibrated_graph, network_part, outputs_float64
from training.schema import values_with

Values = NDArray[np.float64]
Rows = NDArray[np.int64]
Moments = tuple[Values, Values]
"""Location and scale: mean and std of the transformed target, [n, targets] each, before the scale factor."""

_BIASED, _SURE = 0.5, 4.0
"""Mean of the residuals, in their root mean squares and in standard errors, from which on predictions are told to be off."""
_RARE_ERRORS, _ENOUGH_ROWS = 1.25, 100
"""Root mean square of so many residuals, in std, from which on it is told: 100 draws of a t(3) had 1.21 at most, in 20 sets;
with one error in ten ten times as large it is 1.4 to 1.6."""
LEAST_OWN_ROWS = 50
"""Of a group with a scale factor of its own: with so many normal residuals it is within 10 % (one std, 1 / sqrt(2 rows))."""
_GOLDEN_COVERAGES = (0.5, 0.8, 0.9)
_GOLDEN_PLACES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Where golden values lie in a column's training range."""


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """What calibration starts from: (transform(y) - location) / scale of its rows, [n, targets], and their x."""

    values: Values
    x: Values


def member_moments(network: onnx.ModelProto, x: Values) -> Moments:
    """Location and scale of the mixture of the members at `x` [n, columns], computed in ONNX Runtime."""
    session = cpu_session(network.SerializeToString())
    parts = []
    for first in range(0, max(len(x), 1), RUN_ROWS):
        location, scale = session.run(list(MEMBER_OUTPUTS), {"x": x[first : first + RUN_ROWS]})
        parts.append(mixture(location, scale))
    return joined(parts)


def joined(parts: Sequence[Moments]) -> Moments:
    """The moments of several pieces of rows as those of all."""
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def mixture(location: Values, scale: Values) -> Moments:
    """Mean and std of the equally weighted mixture of members: [members, n, targets] -> [n, targets]."""
    mean = location.mean(axis=0)
    return mean, np.sqrt(((location - mean) ** 2).mean(axis=0) + (scale**2).mean(axis=0))


def transformed(y: Values, targets: list[Target]) -> Values:
    """`y` [n, targets] in the space that the network works in."""
    return np.stack([TRANSFORMS[target.transform].forward(y[:, t]) for t, target in enumerate(targets)], axis=1)


def likeliest_family(
    residuals: Residuals | None,
    family: Family,
    freedom: list[float] | None,
    *,
    columns: Sequence[Column] = (),
    group_column: str | None = None,
) -> tuple[Family, list[float] | None]:
    """The family of the predictive distribution, and its degrees of freedom by target: normal or Student-t by likelihood.

    The mixture over members has other tails than a member, so its family is chosen on calibration residuals, whichever of the
    two the members were fitted with. A laplace family stays, and so does everything where nothing is calibrated. Groups that
    are calibrated by themselves are brought to one scale before: their different ones are no heavy tails.
    """
    if residuals is None or family == "laplace":
        return family, freedom
    try:
        likeliest = [likeliest_degrees_of_freedom(column) for column in _on_one_scale(residuals, columns, group_column).T]
    except ValueError:
        return family, freedom  # hardly a residual differs from 0: `calibrated` says so
    if not any(likeliest):
        return "gaussian", None
    return "student_t", [df or MOST_DEGREES_OF_FREEDOM for df in likeliest]


def calibrated(
    residuals: Residuals | None,
    *,
    method: CalibrationMethod,
    interval: IntervalKind,
    family: Family,
    freedom: Sequence[float | None],
    columns: list[Column],
    group_column: str | None = None,
    dependence: Dependence | None = None,
) -> Calibration:
    """The calibration that these residuals make; None stands for method `none`, the family's own intervals.

    freedom: [targets], the degrees of freedom of a student_t family, else None. dependence: how rows were split.

    Raises OptionError where `group_column` is not a categorical or boolean feature, and FitError where the residuals have no
    likeliest scale.
    """
    if residuals is None:
        unit = [distribution(family, mean=0.0, std=1.0, degrees_of_freedom=df) for df in freedom]
        groups = [ResidualGroup(residuals=[conformal.family_residuals(one.quantile)[0].tolist() for one in unit])]
        factors = np.ones(len(freedom))
    else:
        factors = _scale_factors(residuals.values, family, freedom)
        groups = [ResidualGroup(residuals=_sorted(residuals.values, factors))]
        for value, code, rows in _rows_by_value(residuals, columns, group_column):
            own = _own_factors(residuals.values[rows], family, freedom)
            found = _sorted(residuals.values[rows], factors if own is None else own)
            groups.append(
                ResidualGroup(value=value, code=code, residuals=found, scale_factor=None if own is None else own.tolist())
            )
    return Calibration(
        method=method,
        interval=interval,
        dependence=dependence,
        group_column=group_column,
        groups=groups,
        scale_factor=factors.tolist(),
        guarantee=conformal.guarantee(
            method, interval=interval, rows=groups[0].rows, dependence=dependence, group_column=group_column
        ),
    )


def _scale_factors(residuals: Values, family: Family, freedom: Sequence[float | None]) -> Values:
    try:
        return np.array(
            [maximum_likelihood_scale(residuals[:, t], family=family, degrees_of_freedom=df) for t, df in enumerate(freedom)]
        )
    except ValueError as error:
        raise FitError(
            f"the calibration rows are predicted without error ({error}); does a feature hold the target?"
        ) from error


def _own_factors(residuals: Values, family: Family, freedom: Sequence[float | None]) -> Values | None:
    """The scale factors of one group; None where it has too few rows to tell them, or is predicted without error."""
    if len(residuals) >= LEAST_OWN_ROWS:
        with suppress(FitError):
            return _scale_factors(residuals, family, freedom)
    return None


def _on_one_scale(residuals: Residuals, columns: Sequence[Column], group_column: str | None) -> Values:
    """The residuals in units of the root mean square of their group, where it has a scale factor of its own, or else of all."""
    if group_column is None:
        return residuals.values
    freedom = [None] * residuals.values.shape[1]
    values = residuals.values / _scale_factors(residuals.values, "gaussian", freedom)
    for _, _, rows in _rows_by_value(residuals, columns, group_column):
        own = _own_factors(residuals.values[rows], "gaussian", freedom)
        if own is not None:
            values[rows] = residuals.values[rows] / own
    return values


def require_coverage(coverage: float, *, rows: int, interval: IntervalKind, way_out: str = "") -> None:
    """Raise OptionError where so many calibration rows are too few for a model's default coverage."""
    if not conformal.supports(coverage, rows=rows, interval=interval):
        largest = conformal.largest_coverage(rows, interval=interval)
        raise OptionError(f"coverage {coverage:g}: {rows} calibration rows support at most {largest}; give more rows{way_out}")


def small_groups(coverage: float, calibration: Calibration) -> list[str]:
    """A sentence about each group whose rows are too few for `coverage`."""
    sentences = []
    for group in calibration.groups[1:]:
        if not conformal.supports(coverage, rows=group.rows, interval=calibration.interval):
            largest = conformal.largest_coverage(group.rows, interval=calibration.interval)
            name = f"{calibration.group_column} {group.value}"
            sentences.append(f"{name} has {group.rows} calibration rows: its largest coverage is {largest}, not {coverage:g}")
    return sentences


def remarks(calibration: Calibration, targets: list[Target]) -> list[str]:
    """A sentence about each target whose calibration residuals say that its mean, or its std, is not what one takes it for.

    A residual counts as no farther out than in averages (`conformal.residual_nodes`). The std of a transformed target is such
    an average; that of others is fitted by likelihood, which few large errors move little.
    """
    sentences = []
    own = [group.residuals for group in calibration.groups if group.scale_factor] or [calibration.groups[0].residuals]
    residuals = np.sort(np.concatenate(own, axis=1), axis=1)
    rows, (nodes, weights) = residuals.shape[1], conformal.residual_nodes(residuals)
    for target, values in zip(targets, nodes, strict=True):
        mean, rms = float(values @ weights), math.sqrt(values**2 @ weights)
        if abs(mean) > _BIASED * rms and abs(mean) > _SURE * rms / math.sqrt(rows):
            side = "above" if mean > 0 else "below"
            plain = target.transform == "identity"
            allowed = "intervals allow for it, the mean does not" if plain else "the network does not know of it"
            sentences.append(
                f"{target.name} lies {side} its predictions, by {abs(mean):.2g} std on average: {allowed}; fit anew on rows "
                "like these"
            )
        elif target.transform == "identity" and rms > _RARE_ERRORS and rows >= _ENOUGH_ROWS:
            sentences.append(
                f"some errors of {target.name} are much larger than the rest: its std, fitted by likelihood, is some "
                f"{1 / rms:.2g} of their root mean square; intervals, quantiles and samples allow for them"
            )
    return sentences


def factors_by_group(calibration: Calibration, target: int) -> str:
    """; by colour 0.963 (blue) to 4.7 (red): the least and the largest factor of the groups with their own; "" without any."""
    own = [(group.scale_factor[target], group.value) for group in calibration.groups if group.scale_factor]
    if not own:
        return ""
    (least, at_least), (largest, at_largest) = min(own), max(own)
    return f"; by {calibration.group_column} {least:.3g} ({at_least}) to {largest:.3g} ({at_largest})"


def _sorted(residuals: Values, factors: Values) -> list[list[float]]:
    """In units of the corrected scale, as a calibration holds them: [targets][rows], ascending."""
    ordered = np.sort((residuals / factors).T, axis=1)
    if not np.isfinite(ordered).all():
        raise FitError("a target is so far from its prediction that float64 has no residual for it; correct it")
    found: list[list[float]] = ordered.tolist()
    return found


def _rows_by_value(
    residuals: Residuals, columns: Sequence[Column], name: str | None
) -> Iterator[tuple[str, float, NDArray[np.bool_]]]:
    """Each value of the feature `name` that has rows, its code in x, and which rows these are; nothing without a name."""
    if name is not None:
        index, column = group_feature(columns, name)
        for code, value in enumerate(column.categories or ["false", "true"]):
            rows = residuals.x[:, index] == code
            if rows.any():
                yield value, float(code), rows


def group_feature(columns: Sequence[Column], name: str) -> tuple[int, Column]:
    """Index and column of the feature to calibrate by. Raises OptionError unless it is categorical or boolean."""
    for index, column in enumerate(columns):
        if column.name == name:
            if column.kind in ("categorical", "boolean"):
                return index, column
            raise OptionError(
                f"--calibrate-by {name}: is {column.kind}; calibration by group needs a categorical or boolean feature "
                f"(for integer codes add --categorical {name})"
            )
    raise OptionError(
        f"--calibrate-by {name}: is not a feature; the features are {', '.join(column.name for column in columns)}"
    )


def golden(run: Run, columns: list[Column], calibration: Calibration) -> Golden:
    """Golden rows, spread over the columns' ranges and one with everything missing, at coverages that every group supports.

    Made, not taken: a model file then holds no row of anybody's table.
    """
    rows = [[_typical_value(column, number) for column in columns] for number in range(len(_GOLDEN_PLACES))]
    x = np.array([*rows, [np.nan] * len(columns)])
    return golden_rows(run, x, [coverage for coverage in _GOLDEN_COVERAGES if coverage <= calibration.common_coverage])


def _typical_value(column: Column, number: int) -> float:
    if column.categories is not None:
        return float(number % len(column.categories)) if column.categories else math.nan
    if column.kind == "boolean":
        return float(number % 2)
    low, high = column.minimum or 0.0, column.maximum or 0.0
    return low + _GOLDEN_PLACES[number] * (high - low)


def require_new_table(table: Path, manifest: Manifest, *, to_score: bool) -> str:
    """The SHA-256 of `table`. Raises OptionError where it is the file that the model was fitted to, or, `to_score`, that
    calibrated it anew: its residuals say nothing about new rows.
    """
    digest = sha256_of(table)
    seen = {manifest.origin.data_sha256: "fitted to"}
    if to_score:
        seen[str(manifest.origin.calibration_sha256)] = "calibrated on"
    if digest in seen:
        raise OptionError(f"{table.name} is the table that the model was {seen[digest]}; take rows that it has not seen")
    return digest


def recalibrate(
    model: Path,
    x: Values,
    y: Values,
    *,
    output: Path,
    interval: IntervalKind | None,
    group_column: str | None,
    data_sha256: str | None = None,
) -> Manifest:
    """Write `model` to `output` with its intervals calibrated anew, by the split method.

    x [n, columns], y [n, targets]: rows that are new to the model, neither fitted nor used for early stopping. The evaluation
    is dropped, since it was of the old intervals. interval, group_column: None keeps the model's. data_sha256: of the rows'
    table, which the model is then not to be scored on.

    Raises ArtifactError for a bad file, and OptionError where the rows are too few for the model's default coverage or
    `group_column` cannot be calibrated by.
    """
    open_model(model)
    data, old = read_model(model)
    graph = onnx.load_model_from_string(data)
    network = network_part(graph)
    location, scale = member_moments(network, x)
    residuals = Residuals(values=(transformed(y, old.targets) - location) / scale, x=x)
    column = group_column or old.calibration.group_column
    family, freedom = likeliest_family(
        residuals, old.network.family, old.network.degrees_of_freedom, columns=old.columns, group_column=column
    )
    calibration = calibrated(
        residuals,
        method="split",
        interval=interval or old.calibration.interval,
        family=family,
        freedom=freedom or [None] * len(old.targets),
        columns=old.columns,
        group_column=column,
        dependence=old.calibration.dependence,
    )
    if column and len(calibration.groups) == 1:
        raise OptionError(f"the model is calibrated by {column}, and no row has a value of {column} that it knows")
    require_coverage(old.default_coverage, rows=calibration.rows, interval=calibration.interval)
    whole = calibrated_graph(
        network,
        columns=old.columns,
        targets=old.targets,
        calibration=calibration,
        float64=outputs_float64(graph) or any(target.transform != "identity" for target in old.targets),
        target_scale=old.network.target_scale,
    ).SerializeToString()
    update = {
        "targets": [
            target if target.values is None else target.model_copy(update={"values": values_with(target.values, y[:, t])})
            for t, target in enumerate(old.targets)
        ],
        "network": old.network.model_copy(update={"family": family, "degrees_of_freedom": freedom}),
        "calibration": calibration,
        "evaluation": None,
        "origin": old.origin.model_copy(
            update={
                "rows_by_use": {**old.origin.rows_by_use, "calibration": calibration.rows},
                "calibration_sha256": data_sha256,
            }
        ),
        "golden": golden(session_run(cpu_session(whole)), old.columns, calibration),
    }
    manifest = old.model_copy(update=update)
    write_model(whole, manifest, output)
    return manifest
