"""Figures of results that grow with something, as SVG files beside the page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from models.artifact import write_atomically

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "errorbar",
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#d8dee4",
    "lines.markersize": 4,
    "legend.frameon": False,
    "axes.prop_cycle": "cycler('color', ['#0072b2', '#d55e00', '#009e73', '#cc79a7'])",  # Okabe and Ito's
}

Line = Sequence[tuple[float, float]]


@rc_context(_STYLE)
def draw(path: Path, *, x: str, y: str, solid: Mapping[str, Line], dashed: Mapping[str, Line], log_y: bool = True) -> str:
    """Draw points (x, y) joined by lines, x on a logarithmic axis; a dashed line has the colour of the solid one before it.

    x, y: what the axes show. Writes an SVG file; returns the Markdown that shows it on a page in the same folder.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log" if log_y else "linear")
    colours = {}
    for label, line in solid.items():
        (drawn,) = axes.plot(*zip(*line, strict=True), "o-", label=label)
        colours[label] = drawn.get_color()
    for label, line in dashed.items():
        axes.plot(*zip(*line, strict=True), "o--", color=colours[label], alpha=0.6, linewidth=1)
    places = sorted({place for line in solid.values() for place, _ in line})
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    axes.set_xticks([], minor=True)
    if log_y:
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    write_atomically(data.getvalue(), path)
    return f"![{y} by {x}]({path.name})"
