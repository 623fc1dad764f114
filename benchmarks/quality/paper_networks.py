"""Many networks of one hidden layer, on different splits and with different learning rates, trained as one.

Each of them sees what it would alone: its own weights, rate, batches of its split's rows, early stopping. Activations stand
features first, [networks, units, rows]: with two outputs these products run four times faster than rows first (measured, one
core). Stacks are cut into blocks whose activations fit a core's cache, and a thread trains each block.
"""

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.paper_heads import Head, Predictive, Start, Tensors, forward, score
from benchmarks.quality.sets import Rows, Set, Values

BATCH = 256
PATIENCE = 50
"""Epochs without a better validation score."""
LARGE_ROWS = 20_000
DROP = 0.25
"""Share of stopped networks from which the stack is cut to the rest: until then they train on, unheeded."""
_SMALLEST_BLOCK = 16
"""Blocks under this spend their time in calls, so a stack is not split further, however many threads wait."""
_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


class Trial(NamedTuple):
    """A network to train. split: position in the set's splits. epochs: how many at most."""

    split: int
    method: str
    rate: float
    epochs: int


class Trained(NamedTuple):
    """score: the best on validation rows, after `epochs` epochs; infinite, and all epochs, without them. tensors: the last."""

    score: float
    epochs: int
    tensors: Tensors


@dataclass(frozen=True)
class Scaling:
    """Of inputs and targets: mean and population standard deviation over some rows; 1 for a constant column."""

    x_centre: Values
    x_scale: Values
    y_centre: Values
    y_scale: Values

    def inputs(self, x: Values) -> Values:
        """[inputs + 1, n], the last of ones, for x [n, inputs]."""
        return np.vstack([((x - self.x_centre) / self.x_scale).T, np.ones((1, len(x)))])

    def table(self, data: Set, rows: Rows) -> Values:
        """[inputs + 1 + targets, n], standardised."""
        return np.vstack([self.inputs(data.x[rows]), ((data.y[rows] - self.y_centre) / self.y_scale).T])


def scaling(data: Set, rows: Rows) -> Scaling:
    """By `rows` alone."""
    x, y = data.x[rows], data.y[rows]
    return Scaling(x.mean(axis=0), _spread(x), y.mean(axis=0), _spread(y))


def _spread(values: Values) -> Values:
    # Asked of the range: rounding leaves a constant column a standard deviation of 1e-17 or so.
    return np.where(np.ptp(values, axis=0) == 0, 1.0, values.std(axis=0))


def train(data: Set, head: Head, trials: Sequence[Trial], *, held_out: bool, seed: int = 0) -> list[Trained]:
    """Train all of `trials`, in their order.

    held_out: train without the validation rows, and stop early by them; otherwise on all train rows for `epochs` epochs.
    A network's weights and batches depend on its own trial and `seed` alone, not on what trains beside it; a variational one's
    draws do. Trials whose splits differ in length train apart.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, trial in enumerate(trials):
        split = data.splits[trial.split]
        groups.setdefault((len(split.train), len(split.validation)), []).append(i)
    threads = torch.get_num_threads()
    jobs = []
    for members in groups.values():
        size = min(head.block, max(_SMALLEST_BLOCK, -(-len(members) // threads)))
        # What lasts long together and first: low rates stop late.
        members.sort(key=lambda i: (-trials[i].epochs, trials[i].rate, i))
        jobs += [members[first : first + size] for first in range(0, len(members), size)]

    def trained(job: list[int]) -> list[Trained]:
        return _Block(data, head, [trials[i] for i in job], held_out=held_out, seed=seed).run()

    if threads == 1 or len(jobs) == 1:
        results = [trained(job) for job in jobs]
    else:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = list(pool.map(trained, jobs))
        torch.set_num_threads(threads)
    found = {i: one for job, block in zip(jobs, results, strict=True) for i, one in zip(job, block, strict=True)}
    return [found[i] for i in range(len(trials))]


def predictive(head: Head, tensors: Tensors, x: Values) -> Predictive:
    """Of one network, for x [inputs + 1, rows], standardised: [1, targets, rows]."""
    with torch.inference_mode():
        rows = torch.from_numpy(x.astype(np.float32)[None])
        return head.predictive(forward(tensors, rows, outputs=tensors["out"].shape[1] * head.predicting // sum(head.widths)))


class Adam:
    """Adam on [networks, parameters] with a rate for each network: [networks, 1] (Kingma and Ba 2015)."""

    def __init__(self, parameters: Tensor, rates: Tensor) -> None:
        self.rates, self.steps = rates, 0
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Changes `parameters` in place."""
        self.steps += 1
        correction = math.sqrt(1 - _SECOND**self.steps)
        self.first.lerp_(gradient, 1 - _FIRST)
        self.second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
        # Both corrections moved out of the large tensors: rate / (1 - first^n) * m / (sqrt(v) / correction + epsilon).
        denominator = self.second.sqrt().add_(_EPSILON * correction)
        parameters.addcdiv_(self.first * (self.rates * (-correction / (1 - _FIRST**self.steps))), denominator)

    def keep(self, chosen: Tensor) -> None:
        """Only the networks `chosen` remain."""
        self.rates, self.first, self.second = self.rates[chosen], self.first[chosen], self.second[chosen]


