"""The whole way from a table to a model file: read, split, fit, export, calibrate, evaluate, write, report."""

import importlib.metadata
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from models.artifact import cpu_session, session_run, write_atomically, write_model
from models.conformal import UNCALIBRATED_ROWS
from models.manifest import Calibration, Manifest, Network, Origin
from models.networks import RawUnitsNetwork
from training import calibrate, evaluate
from training.calibrate import Moments, Residuals, Values
from training.config import FitOptions, NetworkOptions, column_words
from training.errors import OptionError
from training.evaluate import Predictions
from training.export import exported_network, needs_float64
from training.fit import Epoch, Fitted, fit
from training.graph import calibrated_graph
from training.preprocess import feature_statistics, seen_columns
from training.report import report_page
from training.splits import Plan, plan_rows
from training.tables import Table, read_table

Moment = Callable[[Values, Sequence[int] | None], Moments]
"""`moments(x, members)`: location and scale of the mixture of some members, or of all (None)."""

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
    _check_output(output, path)
    progress.stage(f"reading {path.name}")
    table = read_table(
        path,
        targets=options.target,
        exclude=options.exclude,
        categorical=options.categorical,
        group=options.group,
        time=options.time,
        weight=options.weight,
        transforms=options.transforms(),
        drop_missing_target=options.drop_missing_target,
        delimiter=options.delimiter,
    )
    table = _described(table, options)
    for note in table.notes:
        progress.stage(f"note: {note}")
    if options.calibrate_by is not None:
        calibrate.group_feature(table.columns, options.calibrate_by)
    plan = plan_rows(
        table.rows,
        members=options.members,
        folds=options.folds,
        test_share=options.test_share,
        calibration=options.calibration,
        calibration_share=options.calibration_share,
        stop_share=options.stop_share,
        groups=table.groups,
        time=table.time,
        seed=options.seed,
    )
    _check_plan(plan, table, options, progress)
    columns, x = seen_columns(table.columns, table.x, np.setdiff1d(np.arange(table.rows), plan.test))
    table = replace(table, columns=columns, x=x)
    y = calibrate.transformed(table.y, table.targets)
    progress.stage(f"fitting {options.members} members on {table.rows} rows, {len(table.columns)} features, {options.loss}")
    fitted = _fit(table, y, plan, options, on_epoch=progress.epoch)
    progress.stage("exporting and calibrating")
    exported = exported_network(fitted, columns=len(table.columns))
    network = _network(fitted, options)

    def moments(x: Values, members: Sequence[int] | None = None) -> Moments:
        return calibrate.member_moments(exported, x, members)

    calibration = calibrate.calibrated(
        _raw_residuals(plan, table.x, y, moments),
        method=plan.method,
        interval=options.interval,
        family=network.family,
        freedom=network.degrees_of_freedom or [None] * len(table.targets),
        columns=table.columns,
        group_column=options.calibrate_by,
        dependence="time" if options.time else "group" if options.group else None,
    )
    for sentence in calibrate.small_groups(options.coverage, calibration):
        progress.stage(f"note: {sentence}")
    graph = calibrated_graph(
        exported,
        columns=table.columns,
        targets=table.targets,
        calibration=calibration,
        float64=needs_float64(fitted, table.targets),
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
    predictions, evaluated = None, None
    if len(plan.test):
        predictions = evaluate.predicted(run, table.x[plan.test], table.y[plan.test], draft)
        baselines = {}
        if options.baselines:
            progress.stage("fitting the homoscedastic baseline, to compare with")
            baselines = _baselines(table, y, plan, options, calibration)
        evaluated = evaluate.evaluation(predictions, targets=table.targets, network=network, baselines=baselines)
    manifest = draft.model_copy(
        update={"evaluation": evaluated, "origin": _origin(table, plan, command, seconds=time.perf_counter() - start)}
    )
    progress.stage("writing the model and its report")
    report = report_page(manifest, predictions=predictions, x=table.x[plan.test], run=run, history=fitted.history)
    write_model(graph, manifest, output)
    write_atomically(report, output.with_suffix(".html"))
    return manifest


def _check_output(output: Path, table: Path) -> None:
    """Refuse now what could not be written after the fit."""
    report = output.with_suffix(".html")
    for path in (output, report):
        if path.is_dir():
            raise OptionError(f"--output {output}: {path} is a folder; name a file, such as {path / 'model.onnx'}")
        if path.resolve() == table.resolve():
            raise OptionError(f"--output {output}: would overwrite the table {table}")
    if report == output:
        raise OptionError(f"--output {output}: the report is written to that name; end the model's in .onnx")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OptionError(f"--output {output}: cannot be written there ({error.strerror})") from error


def _check_plan(plan: Plan, table: Table, options: FitOptions, progress: Progress) -> None:
    """Refuse a default coverage that the calibration rows cannot support; tell of options that this plan does not use."""
    rows = {"split": len(plan.calibration), "cross": table.rows - len(plan.test), "none": UNCALIBRATED_ROWS}[plan.method]
    calibrate.require_coverage(options.coverage, rows=rows, interval=options.interval)
    unused = {"split": "folds", "cross": "calibration_share"}.get(plan.method, "")
    if unused in options.model_fields_set:
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
    table: Table, y: Values, plan: Plan, options: NetworkOptions, on_epoch: Callable[[Epoch], None] | None = None
) -> Fitted:
    seen = np.unique(np.concatenate(plan.fit))
    return fit(
        table.x,
        y,
        statistics=feature_statistics(table.x[seen], table.columns),
        fit_rows=plan.fit,
        stop_rows=plan.stop,
        options=options,
        weights=table.weights,
        on_epoch=on_epoch,
    )


