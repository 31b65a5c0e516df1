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
from torch.utils.checkpoint import checkpoint

from gradlens.metrics import DEFAULT_METRICS, METRICS
from gradlens.recorder import Recorder
from gradlens.recorder.measurers.activations import METRICS_OF_CALLS
from gradlens.sinks import ListSink
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
    from gradlens.theory.laws import noise_scale

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


# --- zeros ----------------------------------------------------------------------------------------------------


class Following(nn.Module):
    """Layers followed by all kinds of things, and what share of zeros follows each."""

    def __init__(self) -> None:
        super().__init__()
        self.by_module, self.inplace, self.function, self.function_inplace = (nn.Linear(8, 8) for _ in range(4))
        self.normed, self.function_normed, self.added, self.added_inplace = (nn.Linear(8, 8) for _ in range(4))
        self.gelu, self.nothing, self.dropped, self.head = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.relu, self.relu_inplace = nn.BatchNorm1d(8), nn.ReLU(), nn.ReLU(inplace=True)
        self.truth: dict[str, Tensor] = {}

    def keep(self, name: str, x: Tensor) -> Tensor:
        self.truth[name] = x.detach().clone()
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.keep("by_module", self.relu(self.by_module(x)))
        x = self.keep("inplace", self.relu_inplace(self.inplace(x)))
        x = self.keep("function", functional.relu(self.function(x)))
        x = self.keep("function_inplace", functional.relu_(self.function_inplace(x)))
        x = self.keep("normed", self.relu_inplace(self.norm(self.normed(x))))
        x = self.keep("function_normed", functional.relu(functional.layer_norm(self.function_normed(x), (8,))))
        x = self.relu(self.added(x) + x)
        shortcut, x = x, self.added_inplace(x)
        x += shortcut
        x = self.relu_inplace(x)
        x = self.keep("gelu", functional.gelu(self.gelu(x)))
        x = functional.dropout(functional.relu(self.dropped(self.nothing(x))))
        return self.head(x)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_zeros_behind_all_kinds_of_activation_functions(precision: torch.dtype | None) -> None:
    torch.manual_seed(0)
    model, truths = Following(), []

    def step(model: nn.Module, i: int) -> None:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            loss = model(rand(16, 8, seed=i)).square().mean()
        truths.append({name: float((x == 0).double().mean()) for name, x in model.truth.items()})
        loss.backward()

    sink, _ = record(model, step)
    for row, truth in zip(sink.rows, truths, strict=True):
        expected = [truth.get(name, np.nan) for name in names(sink)]
        np.testing.assert_allclose(row.metrics["zero_fraction"], expected, rtol=1e-12)
        assert np.isfinite(row.metrics["activation_rms"]).all()


class Checkpoints(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.before, self.reentrant = nn.Linear(8, 8), reentrant
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU())
        self.after, self.tanh = nn.Linear(8, 3), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tanh(self.before(x))
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.after(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_changes_nothing(reentrant: bool) -> None:
    found = []
    for kind in (None, reentrant):
        torch.manual_seed(0)
        sink, _ = record(Checkpoints(kind), lambda model, i: mean_loss(model, rand(6, 8, seed=i)).backward())
        assert names(sink)[0] == "before"
        found.append(sink)
    plain, checked = found
    for metric in METRICS_OF_CALLS:
        columns = [names(checked).index(name) for name in names(plain)]
        np.testing.assert_allclose(checked.metric(metric)[:, columns], plain.metric(metric), rtol=1e-6)
    if reentrant:  # its backward pass is several, so the size of the batch is not known
        assert "gradient_noise" not in checked.rows[2].scalars
    else:
        assert checked.rows[2].scalars["gradient_noise"] == pytest.approx(plain.rows[2].scalars["gradient_noise"])


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_the_size_of_outputs_is_right_at_any_size(size: float) -> None:
    sink, copies = record(mlp(), lambda m, i: m(size * rand(6, 4, seed=i)).mul(1 / size).mean().backward(), steps=2)
    for i, model in enumerate(copies):
        output = model[0].double()(size * rand(6, 4, seed=i).double()).detach()
        assert sink.rows[i].metrics["activation_rms"][0] == pytest.approx(
            float(output.square().mean().sqrt()), rel=1e-6
        )


# --- off, compiled, harmless ------------------------------------------------------------------------------------


def test_metrics_of_calls_are_off_unless_asked_for() -> None:
    assert not set(METRICS_OF_CALLS) & set(DEFAULT_METRICS)
    hooked: list[int] = []

    def step(model: nn.Module, i: int) -> None:
        hooked.append(len(model[1]._forward_hooks) + len(model[2]._forward_hooks))
        mean_loss(model, rand(6, 4, seed=i)).backward()

    sink, _ = record(mlp(), step, metrics=DEFAULT_METRICS)
    assert hooked == [1, 0, 0]  # the first row learns
    assert set(sink.rows[0].metrics) == set(DEFAULT_METRICS)


def test_hooks_stand_only_in_the_rows_of_their_rhythm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METRICS_OF_CALLS:
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], every=3))
    hooked: list[int] = []

    def step(model: nn.Module, i: int) -> None:
        hooked.append(len(model[1]._forward_hooks))
        mean_loss(model, rand(6, 4, seed=i)).backward()

    model = mlp()
    sink, _ = record(model, step, steps=5)
    assert hooked == [1, 0, 0, 1, 0]
    assert [row.step for row in sink.rows if "grad_coherence" in row.metrics] == [0, 3]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::UserWarning:torch.*")
def test_compiled_layers_have_none_and_a_note() -> None:
    model = torch.compile(mlp(), backend="eager")
    sink, _ = record(model, lambda model, i: mean_loss(model, rand(6, 4, seed=i)).backward())
    for metric in METRICS_OF_CALLS:
        assert np.isnan(sink.metric(metric)).all()
    assert any("compiled" in note and "grad_coherence" in note for note in sink.notes)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
