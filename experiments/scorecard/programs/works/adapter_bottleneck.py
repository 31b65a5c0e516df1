"""Adapters: near-zero bottlenecks between the frozen layers of a trained model; they, norms and head train."""

import torch
import torch.nn.functional as F
from torch import nn


class Adapter(nn.Module):
    """Down, nonlinearity, up, and a shortcut; starts as nearly the identity."""

    def __init__(self, width, bottleneck=8):
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=1e-2)
        nn.init.normal_(self.up.weight, std=1e-2)

    def forward(self, x):
        return x + self.up(F.gelu(self.down(x)))


class Body(nn.Module):
    """Residual feed-forward blocks."""

    def __init__(self, width=64, depth=4):
        super().__init__()
        self.stem = nn.Linear(20, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.adapters = nn.ModuleList(nn.Identity() for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        for block, norm, adapter in zip(self.blocks, self.norms, self.adapters, strict=True):
            x = x + adapter(block(norm(x)))
        return self.head(x)


def train(record):
    """Pretrain on one rule, adapt to another; return loss and accuracy on the second."""
    torch.manual_seed(0)
    first, second = torch.randn(20, 5), torch.randn(20, 5)

    def batch(rule, n=64):
        x = torch.randn(n, 20)
        return x, ((x @ rule).abs() if rule is second else x @ rule).argmax(1)

    model = Body()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(200):
        x, y = batch(first)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.requires_grad_(False)
    model.adapters = nn.ModuleList(Adapter(64) for _ in model.blocks)
    model.norms.requires_grad_(True)
    model.head = nn.Linear(64, 5)
    optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()), lr=1e-2, weight_decay=0.01)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            x, y = batch(second)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = batch(second, 2000)
    out = model(x).detach()
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
