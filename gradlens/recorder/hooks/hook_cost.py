"""The time that torch takes to call the recorder's hooks, which cannot be measured inside them."""

from __future__ import annotations

import functools
import statistics
import time

import torch
from torch import Tensor, nn

from gradlens.recorder.hooks.layer_hooks import LayerHook
from gradlens.recorder.hooks.placement import find_place
from gradlens.recorder.output_gradients import OutputGradients

LINKS = 32
ROUNDS = 15
WIDTH, BATCH = 64, 8


class _Link(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.eye(WIDTH, dtype=torch.float32, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@functools.cache
def seconds_per_hook() -> float:
    """Measure, once per process, the time that the hooks of one layer add to a forward and a backward pass.

    A chain of small layers runs with and without hooks in turn, about 30 ms in all. No random number is used.

    Returns:
        The median difference in seconds per call of a layer.
    """
    links = [_Link() for _ in range(LINKS)]
    outputs = OutputGradients(LINKS)

    def fail(error: Exception) -> None:
        raise error

    hooks = [LayerHook(i, outputs, fail, on_base=False, on_left_over=outputs.drop_pending) for i in range(LINKS)]
    places = [find_place(link, hook, directly=True) for link, hook in zip(links, hooks, strict=True)]
    x = torch.ones(BATCH, WIDTH, dtype=torch.float32, device="cpu", requires_grad=True)

    def run() -> float:
        started = time.perf_counter()
        y = x
        for link in links:
            y = link(y)
        torch.autograd.grad(y.sum(), x)
        return time.perf_counter() - started

    differences = []
    with torch.enable_grad():
        for _ in range(ROUNDS):
            bare = run()
            for place in places:
                place.put()
            differences.append(run() - bare)
            for place in places:
                place.clear()
            outputs.drop_pending()
    return max(statistics.median(differences), 0.0) / LINKS
