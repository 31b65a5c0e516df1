"""After global pooling each channel is one number, and GroupNorm with a group per channel turns every one into zero.

pytorch/pytorch#19250: normalising a single element outputs all zeros "which would effectively prevent any learning".
"""

import torch
from torch import nn


class ASPPPooling(nn.Module):
    """Global context: pooling, a 1 x 1 convolution and a norm."""

    def __init__(self, width, groups):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv2d(width, width, 1, bias=False)
        self.norm = nn.GroupNorm(groups, width)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(self.pool(x))))


class ContextNet(nn.Module):
    """Convolutions with group norm and a head on the pooled context."""

    def __init__(self, groups):
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(8, 24), nn.ReLU(), nn.MaxPool2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(24, 48, 3, padding=1), nn.GroupNorm(8, 48), nn.ReLU())
        self.context = ASPPPooling(48, groups)
        self.classifier = nn.Linear(48, 5)

    def forward(self, x):
        return self.classifier(self.context(self.block2(self.block1(x))).flatten(1))


def places(filters, size):
    """Draw textures."""
    y = torch.randint(5, (size,))
    noise = torch.randn(size, 1, 14, 14)
    x = [nn.functional.conv2d(n[None], filters[k]) for n, k in zip(noise, y, strict=True)]
    return torch.cat(x), y


def train(faulty, record):
    """Tell textures."""
    torch.manual_seed(0)
    filters = torch.randn(5, 3, 1, 3, 3)
    net = ContextNet(groups=48 if faulty else 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    with record(net, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = places(filters, 32)
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = places(filters, 500)
    with torch.no_grad():
        out = net(x)
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
