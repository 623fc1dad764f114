"""Which rows fit, stop, calibrate and test: disjoint by construction, by group or by time where the user says so."""

import heapq
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.conformal import CalibrationMethod
from training.config import FitOptions
from training.errors import OptionError, TableError

Rows = NDArray[np.int64]

CROSS_BELOW = 2000
"""`auto` cross-fits tables with fewer rows than this outside the test rows: there a calibration set of its own costs
more accuracy of the fit than the stronger guarantee is worth."""

MOST_CALIBRATION_ROWS = 10_000
"""The coverage that n calibration rows give is Beta distributed with a standard deviation of sqrt(c (1 - c) / (n + 2)):
0.003 for c = 0.9 and n = 10 000. More rows do more good in the fit."""

MOST_STOP_ROWS = 10_000
"""The mean log-likelihood of so many rows has a standard error of about 0.007 nats, below what early stopping acts on."""

LEAST_CALIBRATION_ROWS = 9
"""The fewest that can bound an interval of coverage 0.9: ceil((9 + 1) * 0.9) = 9."""
LEAST_FIT_ROWS = 10
LEAST_STOP_ROWS = 2


@dataclass(frozen=True, eq=False)
class Plan:
    """Row numbers, ascending, by use.

    test: rows that nothing else sees. calibration: rows that no network sees (method split; else empty).
    fit, stop: per network, the rows it is fitted to and those its early stopping looks at. The first `members` networks are
    the ensemble that is served; cross-fitting adds `fold_members` for each of `folds` in turn.
    folds: every row that is no test row once, in parts (method cross; else empty). A fold's own networks see none of its rows,
    so that their residuals calibrate; the served members see them all.
    """

    method: CalibrationMethod
    test: Rows
    calibration: Rows
    fit: list[Rows]
    stop: list[Rows]
    members: int
    folds: list[Rows]
    fold_members: int

    @property
    def seen(self) -> Rows:
        """The rows that some served member is fitted to."""
        return np.unique(np.concatenate(self.fit[: self.members]))

    def seen_without(self, fold: int) -> Rows:
        """The rows that some of the fold's own networks is fitted to."""
        return np.unique(np.concatenate(self.fit[self.fold_networks(fold)]))

    def fold_networks(self, fold: int) -> slice:
        """The places in `fit` and `stop` of the networks that leave `fold` out."""
        first = self.members + fold * self.fold_members
        return slice(first, first + self.fold_members)

    def without_members(self) -> "Plan":
        """The plan of the folds' networks alone."""
        return replace(self, fit=self.fit[self.members :], stop=self.stop[self.members :], members=0)


def plan_rows(
    rows: int, options: FitOptions, *, groups: NDArray[np.int64] | None = None, time: NDArray[np.float64] | None = None
) -> Plan:
    """Divide `rows` rows among the uses as the options say; the same arguments give the same plan.

    calibration: "split" keeps `calibration_share` of all rows for it, at most 10 000; "cross" takes every row from
    networks that did not see it; "none" leaves it out; "auto" is cross below 2 000 rows that are no test rows, else split.
    test_share: of all rows; 0 means no test rows. stop_share: of the rows left to a member, at most 10 000 rows: the rows are
    divided in round(1 / stop_share) parts that the members take in turn, so that every row fits most of them.
    groups: [rows], rows of one group are on the same side of every division.
    time: [rows], the test rows are the latest and the calibration rows the latest before these; equal times stay together.
    The test rows depend on the seed, groups, time and test_share only.

    Raises TableError where that leaves too few rows or groups for a use, OptionError where options contradict each other.
    """
    _check_options(options, grouped=groups is not None, timed=time is not None)
    units = np.arange(rows) if groups is None else np.asarray(groups)
    test_random, calibration_random, member_random = np.random.default_rng(options.seed).spawn(3)

    rest, test = np.arange(rows), np.empty(0, dtype=np.int64)
    ordered = units if time is None else np.unique(time, return_inverse=True)[1]
    if options.test_share > 0:
        count = round(options.test_share * rows)
        test, rest = _draw(rest, count, units=ordered, latest=time is not None, random=test_random, use="test")
    small = time is None and len(rest) < CROSS_BELOW
    method: CalibrationMethod = ("cross" if small else "split") if options.calibration == "auto" else options.calibration
    kept = np.empty(0, dtype=np.int64)
    if method == "split":
        count = min(round(options.calibration_share * rows), MOST_CALIBRATION_ROWS)
        kept, rest = _draw(rest, count, units=ordered, latest=time is not None, random=calibration_random, use="calibration")
    fit, stop = _rotated(rest, options.members, options.stop_share, units=units, random=member_random)
    parts = _folds(rest, options.folds, units=units, random=member_random, use="cross-fitting") if method == "cross" else []
    for fold in parts:
        others = np.setdiff1d(rest, fold, assume_unique=True)
        more_fit, more_stop = _rotated(others, options.fold_members, options.stop_share, units=units, random=member_random)
        fit, stop = fit + more_fit, stop + more_stop
    plan = Plan(
        method=method,
        test=test,
        calibration=kept,
        fit=fit,
        stop=stop,
        members=options.members,
        folds=parts,
        fold_members=options.fold_members,
    )
    _check_sizes(plan, crossable=time is None)
    return plan


