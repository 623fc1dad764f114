"""Fit all members of the ensemble at once, as one stacked network."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.heads import Prediction, degrees_of_freedom
from models.losses import Loss, loss, normal_crps
from models.networks import FeatureStatistics, StackedNetwork
from training.config import NetworkOptions
from training.errors import FitError

WARM_UP = 0.05
"""Share of the updates in which the learning rate rises, before the cosine takes it to 0."""
CONSTANT_SPEED = 30.0
"""How much faster a family's constant learns than the weights: Adam moves a parameter by about the learning rate an update, and
degrees of freedom have several units to go. Noise with 2.5 of them was fitted with 9.4 at speed 1, with 2.8 at 30."""
FREQUENCY_SCALE = 0.3
"""The standard deviation of an embedding's initial frequencies where neither the user nor a trial says another."""
_LARGEST_TARGET = 1e100
_SMALLEST_SPREAD = 1e-100
_PARALLEL_WORK = 2**17
"""Members x batch rows x width from which threads pay. Measured on two cores, 8 members of width 128: batches of 32 rows take
the same time with one thread as with two, of 256 rows 1.15x, of 1024 rows 1.4x; and many threads on small work only wait."""
_LEAST_GAIN = 1e-3
"""Relative gain in the networks' average CRPS that resets the patience: among dozens, one always gains a little."""
_EVALUATION_ROWS = 512
"""Rows of one evaluation pass: bounds the memory that the early-stopping rows take; 8192 take 1.5x the time (cache)."""
_RESIDUAL_ROWS = 8192
"""Rows whose residuals set the one std of mse after an epoch."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Progress after an epoch, averaged over networks, on the early-stopping rows.

    nll in nats, summed over targets; rmse and crps over targets in units of their standard deviation over the fit rows (after
    the transform). best_crps: mean over networks of each one's lowest CRPS so far.
    """

    number: int
    epochs: int
    nll: float
    rmse: float
    crps: float
    best_crps: float
    seconds: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted ensemble: every member at its own best epoch."""

    network: StackedNetwork
    centre: list[float]
    scale: list[float]
    degrees_of_freedom: list[float] | None
    history: list[Epoch]

    @property
    def parameters(self) -> int:
        """The number of weights of all members together."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def part(self, members: slice) -> "Fitted":
        """The same with some of the members."""
        return replace(self, network=self.network.part(members))


