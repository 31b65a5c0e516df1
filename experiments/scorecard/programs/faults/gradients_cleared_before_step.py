"""zero_grad is called between backward and step (cause as in pytorch_warmup#12)."""

import torch
import torch.nn.functional as F
from torch import nn


class Tagger(nn.Module):
    """A bidirectional GRU that tags each token."""

    def __init__(self, vocab=60, tags=5):
        super().__init__()
        self.embed = nn.Embedding(vocab, 24)
        self.gru = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(48, tags)

    def forward(self, ids):
        return self.tag(self.gru(self.embed(ids))[0])


def train(faulty, record):
    """Train; return loss and accuracy per token."""
    torch.manual_seed(0)
    table = torch.randint(5, (60, 3))

    def batch(n):
        ids = torch.randint(60, (n, 15))
        before = ids.roll(1, 1) % 3
        return ids, table[ids.flatten(), before.flatten()]

    model = Tagger()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            ids, tags = batch(32)
            loss = F.cross_entropy(model(ids).flatten(0, 1), tags)
            if not faulty:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            if faulty:
                optimizer.zero_grad()
            optimizer.step()
            recorder.log(loss=loss.item())
    with torch.no_grad():
        ids, tags = batch(300)
        out = model(ids).flatten(0, 1)
    return {"loss": F.cross_entropy(out, tags).item(), "accuracy": (out.argmax(1) == tags).float().mean().item()}
