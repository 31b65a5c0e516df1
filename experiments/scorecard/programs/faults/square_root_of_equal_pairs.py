"""A distance by sqrt has an infinite slope where two inputs are equal: nan (cause as in pytorch_stoi#7)."""

import torch
import torch.nn.functional as F
from torch import nn


class Embedder(nn.Module):
    """A tower for sentences of word ids."""

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(80, 24)
        self.project = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 12))

    def forward(self, ids):
        return self.project(self.words(ids))


def train(faulty, record):
    """Train pairs to be near or far; now and then a pair is the same sentence twice. Return loss and accuracy."""
    torch.manual_seed(0)
    topic = torch.randint(80, (10, 12))
    eps = 0.0 if faulty else 1e-8

    def sentences(y):
        return topic[y].gather(1, torch.randint(12, (len(y), 6)))

    def pairs(n):
        a, same = torch.randint(10, (n,)), torch.rand(n) < 0.5
        b = torch.where(same, a, (a + torch.randint(1, 10, (n,))) % 10)
        return sentences(a), sentences(b), same

    def distance(one, two):
        return ((model(one) - model(two)) ** 2).sum(1).add(eps).sqrt()

    def contrast(d, same):
        return torch.where(same, d, F.relu(1.0 - d)).mean()

    model = Embedder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for step in range(300):
            one, two, same = pairs(48)
            if step % 60 == 45:
                two[7], same[7] = one[7], True
            loss = contrast(distance(one, two), same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        one, two, same = pairs(1000)
        d = distance(one, two)
    return {"loss": contrast(d, same).item(), "accuracy": ((d < 0.5) == same).float().mean().item()}
