"""The whole way from a table to a model file: read, split, fit, export, calibrate, evaluate, write, report."""

import importlib.metadata
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from models.artifact import cpu_session, session_run, write_atomically, write_model
from models.conformal import UNCALIBRATED_ROWS
from models.distributions import Family
from models.manifest import EvaluationSource, Manifest, Network, Origin
from models.networks import FeatureStatistics, RawUnitsNetwork
from training import calibrate, evaluate
from training.calibrate import Moments, Residuals, Values
from training.columns import leave_out
from training.config import FitOptions, NetworkOptions, column_words
from training.errors import TableError
from training.evaluate import Predictions
from training.export import exported_network, needs_float64
from training.fit import Epoch, Fitted, fit
from training.graph import calibrated_graph
from training.output import check_output
from training.preprocess import feature_statistics, known_to, seen_columns
from training.report import report_page
from training.splits import Plan, Rows, plan_rows
from training.tables import Table, read_table
from training.trial import chosen_options

Moment = Callable[[Values], Moments]
"""`moments(x)`: location and scale of a mixture of networks, [n, targets] each."""

_LIBRARIES = ("errorbar", "torch", "onnx", "onnxruntime", "numpy", "polars")


@dataclass(frozen=True)
class Progress:
    """Who hears what is going on; every function may be called often."""

    stage: Callable[[str], None] = lambda sentence: None  # noqa: ARG005
    epoch: Callable[[Epoch], None] = lambda epoch: None  # noqa: ARG005


def train(path: Path, options: FitOptions, *, output: Path, command: str, progress: Progress | None = None) -> Manifest:
    """Train on the table at `path` and write the model to `output`, its report beside it as `.html`; returns the manifest.

    Nothing is written before everything is known; an interruption leaves what was there. Raises TableError, OptionError or
    FitError, each one sentence with the way out.
    """
    progress = progress or Progress()
    start = time.perf_counter()
    check_output(output, path)
    progress.stage(f"reading {path.name}")
    table = _described(read_table(path, options), options)
    for note in table.notes:
        progress.stage(f"note: {note}")
    if options.calibrate_by is not None:
        calibrate.group_feature(table.columns, options.calibrate_by)
    plan = plan_rows(table.rows, options, groups=table.groups, time=table.time)
    _check_plan(plan, options, progress)
    columns, x = seen_columns(table.columns, table.x, plan.seen)
    unseen = [column.name for column, values in zip(columns, x[plan.seen].T, strict=True) if np.isnan(values).all()]
    if unseen:
        raise TableError(
            "\n".join(f"column {name!r} has no value in the rows that are fitted; {leave_out(name)}" for name in unseen)
        )
    table = replace(table, columns=columns, x=x)
    y = calibrate.transformed(table.y, table.targets)
    statistics = feature_statistics(table.x[plan.seen], table.columns)
    chosen = chosen_options(
        table.x,
        y,
        statistics=statistics,
        fit_rows=plan.fit,
        stop_rows=plan.stop,
        options=options,
        weights=table.weights,
        on_trial=lambda option: progress.stage(f"short trials: {option}"),
    )
    options = options.model_copy(update=chosen)
    for_folds = f" and {options.fold_members} networks for each of {len(plan.folds)} folds" if plan.folds else ""
    progress.stage(
        f"fitting {options.members} members{for_folds} on {table.rows} rows, {len(table.columns)} features, {options.loss}, "
        f"dropout {options.dropout:g}, frequency scale {options.frequency_scale:g}"
    )
    fitted = _fit(table, y, plan, options, statistics, on_epoch=progress.epoch)
    progress.stage("exporting and calibrating")
    served = fitted.part(slice(plan.members))
    exported = exported_network(served, columns=len(table.columns))
    calibration_rows = _calibration_rows(plan)
    moments = _unseen_moments(plan, table, fitted, lambda x: calibrate.member_moments(exported, x))
    residuals = _residuals(table.x, y, calibration_rows, moments)
    family, freedom = calibrate.likeliest_family(
        residuals,
        served.network.head.family.name,
        served.degrees_of_freedom,
        columns=table.columns,
        group_column=options.calibrate_by,
    )
    network = _network(served, options, family, freedom)
    calibration = calibrate.calibrated(
        residuals,
        method=plan.method,
        interval=options.interval,
        family=family,
        freedom=freedom or [None] * len(table.targets),
        columns=table.columns,
        group_column=options.calibrate_by,
        dependence="time" if options.time else "group" if options.group else None,
    )
    for sentence in [*calibrate.small_groups(options.coverage, calibration), *calibrate.remarks(calibration, table.targets)]:
        progress.stage(f"note: {sentence}")
    graph = calibrated_graph(
        exported,
        columns=table.columns,
        targets=table.targets,
        calibration=calibration,
        float64=needs_float64(served, table.targets),
        target_scale=served.scale,
    ).SerializeToString()
    run = session_run(cpu_session(graph))
    draft = Manifest(
        columns=table.columns,
        targets=table.targets,
        network=network,
        calibration=calibration,
        default_coverage=options.coverage,
        evaluation=None,
        origin=_origin(table, plan, command, seconds=0.0),
        golden=calibrate.golden(run, table.columns, calibration),
    )
    measured = plan.test if len(plan.test) else calibration_rows
    predictions, evaluated = None, None
    if len(measured):
        if options.baselines:
            progress.stage("fitting the homoscedastic baseline, to compare with")
        baselines = _baselines(table, y, plan, options, statistics, draft)
        if len(plan.test):
            predictions = evaluate.predicted(run, table.x[measured], table.y[measured], draft)
        else:
            predictions = _cross_predicted(table, measured, moments, draft, options)
        source: EvaluationSource = "test" if len(plan.test) else "out_of_fold" if plan.folds else "calibration"
        evaluated = evaluate.evaluation(predictions, targets=table.targets, network=network, baselines=baselines, source=source)
        for sentence in evaluate.outliers(predictions, table.targets):
            progress.stage(f"note: {sentence}")
    manifest = draft.model_copy(
        update={"evaluation": evaluated, "origin": _origin(table, plan, command, seconds=time.perf_counter() - start)}
    )
    progress.stage("writing the model and its report")
    report = report_page(manifest, predictions=predictions, x=table.x[measured], run=run, history=fitted.history)
    write_model(graph, manifest, output)
    write_atomically(report, output.with_suffix(".html"))
    return manifest


