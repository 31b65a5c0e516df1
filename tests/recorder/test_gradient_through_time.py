"""The gradient through time equals rho^(T-1) where theory says so, and an unrolled copy in float64 everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradlens
from gradlens.metrics import DEFAULT_METRICS, GRADIENT_THROUGH_TIME
from gradlens.recorder.recorder import Recorder
from gradlens.sinks import ListSink

BATCH, TIME, WIDTH, SIZE = 4, 9, 3, 5


def record_once(model: nn.Module, loss: Callable[[], Tensor], **options: Any) -> float:
    """Train for one step, and return the value of the first recurrent layer."""
    sink = ListSink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = options.pop("metrics", (*DEFAULT_METRICS, GRADIENT_THROUGH_TIME))
    with Recorder(model, sink, optimizer=optimizer, metrics=metrics, on_error="raise", **options) as recorder:
        names = list(recorder._steps.measuring.measurers[-1].context.modules)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    values = sink.rows[0].metrics[GRADIENT_THROUGH_TIME]
    assert len(names) == len(values)
    return float(values[~np.isnan(values)][0]) if (~np.isnan(values)).any() else float("nan")


class Reader(nn.Module):
    def __init__(self, rnn: nn.Module, size: int = SIZE, *, everywhere: bool = False) -> None:
        super().__init__()
        self.rnn, self.head, self.everywhere = rnn, nn.Linear(size, 2), everywhere

    def forward(self, x: Any, *more: Any) -> Tensor:
        out, _ = self.rnn(x, *more)
        if not isinstance(out, Tensor):
            out, _ = pad_packed_sequence(out)
        if out.dim() == 3 and getattr(self.rnn, "batch_first", False):
            out = out.transpose(0, 1)
        return self.head(out if self.everywhere else out[-1])


@pytest.mark.parametrize(("rho", "expected"), [(0.9, 5.154e-3), (1.1, 117.39), (1.0, 1.0)])
def test_a_linear_recurrence_has_the_power_of_its_factor(rho: float, expected: float) -> None:
    torch.manual_seed(0)
    rnn = nn.RNN(WIDTH, SIZE, nonlinearity="relu", bias=False)  # linear where all states are positive
    with torch.no_grad():
        rnn.weight_ih_l0.abs_()
        rnn.weight_hh_l0.copy_(rho * torch.eye(SIZE)[torch.randperm(SIZE)])
    model = Reader(rnn)
    x = torch.rand(51, BATCH, WIDTH) + 0.1
    value = record_once(model, lambda: model(x).square().sum())
    assert value == pytest.approx(rho**50, rel=1e-5)
    assert value == pytest.approx(expected, rel=1e-4)


def cell(mode: str, w: list[Tensor], x: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One time step after the formulas of torch's documentation."""
    gates_x, gates_h = x @ w[0].T + w[2], states[0] @ w[1].T + w[3]
    if mode.startswith("RNN"):
        return [torch.tanh(gates_x + gates_h) if mode == "RNN_TANH" else torch.relu(gates_x + gates_h)]
    if mode == "GRU":
        (rx, zx, nx), (rh, zh, nh) = gates_x.chunk(3, -1), gates_h.chunk(3, -1)
        r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
        return [(1 - z) * torch.tanh(nx + r * nh) + z * states[0]]
    i, f, g, o = (gates_x + gates_h).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def truth(rnn: Any, x: Tensor, head: nn.Linear, loss: Callable[[Tensor], Tensor], start: list[Tensor]) -> float:
    """Unroll in float64 with a free state after each time step; the loss reads the last output alone."""
    kinds = 2 if rnn.mode == "LSTM" else 1
    weights = [
        [getattr(rnn, f"{name}_l{i}").detach().double() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for i in range(rnn.num_layers)
    ]
    states, chain = [s.double() for s in start], []
    for each in x.double():
        states = [s.detach().requires_grad_() for s in states]
        found, up = [], each
        for level, w in enumerate(weights):
            found += cell(rnn.mode, w, up, states[level * kinds : (level + 1) * kinds])
            up = found[level * kinds]
        chain.append((states, found))
        states = found
    top = chain[-1][1][(rnn.num_layers - 1) * kinds]
    free = top.detach().requires_grad_()
    out = free @ head.weight.detach().double().T + head.bias.detach().double()
    (seed,) = torch.autograd.grad(loss(out), free)
    grads = [seed if s is top else torch.zeros_like(s) for s in chain[-1][1]]
    last = torch.cat([g.flatten() for g in grads]).norm()
    for before, after in reversed(chain[1:]):
        grads = list(torch.autograd.grad(after, before, grads, allow_unused=True))
        grads = [torch.zeros_like(b) if g is None else g for b, g in zip(before, grads, strict=True)]
    return float(torch.cat([g.flatten() for g in grads]).norm() / last)


def zeros(rnn: Any, batch: int = BATCH) -> list[Tensor]:
    return [torch.zeros(batch, SIZE)] * (rnn.num_layers * (2 if rnn.mode == "LSTM" else 1))


MODES = [nn.RNN, nn.GRU, nn.LSTM]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("everywhere", [False, True])
def test_equals_an_unrolled_copy(kind: type, batch_first: bool, layers: int, everywhere: bool) -> None:
    torch.manual_seed(1)
    rnn = kind(WIDTH, SIZE, num_layers=layers, batch_first=batch_first)
    model = Reader(rnn, everywhere=everywhere)
    x = torch.randn(TIME, BATCH, WIDTH)
    expected = truth(rnn, x, model.head, lambda out: out.square().sum(), zeros(rnn))
    given = x.transpose(0, 1) if batch_first else x
    assert record_once(model, lambda: model(given).square().sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", MODES)
def test_other_forms_of_the_input(kind: type) -> None:
    torch.manual_seed(2)
    rnn = kind(WIDTH, SIZE)
    model = Reader(rnn)
    x = torch.randn(TIME, BATCH, WIDTH)
    hx = torch.randn(1, BATCH, SIZE)
    start = [hx[0], 2 * hx[0]] if rnn.mode == "LSTM" else [hx[0]]
    states = (hx, 2 * hx) if rnn.mode == "LSTM" else hx
    expected = truth(rnn, x, model.head, lambda out: out.square().sum(), start)
    assert record_once(model, lambda: model(x, states).square().sum()) == pytest.approx(expected, rel=1e-5)
    alone = truth(rnn, x[:, :1], model.head, lambda out: out.square().sum(), zeros(rnn, 1))
    assert record_once(model, lambda: model(x[:, 0]).square().sum()) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", MODES)
def test_packed_sequences_count_where_they_are_longest(kind: type) -> None:
    torch.manual_seed(3)
    rnn, lengths = kind(WIDTH, SIZE, num_layers=2), torch.tensor([4, TIME, 2, TIME])
    model = Reader(rnn)
    x, hx = torch.randn(TIME, BATCH, WIDTH), torch.randn(2, BATCH, SIZE)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    start = [(k + 1) * hx[level, [1, 3]] for level in range(2) for k in range(2 if rnn.mode == "LSTM" else 1)]
    states = (hx, 2 * hx) if rnn.mode == "LSTM" else hx
    expected = truth(rnn, x[:, [1, 3]], model.head, lambda out: out.square().sum(), start)
    assert record_once(model, lambda: model(packed, states).square().sum()) == pytest.approx(expected, rel=1e-5)


def test_the_forward_direction_of_both() -> None:
    torch.manual_seed(4)
    rnn = nn.GRU(WIDTH, SIZE, bidirectional=True)
    model = Reader(rnn, 2 * SIZE)
    x, head = torch.randn(TIME, BATCH, WIDTH), nn.Linear(SIZE, 2)
    with torch.no_grad():
        model.head.weight[:, SIZE:] = 0
        head.weight.copy_(model.head.weight[:, :SIZE])
        head.bias.copy_(model.head.bias)
    expected = truth(rnn, x, head, lambda out: out.square().sum(), zeros(rnn))
    assert record_once(model, lambda: model(x).square().sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "mode"), [(nn.RNNCell, "RNN_TANH"), (nn.GRUCell, "GRU"), (nn.LSTMCell, "LSTM")])
def test_the_calls_of_a_cell(kind: type, mode: str) -> None:
    torch.manual_seed(5)
    own, head = kind(WIDTH, SIZE), nn.Linear(SIZE, 2)
    model = nn.ModuleDict({"cell": own, "head": head})
    x = torch.randn(TIME, BATCH, WIDTH)

    def loss() -> Tensor:
        states, total = None, torch.zeros(())
        for each in x:
            states = own(each, states)
            out = states[0] if mode == "LSTM" else states
            total = total + 0.1 * out.sum()
        return head(out).square().sum() + total - 0.1 * out.sum()

    class Layer:
        num_layers = 1

    layer: Any = Layer()
    layer.mode = mode
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(layer, f"{name}_l0", getattr(own, name))
    expected = truth(layer, x, head, lambda out: out.square().sum(), zeros(layer))
    assert record_once(model, loss) == pytest.approx(expected, rel=1e-5)


PROJECTED, BOTH = nn.LSTM(WIDTH, SIZE, proj_size=2), nn.GRU(WIDTH, SIZE, num_layers=2, bidirectional=True)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("rnn", [PROJECTED, BOTH], ids=["projected", "both directions"])
def test_what_is_not_followed_is_unknown(rnn: nn.Module) -> None:
    model = Reader(rnn, 2 if isinstance(rnn, nn.LSTM) else 2 * SIZE)
    x = torch.randn(TIME, BATCH, WIDTH)
    assert np.isnan(record_once(model, lambda: model(x).square().sum()))


def test_one_time_step_and_a_zero_gradient_are_unknown() -> None:
    model = Reader(nn.GRU(WIDTH, SIZE))
    x = torch.randn(TIME, BATCH, WIDTH)
    assert np.isnan(record_once(model, lambda: model(x[:1]).square().sum()))
    assert np.isnan(record_once(model, lambda: 0 * model(x).sum()))


def test_it_is_recorded_where_there_are_recurrent_layers(tmp_path: Any) -> None:
    for name, model in (("a", Reader(nn.GRU(WIDTH, SIZE))), ("b", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradlens.record(model, tmp_path / f"{name}.h5", optimizer=optimizer, on_error="raise"):
            for _ in range(27):
                optimizer.zero_grad()
                model(torch.randn(TIME, BATCH, WIDTH)).square().sum().backward()
                optimizer.step()
    run = gradlens.read_run(tmp_path / "a.h5")
    known = ~np.isnan(np.asarray(run.metric(GRADIENT_THROUGH_TIME)))
    assert known[[0, 25], 0].all()
    assert known.sum() == 2
    assert GRADIENT_THROUGH_TIME not in gradlens.read_run(tmp_path / "b.h5").metrics


def test_long_sequences_do_not_underflow() -> None:
    torch.manual_seed(6)
    rnn = nn.RNN(WIDTH, SIZE, nonlinearity="relu", bias=False)
    with torch.no_grad():
        rnn.weight_ih_l0.abs_()
        rnn.weight_hh_l0.copy_(0.5 * torch.eye(SIZE))
    model = Reader(rnn)
    x = torch.rand(200, BATCH, WIDTH) + 0.1
    assert record_once(model, lambda: model(x).square().sum()) == pytest.approx(0.5**199, rel=1e-4)
