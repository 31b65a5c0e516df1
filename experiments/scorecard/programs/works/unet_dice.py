"""A U-Net with skip connections and a Dice loss on images whose foreground is a small share of the pixels."""

import torch
import torch.nn.functional as F
from torch import nn


def double_conv(inside, outside):
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels down and up."""

    def __init__(self, base=8):
        super().__init__()
        self.inc, self.down1, self.down2 = (
            double_conv(1, base),
            double_conv(base, 2 * base),
            double_conv(2 * base, 4 * base),
        )
        self.up1, self.up2 = nn.ConvTranspose2d(4 * base, 2 * base, 2, 2), nn.ConvTranspose2d(2 * base, base, 2, 2)
        self.conv1, self.conv2 = double_conv(4 * base, 2 * base), double_conv(2 * base, base)
        self.outc = nn.Conv2d(base, 1, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        x = self.conv1(torch.cat([x2, self.up1(x3)], 1))
        return self.outc(self.conv2(torch.cat([x1, self.up2(x)], 1)))


def discs(n):
    """Return noisy images of a bright disc and a dark one, and the mask of the bright one."""
    grid = torch.arange(16.0)
    at = 3 + 10 * torch.rand(n, 2, 2, 1)
    distance = (grid - at[:, :, 0])[..., None] ** 2 + (grid - at[:, :, 1])[:, :, None] ** 2
    bright, dark = (distance < 6).float().unbind(1)
    return (bright - dark + 0.5 * torch.randn(n, 16, 16))[:, None], (bright * (1 - dark))[:, None]


def dice(logits, mask):
    """Return the soft Dice coefficient over the batch."""
    p = torch.sigmoid(logits)
    return (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)


def train(record):
    """Train; return the Dice loss on fresh images and the overlap of the thresholded mask."""
    torch.manual_seed(0)
    net = UNet()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.9)
    with record(net, optimizer=optimizer) as recorder:
        for _ in range(200):
            image, mask = discs(16)
            loss = 1 - dice(net(image), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    net.eval()
    image, mask = discs(300)
    logits = net(image).detach()
    both, either = ((logits > 0) & (mask > 0)).sum(), ((logits > 0) | (mask > 0)).sum()
    return {"loss": 1 - dice(logits, mask).item(), "overlap": (both / either).item()}
