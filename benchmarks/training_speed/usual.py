"""The loop that everybody writes: a DataLoader, one model, Adam, one network after the other."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.training_speed.work import Work, features_of, made_up_table
from models.networks import Features
from training.config import NetworkOptions
from training.fit import FREQUENCY_SCALE

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}
_SMALLEST_VARIANCE = 1e-6


class PeriodicColumns(nn.Module):
    """x [n, features] -> itself beside an embedding of each of the first `columns` features (Gorishniy et al. 2022, PLR)."""

    def __init__(self, *, columns: int, frequencies: int, outputs: int, frequency_scale: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(columns, frequencies) * frequency_scale)
        bound = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(torch.empty(columns, 2 * frequencies, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(columns, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, features] -> [n, features + columns * outputs]."""
        angle = 2 * math.pi * self.frequency * x[:, : len(self.frequency)].unsqueeze(-1)
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1)
        embedded = functional.silu(torch.einsum("nck,cko->nco", waves, self.weight) + self.bias)
        return torch.cat([x, embedded.flatten(1)], dim=1)


def model(options: NetworkOptions, *, features: int, embedded: int) -> nn.Sequential:
    """One member of the product's network, written the usual way: [n, features] -> [n, 2], mean and raw variance.

    embedded: so many of the first features have a periodic embedding.
    """
    layers: list[nn.Module] = []
    inputs = features
    if options.frequencies:
        layers.append(
            PeriodicColumns(
                columns=embedded,
                frequencies=options.frequencies,
                outputs=options.embedding_outputs,
                frequency_scale=options.frequency_scale or FREQUENCY_SCALE,
            )
        )
        inputs += embedded * options.embedding_outputs
    for _ in range(options.depth):
        layers += [nn.Linear(inputs, options.width), ACTIVATIONS[options.activation]()]
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
        inputs = options.width
    return nn.Sequential(*layers, nn.Linear(inputs, 2))


def one_after_another(job: Work) -> list[nn.Sequential]:
    """Does the work in the usual loop; the networks, each at its best epoch."""
    raw, targets = made_up_table(job.rows + job.held_out, job.columns)
    x = Features(features_of(raw[: job.rows], components=job.components))(torch.from_numpy(raw))
    y = torch.from_numpy(targets).float()
    return [_trained(x, y, job) for _ in range(job.members)]


def _trained(x: Tensor, y: Tensor, job: Work) -> nn.Sequential:
    rows, beta = job.rows, job.options.beta
    loader = DataLoader(TensorDataset(x[:rows], y[:rows]), batch_size=job.batch_rows, shuffle=True, drop_last=True)
    network = model(job.options, features=x.shape[1], embedded=job.columns)
    optimiser = torch.optim.Adam(network.parameters(), lr=job.options.learning_rate)
    best, best_state = math.inf, network.state_dict()
    for _ in range(job.epochs):
        network.train()
        for x_batch, y_batch in loader:
            nll, variance = _nll(network, x_batch, y_batch)
            optimiser.zero_grad()
            (variance.detach() ** beta * nll if beta else nll).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        network.eval()
        with torch.no_grad():
            held_out = _nll(network, x[rows:], y[rows:])[0].mean().item()
        if held_out < best:
            best, best_state = held_out, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)
    return network


def _nll(network: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Elementwise negative log-likelihood and variance, [n, 1] each."""
    mean, raw = network(x).chunk(2, dim=1)
    variance = functional.softplus(raw) + _SMALLEST_VARIANCE
    return 0.5 * (variance.log() + (y - mean).square() / variance), variance
