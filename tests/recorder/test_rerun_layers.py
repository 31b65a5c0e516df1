"""Layers that a function runs again in the backward pass: their gradients are right or missing, in every row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink

NAMES = ("first", "body.0", "body.2", "last")


class Rerun(torch.autograd.Function):
    """A checkpoint as several libraries write it: no graph in the forward pass, autograd.grad in the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.x, ctx.parameters = run, x, parameters
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.x.detach().requires_grad_()
            found = torch.autograd.grad(ctx.run(x.view_as(x)), (x, *ctx.parameters), grads)
        return (None, *found)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden + Rerun.apply(self.body, hidden, *self.body.parameters()))


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_a_layer_that_is_run_again_has_the_gradient_of_all_micro_batches_or_none(micro_batches: int) -> None:
    torch.manual_seed(0)
    model, sink, squares, truth = Model(), ListSink(), dict.fromkeys(NAMES, 0.0), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def watch(name: str) -> None:
        def on_output(_module: nn.Module, _args: Any, output: Tensor) -> None:
            def on_grad(grad: Tensor) -> None:
                squares[name] += float(grad.double().square().sum())

            if output.requires_grad:
                output.register_hook(on_grad)

        model.get_submodule(name).register_forward_hook(on_output)

    for name in NAMES:
        watch(name)
    with Recorder(model, sink, optimizer=optimizer, on_error="raise"):
        for _ in range(14):
            optimizer.zero_grad()
            for _ in range(micro_batches):
                (model(torch.randn(3, 4)).square().mean() / micro_batches).backward()
            optimizer.step()
            truth.append([math.sqrt(squares[name]) for name in NAMES])
            squares.update(dict.fromkeys(NAMES, 0.0))
    order = [[layer.name for layer in sink.header.layers].index(name) for name in NAMES]
    found = np.array([row.metrics["activation_grad_norm"] for row in sink.rows])[:, order]
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], np.array(truth)[known], rtol=1e-6)
    assert known[:, 0].all()
    assert known[-1].all()
