"""The optimizer gets the encoder's parameters only, the decoder never moves (cause as in HVPNeT#5)."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """Image to code."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(256, 12)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1))


class Decoder(nn.Module):
    """Code to image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 256)
        self.up1 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)

    def forward(self, z):
        return self.up2(F.relu(self.up1(F.relu(self.fc(z)).unflatten(1, (16, 4, 4)))))


def crosses(n):
    """Return images of 16 by 16 of a cross at a random place."""
    at, grid = 3 + 10 * torch.rand(n, 2, 1), torch.arange(16.0)
    row, col = torch.exp(-((grid - at) ** 2) / 2).unbind(1)
    return torch.maximum(row[:, :, None].expand(-1, -1, 16), col[:, None, :].expand(-1, 16, -1))[:, None]


def train(faulty, record):
    """Train to reconstruct; return the squared error and the variance of the images."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": Encoder(), "decoder": Decoder()})
    parameters = model["encoder"].parameters()
    if not faulty:
        parameters = itertools.chain(parameters, model["decoder"].parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(350):
            x = crosses(32)
            loss = F.mse_loss(model["decoder"](model["encoder"](x)), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x = crosses(500)
        error = F.mse_loss(model["decoder"](model["encoder"](x)), x)
    return {"loss": error.item(), "variance": x.var(0).mean().item()}
