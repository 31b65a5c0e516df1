"""One of two losses is made a number before they are added (cause as in FL-MRCM#10)."""

import torch
import torch.nn.functional as F
from torch import nn


class TwoHeads(nn.Module):
    """A shared convolutional body, one head for the class and one for the angle."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU()
        )
        self.kind = nn.Linear(216, 2)
        self.angle = nn.Sequential(nn.Linear(216, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        h = self.body(x).flatten(1)
        return self.kind(h), self.angle(h)


def waves(n):
    """Return gratings with their kind (fine or coarse) and doubled angle as a unit vector."""
    angle, kind, grid = 3.14159 * torch.rand(n), torch.randint(2, (n,)), torch.arange(12.0) - 6
    along = grid[:, None] * angle.cos()[:, None, None] + grid * angle.sin()[:, None, None]
    image = torch.sin((0.7 + 0.7 * kind)[:, None, None] * along + 6.28 * torch.rand(n, 1, 1))
    return (
        (image + 0.2 * torch.randn_like(image))[:, None],
        kind,
        torch.stack([(2 * angle).cos(), (2 * angle).sin()], 1),
    )


def train(faulty, record):
    """Train both tasks; return the sum of the losses and how much of the angle is explained."""
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(350):
            x, kind, direction = waves(48)
            logits, guess = model(x)
            loss_kind = F.cross_entropy(logits, kind)
            loss_angle = F.mse_loss(guess, direction)
            loss = loss_kind + (loss_angle.item() if faulty else loss_angle)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, loss_kind=loss_kind, loss_angle=loss_angle)
    with torch.no_grad():
        x, kind, direction = waves(1000)
        logits, guess = model(x)
        angle = F.mse_loss(guess, direction)
    return {"loss": (F.cross_entropy(logits, kind) + angle).item(), "angle_r2": 1 - (angle / direction.var()).item()}
