"""From the lines of results.csv to a page of tables: what was run here, beside what others published."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.quality.scores import Score
from benchmarks.quality.sets import Set

PRODUCT = "errorbar"
"""Everything is compared with this method; names that begin with it are its sizes, not its rivals."""
CONFORMAL_PEER = "gb_mapie"
"""The method whose width at 90 % is the one to stay below."""
METRICS = ("ll", "rmse", "crps", "coverage90", "width90", "seconds")


class Figure(NamedTuple):
    """A mean over splits and its standard deviation, NaN where there is none."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Published:
    """A row of reference_results.csv; a number that it does not give is NaN."""

    dataset: str
    method: str
    protocol: str
    ll: Figure
    rmse: Figure


@dataclass(frozen=True)
class Comparison:
    """How far errorbar is ahead in LL, or below in RMSE: positive is good. error: of the difference, NaN where not known."""

    gain: float
    error: float

    @property
    def verdict(self) -> str:
        """`win` or `loss` of errorbar, `tie` within one standard error; empty where there is nothing to tell it by."""
        if math.isnan(self.gain) or math.isnan(self.error):
            return ""
        if abs(self.gain) <= self.error:
            return "tie"
        return "win" if self.gain > 0 else "loss"


def read_results(path: Path) -> list[Score]:
    """The lines of a results.csv. Raises ValueError, with the line, for one that is not whole."""
    names = [field.name for field in fields(Score)]
    scores = []
    with path.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if number == 1 and row == names:
                continue
            try:
                dataset, method, split, *numbers = row
                scores.append(Score(dataset, method, int(split), **dict(zip(METRICS, map(float, numbers), strict=True))))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: is not {','.join(names)} ({error}); remove the line") from error
    return scores


def read_published(folder: Path) -> list[Published]:
    """The rows of the folder's reference_results.csv, none where there is no such file."""
    path = folder / "reference_results.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Published(
                dataset=row["dataset"],
                method=row["method"],
                protocol=row["protocol"],
                ll=Figure(_number(row["ll_mean"]), _number(row["ll_sd"])),
                rmse=Figure(_number(row["rmse_mean"]), _number(row["rmse_sd"])),
            )
            for row in csv.DictReader(stream)
        ]


def comparable(published: Iterable[Published], data: Set) -> list[Published]:
    """Those on the splits and targets of `data`; of figures given twice under two protocols the first."""
    found: dict[tuple[str, float, float], Published] = {}
    for row in published:
        if row.dataset == data.dataset and row.protocol in data.protocols:
            found.setdefault((row.method, row.ll.mean, row.rmse.mean), row)
    return list(found.values())


def paired(ours: Mapping[int, Score], theirs: Mapping[int, Score], metric: str) -> Comparison:
    """The product against another method over the splits (the keys) that both have.

    error: sd of the differences / sqrt(splits), NaN for one split. Training rows of the splits overlap, so it is rather small.
    """
    sign = -1.0 if metric == "rmse" else 1.0
    common = sorted(ours.keys() & theirs.keys())
    gains = np.array([sign * (getattr(ours[s], metric) - getattr(theirs[s], metric)) for s in common])
    if not len(gains):
        return Comparison(math.nan, math.nan)
    return Comparison(float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan)


def unpaired(ours: Figure, theirs: Figure, metric: str) -> Comparison:
    """The same against a published mean. One of 0 is an RMSE printed with too few decimals: not to be compared with."""
    if theirs.mean == 0:
        return Comparison(math.nan, math.nan)
    return Comparison((theirs.mean - ours.mean) if metric == "rmse" else (ours.mean - theirs.mean), math.nan)


