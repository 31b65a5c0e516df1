"""A softmax at the end of a model whose loss applies its own."""

import sys

import torch
from torch import nn

import gradlens

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(dim=1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
centres = torch.randn(10, 32)
with gradlens.record(model, sys.argv[1], optimizer=optimizer) as recorder:
    for _ in range(200):
        labels = torch.randint(10, (64,))
        loss = nn.functional.cross_entropy(model(centres[labels] + 0.5 * torch.randn(64, 32)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.log(loss=loss)

print(gradlens.diagnose(gradlens.read_run(sys.argv[1])))
