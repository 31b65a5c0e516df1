"""L-BFGS with a closure: several backward passes per optimizer step, few steps, full batch of a small data set."""

import torch
import torch.nn.functional as F
from torch import nn


def train(record):
    """Fit a damped oscillation; return the squared error between the trained points and the variance."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 120)[:, None]
    between = (x[1:] + x[:-1]) / 2

    def curve(t):
        return torch.exp(-0.3 * (t + 3)) * torch.sin(4 * t)

    target = curve(x)
    model = nn.Sequential()
    model.add_module("hidden1", nn.Linear(1, 24))
    model.add_module("act1", nn.Tanh())
    model.add_module("hidden2", nn.Linear(24, 24))
    model.add_module("act2", nn.Tanh())
    model.add_module("output", nn.Linear(24, 1))
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=0.5, max_iter=8, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        return loss

    with record(model, optimizer=optimizer) as recorder:
        for _ in range(150):
            loss = optimizer.step(closure)
            recorder.log(loss=loss)
    with torch.no_grad():
        error = F.mse_loss(model(between), curve(between))
    return {"loss": error.item(), "variance": target.var().item()}
