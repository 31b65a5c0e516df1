"""Sharpness-aware minimisation: one backward pass moves the weights uphill, a second gives the step."""

import torch
import torch.nn.functional as F
from torch import nn


class SAM:
    """Climb, then let the base optimizer step from where it was."""

    def __init__(self, params, base, rho=0.05):
        self.params, self.base, self.rho = [p for p in params if p.requires_grad], base, rho
        self.moves = []

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self.params]).norm() + 1e-12
        self.moves = [p.grad * (self.rho / norm) for p in self.params]
        for p, move in zip(self.params, self.moves, strict=True):
            p.add_(move)
        self.base.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p, move in zip(self.params, self.moves, strict=True):
            p.sub_(move)
        self.base.step()
        self.base.zero_grad()


def train(record):
    """Train on 400 images with noisy labels; return loss and accuracy on clean ones."""
    torch.manual_seed(0)
    prototypes = torch.randn(8, 3, 8, 8)

    def images(n):
        y = torch.randint(8, (n,))
        return prototypes[y] + 1.5 * torch.randn(n, 3, 8, 8), y

    x, y = images(400)
    y = torch.where(torch.rand(400) < 0.15, torch.randint(8, (400,)), y)
    fresh, truth = images(1000)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(24, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 8),
    )  # fmt: skip
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sam = SAM(model.parameters(), base)
    with record(model, optimizer=base) as recorder:
        for _ in range(20):
            for index in torch.randperm(400).split(40):
                loss = F.cross_entropy(model(x[index]), y[index])
                loss.backward()
                sam.first_step()
                F.cross_entropy(model(x[index]), y[index]).backward()
                sam.second_step()
                recorder.log(loss=loss)
    with torch.no_grad():
        out = model(fresh)
    return {"loss": F.cross_entropy(out, truth).item(), "accuracy": (out.argmax(1) == truth).float().mean().item()}
