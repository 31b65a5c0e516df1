"""SimCLR: the loss compares projections of two views, the projection head is thrown away afterwards."""

import torch
import torch.nn.functional as F
from torch import nn


class SimCLR(nn.Module):
    """Encoder and projection head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(40, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.projector = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 16, bias=False))

    def forward(self, x):
        return F.normalize(self.projector(self.encoder(x)), dim=1)


def nt_xent(z, temperature=0.3):
    """Contrast each view with all others of the batch; its partner lies half a batch away."""
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(logits, partner)


def train(record):
    """Train without labels; return the loss and the accuracy of the nearest class mean in the encoder's space."""
    torch.manual_seed(0)
    centres = torch.randn(12, 40)

    def items(n):
        y = torch.randint(12, (n,))
        return centres[y] + 0.6 * torch.randn(n, 40), y

    def view(x):
        return x * (torch.rand_like(x) > 0.2) + 0.3 * torch.randn_like(x)

    model = SimCLR()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, _ = items(64)
            loss = nt_xent(model(torch.cat([view(x), view(x)])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        (x, y), (fresh, truth) = items(240), items(1000)
        h, g = model.encoder(x), model.encoder(fresh)
        means = torch.stack([h[y == c].mean(0) for c in range(12)])
        accuracy = (torch.cdist(g, means).argmin(1) == truth).float().mean()
    return {"loss": loss.item(), "accuracy": accuracy.item()}
