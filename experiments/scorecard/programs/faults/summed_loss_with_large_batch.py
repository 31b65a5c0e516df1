"""The loss is a sum over a batch of 128 with a rate meant for a mean (cause as in deepinpy#13, char-rnn#70)."""

import torch
import torch.nn.functional as F
from torch import nn


class CharRNN(nn.Module):
    """A GRU over letters."""

    def __init__(self, letters=16, width=48):
        super().__init__()
        self.encoder = nn.Embedding(letters, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.Linear(width, letters)

    def forward(self, ids):
        return self.decoder(self.rnn(self.encoder(ids))[0])


def chains(table, n, length=12):
    """Return chains in which the next letter follows from the last one in four cases of five."""
    rows = [torch.randint(16, (n,))]
    for _ in range(length):
        rows.append(torch.where(torch.rand(n) < 0.2, torch.randint(16, (n,)), table[rows[-1]]))
    return torch.stack(rows, 1)


def train(faulty, record):
    """Train; return the mean loss per letter and the accuracy."""
    torch.manual_seed(0)
    table = torch.randperm(16)
    model = CharRNN()
    criterion = nn.CrossEntropyLoss(reduction="sum" if faulty else "mean")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            ids = chains(table, 128)
            loss = criterion(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        ids = chains(table, 500)
        out, truth = model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
    return {"loss": F.cross_entropy(out, truth).item(), "accuracy": (out.argmax(1) == truth).float().mean().item()}
