"""The cosine between the gradients of two batches in succession, against float64 copies of the model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlens.models import build_model
from gradlens.recorder.measurers import weights
from gradlens.recorder.recorder import Recorder
from gradlens.sinks import ListSink

NAME = "batch_coherence"


def norm_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def gradients(model: nn.Module, step: int) -> list[np.ndarray]:
    """Return the gradient of each layer's weight and bias, computed on a copy in float64."""
    second = copy.deepcopy(model).double()
    images, labels = batch(step)
    nn.functional.cross_entropy(second(images.double()), labels).backward()
    layers = [m for m in second.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return [np.concatenate([p.grad.reshape(-1).numpy() for p in m.parameters()]) for m in layers]  # type: ignore[union-attr]


def train(
    model: nn.Module, steps: int, every: int, metrics: Any = ("param_grad_norm", NAME), **options: Any
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Return the recorded values (T, L), and the gradients of each step in float64."""
    sink, true = ListSink(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, sink, optimizer=optimizer, metrics=metrics, every={NAME: every}, on_error="raise", **options):
        for step in range(steps):
            true.append(gradients(model, step))
            images, labels = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return np.array([row.metrics.get(NAME, np.full(len(true[0]), np.nan)) for row in sink.rows]), true


def expected(true: list[list[np.ndarray]], rows: list[int]) -> np.ndarray:
    values = np.full((len(true), len(true[0])), np.nan)
    for t in rows:
        for layer, (a, b) in enumerate(zip(true[t - 1], true[t], strict=True)):
            values[t, layer] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return values


@pytest.mark.parametrize(("every", "rows"), [(1, [1, 2, 3, 4, 5, 6]), (3, [1, 4]), (2, [1, 3, 5])])
def test_it_is_the_cosine_of_two_batches_in_succession(every: int, rows: list[int]) -> None:
    values, true = train(norm_model(), 7, every)
    np.testing.assert_allclose(values, expected(true, rows), atol=2e-5)


def test_large_models_are_compared_layer_group_by_layer_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST_COPIED", 600)  # bytes: the linear layer with 520 numbers is a group of its own
    values, true = train(norm_model(), 7, 2)
    whole = expected(true, [1, 3, 5])
    for group, row in enumerate((1, 3, 5)):
        np.testing.assert_allclose(values[row, group], whole[row, group], atol=2e-5)
        assert np.isnan(np.delete(values[row], group)).all()


def test_equal_and_opposite_gradients_and_missing_ones() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False), "c": nn.Linear(2, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    sink = ListSink()
    with Recorder(model, sink, optimizer=optimizer, metrics=("param_grad_norm", NAME), every={NAME: 1}):
        for sign in (1.0, 1.0, -1.0, 1e-30):
            optimizer.zero_grad(set_to_none=True)
            (model["a"](torch.ones(1, 2)) * sign).sum().backward()
            if sign == -1.0:
                model["b"](torch.ones(1, 2)).sum().backward()
            optimizer.step()
    found = {layer.name: i for i, layer in enumerate(sink.header.layers)}
    values = np.array([row.metrics[NAME] for row in sink.rows[1:]])
    np.testing.assert_allclose(values[:, found["a"]], [1, -1, -1])
    assert np.isnan(values[:, found["b"]]).all()
    assert np.isnan(values[:, found["c"]]).all()
    assert NAME not in sink.rows[0].metrics


def test_nothing_is_copied_where_it_is_not_recorded_and_nothing_is_held_after_the_end() -> None:
    model = build_model("plain8", num_classes=3, seed=0)
    recorder = Recorder(model, ListSink(), metrics=("param_grad_norm", NAME), every={NAME: 4}, on_error="raise")
    held = []
    with recorder:
        for _ in range(6):
            model.zero_grad()
            model(torch.randn(4, 3, 16, 16)).sum().backward()
            recorder.step()
            (measurer,) = (one for one in recorder._steps.measuring.measurers if type(one).__name__ == "BatchCoherence")
            held.append(bool(measurer._copies))
    assert held == [True, False, False, False, True, False]
    with recorder_of(model) as again:
        model(torch.randn(4, 3, 16, 16)).sum().backward()
        again.step()
    assert not any(one._copies for one in again._steps.measuring.measurers if type(one).__name__ == "BatchCoherence")


def recorder_of(model: nn.Module) -> Recorder:
    return Recorder(model, ListSink(), metrics=("param_grad_norm", NAME), every={NAME: 1}, on_error="raise")
