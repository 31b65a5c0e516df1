"""One plain training loop, recorded and diagnosed, for the small programs of these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gradlens


def train_on(
    path: Path,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    steps: int = 60,
    after: Callable[[], None] = lambda: None,
) -> gradlens.Diagnosis:
    """Train a model, and diagnose it.

    Args:
        path: The run file.
        model: The model.
        loss_of: Step to loss.
        optimizer: Adam with a learning rate of 0.01 if left out.
        steps: Number of steps.
        after: Is called after each step.
    """
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 0.01)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
            after()
    return gradlens.diagnose(path)
