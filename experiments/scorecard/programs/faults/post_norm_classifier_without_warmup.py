"""A post-norm transformer at a high rate from the first step on (cause as in attention-is-all-you-need-pytorch#168)."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class SequenceClassifier(nn.Module):
    """Four post-norm layers and a classifier on the first place."""

    def __init__(self, vocab=20, width=40, classes=5):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 80, 0.0, batch_first=True) for _ in range(4))
        self.classifier = nn.Linear(width, classes)
        angle = torch.arange(14)[:, None] * 50.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("place", torch.cat([angle.sin(), angle.cos()], 1))
        self.width = width

    def forward(self, ids):
        x = self.embed(ids) * math.sqrt(self.width) / 3 + self.place
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x[:, 0])


def queries(n):
    """The first token asks for one of 13 places; the class is the token there."""
    ids = torch.randint(5, (n, 14))
    ask = torch.randint(3, (n,))
    ids[:, 0] = 7 + ask
    return ids, ids[torch.arange(n), 1 + ask]


def train(faulty, record):
    """Train; return loss and accuracy on fresh queries."""
    torch.manual_seed(0)
    model = SequenceClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2 if faulty else 2e-3, betas=(0.9, 0.98))
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if faulty else min(1.0, (step + 1) / 80))
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(240):
            ids, y = queries(48)
            loss = F.cross_entropy(model(ids), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warmup.step()
            recorder.log(loss=loss, lr=warmup.get_last_lr()[0])
    model.eval()
    with torch.no_grad():
        ids, y = queries(1000)
        out = model(ids)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
