"""The capsules' transformation matrices start at deviation 0.01, so squash() makes them and their gradients tiny.

ageron/handson-ml#176: the loss hardly moved at first; with 0.1 it "starts visible learning right away" (merged).
"""

import torch
from torch import nn


def squash(s):
    """Shrink short vectors to almost zero, long ones to length 1."""
    square = s.square().sum(-1, keepdim=True)
    return square / (1 + square) * s / (square + 1e-7).sqrt()


class CapsNet(nn.Module):
    """Primary capsules from a convolution, digit capsules by two rounds of routing."""

    def __init__(self, digits, init_sigma):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.conv2 = nn.Conv2d(32, 32, 5, stride=2)
        self.W = nn.Parameter(init_sigma * torch.randn(1, 64, digits, 8, 8))

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        primary = squash(x.flatten(1).unflatten(1, (64, 8)))
        predicted = (self.W @ primary[:, :, None, :, None]).squeeze(-1)
        raw = torch.zeros((*predicted.shape[:3], 1))
        for _ in range(2):
            caps = squash((raw.softmax(2) * predicted).sum(1, keepdim=True))
            raw = raw + (predicted * caps).sum(-1, keepdim=True)
        return (caps.squeeze(1).square().sum(-1) + 1e-7).sqrt()


def digits(shapes, size):
    """Draw noisy shapes, moved by up to two pixels."""
    y = torch.randint(len(shapes), (size,))
    x = shapes[y] + 0.3 * torch.randn(size, 1, 15, 15)
    return torch.roll(x, tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3)), y


def train(faulty, record):
    """Train with the margin loss."""
    torch.manual_seed(0)
    shapes = (torch.rand(5, 1, 15, 15) < 0.3).float()
    model = CapsNet(5, 0.01 if faulty else 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = digits(shapes, 16)
            norm, T = model(x), nn.functional.one_hot(y, 5)
            loss = (T * (0.9 - norm).relu() ** 2 + 0.5 * (1 - T) * (norm - 0.1).relu() ** 2).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, accuracy=(norm.argmax(1) == y).float().mean())
    x, y = digits(shapes, 500)
    with torch.no_grad():
        norm = model(x)
    return {"accuracy": (norm.argmax(1) == y).float().mean().item(), "norm": norm.max(1).values.mean().item()}
