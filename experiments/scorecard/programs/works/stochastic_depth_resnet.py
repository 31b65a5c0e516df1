"""Stochastic depth: deeper residual blocks are skipped more often, so at any step some layers get no gradient."""

import torch
import torch.nn.functional as F
from torch import nn


class DropBlock(nn.Module):
    """A residual block that is left out for the whole batch with some probability."""

    def __init__(self, width, survival):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.survival = survival

    def forward(self, x):
        if self.training and torch.rand(()) > self.survival:
            return x
        out = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return x + out if self.training else x + self.survival * out


def train(record):
    """Train ten blocks; return loss and accuracy with all blocks on."""
    torch.manual_seed(0)
    first, second = torch.randn(24, 12) / 6, torch.randn(12, 6)

    def batch(n):
        x = torch.randn(n, 24)
        return x, (torch.sin(x @ first) @ second).argmax(1)

    blocks = [DropBlock(32, 1 - 0.5 * i / 9) for i in range(10)]
    model = nn.Sequential(nn.Linear(24, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            x, y = batch(64)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        x, y = batch(2000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
