"""Values through the recorder, against float64: under autocast, at extreme sizes, and of very large tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder import Recorder
from gradlens.recorder.layers import choose_layers, own_parameters
from gradlens.recorder.output_gradients import KEPT
from gradlens.sinks import ListSink
from tests.recorder.case import rand
from tests.recorder.truth import norm64

RTOL = 1e-6
STEPS = 3

Loss = Callable[[Tensor], Tensor]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(2),
        nn.Linear(36, 16),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def images(step: int) -> Tensor:
    return rand(16, 3, 8, 8, seed=step)


def loss_of(output: Tensor) -> Tensor:
    return functional.cross_entropy(output.float(), torch.arange(len(output)) % output.shape[-1])


def keep(output: Tensor, grads: list[Tensor]) -> None:
    output.register_hook(grads.append)


@contextmanager
def kept_gradients(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Keep the gradient of each layer's output as it comes, in its own precision."""
    grads: dict[str, list[Tensor]] = {name: [] for name in choose_layers(model)}

    handles = [
        module.register_forward_hook(lambda m, args, output, name=name: keep(output, grads[name]))
        for name, module in choose_layers(model).items()
    ]
    yield grads
    for handle in handles:
        handle.remove()


def find_norms(
    model: nn.Module, x: Tensor, dtype: torch.dtype | None, loss: Loss, scale: float = 1.0
) -> tuple[list[float], list[float], set[torch.dtype], bool]:
    """Return the norms of outputs' and parameters' gradients of a copy without in-place operations.

    And what precisions the outputs' gradients have, and whether a norm in that precision overflows.
    """
    model = copy.deepcopy(model)
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with kept_gradients(model) as grads:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = model(x)
        (loss(output) * scale).backward()
    own = [[p.grad for p in own_parameters(module)] for module in choose_layers(model).values()]
    every = [grad for mine in grads.values() for grad in mine]
    overflows = any(bool(torch.isinf(grad.norm())) for grad in every)
    outputs = [norm64(mine) / scale for mine in grads.values()]
    return outputs, [norm64(mine) / scale for mine in own], {grad.dtype for grad in every}, overflows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not-cached"])
def test_under_autocast(dtype: torch.dtype, cached: bool) -> None:
    model, sink = build(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        truths = []
        for step in range(STEPS):
            truths.append(find_norms(model, images(step), dtype, loss_of))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype, cache_enabled=cached):
                output = model(images(step))
            loss_of(output).backward()
            optimizer.step()
    assert truths[0][2] == {dtype}
    np.testing.assert_allclose(sink.metric("activation_grad_norm"), [t[0] for t in truths], rtol=RTOL)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), [t[1] for t in truths], rtol=RTOL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("unscale", [True, False])
def test_under_autocast_with_a_scaler(dtype: torch.dtype, unscale: bool) -> None:
    """At this scale a norm in float16 overflows, although no gradient does."""
    scale = 65536.0 * 8
    model, sink = build(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1_000)
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler):
        truths = []
        for step in range(STEPS):
            truths.append(find_norms(model, images(step), dtype, loss_of, scale))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model(images(step)))
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert [row.scalars["skipped"] for row in sink.rows] == [0.0] * STEPS
    if dtype == torch.float16:
        assert all(overflows for *_, overflows in truths)
    np.testing.assert_allclose(sink.metric("activation_grad_norm"), [t[0] for t in truths], rtol=RTOL)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), [t[1] for t in truths], rtol=RTOL)


@pytest.mark.parametrize("size", [1e-25, 1e-35, 1e20, 1e30])
@pytest.mark.parametrize("batch", [8, 200], ids=["small", "large"])
def test_gradients_of_extreme_size(size: float, batch: int) -> None:
    """Squares of such numbers are 0 or inf in float32."""
    torch.manual_seed(0)
    model, sink = nn.Sequential(nn.Linear(4, 3000), nn.ReLU(inplace=True), nn.Linear(3000, 5)), ListSink()
    assert (batch * 3000 > KEPT) == (batch == 200)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)

    def loss(output: Tensor) -> Tensor:
        return loss_of(output) * size

    with Recorder(model, sink, optimizer=optimizer):
        truths = []
        for step in range(STEPS):
            x = rand(batch, 4, seed=step)
            truths.append(find_norms(model, x, None, loss))
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()
    found = sink.metric("activation_grad_norm")
    assert (found > 0).all()
    np.testing.assert_allclose(found, [t[0] for t in truths], rtol=RTOL)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), [t[1] for t in truths], rtol=RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("constant", [False, True], ids=["random", "constant"])
def test_gradients_of_twenty_million_elements(constant: bool) -> None:
    """Both the output's and the weight's; a naive sum in float32 is off by 1e-3 here, and by 1e-2 of a constant."""
    torch.manual_seed(0)
    model, sink = nn.Sequential(nn.Linear(20, 1_000_000)), ListSink()
    weights = torch.full((20, 1_000_000), 0.1) if constant else rand(20, 1_000_000)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def loss(output: Tensor) -> Tensor:
        return (output * weights).sum()

    with Recorder(model, sink, optimizer=optimizer):
        truths = []
        for step in range(STEPS):
            x = torch.ones(20, 20) if constant else rand(20, 20, seed=step)
            truths.append(find_norms(model, x, None, loss))
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()
    np.testing.assert_allclose(sink.metric("activation_grad_norm"), [t[0] for t in truths], rtol=RTOL)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), [t[1] for t in truths], rtol=RTOL)
