"""Triplet loss with a margin: soon most triplets are satisfied, and batches have hardly any gradient."""

import torch
import torch.nn.functional as F
from torch import nn


class Embedder(nn.Module):
    """A small CNN onto the unit sphere."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 32, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4)
        )
        self.fc = nn.Linear(128, 16)

    def forward(self, x):
        return F.normalize(self.fc(self.features(x).flatten(1)), dim=1)


def train(record):
    """Train on short signals of 15 sources; return the loss and one-shot accuracy over 15 sources never seen."""
    torch.manual_seed(0)
    loudness, pitch = torch.rand(30, 6), 0.1 + 1.2 * torch.rand(30, 6)

    def signals(source):
        time = torch.arange(64.0) + 20 * torch.rand(len(source), 1)
        waves = torch.sin(time[:, :, None] * pitch[source][:, None]) * loudness[source][:, None]
        return (waves.sum(2) + 0.2 * torch.randn(len(source), 64))[:, None]

    model = Embedder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.TripletMarginLoss(margin=0.2)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(350):
            anchor = torch.randint(15, (48,))
            other = (anchor + torch.randint(1, 15, (48,))) % 15
            a, p, n = model(signals(torch.cat([anchor, anchor, other]))).chunk(3)
            loss = criterion(a, p, n)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        support = model(signals(torch.arange(15, 30)))
        source = torch.randint(15, (600,))
        guess = (model(signals(source + 15)) @ support.T).argmax(1)
    return {"loss": loss.item(), "accuracy": (guess == source).float().mean().item()}
