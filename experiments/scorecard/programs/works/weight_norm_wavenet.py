"""A WaveNet-like stack of dilated causal convolutions with weight norm and gates, predicting quantised samples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Gate(nn.Module):
    """A dilated causal convolution with a gate, a residual and a skip output."""

    def __init__(self, width, dilation):
        super().__init__()
        self.dilated = weight_norm(nn.Conv1d(width, 2 * width, 2, dilation=dilation))
        self.mix = weight_norm(nn.Conv1d(width, 2 * width, 1))
        self.pad = dilation

    def forward(self, x):
        a, b = self.dilated(F.pad(x, (self.pad, 0))).chunk(2, 1)
        residual, skip = self.mix(torch.tanh(a) * torch.sigmoid(b)).chunk(2, 1)
        return x + residual, skip


class WaveNet(nn.Module):
    """Classify the next sample into 32 levels."""

    def __init__(self, levels=32, width=24):
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        self.gates = nn.ModuleList(Gate(width, d) for d in (1, 2, 4, 8))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, levels, 1))

    def forward(self, samples):
        x, total = self.embed(samples).transpose(1, 2), 0.0
        for gate in self.gates:
            x, skip = gate(x)
            total = total + skip
        return self.out(total)


def waves(n):
    """Return sums of two sines as levels from 0 to 31."""
    time = torch.arange(65.0)
    a, b = 0.2 + 0.2 * torch.rand(2, n, 1)
    wave = torch.sin(a * time + 6.28 * torch.rand(n, 1)) + 0.5 * torch.sin(3 * b * time)
    return ((wave / 1.6 + 1) * 15.5).long().clamp(0, 31)


def train(record):
    """Train; return the loss of the next sample and the accuracy within one level."""
    torch.manual_seed(0)
    model = WaveNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x = waves(16)
            loss = F.cross_entropy(model(x[:, :-1]), x[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x = waves(200)
        out = model(x[:, :-1])
    near = ((out.argmax(1) - x[:, 1:]).abs() <= 1).float().mean()
    return {"loss": F.cross_entropy(out, x[:, 1:]).item(), "accuracy": near.item()}
