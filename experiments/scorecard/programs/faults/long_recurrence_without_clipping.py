"""A ReLU recurrence over 60 steps explodes and nothing clips (cause as in lstmp.pytorch#2)."""

import torch
import torch.nn.functional as F
from torch import nn


class Counter(nn.Module):
    """A hand-written recurrence, the last state tells the answer."""

    def __init__(self, width=40):
        super().__init__()
        self.inp, self.rec = nn.Linear(3, width), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, 4)
        nn.init.orthogonal_(self.rec.weight, gain=1.35)

    def forward(self, x):
        h = torch.zeros(len(x), self.rec.in_features)
        for frame in x.unbind(1):
            h = F.relu(self.inp(frame) + self.rec(h))
        return self.out(h)


def gestures(n):
    """Return noisy paths of 60 frames of four kinds."""
    y, time = torch.randint(4, (n,)), torch.linspace(0, 1, 60)
    pace = torch.tensor([1.0, 2.0, 3.0, 4.0])[y, None]
    path = torch.stack([torch.sin(6.3 * pace * time), torch.cos(6.3 * pace * time), time.expand(n, -1)], -1)
    return path + 0.2 * torch.randn(n, 60, 3), y


def train(faulty, record):
    """Train; return loss and accuracy on fresh paths."""
    torch.manual_seed(0)
    model = Counter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.5)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, y = gestures(32)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            if not faulty:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = gestures(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
