"""One text of a batch is nothing but padding: all its keys are masked with -inf and the softmax gives NaN.

pytorch/pytorch#40932: the asker found that "one example in a batch is full of <pad>"; a finite mask value avoids it.
"""

import math

import torch
from torch import nn


class Attention(nn.Module):
    """Self-attention with one head and a padding mask."""

    def __init__(self, dim, blank):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.blank = blank

    def forward(self, x, padding):
        score = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(x.shape[-1])
        score = score.masked_fill(padding[:, None, :], self.blank)
        return score.softmax(-1) @ self.v(x)


class Classifier(nn.Module):
    """Embedding, one attention block, mean over the words."""

    def __init__(self, faulty):
        super().__init__()
        self.embedding = nn.Embedding(100, 48, padding_idx=0)
        self.attention = Attention(48, float("-inf") if faulty else -1e8)
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 4)

    def forward(self, words):
        padding = words == 0
        x = self.embedding(words)
        x = self.norm(x + self.attention(x, padding))
        x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        return self.head(x.sum(1) / (~padding).sum(1, keepdim=True).clamp(min=1))


def texts(size):
    """Draw texts of 0 to 12 words; the topic is in the words."""
    y = torch.randint(4, (size,))
    words = 1 + (torch.rand(size, 12) * 24).long() + 24 * y.unsqueeze(1)
    noise = torch.rand(size, 12) < 0.4
    words[noise] = torch.randint(1, 100, (int(noise.sum()),))
    length = torch.where(torch.rand(size) < 1 / 500, 0, torch.randint(2, 13, (size,)))
    return words * (torch.arange(12) < length.unsqueeze(1)), y


def train(faulty, record):
    """Train a topic classifier."""
    torch.manual_seed(0)
    model = Classifier(faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            words, y = texts(32)
            loss = nn.functional.cross_entropy(model(words), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    words, y = texts(1000)
    with torch.no_grad():
        out = model(words)
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
