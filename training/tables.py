"""The table that a model is trained on: read, described, and refused with the reason where it cannot be one."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.manifest import Column, Target, Transform
from training.columns import codes, missing, moments, weight_values
from training.config import TableOptions
from training.describe import MAX_CATEGORIES, describe
from training.errors import TableError
from training.files import ROW_INDEX, Source, blank_rows, collect, open_table, require_columns, scan, sha256_of
from training.schema import few_values, target_values

MINIMUM_ROWS = 30
"""Fewer rows than this leave too little for fitting, early stopping, calibration and test each."""
_RANKED_ROWS = 10_000
"""As many rows tell whether a feature goes with a target; ranking a million takes a tenth of a second for each column."""
_SAME_ORDER = 0.9999


@dataclass(frozen=True, eq=False)
class Table:
    """A table to train on; n rows are left after dropping.

    x: [n, columns] float64 as `manifest.Column` says; y: [n, targets] float64, raw units, nothing missing;
    weights: [n], 0 or more, not all 0; groups: [n] int64, the same for rows that belong together; time: [n], sortable.
    notes: what the user should be told, a sentence each.
    """

    columns: list[Column]
    targets: list[Target]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    groups: NDArray[np.int64] | None
    time: NDArray[np.float64] | None
    name: str
    sha256: str
    notes: list[str]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.y)


def read_table(path: Path | str, options: TableOptions) -> Table:
    """Read a CSV, CSV.gz or Parquet file as a table to train on.

    Every column is a feature, except targets, excluded columns, and the group, time and weight columns: a model
    that knows the group or the date of its training rows by heart says nothing about new ones.

    Column types are inferred from all rows. A categorical column (text, or named as one) keeps its
    MAX_CATEGORIES most frequent values. A constant column stays a feature, with a note, so that a request that
    holds it is accepted. Rows without any value (blank lines), and the row index that R and pandas write beside the data
    (`files.ROW_INDEX`), are left out, with a note.

    Raises TableError, a sentence with the reason and the way out, for whatever cannot be trained on, and OptionError for a
    transform that is none.
    """
    forms = options.transforms()
    source = open_table(path, delimiter=options.delimiter)
    features = _features(source, options)
    targets, group, time, weight = options.target, options.group, options.time, options.weight
    others = [name for name in dict.fromkeys((group, time, weight)) if name is not None]
    frame, padded = _load(source, [*features, *targets, *others], as_text={*options.categorical, group or ""})
    if frame.height == 0:
        raise TableError(f"{source.path.name} has a header but no rows")
    frame, y, rows, notes = _complete_rows(frame, forms, weight=weight, drop_missing_target=options.drop_missing_target)
    repeated = _repeated_rows(frame, [*features, *targets], group=group)
    if repeated:
        way_out = "drop them" + ("" if time else ", or name a column that marks the copies with --group")
        notes.append(
            f"{repeated} rows repeat another row; if they are copies, those on both sides of a division make the scores look "
            f"better, and intervals too narrow for new rows: {way_out}"
        )
    notes += _about_row_index(source, used={*features, *targets, *options.exclude, *others})
    columns, x = [], np.empty((len(rows), len(features)))
    wrong = []
    for j, name in enumerate(features):
        series = frame.drop_in_place(name)
        try:
            column, x[:, j], remarks = describe(
                series, categorical=name in options.categorical, max_categories=MAX_CATEGORIES, rows=rows
            )
        except TableError as error:
            wrong.append(str(error))
            continue
        columns.append(column)
        notes += remarks
        if name in padded:
            notes.append(
                f"column {name!r} holds numbers with leading zeros ({padded[name]!r}); if they are codes: "
                f"--categorical {shlex.quote(name)}"
            )
    if wrong:
        raise TableError("\n".join(wrong))
    notes += _about_leaks(columns, x, list(forms), y)
    groups = None if group is None else codes(frame[group])
    return Table(
        columns=columns,
        targets=[
            Target(
                name=name,
                transform=form,
                minimum=float(values.min()),
                maximum=float(values.max()),
                values=few_values(values, groups),
            )
            for (name, form), values in zip(forms.items(), y.T, strict=True)
        ],
        x=x,
        y=y,
        weights=None if weight is None else weight_values(frame[weight], rows=rows),
        groups=groups,
        time=None if time is None else moments(frame[time], rows=rows),
        name=source.path.name,
        sha256=sha256_of(source.path),
        notes=notes,
    )


def _about_row_index(source: Source, *, used: set[str]) -> list[str]:
    """Notes on the columns that are left out for being a row index."""
    return [
        (f"column {name!r} is" if name else "the first column has no name and is")
        + " left out: it reads as the row index that pandas and R write; give it a name of its own to keep it"
        for name in source.names
        if name in ROW_INDEX and name not in used
    ]


def _repeated_rows(frame: pl.DataFrame, names: Sequence[str], *, group: str | None) -> int:
    """The number of rows that equal an earlier one in these columns, without those in its group: no split parts them."""
    apart = frame.height if group is None else frame.select([*names, group]).hash_rows().n_unique()
    return apart - frame.select(names).hash_rows().n_unique()


def _about_leaks(
    columns: Sequence[Column], x: NDArray[np.float64], targets: Sequence[str], y: NDArray[np.float64]
) -> list[str]:
    """Notes on features that order the rows as a target does: it may be the target itself, in another unit."""
    some = np.linspace(0, len(y) - 1, min(len(y), _RANKED_ROWS)).astype(np.int64)
    return [
        f"column {column.name!r} rises or falls with the target {target!r} in nearly every row; if it is known only "
        f"afterwards: --exclude {shlex.quote(column.name)}"
        for column, values in zip(columns, x[some].T, strict=True)
        for target, quantity in zip(targets, y[some].T, strict=True)
        if column.kind != "categorical" and abs(_rank_correlation(values, quantity)) > _SAME_ORDER
    ]


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's correlation over the rows where `a` is not missing; 0 where these are few, NaN for a constant."""
    known = ~np.isnan(a)
    if known.sum() < MINIMUM_ROWS:
        return 0.0
    return float(pl.DataFrame({"a": a[known], "b": b[known]}).select(pl.corr("a", "b", method="spearman")).item())


