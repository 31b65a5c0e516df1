"""A normalising flow of couplings that start as the identity; the loss is a density and falls below zero."""

import math

import torch
from torch import nn


class Coupling(nn.Module):
    """Scale and shift one half by a function of the other."""

    def __init__(self, swap, width=48):
        super().__init__()
        self.swap = swap
        self.net = nn.Sequential(
            nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        a, b = x.flip(1).chunk(2, 1) if self.swap else x.chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        scale = 2 * torch.tanh(scale)
        b = b * scale.exp() + shift
        return torch.cat([b, a] if self.swap else [a, b], 1), scale.squeeze(1)


class Flow(nn.Module):
    """A chain of couplings to a standard normal."""

    def __init__(self, depth=6):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(depth))

    def log_prob(self, x):
        total = 0.0
        for layer in self.layers:
            x, log_scale = layer(x)
            total = total + log_scale
        return total - 0.5 * x.square().sum(1) - math.log(2 * math.pi)


def curve(n):
    """Return points along a thin parabola."""
    x = torch.randn(n)
    return torch.stack([0.5 * x, 0.3 * x**2 - 0.3 + 0.04 * torch.randn(n)], 1)


def train(record):
    """Maximise the likelihood; return the negative log-likelihood and that of a Gaussian with the same moments."""
    torch.manual_seed(0)
    flow = Flow()
    optimizer = torch.optim.Adamax(flow.parameters(), lr=5e-3)
    with record(flow, optimizer=optimizer) as recorder:
        for _ in range(400):
            loss = -flow.log_prob(curve(128)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
            recorder.log(loss=loss)
    x = curve(5000)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    with torch.no_grad():
        return {"loss": -flow.log_prob(x).mean().item(), "gaussian": -gaussian.log_prob(x).mean().item()}
