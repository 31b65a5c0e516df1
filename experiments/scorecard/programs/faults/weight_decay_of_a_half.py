"""The weight decay of 0.5 pulls all weights to zero, and every image gives the same joint coordinates.

BVLC/caffe#1396: if the weight decay is large (like 0.5) all the weights become zero; 0.0005 mended it.
"""

import argparse

import torch
from torch import nn


def options(faulty):
    """Return the solver's options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base_lr", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight_decay", type=float, default=0.5 if faulty else 0.0005)
    parser.add_argument("--max_iter", type=int, default=300)
    return parser.parse_args([])


def poses(size):
    """Draw images with two bright joints, and the joints' coordinates in -1..1."""
    xy = torch.rand(size, 2, 2) * 2 - 1
    grid = torch.linspace(-1, 1, 16)
    d = (grid.view(1, 1, 16, 1) - xy[..., 0, None, None]) ** 2 + (grid.view(1, 1, 1, 16) - xy[..., 1, None, None]) ** 2
    image = torch.exp(-d / 0.08) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    return image.sum(1, keepdim=True) + 0.05 * torch.randn(size, 1, 16, 16), xy.flatten(1)


def train(faulty, record):
    """Regress joints."""
    torch.manual_seed(0)
    args = options(faulty)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(1, 16, 5, stride=2, padding=2))
    net.add_module("relu1", nn.ReLU())
    net.add_module("conv2", nn.Conv2d(16, 32, 3, stride=2, padding=1))
    net.add_module("relu2", nn.ReLU())
    net.add_module("flat", nn.Flatten())
    net.add_module("ip1", nn.Linear(512, 128))
    net.add_module("relu3", nn.ReLU())
    net.add_module("ip2", nn.Linear(128, 4))
    solver = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=args.momentum, weight_decay=args.weight_decay)
    with record(net, optimizer=solver) as recorder:
        for _ in range(args.max_iter):
            image, joints = poses(64)
            loss = 0.5 * (net(image) - joints).square().sum(1).mean()
            solver.zero_grad()
            loss.backward()
            solver.step()
            recorder.log(loss=loss)
    image, joints = poses(500)
    with torch.no_grad():
        out = net(image)
    return {"loss": nn.functional.mse_loss(out, joints).item(), "variance": joints.var().item()}
