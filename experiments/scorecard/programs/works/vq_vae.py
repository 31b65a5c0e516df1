"""A VQ-VAE: nearest codes, the encoder's gradient is copied straight through, three loss terms."""

import torch
import torch.nn.functional as F
from torch import nn


class VectorQuantizer(nn.Module):
    """A codebook of vectors."""

    def __init__(self, codes=24, width=8):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z):
        flat = z.movedim(1, -1).flatten(0, -2)
        index = torch.cdist(flat, self.embedding.weight).argmin(1)
        q = self.embedding(index).unflatten(0, (z.shape[0], *z.shape[2:])).movedim(-1, 1)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), loss, index


class VQVAE(nn.Module):
    """Convolutional encoder and decoder around the codebook."""

    def __init__(self, width=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 32, 4, 4), nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, width, 1)
        )
        self.quantizer = VectorQuantizer(width=width)
        self.decoder = nn.Sequential(nn.Conv1d(width, 32, 1), nn.ReLU(), nn.ConvTranspose1d(32, 1, 4, 4))

    def forward(self, x):
        q, loss, index = self.quantizer(self.encoder(x))
        return self.decoder(q), loss, index


def signals(n, motifs):
    """Return signals of 8 motifs in a row, with a little noise."""
    return (motifs[torch.randint(len(motifs), (n, 8))].flatten(1) + 0.1 * torch.randn(n, 32))[:, None]


def train(record):
    """Train; return the loss, what is explained and how many codes are in use."""
    torch.manual_seed(0)
    motifs = torch.randn(12, 4)
    model = VQVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            x = signals(48, motifs)
            out, vq, _ = model(x)
            fit = F.mse_loss(out, x)
            loss = fit + vq
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, reconstruction=fit, vq=vq)
    with torch.no_grad():
        x = signals(500, motifs)
        out, vq, index = model(x)
    explained = 1 - F.mse_loss(out, x) / x.var()
    return {
        "loss": (F.mse_loss(out, x) + vq).item(),
        "explained": explained.item(),
        "codes": float(len(index.unique())),
    }
