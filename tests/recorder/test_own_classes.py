"""Classes and functions of a user's own: a module with another ``parameters()``, a function that makes gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradlens
from gradlens.errors import GradlensWarning
from gradlens.recorder import Recorder
from gradlens.sinks import ListSink


class Learner(nn.Module):
    """Keeps its weights in a list, and has ``parameters()`` without the usual argument."""

    def __init__(self) -> None:
        super().__init__()
        self.vars = nn.ParameterList([nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.vars[0], self.vars[1])

    def parameters(self) -> Iterator[nn.Parameter]:  # type: ignore[override]
        return iter(self.vars)


class Adjoint(torch.autograd.Function):
    """Runs a module without a graph, and once more with one when the gradient is needed."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.module, ctx.parameters = module, parameters
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            found = torch.autograd.grad(ctx.module(x), (x, *ctx.parameters), grads)
        return (None, *found)


class Solver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return Adjoint.apply(self.net, x, *self.net.parameters())


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_module_may_have_parameters_of_its_own_kind(is_inside: bool) -> None:
    torch.manual_seed(0)
    learner, sink = Learner(), ListSink()
    model = nn.Sequential(nn.Linear(4, 4), learner) if is_inside else learner
    optimizer = torch.optim.SGD(list(model.parameters()), 0.1)
    norms = []
    said = (
        contextlib.nullcontext()
        if is_inside
        else pytest.warns(GradlensWarning, match="activation_grad_norm is missing")
    )
    with said, Recorder(model, sink, optimizer=optimizer, on_error="raise") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            norms.append(float(torch.stack([p.grad.double().norm() for p in learner.parameters()]).norm()))
            optimizer.step()
            recorder.log(loss=loss)
    assert [row.metrics["param_grad_norm"][-1] for row in sink.rows] == pytest.approx(norms, rel=1e-6)


def test_a_function_that_runs_the_model_inside_it_is_not_another_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Solver()
    optimizer = torch.optim.Adam(model.parameters(), 1e-6)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for _ in range(30):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    run = gradlens.read_run(tmp_path / "run.h5")
    assert [item["op"] for item in run.facts["graph"]["own_functions"]] == ["Adjoint"]
    assert run.facts["graph"]["modules"]["reached"] == 0
    assert not gradlens.diagnose(run).findings


def test_backward_of_a_penalty_alone_is_still_another_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for _ in range(30):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x)
            sum(p.square().sum() for p in model.parameters()).backward()
            optimizer.step()
            recorder.log(loss=loss)
    assert gradlens.diagnose(tmp_path / "run.h5").findings[0].cause == "backward is called on another loss"