class _Network(torch.autograd.Function):
    """`forward` of paper_heads for x without gradient, with its hidden layer and that one's gradient in `scratch` [2, networks,
    units, rows]: to give new memory to both took a half of the time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, out: Tensor, bias: Tensor, x: Tensor, scratch: Tensor) -> Tensor:
        torch.bmm(hidden, x, out=scratch[0]).relu_()
        ctx.save_for_backward(out, x)
        ctx.scratch = scratch
        return torch.baddbmm(bias, out, scratch[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (gradient,), (out, x), (units, below) = gradients, ctx.saved_tensors, ctx.scratch
        torch.bmm(out.mT, gradient, out=below)
        torch.ops.aten.threshold_backward.grad_input(below, units, 0, grad_input=below)
        return torch.bmm(x, below.mT).mT, torch.bmm(gradient, units.mT), gradient.sum(dim=2, keepdim=True), None, None


class _Block:
    """Networks that train together; `number` says which of the trials they are."""

    def __init__(self, data: Set, head: Head, trials: list[Trial], *, held_out: bool, seed: int) -> None:
        self.head, self.targets, self.inputs = head, data.y.shape[1], data.x.shape[1] + 1
        self.generator = _generator(seed)
        used = sorted({trial.split for trial in trials})
        splits = [data.splits[s] for s in used]
        fit = [np.setdiff1d(split.train, split.validation) if held_out else split.train for split in splits]
        scales = [scaling(data, rows) for rows in fit]
        # Shuffled once by themselves, so that one order for all splits gives each batches of its own.
        orders = [torch.randperm(len(rows), generator=_generator(seed, s)).numpy() for s, rows in zip(used, fit, strict=True)]
        self.table = _stacked([s.table(data, rows[order]) for s, rows, order in zip(scales, fit, orders, strict=True)])
        self.batch = min(BATCH, self.table.shape[2])
        self.split = torch.tensor([used.index(trial.split) for trial in trials])
        self.number = torch.arange(len(trials))
        self.limit = torch.tensor([trial.epochs for trial in trials])
        self.scale = torch.from_numpy(np.stack([s.y_scale for s in scales])).float()[self.split].unsqueeze(2)
        self.held_out = (
            _stacked([s.table(data, split.validation) for s, split in zip(scales, splits, strict=True)])[self.split]
            if held_out
            else None
        )
        units = 100 if len(data.x) > LARGE_ROWS else 50
        self.scratch = torch.empty(2 * len(trials) * units * self.batch)
        starts = [self._start(trial, table, units, seed) for trial, table in zip(trials, self.table[self.split], strict=True)]
        trained, self.fixed = (
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*starts, strict=True)
        )
        self.shapes = {name: tensor.shape[1:] for name, tensor in trained.items()}
        self._set_flat(torch.cat([tensor.flatten(1) for tensor in trained.values()], dim=1))
        self.adam = Adam(self.flat, torch.tensor([[trial.rate] for trial in trials]))

    def _start(self, trial: Trial, table: Tensor, units: int, seed: int) -> Start:
        """One network, [1, ...] each: Xavier-uniform weights of each linear map alone, biases 0, and what the head adds."""
        generator = _generator(seed, *trial[:3])

        def xavier(fan_in: int, fan_out: int) -> Tensor:
            return (2 * torch.rand(1, fan_out, fan_in, generator=generator) - 1) * math.sqrt(6 / (fan_in + fan_out))

        hidden = torch.cat([xavier(self.inputs - 1, units), torch.zeros(1, units, 1)], dim=2)
        out = torch.cat([xavier(units, width * self.targets) for width in self.head.widths], dim=1)
        first_batch = table[None, : self.inputs - 1, : self.batch]
        trained, fixed = self.head.start(trial.method, first_batch, self.targets, generator)
        return Start({"hidden": hidden, "out": out, "bias": torch.zeros(1, out.shape[1], 1), **trained}, fixed)

    def _set_flat(self, flat: Tensor) -> None:
        """The trained tensors are views of one [networks, parameters], so that an update is a handful of calls."""
        self.flat = flat
        parts = torch.split(flat, [math.prod(shape) for shape in self.shapes.values()], dim=1)
        views = {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        self.trained = {name: view.detach().requires_grad_() for name, view in views.items()}
        self.tensors = {**self.trained, **self.fixed}

    def run(self) -> list[Trained]:
        """Until every network has reached its last epoch or its patience."""
        count = len(self.number)
        best, best_epoch = torch.full((count,), math.inf), torch.ones(count, dtype=torch.long)
        running = torch.ones(count, dtype=torch.bool)
        results: list[Trained | None] = [None] * count
        epoch = 0
        while len(self.number):
            epoch += 1
            self._epoch()
            late = running & (epoch >= self.limit)
            if self.held_out is None:
                best_epoch.fill_(epoch)
            else:
                found = self._score()
                best_epoch[found < best] = epoch
                best = torch.fmin(best, found)
                late |= running & (epoch - best_epoch >= PATIENCE)
            if not late.any():
                continue
            for i in late.nonzero().flatten().tolist():
                tensors = {name: tensor[i : i + 1].detach().clone() for name, tensor in self.tensors.items()}
                results[int(self.number[i])] = Trained(best[i].item(), int(best_epoch[i]), tensors)
            running &= ~late
            if running.sum() <= (1 - DROP) * len(running):
                self._keep(running)
                best, best_epoch, running = best[running], best_epoch[running], running[running]
        return [result for result in results if result is not None]

    def _epoch(self) -> None:
        rows = self.table.shape[2]
        order = torch.randperm(rows, generator=self.generator)
        for first in range(0, rows - self.batch + 1, self.batch):
            batch = self.table.index_select(2, order[first : first + self.batch]).index_select(0, self.split)
            output = self._output(batch[:, : self.inputs], outputs=None)
            loss = self.head.loss(self.tensors, output, batch[:, self.inputs :], self.generator)
            gradients = torch.autograd.grad(loss, list(self.trained.values()))
            with torch.no_grad():
                self.adam.step(self.flat, torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))

    @torch.no_grad()
    def _score(self) -> Tensor:
        assert self.held_out is not None
        total = torch.zeros(len(self.number))
        count = self.head.predicting * self.targets
        for part in torch.split(self.held_out, self.batch, dim=2):
            output = self._output(part[:, : self.inputs], outputs=count)
            total += score(self.head.predictive(output), part[:, self.inputs :], scale=self.scale).sum(dim=1)
        return total / self.held_out.shape[2]

    def _output(self, x: Tensor, *, outputs: int | None) -> Tensor:
        hidden, out, bias = self.tensors["hidden"], self.tensors["out"], self.tensors["bias"]
        shape = 2, len(hidden), hidden.shape[1], x.shape[2]
        return _Network.apply(hidden, out[:, :outputs], bias[:, :outputs], x, self.scratch[: math.prod(shape)].view(shape))  # type: ignore[no-any-return, no-untyped-call]

    def _keep(self, chosen: Tensor) -> None:
        self.number, self.split, self.limit, self.scale = (
            part[chosen] for part in (self.number, self.split, self.limit, self.scale)
        )
        self.held_out = None if self.held_out is None else self.held_out[chosen]
        self.fixed = {name: tensor[chosen] for name, tensor in self.fixed.items()}
        self.adam.keep(chosen)
        self._set_flat(self.flat[chosen])


def _stacked(tables: list[Values]) -> Tensor:
    return torch.from_numpy(np.stack(tables)).float()


def _generator(*of: float | str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(of).encode()))
