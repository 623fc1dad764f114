"""Batch scoring: a table and a model file in, a table of predictions out, in memory that does not grow. Needs no torch."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from models.artifact import Run, open_model
from models.conformal import interval_factors, largest_coverage, supports
from models.manifest import Manifest
from training.calibrate import Values
from training.errors import OptionError, TableError
from training.files import blank_rows, cleaned, read_batches
from training.schema import encode, encode_targets, known_words, unusual

BATCH_ROWS = 65536
_MOMENTS = ("mean", "std", "epistemic_std")


@dataclass(frozen=True)
class Scored:
    """What is to be said of the rows of a table that was scored.

    unusual: by sentence, the number of rows that are unlike the training table.
    unbounded: by value of the model's calibration group column, the number of rows with an infinite interval, since that group
    has too few calibration rows for a coverage. Neither holds zeros.
    """

    unusual: dict[str, int]
    unbounded: dict[str, int]


def predict_table(
    model: Path,
    table: Path,
    *,
    output: Path,
    coverages: Sequence[float] = (),
    keep: Sequence[str] = (),
    delimiter: str = ",",
    on_rows: Callable[[int], None] = lambda rows: None,  # noqa: ARG005
) -> Scored:
    """Write the predictions for every row of `table`, in its order, to `output` (.parquet or .csv), whole or not at all.

    coverages: of the prediction intervals; none means the model's default. keep: columns of `table` to copy, as they stand
    there. on_rows hears of every batch. Columns are TARGET_mean, TARGET_std, TARGET_epistemic_std, TARGET_lower_0.9,
    TARGET_upper_0.9 ... Raises ArtifactError, TableError, OptionError, OSError.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise OptionError(f"--output {output}: the name of the predictions ends in .parquet or .csv")
    if output.is_dir():
        raise OptionError(f"--output {output}: is a folder; name a file")
    if output.resolve() == table.resolve():
        raise OptionError(f"--output {output}: is the table itself; give the predictions a name of their own")
    run, manifest = open_model(model)
    coverages = list(dict.fromkeys(coverages)) or [manifest.default_coverage]
    require_supported(coverages, manifest)
    names = _column_names(manifest, coverages)
    keep = list(dict.fromkeys(keep))
    wanted = list(dict.fromkeys([*keep, *manifest.feature_names]))
    batches = read_batches(table, columns=wanted, batch_rows=BATCH_ROWS, delimiter=delimiter, as_it_stands=True)
    strange: Counter[str] = Counter()
    in_group: Counter[int] = Counter()
    taken = sorted(set(keep) & set(names))
    if taken:
        raise OptionError(f"--keep {taken[0]}: a column of the predictions has that name; rename the column of the table")

    def frames() -> Iterator[pl.DataFrame]:
        row = 1
        for frame in batches:
            features = cleaned(frame.select(manifest.feature_names), known_words(manifest.columns))
            x, unknown = encode(features, manifest.columns, rows=np.arange(row, row + frame.height))
            strange.update(unusual(x, manifest.columns, unknown))
            in_group.update(manifest.calibration_groups(x).tolist())
            yield frame.with_columns(**_predictions(run, x, coverages, names)).select(*keep, *names)
            row += frame.height
            on_rows(frame.height)

    first = next(frames_of := frames(), None)
    if first is None:
        raise TableError(f"{table.name} has a header but no rows")
    unfit = [name for name in keep if first[name].dtype.is_nested() or first[name].dtype in (pl.Binary, pl.Duration)]
    if unfit and output.suffix == ".csv":
        raise OptionError(f"--keep {unfit[0]}: CSV cannot hold its type; write the predictions as .parquet")

    def source(*_: object) -> Iterator[pl.DataFrame]:
        yield first
        yield from frames_of

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        unfinished = Path(folder) / output.name
        lazy = register_io_source(source, schema=first.schema)
        if output.suffix == ".parquet":
            try:
                lazy.sink_parquet(unfinished)
            except pl.exceptions.PolarsError as error:  # what sink_csv raises as OSError, behind polars' own words
                raise OSError(str(error).rpartition(": ")[2]) from error
        else:
            lazy.sink_csv(unfinished)
        unfinished.replace(output)
    return Scored(unusual=dict(strange), unbounded=_unbounded_rows(in_group, manifest, coverages))


