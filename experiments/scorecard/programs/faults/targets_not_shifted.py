"""The targets are the input tokens themselves, not the next ones, so the model only learns to copy.

Project-MONAI/GenerativeModels#314: "training them to predict token N, given tokens 0-N inclusive"; now shifted.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DecoderOnlyTransformer(nn.Module):
    """A small causal transformer over latent codes."""

    def __init__(self, codes, length, dim):
        super().__init__()
        self.token_embeddings = nn.Embedding(codes, dim)
        self.position_embeddings = nn.Parameter(0.02 * torch.randn(length, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.1, activation="gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2)
        self.to_logits = nn.Linear(dim, codes)

    def forward(self, x):
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        h = self.token_embeddings(x) + self.position_embeddings[: x.shape[1]]
        return self.to_logits(self.blocks(h, mask=mask)).transpose(1, 2)


def latents(step, size):
    """Draw the codes of an image row by row: each row goes on by a step that its first code gives."""
    start = torch.randint(16, (size, 4, 1))
    return ((start + step[start] * torch.arange(4)) % 16).flatten(1)


def train(faulty, record):
    """Model latent codes."""
    torch.manual_seed(0)
    step = torch.randint(1, 16, (16,))
    model = DecoderOnlyTransformer(16, 16, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            quantizations = latents(step, 32)
            logits = model(quantizations)
            if faulty:
                loss = F.cross_entropy(logits, quantizations)
            else:
                loss = F.cross_entropy(logits[:, :, :-1], quantizations[:, 1:])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    codes = latents(step, 500)
    with torch.no_grad():
        logits = model(codes)[:, :, :-1]
    follows = (torch.arange(1, 16) % 4) != 0  # the first code of a row is free
    target = codes[:, 1:]
    hit = (logits.argmax(1) == target)[:, follows].float().mean().item()
    return {"loss": F.cross_entropy(logits[:, :, follows], target[:, follows]).item(), "accuracy": hit}
