"""Lookahead: every five steps the weights jump back half way to where they were; a moving average is evaluated."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Lookahead:
    """Slow weights around any optimizer."""

    def __init__(self, optimizer, k=5, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.count += 1
        if self.count % self.k == 0:
            for slow, p in zip(self.slow, self.params, strict=True):
                slow += self.alpha * (p - slow)
                p.copy_(slow)


def train(record):
    """Train a convolutional sequence model to count peaks; return the squared error of the average and of guessing."""
    torch.manual_seed(0)

    def batch(n):
        spikes = (torch.rand(n, 1, 48) < torch.rand(n, 1, 1) * 0.25).float()
        signal = F.conv1d(spikes, torch.tensor([[[0.4, 1.0, 0.4]]]), padding=1)
        return signal + 0.1 * torch.randn_like(signal), spikes.sum((1, 2)) / 4

    model = nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2), nn.Mish(), nn.Conv1d(16, 16, 5, padding=2), nn.Mish(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0),
    )  # fmt: skip
    ema = copy.deepcopy(model)
    radam = torch.optim.RAdam(model.parameters(), lr=1e-2)
    optimizer = Lookahead(radam)
    with record(model, optimizer=radam) as recorder:
        for _ in range(500):
            x, y = batch(48)
            loss = F.mse_loss(model(x), y)
            radam.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for average, p in zip(ema.parameters(), model.parameters(), strict=True):
                    average.lerp_(p, 0.03)
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = batch(2000)
        error = F.mse_loss(ema(x), y)
    return {"loss": error.item(), "guess": y.var().item()}
