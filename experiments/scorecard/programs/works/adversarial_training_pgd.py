"""Adversarial training: three backward passes attack the inputs, a fourth trains on attacked inputs."""

import torch
import torch.nn.functional as F
from torch import nn


def pgd(model, x, y, eps=0.3, alpha=0.12, steps=3):
    """Return inputs moved to raise the loss, within eps of the true ones."""
    moved = x + eps * (2 * torch.rand_like(x) - 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        F.cross_entropy(model(moved), y).backward()
        moved = moved + alpha * moved.grad.sign()
        moved = x + (moved - x).clamp(-eps, eps)
    return moved.detach()


def train(record):
    """Train on attacked images; return loss and accuracy under attack, and the clean accuracy."""
    torch.manual_seed(0)
    prototypes = F.avg_pool2d(torch.randn(6, 1, 14, 14), 3, 1) * 2.5

    def batch(n):
        y = torch.randint(6, (n,))
        return prototypes[y] + 0.3 * torch.randn(n, 1, 12, 12), y

    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 6),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = batch(32)
            attacked = pgd(model, x, y)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(attacked), y)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = batch(1000)
    attacked = pgd(model, x, y, steps=10)
    with torch.no_grad():
        hard, clean = model(attacked), model(x)
    return {
        "loss": F.cross_entropy(hard, y).item(),
        "accuracy": (hard.argmax(1) == y).float().mean().item(),
        "clean_accuracy": (clean.argmax(1) == y).float().mean().item(),
    }
