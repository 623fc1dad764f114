"""The pictures of a training report.

They are SVG in data URIs: sharp, small, and in the colours of the reader's light or dark mode. All go through one style.
"""

import base64
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from models import metrics
from models.manifest import Column, Target
from training.curves import Sweep, error_by_std, finite, sampling_band, third_band
from training.evaluate import Predictions
from training.fit import Epoch
from training.page import Picture, percent

Values = NDArray[np.float64]

MOST_CATEGORIES = 24

# Okabe and Ito's colours, which colour-blind people can tell apart, and brighter ones of the same hue for dark mode.
_INK, _GRID, _GREY, _BLUE, _VERMILLION = "#24292f", "#d8dee4", "#6e7781", "#0072b2", "#d55e00"
_DARK = {_INK: "#d0d7de", _GRID: "#3a424c", _GREY: "#8f99a3", _BLUE: "#56b4e9", _VERMILLION: "#ff9447"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "errorbar",
    "text.parse_math": False,  # a column name may hold dollar signs
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GREY,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 3,
    "date.converter": "concise",
}
_UNPRINTABLE = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@rc_context(_STYLE)
def draw_predictions(
    y: Values, mean: Values, lower: Values, upper: Values, *, coverage: float, target: Target, kind: str
) -> Picture:
    """Predicted against observed values of some rows, with their prediction intervals: [rows] each. kind: of the rows."""
    figure, axes = _figure(5.2, 4.6)
    ends = np.concatenate([y, mean])
    low, high = float(ends.min()), float(ends.max())
    room = 0.5 * (high - low) or 1.0  # an interval that is far wider than all values must not squeeze them
    inside = (lower <= y) & (y <= upper)
    for rows, colour, label in ((inside, _BLUE, "holds the observed value"), (~inside, _VERMILLION, "misses it")):
        if rows.any():
            axes.plot(*_strokes(y[rows], lower[rows], upper[rows]), color=colour, alpha=0.3, linewidth=1)
            axes.plot(y[rows], mean[rows], "o", color=colour, label=f"{label} ({rows.sum()} rows)")
    axes.plot([low, high], [low, high], color=_INK, linewidth=1)
    if target.transform == "log":
        _log_axes(axes)
    else:
        bounds = np.concatenate([ends, finite(lower), finite(upper)])
        axes.set_ylim(max(low - room, np.nanmin(bounds) - 0.05 * room), min(high + room, np.nanmax(bounds) + 0.05 * room))
    axes.set_xlabel(_quantity(f"observed {target.name}", target.unit))
    axes.set_ylabel(_quantity(f"predicted {target.name}", target.unit))
    _legend(figure)
    return _picture(
        figure,
        alt=f"Predicted against observed {target.name} of {len(y)} {kind}s with {percent(coverage)} prediction intervals, "
        f"{inside.sum()} of which hold the observed value.",
        caption=f"Predicted mean with its {percent(coverage)} prediction interval against the observed value. "
        f"An interval that crosses the diagonal holds it.",
    )


@rc_context(_STYLE)
def draw_calibration(nominal: Values, observed: Values, *, rows: int, calibration_rows: int, target: Target) -> Picture:
    """Observed against nominal coverage of test rows, [coverages] each, with the band of `sampling_band`."""
    band = sampling_band(nominal, rows=rows, calibration_rows=calibration_rows)
    figure = _coverages(nominal, {"this model": (observed, _BLUE, "-")}, band=band, kind="test row")
    off = np.abs(observed - nominal)
    return _picture(
        figure,
        alt=f"Calibration curve of {target.name}: observed coverage is at most {off.max(initial=0):.3f} away from the coverage "
        "asked for.",
        caption="How many test rows their intervals really hold. Below the diagonal, intervals are too narrow; within the "
        f"band, the difference can be the chance of {rows} test rows and of the calibration rows.",
    )


