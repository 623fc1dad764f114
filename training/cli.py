"""`python -m training`: fit, inspect, evaluate, predict, calibrate, publish, dataset."""

import inspect as reflection
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from models.artifact import ArtifactError, open_model, read_manifest
from models.conformal import IntervalKind
from training import terminal
from training.config import CalibrationOptions, FitOptions, NetworkOptions, TableOptions, fit_options
from training.errors import FitError, OptionError, TableError

app = typer.Typer(
    help="From a table to a calibrated model file, and what one does with the file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PANELS: list[tuple[type[BaseModel], str]] = [
    (TableOptions, "Table"),
    (NetworkOptions, "Network"),
    (CalibrationOptions, "Splits, calibration, evaluation"),
]

_INTERRUPTED = 130
"""The status that typer makes of Ctrl-C, without a word."""
_METAVARS = {list[str]: "TEXT", str: "TEXT", int: "N", float: "X"}

Model = Annotated[Path, typer.Argument(help="Model file")]
Table = Annotated[Path, typer.Argument(help="CSV, CSV.gz or Parquet file")]
Delimiter = Annotated[str, typer.Option(help="Delimiter of a CSV file")]
DropMissingTarget = Annotated[bool, typer.Option("--drop-missing-target", help="Leave out rows with a missing target")]


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and status 2."""
    try:
        app()
    except (ArtifactError, FitError, OptionError, TableError) as error:
        terminal.complain(str(error))
        sys.exit(2)
    except OSError as error:
        terminal.complain(f"{error.filename or 'the output'}: {error.strerror or error}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            terminal.complain("stopped; nothing was written")
        raise


def _fit(**given: Any) -> None:
    """Train on TABLE and write one calibrated ONNX file, its report beside it.

    Every option may also stand in the TOML file of --config (learning_rate = 0.001); the command line goes before it.
    """
    table, output, config = given.pop("table"), given.pop("output"), given.pop("config")
    options = fit_options({name: value for name, value in given.items() if value not in (None, [])}, config=config)
    from training.train import Progress, train  # torch takes seconds to import; the other commands don't need it

    with terminal.fit_progress() as display:
        manifest = train(
            table,
            options,
            output=output,
            command=shlex.join(["python", "-m", "training", *sys.argv[1:]]),
            progress=Progress(stage=display.stage, epoch=display.epoch),
        )
    terminal.show_evaluation(manifest)
    terminal.say(f"wrote {output} and {output.with_suffix('.html')}")


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with a signature of TABLE, --output, --config and every option of FitOptions, for typer to read."""
    parameters = [
        ("table", Table, reflection.Parameter.empty),
        ("output", Annotated[Path, typer.Option("--output", "-o", help="Model file to write")], Path("model.onnx")),
        ("config", Annotated[Path | None, typer.Option(help="TOML file of options")], None),
        *((name, _option(name, field), None) for name, field in FitOptions.model_fields.items()),
    ]
    function.__signature__ = reflection.Signature(  # type: ignore[attr-defined]
        [
            reflection.Parameter(name, reflection.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, annotation, default in parameters
        ]
    )
    function.__annotations__ = {name: annotation for name, annotation, _ in parameters}
    return function


def _option(name: str, field: FieldInfo) -> Any:
    """The typer option of a field of FitOptions: not given is None, so that a TOML file can speak."""
    panel = next(title for options, title in _PANELS if name in options.model_fields)
    default = field.get_default()
    kind: Any = _plain_type(field.annotation)
    words = str(field.description)
    if get_origin(kind) is Literal:
        words += f": {', '.join(get_args(kind))}"
    if not (field.is_required() or default is None or default is False or default == []):
        words += f" (default {'on' if default is True else default})"
    flag = f"--{name.replace('_', '-')}"
    if kind is bool and default is True:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    metavar = None if kind is bool else "NAME" if get_origin(kind) is Literal else _METAVARS[kind]
    option = typer.Option(flag, help=words, metavar=metavar, rich_help_panel=panel, show_default=False)
    return Annotated[kind | None, option]


def _plain_type(annotation: Any) -> Any:
    """The type that typer shall parse: Annotated and Optional taken off; pydantic checks the rest."""
    if get_origin(annotation) in (Literal, list):
        return annotation
    inner = [argument for argument in get_args(annotation) if argument is not type(None)]
    return _plain_type(inner[0]) if inner else annotation


app.command("fit")(_with_options(_fit))


@app.command()
def inspect(model: Model, as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON")] = False) -> None:
    """Show what a model file holds: columns, targets, calibration, evaluation, origin."""
    manifest = read_manifest(model)
    if as_json:
        sys.stdout.write(manifest.model_dump_json(indent=2) + "\n")
    else:
        terminal.show_manifest(manifest)


@app.command()
def evaluate(
    model: Model,
    table: Table,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as JSON")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="End with status 1 where the default intervals hold fewer rows than chance explains")
    ] = False,
    drop_missing_target: DropMissingTarget = False,
    delimiter: Delimiter = ",",
) -> None:
    """Score a model on the rows of a table that it has not seen."""
    from training.calibrate import require_new_table
    from training.evaluate import held, predicted, scores, too_low
    from training.predict import read_x_y

    run, manifest = open_model(model)
    x, y, unusual = read_x_y(table, manifest, drop_missing_target=drop_missing_target, delimiter=delimiter)
    require_new_table(table, manifest, to_score=True)
    _say_unusual(unusual)
    calibration = manifest.calibration
    if check and not calibration.exchangeable:
        why = "nothing calibrated it" if calibration.dependence is None else "its calibration rows depend on each other"
        raise OptionError(f"--check: what chance explains is not known of this model, for {why}; compare the scores yourself")
    predictions = predicted(run, x, y, manifest)
    by_target = scores(predictions, targets=manifest.targets, network=manifest.network)
    low, checked = too_low(predictions, x, manifest)
    for sentence in low:
        terminal.say(f"note: {sentence}")
    if check and not checked:
        raise OptionError(
            f"--check: no row has a finite interval of coverage {manifest.default_coverage:g} that is its own group's"
        )
    if check and checked < y.size:
        terminal.say(f"note: only {checked} of {y.size} values have a finite interval of their own group and were checked")
    if as_json:
        document: dict[str, Any] = {"rows": len(y), "targets": {name: one.model_dump() for name, one in by_target.items()}}
        for t, name in enumerate(by_target):
            for told in document["targets"][name]["intervals"]:
                found = held(predictions, x, manifest, coverage=told["coverage"], target=t)
                told["least_expected_coverage"] = found.least if found is not None and found.values == told["rows"] else None
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        terminal.show_scores(f"{table.name}, {len(y)} rows", {"model": by_target}, rows=len(y))
    if check and low:
        raise typer.Exit(1)


@app.command()
def predict(
    model: Model,
    table: Table,
    output: Annotated[Path, typer.Option("--output", "-o", help="Predictions to write, .parquet or .csv")],
    coverage: Annotated[
        list[float] | None, typer.Option(help="Coverage of an interval; again for several; default: the model's")
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Column of TABLE to copy (an id)")] = None,
    delimiter: Delimiter = ",",
) -> None:
    """Write mean, std and prediction intervals for every row of a table, in constant memory."""
    from training.files import count_rows
    from training.predict import predict_table

    with terminal.row_progress(count_rows(table)) as on_rows:
        scored = predict_table(
            model, table, output=output, coverages=coverage or (), keep=keep or (), delimiter=delimiter, on_rows=on_rows
        )
    _say_unusual(scored.unusual)
    for value, count in scored.unbounded.items():
        terminal.say(
            f"note: {count} rows of calibration group {value} have an infinite interval: it has too few calibration rows"
        )
    terminal.say(f"wrote {output}")


@app.command()
def calibrate(
    model: Model,
    table: Table,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Model file to write; default: over MODEL")] = None,
    interval: Annotated[IntervalKind | None, typer.Option(help="Kind of interval; default: the model's")] = None,
    calibrate_by: Annotated[
        str | None, typer.Option(help="Feature whose values are calibrated apart; default: the model's")
    ] = None,
    drop_missing_target: DropMissingTarget = False,
    delimiter: Delimiter = ",",
) -> None:
    """Calibrate a model's intervals anew on rows that it has not seen; the network stays as it is."""
    from training.calibrate import recalibrate, remarks, require_new_table
    from training.evaluate import outliers, predicted
    from training.output import check_output
    from training.predict import read_x_y

    old = read_manifest(model)
    if output is None and model.suffix != ".onnx":
        raise OptionError(f"{model} would be replaced, but a model's name ends in .onnx; name another file with -o NAME.onnx")
    output = output or model
    check_output(output, table)
    x, y, unusual = read_x_y(table, old, drop_missing_target=drop_missing_target, delimiter=delimiter)
    digest = require_new_table(table, old, to_score=False)
    _say_unusual(unusual)
    manifest = recalibrate(model, x, y, output=output, interval=interval, group_column=calibrate_by, data_sha256=digest)
    report = output.with_suffix(".html")
    if report.exists():  # it is about the old intervals, and would be published with the new ones
        report.unlink()
        terminal.say(f"removed {report}: it reported the intervals before this calibration")
    told = outliers(predicted(open_model(output)[0], x, y, manifest), manifest.targets, again="calibrate")
    for sentence in [*told, *remarks(manifest.calibration, manifest.targets)]:
        terminal.say(f"note: {sentence}")
    terminal.show_calibration(manifest)
    terminal.say(f"wrote {output}")


def _say_unusual(unusual: dict[str, int]) -> None:
    """unusual: `Scored.unusual`."""
    for sentence, rows in unusual.items():
        terminal.say(f"note: {sentence}: {rows} row{'' if rows == 1 else 's'}")


@app.command()
def publish(
    model: Model,
    repository: Annotated[Path, typer.Argument(help="Model repository (a folder)")],
    name: Annotated[str, typer.Option(help="Name of the model in the repository")],
) -> None:
    """Put a model file into a model repository as the next version, whole or not at all; prints where."""
    from training.publish import publish as publish_model

    sys.stdout.write(f"{publish_model(model, repository, name=name)}\n")


@app.command()
def dataset(
    name: Annotated[str, typer.Argument(help="sine, sinusoid, heteroscedastic_sine, three_targets or diabetes")],
    rows: Annotated[int | None, typer.Option(min=1, help="Rows; default: the dataset's usual number")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise")] = 0,
) -> None:
    """Write a well-known table to standard output, as CSV."""
    from training.datasets import dataset as make_dataset

    sys.stdout.write(make_dataset(name, rows=rows, seed=seed).write_csv())
