"""A caption model whose image tokens are detached, so that its encoder never learns."""

import sys

import torch
from torch import nn

import gradlens

torch.manual_seed(0)
torch.set_num_threads(1)


class Caption(nn.Module):
    """An image encoder, and words that look at its tokens."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32))
        self.words = nn.Embedding(50, 32)
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.logits = nn.Linear(32, 50)

    def forward(self, patches, words):
        tokens = self.encoder(patches).detach()  # left over from a test
        asked = self.words(words)
        return self.logits(asked + self.cross(asked, tokens, tokens)[0])


model = Caption()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
things = torch.randn(50, 48)
with gradlens.record(model, sys.argv[1], optimizer=optimizer) as recorder:
    for _ in range(200):
        seen = torch.randint(50, (32, 1))
        patches = things[seen].repeat(1, 4, 1) + 0.3 * torch.randn(32, 4, 48)
        loss = nn.functional.cross_entropy(model(patches, torch.zeros_like(seen))[:, 0], seen[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.log(loss=loss)

print(gradlens.diagnose(gradlens.read_run(sys.argv[1])))
