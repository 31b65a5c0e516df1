"""Gradients are clipped to a norm of 0.001 under plain SGD, steps are tiny (a kind of SRNet#18)."""

import torch
import torch.nn.functional as F
from torch import nn


class NextToken(nn.Module):
    """An Elman network over symbols."""

    def __init__(self, vocab=12, width=48):
        super().__init__()
        self.lookup = nn.Embedding(vocab, width)
        self.rnn = nn.RNN(width, width, batch_first=True)
        self.logits = nn.Linear(width, vocab)

    def forward(self, ids):
        return self.logits(self.rnn(self.lookup(ids))[0])


def sequences(n):
    """Return rows in which each symbol is the sum of the two before, modulo 12, with some noise."""
    rows = [torch.randint(12, (n,)), torch.randint(12, (n,))]
    for _ in range(14):
        follow = (2 * rows[-1] + 5) % 12
        rows.append(torch.where(torch.rand(n) < 0.1, torch.randint(12, (n,)), follow))
    return torch.stack(rows, 1)


def train(faulty, record):
    """Train; return loss and accuracy of the next symbol."""
    torch.manual_seed(0)
    model = NextToken()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    limit = 0.001 if faulty else 1.0
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            ids = sequences(32)
            loss = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=limit)
            optimizer.step()
            recorder.log(loss=loss, lr=0.5)
    with torch.no_grad():
        ids = sequences(500)
        out = model(ids[:, :-1])
    accuracy = (out.argmax(-1) == ids[:, 1:]).float().mean().item()
    return {"loss": F.cross_entropy(out.transpose(1, 2), ids[:, 1:]).item(), "accuracy": accuracy}
