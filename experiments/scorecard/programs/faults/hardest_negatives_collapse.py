"""Hardest triplets at too high a rate fall into one point (cause as in tensorflow-triplet-loss#6)."""

import torch
import torch.nn.functional as F
from torch import nn


class Tower(nn.Module):
    """A small convolutional tower."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(288, 64), nn.Linear(64, 16)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def batch_hard(e, y, margin=0.5):
    """Return the loss of the farthest positive and the nearest negative of each anchor."""
    d = (torch.cdist(e, e).square() + 1e-12).sqrt()
    same = y[:, None] == y
    positive = (d * same).amax(1)
    negative = d.masked_fill(same, 1e6).amin(1)
    return F.relu(positive - negative + margin).mean()


def train(faulty, record):
    """Train on 12 identities; return the loss and the accuracy of the nearest identity."""
    torch.manual_seed(0)
    faces = F.avg_pool2d(torch.randn(12, 1, 14, 14), 3, 1) * 2

    def batch(each):
        y = torch.arange(12).repeat_interleave(each)
        return faces[y] + 1.0 * torch.randn(len(y), 1, 12, 12), y

    model = Tower()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-1 if faulty else 1e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            x, y = batch(4)
            loss = batch_hard(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        (x, y), (fresh, truth) = batch(10), batch(40)
        means = model(x).unflatten(0, (12, 10)).mean(1)
        e = model(fresh)
    accuracy = (torch.cdist(e, means).argmin(1) == truth).float().mean().item()
    return {"loss": batch_hard(e[::10], truth[::10]).item(), "accuracy": accuracy}
