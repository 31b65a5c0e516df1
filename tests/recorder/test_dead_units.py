"""Units that are off in three recordings in succession, against a count on the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlens.recorder.recorder import Recorder
from gradlens.sinks import ListSink

METRICS = ("param_grad_norm", "dead_fraction")


def record(model: nn.Module, batch: Callable[[int], Tensor], steps: int = 6, every: int = 1) -> tuple[Any, list[Any]]:
    """Train; return the values (T, L), and for each step and layer the units with a gradient."""
    sink, seen = ListSink(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    options: Any = {"metrics": METRICS, "every": {"dead_fraction": every}, "on_error": "raise"}
    with Recorder(model, sink, optimizer=optimizer, **options):
        for step in range(steps):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
            seen.append([None if m.weight.grad is None else active(m) for m in layers])
            optimizer.step()
    values = [row.metrics.get("dead_fraction", np.full(len(seen[0]), np.nan)) for row in sink.rows]
    return np.array(values), seen


def active(layer: Any) -> np.ndarray:
    units = [bool(row.abs().sum()) for row in layer.weight.grad]
    biases = [False] * len(units) if layer.bias is None else [bool(b != 0) for b in layer.bias.grad]
    return np.array([a or b for a, b in zip(units, biases, strict=True)])


def expected(seen: list[Any]) -> np.ndarray:
    rows = np.full((len(seen), len(seen[0])), np.nan)
    for t in range(2, len(seen)):
        for layer in range(len(seen[0])):
            three = [seen[t - k][layer] for k in range(3)]
            if all(one is not None for one in three):
                rows[t, layer] = 1 - np.logical_or.reduce(three).mean()
    return rows


def mlp(off: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10, bias=False), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        model[0].bias[: int(20 * off)] = -100
    return model


@pytest.mark.parametrize("off", [0.0, 0.5, 0.95])
def test_it_is_the_share_of_units_that_are_never_on(off: float) -> None:
    values, seen = record(mlp(off), lambda step: torch.randn(3, 4))
    np.testing.assert_allclose(values, expected(seen), atol=1e-7)
    assert np.nanmin(values[:, 0]) >= off


def test_a_unit_that_is_on_for_another_batch_is_not_dead() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[2].weight.fill_(1)
    values, seen = record(model, lambda step: torch.eye(3)[[step % 3]])  # one unit is on in each step, in turn
    assert [one[0].sum() for one in seen] == [1] * 6
    np.testing.assert_array_equal(values[2:, 0], 0)
    np.testing.assert_allclose(record(model, lambda step: torch.eye(3)[[0]])[0][2:, 0], 2 / 3)


def test_filters_and_layers_without_a_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    model[3].requires_grad_(requires_grad=False)
    with torch.no_grad():
        model[0].bias[0] = -100
    values, seen = record(model, lambda step: torch.rand(2, 1, 4, 4))
    np.testing.assert_allclose(values, expected(seen), atol=1e-7)
    assert values[-1, 0] >= 0.25
    assert np.isnan(values[:, 1]).all()


def test_the_interval_counts_rows() -> None:
    values, _ = record(mlp(0.5), lambda step: torch.randn(3, 4), steps=25, every=10)
    assert list(np.flatnonzero(~np.isnan(values[:, 0]))) == [20]
    assert values[20, 0] >= 0.5


def test_other_layers_have_none() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Embedding(5, 4), nn.GRU(4, 3, batch_first=True)
            self.up, self.out = nn.ConvTranspose1d(3, 3, 2), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.up(self.rnn(self.embed(x))[0].transpose(1, 2)).mean(-1))

    sink = ListSink()
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, sink, optimizer=optimizer, metrics=METRICS, every={"dead_fraction": 1}, on_error="raise"):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randint(5, (2, 6))).sum().backward()
            optimizer.step()
    known = ~np.isnan(sink.rows[-1].metrics["dead_fraction"])
    assert known.sum() == 1
    assert known[-1]


def test_a_resumed_recording_goes_on_where_it_stopped() -> None:
    batch = torch.randn(20, 8, 4)
    whole, _ = record(mlp(0.3), batch.__getitem__, steps=8)
    model = mlp(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    state: dict[str, dict[str, Tensor]] = {}
    values = []
    for steps in (range(5), range(5, 8)):
        sink = ListSink()
        with Recorder(model, sink, optimizer=optimizer, metrics=METRICS, every={"dead_fraction": 1}) as recorder:
            recorder.load_state_dict(state)
            for step in steps:
                optimizer.zero_grad()
                model(batch[step]).square().mean().backward()
                optimizer.step()
        state = recorder.state_dict()
        values += [row.metrics["dead_fraction"] for row in sink.rows]
    np.testing.assert_array_equal(np.array(values), whole)
