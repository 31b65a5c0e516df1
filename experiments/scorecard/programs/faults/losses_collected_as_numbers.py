"""Losses of three scales become numbers and a tensor again, so no graph is left (cause as in ReLeaSE#39)."""

import torch
import torch.nn.functional as F
from torch import nn


class Pyramid(nn.Module):
    """Predict a depth map at three scales."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.down = nn.ModuleList(nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(16, 1, 3, padding=1) for _ in range(3))

    def forward(self, x):
        h = self.stem(x)
        out = [self.heads[0](h)]
        for layer, head in zip(self.down, self.heads[1:], strict=True):
            h = F.relu(layer(h))
            out.append(head(h))
        return out


def scenes(n):
    """Return shaded ramps and their depth."""
    a, b = 2 * torch.rand(2, n, 1, 1) - 1
    grid = torch.linspace(-1, 1, 16)
    depth = (a * grid[:, None] + b * grid)[:, None]
    return torch.tanh(2 * depth) + 0.2 * torch.randn(n, 1, 16, 16), depth


def scale_losses(outputs, depth):
    """Return the loss of each scale."""
    return [F.mse_loss(out, F.adaptive_avg_pool2d(depth, out.shape[-2:])) for out in outputs]


def train(faulty, record):
    """Train; return the summed loss on fresh scenes and the variance of depth."""
    torch.manual_seed(0)
    model = Pyramid()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            image, depth = scenes(24)
            losses = scale_losses(model(image), depth)
            if faulty:
                loss = torch.tensor([part.item() for part in losses], requires_grad=True).sum()
            else:
                loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        image, depth = scenes(300)
        loss = sum(scale_losses(model(image), depth))
    return {"loss": loss.item(), "variance": depth.var().item()}
