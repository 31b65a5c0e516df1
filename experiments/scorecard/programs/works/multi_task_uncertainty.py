"""Three tasks of very different units share a trunk; learnt log-variances weigh them, so the total falls below zero."""

import torch
import torch.nn.functional as F
from torch import nn


class MultiTask(nn.Module):
    """Trunk, a regression head, a large-unit regression head and a classification head."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU())
        self.depth, self.price, self.label = nn.Linear(64, 1), nn.Linear(64, 1), nn.Linear(64, 5)
        self.log_vars = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        h = self.trunk(x)
        return self.depth(h)[:, 0], self.price(h)[:, 0], self.label(h)


def train(record):
    """Train; return the weighted loss, the share of variance explained and the accuracy."""
    torch.manual_seed(0)
    hidden, w_depth, w_price, w_label = torch.randn(16, 8) / 3, torch.randn(8), torch.randn(8), 2 * torch.randn(8, 5)

    def batch(n=64):
        x = torch.randn(n, 16)
        h = torch.tanh(x @ hidden)
        depth = 0.05 * (h @ w_depth) + 0.002 * torch.randn(n)
        return x, depth, 8 * (h @ w_price) + 0.5 * torch.randn(n), (h @ w_label).argmax(1)

    model = MultiTask()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            x, depth, price, label = batch()
            d, p, c = model(x)
            parts = torch.stack([F.mse_loss(d, depth), F.mse_loss(p, price), F.cross_entropy(c, label)])
            loss = (parts * torch.exp(-model.log_vars) + model.log_vars).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, depth=parts[0], price=parts[1], label=parts[2])
    with torch.no_grad():
        x, depth, price, label = batch(2000)
        d, p, c = model(x)
    return {
        "loss": loss.item(),
        "depth_r2": 1 - (F.mse_loss(d, depth) / depth.var()).item(),
        "price_r2": 1 - (F.mse_loss(p, price) / price.var()).item(),
        "accuracy": (c.argmax(1) == label).float().mean().item(),
    }
