"""F.dropout is called without training=self.training, so half of the units are also dropped when the model is tested.

Coderx7/SimpleNet#2: functional dropout with training=True in forward; nn.Dropout in its place, as the author confirmed.
"""

import torch
import torch.nn.functional as F
from torch import nn


class SimpleNet(nn.Module):
    """A small CNN with dropout."""

    def __init__(self, faulty):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.classifier = nn.Linear(24, 10)
        self.faulty = faulty

    def drop(self, x):
        return F.dropout(x, 0.5, training=True if self.faulty else self.training)

    def forward(self, x):
        x = self.drop(F.max_pool2d(F.relu(self.conv1(x)), 2))
        x = F.relu(self.conv2(x))
        x = self.drop(F.max_pool2d(x, kernel_size=x.size()[2:]).flatten(1))
        return self.classifier(x)


def images(strokes, size):
    """Draw each class's strokes anywhere in a 12 x 12 image."""
    y = torch.randint(10, (size,))
    x = 0.2 * torch.randn(size, 1, 12, 12)
    for i, (r, c) in enumerate(torch.randint(7, (size, 2)).tolist()):
        x[i, 0, r : r + 5, c : c + 5] += strokes[y[i]]
    return x, y


def train(faulty, record):
    """Train and test in eval mode."""
    torch.manual_seed(0)
    strokes = (torch.rand(10, 5, 5) < 0.4).float()
    model = SimpleNet(faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    val_x, val_y = images(strokes, 1000)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(6):
            model.train()
            for _ in range(100):
                x, y = images(strokes, 32)
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
            model.eval()
            with torch.no_grad():
                out = model(val_x)
            val_loss, accuracy = F.cross_entropy(out, val_y).item(), (out.argmax(1) == val_y).float().mean().item()
            recorder.log_epoch(epoch=epoch, val_loss=val_loss, val_accuracy=accuracy)
    return {"loss": val_loss, "accuracy": accuracy}
