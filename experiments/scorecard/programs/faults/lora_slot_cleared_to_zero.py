"""An adapter's slot was cleared and taken again: now both LoRA matrices are zero, so each gives the other no gradient.

NovaSky-AI/SkyRL#852: "both lora_A and lora_B are zero, resulting in zero gradients"; A is made random again (merged).
"""

import math

import torch
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer beside a low-rank adapter."""

    def __init__(self, base, rank=4, alpha=8):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank))
        self.scaling = alpha / rank
        self.init_adapter()

    def init_adapter(self):
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def clear_adapter(self):
        nn.init.zeros_(self.lora_A)
        nn.init.zeros_(self.lora_B)

    def forward(self, x):
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scaling


def fit(model, parameters, task, steps, lr, recorder=None):
    """Train on a task; log where there is a recorder."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    with recorder(model, optimizer=optimizer) if recorder else torch.enable_grad() as log:
        for _ in range(steps):
            x = torch.randn(64, 16)
            loss = nn.functional.cross_entropy(model(x), task(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recorder:
                log.log(loss=loss)


def train(faulty, record):
    """Pretrain a base model, then train a new tenant's adapter in a used slot."""
    torch.manual_seed(0)
    one, two = torch.randn(16, 5), torch.randn(16, 5)
    model = nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 5))
    fit(model, model.parameters(), lambda x: (x @ one).argmax(1), 150, 3e-3)
    for i in (0, 2, 4):
        model[i] = LoRALinear(model[i])
        model[i].clear_adapter()  # the tenant before has left
        if not faulty:
            model[i].init_adapter()
    adapters = [p for p in model.parameters() if p.requires_grad]
    fit(model, adapters, lambda x: (x @ two).argmax(1), 300, 1e-2, record)
    x = torch.randn(2000, 16)
    y = (x @ two).argmax(1)
    with torch.no_grad():
        out = model(x)
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
