"""A neural differential equation: one network is called 25 times along a path and fitted to observed trajectories."""

import torch
from torch import nn


class Dynamics(nn.Module):
    """dy/dt as a function of y cubed, as is usual for this spiral."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for layer in (self.net[0], self.net[2]):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, y):
        return self.net(y**3)


def integrate(f, y, steps, dt=0.04):
    """Return the states after each step of the midpoint rule, shape (steps, batch, 2)."""
    path = []
    for _ in range(steps):
        y = y + dt * f(y + 0.5 * dt * f(y))
        path.append(y)
    return torch.stack(path)


def train(record):
    """Fit paths of 25 steps; return the error of paths of 60 steps, and that of standing still."""
    torch.manual_seed(0)
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    starts = 4 * torch.rand(400, 2) - 2
    truth = integrate(lambda y: y**3 @ matrix, starts, 25)
    model = Dynamics()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(450):
            index = torch.randint(400, (32,))
            path = integrate(model, starts[index], 25)
            loss = (path - truth[:, index]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        fresh = 4 * torch.rand(300, 2) - 2
        real = integrate(lambda y: y**3 @ matrix, fresh, 60)
        error = (integrate(model, fresh, 60) - real).abs().mean()
    return {"loss": error.item(), "standing_still": (real - fresh).abs().mean().item()}
