"""The whole training of tables of several sizes, each in a process of its own: time and memory."""

import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import polars as pl
import torch

from benchmarks.page import table
from benchmarks.training_speed.work import made_up_table
from training.config import fit_options
from training.fit import Epoch
from training.train import Progress, train

COLUMNS = 30
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Run(NamedTuple):
    """One training. seconds: all of it; fit_seconds: of its epochs. before, peak: resident bytes of its process."""

    rows: int
    seconds: float
    fit_seconds: float
    epochs: int
    before: int
    peak: int


def section(sizes: Sequence[int], *, device: str, threads: int) -> str:
    """Time and memory for tables of `sizes` rows, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        runs = []
        for rows in sizes:
            _alone(write, path, rows)
            runs.append(_alone(run, path, rows, device, threads))
    header = (
        "rows",
        "seconds",
        "of these fit",
        "epochs",
        "us a row",
        "us a row and epoch",
        "peak MiB",
        "of these data",
        "bytes a row",
    )
    lines = [
        (
            f"{run.rows:,}",
            f"{run.seconds:.1f}",
            f"{run.fit_seconds:.1f}",
            run.epochs,
            f"{1e6 * run.seconds / run.rows:.0f}",
            f"{1e6 * run.fit_seconds / run.rows / run.epochs:.1f}",
            f"{run.peak / 2**20:.0f}",
            f"{(run.peak - run.before) / 2**20:.0f}",
            f"{(run.peak - run.before) / run.rows:.0f}",
        )
        for run in runs
    ]
    return (
        f"The whole of `train`, from a Parquet file of {COLUMNS} columns to the model, without baselines, each size in a "
        f"process of its own, device {device}. Data: above what the process holds once everything is imported. The table has "
        f"{8 * (COLUMNS + 1)} bytes a row as float64.\n\n{table(header, lines)}"
    )


def write(path: Path, rows: int) -> None:
    """The made-up table as a Parquet file."""
    x, y = made_up_table(rows, COLUMNS)
    columns = {f"x{number}": column for number, column in enumerate(x.T)}
    pl.DataFrame(columns | {"y": y[:, 0]}).write_parquet(path)


def run(path: Path, rows: int, device: str, threads: int) -> Run:
    """Train on the table at `path`; the memory is this process's."""
    torch.set_num_threads(threads)
    epochs: list[Epoch] = []
    before, start = _peak(), perf_counter()
    train(
        path,
        fit_options({"target": ["y"], "baselines": False, "device": device}),
        output=path.with_name("model.onnx"),
        command="python -m benchmarks.training",
        progress=Progress(epoch=epochs.append),
    )
    return Run(
        rows=rows,
        seconds=perf_counter() - start,
        fit_seconds=epochs[-1].seconds,
        epochs=epochs[-1].number,
        before=before,
        peak=_peak(),
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def _alone(function: Callable[..., Any], *arguments: object) -> Any:
    # A new process starts with its parent's peak, so the parent must stay small: the table too is made in one of its own.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
