"""A linear probe: a trained backbone with batch norm is frozen and in eval mode, only a new linear layer learns."""

import torch
import torch.nn.functional as F
from torch import nn


class Probe(nn.Module):
    """A frozen backbone that stays in eval mode whatever train() says, and a head."""

    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(64, classes)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        return self.head(self.backbone(x))


def make_backbone():
    """Three linear layers with batch norm."""
    layers = []
    for inside, outside in ((36, 96), (96, 96), (96, 64)):
        layers += [nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def train(record):
    """Pretrain on twenty classes (unrecorded), probe on five others; return loss and accuracy."""
    torch.manual_seed(0)
    factors = torch.randn(10, 36)
    old, new = torch.randn(20, 10), torch.randn(5, 10)

    def batch(kinds, n=64):
        y = torch.randint(len(kinds), (n,))
        return torch.tanh((kinds[y] + 0.5 * torch.randn(n, 10)) @ factors / 2), y

    backbone, classifier = make_backbone(), nn.Linear(64, 20)
    pretrainer = torch.optim.Adam([*backbone.parameters(), *classifier.parameters()], lr=2e-3)
    for _ in range(200):
        x, y = batch(old)
        pretrainer.zero_grad()
        F.cross_entropy(classifier(backbone(x)), y).backward()
        pretrainer.step()
    model = Probe(backbone, 5).train()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            x, y = batch(new)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    with torch.no_grad():
        x, y = batch(new, 2000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
