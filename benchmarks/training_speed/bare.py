"""The product's training step against its matrix products alone."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.page import table
from benchmarks.training_speed.work import COLUMNS, Work, default_options, few_rows, ratio, rounds, stacked, work
from models.losses import loss

TARGET = 0.6
TABLES = (1_000, 10_000, 100_000, 1_000_000)
"""Rows, which decide how large a batch is."""
_MATMULS = {torch.ops.aten.bmm.default: 0, torch.ops.aten.baddbmm.default: 1, torch.ops.aten.mm.default: 0}
"""Matrix products, and the place of the first factor among their arguments."""


class Product(NamedTuple):
    """The factors of a batched matrix product, as an update has them: shapes and strides."""

    shapes: tuple[torch.Size, torch.Size]
    strides: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def operations(self) -> int:
        """Floating-point operations, two a multiplication with its addition."""
        return 2 * self.shapes[0].numel() * self.shapes[1][-1]

    def factors(self) -> list[Tensor]:
        """Random ones in that layout."""
        # An expanded factor has stride 0: its numbers lie once in memory, as in the update itself.
        return [torch.empty_strided(*layout).normal_() for layout in zip(self.shapes, self.strides, strict=True)]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = _MATMULS.get(func)
        if first is not None:
            left, right = args[first : first + 2]
            self.products.append(Product((left.shape, right.shape), (left.stride(), right.stride())))
        return func(*args, **(kwargs or {}))


def products(job: Work) -> list[Product]:
    """Every matrix product of one update: the forward's, and for the backward those of the inputs and of the weights."""
    one = work(job.options, rows=job.batch_rows, columns=job.columns, members=job.members, epochs=1, held_out=2)
    network = stacked(one).network.train()
    criterion = loss(job.options.loss, beta=job.options.beta)
    features = torch.randn(job.members, job.batch_rows, network.features.statistics.width)
    y = torch.randn(job.members, job.batch_rows, 1)
    recorder = _Recorder()
    with recorder:
        prediction = network(features, detach_scale=criterion.detach_scale)
        criterion.elementwise(y, prediction, criterion.family).sum().backward()  # type: ignore[no-untyped-call]
    return recorder.products


def replay(recorded: list[Product], *, times: int) -> Callable[[], None]:
    """What computes all of them `times` over, from and into memory that it has already."""
    ready = [product.factors() for product in recorded]
    answers = [torch.matmul(*factors) for factors in ready]

    def run() -> None:
        for _ in range(times):
            for factors, answer in zip(ready, answers, strict=True):
                torch.matmul(*factors, out=answer)

    return run


def section(*, updates: int, count: int) -> str:
    """The default network's share of the bare rate for tables of several sizes, as text."""
    options = default_options()
    lines = []
    for size in TABLES:
        job = few_rows(options, size, updates=updates, held_out_share=0)
        recorded = products(job)
        bare = replay(recorded, times=job.updates)
        stacked(
            replace(job, options=job.options.model_copy(update={"epochs": 1}))
        )  # the first call pays for what is set up once
        seconds = rounds({"product": partial(stacked, job), "bare": bare}, count=count)
        product, matmul = (1e3 * statistics.median(seconds[name]) / job.updates for name in ("product", "bare"))
        operations = sum(one.operations for one in recorded)
        lines.append(
            (
                f"{size:,}",
                job.batch_rows,
                len(recorded),
                f"{operations / 1e6:.0f}",
                f"{matmul:.2f}",
                f"{operations / matmul / 1e6:.0f}",
                f"{product:.2f}",
                f"{ratio(seconds['bare'], seconds['product']):.0%}",
                f"{1e3 * job.members * job.batch_rows / product:,.0f}",
            )
        )
    header = ("table rows", "batch", "products", "Mflop", "bare ms", "bare Gflop/s", "update ms", "share", "rate")
    return (
        f"An update of the default network ({options.members} members, a table of {COLUMNS} columns) against its matrix "
        "products alone: the same shapes and layouts, forward and backward, in memory that is there already. Medians of "
        f"{count} rounds of about {updates} updates, with two held-out rows, so that it is the updates that count. Share: of "
        f"the bare rate, target {TARGET:.0%} at least. Rate: rows x members a second.\n\n{table(header, lines)}"
    )
