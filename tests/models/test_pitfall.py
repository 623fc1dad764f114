"""The pitfall of heteroscedastic NLL, and that beta-NLL mends it: Seitzer et al. 2022, Fig. 1.

The paper's network (tanh, 2 x 128, a mean and a variance head, Adam, batches of 100) on its 1 000 points of
0.4 sin(2 pi x) + 0.01 e. The paper trains for 10^7 updates; CI can pay 12 000, so the first layer starts with its kinks spread
over [0, 12], and the rate falls by a cosine. All networks are members of one stack, half of them of each loss.
"""

import math

import torch
from torch import nn

from models.heads import FAMILIES, Head, Prediction
from models.losses import beta_nll, nll
from models.networks import StackedLinear
from training.datasets import dataset

UPDATES = 12_000
MEMBERS = 6


class PaperNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = StackedLinear(members=MEMBERS, inputs=1, outputs=128)
        self.second = StackedLinear(members=MEMBERS, inputs=128, outputs=128)
        self.head = Head(
            members=MEMBERS,
            width=128,
            targets=1,
            family=FAMILIES["gaussian"],
            heteroscedastic=True,
            minimum_std=1e-4,
            maximum_std=10,
        )
        nn.init.uniform_(self.first.weight, -1.5, 1.5)
        self.first.bias.data = -12 * torch.rand(MEMBERS, 1, 128) * self.first.weight.data
        nn.init.zeros_(self.second.bias)
        for weight in (self.second.weight, self.head.mean_weight, self.head.scale_weight):
            xavier = math.sqrt(6 / (weight.shape[1] + weight.shape[2]))
            nn.init.uniform_(weight, -xavier, xavier)

    def forward(self, x: torch.Tensor) -> Prediction:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.mT)))).mT)


def test_plain_nll_stays_far_from_the_noise_floor_where_beta_nll_comes_near_it():
    table = dataset("sinusoid", seed=0)
    x, y = (torch.from_numpy(table[name].to_numpy().copy()).float()[:, None].expand(MEMBERS, -1, -1) for name in table.columns)
    torch.manual_seed(0)
    network = PaperNetwork()
    optimiser = torch.optim.Adam(network.parameters(), fused=True)
    gaussian = FAMILIES["gaussian"]
    for update in range(UPDATES):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * update / UPDATES))
        rows = torch.randint(x.shape[1], (100,))
        prediction = network(x[:, rows])
        plain = nll(y[:, rows], prediction, gaussian)[:3]
        weighted = beta_nll(0.5)(y[:, rows], prediction, gaussian)[3:]
        optimiser.zero_grad()
        (plain.mean(dim=(1, 2)).sum() + weighted.mean(dim=(1, 2)).sum()).backward()
        optimiser.step()
    with torch.no_grad():
        rmse = (network(x).mean - y).square().mean(dim=(1, 2)).sqrt()
    noise = 0.01
    assert rmse[:3].median() > 5 * noise, f"plain NLL reached {rmse[:3].tolist()}"
    assert rmse[3:].median() < 2 * noise, f"beta-NLL reached only {rmse[3:].tolist()}"
