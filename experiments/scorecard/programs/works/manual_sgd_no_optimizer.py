"""No optimizer object at all: weights are updated by hand under no_grad, as in a first tutorial."""

import torch
import torch.nn.functional as F
from torch import nn


class LeNet(nn.Module):
    """Two convolutions and three linear layers with sigmoid-free activations."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5, padding=1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 60), nn.Linear(60, 42), nn.Linear(42, 5)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2).flatten(1)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def train(record):
    """Train with hand-written momentum; return loss and accuracy."""
    torch.manual_seed(0)
    glyphs = (F.avg_pool2d(torch.randn(5, 1, 14, 14), 3, 1) > 0.1).float()

    def batch(n):
        y = torch.randint(5, (n,))
        return torch.roll(glyphs[y], int(torch.randint(-1, 2, ())), 3) + 0.4 * torch.randn(n, 1, 12, 12), y

    model = LeNet()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    rate, momentum = 0.05, 0.8
    with record(model) as recorder:
        for _ in range(350):
            x, y = batch(32)
            loss = F.cross_entropy(model(x), y)
            model.zero_grad()
            loss.backward()
            recorder.step()
            with torch.no_grad():
                for p, v in zip(model.parameters(), velocity, strict=True):
                    v.mul_(momentum).add_(p.grad)
                    p -= rate * v
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = (torch.cat(part) for part in zip(*[batch(50) for _ in range(20)], strict=True))
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
