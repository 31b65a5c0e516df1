"""The mixture's likelihood is log(sum(exp(...))): for points far from all components exp underflows, the loss is inf.

mlberkeley/scae-pytorch#4: "why the loss value goes to NAN after several epochs"; logsumexp solved it (merged).
"""

import math

import torch
from torch import nn


class MixtureDensityNetwork(nn.Module):
    """Weights, means and deviations of a mixture for each input."""

    def __init__(self, components):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.weights, self.means = nn.Linear(64, components), nn.Linear(64, components)
        self.log_scales = nn.Linear(64, components)

    def forward(self, x):
        h = self.trunk(x)
        return self.weights(h).log_softmax(1), self.means(h), self.log_scales(h)


def log_prob(mixture, y, safe):
    """Return the log-likelihood of y."""
    log_w, mean, log_scale = mixture
    part = log_w - 0.5 * ((y - mean) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)
    if safe:
        return torch.logsumexp(part, dim=1)
    return torch.log(torch.sum(torch.exp(part), dim=1))


def inverse_sines(size):
    """Draw from a curve with several y for an x, with a stray point at times."""
    y = torch.rand(size, 1) * 2 - 1
    x = y + 0.4 * torch.sin(6.2832 * y) + 0.02 * torch.randn(size, 1)
    stray = torch.rand(size, 1) < 0.0005
    return x, torch.where(stray, y * 30, y)


def train(faulty, record):
    """Fit the density."""
    torch.manual_seed(0)
    model = MixtureDensityNetwork(5)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            x, y = inverse_sines(128)
            loss = -log_prob(model(x), y, safe=not faulty).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = inverse_sines(4000)
    with torch.no_grad():
        return {"loss": -log_prob(model(x), y, safe=True).mean().item()}
