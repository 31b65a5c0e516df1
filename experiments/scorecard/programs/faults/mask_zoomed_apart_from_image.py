"""The random zoom draws its place anew for the mask, so image and mask of a pair do not match.

mdbloice/Augmentor#205: images and ground truth did not match after zoom_random; mended in 0.2.7.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn


class ZoomRandom:
    """Zoom into a random part."""

    def __init__(self, size, part):
        self.size, self.part = size, part

    def place(self):
        return random.randint(0, self.size - self.part), random.randint(0, self.size - self.part)

    def perform(self, image, place):
        r, c = place
        cut = image[:, r : r + self.part, c : c + self.part]
        return F.interpolate(cut[None], size=self.size, mode="nearest")[0]


def cells(size):
    """Draw an image with a bright disc and its mask."""
    grid = torch.arange(24.0)
    r, c, radius = torch.rand(3) * torch.tensor([24, 24, 5]) + torch.tensor([0, 0, 3.0])
    mask = ((grid[:, None] - r) ** 2 + (grid[None] - c) ** 2 < radius**2).float()[None]
    return mask + 0.5 * torch.randn(1, size, size), mask


def batch(zoom, n, together):
    """Return augmented images and masks."""
    images, masks = [], []
    for _ in range(n):
        image, mask = cells(24)
        place = zoom.place()
        images.append(zoom.perform(image, place))
        masks.append(zoom.perform(mask, place if together else zoom.place()))
    return torch.stack(images), torch.stack(masks)


def train(faulty, record):
    """Segment cells."""
    torch.manual_seed(0)
    random.seed(0)
    zoom = ZoomRandom(24, 14)
    unet = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ELU(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.ELU(),
        nn.ConvTranspose2d(16, 16, 2, stride=2),
        nn.ELU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    with record(unet, optimizer=optimizer) as recorder:
        for _ in range(200):
            image, mask = batch(zoom, 16, together=not faulty)
            loss = F.binary_cross_entropy_with_logits(unet(image), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    image, mask = batch(zoom, 200, together=True)
    with torch.no_grad():
        out = unet(image)
    both, either = ((out > 0) & (mask > 0)).sum().item(), ((out > 0) | (mask > 0)).sum().item()
    return {"loss": F.binary_cross_entropy_with_logits(out, mask).item(), "overlap": both / either}
