"""Layer-local learning (forward-forward): each layer has its own loss, nothing flows back between them."""

import torch
import torch.nn.functional as F
from torch import nn


class FFLayer(nn.Linear):
    """Normalise, linear, ReLU; trained by its own goodness."""

    def __init__(self, inside, outside):
        super().__init__(inside, outside)
        self.opt = torch.optim.Adam(self.parameters(), lr=3e-3)

    def forward(self, x):
        direction = x / (x.norm(dim=1, keepdim=True) + 1e-4)
        return F.relu(F.linear(direction * 5, self.weight, self.bias))

    def learn(self, positive, negative, threshold=2.0):
        good, bad = (self(x).square().mean(1) for x in (positive, negative))
        loss = F.softplus(torch.cat([threshold - good, bad - threshold])).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return self(positive).detach(), self(negative).detach(), loss


def with_label(x, y):
    """Append a one-hot label to the inputs."""
    return torch.cat([x, 3.0 * F.one_hot(y, 6)], 1)


def train(record):
    """Train three layers side by side; return the mean loss of the layers and the accuracy by total goodness."""
    torch.manual_seed(0)
    centres = torch.randn(6, 30)

    def batch(n):
        y = torch.randint(6, (n,))
        return centres[y] + 0.7 * torch.randn(n, 30), y

    model = nn.Sequential(FFLayer(36, 96), FFLayer(96, 96), FFLayer(96, 96))
    with record(model, optimizer=[layer.opt for layer in model]) as recorder:
        for _ in range(400):
            x, y = batch(64)
            wrong = (y + torch.randint(1, 6, (64,))) % 6
            positive, negative = with_label(x, y), with_label(x, wrong)
            total = 0.0
            for layer in model:
                positive, negative, loss = layer.learn(positive, negative)
                total += loss.item() / 3
            recorder.log(loss=total)
    with torch.no_grad():
        x, y = batch(1000)
        goodness = []
        for label in range(6):
            h, g = with_label(x, torch.full((1000,), label)), 0.0
            for layer in model:
                h = layer(h)
                g = g + h.square().mean(1)
            goodness.append(g)
    return {"loss": total, "accuracy": (torch.stack(goodness, 1).argmax(1) == y).float().mean().item()}
