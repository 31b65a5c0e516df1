"""A post-norm transformer at a learning rate that it cannot bear without warm-up."""

import sys

import torch
from torch import nn

import gradlens

torch.manual_seed(0)
torch.set_num_threads(1)


class Classifier(nn.Module):
    """Four layers of torch, whose norms come last."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.places = nn.Parameter(torch.randn(12, 32) * 0.3)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(4))
        self.head = nn.Linear(32, 5)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
with gradlens.record(model, sys.argv[1], optimizer=optimizer) as recorder:
    for _ in range(200):
        tokens = torch.randint(5, (32, 12))
        ask = torch.randint(3, (32,))
        tokens[:, 0] = 7 + ask  # the first token asks for one of three places
        loss = nn.functional.cross_entropy(model(tokens), tokens[torch.arange(32), 1 + ask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.log(loss=loss)

print(gradlens.diagnose(gradlens.read_run(sys.argv[1])))