def fit(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    statistics: FeatureStatistics,
    fit_rows: list[NDArray[np.int64]],
    stop_rows: list[NDArray[np.int64]],
    options: NetworkOptions,
    weights: NDArray[np.float64] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """Fit one member on each of `fit_rows`, and keep each at the epoch with its lowest CRPS on its `stop_rows`.

    Not its lowest NLL: that ends a member's training at its first overconfident answers, which the mixture over members and
    the scale factor mend, while its mean is still getting better (docs/decisions/007).

    x: [n, columns] raw. y: [n, targets], transformed but not standardised. weights: [n] or None. All rows may be given; only
    those named are looked at. A dropout of None is 0 here, a frequency_scale of None FREQUENCY_SCALE: training/trial.py
    chooses. Deterministic for a seed on one machine. Raises FitError where the loss is not finite, and where the fit cannot
    begin: a target with one value only, a member without a row of positive weight.
    """
    device = resolved_device(options.device)
    _check(y, weights, fit_rows, stop_rows)
    torch.manual_seed(options.seed)
    members, targets = len(fit_rows), y.shape[1]
    used = np.unique(np.concatenate([*fit_rows]))
    share = None if weights is None else weights[used] / weights[used].sum()
    centre = np.average(y[used], axis=0, weights=share)
    scale = np.sqrt(np.average((y[used] - centre) ** 2, axis=0, weights=share))
    criterion = loss(options.loss, beta=options.beta)
    network = StackedNetwork(
        statistics=statistics,
        members=members,
        targets=targets,
        family=criterion.family,
        heteroscedastic=criterion.heteroscedastic,
        width=options.width,
        depth=options.depth,
        activation=options.activation,
        dropout=options.dropout or 0.0,
        frequencies=options.frequencies,
        embedding_outputs=options.embedding_outputs,
        frequency_scale=options.frequency_scale or FREQUENCY_SCALE,
        minimum_std=options.minimum_std,
        maximum_std=options.maximum_std,
    ).to(device)
    data = _Rows(
        features=_features(network, x, device),
        y=torch.from_numpy(((y - centre) / scale).astype(np.float32)).to(device),
        weights=None if weights is None else torch.from_numpy((weights / weights[used].mean()).astype(np.float32)).to(device),
    )
    threads = torch.get_num_threads()
    try:
        history = _Trainer(network, criterion, data, options).run(
            _padded(fit_rows, device), _padded(stop_rows, device), on_epoch or (lambda _: None)
        )
    finally:
        torch.set_num_threads(threads)
    constant = network.head.constant
    with torch.no_grad():
        freedom = None if constant is None else degrees_of_freedom(constant).mean(dim=(0, 1)).tolist()
    return Fitted(
        network=network.cpu(),
        centre=centre.tolist(),
        scale=scale.tolist(),
        degrees_of_freedom=freedom,
        history=history,
    )


def resolved_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda`. Raises FitError where CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise FitError("device cuda was asked for, but PyTorch finds no CUDA GPU here: use --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _check(
    y: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    fit_rows: list[NDArray[np.int64]],
    stop_rows: list[NDArray[np.int64]],
) -> None:
    used = np.unique(np.concatenate(fit_rows))
    if weights is not None:
        for use, lists in (("fit", fit_rows), ("early-stopping", stop_rows)):
            idle = [member for member, rows in enumerate(lists) if not weights[rows].any()]
            if idle:
                raise FitError(f"all {use} rows of member {idle[0]} have weight 0: give more rows a weight, or use fewer folds")
        used = used[weights[used] > 0]
    if np.abs(y[used]).max() > _LARGEST_TARGET:
        raise FitError(f"a target reaches {np.abs(y[used]).max():g}, whose square has no float64: give it in a larger unit")
    spread = np.ptp(y[used], axis=0)
    tiny = spread[(spread > 0) & (spread < _SMALLEST_SPREAD)]
    if len(tiny):
        raise FitError(f"a target varies by {tiny[0]:g}, whose square has no float64: give it in a smaller unit")
    constant = np.flatnonzero(spread == 0)
    if len(constant):
        raise FitError(
            f"target {constant[0] + 1} of {y.shape[1]} is {y[used[0], constant[0]]:g} in all {len(used)} fit rows, so there is "
            "nothing to learn: give rows in which it varies, or another --seed"
        )


@dataclass(frozen=True)
class _Rows:
    features: Tensor
    y: Tensor
    weights: Tensor | None

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows `index` [members, n], each [members, n, ...]."""
        return self.features[index], self.y[index], None if self.weights is None else self.weights[index].unsqueeze(-1)


class _Lists(NamedTuple):
    """Row numbers [members, most rows], padded to equal length by repetition.

    once: [members, most rows, 1], 1 for original entries, 0 for padding.
    """

    rows: Tensor
    once: Tensor

    def part(self, index: Tensor | slice) -> "_Lists":
        """Columns `index` of both."""
        return _Lists(self.rows[:, index], self.once[:, index])


class _Trainer:
    """One run of stacked training: the optimiser, its schedule, and the best state of each member."""

    def __init__(self, network: StackedNetwork, criterion: Loss, data: _Rows, options: NetworkOptions) -> None:
        self.network, self.criterion, self.data, self.options = network, criterion, data, options
        named = dict(network.named_parameters())
        constant = [named.pop(name) for name in list(named) if name == "head.constant"]
        matrices = [named.pop(name) for name in list(named) if name.endswith("weight")]
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay, "speed": 1.0},
            {"params": constant, "weight_decay": 0.0, "speed": CONSTANT_SPEED},
            {"params": list(named.values()), "weight_decay": 0.0, "speed": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)

    def run(self, fit_rows: _Lists, stop_rows: _Lists, on_epoch: Callable[[Epoch], None]) -> list[Epoch]:
        """Leaves each member at its best epoch."""
        options = self.options
        members, most = fit_rows.rows.shape
        epochs, batch_rows = epochs_and_batch(options, most)
        batches = most // batch_rows  # what is left over waits for the next epoch's order
        patience = options.patience or max(10, epochs // 4)
        if members * batch_rows * options.width < _PARALLEL_WORK:
            torch.set_num_threads(1)
        best = torch.full((members,), math.inf, device=fit_rows.rows.device)
        best_state = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        history: list[Epoch] = []
        start, last_gain, reference = time.perf_counter(), 0, math.inf
        for epoch in range(1, epochs + 1):
            self._epoch(fit_rows, batch_rows, first_update=(epoch - 1) * batches, updates=epochs * batches)
            nll, rmse, crps = self.held_out(stop_rows)
            if not torch.isfinite(nll).all():
                raise FitError(
                    f"the loss became {nll.sum().item()} in epoch {epoch}: nothing was saved. Try a lower --learning-rate (now "
                    f"{options.learning_rate:g}), a larger --minimum-std (now {options.minimum_std:g}), --loss student_t for "
                    "heavy tails, or --transform for a skewed target"
                )
            gained = crps < best
            best = torch.where(gained, crps, best)
            for name, parameter in self.network.named_parameters():
                mask = gained.view(-1, *[1] * (parameter.dim() - 1))
                best_state[name] = torch.where(mask, parameter.detach(), best_state[name])
            if best.mean().item() < (1 - _LEAST_GAIN) * reference:
                last_gain, reference = epoch, best.mean().item()
            seconds = time.perf_counter() - start
            history.append(
                Epoch(
                    number=epoch,
                    epochs=epochs,
                    nll=nll.mean().item(),
                    rmse=rmse.mean().item(),
                    crps=crps.mean().item(),
                    best_crps=best.mean().item(),
                    seconds=seconds,
                    seconds_left=seconds / epoch * (epochs - epoch),
                )
            )
            on_epoch(history[-1])
            if epoch - last_gain >= patience:
                break
        self.network.load_state_dict(best_state, strict=False)
        if self.criterion.residual_std:
            self.network.head.set_constant_std(self._residual_scale(fit_rows))
        return history

    def _epoch(self, lists: _Lists, batch_rows: int, *, first_update: int, updates: int) -> None:
        self.network.train()
        rows = lists.rows
        # One order for all members: _padded has shuffled each member's rows by themselves, so their batches differ.
        order = torch.randperm(rows.shape[1], device=rows.device)
        for number in range(rows.shape[1] // batch_rows):
            self._set_learning_rate((first_update + number + 1) / (updates + 1))
            features, y, weights = self.data[rows[:, order[number * batch_rows : (number + 1) * batch_rows]]]
            prediction = self.network(features, detach_scale=self.criterion.detach_scale)
            losses = self.criterion.elementwise(y, prediction, self.criterion.family)
            losses = losses if weights is None else losses * weights
            self.optimiser.zero_grad(set_to_none=True)
            losses.sum(dim=2).mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
        if self.criterion.residual_std:
            self.network.head.set_constant_std(self._residual_scale(lists.part(slice(_RESIDUAL_ROWS))))

    def _set_learning_rate(self, progress: float) -> None:
        factor = (
            progress / WARM_UP if progress < WARM_UP else 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.learning_rate * factor * group["speed"]

    @torch.no_grad()
    def held_out(self, lists: _Lists) -> tuple[Tensor, Tensor, Tensor]:
        """Plain NLL (summed over targets), RMSE and CRPS of each member on its own rows: [members] each."""
        nll = torch.zeros(len(lists.rows), device=lists.rows.device)
        squared, crps, total = torch.zeros_like(nll), torch.zeros_like(nll), torch.zeros_like(nll)
        for y, weights, prediction in self._predictions(lists):
            nll -= (weights * self.criterion.family.log_density(y, prediction)).sum(dim=(1, 2))
            squared += (weights * (y - prediction.mean).square()).mean(dim=2).sum(dim=1)
            crps += (weights * normal_crps(y, prediction)).mean(dim=2).sum(dim=1)
            total += weights.sum(dim=(1, 2))
        return nll / total, (squared / total).sqrt(), crps / total

    @torch.no_grad()
    def _residual_scale(self, lists: _Lists) -> Tensor:
        """Root mean squared residual of each member on its own rows: [members, targets]."""
        squared = torch.zeros(len(lists.rows), self.data.y.shape[1], device=lists.rows.device)
        total = torch.zeros(len(lists.rows), 1, device=lists.rows.device)
        for y, weights, prediction in self._predictions(lists):
            squared += (weights * (y - prediction.mean).square()).sum(dim=1)
            total += weights.sum(dim=1)
        return (squared / total).sqrt()

    def _predictions(self, lists: _Lists) -> Iterator[tuple[Tensor, Tensor, Prediction]]:
        """y, weights [members, n, 1] and prediction for all rows, part by part; padding has weight 0."""
        self.network.eval()
        for first in range(0, lists.rows.shape[1], _EVALUATION_ROWS):
            rows, once = lists.part(slice(first, first + _EVALUATION_ROWS))
            features, y, weights = self.data[rows]
            yield y, once if weights is None else once * weights, self.network(features)


def epochs_and_batch(options: NetworkOptions, rows: int) -> tuple[int, int]:
    """Epochs and rows a batch for so many fit rows."""
    batch_rows = min(options.batch_rows or automatic_batch_rows(rows), rows)
    return options.epochs or automatic_epochs(rows // batch_rows), batch_rows


def automatic_batch_rows(rows: int) -> int:
    """Rows a batch, growing with the table (the steps of TabM's default, Gorishniy et al. 2024, from 64)."""
    for limit, batch in ((500, 32), (4_500, 64), (6_400, 128), (32_000, 256), (108_000, 512)):
        if rows < limit:
            return batch
    return 1024


def automatic_epochs(batches: int) -> int:
    """Epochs for about 3 000 updates on a small table; never under 12, so that a large one is seen often enough."""
    return min(400, max(12, round(3_000 / batches)))


def _features(network: StackedNetwork, x: NDArray[np.float64], device: torch.device) -> Tensor:
    """All rows' features, float32, once: [n, width] on the device."""
    with torch.no_grad():
        parts = [network.features(torch.from_numpy(x[first : first + 65536]).to(device)) for first in range(0, len(x), 65536)]
    return torch.cat(parts)


def _padded(rows: list[NDArray[np.int64]], device: torch.device) -> _Lists:
    """Each member's rows in an order of its own."""
    most = max(len(one) for one in rows)
    shuffled = [torch.from_numpy(one)[torch.randperm(len(one))] for one in rows]
    repeated = torch.stack([one.repeat(-(-most // len(one)))[:most] for one in shuffled])
    once = torch.arange(most) < torch.tensor([[len(one)] for one in rows])
    return _Lists(repeated.to(device), once.unsqueeze(-1).float().to(device))
