"""Gradients are clipped while still multiplied by the loss scale, unscale_ is missing (trackio#262)."""

import torch
import torch.nn.functional as F
from torch import nn


class Mixer(nn.Module):
    """A small MLP-mixer."""

    def __init__(self, patches=9, width=32):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 6)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


def train(faulty, record):
    """Train with a GradScaler; return loss and accuracy on fresh images."""
    torch.manual_seed(0)
    looks = torch.randn(6, 1, 12, 12)

    def batch(n):
        y = torch.randint(6, (n,))
        return looks[y] + 0.8 * torch.randn(n, 1, 12, 12), y

    model = Mixer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with record(model, optimizer=optimizer, scaler=scaler) as recorder:
        for _ in range(300):
            x, y = batch(32)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if not faulty:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = batch(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
