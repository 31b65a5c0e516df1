"""1 - p is rounded to 0 in bfloat16 although p is kept below 1, its log is -inf (as in GLiNER2#155)."""

import torch
import torch.nn.functional as F
from torch import nn


def asymmetric_loss(p, y, eps):
    """Log loss of probabilities squeezed into [eps, 1 - eps]; easy negatives count less."""
    p = eps + (1 - 2 * eps) * p
    positive = -torch.log(p)
    negative = -(p**2) * torch.log(1 - p)
    return torch.where(y, positive, negative).float().mean()


def train(faulty, record):
    """Train a tagger of 6 attributes under autocast; return the cross-entropy and the accuracy."""
    torch.manual_seed(0)
    parts = 1.5 * torch.randn(6, 1, 10, 10)

    def batch(n):
        y = torch.rand(n, 6) < 0.3
        return torch.einsum("na,achw->nchw", y.float(), parts) + 0.5 * torch.randn(n, 1, 10, 10), y

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(400, 6),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    eps = 1e-4 if faulty else 2**-7
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = batch(32)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = asymmetric_loss(torch.sigmoid(model(x)), y, eps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = batch(1000)
        out = model(x)
    accuracy = ((out > 0) == y).float().mean().item()
    return {"loss": F.binary_cross_entropy_with_logits(out, y.float()).item(), "accuracy": accuracy}
