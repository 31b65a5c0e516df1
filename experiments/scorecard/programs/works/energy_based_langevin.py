"""An energy-based model with Langevin negatives from a buffer: the loss hovers about zero as it learns."""

import math
import random

import torch
from torch import nn


def spiral(n):
    """Return points of a circle of radius 1 with a gap on the left."""
    angle = 2.6 * (2 * torch.rand(n) - 1)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2)


def descend(energy, x, steps=20, size=0.02):
    """Walk down the energy with noise; the weights get no gradient from here."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        slope = torch.autograd.grad(energy(x).sum(), x)[0]
        x = x - size * slope.clamp(-10, 10) + math.sqrt(2 * size) * 0.3 * torch.randn_like(x)
    return x.detach()


def train(record):
    """Train; return the loss and the share of points of the circle that have less energy than random ones."""
    torch.manual_seed(0)
    rng = random.Random(0)
    energy = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(energy.parameters(), lr=2e-3, betas=(0.0, 0.999))
    buffer = [4 * torch.rand(64, 2) - 2 for _ in range(20)]
    with record(energy, optimizer=optimizer) as recorder:
        for _ in range(400):
            slot = rng.randrange(20)
            start = buffer[slot] if rng.random() < 0.9 else 4 * torch.rand(64, 2) - 2
            buffer[slot] = negative = descend(energy, start)
            up, down = energy(spiral(64)), energy(negative)
            loss = up.mean() - down.mean() + 0.02 * (up.square().mean() + down.square().mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, gap=up.mean() - down.mean())
    with torch.no_grad():
        good, anywhere = energy(spiral(2000)), energy(4 * torch.rand(2000, 2) - 2)
        preferred = (good < anywhere).float().mean()
    return {"loss": loss.item(), "preferred": preferred.item()}
