"""The report of a training run: one self-contained HTML page, for whoever has to decide whether to trust the model."""

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.artifact import Run
from models.conformal import coverage_range, supports
from models.manifest import Calibration, Column, Evaluation, EvaluationSource, IntervalScores, Manifest, Scores
from training import curves
from training.calibrate import factors_by_group
from training.evaluate import COVERAGES, ROW, Predictions, number_of_rows, outliers, rows_in_words
from training.figures import (
    draw_calibration,
    draw_coverage_by_std,
    draw_errors,
    draw_pit,
    draw_predictions,
    draw_sweep,
    draw_training,
)
from training.fit import Epoch
from training.page import (
    Html,
    Picture,
    count,
    details,
    duration,
    figures,
    join,
    listed,
    measured,
    number,
    page,
    percent,
    quantity,
    table,
    tag,
)
from training.schema import instant

Values = NDArray[np.float64]

MOST_POINTS = 500
"""Rows drawn as points; more are hidden by each other, and make a page that is slow to scroll."""
_ORDINARY_SCALE_FACTOR = (0.5, 2.0)
_MOST_CATEGORIES = 12

_SCORES: tuple[tuple[str, Callable[[Scores], float | None], bool], ...] = (
    ("NLL", lambda scores: scores.nll, False),
    ("CRPS", lambda scores: scores.crps, True),
    ("RMSE", lambda scores: scores.rmse, True),
    ("MAE", lambda scores: scores.mae, True),
    ("R2", lambda scores: scores.r2, False),
    ("calibration error", lambda scores: scores.calibration_error, False),
)
"""Name, value, and whether it is in the target's unit."""


def report_page(manifest: Manifest, *, predictions: Predictions | None, x: Values, run: Run, history: list[Epoch]) -> bytes:
    """The report of a model, a whole HTML page.

    predictions: of the evaluated rows `x` [n, columns], raw; None (and no rows) where there are none. run: the model.
    """
    body = [
        _head(manifest),
        *_outliers(manifest, predictions),
        _guarantee(manifest),
        *_targets(manifest, predictions, x, run),
        _training(manifest, history),
        _columns(manifest.columns),
    ]
    return page(title=f"{', '.join(manifest.target_names)}: errorbar report", body=body)


def _head(manifest: Manifest) -> Html:
    origin, network = manifest.origin, manifest.network
    features, members = count(len(manifest.columns), "feature"), count(network.members, "network")
    data = f"{origin.data} ({count(origin.rows, 'row')})"
    lead = f"Predicted from {features} by {members}, trained on {data} on {origin.created[:10]}."
    return join(
        tag("h1", ", ".join(quantity(target.name, target.unit) for target in manifest.targets)),
        tag("p", lead, css="lead"),
        *(_in_short(manifest, manifest.evaluation) if manifest.evaluation else [tag("p", _NO_TEST_ROWS, css="warning")]),
    )


_NO_TEST_ROWS = (
    "Not measured: nothing was calibrated and no rows were held out for a test, so this page has no scores. Train with a test "
    "share, or run the evaluate command on new rows, before relying on the model."
)
_BY_CONSTRUCTION = (
    "Intervals made from rows of the same table hold about as many of the others as they should, whatever the model: the "
    "coverage of these rows all together is no evidence. How wide the intervals are, the errors, and the coverage of rows with "
    "a low and a high std are."
)
_FEWER_ROWS = (
    " The networks that predicted them were fitted to fewer rows than those that are served, and are so, if anything, a little "
    "worse."
)


def _in_short(manifest: Manifest, evaluation: Evaluation) -> Iterable[Html]:
    for target in manifest.targets:
        scores = evaluation.targets[target.name]
        main = _main_interval(scores, manifest.default_coverage)
        sentence = f"On {rows_in_words(evaluation)}, "
        if main is not None:
            sentence += (
                f"the {percent(main.coverage)} prediction interval of {target.name} held the observed value in "
                f"{percent(main.observed_coverage)} of {_interval_rows(main, evaluation)}, and was "
                f"{measured(main.mean_width, target.unit)} wide on average; "
            )
        sentence += f"the predicted mean of {target.name} was off by {measured(scores.rmse, target.unit)} (RMSE)."
        yield tag("p", sentence)
    if evaluation.source != "test":
        yield tag("p", _BY_CONSTRUCTION + (_FEWER_ROWS if evaluation.source == "out_of_fold" else ""), css="soft")


