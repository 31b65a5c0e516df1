"""A beta-VAE (beta = 4): most latent units are pressed to the prior on purpose, two carry the factors."""

import torch
from torch import nn


def make_world():
    """Return a function from two factors to a 32-dimensional observation."""
    first = 2 * torch.randn(2, 48)
    second = torch.randn(48, 32) / 48**0.5
    return lambda f: torch.tanh(f @ first + 0.3) @ second * 2


class BetaVAE(nn.Module):
    """Encoder and decoder with SELU."""

    def __init__(self, latent=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.SELU(), nn.Linear(64, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 32))

    def forward(self, x):
        mean, log_std = self.encoder(x).chunk(2, -1)
        posterior = torch.distributions.Normal(mean, log_std.clamp(-7, 2).exp())
        return self.decoder(posterior.rsample()), posterior


def train(record, beta=4.0, noise=0.4):
    """Train; return the loss, what is explained, and how many latent units carry information."""
    torch.manual_seed(5)
    world = make_world()
    model = BetaVAE()
    prior = torch.distributions.Normal(0.0, 1.0)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

    def objective(x):
        out, posterior = model(x)
        fit = 0.5 * ((out - x) / noise).square().sum(1).mean()
        kl = torch.distributions.kl_divergence(posterior, prior).mean(0)
        return fit + beta * kl.sum(), out, kl

    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            loss, _, kl = objective(world(torch.randn(96, 2)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            optimizer.step()
            recorder.log(loss=loss, kl=kl.sum())
    with torch.no_grad():
        x = world(torch.randn(2000, 2))
        loss, out, kl = objective(x)
        explained = 1 - (out - x).square().mean() / x.var(0).mean()
    return {"loss": loss.item(), "explained": explained.item(), "used_units": float((kl > 0.1).sum())}
