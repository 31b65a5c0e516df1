"""The decoder is trained without a causal mask, so it reads the next token from its input and has learnt nothing else.

alex-matton/causal-transformer-decoder#1: the author added the mask to training.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Decoder(nn.Module):
    """A two-layer transformer over tokens."""

    def __init__(self, vocab, dim, length, causal):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(dim, vocab)
        self.causal = causal

    def forward(self, ids):
        n = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n) if self.causal else None
        return self.out(self.blocks(self.token(ids) + self.position(torch.arange(n)), mask=mask))


def sentences(follows, size, length=13):
    """Draw sentences: a token follows from the one before, with one slip in ten."""
    ids = torch.randint(len(follows), (size, length))
    for t in range(1, length):
        keep = torch.rand(size) < 0.9
        ids[keep, t] = follows[ids[keep, t - 1]]
    return ids


def train(faulty, record):
    """Train on whole sentences, test on their beginnings."""
    torch.manual_seed(0)
    follows = torch.randperm(40)
    model = Decoder(40, 32, 12, causal=not faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            ids = sentences(follows, 64)
            loss = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    losses, hits = [], []
    with torch.no_grad():
        for n in (3, 5, 8):  # as in generation: only the beginning is there
            ids = sentences(follows, 500, n + 1)
            logits = model(ids[:, :n])[:, -1]
            losses.append(F.cross_entropy(logits, ids[:, n]).item())
            hits.append((logits.argmax(-1) == ids[:, n]).float().mean().item())
    return {"loss": sum(losses) / 3, "accuracy": sum(hits) / 3}