@rc_context(_STYLE)
def draw_coverage_by_std(nominal: Values, thirds: Values, *, rows: int, target: Target, kind: str) -> Picture:
    """Observed against nominal coverage of `coverage_by_std`, [coverages] and [3, coverages], with the band of `third_band`."""
    lines = {
        "third of the rows with the lowest std": (thirds[0], _BLUE, "-"),
        "third in the middle": (thirds[1], _GREY, "--"),
        "third of the rows with the highest std": (thirds[2], _VERMILLION, "-"),
    }
    figure = _coverages(nominal, lines, band=third_band(nominal, rows=rows), kind=kind)
    off = np.abs(thirds - nominal).max(axis=1, initial=0)
    return _picture(
        figure,
        alt=f"Calibration curve of {target.name} by predicted std: observed coverage is at most {off[0]:.3f} (lowest third), "
        f"{off[1]:.3f} (middle) and {off[2]:.3f} (highest third) away from the coverage asked for.",
        caption=f"How many {kind}s their intervals hold, where the std is low and where it is high. Below the diagonal, "
        "intervals are too narrow for these rows; within the band, the difference can be chance. All thirds together lie on "
        "the diagonal by construction.",
    )


@rc_context(_STYLE)
def draw_pit(pit: Values, *, calibration_rows: int, target: Target) -> Picture:
    """The histogram of the probability integral transform of test rows, `pit` [n], with the band of `sampling_band`."""
    bins = 20 if min(len(pit), calibration_rows) >= 400 else 10
    shares = metrics.pit_histogram(pit, bins=bins)
    low, high = sampling_band(np.full(2, 1 / bins), rows=len(pit), calibration_rows=calibration_rows)
    figure, axes = _figure(5.2, 3.4)
    axes.bar((np.arange(bins) + 0.5) / bins, shares, width=0.92 / bins, color=_BLUE, alpha=0.7, label="this model")
    axes.fill_between([0, 1], low, high, color=_GREY, alpha=0.35, linewidth=0, label="90 % of calibrated models")
    axes.axhline(1 / bins, color=_INK, linewidth=1)
    axes.set_xlabel("predicted probability of a value up to the observed one")
    axes.set_ylabel("share of test rows")
    _legend(figure)
    outside = int(np.sum((shares < low[0]) | (shares > high[0])))
    return _picture(
        figure,
        alt=f"PIT histogram of {target.name}: {outside} of {bins} bins lie outside the band of calibrated models.",
        caption="Where the observed values lie in their predicted distributions (probability integral transform). Flat "
        "is calibrated; a U means too narrow, a hump too wide, a slope a mean that is off. "
        "About one bin in ten leaves the band by chance.",
    )


@rc_context(_STYLE)
def draw_errors(
    predictions: Predictions,
    half_width: Values,
    *,
    shown: NDArray[np.int64],
    coverage: float,
    target: Target,
    index: int,
) -> Picture:
    """Errors and half widths of the intervals against the std; target `index`, with the rows `shown` as points.

    half_width: [shown].
    """
    y, mean, std = predictions.y[:, index], predictions.mean[:, index], predictions.std[:, index]
    figure, axes = _figure(5.2, 4.2)
    axes.plot(std[shown], np.abs(y - mean)[shown], "o", color=_GREY, alpha=0.5, label="|observed - predicted|")
    axes.plot(std[shown], finite(half_width), ".", color=_BLUE, label=f"half width of the {percent(coverage)} interval")
    binned, errors = error_by_std(y, mean, std)
    axes.plot(binned, errors, "D-", color=_VERMILLION, markersize=5, label="root mean square error of rows with such a std")
    axes.plot([std.min(), std.max()], [std.min(), std.max()], color=_INK, linewidth=1, label="error equal to std")
    axes.set_ylim(0)
    axes.set_xlabel(_quantity("predicted std", target.unit))
    axes.set_ylabel(_quantity("error", target.unit))
    _legend(figure)
    return _picture(
        figure,
        alt=f"Errors of {target.name} against the predicted std: the root mean square error goes from {errors[0]:.3g} where "
        f"the std is lowest ({binned[0]:.3g}) to {errors[-1]:.3g} where it is highest ({binned[-1]:.3g}).",
        caption="Does the model know where it errs? Diamonds on the black line: rows predicted to be uncertain are as "
        "uncertain as predicted. Flat diamonds: the predicted std does not tell rows apart.",
    )


