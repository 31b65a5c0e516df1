"""Embedding tables lie in a plain Python list and are never trained (cause as in pytorch-meta-optimizer#11)."""

import torch
import torch.nn.functional as F
from torch import nn


class FactorizationMachine(nn.Module):
    """Linear terms and products of pairs over categorical columns."""

    def __init__(self, sizes, width, plain):
        super().__init__()
        tables = [nn.Embedding(size, width) for size in sizes]
        for table in tables:
            nn.init.normal_(table.weight, std=0.2)
        self.tables = tables if plain else nn.ModuleList(tables)
        self.linear = nn.ModuleList(nn.Embedding(size, 1) for size in sizes)
        self.head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, columns):
        parts = torch.stack([table(c) for table, c in zip(self.tables, columns.T, strict=True)])
        pairs = 0.5 * (parts.sum(0) ** 2 - (parts**2).sum(0))
        first = sum(table(c) for table, c in zip(self.linear, columns.T, strict=True))
        return (first + self.head(pairs))[:, 0]


def train(faulty, record):
    """Train on clicks that depend on how user, item and hour go together; return loss and accuracy."""
    torch.manual_seed(0)
    sizes = (80, 60, 24)
    taste = [torch.randn(size, 2) for size in sizes]

    def clicks(n):
        columns = torch.stack([torch.randint(size, (n,)) for size in sizes], 1)
        u, i, h = (table[c] for table, c in zip(taste, columns.T, strict=True))
        return columns, ((u * i).sum(1) + (i * h).sum(1) > 0).float()

    model = FactorizationMachine(sizes, 6, plain=faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            columns, clicked = clicks(128)
            loss = F.binary_cross_entropy_with_logits(model(columns), clicked)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        columns, clicked = clicks(4000)
        out = model(columns)
    accuracy = ((out > 0).float() == clicked).float().mean().item()
    return {"loss": F.binary_cross_entropy_with_logits(out, clicked).item(), "accuracy": accuracy}
