"""A denoising autoencoder with tied weights: the decoder uses the encoder's matrices transposed."""

import torch
import torch.nn.functional as F
from torch import nn


class TiedAutoencoder(nn.Module):
    """Two linear layers up, the same two down."""

    def __init__(self, sizes=(50, 32, 6)):
        super().__init__()
        self.enc1, self.enc2 = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(sizes[1])), nn.Parameter(torch.zeros(sizes[0]))

    def forward(self, x):
        code = self.enc2(F.elu(self.enc1(x)))
        hidden = F.elu(F.linear(code, self.enc2.weight.t(), self.bias1))
        return F.linear(hidden, self.enc1.weight.t(), self.bias2)


def train(record):
    """Train in epochs with early stopping on a validation set; return the loss and what is explained."""
    torch.manual_seed(0)
    mix = torch.randn(6, 50) / 6**0.5

    def data(n):
        return torch.randn(n, 6) @ mix

    x_train, x_val, x_test = data(2000), data(400), data(2000)
    model = TiedAutoencoder()
    optimizer = torch.optim.NAdam(model.parameters(), lr=3e-3)
    best, patience = float("inf"), 3
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(12):
            total = 0.0
            for x in x_train[torch.randperm(2000)].split(50):
                noisy = x + 0.2 * torch.randn_like(x)
                loss = F.mse_loss(model(noisy), x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / 40
                recorder.log(loss=loss)
            with torch.no_grad():
                val = F.mse_loss(model(x_val), x_val).item()
            recorder.log_epoch(epoch=epoch, train_loss=total, val_loss=val)
            best, patience = (val, 3) if val < best else (best, patience - 1)
            if patience == 0:
                break
    with torch.no_grad():
        error = F.mse_loss(model(x_test), x_test)
    return {"loss": error.item(), "explained": 1 - (error / x_test.var()).item()}
