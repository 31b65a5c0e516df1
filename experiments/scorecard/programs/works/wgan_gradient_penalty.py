"""WGAN-GP on a ring in the plane: the critic has a gradient penalty, both losses wander, the samples get right."""

import math

import torch
from torch import autograd, nn


def mlp(inside, outside):
    """Three hidden layers of 64."""
    return nn.Sequential(
        nn.Linear(inside, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outside),
    )  # fmt: skip


def ring(n):
    """Return points near the unit circle."""
    angle = 2 * math.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2)


def gradient_penalty(critic, real, fake):
    """Penalise a slope other than 1 between real and fake points."""
    mix = torch.rand(len(real), 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    slope = autograd.grad(critic(between).sum(), between, create_graph=True)[0]
    return (slope.norm(dim=1) - 1).square().mean()


def train(record):
    """Train three critic steps per generator step; return how far the samples' radius is from 1."""
    torch.manual_seed(0)
    generator, critic = mlp(4, 2), mlp(2, 1)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    c_optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
    with record(critic, optimizer=c_optimizer) as recorder:
        for iteration in range(900):
            real = ring(64)
            fake = generator(torch.randn(64, 4)).detach()
            distance = critic(real).mean() - critic(fake).mean()
            loss = gradient_penalty(critic, real, fake) - distance
            c_optimizer.zero_grad()
            loss.backward()
            c_optimizer.step()
            recorder.log(loss=loss, distance=distance)
            if iteration % 3 == 2:
                critic.requires_grad_(False)
                g_optimizer.zero_grad()
                (-critic(generator(torch.randn(64, 4))).mean()).backward()
                g_optimizer.step()
                critic.requires_grad_(True)
    with torch.no_grad():
        points = generator(torch.randn(2000, 4))
        bins = torch.histc(torch.atan2(points[:, 1], points[:, 0]), 12, -math.pi, math.pi) / 2000
    return {"loss": (points.norm(dim=1) - 1).abs().mean().item(), "emptiest_sector": bins.min().item() * 12}
