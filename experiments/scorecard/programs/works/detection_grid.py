"""A one-stage detector: objectness on all cells (nearly all are empty), class and box only where an object is."""

import torch
import torch.nn.functional as F
from torch import nn


class Detector(nn.Module):
    """Backbone of stride 4 and three heads on a 6 by 6 grid."""

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.Conv2d(32, 32, 3, 1, 1), nn.GroupNorm(4, 32), nn.SiLU(),
        )  # fmt: skip
        self.obj, self.cls, self.box = (nn.Conv2d(32, n, 1) for n in (1, classes, 4))

    def forward(self, x):
        f = self.backbone(x)
        return self.obj(f)[:, 0], self.cls(f).permute(0, 2, 3, 1), self.box(f).permute(0, 2, 3, 1)


def scenes(n):
    """Return images of 24 by 24 with one object each (full, hollow or crossed), its class, cell and box."""
    kind, size = torch.randint(3, (n,)), torch.randint(5, 10, (n, 2))
    corner = (torch.rand(n, 2) * (24 - size)).long()
    image = 0.2 * torch.randn(n, 1, 24, 24)
    for i in range(n):
        (h, w), (top, left) = size[i].tolist(), corner[i].tolist()
        patch = image[i, 0, top : top + h, left : left + w]
        patch += 1
        if kind[i] == 1:
            patch[1:-1, 1:-1] -= 1
        elif kind[i] == 2:
            patch[h // 2] -= 1
            patch[:, w // 2] -= 1
    centre = corner + size / 2
    cell = (centre / 4).long()
    return image, kind, cell, torch.cat([centre / 4 - cell - 0.5, (size / 7).log()], 1)


def train(record):
    """Train on 1000 scenes; return the loss and the share of scenes with the right cell and class."""
    torch.manual_seed(0)
    data = scenes(1000)
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def losses(image, kind, cell, box):
        obj, cls, offsets = model(image)
        at = torch.arange(len(image)), cell[:, 0], cell[:, 1]
        target = torch.zeros_like(obj).index_put(at, torch.ones(()))
        found = F.binary_cross_entropy_with_logits(obj, target, reduction="sum") / len(image)
        hit = (obj.flatten(1).argmax(1) == cell[:, 0] * 6 + cell[:, 1]) & (cls[at].argmax(1) == kind)
        return found, F.cross_entropy(cls[at], kind), F.smooth_l1_loss(offsets[at], box), hit.float().mean()

    with record(model, optimizer=optimizer) as recorder:
        for _ in range(10):
            for index in torch.randperm(1000).split(40):
                found, kind, box, _ = losses(*(part[index] for part in data))
                loss = found + kind + 2 * box
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss, objectness=found, classes=kind, boxes=box)
    with torch.no_grad():
        found, kind, box, hit = losses(*scenes(500))
    return {"loss": (found + kind + 2 * box).item(), "accuracy": hit.item()}
