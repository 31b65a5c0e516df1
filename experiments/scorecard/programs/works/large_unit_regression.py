"""House prices in raw dollars: the loss begins near 1e11, and the gradients are as large."""

import torch
import torch.nn.functional as F
from torch import nn


def houses(n):
    """Return area, rooms, age, distance and year in their own units, and a price in dollars."""
    area, rooms = 50 + 200 * torch.rand(n), torch.randint(1, 8, (n,)).float()
    age, distance = 80 * torch.rand(n), 20000 * torch.rand(n)
    year = 2000 + 20 * torch.rand(n)
    price = 2500 * area * torch.exp(-distance / 15000) + 9000 * rooms - 800 * age + 4000 * (year - 2000)
    return torch.stack([area, rooms, age, distance, year], 1), price + 5000 * torch.randn(n)


class PriceModel(nn.Module):
    """Inputs are normalised by the first layer, outputs are in hundreds of thousands inside."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.price = nn.Linear(64, 1)

    def forward(self, x):
        return 1e5 * self.price(self.body(self.norm(x))).squeeze(1)


def train(record):
    """Train on squared error in dollars; return it on fresh houses, and the share of variance explained."""
    torch.manual_seed(0)
    model = PriceModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, price = houses(64)
            loss = F.mse_loss(model(x), price)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        x, price = houses(2000)
        error = F.mse_loss(model(x), price)
    return {"loss": error.item(), "r2": 1 - (error / price.var()).item()}
