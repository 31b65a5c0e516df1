"""A Siamese network: one tower is called twice per step, contrastive loss with margin, momentum SGD."""

import torch
import torch.nn.functional as F
from torch import nn


class SiameseNetwork(nn.Module):
    """Shared convolutional tower."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc = nn.Sequential(nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward_once(self, x):
        return self.fc(self.cnn(x).flatten(1))

    def forward(self, one, two):
        return self.forward_once(one), self.forward_once(two)


def contrastive_loss(one, two, differs, margin=2.0):
    """Pull pairs of one person together, push others apart up to the margin."""
    distance = F.pairwise_distance(one, two)
    return torch.mean((1 - differs) * distance**2 + differs * (margin - distance).clamp(min=0) ** 2)


def train(record):
    """Train on pairs of signatures of 20 people; return the loss and the accuracy of a fixed threshold on new pairs."""
    torch.manual_seed(0)
    people = F.avg_pool2d(torch.randn(20, 1, 14, 14), 3, stride=1) * 3

    def pairs(n):
        a, differs = torch.randint(20, (n,)), torch.randint(2, (n,))
        b = (a + differs * torch.randint(1, 20, (n,))) % 20
        return *(people[i] + 0.6 * torch.randn(n, 1, 12, 12) for i in (a, b)), differs.float()

    net = SiameseNetwork()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    with record(net, optimizer=optimizer) as recorder:
        for _ in range(350):
            one, two, differs = pairs(48)
            loss = contrastive_loss(*net(one, two), differs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss.item())
    net.eval()
    with torch.no_grad():
        one, two, differs = pairs(1000)
        a, b = net(one, two)
    right = (F.pairwise_distance(a, b) > 1.0).float() == differs
    return {"loss": contrastive_loss(a, b, differs).item(), "accuracy": right.float().mean().item()}
