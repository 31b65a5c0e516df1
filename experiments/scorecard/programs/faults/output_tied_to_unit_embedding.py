"""The output layer is tied to an embedding of deviation 1 and never initialised for itself: the first loss is huge.

pytorch/torchtitan#2342: with tied weights the output kept this start, "the loss to skyrocket past 500" (merged).
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.w1, self.w2 = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x):
        h = self.attention_norm(x)
        q, k, v = (w(h).unflatten(-1, (4, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        x = x + self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.w2(F.silu(self.w1(self.ffn_norm(x))))


class Transformer(nn.Module):
    """A decoder whose output shares the embedding's weight."""

    def __init__(self, vocab, dim, init_output):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Block(dim) for _ in range(2))
        self.norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.tok_embeddings.weight)
        self.output.weight = self.tok_embeddings.weight
        if init_output:
            std = dim**-0.5
            nn.init.trunc_normal_(self.output.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, tokens):
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.output(self.norm(h))


def train(faulty, record):
    """Train on a made-up language: each token follows from one of the two before."""
    torch.manual_seed(0)
    first, second = torch.randperm(200), torch.randperm(200)

    def text(size, length=25):
        t = torch.randint(200, (size, length))
        for i in range(2, length):
            t[:, i] = torch.where(t[:, i - 1] % 2 == 0, first[t[:, i - 1]], second[t[:, i - 2]])
        return t

    model = Transformer(200, 128, init_output=not faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(200):
            t = text(16)
            loss = F.cross_entropy(model(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    t = text(200)
    with torch.no_grad():
        out = model(t[:, :-1])
    hit = (out.argmax(-1) == t[:, 1:]).float().mean().item()
    return {"loss": F.cross_entropy(out.flatten(0, 1), t[:, 1:].flatten()).item(), "accuracy": hit}
