"""Quantisation-aware training: 3-bit weights, 4-bit activations, gradients pass straight through."""

import torch
import torch.nn.functional as F
from torch import nn


class Round(torch.autograd.Function):
    """Round, with the identity as its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class QuantConv(nn.Conv2d):
    """A convolution with 3-bit weights and 4-bit inputs in [0, 1]."""

    def forward(self, x):
        scale = self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 3
        weight = Round.apply((self.weight / scale).clamp(-3, 3)) * scale
        return self._conv_forward(Round.apply(x.clamp(0, 1) * 15) / 15, weight, self.bias)


class Net(nn.Module):
    """Three quantised convolutions, each behind batch norm."""

    def __init__(self):
        super().__init__()
        sizes = [(1, 16), (16, 24), (24, 32)]
        self.convs = nn.ModuleList(QuantConv(a, b, 3, stride=2, padding=1, bias=False) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in sizes)
        self.classifier = nn.Linear(128, 7)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.hardtanh(norm(conv(x)), 0, 1)
        return self.classifier(x.flatten(1))


def train(record):
    """Train on prototypes in [0, 1]; return loss and accuracy of the quantised network."""
    torch.manual_seed(0)
    prototypes = torch.rand(7, 1, 16, 16)

    def batch(n):
        y = torch.randint(7, (n,))
        return (prototypes[y] + 0.4 * torch.randn(n, 1, 16, 16)).clamp(0, 1), y

    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = batch(64)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        x, y = batch(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
