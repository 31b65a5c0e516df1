"""A deep equilibrium model: 20 iterations without a graph to the fixed point, then one with a graph."""

import torch
import torch.nn.functional as F
from torch import nn


class Cell(nn.Module):
    """z -> norm(relu(W z + injected input))."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.linear.weight.data.mul_(0.5)

    def forward(self, z, injected):
        return self.norm(F.relu(self.linear(z) + injected))


class DEQ(nn.Module):
    """Input, equilibrium of the cell, output."""

    def __init__(self, inside=20, width=64, classes=6):
        super().__init__()
        self.inject, self.cell, self.readout = nn.Linear(inside, width), Cell(width), nn.Linear(width, classes)

    def forward(self, x):
        injected = self.inject(x)
        with torch.no_grad():
            z = torch.zeros_like(injected)
            for _ in range(20):
                z = self.cell(z, injected)
        return self.readout(self.cell(z, injected))


def train(record):
    """Train on a nonlinear rule; return loss and accuracy."""
    torch.manual_seed(0)
    first, second = torch.randn(20, 12) / 4, torch.randn(12, 6)

    def batch(n):
        x = torch.randn(n, 20)
        return x, (torch.tanh(2 * x @ first) @ second).argmax(1)

    model = DEQ()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            x, y = batch(64)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = batch(2000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
