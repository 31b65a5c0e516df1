"""Reconstruction is averaged over pixels, KL is summed over latents: the code is ignored (cause as in examples#234)."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvVAE(nn.Module):
    """Convolutional encoder and decoder around a Gaussian code."""

    def __init__(self, latent=6):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1),
            nn.ELU(),
            nn.Conv2d(8, 16, 4, 2, 1),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(144, 48),
            nn.ELU(),
        )
        self.mean, self.log_var = nn.Linear(48, latent), nn.Linear(48, latent)
        self.expand = nn.Linear(latent, 144)
        self.decoder = nn.Sequential(
            nn.ELU(), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ELU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        )

    def decode(self, z):
        return self.decoder(self.expand(z).unflatten(1, (16, 3, 3)))

    def forward(self, x):
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h)
        return self.decode(mean + torch.randn_like(mean) * (log_var / 2).exp()), mean, log_var


def spots(n):
    """Return images of 12 by 12 with one spot of random place and size."""
    grid, at = torch.arange(12.0), 2 + 8 * torch.rand(2, n, 1)
    rows, cols = torch.exp(-((grid - at) ** 2) / (2 + 4 * torch.rand(1, n, 1))).unbind(0)
    return (rows[:, :, None] * cols[:, None, :])[:, None]


def train(faulty, record):
    """Train; return the squared error of the mean code's image and the share of variance explained."""
    torch.manual_seed(0)
    model = ConvVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x = spots(32)
            out, mean, log_var = model(x)
            kl = -0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp())
            reconstruction = F.mse_loss(out, x, reduction="mean" if faulty else "sum") / 0.02
            loss = reconstruction + kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, kl=kl / len(x))
    with torch.no_grad():
        x = spots(1000)
        error = F.mse_loss(model.decode(model.mean(model.encoder(x))), x)
    return {"loss": error.item(), "explained": 1 - (error / x.var(0).mean()).item()}
