"""LoRA: a pretrained model is frozen, and small adapters beside its layers are trained."""

import sys

import torch
from torch import nn

import gradlens

torch.manual_seed(0)
torch.set_num_threads(1)


class LoRA(nn.Module):
    """A frozen linear layer, and a small one beside it."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + 2 * self.up(self.down(x))


def train(model, optimizer, task, steps, recorder=None):
    """Train on a task, and log the loss."""
    for _ in range(steps):
        x = torch.randn(64, 16)
        loss = nn.functional.cross_entropy(model(x), (x @ task).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if recorder:
            recorder.log(loss=loss)


model = nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 5))
first, second = torch.randn(16, 5), torch.randn(16, 5)
train(model, torch.optim.Adam(model.parameters(), lr=3e-3), first, 150)  # "pretrained"

for i in (0, 2, 4):
    model[i] = LoRA(model[i])
adapters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(adapters, lr=1e-2)
with gradlens.record(model, sys.argv[1], optimizer=optimizer) as recorder:
    train(model, optimizer, second, 200, recorder)

print(gradlens.diagnose(gradlens.read_run(sys.argv[1])))
