"""The designs go into the diffusion as they are, in the hundreds, while the noise has deviation 1.

IDEALLab/EngiOpt#67: designs are now normalised before they reach GaussianDiffusion1D (merged).
"""

import torch
from torch import nn

STEPS = 100
BETA = torch.linspace(1e-3, 0.1, STEPS)
ALPHA_BAR = torch.cumprod(1 - BETA, 0)


class Denoiser(nn.Module):
    """An MLP that foretells the noise from the noisy design and the time."""

    def __init__(self, dim):
        super().__init__()
        self.time = nn.Embedding(STEPS, 32)
        self.net = nn.Sequential(
            nn.Linear(dim + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, dim)
        )

    def forward(self, x, t):
        return self.net(torch.cat([x, self.time(t)], dim=1))


def designs(n):
    """Draw outlines: a chord of 200 to 400 and a thickness that goes with it."""
    chord = 300 + 40 * torch.randn(n, 1)
    bend = torch.where(torch.rand(n, 1) < 0.5, -60.0, 60.0)
    along = torch.linspace(0, 1, 8)
    return chord * along + bend * torch.sin(3.1416 * along) + 2 * torch.randn(n, 8)


@torch.no_grad()
def sample(model, n):
    """Run the reverse process."""
    x = torch.randn(n, 8)
    for t in reversed(range(STEPS)):
        noise = model(x, torch.full((n,), t))
        x = (x - BETA[t] / (1 - ALPHA_BAR[t]).sqrt() * noise) / (1 - BETA[t]).sqrt()
        if t > 0:
            x = x + BETA[t].sqrt() * torch.randn_like(x)
    return x


def train(faulty, record):
    """Train on designs; compare samples with them."""
    torch.manual_seed(0)
    data = designs(4000)
    mean, std = (0.0, 1.0) if faulty else (data.mean(0), data.std(0))
    model = Denoiser(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            x = (data[torch.randint(4000, (128,))] - mean) / std
            t, noise = torch.randint(STEPS, (128,)), torch.randn(128, 8)
            a = ALPHA_BAR[t].unsqueeze(1)
            loss = nn.functional.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    made, real = sample(model, 1000) * std + mean, designs(1000)
    distance = 2 * torch.cdist(made, real).mean() - torch.cdist(made, made).mean() - torch.cdist(real, real).mean()
    return {"loss": (distance / torch.cdist(real, real).mean()).item()}
