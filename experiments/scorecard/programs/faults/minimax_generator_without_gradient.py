"""A strong discriminator and log(1 - D(G(z))) leave the generator nothing (as in ganhacks#36)."""

import torch
import torch.nn.functional as F
from torch import nn


def generator():
    """Code to a signal of 24 samples."""
    return nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 24))


def discriminator():
    """Signal to a logit."""
    return nn.Sequential(nn.Linear(24, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2), nn.Linear(96, 1))


def pulses(n):
    """Return smooth pulses around sample 6 to 18, of height 2."""
    place = 6 + 12 * torch.rand(n, 1)
    return 2 * torch.exp(-((torch.arange(24.0) - place) ** 2) / 8) + 1


def train(faulty, record):
    """Train; return how far the mean signal of the generator is from the true one, in its own spread."""
    torch.manual_seed(0)
    g, d = generator(), discriminator()
    opt_g = torch.optim.SGD(g.parameters(), lr=0.02, momentum=0.5)
    opt_d = torch.optim.Adam(d.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for _ in range(150):
        loss_d = (F.softplus(-d(pulses(64))) + F.softplus(d(g(torch.randn(64, 8)).detach()))).mean()
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
    with record(g, optimizer=opt_g) as recorder:
        for _ in range(500):
            fake = g(torch.randn(64, 8))
            loss_d = (F.softplus(-d(pulses(64))) + F.softplus(d(fake.detach()))).mean()
            opt_d.zero_grad()
            loss_d.backward()
            opt_d.step()
            logit = d(fake)
            loss = torch.log(1 - torch.sigmoid(logit) + 1e-8).mean() if faulty else F.softplus(-logit).mean()
            opt_g.zero_grad()
            loss.backward()
            opt_g.step()
            recorder.log(loss=loss, loss_d=loss_d)
    g.eval()
    with torch.no_grad():
        fake, real = g(torch.randn(2000, 8)), pulses(2000)
    return {"loss": ((fake.mean(0) - real.mean(0)).abs().mean() / real.std()).item()}
