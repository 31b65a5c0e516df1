"""Gradual unfreezing of a trained model: only the head trains at first, a further block joins every 60 steps."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def build(classes):
    """Four blocks and a head."""
    sizes = [30, 64, 64, 64, 64]
    blocks = [nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*blocks, nn.Linear(64, classes))


def train(record):
    """Pretrain on 10 classes, fine-tune on 4 others with lower rates for lower blocks; return loss and accuracy."""
    torch.manual_seed(0)
    mix = torch.randn(12, 30)

    def batch(centres, n=48):
        y = torch.randint(len(centres), (n,))
        return torch.tanh((centres[y] + 0.6 * torch.randn(n, 12)) @ mix), y

    source, goal = torch.randn(10, 12), 0.8 * torch.randn(4, 12)
    model = build(10)
    pretrainer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(200):
        x, y = batch(source)
        pretrainer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pretrainer.step()

    model[-1] = nn.Linear(64, 4)
    model[:-1].requires_grad_(False)
    groups = [{"params": part.parameters(), "lr": 2e-3 / 2.6 ** (4 - i)} for i, part in enumerate(model)]
    optimizer = torch.optim.Adam(groups)
    with record(model, optimizer=optimizer) as recorder:
        for step in range(300):
            if step % 60 == 0:
                model[4 - step // 60].requires_grad_(True)
            x, y = batch(goal)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = batch(goal, 2000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
