"""Spectral normalisation on all layers and a hinge loss: outputs are 1-Lipschitz times a learnt scale."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class LipschitzNet(nn.Module):
    """Three normalised layers and a scale."""

    def __init__(self, inside, classes, width=64):
        super().__init__()
        self.fc1 = spectral_norm(nn.Linear(inside, width))
        self.fc2 = spectral_norm(nn.Linear(width, width))
        self.fc3 = spectral_norm(nn.Linear(width, classes))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        x = nn.functional.leaky_relu(self.fc1(x), 0.2)
        x = nn.functional.leaky_relu(self.fc2(x), 0.2)
        return self.scale * self.fc3(x)


def train(record):
    """Train with a multi-class hinge loss; return the loss and the accuracy."""
    torch.manual_seed(0)
    centres = torch.randn(6, 20)

    def batch(n):
        y = torch.randint(6, (n,))
        return centres[y] + 0.9 * torch.randn(n, 20), y

    model = LipschitzNet(20, 6)
    criterion = nn.MultiMarginLoss(margin=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.5, 0.9))
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, y = batch(64)
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, scale=model.scale)
    model.eval()
    with torch.no_grad():
        x, y = batch(2000)
        out = model(x)
    return {"loss": criterion(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
