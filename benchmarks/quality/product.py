"""errorbar itself, as `python -m training fit` makes it and `python -m training evaluate` judges it."""

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.quality.scores import COVERAGE, Score
from benchmarks.quality.sets import Rows, Set, Split
from models.artifact import open_model
from models.manifest import Scores
from training import evaluate
from training.config import fit_options
from training.predict import read_x_y
from training.train import train

SIZES = {"errorbar": None, "errorbar_small": "small", "errorbar_large": "large"}
"""The methods, and the `--size` of each; None gives no option."""


def run(data: Set, method: str = "errorbar") -> Iterator[Score]:
    """The scores of a default fit on each split: nothing is told to it but the targets. `method`: one of SIZES."""
    for split in data.splits:
        with tempfile.TemporaryDirectory() as folder:
            yield _score(data, split, method, Path(folder))


def _score(data: Set, split: Split, method: str, folder: Path) -> Score:
    table, model, unseen = folder / "train.csv", folder / "model.onnx", folder / "test.csv"
    _write(data, split.train, table)
    # The baselines, which only the report shows, are fitted when the model is finished: without them it is the same model.
    options = fit_options({"target": data.targets, "baselines": False, "size": SIZES[method]})
    start = time.perf_counter()
    train(table, options, output=model, command="python -m benchmarks.uci")
    seconds = time.perf_counter() - start
    _write(data, split.test, unseen)
    answers, manifest = open_model(model)
    x, y, _ = read_x_y(unseen, manifest)
    predictions = evaluate.predicted(answers, x, y, manifest)
    by_target = list(evaluate.scores(predictions, targets=manifest.targets, network=manifest.network).values())
    intervals = [_interval(scores) for scores in by_target]
    return Score(
        dataset=data.name,
        method=method,
        split=split.number,
        ll=-sum(scores.nll for scores in by_target),
        rmse=math.sqrt(np.mean([scores.rmse**2 for scores in by_target])),
        crps=float(np.mean([scores.crps for scores in by_target])),
        coverage90=float(np.mean([observed for observed, _ in intervals])),
        width90=float(np.mean([width for _, width in intervals])),
        seconds=seconds,
    )


def _interval(scores: Scores) -> tuple[float, float]:
    """Observed coverage and mean width at COVERAGE; NaN where there are too few calibration rows for it."""
    at = [one for one in scores.intervals if one.coverage == COVERAGE]
    return (at[0].observed_coverage, at[0].mean_width) if at else (math.nan, math.nan)


def _write(data: Set, rows: Rows, path: Path) -> None:
    """Rows of a set as its own file has them: every number the shortest text that reads back to it."""
    values = np.hstack([data.x[rows], data.y[rows]]).tolist()
    lines = [",".join(repr(value).removesuffix(".0") for value in row) for row in values]
    path.write_text("\n".join([",".join([*data.columns, *data.targets]), *lines]) + "\n", encoding="utf-8")
