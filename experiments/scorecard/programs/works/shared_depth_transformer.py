"""One transformer block is applied six times with the same weights, as in ALBERT."""

import torch
import torch.nn.functional as F
from torch import nn


class Universal(nn.Module):
    """Embedding, a shared block, and an output per place."""

    def __init__(self, vocab=8, width=40, rounds=6):
        super().__init__()
        self.token, self.place = nn.Embedding(vocab, width), nn.Parameter(0.1 * torch.randn(16, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 80, 0.0, "gelu", batch_first=True, norm_first=True)
        self.round = nn.Embedding(rounds, width)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocab))

    def forward(self, ids):
        x = self.token(ids) + self.place
        for when in self.round.weight:
            x = self.block(x + when)
        return self.out(x)


def batch(n):
    """Return random digits and the same digits sorted."""
    ids = torch.randint(8, (n, 16))
    return ids, ids.sort(1).values


def train(record):
    """Train to sort 16 digits; return the loss and the share of right places."""
    torch.manual_seed(0)
    model = Universal()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=40)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(220):
            ids, wanted = batch(32)
            loss = F.cross_entropy(model(ids).transpose(1, 2), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warmup.step()
            recorder.log(loss=loss, lr=optimizer.param_groups[0]["lr"])
    model.eval()
    with torch.no_grad():
        ids, wanted = batch(300)
        logits = model(ids)
    loss = F.cross_entropy(logits.transpose(1, 2), wanted)
    return {"loss": loss.item(), "accuracy": (logits.argmax(-1) == wanted).float().mean().item()}
