"""nll_loss is given scores without log_softmax, so the loss falls below zero without bound by raising all scores.

yanx27/Pointnet_Pointnet2_pytorch#30: "a negative label loss"; log_softmax or cross_entropy, gone after the rewrite.
"""

import torch
import torch.nn.functional as F
from torch import nn


class PointNet(nn.Module):
    """A shared MLP over points, max pooling, a classifier."""

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 32, 1), nn.Conv1d(32, 64, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(32), nn.BatchNorm1d(64)
        self.fc1, self.fc2 = nn.Linear(64, 32), nn.Linear(32, classes)

    def forward(self, points):
        x = F.relu(self.bn1(self.conv1(points)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc2(F.relu(self.fc1(x.max(dim=2).values)))


class PointNetLoss(nn.Module):
    """The label loss."""

    def __init__(self, faulty):
        super().__init__()
        self.faulty = faulty

    def forward(self, labels_pred, label):
        if not self.faulty:
            labels_pred = F.log_softmax(labels_pred, dim=1)
        return F.nll_loss(labels_pred, label)


def clouds(size):
    """Draw point clouds of spheres, boxes, sticks and discs of any size."""
    y = torch.randint(4, (size,))
    p = torch.randn(size, 3, 128)
    sphere = p / p.norm(dim=1, keepdim=True)
    box = p / p.abs().max(dim=1, keepdim=True).values
    stick, disc = p * torch.tensor([0.1, 0.1, 1.0]).view(3, 1), p * torch.tensor([1.0, 1.0, 0.1]).view(3, 1)
    shape = torch.stack([sphere, box, stick, disc])[y, torch.arange(size)]
    return shape * (0.5 + torch.rand(size, 1, 1)) + 0.05 * torch.randn(size, 3, 128), y


def train(faulty, record):
    """Classify shapes."""
    torch.manual_seed(0)
    model, criterion = PointNet(4), PointNetLoss(faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.7)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            points, label = clouds(32)
            optimizer.zero_grad()
            loss = criterion(model(points), label)
            loss.backward()
            optimizer.step()
            scheduler.step()
            recorder.log(loss=loss)
    model.eval()
    points, label = clouds(1000)
    with torch.no_grad():
        out = model(points)
    return {"loss": F.cross_entropy(out, label).item(), "accuracy": (out.argmax(1) == label).float().mean().item()}
