"""Fit all members of the ensemble at once, as one stacked network."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.heads import Prediction, degrees_of_freedom
from models.losses import Loss, loss
from models.networks import FeatureStatistics, StackedNetwork
from training.config import NetworkOptions
from training.errors import FitError

WARM_UP = 0.05
"""Share of the updates in which the learning rate rises, before the cosine takes it to 0."""
_EVALUATION_ROWS = 8192
"""Rows of one evaluation pass: bounds the memory that the early-stopping rows take."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Progress after an epoch, averaged over members and targets, on the early-stopping rows.

    nll in nats and rmse in units of the target's standard deviation over the fit rows (after the target's transform).
    """

    number: int
    epochs: int
    nll: float
    rmse: float
    best_nll: float
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
    parameters: int


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
    """Fit one member on each of `fit_rows`, and keep each at the epoch with its lowest plain NLL on its `stop_rows`.

    x: [n, columns] raw. y: [n, targets], transformed but not standardised. weights: [n] or None. All rows may be given; only
    those named are looked at. Deterministic for a seed on one machine. Raises FitError where the loss is not finite.
    """
    device = resolved_device(options.device)
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
        dropout=options.dropout,
        frequencies=options.frequencies,
        embedding_outputs=options.embedding_outputs,
        frequency_scale=options.frequency_scale,
        minimum_std=options.minimum_std,
        maximum_std=options.maximum_std,
    ).to(device)
    data = _Rows(
        features=_features(network, x, device),
        y=torch.from_numpy(((y - centre) / scale).astype(np.float32)).to(device),
        weights=None if weights is None else torch.from_numpy((weights / weights[used].mean()).astype(np.float32)).to(device),
    )
    history = _Trainer(network, criterion, data, options).run(
        _padded(fit_rows, device), _padded(stop_rows, device), on_epoch or (lambda _: None)
    )
    network.eval()
    constant = network.head.constant
    with torch.no_grad():
        freedom = None if constant is None else degrees_of_freedom(constant).mean(dim=(0, 1)).tolist()
    return Fitted(
        network=network.cpu(),
        centre=centre.tolist(),
        scale=scale.tolist(),
        degrees_of_freedom=freedom,
        history=history,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def resolved_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda`. Raises FitError where CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise FitError("device cuda was asked for, but PyTorch finds no CUDA GPU here: use --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Rows:
    features: Tensor
    y: Tensor
    weights: Tensor | None

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows `index` [members, n], each [members, n, ...]."""
        return self.features[index], self.y[index], None if self.weights is None else self.weights[index].unsqueeze(-1)


