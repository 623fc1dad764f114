"""The network: raw rows -> features, embeddings, trunk and head of a stacked ensemble.

All members live in one network: every weight has a leading axis of members, and one batched matmul serves them all.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads import Family, Head, Prediction

SMOOTH_CLIP = 3.0
"""Standardised values are squeezed smoothly into (-3, 3): an outlier keeps its sign but loses its leverage (RealMLP, 2024)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": functional.silu, "relu": functional.relu, "tanh": torch.tanh}


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """How raw columns become features. Indices are columns of `x`; lists of one group have equal lengths."""

    scaled: list[int]
    """Numeric, boolean and datetime columns: (value - centre) / scale, smoothly clipped; missing counts as the centre."""
    centre: list[float]
    scale: list[float]
    embedded: list[int]
    """Positions in `scaled` of the columns that get a numeric embedding."""
    indicated: list[int]
    """Columns with a feature of their own that says 'missing'."""
    one_hot: list[int]
    """One entry a category: its column ..."""
    one_hot_code: list[float]
    """... and its code. A missing or unknown category is all zeros."""
    cyclic: list[int]
    """One entry a cycle: its datetime column ..."""
    cycle_seconds: list[float]
    """... and its period; it becomes a sine and a cosine, both 0 where missing."""
    component_weight: list[list[float]] = field(default_factory=list)
    """One entry a principal component of the scaled columns: its weights [components, scaled], to unit variance ..."""
    component_centre: list[float] = field(default_factory=list)
    """... and its mean; clipped again. At unit variance, small differences between correlated columns are visible."""

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.scaled) + len(self.component_centre) + len(self.indicated) + len(self.one_hot) + 2 * len(self.cyclic)


def smoothly_clipped(values: Tensor) -> Tensor:
    """`values` squeezed into (-SMOOTH_CLIP, SMOOTH_CLIP); small ones stay as they are."""
    return values / (1 + (values / SMOOTH_CLIP).square()).sqrt()


