"""A masked language model: labels are -100 at most places, and the output layer shares the embedding."""

import torch
import torch.nn.functional as F
from torch import nn

PAD, MASK, FIRST, VOCAB = 0, 1, 2, 42


class Encoder(nn.Module):
    """Bidirectional transformer with a prediction head."""

    def __init__(self, width=48):
        super().__init__()
        self.words = nn.Embedding(VOCAB, width, padding_idx=PAD)
        self.positions = nn.Embedding(24, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 96, dropout=0.05, activation="gelu", batch_first=True)
            for _ in range(2)
        )
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(VOCAB))
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, ids):
        hidden = self.norm(self.words(ids) + self.positions(torch.arange(ids.shape[1])))
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=ids == PAD)
        return F.linear(self.transform(hidden), self.words.weight, self.bias)


def sentences(n):
    """Return rows of words of one topic each, in the topic's order, every sixth word random, padded behind."""
    ids = FIRST + 5 * torch.randint(8, (n, 1)) + torch.arange(24) % 5
    ids = torch.where(torch.rand(n, 24) < 0.15, torch.randint(FIRST, VOCAB, (n, 24)), ids)
    return torch.where(torch.arange(24) < torch.randint(12, 25, (n, 1)), ids, PAD)


def corrupt(ids):
    """Mask 15 percent of the words; 1 in 10 of these is a random word instead."""
    chosen = (torch.rand(ids.shape) < 0.15) & (ids != PAD)
    labels = torch.where(chosen, ids, -100)
    swap = torch.where(torch.rand(ids.shape) < 0.1, torch.randint(FIRST, VOCAB, ids.shape), MASK)
    return torch.where(chosen, swap, ids), labels


def train(record):
    """Train on fresh sentences; return loss and accuracy at masked places."""
    torch.manual_seed(42)
    model = Encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 50))
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            inputs, labels = corrupt(sentences(32))
            loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warmup.step()
            recorder.log(loss=loss.item())
    model.eval()
    with torch.no_grad():
        inputs, labels = corrupt(sentences(400))
        logits = model(inputs)[labels >= 0]
    truth = labels[labels >= 0]
    accuracy = (logits.argmax(-1) == truth).float().mean().item()
    return {"loss": F.cross_entropy(logits, truth).item(), "accuracy": accuracy}