def _raw_residuals(plan: Plan, x: Values, y: Values, moments: Moment) -> Residuals | None:
    """The residuals that `plan` calibrates with, in units of the uncorrected scale; None where it does not calibrate."""
    match plan.method:
        case "none":
            return None
        case "split":
            rows, (location, scale) = plan.calibration, moments(x[plan.calibration], None)
        case "cross":
            rows, (location, scale) = calibrate.out_of_fold_moments(moments, x, plan.out_of_fold)
    return Residuals(values=(y[rows] - location) / scale, x=x[rows])


def _baselines(table: Table, y: Values, plan: Plan, options: FitOptions, calibration: Calibration) -> dict[str, Predictions]:
    """What the model has to beat, calibrated on the same rows and predicting the same test rows."""
    rows = np.unique(np.concatenate(plan.fit))
    weights = None if table.weights is None else table.weights[rows]
    centre = np.average(y[rows], axis=0, weights=weights)
    scale = np.sqrt(np.average((y[rows] - centre) ** 2, axis=0, weights=weights))

    def constant(x: Values, members: Sequence[int] | None) -> Moments:  # noqa: ARG001 - all members agree
        return np.tile(centre, (len(x), 1)), np.tile(scale, (len(x), 1))

    homoscedastic = _fit(table, y, plan, options.model_copy(update={"loss": "homoscedastic"}))

    def network(x: Values, members: Sequence[int] | None) -> Moments:
        raw_units = RawUnitsNetwork(homoscedastic.network, centre=homoscedastic.centre, scale=homoscedastic.scale)
        with torch.no_grad():
            parts = [raw_units(part) for part in torch.split(torch.from_numpy(x), 8192)]
        location, scale = (torch.cat([part[i] for part in parts], dim=1).numpy() for i in (0, 1))
        chosen = slice(None) if members is None else list(members)
        return calibrate.mixture(location[chosen], scale[chosen])

    return {
        name: evaluate.baseline_predictions(
            moments(table.x[plan.test], None),
            table.y[plan.test],
            _raw_residuals(plan, table.x, y, moments),
            targets=table.targets,
            interval=calibration.interval,
        )
        for name, moments in (("constant", constant), ("homoscedastic", network))
    }


def _network(fitted: Fitted, options: FitOptions) -> Network:
    return Network(
        family=fitted.network.head.family.name,
        degrees_of_freedom=fitted.degrees_of_freedom,
        loss=options.loss,
        options=options.model_dump(),
        members=options.members,
        parameters=fitted.parameters,
        seed=options.seed,
        minimum_std=options.minimum_std,
        maximum_std=options.maximum_std,
    )


def _origin(table: Table, plan: Plan, command: str, *, seconds: float) -> Origin:
    out_of_fold = np.unique(np.concatenate(plan.out_of_fold or [np.empty(0, dtype=np.int64)]))
    by_use = {
        "fit": max(len(rows) for rows in plan.fit),
        "early stopping": max(len(rows) for rows in plan.stop),
        "calibration": len(plan.calibration) + len(out_of_fold),
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
