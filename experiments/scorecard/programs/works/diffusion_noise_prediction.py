"""A diffusion model predicts the noise of points on two moons; the weights used are a moving average."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

T, BETAS = 50, torch.linspace(1e-3, 0.2, 50)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


def moons(n):
    """Return points on two half circles."""
    angle, which = math.pi * torch.rand(n), torch.randint(2, (n,)).float()
    side = 1 - 2 * which
    points = torch.stack([torch.cos(angle) * side + which - 0.5, torch.sin(angle) * side + 0.5 * which - 0.25], 1)
    return 2 * points + 0.03 * torch.randn(n, 2)


class Denoiser(nn.Module):
    """Residual blocks, each told the time."""

    def __init__(self, width=96):
        super().__init__()
        self.inp, self.time = nn.Linear(2, width), nn.Embedding(T, width)
        blocks = [nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(2)]
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Linear(width, 2)
        nn.init.zeros_(self.out.weight)

    def forward(self, x, t):
        h = self.inp(2 * x)
        for block in self.blocks:
            h = h + block(F.silu(h) + self.time(t))
        return self.out(h)


@torch.no_grad()
def sample(model, n):
    """Go from noise back to data."""
    x = torch.randn(n, 2)
    for t in reversed(range(T)):
        noise = model(x, torch.full((n,), t))
        x = (x - BETAS[t] / (1 - ALPHA_BAR[t]).sqrt() * noise) / (1 - BETAS[t]).sqrt()
        x = x + BETAS[t].sqrt() * torch.randn_like(x) * (t > 0)
    return x


def train(record):
    """Train; return the loss of the averaged weights and how far samples lie from the moons."""
    torch.manual_seed(0)
    model = Denoiser()
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            t, noise = torch.randint(T, (128,)), torch.randn(128, 2)
            noisy = ALPHA_BAR[t, None].sqrt() * moons(128) + (1 - ALPHA_BAR[t, None]).sqrt() * noise
            loss = F.mse_loss(model(noisy, t), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast.detach(), 0.02)
            recorder.log(loss=loss)
    gap = torch.cdist(sample(ema, 1000), moons(3000)).amin(1).mean()
    blind = torch.cdist(moons(3000).std(0) * torch.randn(1000, 2), moons(3000)).amin(1).mean()
    return {"loss": loss.item(), "gap": gap.item(), "gap_of_a_gaussian": blind.item()}
