"""The attention that pools a bag is normalised over the batch and not over the bag (cause as in PyTorch-NLP#2)."""

import torch
import torch.nn.functional as F
from torch import nn


class AttentionPooling(nn.Module):
    """Score each instance, then a weighted mean."""

    def __init__(self, width, dim):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, 1))
        self.dim = dim

    def forward(self, h):
        weight = F.softmax(self.score(h) * 4, dim=self.dim)
        return (weight * h).sum(1)


class BagClassifier(nn.Module):
    """Instances, attention, class."""

    def __init__(self, dim):
        super().__init__()
        self.instance = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32))
        self.pool = AttentionPooling(32, dim)
        self.head = nn.Linear(32, 4)

    def forward(self, bags):
        return self.head(self.pool(self.instance(bags)))


def bags_of(kinds, n, size=20):
    """Return bags of common instances among which one is of the class."""
    y = torch.randint(4, (n,))
    bags = torch.randn(n, size, 12)
    bags[torch.arange(n), torch.randint(size, (n,))] = kinds[y] + 0.3 * torch.randn(n, 12)
    return bags, y


def train(faulty, record):
    """Train; return loss and accuracy, measured bag by bag, as the model is used."""
    torch.manual_seed(0)
    kinds = 1.6 * torch.randn(4, 12)
    model = BagClassifier(dim=0 if faulty else 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(350):
            bags, y = bags_of(kinds, 48)
            loss = F.cross_entropy(model(bags), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        bags, y = bags_of(kinds, 400)
        out = torch.cat([model(bag) for bag in bags.split(1)])
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
