"""A rate of 0.5 under Adam switches all ReLU units off within some steps (cause as in discuss.pytorch.org 43814)."""

import torch
import torch.nn.functional as F
from torch import nn


class Regressor(nn.Module):
    """A point-cloud network: shared layers, a maximum over points, a head."""

    def __init__(self):
        super().__init__()
        self.point1, self.point2 = nn.Linear(3, 32), nn.Linear(32, 64)
        self.head1, self.head2 = nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, points):
        h = F.relu(self.point2(F.relu(self.point1(points))))
        return self.head2(F.relu(self.head1(h.amax(1))))


def boxes(n):
    """Return 40 points in boxes of random size, and the size."""
    size = 0.3 + torch.rand(n, 3)
    return (2 * torch.rand(n, 40, 3) - 1) * size[:, None], size


def train(faulty, record):
    """Train; return the squared error and the share of variance explained."""
    torch.manual_seed(0)
    model = Regressor()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5 if faulty else 3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            points, size = boxes(48)
            loss = F.mse_loss(model(points), size)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        points, size = boxes(1000)
        error = F.mse_loss(model(points), size)
    return {"loss": error.item(), "r2": 1 - (error / size.var(0).mean()).item()}