class Features(nn.Module):
    """x [n, columns] float64, raw -> [n, statistics.width] float32. Casts to float32 only after standardising."""

    scaled: Tensor
    centre: Tensor
    scale: Tensor
    component_weight: Tensor
    component_centre: Tensor
    indicated: Tensor
    one_hot: Tensor
    one_hot_code: Tensor
    cyclic: Tensor
    cycle_seconds: Tensor

    def __init__(self, statistics: FeatureStatistics) -> None:
        super().__init__()
        self.statistics = statistics
        for name in ("scaled", "indicated", "one_hot", "cyclic"):
            self.register_buffer(name, torch.tensor(getattr(statistics, name), dtype=torch.int64))
        for name in ("centre", "scale", "component_weight", "component_centre", "one_hot_code", "cycle_seconds"):
            self.register_buffer(name, torch.tensor(getattr(statistics, name), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled columns first, in order; then components, indicators, one-hot, cycles."""
        parts = []
        if self.statistics.scaled:
            standardised = (x.index_select(1, self.scaled) - self.centre) / self.scale
            known = torch.where(standardised.isnan(), 0.0, standardised).clamp(-1e6, 1e6)  # infinity has no ratio
            clipped = smoothly_clipped(known)
            parts.append(clipped.float())
            if self.statistics.component_centre:
                parts.append(smoothly_clipped(clipped @ self.component_weight.T - self.component_centre).float())
        if self.statistics.indicated:
            parts.append(x.index_select(1, self.indicated).isnan().float())
        if self.statistics.one_hot:
            parts.append(x.index_select(1, self.one_hot).eq(self.one_hot_code).float())
        if self.statistics.cyclic:
            turns = x.index_select(1, self.cyclic) / self.cycle_seconds
            angle = (2 * math.pi * (turns - turns.floor())).float()
            known = (~angle.isnan()).float()
            angle = torch.where(angle.isnan(), 0.0, angle)
            parts += [angle.sin() * known, angle.cos() * known]
        return torch.cat(parts, dim=-1)


class PeriodicEmbedding(nn.Module):
    """Each numeric feature z -> SiLU(S sin(2 pi c z) + C cos(2 pi c z) + b) with learned frequencies c, per member and feature.

    Source: Gorishniy et al. 2022, 'On embeddings for numerical features' (PLR); c starts normal with std `frequency_scale`.
    """

    def __init__(self, *, members: int, features: int, frequencies: int, outputs: int, frequency_scale: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(members, features, 1, frequencies) * frequency_scale)
        bound = 1 / math.sqrt(2 * frequencies)
        self.sine_weight = nn.Parameter(torch.empty(members, features, frequencies, outputs).uniform_(-bound, bound))
        self.cosine_weight = nn.Parameter(torch.empty(members, features, frequencies, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, features, 1, outputs).uniform_(-bound, bound))

    def forward(self, z: Tensor) -> Tensor:
        """z: [members or 1, features, n] -> [members, features * outputs, n]."""
        angle = (2 * math.pi * self.frequency).mT * z.unsqueeze(2)  # [members, features, frequencies, n]
        sine, cosine = _Waves.apply(angle)  # type: ignore[no-untyped-call]
        embedded: Tensor = functional.silu(self.sine_weight.mT @ sine + self.cosine_weight.mT @ cosine + self.bias.mT)
        return embedded.flatten(1, 2)


class _Waves(torch.autograd.Function):
    """Sine and cosine of an angle; each is the other's derivative, which PyTorch would compute again."""

    @staticmethod
    def forward(context: Any, angle: Tensor) -> tuple[Tensor, Tensor]:
        waves = angle.sin(), angle.cos()
        context.save_for_backward(*waves)
        return waves

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        sine, cosine = context.saved_tensors
        angle_gradient: Tensor = (gradients[0] * cosine).addcmul_(gradients[1], sine, value=-1)
        return angle_gradient


class StackedLinear(nn.Module):
    """[members or 1, inputs, n] -> [members, outputs, n], a linear map of its own for each member."""

    def __init__(self, *, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        """One batched matmul; `inputs` shared by all members are broadcast."""
        return torch.baddbmm(self.bias.mT, self.weight.mT, inputs.expand(len(self.weight), -1, -1))


class Dropout(nn.Module):
    """In training, zeroes a share of the values and scales the others up.

    The share is the nearest multiple of 1/256, and at most 255/256. A random byte decides each value: torch's own dropout
    takes three times as long, 17 % of the default network's training.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropped = min(255, round(256 * share))

    def forward(self, values: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or not self.dropped:
            return values
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device).random_(-(2**63), 2**63 - 1)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= self.dropped
        return values * (kept * (256 / (256 - self.dropped)))


class StackedNetwork(nn.Module):
    """`members` independent networks as one: features -> mean and std in units of the standardised target.

    frequencies 0 means no numeric embedding; activation: "silu", "relu" or "tanh".
    """

    embedded: Tensor

    def __init__(
        self,
        *,
        statistics: FeatureStatistics,
        members: int,
        targets: int,
        family: Family,
        heteroscedastic: bool = True,
        width: int,
        depth: int,
        activation: str = "silu",
        dropout: float = 0.0,
        frequencies: int,
        embedding_outputs: int,
        frequency_scale: float = 0.3,
        minimum_std: float = 1e-3,
        maximum_std: float = 10.0,
    ) -> None:
        super().__init__()
        self.features = Features(statistics)
        self.embedding: PeriodicEmbedding | None = None
        inputs = statistics.width
        if frequencies and statistics.embedded:
            self.embedding = PeriodicEmbedding(
                members=members,
                features=len(statistics.embedded),
                frequencies=frequencies,
                outputs=embedding_outputs,
                frequency_scale=frequency_scale,
            )
            self.register_buffer("embedded", torch.tensor(statistics.embedded))
            inputs += len(statistics.embedded) * embedding_outputs
        self.layers = nn.ModuleList(
            StackedLinear(members=members, inputs=inputs if layer == 0 else width, outputs=width) for layer in range(depth)
        )
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)
        self.head = Head(
            members=members,
            width=width,
            targets=targets,
            family=family,
            heteroscedastic=heteroscedastic,
            minimum_std=minimum_std,
            maximum_std=maximum_std,
        )

    def forward(self, features: Tensor, *, detach_scale: bool = False) -> Prediction:
        """features: [members, n, width], or [1, n, width] for rows that all members share -> [members, n, targets]."""
        # Inside, rows are the last axis: the embedding needs no transposed copy, and products with few outputs, which the
        # embedding and the head have, are several times faster (a third of the default network's training).
        hidden = features.mT.contiguous()
        if self.embedding is not None:
            embedded = self.embedding(hidden.index_select(1, self.embedded))
            hidden = torch.cat([hidden.expand(len(embedded), -1, -1), embedded], dim=1)
        for layer in self.layers:
            hidden = self.dropout(self.activation(layer(hidden)))
        prediction: Prediction = self.head(hidden.mT, detach_scale=detach_scale)
        return prediction

    @torch.no_grad()
    def part(self, members: slice) -> "StackedNetwork":
        """A copy with some of the members."""
        chosen = copy.deepcopy(self)
        for parameter in chosen.parameters():  # every one has the members as its first axis
            parameter.data = parameter.data[members].clone()
        return chosen


class RawUnitsNetwork(nn.Module):
    """What is exported: raw x -> the members' mean and std of the transformed target, float64 [members, n, targets]."""

    centre: Tensor
    scale: Tensor

    def __init__(self, network: StackedNetwork, *, centre: list[float], scale: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("centre", torch.tensor(centre, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [n, columns] float64."""
        prediction = self.network(self.network.features(x).unsqueeze(0))
        return self.centre + self.scale * prediction.mean.double(), self.scale * prediction.std.double()