class _Trainer:
    """One run of stacked training: the optimiser, its schedule, and the best state of each member."""

    def __init__(self, network: StackedNetwork, criterion: Loss, data: _Rows, options: NetworkOptions) -> None:
        self.network, self.criterion, self.data, self.options = network, criterion, data, options
        matrices = [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]
        others = [parameter for name, parameter in network.named_parameters() if not name.endswith("weight")]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)

    def run(self, fit_rows: Tensor, stop_rows: Tensor, on_epoch: Callable[[Epoch], None]) -> list[Epoch]:
        """fit_rows, stop_rows: [members, most rows]. Leaves each member at its best epoch."""
        options, members = self.options, fit_rows.shape[0]
        batch_rows = min(options.batch_rows or automatic_batch_rows(fit_rows.shape[1]), fit_rows.shape[1])
        batches = max(1, fit_rows.shape[1] // batch_rows)  # what is left over waits for the next epoch's order
        epochs = options.epochs or automatic_epochs(batches)
        patience = options.patience or max(10, epochs // 4)
        best = torch.full((members,), math.inf, device=fit_rows.device)
        best_state = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        history: list[Epoch] = []
        start, last_gain = time.perf_counter(), 0
        for epoch in range(1, epochs + 1):
            self._epoch(fit_rows, batch_rows, first_update=(epoch - 1) * batches, updates=epochs * batches)
            nll, rmse = self.held_out(stop_rows)
            if not torch.isfinite(nll).all():
                raise FitError(
                    f"the loss became {nll.sum().item()} in epoch {epoch}: nothing was saved. Try a lower --learning-rate (now "
                    f"{options.learning_rate:g}), a larger --minimum-std (now {options.minimum_std:g}), --loss student_t for "
                    "heavy tails, or --transform for a skewed target"
                )
            gained = nll < best
            best = torch.where(gained, nll, best)
            for name, parameter in self.network.named_parameters():
                mask = gained.view(-1, *[1] * (parameter.dim() - 1))
                best_state[name] = torch.where(mask, parameter.detach(), best_state[name])
            last_gain = epoch if gained.any() else last_gain
            seconds = time.perf_counter() - start
            history.append(
                Epoch(
                    number=epoch,
                    epochs=epochs,
                    nll=nll.mean().item(),
                    rmse=rmse.mean().item(),
                    best_nll=best.mean().item(),
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

    def _epoch(self, rows: Tensor, batch_rows: int, *, first_update: int, updates: int) -> None:
        self.network.train()
        # One order for all members: _padded has shuffled each member's rows by themselves, so their batches differ.
        order = torch.randperm(rows.shape[1], device=rows.device)
        for number in range(max(1, rows.shape[1] // batch_rows)):
            self._set_learning_rate((first_update + number) / updates)
            features, y, weights = self.data[rows[:, order[number * batch_rows : (number + 1) * batch_rows]]]
            prediction = self.network(features, detach_scale=self.criterion.detach_scale)
            losses = self.criterion.elementwise(y, prediction, self.criterion.family)
            losses = losses if weights is None else losses * weights
            self.optimiser.zero_grad(set_to_none=True)
            losses.sum(dim=2).mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
        if self.criterion.residual_std:
            self.network.head.set_constant_std(self._residual_scale(rows[:, order[:_EVALUATION_ROWS]]))

    def _set_learning_rate(self, progress: float) -> None:
        factor = (
            progress / WARM_UP if progress < WARM_UP else 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.learning_rate * factor

    @torch.no_grad()
    def held_out(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Plain NLL (summed over targets) and RMSE of each member on its `rows` [members, n]: [members] each."""
        nll = torch.zeros(rows.shape[0], device=rows.device)
        squared, total = torch.zeros_like(nll), torch.zeros_like(nll)
        for _, y, weights, prediction in self._predictions(rows):
            weights = torch.ones_like(y[..., :1]) if weights is None else weights
            nll -= (weights * self.criterion.family.log_density(y, prediction)).sum(dim=(1, 2))
            squared += (weights * (y - prediction.mean).square()).mean(dim=2).sum(dim=1)
            total += weights.sum(dim=(1, 2))
        return nll / total, (squared / total).sqrt()

    @torch.no_grad()
    def _residual_scale(self, rows: Tensor) -> Tensor:
        """Root mean squared residual of each member on its `rows` [members, n]: [members, targets]."""
        squared, total = torch.zeros(()), torch.zeros(())
        for _, y, weights, prediction in self._predictions(rows):
            weights = torch.ones_like(y[..., :1]) if weights is None else weights
            squared = squared.to(y) + (weights * (y - prediction.mean).square()).sum(dim=1)
            total = total.to(y) + weights.sum(dim=1)
        return (squared / total).sqrt()

    def _predictions(self, rows: Tensor) -> "list[tuple[Tensor, Tensor, Tensor | None, Prediction]]":
        self.network.eval()
        batches = (self.data[part] for part in torch.split(rows, _EVALUATION_ROWS, dim=1))
        return [(features, y, weights, self.network(features)) for features, y, weights in batches]


def automatic_batch_rows(rows: int) -> int:
    """Rows a batch, growing with the table (the steps of TabM's default, Gorishniy et al. 2024)."""
    for limit, batch in ((2_800, 32), (4_500, 64), (6_400, 128), (32_000, 256), (108_000, 512)):
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


def _padded(rows: list[NDArray[np.int64]], device: torch.device) -> Tensor:
    """[members, most rows]: each member's rows in an order of its own; shorter lists begin again."""
    most = max(len(one) for one in rows)
    shuffled = [torch.from_numpy(one)[torch.randperm(len(one))] for one in rows]
    return torch.stack([one.repeat(-(-most // len(one)))[:most] for one in shuffled]).to(device)
