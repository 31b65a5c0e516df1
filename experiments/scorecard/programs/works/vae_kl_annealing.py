"""A variational autoencoder on rectangles; the KL weight rises from 0 to 1, and the loss with it."""

import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    """Gaussian encoder, Bernoulli decoder."""

    def __init__(self, latent=6):
        super().__init__()
        self.fc1 = nn.Linear(144, 128)
        self.fc_mu = nn.Linear(128, latent)
        self.fc_logvar = nn.Linear(128, latent)
        self.fc3 = nn.Linear(latent, 128)
        self.fc4 = nn.Linear(128, 144)

    def encode(self, x):
        h = F.relu(self.fc1(x))
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z):
        return self.fc4(F.relu(self.fc3(z)))

    def forward(self, x):
        mu, logvar = self.encode(x)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        return self.decode(z), mu, logvar


def bars(n):
    """Return images of 12 by 12 that show a rectangle of random place and size."""
    at = torch.arange(12.0)
    centre, half = 2 + 8 * torch.rand(2, n, 1), 1 + 3 * torch.rand(2, n, 1)
    rows, cols = torch.sigmoid(4 * (half - (at - centre).abs())).unbind(0)
    return (rows[:, :, None] * cols[:, None, :]).flatten(1)


def train(record):
    """Train; return the loss per image and the share of variance that the mean code explains."""
    torch.manual_seed(0)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for step in range(500):
            x = bars(64)
            out, mu, logvar = model(x)
            bce = F.binary_cross_entropy_with_logits(out, x, reduction="sum") / len(x)
            kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum() / len(x)
            loss = bce + min(1.0, step / 250) * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, bce=bce, kl=kl)
    with torch.no_grad():
        x = bars(1000)
        out = model.decode(model.encode(x)[0])
        loss = F.binary_cross_entropy_with_logits(out, x, reduction="sum") / len(x)
        explained = 1 - F.mse_loss(out.sigmoid(), x) / x.var(0, unbiased=False).mean()
    return {"loss": loss.item(), "explained": explained.item()}