def _outliers(manifest: Manifest, predictions: Predictions | None) -> Iterable[Html]:
    for sentence in outliers(predictions, manifest.targets) if predictions is not None else ():
        yield tag("p", f"One value is far off: {sentence}.", css="warning")


def _interval_rows(interval: IntervalScores, evaluation: Evaluation) -> str:
    if interval.rows is None or interval.rows == evaluation.rows:
        return "them"
    return f"the {interval.rows:,} whose calibration group has enough rows for it"


def _guarantee(manifest: Manifest) -> Html:
    calibration = manifest.calibration
    parts = [tag("h2", "What the intervals promise"), tag("p", calibration.guarantee)]
    if calibration.exchangeable:
        parts.append(_coverage_ranges(calibration))
    if calibration.method != "none":
        parts += _scale_factors(manifest)
    return join(*parts)


def _coverage_ranges(calibration: Calibration) -> Html:
    by_group = calibration.group_column is not None
    rows = []
    for group in calibration.groups[1:] if by_group else calibration.groups:
        name = "all rows" if group.value is None else f"{calibration.group_column} = {group.value}"
        cells = [name, f"{group.rows:,}"]
        for coverage in COVERAGES:
            if not supports(coverage, rows=group.rows, interval=calibration.interval):
                cells.append("too few rows")
            else:
                low, high = coverage_range(coverage, rows=group.rows, interval=calibration.interval)
                cells.append(f"{low:.3f} to {high:.3f}")
        rows.append(cells)
    words = (
        "The calibration rows are a sample. Given these ones, the coverage over many new rows lies, with a probability of "
        "90 %, in the range below the coverage that was asked for."
    )
    if calibration.method == "cross":
        words += " That holds for rows held out; for cross-fitted ones it is what to expect, and not proven."
    if by_group:
        words += " Each group is calibrated by itself; a row of any other value gets those of all rows, without a range."
    header = ["calibration rows", "number", *(percent(coverage) for coverage in COVERAGES)]
    return join(tag("p", words), table(header, rows))


def _scale_factors(manifest: Manifest) -> Iterable[Html]:
    low, high = _ORDINARY_SCALE_FACTOR
    for index, (target, factor) in enumerate(zip(manifest.targets, manifest.calibration.scale_factor, strict=True)):
        by_group = factors_by_group(manifest.calibration, index)
        yield tag(
            "p",
            f"The std of {target.name} is that of the network times {number(factor)} (the scale factor{by_group}), which fits "
            "the calibration residuals best. The intervals are the same without it.",
        )
        if not low <= factor <= high:
            cause = "overconfident: its errors on new rows are larger" if factor > 1 else "too cautious: its errors are smaller"
            yield tag(
                "p",
                f"Warning: the scale factor of {target.name}, {number(factor)}, is far from 1. The network was {cause} than it "
                "predicted. The intervals are calibrated all the same, but which rows are uncertain may be told badly; more "
                "rows, a longer or a shorter training, or another loss can help.",
                css="warning",
            )


def _targets(manifest: Manifest, predictions: Predictions | None, x: Values, run: Run) -> Iterable[Html]:
    coverage = curves.drawn_coverage(manifest)
    shown = np.sort(np.random.default_rng(0).permutation(len(x))[:MOST_POINTS])
    row = curves.typical_row(manifest.columns, x)
    single = len(manifest.columns) == 1
    swept = np.zeros(len(manifest.targets), dtype=np.int64) if single else curves.most_influential_features(
        run, manifest.columns, row
    )  # fmt: skip
    source = manifest.evaluation.source if manifest.evaluation else "test"
    for index, target in enumerate(manifest.targets):
        pictures = []
        if predictions is not None:
            y, mean = predictions.y[:, index], predictions.mean[:, index]
            drawn, *ends = curves.drawn_interval(predictions, most=coverage, target=index)
            lower, upper = (end[shown] for end in ends)
            pictures += [
                draw_predictions(y[shown], mean[shown], lower, upper, coverage=drawn, target=target, kind=ROW[source]),
                *_draw_coverage(manifest, predictions, source, index),
                draw_errors(predictions, (upper - lower) / 2, shown=shown, coverage=drawn, target=target, index=index),
            ]
        feature = int(swept[index])
        column = manifest.columns[feature]
        grid = curves.sweep_grid(column, beyond=curves.BEYOND if single else None)
        pictures.append(
            draw_sweep(
                curves.sweep(run, row, feature=feature, grid=grid, coverage=coverage),
                column,
                target=target,
                index=index,
                coverage=coverage,
                values=x[shown, feature],
                y=predictions.y[shown, index] if single and predictions is not None else None,
                kind=ROW[source],
                note=_ONLY_FEATURE if single else _ONE_OF_SEVERAL.format(name=column.name),
            )
        )
        yield join(
            tag("h2", quantity(target.name, target.unit)),
            *(_scores(manifest, manifest.evaluation, target.name, target.unit) if manifest.evaluation else []),
            figures(pictures),
        )


