"""A sparse autoencoder with an L1 penalty and unit decoder columns: most of its 160 ReLU units are off at any input."""

import torch
import torch.nn.functional as F
from torch import nn


class SAE(nn.Module):
    """Overcomplete dictionary of features."""

    def __init__(self, inside=32, features=160):
        super().__init__()
        self.encoder = nn.Linear(inside, features)
        self.decoder = nn.Linear(features, inside)
        with torch.no_grad():
            self.decoder.weight.copy_(F.normalize(self.encoder.weight.t(), dim=0))
            self.encoder.weight.copy_(self.decoder.weight.t())
            self.encoder.bias.fill_(-0.1)

    def forward(self, x):
        features = F.relu(self.encoder(x - self.decoder.bias))
        return self.decoder(features), features

    @torch.no_grad()
    def normalise(self):
        self.decoder.weight.div_(self.decoder.weight.norm(dim=0, keepdim=True))


def train(record):
    """Train on sparse sums of 80 directions; return loss, explained share and features on per input."""
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(80, 32), dim=1)

    def activations(n):
        strength = (torch.rand(n, 80) < 0.03) * (1 + torch.rand(n, 80))
        return strength @ directions

    model = SAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.0, 0.999))
    with record(model, optimizer=optimizer) as recorder:
        for step in range(600):
            x = activations(128)
            out, features = model(x)
            fit = (out - x).square().sum(1).mean()
            sparsity = features.sum(1).mean()
            loss = fit + 0.1 * min(1.0, step / 200) * sparsity
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.normalise()
            recorder.log(loss=loss, fit=fit, on=(features > 0).float().sum(1).mean())
    with torch.no_grad():
        x = activations(3000)
        out, features = model(x)
        explained = 1 - (out - x).square().mean() / x.var()
    return {
        "loss": loss.item(),
        "explained": explained.item(),
        "on": (features > 0).float().sum(1).mean().item(),
    }