def _check_plan(plan: Plan, options: FitOptions, progress: Progress) -> None:
    """Refuse a default coverage that the calibration rows cannot support; tell of options that this plan does not use."""
    rows = len(_calibration_rows(plan)) or UNCALIBRATED_ROWS
    calibrate.require_coverage(options.coverage, rows=rows, interval=options.interval, way_out=", or a smaller --coverage")
    for unused in {"split": {"folds", "fold_members"}, "cross": {"calibration_share"}, "none": set()}[
        plan.method
    ] & options.model_fields_set:
        progress.stage(
            f"note: --{unused.replace('_', '-')} has no effect: {plan.method} calibration was chosen for {rows} rows"
        )


def _described(table: Table, options: FitOptions) -> Table:
    """The table with the units and descriptions that the options give its columns."""
    names = [column.name for column in table.columns] + [target.name for target in table.targets]
    units = column_words(options.unit, option="unit", names=names)
    descriptions = column_words(options.description, option="description", names=names)

    def words(name: str) -> dict[str, str | None]:
        return {"unit": units.get(name), "description": descriptions.get(name)}

    return replace(
        table,
        columns=[column.model_copy(update=words(column.name)) for column in table.columns],
        targets=[target.model_copy(update=words(target.name)) for target in table.targets],
    )