def read_x_y(
    table: Path, manifest: Manifest, *, drop_missing_target: bool = False, delimiter: str = ","
) -> tuple[Values, Values, dict[str, int]]:
    """Features [n, columns] and targets [n, targets] of a table for a model, and `Scored.unusual`. Raises TableError.

    drop_missing_target: leave out rows without a target; without it they are refused. Rows without any value are left out.
    """
    parts, row = [], 1
    strange: Counter[str] = Counter()
    names = list(dict.fromkeys([*manifest.feature_names, *manifest.target_names]))
    for frame in read_batches(table, columns=names, delimiter=delimiter, words=known_words(manifest.columns)):
        y = encode_targets(frame, manifest.targets, first_row=row)
        rows = np.arange(row, row + frame.height)
        row += frame.height
        empty = np.asarray(np.isnan(y).any(axis=1))
        wanting = empty & ~blank_rows(frame)
        if wanting.any() and not drop_missing_target:
            first = rows[wanting.argmax()]
            raise TableError(f"{table.name}: data row {first} has no target; leave such rows out with --drop-missing-target")
        if empty.any():
            strange["no target, and the row was left out"] += int(empty.sum())
            frame, y, rows = frame.filter(~empty), y[~empty], rows[~empty]
        x, unknown = encode(frame, manifest.columns, rows=rows)
        parts.append((x, y))
        strange.update(unusual(x, manifest.columns, unknown))
    if not any(len(y) for _, y in parts):
        raise TableError(f"{table.name} has no row with a target" if parts else f"{table.name} has a header but no rows")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), dict(strange)


def require_supported(coverages: Sequence[float], manifest: Manifest) -> None:
    """Raise OptionError for a coverage outside (0, 1), or beyond what the calibration rows of all groups together support."""
    rows, interval = manifest.calibration.rows, manifest.calibration.interval
    for coverage in coverages:
        if not 0 < coverage < 1:
            raise OptionError(f"--coverage {coverage}: a coverage lies between 0 and 1, 0.9 for 90 %")
        if not supports(coverage, rows=rows, interval=interval):
            largest = largest_coverage(rows, interval=interval)
            raise OptionError(f"--coverage {coverage}: this model has {rows} calibration rows; the largest is {largest}")


def _unbounded_rows(in_group: Mapping[int, int], manifest: Manifest, coverages: Sequence[float]) -> dict[str, int]:
    """Of the numbers of rows by calibration group, those whose group is too small for a coverage, by the group's value."""
    unbounded = {}
    for number, count in sorted(in_group.items()):
        _, upper = interval_factors(manifest.residuals(number), coverages, interval=manifest.calibration.interval)
        if np.isinf(upper).any():
            unbounded[str(manifest.calibration.groups[number].value)] = count
    return unbounded


def _column_names(manifest: Manifest, coverages: Sequence[float]) -> list[str]:
    """The columns of the predictions. Raises OptionError where two targets would share one."""
    ends = [f"{end}_{coverage}" for coverage in coverages for end in ("lower", "upper")]
    owners: dict[str, str] = {}
    for target in manifest.target_names:
        for name in (f"{target}_{what}" for what in (*_MOMENTS, *ends)):
            if owners.setdefault(name, target) != target:
                raise OptionError(
                    f"the targets {owners[name]!r} and {target!r} would both have a column {name!r} in the predictions; fit "
                    "the model with another name for one of them"
                )
    return list(owners)


def _predictions(run: Run, x: Values, coverages: Sequence[float], names: Sequence[str]) -> dict[str, pl.Series]:
    """The columns of the predictions by their `names`."""
    answers = run(x, np.array(coverages, dtype=np.float64))
    arrays = []
    for t in range(answers["mean"].shape[1]):
        arrays += [answers[moment][:, t] for moment in _MOMENTS]
        arrays += [answers[end][:, t, k] for k in range(len(coverages)) for end in ("lower", "upper")]
    return {name: pl.Series(array.astype(np.float64)) for name, array in zip(names, arrays, strict=True)}
