"""The model is cast to float16 and Adam keeps eps=1e-8, which is 0 in float16: 0/0 makes the weights NaN.

pytorch/pytorch#8860: the asker and others mended it by eps=1e-4.
"""

import torch
from torch import nn


class HappyNet(nn.Module):
    """Fully connected layers with a softmax output."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(48, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.classifier = nn.Linear(128, 7)

    def forward(self, x):
        return self.classifier(self.features(x))


def train(faulty, record):
    """Train entirely in half precision."""
    torch.manual_seed(0)
    prototypes = torch.randn(7, 48)

    def draw(n):
        y = torch.randint(7, (n,))
        return (prototypes[y] + torch.randn(n, 48)).half(), y

    model = HappyNet().half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8 if faulty else 1e-4)
    criterion = nn.CrossEntropyLoss()
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = draw(64)
            optimizer.zero_grad()
            loss = criterion(model(x).float(), y)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = draw(1000)
    with torch.no_grad():
        out = model(x).float()
    return {"loss": criterion(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