@rc_context(_STYLE)
def draw_training(history: Sequence[Epoch]) -> Picture:
    """NLL, RMSE and CRPS on the early-stopping rows by epoch."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    epochs = [epoch.number for epoch in history]
    mark = "o-" if len(history) == 1 else "-"
    for axes, values, label in (
        (upper, [epoch.nll for epoch in history], "NLL (nats)"),
        (middle, [epoch.rmse for epoch in history], "RMSE (target stds)"),
        (lower, [epoch.crps for epoch in history], "CRPS (target stds)"),
    ):
        axes.plot(epochs, values, mark, color=_BLUE)
        axes.set_ylabel(label)
    # Early epochs can be off by orders of magnitude, and would leave a flat line of all that follows.
    nll = np.array([epoch.nll for epoch in history])
    if len(nll) > 10:
        spread = float(np.ptp(nll[len(nll) // 10 :])) or 1.0
        upper.set_ylim(nll.min() - 0.1 * spread, min(nll.max(), nll[len(nll) // 10 :].max() + spread) + 0.1 * spread)
    lower.set_xlabel("epoch")
    best = min(history, key=lambda epoch: epoch.crps)
    return _picture(
        figure,
        alt=f"NLL, RMSE and CRPS on the early-stopping rows over {len(history)} epochs; the lowest CRPS is {best.crps:.3g} in "
        f"epoch {best.number}.",
        caption="On the early-stopping rows, after each epoch, averaged over networks (NLL summed over targets, of the "
        "standardised targets). Each network was kept at its own epoch of lowest CRPS.",
    )


@rc_context(_STYLE)
def draw_sweep(
    curve: Sweep,
    column: Column,
    *,
    target: Target,
    index: int,
    coverage: float,
    values: Values,
    y: Values | None,
    note: str,
    kind: str,
) -> Picture:
    """Mean and prediction interval of target `index` along a feature, with the rows' `values` of it as points or as a rug.

    values: [rows]. y: their observed values [rows] where all that the model knows of them is this feature, else None. note:
    what stands still meanwhile. kind: what rows they are.
    """
    mean, lower, upper = (part[:, index] for part in (curve.mean, curve.lower, curve.upper))
    interval = f"{percent(coverage)} prediction interval"
    if column.kind in ("categorical", "boolean"):
        figure, axes = _draw_categories(mean, lower, upper, column, interval=interval, values=values, y=y, kind=kind)
        axes.set_xlabel(_quantity(target.name, target.unit))
        axes.set_ylabel(_label(column.name))
    else:
        figure, axes = _figure(5.6, 4.0)
        grid, places = _axis_values(column, curve.grid), _axis_values(column, values)
        if y is not None:
            axes.plot(places, y, "o", color=_GREY, alpha=0.6, label=f"{kind}s")
        elif len(values):
            axes.plot(
                places, np.full(len(values), 0.01), "|", color=_GREY, transform=axes.get_xaxis_transform(), label=f"{kind}s"
            )
        axes.fill_between(grid, lower, upper, color=_BLUE, alpha=0.25, linewidth=0, label=interval)
        axes.plot(grid, mean, color=_BLUE, linewidth=2, label="mean")
        if y is not None:
            for end in _axis_values(column, np.array([column.minimum, column.maximum], dtype=np.float64)):
                axes.axvline(end, color=_GREY, linestyle=":", linewidth=1)
        if (y is None or column.kind == "datetime") and curve.grid[0] < curve.grid[-1]:
            axes.set_xlim(grid[0], grid[-1])
        axes.set_xlabel(_quantity(column.name, column.unit))
        axes.set_ylabel(_quantity(target.name, target.unit))
    _legend(figure)
    return _picture(
        figure,
        alt=f"Mean and {interval} of {target.name} along {column.name}: the mean goes from {mean.min():.4g} to "
        f"{mean.max():.4g}.",
        caption=f"Mean and {interval} of {target.name} along {column.name}. {note}",
    )


def _draw_categories(
    mean: Values, lower: Values, upper: Values, column: Column, *, interval: str, values: Values, y: Values | None, kind: str
) -> tuple[Figure, Axes]:
    """The most frequent categories, each a line of the picture."""
    known = ~np.isnan(values)
    counts = np.bincount(values[known].astype(np.int64), minlength=len(mean))
    codes = np.sort(np.argsort(-counts, kind="stable")[:MOST_CATEGORIES])[::-1]
    names = column.categories or ["false", "true"]
    place = np.full(len(mean), np.nan)
    place[codes] = np.arange(len(codes))
    figure, axes = _figure(5.6, 1.6 + 0.28 * len(codes))
    heights, ends = _strokes(place[codes], lower[codes], upper[codes])
    axes.plot(ends, heights, color=_BLUE, alpha=0.35, linewidth=6, solid_capstyle="butt", label=interval)
    if y is not None:
        axes.plot(y[known], place[values[known].astype(np.int64)], "o", color=_GREY, alpha=0.6, label=f"{kind}s")
    axes.plot(mean[codes], place[codes], "o", color=_BLUE, markersize=6, label="mean")
    axes.set_yticks(place[codes], [_label(names[code], most=24) for code in codes])
    return figure, axes


def _coverages(nominal: Values, lines: dict[str, tuple[Values, str, str]], *, band: tuple[Values, Values], kind: str) -> Figure:
    """Observed against nominal coverage: each line with its colour and style, and the band of calibrated models."""
    figure, axes = _figure(4.6, 4.6)
    axes.fill_between(nominal, *band, color=_GREY, alpha=0.3, linewidth=0, label="90 % of calibrated models")
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=1)
    for label, (observed, colour, style) in lines.items():
        axes.plot(nominal, observed, style, color=colour, linewidth=2, label=label)
    axes.set_xlabel("coverage asked for")
    axes.set_ylabel(f"share of {kind}s within the interval")
    axes.set_aspect("equal")
    _legend(figure)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=1)


def _log_axes(axes: Axes) -> None:
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_formatter(LogFormatter())  # plain numbers, where the default needs mathematical text
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))


def _strokes(place: Values, low: Values, high: Values) -> tuple[Values, Values]:
    """A line from `low` to `high` at each `place`, as one broken line: far smaller in a file than as many lines."""
    gap = np.full(len(place), np.nan)
    return np.repeat(place, 3), np.stack([finite(low), finite(high), gap], axis=1).ravel()


def _axis_values(column: Column, values: Values) -> NDArray[Any]:
    return values.astype("datetime64[s]") if column.kind == "datetime" else values


def _quantity(name: str, unit: str | None) -> str:
    return _label(name) + (f" ({_label(unit)})" if unit else "")


def _label(text: str, *, most: int = 48) -> str:
    """`text` without what an SVG file cannot hold, and not longer than a picture has room for."""
    text = _UNPRINTABLE.sub(" ", text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _picture(figure: Figure, *, alt: str, caption: str) -> Picture:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The reader's browser has the letters that the font at hand lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, colour in enumerate(_DARK):
        svg = svg.replace(colour, f"var(--c{number})")
    light, dark = (";".join(f"--c{number}:{colour}" for number, colour in enumerate(part)) for part in (_DARK, _DARK.values()))
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    svg = svg.replace(">", f">{style}", 1)
    return Picture(source=f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", alt=alt, caption=caption)
