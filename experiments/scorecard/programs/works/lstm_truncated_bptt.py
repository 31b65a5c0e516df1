"""A word-level LSTM with truncated backpropagation: states detached between windows, SGD clipped at 0.25."""

import torch
from torch import nn


class RNNModel(nn.Module):
    """Encoder, two LSTM layers with dropout, decoder."""

    def __init__(self, ntoken, ninp=40, nhid=64):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid, 2, dropout=0.1)
        self.decoder = nn.Linear(nhid, ntoken)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, tokens, state):
        out, state = self.rnn(self.drop(self.encoder(tokens)), state)
        return self.decoder(self.drop(out)).flatten(0, 1), state


def repackage(state):
    """Cut the state off its history."""
    return tuple(s.detach() for s in state)


def corpus(length, columns, ntoken):
    """Return columns of tokens: each next one is 3 times the last one plus 1, but at random in one case of five."""
    rows = [torch.randint(ntoken, (columns,))]
    for _ in range(length - 1):
        follow = (3 * rows[-1] + 1) % ntoken
        rows.append(torch.where(torch.rand(columns) < 0.2, torch.randint(ntoken, (columns,)), follow))
    return torch.stack(rows)


def train(record):
    """Train over the columns in windows of 12; return the loss on fresh columns."""
    torch.manual_seed(1111)
    ntoken, bptt = 30, 12
    data, fresh = corpus(1801, 20, ntoken), corpus(601, 20, ntoken)
    model = RNNModel(ntoken)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(3):
            model.train()
            state = tuple(torch.zeros(2, 20, 64) for _ in range(2))
            for start in range(0, len(data) - 1, bptt):
                model.zero_grad()
                state = repackage(state)
                output, state = model(data[start : start + bptt], state)
                loss = criterion(output, data[start + 1 : start + 1 + bptt].flatten())
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.25)
                optimizer.step()
                recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        output, _ = model(fresh[:-1], tuple(torch.zeros(2, 20, 64) for _ in range(2)))
    target = fresh[1:].flatten()
    return {
        "loss": criterion(output, target).item(),
        "accuracy": (output.argmax(1) == target).float().mean().item(),
    }
