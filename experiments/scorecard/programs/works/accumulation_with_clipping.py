"""Gradients of four micro-batches are accumulated, each loss divided by four, then clipped at 0.5."""

import torch
import torch.nn.functional as F
from torch import nn


class TextCNN(nn.Module):
    """Embedding, three filter widths, max over time."""

    def __init__(self, vocab=120, width=24, classes=5):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(width, 16, k, padding=k // 2) for k in (2, 3, 5))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(48, classes)

    def forward(self, ids):
        x = self.embedding(ids).transpose(1, 2)
        pooled = [F.relu(conv(x)).amax(2) for conv in self.convs]
        return self.fc(self.dropout(torch.cat(pooled, 1)))


def reviews(n):
    """Return padded rows of words in which one of five phrases of two words occurs."""
    y = torch.randint(5, (n,))
    ids = torch.randint(11, 120, (n, 20))
    place = torch.randint(18, (n,))
    rows = torch.arange(n)
    ids[rows, place], ids[rows, place + 1] = 1 + y, 6 + (y + 2) % 5
    ids[torch.arange(20) > place[:, None] + torch.randint(1, 20, (n, 1))] = 0
    return ids, y


def train(record, accumulation=4):
    """Train; return loss and accuracy on fresh rows."""
    torch.manual_seed(0)
    model = TextCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    running = 0.0
    with record(model, optimizer=optimizer) as recorder:
        for micro in range(200 * accumulation):
            x, y = reviews(16)
            loss = F.cross_entropy(model(x), y) / accumulation
            loss.backward()
            running += loss.item()
            if (micro + 1) % accumulation == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
                recorder.log(loss=running)
                running = 0.0
    model.eval()
    with torch.no_grad():
        x, y = reviews(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
