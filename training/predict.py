"""Batch scoring: a table and a model file in, a table of predictions out, in memory that does not grow. Needs no torch."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from models.artifact import Run, open_model
from models.conformal import largest_coverage
from models.manifest import Manifest
from training.calibrate import Values
from training.errors import OptionError, TableError
from training.files import read_batches
from training.schema import encode, encode_targets

BATCH_ROWS = 65536
_MOMENTS = ("mean", "std", "epistemic_std")


def predict_table(
    model: Path,
    table: Path,
    *,
    output: Path,
    coverages: Sequence[float] = (),
    keep: Sequence[str] = (),
    delimiter: str = ",",
    on_rows: Callable[[int], None] = lambda rows: None,  # noqa: ARG005
) -> dict[str, int]:
    """Write the predictions for every row of `table`, in its order, to `output` (.parquet or .csv), whole or not at all.

    coverages: of the prediction intervals; none means the model's default. keep: columns of `table` to copy. on_rows hears
    of every batch. Columns are TARGET_mean, TARGET_std, TARGET_epistemic_std, TARGET_lower_0.9, TARGET_upper_0.9 ... Returns
    the number of unknown values of each categorical column that had some. Raises ArtifactError, TableError, OptionError.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise OptionError(f"--output {output}: the name of the predictions ends in .parquet or .csv")
    if output.resolve() == table.resolve():
        raise OptionError(f"--output {output}: is the table itself; give the predictions a name of their own")
    run, manifest = open_model(model)
    coverages = list(dict.fromkeys(coverages)) or [manifest.default_coverage]
    require_supported(coverages, manifest)
    keep = list(dict.fromkeys(keep))
    wanted = list(dict.fromkeys([*keep, *manifest.feature_names]))
    batches = read_batches(table, columns=wanted, batch_rows=BATCH_ROWS, delimiter=delimiter)
    unknown: dict[str, int] = {}
    names = _column_names(manifest, coverages)
    taken = sorted(set(keep) & set(names))
    if taken:
        raise OptionError(f"--keep {taken[0]}: a column of the predictions has that name; rename the column of the table")

    def frames() -> Iterator[pl.DataFrame]:
        row = 1
        for frame in batches:
            x, unknown_here = encode(frame, manifest.columns, first_row=row)
            for name, count in unknown_here.items():
                unknown[name] = unknown.get(name, 0) + count
            yield frame.with_columns(**_predictions(run, x, manifest, coverages)).select(*keep, *names)
            row += frame.height
            on_rows(frame.height)

    first = next(frames_of := frames(), None)
    if first is None:
        raise TableError(f"{table.name} has a header but no rows")

    def source(*_: object) -> Iterator[pl.DataFrame]:
        yield first
        yield from frames_of

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        unfinished = Path(folder) / output.name
        lazy = register_io_source(source, schema=first.schema)
        if output.suffix == ".parquet":
            lazy.sink_parquet(unfinished)
        else:
            lazy.sink_csv(unfinished)
        unfinished.replace(output)
    return unknown


def read_x_y(table: Path, manifest: Manifest, *, delimiter: str = ",") -> tuple[Values, Values]:
    """Features [n, columns] and targets [n, targets] of a table for a model. Raises TableError."""
    parts, row = [], 1
    names = list(dict.fromkeys([*manifest.feature_names, *manifest.target_names]))
    for frame in read_batches(table, columns=names, delimiter=delimiter):
        y = encode_targets(frame, manifest.targets, first_row=row)
        empty = np.flatnonzero(np.isnan(y).any(axis=1))
        if len(empty):
            raise TableError(f"{table.name}: data row {row + int(empty[0])} has no target; leave such rows out")
        parts.append((encode(frame, manifest.columns, first_row=row)[0], y))
        row += frame.height
    if not parts:
        raise TableError(f"{table.name} has a header but no rows")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def require_supported(coverages: Sequence[float], manifest: Manifest) -> None:
    """Raise OptionError for a coverage outside (0, 1) or beyond what some calibration group supports."""
    for group in manifest.calibration.groups:
        largest = largest_coverage(group.rows, interval=manifest.calibration.interval)
        for coverage in coverages:
            if not 0 < coverage < 1:
                raise OptionError(f"--coverage {coverage}: a coverage lies between 0 and 1, 0.9 for 90 %")
            if coverage > largest:
                where = "this model has" if group.value is None else f"{manifest.calibration.group_column} {group.value} has"
                raise OptionError(f"--coverage {coverage}: {where} {group.rows} calibration rows; the largest is {largest}")


def _column_names(manifest: Manifest, coverages: Sequence[float]) -> list[str]:
    ends = [f"{end}_{coverage}" for coverage in coverages for end in ("lower", "upper")]
    return [f"{target}_{what}" for target in manifest.target_names for what in (*_MOMENTS, *ends)]


def _predictions(run: Run, x: Values, manifest: Manifest, coverages: Sequence[float]) -> dict[str, pl.Series]:
    answers = run(x, np.array(coverages, dtype=np.float64))
    arrays = []
    for t in range(len(manifest.targets)):
        arrays += [answers[moment][:, t] for moment in _MOMENTS]
        arrays += [answers[end][:, t, k] for k in range(len(coverages)) for end in ("lower", "upper")]
    names = _column_names(manifest, coverages)
    return {name: pl.Series(array.astype(np.float64)) for name, array in zip(names, arrays, strict=True)}