def _check_options(options: FitOptions, *, grouped: bool, timed: bool) -> None:
    if not 0 <= options.test_share <= 0.5:
        raise OptionError(f"test_share {options.test_share} is not between 0 and 0.5")
    for name, share in (("calibration_share", options.calibration_share), ("stop_share", options.stop_share)):
        if not 0 < share <= 0.5:
            raise OptionError(f"{name} {share} is not above 0 and at most 0.5")
    if grouped and timed:
        raise OptionError("group and time both decide which rows are test rows; name only one of them")
    if timed and options.calibration == "cross":
        raise OptionError(
            "cross-fitting would calibrate members on rows older than those they were fitted to, so it cannot go with "
            "a time column; use calibration split"
        )


def _rotated(
    rows: Rows, members: int, stop_share: float, *, units: Rows, random: np.random.Generator
) -> tuple[list[Rows], list[Rows]]:
    """Fit and stop rows of members that may see all of `rows`: each stops on another part of them."""
    turns = max(2, min(round(1 / stop_share), len(np.unique(units[rows])) // LEAST_STOP_ROWS))
    fits, stops = [], []
    parts: list[Rows] = []
    for _ in range(members):
        if not parts:  # more members than parts: divide anew, so that no two members share all of their stop rows
            parts = _folds(rows, turns, units=units, random=random, use="early stopping")
        stop = parts.pop()
        if len(stop) > MOST_STOP_ROWS and len(np.unique(units[stop])) > 1:
            stop = _draw(stop, MOST_STOP_ROWS, units=units, random=random, use="early stopping")[0]
        fits.append(np.setdiff1d(rows, stop, assume_unique=True))
        stops.append(stop)
    return fits, stops


def _draw(
    rows: Rows, count: int, *, units: Rows, latest: bool = False, random: np.random.Generator, use: str
) -> tuple[Rows, Rows]:
    """About `count` of the rows, and the others; neither is empty, and rows of equal unit stay together.

    units: [all rows], at random, or with `latest` the highest first.
    """
    values, place, sizes = np.unique(units[rows], return_inverse=True, return_counts=True)
    _require_units(len(values), 2, use=use)
    order = np.arange(len(values))[::-1] if latest else random.permutation(len(values))
    large = sizes > count
    if not latest and large.any() and not large.all():  # large groups come last, later uses get half of the others
        order = np.concatenate([order[~large[order]], order[large[order]]])
        count = min(count, int(sizes[~large].sum()) // 2)
    ends = np.cumsum(sizes[order])
    chosen = order[: min(int(np.abs(ends - count).argmin()) + 1, len(values) - 1)]
    taken = np.zeros(len(values), dtype=bool)
    taken[chosen] = True
    return rows[taken[place]], rows[~taken[place]]


def _folds(rows: Rows, count: int, *, units: Rows, random: np.random.Generator, use: str) -> list[Rows]:
    """The rows in `count` parts of about the same size, none empty; rows of equal unit stay together."""
    values, place, sizes = np.unique(units[rows], return_inverse=True, return_counts=True)
    _require_units(len(values), count, use=use)
    order = random.permutation(len(values))
    fold = np.empty(len(values), dtype=np.int64)
    if len(values) == len(rows):
        fold[order] = np.arange(len(values)) % count
    else:  # the largest group first, each into the part that is smallest so far
        heap = [(0, part) for part in range(count)]
        for unit in order[np.argsort(-sizes[order], kind="stable")]:
            size, part = heapq.heappop(heap)
            fold[unit] = part
            heapq.heappush(heap, (size + int(sizes[unit]), part))
    return [rows[fold[place] == part] for part in range(count)]


def _require_units(found: int, needed: int, *, use: str) -> None:
    if found < needed:
        raise TableError(
            f"{found} different rows, groups or times are left for {use}, which has to divide them {needed} ways; use more "
            "rows, fewer folds, or a column with more values"
        )


def _check_sizes(plan: Plan, *, crossable: bool) -> None:
    """Raise TableError for the first use that got too few rows to do any good. crossable: cross-fitting is a way out."""
    found = {
        "fitting": (min(map(len, plan.fit)), LEAST_FIT_ROWS),
        "early stopping": (min(map(len, plan.stop)), LEAST_STOP_ROWS),
    }
    if plan.method == "split":
        found["calibration"] = (len(plan.calibration), LEAST_CALIBRATION_ROWS)
    for use, (count, needed) in found.items():
        if count < needed:
            advice = "smaller shares for the others"
            if use == "calibration":
                advice = "a larger --calibration-share" + (", or --calibration cross" if crossable else "")
            raise TableError(f"{count} rows are left for {use}, which needs at least {needed}; use more rows or {advice}")
