"""The trainer never clears gradients, so they add up over all steps (cause as in TennisCourtDetector#7)."""

import torch
import torch.nn.functional as F
from torch import nn


class Trainer:
    """A minimal trainer class."""

    def __init__(self, model, optimizer, forget):
        self.model, self.optimizer, self.forget = model, optimizer, forget

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def run_step(self, batch):
        self.model.train()
        loss = self.training_step(batch)
        if not self.forget:
            self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def train(faulty, record):
    """Train a small CNN on one-dimensional signals; return loss and accuracy on fresh ones."""
    torch.manual_seed(0)
    shapes = torch.randn(8, 2, 40)

    def batch(n):
        y = torch.randint(8, (n,))
        return shapes[y] + 1.2 * torch.randn(n, 2, 40), y

    model = nn.Sequential(
        nn.Conv1d(2, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 32, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(224, 64), nn.ReLU(), nn.Linear(64, 8),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    trainer = Trainer(model, optimizer, forget=faulty)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            recorder.log(loss=trainer.run_step(batch(48)))
    model.eval()
    with torch.no_grad():
        x, y = batch(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
