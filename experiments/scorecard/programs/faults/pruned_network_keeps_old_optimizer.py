"""Pruning replaces the layers by smaller ones, but fine-tuning goes on with the optimizer of the old layers.

microsoft/nni#4521: the asker solved it by making a new optimizer after the speedup.
"""

import torch
import torch.nn.functional as F
from torch import nn


def narrow(layer, rows, columns):
    """Return a smaller copy of a linear layer that keeps these rows and columns."""
    small = nn.Linear(len(columns), len(rows))
    small.weight.data = layer.weight.data[rows][:, columns].clone()
    small.bias.data = layer.bias.data[rows].clone()
    return small


def speedup(net, keep):
    """Replace each hidden layer by its strongest units."""
    columns = torch.arange(net.fc1.in_features)
    for name in ("fc1", "fc2"):
        layer = getattr(net, name)
        rows = layer.weight.norm(dim=1).topk(keep).indices
        setattr(net, name, narrow(layer, rows, columns))
        columns = rows
    net.head = narrow(net.head, torch.arange(net.head.out_features), columns)


class Net(nn.Module):
    """Three linear layers."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(32, 96), nn.Linear(96, 96), nn.Linear(96, 6)

    def forward(self, x):
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x)))))


def batch(centres, size):
    """Draw points around the class centres."""
    y = torch.randint(6, (size,))
    return centres[y] + 1.2 * torch.randn(size, 32), y


def train(faulty, record):
    """Train, prune to a sixth of the units, fine-tune."""
    torch.manual_seed(0)
    centres = torch.randn(6, 32)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(100):
        x, y = batch(centres, 64)
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    speedup(net, keep=16)
    if not faulty:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with record(net, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = batch(centres, 64)
            loss = F.cross_entropy(net(x), y)
            net.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = batch(centres, 2000)
    with torch.no_grad():
        out = net(x)
        return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
