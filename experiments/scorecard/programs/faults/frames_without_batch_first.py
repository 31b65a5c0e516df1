"""The LSTM gets (batch, time, features) without batch_first: it runs along the batch and sees one frame of a clip.

AndersonJo/dqn-pytorch#1: batch_first=True was missing, the author agreed.
"""

import torch
from torch import nn


class GestureNet(nn.Module):
    """A small CNN per frame, an LSTM over the frames, a linear head."""

    def __init__(self, batch_first):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32))
        self.lstm = nn.LSTM(32, 48, batch_first=batch_first)
        self.head = nn.Linear(48, 4)

    def forward(self, clip):
        size, time = clip.shape[:2]
        frames = self.cnn(clip.flatten(0, 1)).view(size, time, -1)
        out, _ = self.lstm(frames)
        return self.head(out[:, -1])


def clips(size, time=7):
    """Draw a spot that rests in one of four corners and then wanders anywhere."""
    y = torch.randint(4, (size,))
    place = torch.randint(64, (size, time))
    place[:, :3] = torch.tensor([0, 7, 56, 63])[y].unsqueeze(1)
    x = 0.2 * torch.randn(size, time, 64)
    x.scatter_add_(2, place.unsqueeze(2), torch.ones(size, time, 1))
    return x.view(size, time, 1, 8, 8), y


def train(faulty, record):
    """Tell where a moving spot came from."""
    torch.manual_seed(0)
    model = GestureNet(batch_first=not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, y = clips(64)
            out = model(x)
            loss = nn.functional.cross_entropy(out, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            recorder.log(loss=loss, accuracy=(out.argmax(1) == y).float().mean())
    x, y = clips(1000)
    with torch.no_grad():
        out = model(x)
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