def figure(scores: Iterable[Score], metric: str) -> Figure:
    """Mean and sample sd over splits."""
    values = np.array([getattr(score, metric) for score in scores])
    return Figure(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def summary(results: Sequence[Score], published: Sequence[Published], sets: Mapping[str, Set], *, facts: Sequence[str]) -> str:
    """The whole page. sets: by name, those in `results` at least. facts: lines about machine, versions, date and time."""
    by_set: dict[str, dict[str, dict[int, Score]]] = {}
    for score in results:
        by_set.setdefault(score.dataset, {}).setdefault(score.method, {})[score.split] = score
    rivals = {name: comparable(published, sets[name]) for name in by_set}
    parts = ["# Quality on standard tables", "\n".join(f"- {fact}" for fact in facts)]
    if any(PRODUCT in methods for methods in by_set.values()):
        parts += ["## Overview", _overview(by_set, rivals)]
    for name, methods in by_set.items():
        data = sets[name]
        parts += [f"## {name}", f"{len(data.y)} rows, {len(data.columns)} inputs; {', '.join(data.targets)}."]
        parts.append(_set_table(methods, rivals[name]))
        if PRODUCT in methods:
            others = {method: scores for method, scores in methods.items() if method != PRODUCT}
            parts += [_paired_table(methods[PRODUCT], others)] if others else []
            parts += [_published_table(methods[PRODUCT], rivals[name])] if rivals[name] else []
    return "\n\n".join([*parts, "## How to read this", _NOTES]) + "\n"


_NOTES = """\
- LL: mean test log-likelihood of a row, nats, original units, summed over targets; higher is better. RMSE: root of the mean
  over rows and targets. CRPS, coverage and width of the 90 % interval: means over rows and targets. s: seconds of training,
  of one split.
- Every figure is the mean over splits ± the standard deviation over splits (n - 1). A dash: the method gives no such number.
- *Published* figures are those of the folder's reference_results.csv for the same splits and targets, with their protocol
  there. What its source chose on the test rows (all other protocols) is left out: it cannot be compared with. An RMSE of 0 is a
  rounding in its source.
- Ahead by: errorbar's LL minus theirs, their RMSE minus errorbar's; positive is good for errorbar. Against methods run here it
  is paired over the splits that both have, ± the standard error of the mean difference; within one standard error it is a tie.
  The splits' training rows overlap, so that error is rather small. Against published figures there are no pairs, hence none."""


def _overview(by_set: Mapping[str, dict[str, dict[int, Score]]], rivals: Mapping[str, list[Published]]) -> str:
    head = ["set"]
    head += [f"{word} {what}" for word in ("LL", "RMSE") for what in ("errorbar", "best other run here", "best published")]
    rows = []
    for name, methods in by_set.items():
        if PRODUCT not in methods:
            continue
        ours = methods[PRODUCT]
        row = [name]
        for metric in ("ll", "rmse"):
            row += [_mean(figure(ours.values(), metric).mean, metric), _best_run(methods, metric)]
            row.append(_best_published(ours, rivals[name], metric))
        conformal = methods.get(CONFORMAL_PEER, {})
        widths = [_mean(figure(one.values(), "width90").mean, "width90") if one else "-" for one in (ours, conformal)]
        rows.append([*row, _mean(figure(ours.values(), "coverage90").mean, "coverage90"), *widths])
    return _table([*head, "coverage 90 %", "width 90 %", f"width 90 % {CONFORMAL_PEER}"], rows)


def _best_run(methods: Mapping[str, dict[int, Score]], metric: str) -> str:
    """The best of the others by its mean, with the verdict over common splits."""
    means = {method: figure(scores.values(), metric).mean for method, scores in methods.items() if not _is_ours(method)}
    known = {method: mean for method, mean in means.items() if not math.isnan(mean)}
    if not known:
        return "-"
    best = (min if metric == "rmse" else max)(known, key=lambda method: known[method])
    verdict = paired(methods[PRODUCT], methods[best], metric).verdict
    return f"{_mean(known[best], metric)} {best}" + (f" ({verdict})" if verdict else "")


def _best_published(ours: Mapping[int, Score], rivals: Sequence[Published], metric: str) -> str:
    ahead = {row: unpaired(figure(ours.values(), metric), getattr(row, metric), metric).gain for row in rivals}
    known = {row: gain for row, gain in ahead.items() if not math.isnan(gain)}
    if not known:
        return "-"
    best = min(known, key=lambda row: known[row])
    return f"{_mean(getattr(best, metric).mean, metric)} {_cited(best)} ({'ahead' if known[best] > 0 else 'behind'})"


def _set_table(methods: Mapping[str, dict[int, Score]], rivals: Sequence[Published]) -> str:
    head = ["method", "splits", "LL", "RMSE", "CRPS", "coverage 90 %", "width 90 %", "s"]
    rows = [
        [method, str(len(scores)), *(_figure(figure(scores.values(), metric), metric) for metric in METRICS)]
        for method, scores in methods.items()
    ]
    rows += [
        [_cited(row), f"published, {row.protocol}", _as_printed(row.ll), _as_printed(row.rmse), *["-"] * 4] for row in rivals
    ]
    return _table(head, rows)


def _paired_table(ours: Mapping[int, Score], others: Mapping[str, Mapping[int, Score]]) -> str:
    rows = []
    for method, theirs in others.items():
        row = [method, str(len(ours.keys() & theirs.keys()))]
        for metric in ("ll", "rmse"):
            one = paired(ours, theirs, metric)
            row += [_figure(Figure(one.gain, one.error), metric), one.verdict or "-"]
        rows.append(row)
    head = ["errorbar against, run here", "common splits", "ahead in LL by", "LL", "ahead in RMSE by", "RMSE"]
    return _table(head, rows)


def _published_table(ours: Mapping[int, Score], rivals: Sequence[Published]) -> str:
    rows = []
    for other in rivals:
        row = [_cited(other), other.protocol]
        for metric in ("ll", "rmse"):
            gain = unpaired(figure(ours.values(), metric), getattr(other, metric), metric).gain
            row += [_mean(gain, metric), "-" if math.isnan(gain) else "ahead" if gain > 0 else "behind"]
        rows.append(row)
    return _table(["errorbar against, published", "protocol", "ahead in LL by", "LL", "ahead in RMSE by", "RMSE"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figure(one: Figure, metric: str) -> str:
    return _mean(one.mean, metric) + ("" if math.isnan(one.sd) else f" ± {_mean(one.sd, metric, digits=2)}")


def _as_printed(one: Figure) -> str:
    """With the digits of the source."""
    return "-" if math.isnan(one.mean) else f"{one.mean:g}" + ("" if math.isnan(one.sd) else f" ± {one.sd:g}")


def _cited(row: Published) -> str:
    return f"*{row.method.replace('*', '&ast;')}*"


def _mean(value: float, metric: str, *, digits: int = 4) -> str:
    """LL and coverage with a fixed number of decimals, the rest, which has a unit, with significant digits; `-` for NaN."""
    if math.isnan(value):
        return "-"
    decimals = {"ll": 3, "coverage90": 3, "seconds": 1}.get(metric)
    return f"{value:.{digits}g}" if decimals is None else f"{value:.{decimals}f}"


def _is_ours(method: str) -> bool:
    return method == PRODUCT or method.startswith(f"{PRODUCT}_")


def _number(text: str) -> float:
    return float(text) if text else math.nan
