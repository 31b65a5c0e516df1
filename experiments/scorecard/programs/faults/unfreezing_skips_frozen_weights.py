"""Unfreezing only looks at weights that are trainable already (cause as in byol-a#7): none is unfrozen."""

import torch
import torch.nn.functional as F
from torch import nn


class Recommender(nn.Module):
    """Item tower and user tower; the towers are frozen while the scale is calibrated."""

    def __init__(self, users=100, items=80, width=16):
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_net = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 8))
        self.item_net = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 8))
        self.calibrate = nn.Linear(1, 1)

    def towers(self):
        return [self.user, self.item, self.user_net, self.item_net]

    def forward(self, user, item):
        score = (self.user_net(self.user(user)) * self.item_net(self.item(item))).sum(1, keepdim=True)
        return self.calibrate(score)[:, 0]


def set_trainable(modules, flag, only_trainable):
    """Set requires_grad of all weights."""
    for module in modules:
        for p in module.parameters():
            if only_trainable and not p.requires_grad:
                continue
            p.requires_grad = flag


def train(faulty, record):
    """Calibrate for 30 steps, then train all; return the loss and the accuracy of likes."""
    torch.manual_seed(0)
    likes = torch.randn(100, 3) @ torch.randn(3, 80) > 0

    def batch(n):
        user, item = torch.randint(100, (n,)), torch.randint(80, (n,))
        return user, item, likes[user, item].float()

    model = Recommender()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    set_trainable(model.towers(), False, faulty)
    with record(model, optimizer=optimizer) as recorder:
        for step in range(500):
            if step == 30:
                set_trainable(model.towers(), True, faulty)
            user, item, y = batch(128)
            loss = F.binary_cross_entropy_with_logits(model(user, item), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        user, item, y = batch(4000)
        out = model(user, item)
    accuracy = ((out > 0).float() == y).float().mean().item()
    return {"loss": F.binary_cross_entropy_with_logits(out, y).item(), "accuracy": accuracy}
