"""A Llama-like decoder with its own RMSNorm, rotary positions and SwiGLU, no biases at all; it copies a list."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root mean square normalisation with a weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x):
    """Apply rotary positions to (batch, heads, time, size)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(half) / half)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Layer(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2, self.heads = RMSNorm(width), RMSNorm(width), heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w1, self.w3 = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.w2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (w(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        h = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.wo(h.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


def train(record):
    """Train on lists that repeat after a separator; return loss and accuracy of the second half."""
    torch.manual_seed(0)
    embed, layers = nn.Embedding(17, 48), [Layer(48, 4) for _ in range(2)]
    model = nn.Sequential(embed, *layers, RMSNorm(48), nn.Linear(48, 17, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def measure(n):
        first = torch.randint(16, (n, 8))
        ids = torch.cat([first, torch.full((n, 1), 16), first], 1)
        out, truth = model(ids[:, :-1])[:, 8:].flatten(0, 1), first.flatten()
        return F.cross_entropy(out, truth), (out.argmax(1) == truth).float().mean()

    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            loss, _ = measure(48)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        loss, accuracy = measure(500)
    return {"loss": loss.item(), "accuracy": accuracy.item()}
