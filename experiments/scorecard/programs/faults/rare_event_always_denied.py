"""One time step in a hundred is an event, and the model always says no (cause as in cell_counting_v2#9)."""

import torch
import torch.nn.functional as F
from torch import nn


class EventDetector(nn.Module):
    """Dilated convolutions over a signal, a logit per time step."""

    def __init__(self, width=12):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, width, 5, padding=2), nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=4, dilation=2), nn.ReLU(),
            nn.Conv1d(width, 1, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)[:, 0]


def recordings(n, length=100):
    """Return two noisy channels; an event is a bump in one and a dip in the other."""
    event = torch.rand(n, length) < 0.01
    bump = F.conv1d(event.float()[:, None], torch.tensor([[[0.5, 1.0, 0.5]]]), padding=1)
    return torch.cat([bump, -bump], 1) * 1.2 + 0.45 * torch.randn(n, 2, length), event


def train(faulty, record):
    """Train; return the balanced error and the share of events that are found."""
    torch.manual_seed(0)
    model = EventDetector()
    weight = None if faulty else torch.tensor(50.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, event = recordings(16)
            loss = F.binary_cross_entropy_with_logits(model(x), event.float(), pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, event = recordings(500)
        said = model(x) > 0
    found, false = said[event].float().mean().item(), said[~event].float().mean().item()
    return {"loss": (1 - found + false) / 2, "found": found}
