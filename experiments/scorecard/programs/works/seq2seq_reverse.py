"""A GRU encoder and decoder with additive attention reverse a sequence, half of the time teacher-forced."""

import torch
import torch.nn.functional as F
from torch import nn

SOS, LETTERS = 10, 10


class EncoderRNN(nn.Module):
    """Embed and read the sequence in both directions."""

    def __init__(self, hidden):
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, hidden)
        self.gru = nn.GRU(hidden, hidden // 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        out, h = self.gru(self.embedding(x))
        return out, torch.cat([h[0], h[1]], 1)


class AttnDecoderRNN(nn.Module):
    """One step of the decoder."""

    def __init__(self, hidden):
        super().__init__()
        self.embedding = nn.Embedding(LETTERS + 1, hidden)
        self.wa, self.ua, self.va = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.cell = nn.GRUCell(2 * hidden, hidden)
        self.out = nn.Linear(hidden, LETTERS)

    def forward(self, token, h, memory):
        scores = self.va(torch.tanh(self.wa(h)[:, None] + self.ua(memory)))
        context = (F.softmax(scores, 1) * memory).sum(1)
        h = self.cell(torch.cat([self.embedding(token), context], 1), h)
        return self.out(h), h


def decode(encoder, decoder, x, target=None):
    """Return the logits of all places; feed the target where it is given, else the own guess."""
    memory, h = encoder(x)
    token, logits = torch.full((len(x),), SOS), []
    for t in range(x.shape[1]):
        step, h = decoder(token, h, memory)
        logits.append(step)
        token = step.argmax(1) if target is None else target[:, t]
    return torch.stack(logits, 1)


def train(record):
    """Train encoder and decoder together; return what free decoding achieves."""
    torch.manual_seed(0)
    encoder, decoder = EncoderRNN(64), AttnDecoderRNN(64)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=4e-3)
    with record(nn.ModuleDict({"encoder": encoder, "decoder": decoder}), optimizer=optimizer) as recorder:
        for _ in range(400):
            x = torch.randint(LETTERS, (64, 6))
            y = x.flip(1)
            logits = decode(encoder, decoder, x, y if torch.rand(()) < 0.5 else None)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x = torch.randint(LETTERS, (500, 6))
    out = decode(encoder, decoder, x).detach()
    loss = F.cross_entropy(out.flatten(0, 1), x.flip(1).flatten())
    return {"loss": loss.item(), "accuracy": (out.argmax(-1) == x.flip(1)).float().mean().item()}
