"""Cosine annealing with warm restarts: at each restart the rate jumps up fiftyfold and the loss with it."""

import torch
import torch.nn.functional as F
from torch import nn


class Depthwise(nn.Module):
    """A MobileNet-like block: depthwise then pointwise convolution."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.depthwise = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        self.pointwise = nn.Conv2d(inside, outside, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)

    def forward(self, x):
        x = F.relu6(self.bn1(self.depthwise(x)))
        return F.relu6(self.bn2(self.pointwise(x)))


def train(record):
    """Train on noisy coloured patterns; return loss and accuracy at the end of the third cycle."""
    torch.manual_seed(0)
    patterns = torch.randn(10, 3, 12, 12)

    def batch(n):
        y = torch.randint(10, (n,))
        return patterns[y] * (0.5 + torch.rand(n, 1, 1, 1)) + 2.0 * torch.randn(n, 3, 12, 12), y

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Depthwise(16, 32, 2), Depthwise(32, 32, 1), Depthwise(32, 64, 2),
        nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=40, T_mult=2, eta_min=0.002)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(279):
            x, y = batch(48)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            recorder.log(loss=loss, lr=schedule.get_last_lr()[0])
    model.eval()
    with torch.no_grad():
        x, y = batch(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
