"""Metrics of calls (size and zeros of outputs, coherence of halves) against autograd in float64 on a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.metrics import DEFAULT_METRICS, METRICS
from gradlens.recorder import Recorder
from gradlens.recorder.activations import METRICS_OF_CALLS
from gradlens.run import ListSink
from tests.recorder.case import rand
from tests.recorder.small import mlp


@pytest.fixture(autouse=True)
def every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METRICS_OF_CALLS:
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], every=1))


Step = Callable[[nn.Module, int], None]


def record(
    model: nn.Module,
    step: Step,
    *,
    steps: int = 3,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> tuple[ListSink, list[nn.Module]]:
    """Train with all metrics of calls, the first row by other hooks than the later ones; copies before each step."""
    sink, copies = ListSink(), []
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05)
    options = {"metrics": (*DEFAULT_METRICS, *METRICS_OF_CALLS), "on_error": "raise", **options}
    with Recorder(model, sink, optimizer=optimizer, **options):
        for i in range(steps):
            copies.append(copy.deepcopy(model))
            optimizer.zero_grad()
            step(model, i)
            optimizer.step()
    return sink, copies


def names(sink: ListSink) -> list[str]:
    assert sink.header is not None
    return [layer.name for layer in sink.header.layers]


# --- coherence ------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    def __init__(self, norm: bool = False, inplace: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 8, 3, padding="same", groups=2, dilation=2, bias=False)
        self.norm: nn.Module = nn.GroupNorm(2, 8) if norm else nn.Identity()
        self.reflected = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), padding_mode="reflect", groups=8)
        self.relu, self.head = nn.ReLU(inplace), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.norm(self.grouped(x)))
        return self.head(self.relu(self.reflected(x)).mean((2, 3)))


class Sequences(nn.Module):
    """Linear layers on three dimensions, changed in place, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x), inplace=True)
        x = self.twice(torch.tanh(self.twice(x)))
        x *= 2
        return self.head(input=x.mean(1))


Loss = Callable[[nn.Module], Tensor]


def gradient(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, np.ndarray]:
    model = copy.deepcopy(model).double()
    model.zero_grad()
    loss(model).backward()
    return {
        k.removesuffix(".weight"): p.grad.numpy().ravel()
        for k, p in model.named_parameters()
        if k.endswith("weight") and not k.startswith("norm")
    }


@dataclass
class Expected:
    cosine: dict[str, float]
    signal: float
    noise: float


def compare(first: dict[str, np.ndarray], second: dict[str, np.ndarray], b: int, c: int) -> Expected:
    """Take the gradients of mean losses over two halves."""
    cosine = {k: float(v @ second[k] / np.linalg.norm(v) / np.linalg.norm(second[k])) for k, v in first.items()}
    g, h = (np.concatenate(list(each.values())) for each in (first, second))
    return Expected(cosine, float(g @ h), float((g - h) @ (g - h) / (1 / b + 1 / c)))


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (mlp, (7, 4)),
    "convolutions": (Convolutions, (6, 3, 9, 9)),
    "convolutions with norm": (lambda: Convolutions(norm=True), (6, 3, 9, 9)),
    "sequences": (Sequences, (5, 6, 8)),
    "channels last": (lambda: Convolutions().to(memory_format=torch.channels_last), (6, 3, 9, 9)),
}


def mean_loss(model: nn.Module, x: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), torch.arange(len(x)) % 3)


def half_loss(model: nn.Module, x: Tensor, half: slice) -> Tensor:
    x = x.double()
    return functional.cross_entropy(model(x[half]), (torch.arange(len(x)) % 3)[half])


@pytest.mark.parametrize("kind", KINDS)
def test_coherence_is_the_cosine_of_the_gradients_of_two_halves(kind: str) -> None:
    build, shape = KINDS[kind]
    torch.manual_seed(0)
    sink, copies = record(build(), lambda model, i: mean_loss(model, rand(*shape, seed=i)).backward())
    half, n = shape[0] // 2, shape[0]
    for i, model in enumerate(copies):
        x = rand(*shape, seed=i)
        parts = [gradient(model, lambda m, h=h, x=x: half_loss(m, x, h)) for h in (slice(0, half), slice(half, n))]
        truth = compare(*parts, half, n - half)
        found = dict(zip(names(sink), sink.rows[i].metrics["grad_coherence"], strict=True))
        for name in found:
            assert found[name] == pytest.approx(truth.cosine[name], abs=2e-6)
        scalars = sink.rows[i].scalars
        if kind == "sequences":  # one layer is called twice, so the size of the batch is not known
            assert "gradient_noise" not in scalars
            continue
        assert scalars["gradient_signal"] == pytest.approx(truth.signal, rel=1e-4, abs=1e-7)
        assert scalars["gradient_noise"] == pytest.approx(truth.noise, rel=1e-5)
        if truth.signal > 0:
            assert scalars["gradient_noise_scale"] == pytest.approx(truth.noise / truth.signal, rel=1e-4)


