"""Hogwild-like: two workers take turns on shared weights, each with an optimizer and a stale copy of its own."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Perceptron(nn.Module):
    """Bag of features to classes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(40, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 10))

    def forward(self, x):
        return self.layers(x)


def train(record):
    """Each worker computes gradients on weights that are two steps old and applies them to the shared ones."""
    torch.manual_seed(0)
    centres = torch.randn(10, 40)

    def batch(n):
        y = torch.randint(10, (n,))
        return centres[y] + 1.1 * torch.randn(n, 40), y

    shared = Perceptron()
    workers = [copy.deepcopy(shared) for _ in range(2)]
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.05, momentum=0.5)
    with record(workers[0]) as recorder:
        for step in range(600):
            worker = workers[step % 2]
            x, y = batch(32)
            loss = F.cross_entropy(worker(x), y)
            worker.zero_grad()
            loss.backward()
            for p, own in zip(shared.parameters(), worker.parameters(), strict=True):
                p.grad = own.grad.clone()
            optimizer.step()
            if step % 2 == 0:
                recorder.step(loss=loss)
            worker.load_state_dict(shared.state_dict())
    with torch.no_grad():
        x, y = batch(2000)
        out = shared(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