def _draw_coverage(manifest: Manifest, predictions: Predictions, source: EvaluationSource, index: int) -> Iterable[Picture]:
    """What the rows can tell of the coverage: of test rows all of it, of others how it differs between them."""
    target, rows, calibration_rows = manifest.targets[index], len(predictions.y), manifest.calibration.rows
    nominal, inside = curves.covered(predictions, manifest, target=index)
    if source == "test":
        yield draw_calibration(nominal, inside.mean(axis=0), rows=rows, calibration_rows=calibration_rows, target=target)
        yield draw_pit(predictions.pit[:, index], calibration_rows=calibration_rows, target=target)
    else:
        thirds = curves.coverage_by_std(inside, predictions.std[:, index])
        yield draw_coverage_by_std(nominal, thirds, rows=rows, target=target, kind=ROW[source])


_ONLY_FEATURE = (
    "It goes on by a quarter of the training range on either side (dotted lines): what it says there is extrapolation."
)
_ONE_OF_SEVERAL = (
    "Of all features, {name} moves the predicted mean most while the others stand still: numbers and times at their median, "
    "categories at their most frequent value. This is one cut through the model and no effect of {name} by itself."
)


def _scores(manifest: Manifest, evaluation: Evaluation, name: str, unit: str | None) -> Iterable[Html]:
    by_predictor = {"this model": evaluation.targets[name]}
    by_predictor |= {f"{baseline} baseline": scores[name] for baseline, scores in evaluation.baselines.items()}
    tested = evaluation.source == "test"
    rows = [
        [quantity(label, unit if has_unit else None), *(number(value(scores)) for scores in by_predictor.values())]
        for label, value, has_unit in (_SCORES if tested else _SCORES[:-1])
    ]
    yield table([number_of_rows(evaluation), *by_predictor], rows)
    yield tag("p", "NLL in nats. Lower is better, except for R2: 1 is perfect, 0 is no better than a constant.", css="soft")
    model = by_predictor.pop("this model")
    for baseline, scores in by_predictor.items():
        yield _verdict(model, baseline, scores, rows=number_of_rows(evaluation), coverage=manifest.default_coverage)
    rows = [
        [
            percent(one.coverage),
            predictor,
            f"{one.observed_coverage:.3f}"
            + (f" ± {np.sqrt(one.coverage * (1 - one.coverage) / (one.rows or evaluation.rows)):.3f}" if tested else ""),
            number(one.mean_width),
            number(one.interval_score),
        ]
        for coverage in [one.coverage for one in model.intervals]
        for predictor, scores in {"this model": model, **by_predictor}.items()
        for one in scores.intervals
        if one.coverage == coverage
    ]
    if rows:
        widths = (quantity(label, unit) for label in ("mean width", "interval score"))
        yield table(["coverage", "predictor", "observed coverage", *widths], rows)
        yield tag(
            "p",
            ("± is the standard error of a share of that many test rows. " if tested else "")
            + "The interval score is the width plus a fine for every "
            "miss: lower is better, and of two predictors with the same coverage the narrower one wins.",
            css="soft",
        )