def _fit(
    table: Table,
    y: Values,
    plan: Plan,
    options: NetworkOptions,
    statistics: FeatureStatistics,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    return fit(
        table.x,
        y,
        statistics=statistics,
        fit_rows=plan.fit,
        stop_rows=plan.stop,
        options=options,
        weights=table.weights,
        on_epoch=on_epoch,
    )


def _calibration_rows(plan: Plan) -> Rows:
    """The rows that calibrate, in the order of `_unseen_moments`."""
    return np.concatenate(plan.folds) if plan.folds else plan.calibration


def _unseen_moments(plan: Plan, table: Table, fitted: Fitted, served: Moment) -> Moments:
    """Location and scale at the calibration rows, each from networks that did not see the row."""
    if not plan.folds:
        return served(table.x[plan.calibration])
    parts = []
    for k, fold in enumerate(plan.folds):
        x = known_to(plan.seen_without(k), table.x, table.columns)[fold]
        parts.append(_moments(fitted.part(plan.fold_networks(k)), x))
    return calibrate.joined(parts)


def _moments(fitted: Fitted, x: Values) -> Moments:
    """Location and scale of the mixture of networks that are not exported."""
    raw_units = RawUnitsNetwork(fitted.network, centre=fitted.centre, scale=fitted.scale)
    with torch.no_grad():
        parts = [raw_units(part) for part in torch.split(torch.from_numpy(x), 8192)]
    location, scale = (torch.cat([part[i] for part in parts], dim=1).numpy() for i in (0, 1))
    return calibrate.mixture(location, scale)


def _residuals(x: Values, y: Values, rows: Rows, moments: Moments) -> Residuals | None:
    """The residuals that calibrate, in units of the uncorrected scale; None where nothing is calibrated."""
    return Residuals(values=(y[rows] - moments[0]) / moments[1], x=x[rows]) if len(rows) else None


def _cross_predicted(table: Table, rows: Rows, moments: Moments, manifest: Manifest, options: FitOptions) -> Predictions:
    """The predictions at the calibration rows, whose moments are given, with intervals from other rows than their own."""
    groups = None if table.groups is None else table.groups[rows]
    return evaluate.cross_predicted(moments, table.x[rows], table.y[rows], manifest, groups=groups, seed=options.seed)


def _baselines(
    table: Table, y: Values, plan: Plan, options: FitOptions, statistics: FeatureStatistics, model: Manifest
) -> dict[str, tuple[Predictions, Network]]:
    """What the model has to beat, calibrated on the same rows and predicting the same ones: a constant, and, if asked for, the
    network with one std for all rows.
    """
    seen = plan.seen
    rows = _calibration_rows(plan)
    tested = table.x[plan.test]
    # Where all that varies is in one fold, the other rows have no spread: nothing to divide by
    least = options.minimum_std * y.std(axis=0)

    def constant(x: Values, fit_rows: Rows) -> Moments:
        weights = None if table.weights is None else table.weights[fit_rows]
        centre = np.average(y[fit_rows], axis=0, weights=weights)
        scale = np.sqrt(np.average((y[fit_rows] - centre) ** 2, axis=0, weights=weights))
        return np.tile(centre, (len(x), 1)), np.tile(np.maximum(scale, least), (len(x), 1))

    parts = [constant(table.x[fold], np.setdiff1d(seen, fold)) for fold in plan.folds] or [
        constant(table.x[plan.calibration], seen)
    ]
    found: dict[str, tuple[Moments, Moments | None]] = {
        "constant": (calibrate.joined(parts), constant(tested, seen) if len(plan.test) else None)
    }
    if options.baselines:
        # Where no test rows ask the whole ensemble, only the networks that leave a fold out are needed.
        needed = plan if len(plan.test) or not plan.folds else plan.without_members()
        homoscedastic = _fit(table, y, needed, options.model_copy(update={"loss": "homoscedastic"}), statistics)

        def served(x: Values) -> Moments:
            return _moments(homoscedastic.part(slice(needed.members)), x)

        unseen = _unseen_moments(needed, table, homoscedastic, served)
        found["homoscedastic"] = unseen, served(tested) if len(plan.test) else None
    baselines = {}
    for name, (unseen, at_test) in found.items():
        residuals = _residuals(table.x, y, rows, unseen)
        manifest = evaluate.baseline_manifest(model, residuals)
        predictions = (
            _cross_predicted(table, rows, unseen, manifest, options)
            if at_test is None
            else evaluate.calibrated_predictions(at_test, tested, table.y[plan.test], manifest, residuals=residuals)
        )
        baselines[name] = predictions, manifest.network
    return baselines


def _network(fitted: Fitted, options: FitOptions, family: Family, freedom: list[float] | None) -> Network:
    return Network(
        family=family,
        degrees_of_freedom=freedom,
        loss=options.loss,
        options=options.model_dump(),
        members=options.members,
        parameters=fitted.parameters,
        seed=options.seed,
        minimum_std=options.minimum_std,
        maximum_std=options.maximum_std,
        target_scale=list(fitted.scale),
    )


def _origin(table: Table, plan: Plan, command: str, *, seconds: float) -> Origin:
    by_use = {
        "fit": max(len(rows) for rows in plan.fit),
        "early stopping": max(len(rows) for rows in plan.stop),
        "calibration": len(_calibration_rows(plan)),
        "test": len(plan.test),
    }
    return Origin(
        data=table.name,
        data_sha256=table.sha256,
        rows=table.rows,
        rows_by_use=by_use,
        command=command,
        git_revision=_git_revision(),
        libraries={name: version for name in _LIBRARIES if (version := _version(name))},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None  # errorbar itself, where it runs from a folder without being installed


def _git_revision() -> str | None:
    """The revision of the code that trains, where it runs from its own git checkout."""
    code = Path(__file__).resolve()
    git = ["git", "-C", str(code.parent)]
    try:
        # A virtual environment may lie within somebody else's repository: only one that tracks this file is ours.
        subprocess.run([*git, "ls-files", "--error-unmatch", code.name], capture_output=True, check=True)  # noqa: S603
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
