"""Inputs and targets are each shuffled with an order of their own (cause as in GaNDLF#868)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Reader(nn.Module):
    """A GRU over token ids."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.gru = nn.GRU(24, 48, batch_first=True)
        self.classifier = nn.Linear(48, 4)

    def forward(self, ids):
        return self.classifier(self.gru(self.embedding(ids))[1][0])


def corpus(n):
    """Return token rows and their class: which of four key tokens occurs."""
    ids, y = torch.randint(4, 50, (n, 10)), torch.randint(4, (n,))
    ids[torch.arange(n), torch.randint(10, (n,))] = y
    return ids, y


def train(faulty, record):
    """Train four epochs; return loss and accuracy on fresh rows."""
    torch.manual_seed(0)
    ids, y = corpus(3840)
    order = torch.randperm(3840)
    ids = ids[order]
    y = y[torch.randperm(3840)] if faulty else y[order]
    loader = DataLoader(TensorDataset(ids, y), batch_size=32, shuffle=True)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(4):
            total = 0.0
            for x, target in loader:
                loss = F.cross_entropy(model(x), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / len(loader)
                recorder.log(loss=loss)
            recorder.log_epoch(epoch=epoch, train_loss=total)
    with torch.no_grad():
        x, target = corpus(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, target).item(), "accuracy": (out.argmax(1) == target).float().mean().item()}
