"""The samples are sorted by class and never shuffled, so every batch holds one class and the others are forgotten.

epfml/disco#288: without shuffling the accuracy oscillated; a shuffle of the whole data "seems to solve the issue".
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def load(centres, per_class):
    """Return samples as they lie in folders: one class after the other."""
    y = torch.arange(len(centres)).repeat_interleave(per_class)
    return TensorDataset(centres[y] + 1.5 * torch.randn(len(y), 20), y)


class MLP(nn.Module):
    """Two hidden layers with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.hidden1, self.bn1 = nn.Linear(20, 64), nn.BatchNorm1d(64)
        self.hidden2 = nn.Linear(64, 64)
        self.out = nn.Linear(64, 6)

    def forward(self, x):
        x = F.relu(self.bn1(self.hidden1(x)))
        return self.out(F.relu(self.hidden2(x)))


def evaluate(model, dataset):
    """Return loss and accuracy in eval mode."""
    model.eval()
    x, y = dataset.tensors
    with torch.no_grad():
        out = model(x)
    model.train()
    return F.cross_entropy(out, y).item(), (out.argmax(1) == y).float().mean().item()


def train(faulty, record):
    """Train for a few epochs."""
    torch.manual_seed(0)
    centres = torch.randn(6, 20)
    train_set, val_set = load(centres, 320), load(centres, 100)
    loader = DataLoader(train_set, batch_size=32, shuffle=not faulty)
    model = MLP()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(5):
            for x, y in loader:
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
            val_loss, val_accuracy = evaluate(model, val_set)
            recorder.log_epoch(epoch=epoch, val_loss=val_loss, val_accuracy=val_accuracy)
    return {"loss": val_loss, "accuracy": val_accuracy}
