"""What the command line shows: progress, scores, manifests."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from models.conformal import coverage_range
from models.manifest import IntervalScores, Manifest, Scores
from training.calibrate import factors_by_group, small_groups
from training.evaluate import rows_in_words
from training.schema import range_in_words

if TYPE_CHECKING:
    from training.fit import Epoch

_PLAIN_WIDTH = 110
"""Columns of what is shown where there is no terminal; 80, rich's own choice, would squeeze the names out of the scores."""
_STEERING = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class _Console(Console):
    """No markup, no emoji, nothing that steers the terminal: `speed [km/h]` is a table's name for something, not a style."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(_STEERING), **options)


_console = _Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
_errors = _Console(stderr=True)
_SHOWN_COVERAGE = 0.9
_PLAIN_LINES = 8
"""Progress lines of a fit where there is no terminal to draw a bar on."""


def say(sentence: str) -> None:
    """A line for the user."""
    _errors.print(sentence, soft_wrap=True)


def complain(sentence: str) -> None:
    """Why the command ends."""
    _errors.print(f"error: {sentence}", soft_wrap=True)


class FitDisplay:
    """Stages as lines; epochs as a bar with NLL, RMSE and time left, or as a few lines where there is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = None if not _errors.is_terminal else progress.add_task("", total=None, visible=False, numbers="")

    def stage(self, sentence: str) -> None:
        """What is being done."""
        say(sentence)

    def epoch(self, epoch: "Epoch") -> None:
        """How the fit stands, on the early-stopping rows, in units of the target's standard deviation."""
        numbers = f"held-out NLL {epoch.nll:.3f}, RMSE {epoch.rmse:.3f}, CRPS {epoch.crps:.3f} (best {epoch.best_crps:.3f})"
        if self._task is not None:
            self._progress.update(self._task, total=epoch.epochs, completed=epoch.number, visible=True, numbers=numbers)
        elif epoch.number % max(1, epoch.epochs // _PLAIN_LINES) == 0:
            say(f"epoch {epoch.number}/{epoch.epochs}: {numbers}, {epoch.seconds_left:.0f} s left")


@contextmanager
def fit_progress() -> Iterator[FitDisplay]:
    """A display for one fit."""
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, transient=True) as progress:
        yield FitDisplay(progress)


@contextmanager
def row_progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over rows; yields a function that takes the number of rows just done."""
    with Progress(TextColumn("rows"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), console=_errors) as progress:
        task = progress.add_task("", total=total)
        yield lambda rows: progress.advance(task, rows)


def show_evaluation(manifest: Manifest) -> None:
    """The scores of the evaluated rows beside the baselines', as a table."""
    if manifest.evaluation is None:
        say(
            "no scores: no rows were left to measure with, or it was calibrated anew since; "
            "`python -m training evaluate` scores new rows"
        )
        return
    evaluation = manifest.evaluation
    show_scores(rows_in_words(evaluation), {"model": evaluation.targets, **evaluation.baselines}, rows=evaluation.rows)


def show_scores(title: str, by_predictor: Mapping[str, Mapping[str, Scores]], *, rows: int) -> None:
    """Scores of `rows` rows by target and predictor, with share in and mean width of 90 % intervals; the report has more."""
    table = Table(title=title, title_justify="left")
    for heading in ("target", "predictor", "NLL", "RMSE", "R2", "CRPS", "in 90 %", "width"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "target")
    for target in next(iter(by_predictor.values())):
        for predictor, by_target in by_predictor.items():
            one = by_target[target]
            shown = [interval for interval in one.intervals if interval.coverage == _SHOWN_COVERAGE]
            intervals = (_share(shown[0], rows), f"{shown[0].mean_width:.4g}") if shown else ("-", "-")
            r2 = "-" if one.r2 is None else f"{one.r2:.3f}" if one.r2 > -1000 else f"{one.r2:.3g}"
            errors = (f"{one.nll:.3f}", f"{one.rmse:.4g}", r2, f"{one.crps:.4g}")
            table.add_row(target, predictor, *errors, *intervals)
    _console.print(table)


def _share(interval: IntervalScores, rows: int) -> str:
    """91.2%; 91.2% of 450 where the calibration groups of the other rows are too small for this coverage."""
    fewer = interval.rows is not None and interval.rows < rows
    return f"{interval.observed_coverage:.1%}" + (f" of {interval.rows}" if fewer else "")


def show_manifest(manifest: Manifest) -> None:
    """A manifest for people."""
    columns = Table(title=f"{len(manifest.columns)} features", title_justify="left")
    for heading in ("feature", "kind", "training range", "missing"):
        columns.add_column(heading, overflow="fold")
    for column in manifest.columns:
        values = column.categories or []
        extent = ", ".join(values[:6]) if column.kind == "categorical" else range_in_words(column)
        more = f", ... ({len(values)})" if len(values) > 6 else ""
        columns.add_row(column.name, column.kind, extent + more, f"{column.missing:.1%}" if column.missing else "")
    _console.print(columns)
    for target in manifest.targets:
        unit = f" {target.unit}" if target.unit else ""
        how = "" if target.transform == "identity" else f", {target.transform}-transformed"
        _console.print(f"target {target.name}: {target.minimum:g} to {target.maximum:g}{unit}{how}")
    network, origin = manifest.network, manifest.origin
    say_out = partial(_console.print, soft_wrap=True)
    say_out(f"network: {network.members} members, {network.parameters} parameters, {network.family}, loss {network.loss}")
    show_calibration(manifest)
    uses = ", ".join(f"{rows} {use}" for use, rows in origin.rows_by_use.items())
    say_out(f"trained on {origin.data} ({origin.rows} rows: {uses}), {origin.created}, {origin.seconds:g} s")
    say_out(f"with {origin.command}")
    show_evaluation(manifest)


def show_calibration(manifest: Manifest) -> None:
    """The calibration in words."""
    calibration = manifest.calibration
    factors = ", ".join(f"{one:.3g}{factors_by_group(calibration, t)}" for t, one in enumerate(calibration.scale_factor))
    _console.print(f"calibration: {calibration.method}, {calibration.interval}, {calibration.rows} rows; std times {factors}")
    _console.print(calibration.guarantee)
    if calibration.method == "split" and calibration.dependence is None and calibration.group_column is None:
        coverage = manifest.default_coverage
        low, high = coverage_range(coverage, rows=calibration.rows, interval=calibration.interval)
        _console.print(f"coverage {coverage:g} on new rows: between {low:.3f} and {high:.3f} with 90 % probability")
    for sentence in small_groups(manifest.default_coverage, calibration):
        _console.print(sentence)
