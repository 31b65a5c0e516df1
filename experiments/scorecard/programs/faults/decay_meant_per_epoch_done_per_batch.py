"""The decay meant for each epoch is applied after each batch (cause as in SRGAN-PyTorch#1)."""

import torch
import torch.nn.functional as F
from torch import nn


def build():
    """An autoencoder of spectra."""
    return nn.Sequential(
        nn.Linear(64, 48), nn.SELU(), nn.Linear(48, 8), nn.SELU(), nn.Linear(8, 48), nn.SELU(), nn.Linear(48, 64)
    )


def spectra(n):
    """Return sums of three peaks of random place and height."""
    grid = torch.arange(64.0)
    place, height = 64 * torch.rand(n, 3, 1), 0.5 + torch.rand(n, 3, 1)
    return (height * torch.exp(-((grid - place) ** 2) / 60)).sum(1)


def train(faulty, record):
    """Train 10 epochs of 40 batches; return the squared error on fresh spectra and their variance."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
    data = spectra(1280)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(10):
            total = 0.0
            for x in data[torch.randperm(1280)].split(32):
                loss = F.mse_loss(model(x), x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if faulty:
                    scheduler.step()
                total += loss.item() / 40
                recorder.log(loss=loss)
            if not faulty:
                scheduler.step()
            recorder.log_epoch(epoch=epoch, train_loss=total)
    with torch.no_grad():
        x = spectra(1000)
        error = F.mse_loss(model(x), x)
    return {"loss": error.item(), "variance": x.var(0).mean().item()}