def test_signal_and_noise_are_the_two_batch_estimator() -> None:
    from gradlens.analysis.laws import noise_scale

    model = mlp()
    sink, copies = record(model, lambda m, i: mean_loss(m, rand(8, 4, seed=i)).backward(), steps=1)
    x = rand(8, 4)
    small = [gradient(copies[0], lambda m, h=h: half_loss(m, x, h)) for h in (slice(0, 4), slice(4, 8))]
    big = gradient(copies[0], lambda m: half_loss(m, x, slice(0, 8)))
    squares = [sum(float(g @ g) for g in each.values()) for each in (*small, big)]
    expected = noise_scale((squares[0] + squares[1]) / 2, squares[2], 4, 8)
    assert sink.rows[0].scalars["gradient_signal"] == pytest.approx(expected.signal, rel=1e-4)
    assert sink.rows[0].scalars["gradient_noise"] == pytest.approx(expected.noise, rel=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_halves_of_micro_batches_add_up(scaled: bool) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    sink, copies = ListSink(), []

    def batch(i: int, part: int) -> Tensor:
        return rand(4, 3, 9, 9, seed=10 * i + part)

    metrics = (*DEFAULT_METRICS, *METRICS_OF_CALLS)
    with Recorder(model, sink, optimizer=optimizer, metrics=metrics, scaler=scaler, on_error="raise"):
        for i in range(3):
            copies.append(copy.deepcopy(model))
            optimizer.zero_grad()
            for part in range(3):
                loss = mean_loss(model, batch(i, part)) / 3
                (scaler.scale(loss) if scaler else loss).backward()
                with torch.no_grad():  # an evaluation in between
                    model(10 * batch(i, part))
                model.eval()
                model(10 * batch(i, part))
                model.train()
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()

    for i, before in enumerate(copies):
        halves = [
            gradient(before, lambda m, h=h, i=i: sum(half_loss(m, batch(i, part), h) for part in range(3)) / 3)
            for h in (slice(0, 2), slice(2, 4))
        ]
        truth = compare(*halves, 6, 6)
        np.testing.assert_allclose(
            sink.rows[i].metrics["grad_coherence"], [truth.cosine[name] for name in names(sink)], atol=2e-6
        )
        assert sink.rows[i].scalars["gradient_noise"] == pytest.approx(truth.noise, rel=1e-5)
        outputs: dict[str, list[Tensor]] = {name: [] for name in names(sink)}
        clone = copy.deepcopy(before)
        clone.relu.inplace = False
        for name, module in clone.named_modules():
            if name in outputs:
                module.register_forward_hook(lambda m, a, out, mine=outputs[name]: mine.append(out.detach().double()))
        for part in range(3):
            clone(batch(i, part))
        whole = {name: torch.cat([out.ravel() for out in mine]) for name, mine in outputs.items()}
        rms = [float(whole[name].square().mean().sqrt()) for name in names(sink)]
        zeros = [float((whole[name] <= 0).double().mean()) for name in names(sink)[:-1]]
        np.testing.assert_allclose(sink.rows[i].metrics["activation_rms"], rms, rtol=1e-6)
        np.testing.assert_allclose(sink.rows[i].metrics["zero_fraction"], [*zeros, np.nan], rtol=1e-6)


def test_coherence_is_missing_where_it_cannot_be_known() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4)
            self.frozen.weight.requires_grad_(False)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.line, self.head = nn.Conv1d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.normed(self.frozen(self.plain(x)))
            return self.head(self.line(x[..., None])[..., 0])

    sink, _ = record(Odd(), lambda m, i: mean_loss(m, rand(6 if i else 1, 4, seed=i)).backward())
    found = {name: sink.metric("grad_coherence")[:, i] for i, name in enumerate(names(sink))}
    assert np.isnan([row[0] for row in found.values()]).all()  # a batch of one
    assert {name for name, column in found.items() if np.isfinite(column[1:]).all()} == {"plain", "head"}
    assert np.isnan([found[name] for name in ("frozen", "normed", "line")]).all()


def test_two_passes_through_one_graph_have_no_batch_size() -> None:
    def step(model: nn.Module, i: int) -> None:
        loss = mean_loss(model, rand(6, 4, seed=i))
        loss.backward(retain_graph=True)
        (0.5 * loss).backward()

    sink, copies = record(mlp(), step)
    for row, model in zip(sink.rows, copies, strict=True):
        assert "gradient_noise" not in row.scalars
        x = rand(6, 4, seed=row.step)
        halves = [gradient(model, lambda m, h=h, x=x: half_loss(m, x, h)) for h in (slice(0, 3), slice(3, 6))]
        expected = compare(*halves, 3, 3).cosine
        np.testing.assert_allclose(row.metrics["grad_coherence"], [expected[n] for n in names(sink)], atol=2e-6)


def test_passes_that_reach_no_parameter_do_not_count() -> None:
    def step(model: nn.Module, i: int) -> None:
        x = rand(6, 4, seed=i).requires_grad_()
        torch.autograd.grad(model(5 * x).square().sum(), x)  # a look at the inputs, of another loss
        mean_loss(model, x.detach()).backward()

    sink, _ = record(mlp(), step)
    alone, _ = record(mlp(), lambda model, i: mean_loss(model, rand(6, 4, seed=i)).backward())
    for metric in METRICS_OF_CALLS:
        np.testing.assert_allclose(sink.metric(metric), alone.metric(metric), rtol=1e-6)
    assert sink.rows[1].scalars["gradient_noise"] == pytest.approx(alone.rows[1].scalars["gradient_noise"])
