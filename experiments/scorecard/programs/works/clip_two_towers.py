"""A CLIP-like pair of towers with a learnt temperature, trained under bfloat16 autocast."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class TwoTowers(nn.Module):
    """An image tower and a text tower into one space."""

    def __init__(self, vocab=60, width=48):
        super().__init__()
        self.visual = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(288, width),
        )
        self.token_embedding = nn.Embedding(vocab, width)
        self.transformer = nn.TransformerEncoderLayer(width, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        self.text_projection = nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images, captions):
        image = F.normalize(self.visual(images), dim=-1)
        text = self.text_projection(self.transformer(self.token_embedding(captions)).mean(1))
        return self.logit_scale.exp() * image @ F.normalize(text, dim=-1).T


def train(record):
    """Train on captioned images (a word for each quarter); return loss and how often the right one wins of 64."""
    torch.manual_seed(0)
    looks = torch.randn(60, 3, 6, 6)

    def pairs(n):
        captions = torch.randint(60, (n, 4))
        parts = looks[captions].unflatten(1, (2, 2))
        images = parts.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, 12, 12)
        return images + 0.5 * torch.randn_like(images), captions

    model = TwoTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), eps=1e-6)
    truth = torch.arange(64)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(*pairs(64))
            logits = logits.float()
            loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            recorder.log(loss=loss, scale=model.logit_scale.exp())
    with torch.no_grad():
        several = torch.stack([model(*pairs(64)) for _ in range(8)])
    accuracy = (several.argmax(2) == truth).float().mean()
    return {"loss": F.cross_entropy(several.flatten(0, 1), truth.repeat(8)).item(), "accuracy": accuracy.item()}
