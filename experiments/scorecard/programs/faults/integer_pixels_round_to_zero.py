"""Pixels are scaled to 0..1 while the array is still of integers, so every pixel becomes 0.

keras-team/keras#255: "the array was still int, and each pixel became 0. Now ... the model is learning."
"""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def screenshots(n, rng):
    """Draw grey images; in the first class there is another player (a bright blob)."""
    y = rng.integers(2, size=n)
    x = rng.integers(20, 120, size=(n, 1, 16, 16))
    for i in np.flatnonzero(y == 0):
        r, c = rng.integers(12, size=2)
        x[i, 0, r : r + 4, c : c + 4] += 100
    return x.astype(np.uint8), y


def train(faulty, record):
    """Tell images with a player from those without."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x, y = screenshots(2400, rng)
    if faulty:
        x[:] = x / 255  # stays uint8
    else:
        x = x / 255
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    loader = DataLoader(TensorDataset(x[:2000], y[:2000]), batch_size=50, shuffle=True)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 64),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(64, 2),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    with record(net, optimizer=optimizer) as recorder:
        for epoch in range(8):
            total = 0.0
            for images, labels in loader:
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / len(loader)
            recorder.log_epoch(epoch=epoch, train_loss=total)
    net.eval()
    with torch.no_grad():
        out = net(x[2000:])
    right = (out.argmax(1) == y[2000:]).float().mean().item()
    return {"loss": nn.functional.cross_entropy(out, y[2000:]).item(), "accuracy": right}