def _verdict(model: Scores, name: str, baseline: Scores, *, rows: str, coverage: float) -> Html:
    """Who wins where, said as it is: a model that loses to a baseline should not be served for what it loses in."""
    better: list[str] = []
    worse: list[str] = []
    pairs = [(label, value(model), value(baseline)) for label, value, _ in _SCORES[:4]]
    ours, theirs = _main_interval(model, coverage), _main_interval(baseline, coverage)
    if ours is not None and theirs is not None and ours.coverage == theirs.coverage:
        pairs.append((f"interval score at {percent(ours.coverage)}", ours.interval_score, theirs.interval_score))
    for label, own, other in pairs:
        if own is not None and other is not None and own != other:
            (better if own < other else worse).append(label)
    chance = f" Small differences may be chance: there are {rows}."
    if not worse:
        ending = f"better than the {name} in {listed(better)}." if better else f"equal to the {name}."
        return tag("p", f"This model is {ending}{chance}")
    words = f"The {name} is better in {listed(worse)}"
    words += f"; this model is better in {listed(better)}." if better else ", and this model is better in nothing."
    beaten = {"NLL", "CRPS"} <= set(worse)
    if beaten:
        words += (
            " The features did not help on these rows: a constant predicts as well."
            if name.startswith("constant")
            else " A std of its own for every row did not pay on these: do not read much into which rows are uncertain."
        )
    return tag("p", words + chance, css="warning" if beaten else None)


def _training(manifest: Manifest, history: list[Epoch]) -> Html:
    origin, network = manifest.origin, manifest.network
    family: str = network.family
    if network.degrees_of_freedom:
        family += f" with {listed([number(value) for value in network.degrees_of_freedom])} degrees of freedom"
    facts = [
        ["data", f"{origin.data}, {count(origin.rows, 'row')}, SHA-256 {origin.data_sha256}"],
        ["rows by use", ", ".join(f"{use} {rows:,}" for use, rows in origin.rows_by_use.items())],
        *(
            ["target", f"{quantity(target.name, target.unit)}, {number(target.minimum)} to {number(target.maximum)}, "
             f"transform {target.transform}" + (f": {target.description}" if target.description else "")]
            for target in manifest.targets
        ),
        ["network", f"{count(network.members, 'member')}, {count(network.parameters, 'parameter')}, family {family}"],
        ["loss", network.loss],
        ["calibration", f"{manifest.calibration.method}, intervals {manifest.calibration.interval.replace('_', '-')}"],
        ["seed", str(network.seed)],
        ["made", f"{origin.created}, in {duration(origin.seconds)}"],
        ["command", origin.command],
        ["code", f"revision {origin.git_revision}" if origin.git_revision else "not from a git checkout"],
        ["versions", ", ".join(f"{name} {version}" for name, version in origin.libraries.items())],
    ]  # fmt: skip
    note = "With cross-fitting the same rows serve for fitting and for calibration, each with networks that did not see it."
    options = [[name, json.dumps(value, ensure_ascii=False)] for name, value in network.options.items()]
    return join(
        tag("h2", "How it was trained"),
        table(None, facts),
        *([tag("p", note, css="soft")] if manifest.calibration.method == "cross" else []),
        *([details("All options", table(None, options))] if options else []),
        *([figures([draw_training(history)])] if history else []),
    )


def _columns(columns: Sequence[Column]) -> Html:
    rows = [
        [
            quantity(column.name, column.unit),
            column.kind,
            _values_of(column),
            percent(column.missing),
            column.description or "",
        ]
        for column in columns
    ]
    described = any(column.description for column in columns)
    header = ["feature", "kind", "values in training", "missing", "description"]
    if not described:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return join(tag("h2", "Features"), table(header, rows))


def _values_of(column: Column) -> str:
    if column.categories is not None:
        more = len(column.categories) - _MOST_CATEGORIES
        return ", ".join(column.categories[:_MOST_CATEGORIES]) + (f" and {more:,} more" if more > 0 else "")
    if column.kind == "boolean" or column.minimum is None or column.maximum is None:
        return "false, true" if column.kind == "boolean" else ""
    say = instant if column.kind == "datetime" else number
    middle = f", median {say(column.quantiles['0.5'])}" if "0.5" in column.quantiles else ""
    return f"{say(column.minimum)} to {say(column.maximum)}{middle}"


def _main_interval(scores: Scores, coverage: float) -> IntervalScores | None:
    """The interval whose coverage is nearest to the default one."""
    return min(scores.intervals, key=lambda one: abs(one.coverage - coverage), default=None)
