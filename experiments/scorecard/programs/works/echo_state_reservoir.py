"""An echo state network: a random recurrent reservoir that is never trained, only the readout learns."""

import torch
import torch.nn.functional as F
from torch import nn


class Reservoir(nn.Module):
    """A fixed sparse recurrent network with a trained linear readout."""

    def __init__(self, size=200, radius=0.9):
        super().__init__()
        self.win = nn.Linear(1, size)
        self.rec = nn.Linear(size, size, bias=False)
        self.readout = nn.Linear(size, 1)
        with torch.no_grad():
            sparse = torch.randn(size, size) * (torch.rand(size, size) < 0.1)
            self.rec.weight.copy_(sparse * radius / torch.linalg.eigvals(sparse).abs().max())
        self.win.requires_grad_(False)
        self.rec.requires_grad_(False)

    def states(self, series):
        h, out = torch.zeros(len(series), self.rec.in_features), []
        for t in range(series.shape[1]):
            h = torch.tanh(self.win(series[:, t : t + 1]) + self.rec(h))
            out.append(h)
        return torch.stack(out, 1)

    def forward(self, series):
        return self.readout(self.states(series)[:, 10:])[..., 0]


def memory_task(n):
    """Return a random series and a product of past values to be recalled."""
    x = torch.rand(n, 40) - 0.5
    return x, 4 * x.roll(2, 1)[:, 10:] * x.roll(3, 1)[:, 10:] + x.roll(1, 1)[:, 10:]


def train(record):
    """Train the readout; return the squared error and the variance of the target."""
    torch.manual_seed(0)
    model = Reservoir()
    optimizer = torch.optim.Adam(model.readout.parameters(), lr=1e-2)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            x, y = memory_task(32)
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = memory_task(500)
        error = F.mse_loss(model(x), y)
    return {"loss": error.item(), "variance": y.var().item()}
