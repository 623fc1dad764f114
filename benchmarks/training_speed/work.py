"""What is trained: a made-up table, a network and how long; and the clock that compares ways to do it."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.manifest import Column
from models.networks import FeatureStatistics
from training.config import NetworkOptions
from training.fit import Fitted, automatic_batch_rows, fit
from training.preprocess import feature_statistics
from training.trial import DROPOUT

Values = NDArray[np.float64]
COLUMNS = 8
_EPOCH_UPDATES = 32


@dataclass(frozen=True)
class Work:
    """Some networks, each fitted to the same rows for options.epochs epochs, and judged on `held_out` others after each."""

    rows: int
    columns: int
    held_out: int
    members: int
    options: NetworkOptions
    components: bool = True
    """Whether the principal components of the columns are features too, as they are in the product."""

    @property
    def batch_rows(self) -> int:
        """Rows a batch, those of the options or the product's own."""
        return min(self.options.batch_rows or automatic_batch_rows(self.rows), self.rows)

    @property
    def updates(self) -> int:
        """Updates of each network, full batches only."""
        return self.rows // self.batch_rows * self.epochs

    @property
    def epochs(self) -> int:
        """A number that the work states, lest the product chooses it."""
        if self.options.epochs is None:
            raise ValueError("the work's options name no epochs")
        return self.options.epochs

    @property
    def processed(self) -> int:
        """Rows x members x epochs, by which a rate is counted."""
        return self.updates * self.batch_rows * self.members

    def of(self, members: int) -> "Work":
        """The same for another number of networks."""
        return replace(self, members=members)

    def __str__(self) -> str:
        return (
            f"{self.members} x {self.options.depth} x {self.options.width}, {self.rows} rows x {self.columns}, "
            f"batch {self.batch_rows}, {self.epochs} epochs"
        )


def work(options: NetworkOptions, *, rows: int, columns: int, members: int, epochs: int, held_out: int) -> Work:
    """The network of `options`, fitted for `epochs` epochs without an early end."""
    update = {"epochs": epochs, "patience": epochs, "device": "cpu"}
    return Work(rows=rows, columns=columns, held_out=held_out, members=members, options=options.model_copy(update=update))


def few_rows(options: NetworkOptions, rows: int, *, updates: int, held_out_share: float) -> Work:
    """The default members with the batches that a table of `rows` rows gets, on no more of these rows than some epochs need."""
    batch = min(options.batch_rows or automatic_batch_rows(rows), rows)
    fewer = min(rows, _EPOCH_UPDATES * batch)
    return work(
        options.model_copy(update={"batch_rows": batch}),
        rows=fewer,
        columns=COLUMNS,
        members=options.members,
        epochs=max(1, updates // (fewer // batch)),
        held_out=max(2, round(held_out_share * fewer)),
    )


def made_up_table(rows: int, columns: int, *, seed: int = 0) -> tuple[Values, Values]:
    """Columns x [rows, columns], normal, and y [rows, 1] of it: a bent sum, with noise that grows with the first column."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, columns))
    mean = np.sin(2 * x[:, :1]) + x @ np.linspace(1, 0.1, columns)[:, None] / np.sqrt(columns)
    return x, mean + 0.3 * np.exp(0.5 * x[:, :1]) * random.standard_normal((rows, 1))


def features_of(x: Values, *, components: bool) -> FeatureStatistics:
    """As the product makes them of numeric columns; without components, the columns alone."""
    columns = [Column(name=f"x{number}", kind="numeric") for number in range(x.shape[1])]
    statistics = feature_statistics(x, columns)
    return statistics if components else replace(statistics, component_weight=[], component_centre=[])


def default_options() -> NetworkOptions:
    """The default network; dropout is that of most tables, where the product lets a trial choose."""
    options = NetworkOptions()
    return options if options.dropout is not None else options.model_copy(update={"dropout": DROPOUT})


def stacked(job: Work) -> Fitted:
    """Does the work through the product's own fit, all networks at once."""
    x, y = made_up_table(job.rows + job.held_out, job.columns)
    return fit(
        x,
        y,
        statistics=features_of(x[: job.rows], components=job.components),
        fit_rows=[np.arange(job.rows)] * job.members,
        stop_rows=[np.arange(job.rows, job.rows + job.held_out)] * job.members,
        options=job.options,
    )


def rounds(ways: Mapping[str, Callable[[], object]], *, count: int) -> dict[str, list[float]]:
    """Seconds of each way in each of `count` rounds; in a round they run one after the other, and meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over rounds of the ratio within a round: what slows a whole round drops out."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
