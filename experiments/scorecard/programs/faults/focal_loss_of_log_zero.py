"""The focal loss takes log(p) and log(1 - p) of a sigmoid that reaches exactly 0 or 1: log(0), then NaN.

mkocabas/focal-loss-keras#24: an epsilon inside the logarithms (merged; users confirmed that it works).
"""

import torch
from torch import nn


def focal_loss(gamma, alpha, epsilon):
    """Return the loss function."""

    def focal_loss_fixed(y_true, y_pred):
        pt_1 = torch.where(y_true == 1, y_pred, torch.ones_like(y_pred))
        pt_0 = torch.where(y_true == 0, y_pred, torch.zeros_like(y_pred))
        positive = alpha * (1.0 - pt_1).pow(gamma) * torch.log(epsilon + pt_1)
        negative = (1 - alpha) * pt_0.pow(gamma) * torch.log(1.0 - pt_0 + epsilon)
        return -(positive.sum() + negative.sum()) / len(y_true)

    return focal_loss_fixed


class Detector(nn.Module):
    """Scores of rare defects from sensor readings."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.score = nn.Linear(64, 1)

    def forward(self, x):
        return torch.sigmoid(self.score(self.backbone(x))).squeeze(1)


def train(faulty, record):
    """Detect defects in readings with heavy tails and a few wrong labels."""
    torch.manual_seed(0)
    direction = torch.randn(20)
    direction /= direction.norm()

    def readings(n):
        x = torch.distributions.StudentT(1.3).sample((n, 20))
        return x, ((x @ direction > 2.0) ^ (torch.rand(n) < 0.02)).float()

    model = Detector()
    criterion = focal_loss(gamma=2.0, alpha=0.75, epsilon=0.0 if faulty else 1e-7)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            x, y = readings(64)
            loss = criterion(y, model(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = readings(4000)
    with torch.no_grad():
        p = model(x)
    found, right = ((p > 0.5) & (y == 1)).sum().item(), ((p > 0.5).float() == y).float().mean().item()
    return {"accuracy": right, "recall": found / y.sum().item()}
