"""Batch norm with momentum 0: running statistics stay at 0 and 1 (as in pretrained-models.pytorch#5)."""

import torch
import torch.nn.functional as F
from torch import nn


def block(inside, outside, momentum):
    """A convolution, batch norm, ReLU and pooling."""
    return [
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.BatchNorm2d(outside, momentum=momentum),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def train(faulty, record):
    """Train on brightly lit patterns; return loss and accuracy in eval mode."""
    torch.manual_seed(0)
    patterns = torch.rand(6, 1, 16, 16)

    def batch(n):
        y = torch.randint(6, (n,))
        return 10 * (patterns[y] + 0.4 * torch.randn(n, 1, 16, 16)) + 20, y

    momentum = 0.0 if faulty else 0.1
    model = nn.Sequential(
        *block(1, 8, momentum), *block(8, 16, momentum), *block(16, 24, momentum), nn.Flatten(), nn.Linear(96, 6)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(6):
            model.train()
            total = 0.0
            for _ in range(40):
                x, y = batch(32)
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / 40
                recorder.log(loss=loss)
            model.eval()
            x, y = batch(400)
            with torch.no_grad():
                out = model(x)
            val, accuracy = F.cross_entropy(out, y).item(), (out.argmax(1) == y).float().mean().item()
            recorder.log_epoch(epoch=epoch, train_loss=total, val_loss=val, val_accuracy=accuracy)
    return {"loss": val, "accuracy": accuracy}
