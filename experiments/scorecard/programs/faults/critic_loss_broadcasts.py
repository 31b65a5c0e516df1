"""Outputs (B, 1) are held against targets (B,): the loss compares all with all (cause as in matsciml#347)."""

import torch
from torch import nn


class ReturnPredictor(nn.Module):
    """Embed three categorical inputs and predict one number."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(3))
        self.net = nn.Sequential(nn.Linear(24, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, state):
        parts = [table(column) for table, column in zip(self.tables, state.T, strict=True)]
        return self.net(torch.cat(parts, 1))


def train(faulty, record):
    """Train on returns that are a sum of effects; return the squared error per sample and what is explained."""
    torch.manual_seed(0)
    effects = torch.randn(3, 20)

    def batch(n):
        state = torch.randint(20, (n, 3))
        return state, sum(effects[k][state[:, k]] for k in range(3)) + 0.1 * torch.randn(n)

    model = ReturnPredictor()
    criterion = nn.SmoothL1Loss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            state, returns = batch(64)
            value = model(state)
            loss = criterion(value if faulty else value.squeeze(1), returns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        state, returns = batch(2000)
        error = (model(state)[:, 0] - returns).square().mean()
    return {"loss": error.item(), "r2": 1 - (error / returns.var()).item()}
