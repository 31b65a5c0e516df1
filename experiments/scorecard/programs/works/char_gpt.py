"""A small pre-norm GPT over characters with tied embeddings, weight decay on matrices only, warm-up and cosine."""

import math
import random

import torch
import torch.nn.functional as F
from torch import nn

WORDS = ["the", "cat", "saw", "a", "dog", "and", "bird", "sang", "to", "old", "stone", "walls", "fell"]


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = heads

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.ln_1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Decoder-only transformer; the output layer uses the embedding's weights."""

    def __init__(self, vocab, width=48, depth=3):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(48, width)
        self.h = nn.Sequential(*[Block(width, 4) for _ in range(depth)], nn.LayerNorm(width))
        for p in [p for p in self.parameters() if p.dim() > 1]:
            nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        return F.linear(self.h(self.wte(ids) + self.wpe.weight[: ids.shape[1]]), self.wte.weight)


def train(record):
    """Train on sentences of random words; return the loss of held-out text in nats per character."""
    torch.manual_seed(1337)
    text = " ".join(random.Random(0).choices(WORDS, k=8000))
    chars = sorted(set(text))
    data = torch.tensor([chars.index(c) for c in text])
    model, split = GPT(len(chars)), int(0.9 * len(data))
    matrices = {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1}
    vectors = {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], lr=4e-3, betas=(0.9, 0.95))
    wave = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(s / 40 + 0.02, 0.55 + 0.45 * math.cos(s / 96)))

    def measure(lo, hi, n=24):
        rows = torch.stack([data[i : i + 49] for i in torch.randint(lo, hi - 49, (n,))])
        return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            loss = measure(0, split)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            wave.step()
            recorder.log(loss=loss, lr=wave.get_last_lr()[0])
    return {"loss": measure(split, len(data), 200).item()}
