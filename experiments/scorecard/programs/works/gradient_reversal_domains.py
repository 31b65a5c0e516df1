"""Domain-adversarial training with a gradient reversal layer: the domain loss rises on purpose."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Reverse(torch.autograd.Function):
    """The identity whose gradient has the other sign."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None


class DANN(nn.Module):
    """Shared features, a class head and a domain head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.classes = nn.Linear(32, 5)
        self.domain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x, strength):
        f = self.features(x)
        return self.classes(f), self.domain(Reverse.apply(f, strength))[:, 0]


def train(record):
    """Train with labels of the source only; return the class loss and the accuracy in the target domain."""
    torch.manual_seed(0)
    centres, offset = torch.randn(5, 24), 1.5 * torch.randn(24)

    def batch(n, target):
        y = torch.randint(5, (n,))
        return centres[y] + 0.7 * torch.randn(n, 24) + target * offset, y

    model = DANN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for step in range(450):
            strength = 2 / (1 + math.exp(-10 * step / 450)) - 1
            (xs, y), (xt, _) = batch(48, 0), batch(48, 1)
            logits, domain = model(torch.cat([xs, xt]), strength)
            guess = F.binary_cross_entropy_with_logits(domain, torch.arange(96).ge(48).float())
            loss = F.cross_entropy(logits[:48], y) + guess
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, domain_loss=guess)
    with torch.no_grad():
        x, y = batch(2000, 1)
        out, _ = model(x, 0.0)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
