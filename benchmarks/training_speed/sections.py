"""Where the time of an update goes."""

import pkgutil
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile

from benchmarks.page import table
from benchmarks.training_speed.work import COLUMNS, Work, default_options, few_rows, stacked, work
from training.config import NetworkOptions

SECTIONS = {
    "gather": "training.fit._Rows.__getitem__",
    "embedding": "models.networks.PeriodicEmbedding.forward",
    "linear layers": "models.networks.StackedLinear.forward",
    "dropout": "models.networks.Dropout.forward",
    "head": "models.networks.Head.forward",
    "backward": "torch.Tensor.backward",
    "optimiser": "torch.optim.AdamW.step",
    "evaluation": "training.fit._Trainer.held_out",
}
"""Functions whose time is taken; one within another counts for the outer one."""
KINDS = {
    "optimiser": r"optimizer\.step",
    "dropout": r"random_|\bge\b",
    "matrix products": r"matmul|mm",
    "activations, sine, cosine": r"\b(silu|relu|threshold|tanh|softplus|sin|cos)",
    "gather": r"index",
    "copies": r"cat\b|catbackward|copy_|clone|contiguous",
}
"""Words in the names of PyTorch's operations; the outermost operation that has one decides."""
TABLES = (1_000, 10_000, 100_000)


def section(*, updates: int) -> str:
    """The shares for tables of several sizes, as text."""
    options = default_options()
    jobs = [_job(options, rows, updates=updates) for rows in TABLES]
    for job in jobs:
        stacked(work(job.options, rows=job.batch_rows, columns=COLUMNS, members=job.members, epochs=1, held_out=2))
    clocked = [clocked_sections(job) for job in jobs]
    kinds = [operations(job) for job in jobs]
    header = ("", *(f"{rows:,} rows, batch {job.batch_rows}" for rows, job in zip(TABLES, jobs, strict=True)))
    text = [
        (
            f"The default network ({options.members} members, {COLUMNS} columns), about {updates} updates with the batches of "
            "a table of that size, a tenth of the rows held out. By the clock, around functions; the rest is the loss, the "
            "activations, and Python:"
        ),
        _shares(header, clocked, jobs),
        "By operation, from PyTorch's profiler (forward and backward together; the rest is the time outside of any operation):",
        _shares(header, kinds, jobs),
    ]
    if options.dropout:
        without = [
            sum(clocked_sections(_job(options.model_copy(update={"dropout": 0.0}), rows, updates=updates)).values())
            for rows in TABLES
        ]
        shares = [1 - bare / sum(all_of_it.values()) for bare, all_of_it in zip(without, clocked, strict=True)]
        text.append(f"Dropout with its backward, by leaving it out: {', '.join(f'{share:.0%}' for share in shares)}.")
    return "\n\n".join(text)


def clocked_sections(job: Work) -> dict[str, float]:
    """Seconds in each of SECTIONS, and the rest."""
    seconds = dict.fromkeys(SECTIONS, 0.0)
    with ExitStack() as stack:
        inside: list[str] = []
        for name, function in SECTIONS.items():
            stack.enter_context(_clocked(function, name, seconds, inside))
        start = time.perf_counter()
        stacked(job)
        whole = time.perf_counter() - start
    return seconds | {"rest": whole - sum(seconds.values())}


@contextmanager
def _clocked(function: str, name: str, seconds: dict[str, float], inside: list[str]) -> Iterator[None]:
    place, _, attribute = function.rpartition(".")
    original = getattr(pkgutil.resolve_name(place), attribute)

    def timed(*arguments: Any, **options: Any) -> Any:
        if inside:
            return original(*arguments, **options)
        inside.append(name)
        start = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            seconds[name] += time.perf_counter() - start
            inside.pop()

    with patch(function, timed):
        yield


def operations(job: Work) -> dict[str, float]:
    """Seconds in each kind of operation, in all others, and outside of operations."""
    seconds: defaultdict[str, float] = defaultdict(float, dict.fromkeys(KINDS, 0.0))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        stacked(job)
        whole = time.perf_counter() - start
    for event in recorded.events() or []:
        seconds[_kind(event)] += event.self_cpu_time_total / 1e6
    return seconds | {"outside of operations": max(0.0, whole - sum(seconds.values()))}


def _kind(event: Any) -> str:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    matched = (kind for name in reversed(names) for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))
    return next(matched, "other operations")


def _job(options: NetworkOptions, rows: int, *, updates: int) -> Work:
    """The updates of a table of `rows` rows, on as many of them as make some epochs."""
    return few_rows(options, rows, updates=updates, held_out_share=0.1)


def _shares(header: Sequence[str], measured: Sequence[Mapping[str, float]], jobs: Sequence[Work]) -> str:
    totals = [sum(one.values()) for one in measured]
    lines = [
        [name, *(f"{one[name] / total:.0%}" for one, total in zip(measured, totals, strict=True))]
        for name in dict.fromkeys(name for one in measured for name in one)
    ]
    whole = [f"{1e3 * total / job.updates:.2f}" for total, job in zip(totals, jobs, strict=True)]
    return table(header, [*lines, ["ms an update", *whole]])
