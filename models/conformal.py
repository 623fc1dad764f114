"""Calibrated residuals -> intervals, quantiles, probabilities, samples: exact conformal prediction on arrays.

A model says of each row a `location` and a `scale` (a std) in the transformed target's space. Its calibration
residuals r = (transform(y) - location) / scale are stored sorted, as [targets, rows]. What comes out here are factors:
a value in the transformed space is location + factor * scale. Infinite factors mean that the calibration rows are
too few. Ranks are rational numbers throughout, because (rows + 1) * coverage in floats is off by one rank now and then.

Groups (Mondrian calibration) need nothing of their own: hand in the residuals of the row's group.

Sources: Vovk, Gammerman and Shafer 2005 (split and Mondrian); Lei et al. 2018 (residuals over a scale, upper bound);
Vovk 2012 (the Beta law); Vovk et al. 2019 (predictive distributions).
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, assert_never

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]
IntervalKind = Literal["symmetric", "equal_tailed"]
CalibrationMethod = Literal["split", "cross", "none"]
Dependence = Literal["group", "time"]
UNCALIBRATED_ROWS = 9999
"""Residuals that stand for a family where nothing is calibrated (`family_residuals`)."""
_MOST_NODES, _TAIL_NODES = 1000, 200
"""Of `residual_nodes`: in all, and on either side."""


def conformal_rank(coverage: float, *, rows: int) -> int:
    """The rank of the calibration score that bounds an interval of `coverage`.

    The smallest k with k >= (rows + 1) * coverage. A k above `rows` means that no finite score
    is enough. The float is read as the decimal it prints as: 0.28 is 28/100.

    Source: split conformal prediction (Vovk et al. 2005); realised coverage ~ Beta(k, rows + 1 - k).

    >>> conformal_rank(0.28, rows=99)  # 100 * 0.28 is 28.000000000000004
    28
    """
    return math.ceil((rows + 1) * _decimal(coverage, "coverage"))


def equal_tailed_ranks(coverage: float, *, rows: int) -> tuple[int, int]:
    """The ranks of the signed residuals that leave at most (1 - coverage) / 2 out on either side.

    Rank 0 means minus infinity and rank `rows` + 1 plus infinity; both come together.

    >>> equal_tailed_ranks(0.9, rows=99)
    (5, 95)
    """
    lower = math.floor((rows + 1) * (1 - _decimal(coverage, "coverage")) / 2)
    return lower, rows + 1 - lower


def supports(coverage: float, *, rows: int, interval: IntervalKind) -> bool:
    """Whether so many calibration rows give a finite interval of `coverage`.

    >>> supports(0.99, rows=99, interval="symmetric"), supports(0.99, rows=99, interval="equal_tailed")
    (True, False)
    """
    scores = rows if interval == "symmetric" else rows - 1
    return (rows + 1) * _decimal(coverage, "coverage") <= scores


def largest_coverage(rows: int, *, interval: IntervalKind) -> float:
    """The largest coverage with a finite interval, rounded down to a short decimal; 0.0 where there is none.

    That is rows / (rows + 1), equal-tailed (rows - 1) / (rows + 1).

    >>> largest_coverage(412, interval="symmetric")
    0.9975
    """
    scores = rows if interval == "symmetric" else rows - 1
    unit = _short_decimal(rows)
    return max(0, scores * unit // (rows + 1)) / unit


def supported_probabilities(rows: int) -> tuple[float, float]:
    """The smallest and the largest probability whose quantile the calibration rows can tell, as short decimals.

    That is from 1 / (rows + 1) to rows / (rows + 1), rounded inwards.

    >>> supported_probabilities(412)
    (0.0025, 0.9975)
    """
    unit = _short_decimal(rows)
    return -(-unit // (rows + 1)) / unit, rows * unit // (rows + 1) / unit


def interval_factors(
    residuals: Values, coverages: Sequence[float] | Values, *, interval: IntervalKind
) -> tuple[Values, Values]:
    """The prediction intervals of `coverages` [k], as factors: (lower, upper), each [targets, k].

    residuals: [targets, rows], sorted ascending. symmetric: -q and q, with q the absolute residual of `conformal_rank`.
    equal_tailed: the signed residuals of `equal_tailed_ranks`.

    >>> lower, upper = interval_factors(np.arange(-4.0, 5.0)[None], [0.9], interval="symmetric")
    >>> float(lower[0, 0]), float(upper[0, 0])
    (-4.0, 4.0)
    """
    rows = residuals.shape[1]
    if interval == "symmetric":
        upper = _at_ranks(np.sort(np.abs(residuals), axis=1), [conformal_rank(c, rows=rows) for c in coverages])
        return -upper, upper
    ranks = [equal_tailed_ranks(c, rows=rows) for c in coverages]
    return _at_ranks(residuals, [low for low, _ in ranks]), _at_ranks(residuals, [high for _, high in ranks])


def rounded_outwards(factors: Values, side: int) -> Values:
    """Factors moved up (side 1) or down (-1) by what float32 may round them by; `outward_slack` tells why."""
    size = np.abs(np.where(np.isfinite(factors), factors, 0.0))
    moved: Values = factors + side * 2.0**-23 * (1 + size)
    return moved


def outward_slack(location: Values, target_scale: Sequence[float] | None, *, float64: bool) -> Values:
    """How far [n, targets] an end at `location` [n, targets] is moved outwards, beside `rounded_outwards`.

    Of a count or a price many values are the same, and an end is often one of them: rounded inwards it would leave all of these
    rows out. Ends are rounded when they are written, to float64 or not. The network's arithmetic is float32, in units of each
    target's std (`target_scale` [targets]; None: exact), and differs in its last digits with the number of rows of a run.
    """
    of_network = 0.0 if target_scale is None else 2.0**-21 * np.asarray(target_scale)
    slack: Values = (2.0**-50 if float64 else 2.0**-23) * np.abs(location) + of_network
    return slack


def quantile_factors(residuals: Values, probabilities: Sequence[float] | Values) -> Values:
    """The quantiles of the conformal predictive distribution at `probabilities` [p], as factors: [targets, p].

    residuals: [targets, rows], sorted ascending. A quantile is the residual of rank ceil((rows + 1) p), so that
    p <= P(Y <= quantile) < p + 1 / (rows + 1) without ties. It is infinite above rows / (rows + 1), and the lowest
    residual below 1 / (rows + 1), where the calibration rows say nothing (`supported_probabilities`). Quantiles never
    cross. Two of them make no interval with a guarantee, as both err upwards: `interval_factors` does.
    """
    rows = residuals.shape[1]
    return _at_ranks(residuals, [math.ceil((rows + 1) * _decimal(p, "probability")) for p in probabilities])


def cumulative_probability(residuals: Values, standardised: Values) -> Values:
    """P(Y <= t) of the conformal predictive distribution, strictly between 0 and 1: [n, targets, thresholds].

    residuals: [targets, rows], sorted ascending. standardised: [n, targets, thresholds], (transform(t) - location) / scale.

    The predictive distribution leaves each of the rows + 1 gaps between residuals the probability 1 / (rows + 1); its
    middle is taken, (#{r < z} + #{r <= z} + 1) / 2 / (rows + 1): half a step within a gap, and k / (rows + 1) at the
    k-th residual itself, which is what `quantile_factors` inverts: p <= cdf(quantile(p)) < p + 1 / (rows + 1).

    Source: Vovk et al. 2019, "Nonparametric predictive distributions based on conformal prediction", with tau = 1/2.
    """
    rows = residuals.shape[1]
    below = np.empty_like(standardised)
    for target, ordered in enumerate(residuals):
        z = standardised[:, target]
        below[:, target] = np.searchsorted(ordered, z, side="left") + np.searchsorted(ordered, z, side="right")
    probability: Values = (below + 1) / (2 * (rows + 1))
    return probability


def probability_up_to(residuals: Values, standardised: Values, rounding: Values) -> Values:
    """P(Y <= t) as `cumulative_probability`, but where several residuals lie at t: there it counts all of them, as P(Y <= t)
    of a count or another discrete target must.

    rounding: [n, targets], in units of `standardised`: what is so near counts as equal.
    """
    rows = residuals.shape[1]
    probability = np.empty_like(standardised)
    for target, ordered in enumerate(residuals):
        z, near = standardised[:, target], rounding[:, target, None]
        below, up_to = np.searchsorted(ordered, z - near, side="left"), np.searchsorted(ordered, z + near, side="right")
        probability[:, target] = (up_to + np.where(up_to > below, 0.0, 0.5)) / (rows + 1)
    return probability


def sample_factors(residuals: Values, rng: Generator, *, rows: int, samples: int) -> Values:
    """Draws from the calibration residuals, as factors: [rows, targets, samples].

    residuals: [targets, calibration rows], sorted. Each target is drawn by itself: the residuals are sorted per target,
    so which of them came from the same calibration row is no longer known, and draws of two targets of a row are
    independent given x even where the targets' errors are not. Draws stay within the residuals seen.
    """
    targets, count = residuals.shape
    drawn = rng.integers(count, size=(rows, targets, samples))
    factors: Values = residuals[np.arange(targets)[:, None], drawn]
    return factors


def coverage_range(
    coverage: float, *, rows: int, interval: IntervalKind = "symmetric", probability: float = 0.9
) -> tuple[float, float]:
    """Where the coverage on new rows lies, with `probability`, given one set of calibration rows: (low, high).

    The central part of Beta(k, rows + 1 - k), with k the calibration scores within the interval (equal-tailed: the
    difference of the ranks); (1.0, 1.0) where the interval is infinite. Source: Vovk 2012.
    """
    within = _scores_within(coverage, rows=rows, interval=interval)
    if within > rows:
        return 1.0, 1.0
    tail = (1 - probability) / 2
    low, high = special.betaincinv(within, rows + 1 - within, np.array([tail, 1 - tail]))
    return float(low), float(high)


def least_observed(
    coverage: float, groups: Sequence[tuple[int, int]], *, interval: IntervalKind, probability: float = 0.99
) -> float:
    """The smallest share of new rows within their intervals that is no surprise: all but 1 - `probability` of cases hold more.

    groups: (new rows, calibration rows) of each group with intervals of its own, whose rows are all exchangeable. The new
    rows of a group within are beta-binomial; their sum is drawn 10 000 times, with the same seed.
    """
    random, total = np.random.default_rng(0), np.zeros(10_000)
    for new, rows in groups:
        within = _scores_within(coverage, rows=rows, interval=interval)
        share = 1.0 if within > rows else random.beta(within, rows + 1 - within, size=len(total))
        total += random.binomial(new, share, size=len(total))
    return float(np.quantile(total, 1 - probability, method="lower")) / sum(new for new, _ in groups)


def _scores_within(coverage: float, *, rows: int, interval: IntervalKind) -> int:
    """How many of rows + 1 equal parts of probability an interval holds; rows + 1 where it is infinite."""
    if interval == "symmetric":
        return conformal_rank(coverage, rows=rows)
    lower, upper = equal_tailed_ranks(coverage, rows=rows)
    return upper - lower


_DEPENDENT: dict[Dependence, str] = {
    "group": (
        "Rows of one group depend on each other, so this holds only as far as groups are alike; with few calibration groups "
        "the coverage on new groups can lie well off."
    ),
    "time": (
        "The calibration rows are later than the fitted and earlier than new ones, so this holds only as far as nothing "
        "changes with time."
    ),
}


def guarantee(
    method: CalibrationMethod,
    *,
    interval: IntervalKind,
    rows: int,
    dependence: Dependence | None = None,
    group_column: str | None = None,
) -> str:
    """What the prediction intervals of a calibration hold, in plain words.

    rows: all calibration rows. dependence: rows were split by group or by time, since they depend on each other. group_column:
    each value of it is calibrated by itself.
    """
    beyond = 1 if interval == "symmetric" else 2
    n, whose, spread = f"{rows + 1}", f"the {rows} calibration rows", ""
    finite = f"Finite intervals up to coverage {largest_coverage(rows, interval=interval)}."
    if group_column is not None:
        n, whose = "(n + 1)", f"the n calibration rows with its value of {group_column}"
        finite = (
            f"The intervals of a row are made of the n calibration rows with its value of {group_column} alone, and are finite "
            f"up to coverage {'n' if beyond == 1 else '(n - 1)'}/(n + 1). A row whose value has no calibration rows, or is "
            f"missing, gets those of all {rows} together, without a promise."
        )
    elif dependence is None:
        spread = _spread_of_coverage(rows, interval)
    limits = "" if dependence is None else f" {_DEPENDENT[dependence]}"
    match method:
        case "split":
            return (
                f"An interval of coverage c holds the target of a new row with a probability from c to c + {beyond}/{n}, on "
                f"average over calibration sets, if that row and {whose}, which took no part in fitting, are exchangeable and "
                f"their residuals have no ties. {spread}{finite}{limits}"
            )
        case "cross":
            return (
                f"Calibrated by cross-fitting on {rows} rows: each residual comes from networks that did not see its row. "
                "For an interval of coverage c around the mean of all members no finite-sample guarantee is proven; CV+, "
                "the nearest method that has one, holds the target with a probability of at least about 1 - 2 (1 - c), "
                f"and in practice close to c. {finite}{limits}"
            )
        case "none":
            return (
                "No guarantee: the intervals are those of the assumed family with the network's own mean and std, and "
                f"no held-out rows have checked them. {finite}"
            )
        case _:
            assert_never(method)


def _spread_of_coverage(rows: int, interval: IntervalKind) -> str:
    if largest_coverage(rows, interval=interval) < 0.9:
        return ""
    low, high = coverage_range(0.9, rows=rows, interval=interval)
    return (
        "Given one set of calibration rows, the coverage on new rows of a 0.9 interval lies between "
        f"{low:.3f} and {high:.3f} with probability 0.9. "
    )


def residual_nodes(residuals: Values) -> tuple[Values, Values]:
    """Few residuals that stand for all in an average: (nodes [targets, nodes], weights [nodes]).

    residuals: [targets, rows], ascending. Up to 1000 rows these are themselves; beyond, the outermost 200 on either side, where
    averages of exponentials come from, and means of neighbours in between, so that the mean stays exact.
    What is more than twice as far out as the farthest of so many normal residuals counts as that: mapped back by exp, one value
    with its decimal point in the wrong place would outweigh all the others.
    """
    farthest = 2 * special.ndtri(1 - 1 / (4 * residuals.shape[1]))
    residuals = residuals.clip(-farthest, farthest)
    rows = residuals.shape[1]
    tail = _TAIL_NODES if rows > _MOST_NODES else 0
    middle = [len(part) for part in np.array_split(np.arange(rows - 2 * tail), min(_MOST_NODES, rows) - 2 * tail)]
    sizes = np.array([*[1] * tail, *middle, *[1] * tail])
    return np.add.reduceat(residuals, np.cumsum(sizes) - sizes, axis=1) / sizes, sizes / rows


def family_residuals(quantile: Callable[[Values], Values], *, rows: int = UNCALIBRATED_ROWS) -> Values:
    """Residuals that stand for a family: an uncalibrated model gives that family's own intervals through the same ranks.

    quantile: the quantile function of the family with mean 0 and std 1, from [rows] probabilities to [rows] or
    [targets, rows]. Result: [targets, rows], its values at i / (rows + 1).

    With 9999 rows the intervals are the family's to rounding for every coverage of three decimals (for an even
    (rows + 1) * coverage). For others, a symmetric interval holds at most 1 / (rows + 1) of probability too little or
    too much, and an equal-tailed one less than 2 / (rows + 1) too much.
    """
    return np.atleast_2d(quantile(np.arange(1, rows + 1) / (rows + 1)))


def _short_decimal(rows: int) -> int:
    """The unit to round a bound to: four decimals, or one beyond the first that tells rows / (rows + 1) from 1."""
    return int(10 ** max(4, len(str(rows + 1)) + 1))


def _decimal(number: float, what: str) -> Fraction:
    """The number that the float prints as, exactly; refused outside (0, 1)."""
    value = Fraction(str(number)) if math.isfinite(number) else Fraction(0)
    if not 0 < value < 1:
        raise ValueError(f"{what} {number} is not between 0 and 1, both excluded (90 % is 0.9)")
    return value


def _at_ranks(ordered: Values, ranks: Sequence[int]) -> Values:
    """The values of 1-based ranks in each row of `ordered`; beyond its ends, infinity: [targets, ranks]."""
    rows = ordered.shape[1]
    index = np.array(ranks, dtype=np.int64)
    values = ordered[:, np.clip(index, 1, rows) - 1]
    return np.where(index < 1, -np.inf, np.where(index > rows, np.inf, values))
