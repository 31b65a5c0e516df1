"""A physics-informed network for the heat equation: the loss is made of first and second derivatives by autograd."""

import math

import torch
from torch import nn


class Field(nn.Module):
    """Tanh network u(x, t)."""

    def __init__(self, width=32):
        super().__init__()
        layers = []
        for inside in (2, width, width):
            layers += [nn.Linear(inside, width), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t], 1))


def derivative(u, x):
    """Return du/dx, itself differentiable."""
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def train(record):
    """Solve u_t = 0.1 u_xx with u(x, 0) = sin(pi x) and u = 0 at both ends; return the error against the solution."""
    torch.manual_seed(0)
    model = Field()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 200, 0.5)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            x, t = torch.rand(64, 1, requires_grad=True), torch.rand(64, 1, requires_grad=True)
            u = model(x, t)
            residual = derivative(u, t) - 0.1 * derivative(derivative(u, x), x)
            edge = torch.randint(2, (32, 1)).float()
            start = torch.rand(32, 1)
            boundary = model(edge, torch.rand(32, 1)).square().mean()
            initial = (model(start, torch.zeros(32, 1)) - torch.sin(math.pi * start)).square().mean()
            loss = residual.square().mean() + 5 * (boundary + initial)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            recorder.log(loss=loss, residual=residual.square().mean(), boundary=boundary, initial=initial)
    with torch.no_grad():
        x, t = torch.rand(2000, 1), torch.rand(2000, 1)
        exact = torch.sin(math.pi * x) * torch.exp(-0.1 * math.pi**2 * t)
        error = (model(x, t) - exact).norm() / exact.norm()
    return {"loss": loss.item(), "relative_error": error.item()}
