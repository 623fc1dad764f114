"""Stacked training against the usual loop, the same networks on the same rows."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.page import table
from benchmarks.training_speed.usual import one_after_another
from benchmarks.training_speed.work import COLUMNS, Work, default_options, ratio, rounds, stacked, work
from training.config import NetworkOptions

PAPER = NetworkOptions(
    loss="nll", width=50, depth=1, activation="relu", dropout=0.0, frequencies=0, learning_rate=1e-3, batch_rows=256
)
"""The beta-NLL paper's network for small sets, but for the product's optimiser."""
Way = tuple[Callable[[Work], object], Work]

MANY, FEW = 100, 8
TARGET_MANY, TARGET_FEW = 25.0, 1.4


@dataclass(frozen=True)
class Amount:
    """How much is trained: few epochs suffice, since every epoch costs the same."""

    rows: int = 1000
    held_out: int = 200
    paper_epochs: int = 20
    default_epochs: int = 4
    rounds: int = 5


def section(amount: Amount) -> str:
    """Both comparisons as text."""
    text = [
        (
            f"Medians of {amount.rounds} rounds; in a round all ways run in turn. *Stacked* is the product's `fit`. "
            "The *usual loop* has a DataLoader over a TensorDataset, one nn.Sequential, Adam, one network after the other. "
            "Rows, batches, epochs and numbers of weights are the same, and both look at held-out rows after every epoch. "
            "Rate: rows x members x epochs a second."
        ),
        _paper(amount),
        _default(amount),
    ]
    return "\n\n".join(text)


def _paper(amount: Amount) -> str:
    paper = work(PAPER, rows=amount.rows, columns=COLUMNS, members=MANY, epochs=amount.paper_epochs, held_out=amount.held_out)
    job = replace(paper, components=False)
    ways: dict[str, Way] = {
        f"stacked, {MANY} networks": (stacked, job),
        f"usual loop, {MANY} networks": (one_after_another, job),
        f"stacked, {FEW} networks": (stacked, job.of(FEW)),
        "stacked, 1 network": (stacked, job.of(1)),
        "usual loop, 1 network": (one_after_another, job.of(1)),
    }
    seconds = _measured(ways, amount.rounds)
    many, many_usual, few, one, one_usual = seconds.values()
    return "\n\n".join(
        [
            f"The paper's network: {job}.",
            _table(ways, seconds),
            (
                f"- {MANY} networks: stacked is **{ratio(many_usual, many):.1f} times** as fast (target: {TARGET_MANY:g} at "
                f"least).\n- {FEW} networks stacked take **{ratio(few, one_usual):.2f} times** the usual loop's time for one "
                f"(target: {TARGET_FEW:g} at most), and {ratio(few, one):.2f} times the stack's own time for one."
            ),
        ]
    )


def _default(amount: Amount) -> str:
    options = default_options()
    texts = ["The product's default network."]
    for rows in (amount.rows, 10 * amount.rows):
        job = work(
            options,
            rows=rows,
            columns=COLUMNS,
            members=options.members,
            epochs=max(1, amount.default_epochs * amount.rows // rows),
            held_out=amount.held_out,
        )
        ways: dict[str, Way] = {"stacked": (stacked, job), "usual loop": (one_after_another, job)}
        seconds = _measured(ways, amount.rounds)
        texts.append(f"{job}: stacked is **{ratio(seconds['usual loop'], seconds['stacked']):.1f} times** as fast.")
        texts.append(_table(ways, seconds))
    return "\n\n".join(texts)


def _measured(ways: Mapping[str, Way], count: int) -> dict[str, list[float]]:
    for way, job in ways.values():  # first calls pay for what is set up once
        way(job.of(1))
    return rounds({name: partial(way, job) for name, (way, job) in ways.items()}, count=count)


def _table(ways: Mapping[str, Way], seconds: Mapping[str, list[float]]) -> str:
    header = ("way", "seconds", "fastest round", "rate")
    return table(
        header,
        [
            (
                name,
                f"{(median := statistics.median(seconds[name])):.3f}",
                f"{min(seconds[name]):.3f}",
                f"{job.processed / median:,.0f}",
            )
            for name, (_, job) in ways.items()
        ],
    )
