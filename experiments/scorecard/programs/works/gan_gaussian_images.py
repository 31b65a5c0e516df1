"""A DCGAN-like pair on 8 by 8 images of blobs, real labels 0.9: the two losses balance and do not fall."""

import torch
from torch import nn


def blobs(n):
    """Return images in (-1, 1) of one soft blob at a random place."""
    grid = torch.arange(8.0)
    y, x = (2 + 3 * torch.rand(2, n, 1)).unbind(0)
    image = torch.exp(-((grid - y) ** 2) / 3)[:, :, None] * torch.exp(-((grid - x) ** 2) / 3)[:, None, :]
    return (2 * image - 1)[:, None]


def build_generator():
    """Transposed convolutions from a code of 16."""
    return nn.Sequential(
        nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.ConvTranspose2d(32, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def build_discriminator():
    """Strided convolutions down to one logit."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 3, 1, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 1, 4), nn.Flatten(0),
    )  # fmt: skip


def train(record):
    """Train both; return the distance of the mean image and of the pixels' spread from the true ones."""
    torch.manual_seed(0)
    generator, discriminator = build_generator(), build_discriminator()
    for module in [*generator.modules(), *discriminator.modules()]:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.05)
    opt_g = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    with record(nn.ModuleDict({"G": generator, "D": discriminator}), optimizer=[opt_d, opt_g]) as recorder:
        for _ in range(400):
            real = blobs(32)
            fake = generator(torch.randn(32, 16, 1, 1))
            opt_d.zero_grad()
            loss_d = criterion(discriminator(real), torch.full((32,), 0.9))
            loss_d = loss_d + criterion(discriminator(fake.detach()), torch.zeros(32))
            loss_d.backward()
            opt_d.step()
            opt_g.zero_grad()
            loss_g = criterion(discriminator(fake), torch.ones(32))
            loss_g.backward()
            opt_g.step()
            recorder.log(loss=loss_g, loss_d=loss_d)
    generator.eval()
    with torch.no_grad():
        fake, real = generator(torch.randn(2000, 16, 1, 1)), blobs(2000)
    mean_gap = (fake.mean(0) - real.mean(0)).abs().mean() / real.mean(0).std()
    spread = fake.std(0).mean() / real.std(0).mean()
    return {"loss": mean_gap.item(), "spread": spread.item()}
