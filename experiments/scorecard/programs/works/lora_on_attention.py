"""LoRA on the query and value layers of a trained transformer: the B matrices start at zero."""

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update."""

    def __init__(self, base, rank=4, alpha=8):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scaling = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scaling * self.lora_B(self.lora_A(x))


class Reader(nn.Module):
    """Attention over a sequence of symbols, and a classifier of the last place."""

    def __init__(self, width=32, classes=6):
        super().__init__()
        self.embed, self.pos = nn.Embedding(12, width), nn.Parameter(0.3 * torch.randn(10, width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.ff = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.classifier = nn.Linear(width, classes)

    def forward(self, ids):
        x = self.embed(ids) + self.pos
        scores = self.query(x[:, -1:]) @ self.key(x).transpose(1, 2) / 5.66
        h = (F.softmax(scores, -1) @ self.value(x))[:, 0] + x[:, -1]
        return self.classifier(h + self.ff(h))


def fit(model, batch, optimizer, steps, recorder=None):
    """Run a plain training loop."""
    for _ in range(steps):
        x, y = batch(64)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if recorder:
            recorder.log(loss=loss)


def train(record):
    """Pretrain on reading place 2, then adapt to reading place 5 with another naming; return loss and accuracy."""
    torch.manual_seed(0)

    def batch(n, place=5, shift=2):
        ids = torch.randint(6, (n, 10))
        return ids, (ids[:, place] + shift) % 6

    model = Reader()
    fit(model, lambda n: batch(n, 2, 0), torch.optim.Adam(model.parameters(), lr=3e-3), 300)
    model.requires_grad_(False)
    model.query, model.value = LoRALinear(model.query), LoRALinear(model.value)
    model.classifier.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    with record(model, optimizer=optimizer) as recorder:
        fit(model, batch, optimizer, 450, recorder)
    x, y = batch(2000)
    out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
