"""Score matching at ten noise levels, each weighted to count alike; samples are drawn by Langevin steps."""

import torch
from torch import nn


class ScoreNet(nn.Module):
    """A network of the sample and the noise level; its output is divided by that level."""

    def __init__(self, sigmas, width=128):
        super().__init__()
        self.register_buffer("sigmas", sigmas)
        self.level = nn.Embedding(len(sigmas), width)
        self.first, self.second, self.third = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x, index):
        sigma = self.sigmas[index, None]
        h = nn.functional.silu(self.first(3 * x / (4 + sigma**2).sqrt()) + self.level(index))
        h = nn.functional.silu(self.second(h) + self.level(index))
        return self.third(h) / sigma


def mixture(n):
    """Return points of four tight clusters."""
    centres = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
    return centres[torch.randint(4, (n,))] + 0.1 * torch.randn(n, 2)


def langevin(net, n):
    """Sample through the levels from large to small noise."""
    x = net.sigmas[0] * torch.randn(n, 2)
    for i, sigma in enumerate(net.sigmas):
        size = 0.1 * sigma**2
        for _ in range(20):
            x = x + size * net(x, torch.full((n,), i)) + (2 * size).sqrt() * torch.randn_like(x)
    return x


def train(record):
    """Train; return the weighted loss and how far samples lie from their nearest cluster."""
    torch.manual_seed(0)
    sigmas = torch.logspace(0.6, -1, 10)
    net = ScoreNet(sigmas)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    with record(net, optimizer=optimizer) as recorder:
        for _ in range(600):
            x, index = mixture(128), torch.randint(10, (128,))
            noise = torch.randn_like(x)
            sigma = sigmas[index, None]
            loss = (sigma * net(x + sigma * noise, index) + noise).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        points = langevin(net, 1000)
        distance = (points.abs() - 2).norm(dim=1).mean()
    return {"loss": loss.item(), "distance": distance.item(), "right_half": (points[:, 0] > 0).float().mean().item()}
