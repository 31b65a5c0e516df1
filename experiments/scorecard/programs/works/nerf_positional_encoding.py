"""A radiance field in miniature: positional encoding, ReLU density, colours summed along rays."""

import torch
from torch import nn


def encode(x, bands=5):
    """Return sines and cosines of doubling frequency."""
    angle = x[..., None, :] * (2.0 ** torch.arange(bands))[:, None] * 3.14
    return torch.cat([x, angle.sin().flatten(-2), angle.cos().flatten(-2)], -1)


class Field(nn.Module):
    """Density and colour at a place in the plane, with the input fed in again half way."""

    def __init__(self, width=64):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(22, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width + 22, width), nn.ReLU())
        self.sigma, self.rgb = nn.Linear(width, 1), nn.Linear(width, 3)

    def forward(self, place):
        e = encode(place)
        h = self.second(torch.cat([self.first(e), e], -1))
        return torch.relu(self.sigma(h)[..., 0]), torch.sigmoid(self.rgb(h))


def scene(place):
    """Three soft discs of different colour."""
    centres = torch.tensor([[0.4, 0.3], [-0.4, 0.2], [0.0, -0.5]])
    near = torch.sigmoid(30 * (0.28 - (place[..., None, :] - centres).norm(dim=-1)))
    return 12 * near.sum(-1), 0.1 + 0.8 * near


def render(field, angle, offset, samples=32):
    """Return the colours of rays at the given angles and offsets."""
    direction, side = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1)[:, None].split(2, -1)
    place = offset[:, None, None] * side + torch.linspace(-1, 1, samples)[:, None] * direction
    sigma, colour = field(place)
    alpha = 1 - torch.exp(-sigma * 2 / samples)
    clear = torch.cumprod(torch.cat([torch.ones(len(angle), 1), 1 - alpha[:, :-1] + 1e-10], 1), 1)
    return ((alpha * clear)[..., None] * colour).sum(1)


def rays(n):
    """Return random rays through the scene."""
    return 6.28 * torch.rand(n), 1.6 * torch.rand(n) - 0.8


def train(record):
    """Train on random rays; return the squared error and that of the mean colour."""
    torch.manual_seed(0)
    model = Field()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            ray = rays(96)
            loss = (render(model, *ray) - render(scene, *ray)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            recorder.log(loss=loss)
    ray = rays(1000)
    with torch.no_grad():
        truth = render(scene, *ray)
        error = (render(model, *ray) - truth).square().mean()
    return {"loss": error.item(), "mean_colour": truth.var(0).mean().item()}
