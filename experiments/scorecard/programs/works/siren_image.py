"""SIREN: sine activations of frequency 30 fit an image from coordinates; the same full batch at every step."""

import math

import torch
from torch import nn


class Sine(nn.Module):
    """sin(30 (W x + b)) with the initialisation that keeps its spread."""

    def __init__(self, inside, outside, first=False, omega=30.0):
        super().__init__()
        self.linear, self.omega = nn.Linear(inside, outside), omega
        bound = 1 / inside if first else math.sqrt(6 / inside) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Module):
    """Coordinates to grey value."""

    def __init__(self, width=48):
        super().__init__()
        self.net = nn.Sequential(
            Sine(2, width, first=True), Sine(width, width), Sine(width, width), nn.Linear(width, 1)
        )
        bound = math.sqrt(6 / width) / 30
        nn.init.uniform_(self.net[-1].weight, -bound, bound)

    def forward(self, coordinates):
        return self.net(coordinates)


def image(side):
    """Return coordinates in [-1, 1] and an image of rings and a step."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grey = torch.sin(18 * (x**2 + y**2)) + (x > 0.3).float()
    return torch.stack([x, y], -1).reshape(-1, 2), grey.reshape(-1, 1)


def train(record):
    """Fit; return the squared error at the trained pixels and the signal-to-noise ratio in decibels."""
    torch.manual_seed(0)
    coordinates, grey = image(48)
    model = Siren()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            loss = (model(coordinates) - grey).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        error = (model(coordinates) - grey).square().mean()
    return {"loss": error.item(), "variance": grey.var().item(), "snr_db": 10 * math.log10(grey.var() / error)}
