"""The scores have shape (batch, words, 1) and softmax runs over the last dimension: all weights are 1, always.

Amshaker/SwiftFormer#2: the author confirmed that the weights are ones and replaced the softmax by normalize(A, dim=1).
"""

import torch
import torch.nn.functional as F
from torch import nn


class EfficientAdditiveAttention(nn.Module):
    """Pools the queries by learnt weights and lets the keys interact with the result."""

    def __init__(self, dim, faulty):
        super().__init__()
        self.to_query, self.to_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.w_g = nn.Parameter(torch.randn(dim, 1))
        self.scale_factor = dim**-0.5
        self.proj, self.final = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.faulty = faulty

    def forward(self, x):
        query, key = self.to_query(x), self.to_key(x)
        A = query @ self.w_g * self.scale_factor
        A = A.softmax(dim=-1) if self.faulty else F.normalize(A, dim=1)
        G = (A * query).sum(dim=1, keepdim=True)
        return self.final(self.proj(G * key) + query)


class Net(nn.Module):
    """Embedding of patches, one attention block, a head on the first token."""

    def __init__(self, faulty):
        super().__init__()
        self.stem = nn.Linear(14, 32)
        self.cls = nn.Parameter(torch.zeros(1, 1, 32))
        self.attn = EfficientAdditiveAttention(32, faulty)
        self.head = nn.Linear(32, 6)

    def forward(self, patches):
        x = torch.cat([self.cls.expand(len(patches), -1, -1), self.stem(patches)], dim=1)
        return self.head(self.attn(x)[:, 0])


def scenes(size, count=24):
    """Draw patches with random content; two are marked, and they carry the class."""
    y = torch.randint(6, (size,))
    content = torch.randint(6, (size, count))
    content[:, :2] = y.unsqueeze(1)
    marked = torch.zeros(size, count, 8)
    marked[:, :2] = 1.0
    x = torch.cat([F.one_hot(content, 6).float(), marked], dim=2)
    return x[:, torch.randperm(count)] + 0.1 * torch.randn(size, count, 14), y


def train(faulty, record):
    """Classify by the marked patches."""
    torch.manual_seed(0)
    model = Net(faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=500)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            x, y = scenes(64)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            recorder.log(loss=loss)
    x, y = scenes(2000)
    with torch.no_grad():
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
