"""MAML with functional_call: two inner steps on sine waves, the outer gradient goes through them (second order)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


def sine_task(shots):
    """Return support and query points of one random sine wave."""
    amplitude, phase = 0.5 + 2 * torch.rand(()), 3.1 * torch.rand(())
    x = 10 * torch.rand(2 * shots, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return x[:shots], y[:shots], x[shots:], y[shots:]


def adapt(model, params, x, y, steps=2, rate=0.02):
    """Return the weights after some steps of gradient descent on (x, y)."""
    for _ in range(steps):
        loss = F.mse_loss(functional_call(model, params, x), y)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: p - rate * g for (name, p), g in zip(params.items(), grads, strict=True)}
    return params


def evaluate(model, tasks=100):
    """Return the mean query loss before and after adaptation."""
    before = after = 0.0
    for _ in range(tasks):
        x, y, query, truth = sine_task(10)
        params = dict(model.named_parameters())
        before += F.mse_loss(model(query), truth).item() / tasks
        after += F.mse_loss(functional_call(model, adapt(model, params, x, y, 5), query), truth).item() / tasks
    return before, after


def train(record):
    """Train with four tasks per outer step; return the loss after five inner steps on new tasks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    _, untrained = evaluate(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            outer = 0.0
            for _ in range(4):
                x, y, query, truth = sine_task(10)
                fast = adapt(model, dict(model.named_parameters()), x, y)
                outer = outer + F.mse_loss(functional_call(model, fast, query), truth) / 4
            optimizer.zero_grad()
            outer.backward()
            optimizer.step()
            recorder.log(loss=outer)
    before, after = evaluate(model)
    return {"loss": after, "loss_before_adaptation": before, "loss_untrained": untrained}