def _features(source: Source, options: TableOptions) -> list[str]:
    """The names of the features, after a check that every option names columns that can have its role."""
    targets, categorical = options.target, options.categorical
    roles = {"target": targets, "exclude": options.exclude, "categorical": categorical}
    single = {"group": options.group, "time": options.time, "weight": options.weight}
    roles |= {role: [name] for role, name in single.items() if name is not None}
    for role, names in roles.items():
        require_columns(names, source.names, what=f"{role}: {source.path.name} has no column")
    twice = [name for i, name in enumerate(targets) if name in targets[:i]]
    if twice:
        raise TableError(f"the target {twice[0]!r} is named twice; name it once")
    for role, names in roles.items():
        both = [name for name in names if name in targets]
        if role != "target" and both:
            raise TableError(f"column {both[0]!r} is a target and cannot be named by {role} too; drop one of the two")
    away = {*targets, *options.exclude, *single.values(), *(name for name in ROW_INDEX if not name or name not in categorical)}
    useless = [name for name in categorical if name in away]
    if useless:
        raise TableError(
            f"categorical names {useless[0]!r}, which is no feature: it is excluded, or holds groups, times or weights; "
            "name it in one of the two places"
        )
    features = [name for name in source.names if name not in away]
    if not features:
        raise TableError(f"{source.path.name} has no column left to predict from besides {', '.join(map(repr, targets))}")
    return features


def _load(source: Source, names: Sequence[str], *, as_text: set[str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """The named columns of all rows, and by column of numbers the first with a leading zero, where there is one.

    Text that holds nothing but numbers comes as floats. Two passes over a CSV file, so that the text of its numbers, which is
    larger than they are, is never held.
    """
    lazy = scan(source, names)
    texts = [name for name, kind in lazy.collect_schema().items() if kind == pl.String and name not in as_text]
    if not texts:
        return collect(lazy, source), {}
    numbers = {name: pl.col(name).cast(pl.Float64, strict=False) for name in texts}
    looks = [
        pl.struct(
            numeric=number.count() == pl.col(name).count(),
            padded=pl.col(name).filter(pl.col(name).str.contains(r"^0\d+$")).first(),
        ).alias(name)
        for name, number in numbers.items()
    ]
    numeric = {name: look for name, look in collect(lazy.select(looks), source).row(0, named=True).items() if look["numeric"]}
    frame = collect(lazy.with_columns(numbers[name] for name in numeric), source)
    return frame, {name: look["padded"] for name, look in numeric.items() if look["padded"]}


def _unused(frame: pl.DataFrame, targets: Iterable[str], *, weight: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row has weight 0. One without a target, which will be left out or refused for that, needs no weight."""
    empty = missing(frame[weight]) & np.any([missing(frame[name]) for name in targets], axis=0)
    unused = np.zeros(len(rows), dtype=bool)
    if not empty.all():
        unused[~empty] = weight_values(frame[weight].filter(~empty), rows=rows[~empty]) == 0
    return unused


def _complete_rows(
    frame: pl.DataFrame, forms: Mapping[str, Transform], *, weight: str | None, drop_missing_target: bool
) -> tuple[pl.DataFrame, NDArray[np.float64], NDArray[np.int64], list[str]]:
    """The rows that have every target and a weight above 0: frame, `y`, their numbers as data rows of the file, and notes."""
    notes = []
    rows = np.arange(1, frame.height + 1)
    blank = blank_rows(frame)
    if blank.any():
        notes.append(f"{int(blank.sum())} rows without any value were left out")
        frame, rows = frame.filter(~blank), rows[~blank]
    if weight is not None:  # otherwise they would still calibrate, and be scored
        unused = _unused(frame, forms, weight=weight, rows=rows)
        if unused.any():
            notes.append(f"{int(unused.sum())} rows of weight 0 were left out")
            frame, rows = frame.filter(~unused), rows[~unused]
    y = np.column_stack([target_values(frame[name], form, rows=rows) for name, form in forms.items()])
    gaps = np.isnan(y)
    for name, empty in zip(forms, gaps.T, strict=True):
        if empty.all():
            raise TableError(f"target {name!r} has no value in any row; choose another column")
        if empty.any() and not drop_missing_target:
            raise TableError(
                f"target {name!r} is missing in {int(empty.sum())} of {len(rows)} rows, first in data row "
                f"{rows[empty.argmax()]}; leave them out with --drop-missing-target"
            )
    drop = np.asarray(gaps.any(axis=1))
    if drop.any():
        notes.append(f"{int(drop.sum())} rows with a missing target were left out")
        frame, y, rows = frame.filter(~drop), y[~drop], rows[~drop]
    if len(rows) < MINIMUM_ROWS:
        raise TableError(f"{len(rows)} rows are too few to train on; at least {MINIMUM_ROWS} are needed")
    for name, values in zip(forms, y.T, strict=True):
        if values.min() == values.max():
            raise TableError(f"target {name!r} is {values[0]:g} in every row: there is nothing to predict")
    return frame, y, rows, notes
