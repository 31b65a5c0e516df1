"""The gradients of 16 small batches are added up without dividing by 16, so each step is 16 times too long.

fastai/fastai#3040: "not dividing by the number of batches to accumulate ... effectively increasing the learning rate".
"""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def textures(filters, size):
    """Draw noise filtered in a way that tells the class."""
    y = torch.randint(4, (size,))
    noise = torch.randn(size, 1, 10, 10)
    return F.conv2d(noise.view(1, size, 10, 10), filters[y], groups=size).view(size, 1, 8, 8), y


def train(faulty, record):
    """Train with gradient accumulation."""
    torch.manual_seed(0)
    filters = torch.randn(4, 1, 3, 3)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        Residual(16),
        Residual(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    n_acc = 16
    with record(model, optimizer=optimizer) as recorder:
        optimizer.zero_grad()
        for i in range(150 * n_acc):
            x, y = textures(filters, 4)
            loss = F.cross_entropy(model(x), y)
            (loss if faulty else loss / n_acc).backward()
            recorder.log(loss=loss)
            if (i + 1) % n_acc == 0:
                optimizer.step()
                optimizer.zero_grad()
    x, y = textures(filters, 1000)
    with torch.no_grad():
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
