"""Small trainings with one fault each, and the same training without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink

Facts = dict[str, Any]
STEPS = 12
"""Steps 0 to 4 and 8 are looked at."""


def inputs(step: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(step))


def classes(step: int, count: int = 16) -> Tensor:
    return torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(step))


def mlp(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3), *extra)


def cross_entropy(model: nn.Module, step: int) -> Tensor:
    return functional.cross_entropy(model(inputs(step, 16, 4)), classes(step))


def follow(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    clear: bool = True,
    between: Callable[[int], None] = lambda step: None,
    after: Callable[[int], None] = lambda step: None,
    steps: int = STEPS,
    parameters: Iterable[nn.Parameter] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Facts:
    """Train, and return the facts.

    Args:
        model: The model.
        loss_of: Step to loss.
        optimizer: SGD over ``parameters`` if left out.
        clear: Whether gradients are cleared before each backward pass.
        between: Called between backward pass and step.
        after: Called after the step.
        steps: Number of steps.
        parameters: All of the model's if left out.
        scaler: Given to the recorder.
    """
    optimizer = optimizer or torch.optim.SGD(parameters or model.parameters(), 0.1)
    sink = ListSink()
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler, on_error="raise") as recorder:
        for step in range(steps):
            loss = loss_of(step)
            if clear:
                optimizer.zero_grad()
            loss.backward()
            between(step)
            optimizer.step()
            after(step)
            recorder.log(loss=loss.detach())
    return sink.facts


class Branches(nn.Module):
    """An encoder and a second input, and a head over both."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.other, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.cut(self.encoder(x)) + self.other(x)))


class Hidden(nn.Module):
    """A model whose middle layers are in a plain list, or registered."""

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        layers = [nn.Linear(8, 8) for _ in range(2)]
        self.middle = nn.ModuleList(layers) if registered else layers

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for layer in self.middle:
            x = torch.tanh(layer(x))
        return self.last(x)
