"""A mixture of six experts with top-2 routing and a balancing loss: each token passes two experts only."""

import torch
import torch.nn.functional as F
from torch import nn


class MoE(nn.Module):
    """Route each row to its two best experts."""

    def __init__(self, width, experts=6, k=2):
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )
        self.k = k

    def forward(self, x):
        probabilities = F.softmax(self.gate(x), -1)
        weight, chosen = probabilities.topk(self.k, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, slot = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, weight[rows, slot, None] * expert(x[rows]))
        used = F.one_hot(chosen[:, 0], len(self.experts)).float().mean(0)
        return out, len(self.experts) * (used * probabilities.mean(0)).sum()


class Net(nn.Module):
    """Two sparse layers with shortcuts."""

    def __init__(self):
        super().__init__()
        self.inp, self.first, self.second, self.out = nn.Linear(20, 32), MoE(32), MoE(32), nn.Linear(32, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])

    def forward(self, x):
        x = self.inp(x)
        a, balance_a = self.first(self.norms[0](x))
        b, balance_b = self.second(self.norms[1](x + a))
        return self.out(x + a + b), balance_a + balance_b


def train(record):
    """Train on classes that depend on a regime and on features; return loss and accuracy."""
    torch.manual_seed(0)
    regimes, rules = 2 * torch.randn(5, 10), torch.randn(5, 10, 8)

    def batch(n=96):
        r, x = torch.randint(5, (n,)), torch.randn(n, 10)
        y = torch.einsum("nd,ndc->nc", x, rules[r]).argmax(1)
        return torch.cat([regimes[r] + 0.1 * torch.randn(n, 10), x], 1), y

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    with record(net, optimizer=optimizer) as recorder:
        for _ in range(450):
            x, y = batch()
            out, balance = net(x)
            loss = F.cross_entropy(out, y) + 0.01 * balance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, balance=balance)
    x, y = batch(2000)
    out = net(x)[0].detach()
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
