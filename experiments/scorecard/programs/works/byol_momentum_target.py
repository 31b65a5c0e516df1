"""BYOL: a predictor matches a moving average of the network itself; there are no negatives, no labels."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def mlp(inside, hidden, outside):
    """Linear, batch norm, ReLU, linear."""
    return nn.Sequential(nn.Linear(inside, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outside))


class BYOL(nn.Module):
    """Online network, predictor and target network."""

    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(mlp(40, 96, 48), nn.BatchNorm1d(48), nn.ReLU(), mlp(48, 64, 24))
        self.predictor = mlp(24, 64, 24)
        self.target = copy.deepcopy(self.online)
        for p in self.target.parameters():
            p.requires_grad = False

    def forward(self, one, two):
        loss = 0.0
        for a, b in ((one, two), (two, one)):
            with torch.no_grad():
                wanted = self.target(b)
            loss = loss + (2 - 2 * F.cosine_similarity(self.predictor(self.online(a)), wanted, dim=-1)).mean()
        return loss / 2

    @torch.no_grad()
    def update_target(self, momentum=0.98):
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.mul_(momentum).add_(fast, alpha=1 - momentum)


def train(record):
    """Train without labels; return the loss and the accuracy of the nearest neighbour in the representation."""
    torch.manual_seed(0)
    centres = torch.randn(10, 40)

    def items(n):
        y = torch.randint(10, (n,))
        return centres[y] + 0.8 * torch.randn(n, 40), y

    def view(x):
        return x * (torch.rand_like(x) > 0.25) + 0.3 * torch.randn_like(x)

    model = BYOL()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-6)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, _ = items(64)
            loss = model(view(x), view(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        (x, y), (fresh, truth) = items(300), items(1000)
        nearest = torch.cdist(model.online[0](fresh), model.online[0](x)).argmin(1)
    return {"loss": loss.item(), "accuracy": (y[nearest] == truth).float().mean().item()}
