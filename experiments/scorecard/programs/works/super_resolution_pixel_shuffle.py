"""Super-resolution with pixel shuffle: the network adds to an enlarged image, L1 loss, gradients clipped by value."""

import torch
import torch.nn.functional as F
from torch import nn


class ESPCN(nn.Module):
    """Convolutions at low resolution, then a shuffle to twice the size."""

    def __init__(self, width=24):
        super().__init__()
        self.part1 = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2), nn.Tanh(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh()
        )
        self.part2 = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        return F.interpolate(x, scale_factor=2, mode="bilinear") + self.part2(self.part1(x))


def textures(n):
    """Return images of 16 by 16 of oriented waves with sharp edges."""
    grid = torch.arange(16.0)
    angle, phase = 3.14 * torch.rand(n, 1, 1), 6.28 * torch.rand(n, 1, 1)
    wave = torch.sin(0.9 * (grid[:, None] * angle.cos() + grid * angle.sin()) + phase)
    return (0.5 + 0.5 * torch.tanh(4 * wave))[:, None]


def train(record):
    """Train; return the squared error on fresh images and that of plain interpolation."""
    torch.manual_seed(123)
    model = ESPCN()
    optimizer = torch.optim.Adam(
        [{"params": model.part1.parameters()}, {"params": model.part2.parameters(), "lr": 1e-3}], lr=3e-3
    )
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(5):
            for group in optimizer.param_groups:
                group["lr"] *= 0.7 if epoch > 2 else 1.0
            for _ in range(80):
                high = textures(16)
                loss = F.l1_loss(model(F.avg_pool2d(high, 2)), high)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_value_(model.parameters(), 0.05)
                optimizer.step()
                recorder.log(loss=loss)
    high = textures(300)
    low = F.avg_pool2d(high, 2)
    with torch.no_grad():
        error = F.mse_loss(model(low), high)
    plain = F.mse_loss(F.interpolate(low, scale_factor=2, mode="bilinear"), high)
    return {"loss": error.item(), "interpolation": plain.item()}
