"""A backward pass belongs to a row only if its parameter gradients reach the optimizer.

The truth is a second recorder, slow and obvious: tensor hooks that add the squared norm of each gradient in float64 to
what its layer waits for, which is forgotten when the user forgets the gradients, and read when the optimizer steps.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.small import data, mlp, norms

METRICS = ("activation_grad_norm", "param_grad_norm", "activation_rms", "zero_fraction", "grad_coherence")


class Truth:
    """The gradients that reach the optimizer of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.waiting: list[float | None] = [None] * len(self.layers)
        self.rows: list[list[float]] = []
        self.inner = False
        for i, layer in enumerate(self.layers):
            layer.register_forward_hook(lambda module, args, output, i=i: self._attach(i, output))

    def _attach(self, i: int, output: Tensor) -> None:
        def add(grad: Tensor) -> None:
            if not self.inner:
                self.waiting[i] = (self.waiting[i] or 0.0) + float(np.square(grad.double().numpy()).sum())

        if output.requires_grad:
            output.register_hook(add)

    def forget(self) -> None:
        self.waiting = [None] * len(self.layers)

    def step(self) -> None:
        self.rows.append([np.nan if found is None else float(np.sqrt(found)) for found in self.waiting])
        self.forget()


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = data(step)
    return functional.cross_entropy(model(x), y)


# --- programs that people write ---------------------------------------------------------------------------------


class Program:
    """A training with a recorder on, and the truth beside it."""

    def __init__(self) -> None:
        self.model, self.sink = mlp(), ListSink()
        self.truth = Truth(self.model)
        self.optimizer = sgd(self.model)

    def clear(self, to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=to_none)
        self.truth.forget()

    def step(self) -> None:
        self.optimizer.step()
        self.truth.step()


def skipped_batches(program: Program, step: int) -> None:
    for i in range(3):
        program.clear(to_none=step % 2 == 0)
        (loss_of(program.model, 10 * step + i) * (1e4 if i < 2 else 1.0)).backward()
    program.step()


def nan_guard(program: Program, step: int) -> None:
    program.clear()
    (loss_of(program.model, 100 + step) * float("inf")).backward()
    program.clear()
    loss_of(program.model, step).backward()
    program.step()


def projected_gradient_attack(program: Program, step: int) -> None:
    x, y = data(step)
    change = torch.zeros_like(x, requires_grad=True)
    for _ in range(3):
        functional.cross_entropy(program.model(x + change), y).backward()
        with torch.no_grad():
            change += 0.1 * change.grad.sign()
        change.grad = None
    program.clear(to_none=step % 2 == 0)
    functional.cross_entropy(program.model(x + change.detach()), y).backward()
    program.step()


def left_over_micro_batches(program: Program, step: int) -> None:
    if step % 3 == 0:
        program.clear()
    for i in range(2):
        loss_of(program.model, 10 * step + i).backward()
    program.step()
    program.clear()
    if step % 3 == 2:
        loss_of(program.model, 10 * step + 7).backward()


def never_cleared(program: Program, step: int) -> None:
    loss_of(program.model, step).backward()
    program.step()


def clipped_between_micro_batches(program: Program, step: int) -> None:
    program.clear()
    loss_of(program.model, 2 * step).backward()
    nn.utils.clip_grad_norm_(program.model.parameters(), 1e-3)
    loss_of(program.model, 2 * step + 1).backward()
    program.step()


def function_transforms(program: Program, step: int) -> None:
    model, (x, y) = program.model, data(step)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(smooth, parameters, (x,)), y)

    smooth = model  # its ReLU in place is fine in all of these
    with inner(program):
        torch.func.grad(loss)(parameters, x, y)
        torch.func.jvp(lambda p: loss(p, x, y), (parameters,), (parameters,))
        torch.vmap(torch.func.grad(lambda p, a, b: loss(p, a[None], b[None])), in_dims=(None, 0, 0))(parameters, x, y)
    program.clear()
    loss_of(model, step).backward()
    program.step()


def hessian_vector_product(program: Program, step: int) -> None:
    program.clear()
    if step >= 2:  # it begins after the first rows, which have other hooks
        parameters = list(program.model.parameters())
        with inner(program):
            grads = torch.autograd.grad(loss_of(program.model, 50 + step), parameters, create_graph=True)
            torch.autograd.grad(sum((g * g.detach()).sum() for g in grads), parameters)
    loss_of(program.model, step).backward()
    program.step()


@contextmanager
def inner(program: Program) -> Iterator[None]:
    program.truth.inner = True
    yield
    program.truth.inner = False


PROGRAMS: dict[str, tuple[Callable[[Program, int], None], list[int]]] = {
    "skipped batches": (skipped_batches, [2] * 6),
    "NaN guard": (nan_guard, [1] * 6),
    "PGD": (projected_gradient_attack, [3] * 6),
    "left-over micro-batches": (left_over_micro_batches, [0, 0, 0, 1, 0, 0]),
    "never cleared": (never_cleared, [0] * 6),
    "clipped between micro-batches": (clipped_between_micro_batches, [0] * 6),
    "function transforms": (function_transforms, [0] * 6),
    "Hessian-vector product": (hessian_vector_product, [0] * 6),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch.func.jvp uses it
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("every", [1, 3])
def test_what_is_discarded_leaves_no_trace(name: str, every: int) -> None:
    run, discarded = PROGRAMS[name]
    program = Program()
    got = []
    with Recorder(
        program.model, program.sink, optimizer=program.optimizer, metrics=METRICS, every=every, on_error="raise"
    ):
        program.optimizer.register_step_pre_hook(lambda *_: got.append(norms(program.model)))
        for step in range(6):
            run(program, step)
    rows = range(0, 6, every)
    np.testing.assert_allclose(program.sink.metric("param_grad_norm"), [got[i] for i in rows], rtol=1e-6)
    expected = [program.truth.rows[i] for i in rows]
    np.testing.assert_allclose(program.sink.metric("activation_grad_norm"), expected, rtol=1e-6)
    counts = [row.scalars.get("discarded_passes", 0.0) for row in program.sink.rows]
    assert counts == [discarded[i] for i in rows]
    assert any("discarded_passes" in note for note in program.sink.notes) == (sum(counts) > 0)
    assert np.isfinite(program.sink.metric("activation_rms")[0]).all()
    if name in ("skipped batches", "NaN guard"):
        bare = mlp()
        optimizer = sgd(bare)
        sink = ListSink()
        with Recorder(bare, sink, optimizer=optimizer, metrics=METRICS, every=every):
            for step in range(6):
                optimizer.zero_grad()
                loss_of(bare, 10 * step + 2 if name == "skipped batches" else step).backward()
                optimizer.step()
        for metric in METRICS:
            np.testing.assert_array_equal(sink.metric(metric), program.sink.metric(metric))


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), with an optimizer inside."""

    def __init__(self, parameters, base: type[torch.optim.Optimizer], lr: float) -> None:
        super().__init__(list(parameters), {"lr": lr, "rho": 0.05})
        self.base_optimizer = base(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups
        self.moves: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def first_step(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        self.moves = [(p, 0.05 * p.grad / norm) for p in parameters]
        for p, move in self.moves:
            p.add_(move)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p, move in self.moves:
            p.sub_(move)
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


@pytest.mark.parametrize("style", ["two half steps", "closure"])
def test_the_first_pass_of_sharpness_aware_minimisation_is_discarded(style: str) -> None:
    model, sink = mlp(), ListSink()
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.1)
    truth = Truth(model)
    updates: list[float] = []
    got = []
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: got.append(norms(model)))
    with Recorder(
        model, sink, optimizer=optimizer, metrics=("param_grad_norm", "activation_grad_norm", "update_ratio")
    ):
        for step in range(5):
            before = [p.detach().clone() for p in model[0].parameters()]
            loss_of(model, step).backward()
            truth.forget()
            if style == "closure":
                optimizer.step(lambda step=step: loss_of(model, step).backward())
            else:
                optimizer.first_step()
                loss_of(model, step).backward()
                optimizer.second_step()
            truth.step()
            pairs = zip(model[0].parameters(), before, strict=True)
            change = np.sqrt(sum(float((new.detach() - old).square().sum()) for new, old in pairs))
            updates.append(change / np.sqrt(sum(float(old.square().sum()) for old in before)))
    np.testing.assert_allclose(sink.metric("activation_grad_norm"), truth.rows, rtol=1e-6)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)
    np.testing.assert_allclose(sink.metric("update_ratio")[0, 0], updates[0], rtol=1e-3)
    assert [row.scalars["discarded_passes"] for row in sink.rows] == [1] * 5
    assert not any("clip_coefficient" in row.scalars for row in sink.rows)


def generator_and_discriminator() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)
    )


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("first", ["generator", "discriminator"])
@pytest.mark.parametrize("recorders", [1, 2])
def test_the_generators_loss_is_no_gradient_of_the_discriminator(first: str, recorders: int, to_none: bool) -> None:
    g, d = generator_and_discriminator()
    of_g, of_d = sgd(g), sgd(d)
    truth_g, truth_d = Truth(g), Truth(d)
    sinks = [ListSink() for _ in range(recorders)]
    if recorders == 1:
        made = [Recorder(nn.ModuleDict({"g": g, "d": d}), sinks[0], optimizer=[of_g, of_d], on_error="raise")]
    else:
        pairs = [(g, of_g), (d, of_d)]
        made = [Recorder(m, s, optimizer=o, on_error="raise") for (m, o), s in zip(pairs, sinks, strict=True)]

    def train_g(step: int) -> None:
        of_g.zero_grad(set_to_none=to_none)
        truth_g.forget()
        functional.softplus(-d(g(data(step)[0]))).mean().backward()
        of_g.step()
        truth_g.step()

    def train_d(step: int) -> None:
        of_d.zero_grad(set_to_none=to_none)
        truth_d.forget()
        functional.softplus(-d(data(step)[0])).mean().backward()
        functional.softplus(d(g(data(100 + step)[0]).detach())).mean().backward()
        of_d.step()
        truth_d.step()

    for each in made:
        each.__enter__()
    for step in range(6):
        for train in (train_g, train_d) if first == "generator" else (train_d, train_g):
            train(step)
    for each in made:
        each.close()
    expected = np.array([[*a, *b] for a, b in zip(truth_g.rows, truth_d.rows, strict=True)])
    columns = {}
    for sink in sinks:
        names = [layer.name for layer in sink.header.layers]
        for i, name in enumerate(names):
            columns[name if recorders == 1 else f"{'gd'[sinks.index(sink)]}.{name}"] = sink.metric(
                "activation_grad_norm"
            )[:, i]
    got = np.array([columns[name] for name in ("g.0", "g.2", "d.0", "d.2")]).T
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert not any("clip_coefficient" in row.scalars for sink in sinks for row in sink.rows)


@pytest.mark.parametrize("phases", [False, True])
def test_layers_that_are_trained_in_turn_have_a_row_for_each_step(phases: bool) -> None:
    """As in forward-forward (Hinton 2022): each layer has a loss and an optimizer of its own."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    optimizers = [sgd(layer) for layer in layers]
    sink, truths = ListSink(), [Truth(layer) for layer in layers]
    order = [k for k in range(3) for _ in range(5)] if phases else [0, 0, 1, 2] * 3
    with Recorder(layers, sink, optimizer=optimizers, on_error="raise"):
        for step, k in enumerate(order):
            x = data(step)[0]
            with torch.no_grad():
                for layer in layers[:k]:
                    x = layer(x).relu()
            optimizers[k].zero_grad()
            truths[k].forget()
            functional.softplus(layers[k](x).square().mean(1) - 1).mean().backward()
            optimizers[k].step()
            truths[k].step()
    assert len(sink.rows) == len(order)
    assert sum("step in turn" in note for note in sink.notes) == 1
    taken = [iter(truth.rows) for truth in truths]
    outputs = sink.metric("activation_grad_norm")
    for row, k in enumerate(order):
        expected = np.full(3, np.nan)
        expected[k] = next(taken[k])[0]
        np.testing.assert_allclose(outputs[row], expected, rtol=1e-6)
    assert not any("clip_coefficient" in row.scalars for row in sink.rows)


def test_an_optimizer_that_steps_during_the_backward_pass() -> None:
    model, sink = mlp(), ListSink()
    truth = Truth(model)
    optimizers = {p: torch.optim.SGD([p], 0.01) for p in model.parameters()}

    def step_at_once(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_at_once)
    with Recorder(model, sink, optimizer=list(optimizers.values()), on_error="raise") as recorder:
        for step in range(5):
            loss = loss_of(model, step)
            loss.backward()
            recorder.log(loss=loss)
            truth.step()
    np.testing.assert_allclose(sink.metric("activation_grad_norm"), truth.rows, rtol=1e-6)
    assert np.isfinite(sink.metric("param_grad_norm")).all()
    assert [row.scalars["loss"] for row in sink.rows] == pytest.approx([row.scalars["loss"] for row in sink.rows])
    assert len(sink.rows) == 5
    assert not any("clip_coefficient" in row.scalars for row in sink.rows)


# --- random programs --------------------------------------------------------------------------------------------


def random_program(seed: int) -> None:
    """Run a random program over two models, and compare both recorders with the truth."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    a = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    b = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    models, optimizers = {"a": a, "b": b}, {"a": sgd(a), "b": sgd(b)}
    truths, sinks = {"a": Truth(a), "b": Truth(b)}, {"a": ListSink(), "b": ListSink()}
    got: dict[str, list[list[float]]] = {"a": [], "b": []}
    alive = {"a": False, "b": False}
    recorders = [
        Recorder(models[name], sinks[name], optimizer=optimizers[name], on_error="raise") for name in ("a", "b")
    ]
    for each in recorders:
        each.__enter__()

    def run(path: str) -> Tensor:
        x, y = data(choose.randrange(1000))
        hidden = a(x) if "a" in path else x
        if path == "a|b":
            hidden = hidden.detach()
        return functional.cross_entropy(b(hidden), y) if "b" in path else hidden.square().mean()

    for _ in range(choose.randrange(15, 40)):
        what = choose.choices(["pass", "clear", "step", "evaluate", "inner", "twice"], [6, 4, 5, 1, 1, 1])[0]
        path = choose.choice(["a", "b", "ab", "a|b"])
        if what == "pass":
            (run(path) * choose.choice([1.0, 1e3])).backward()
            for name in {"a": "a", "b": "b", "ab": "ab", "a|b": "b"}[path]:
                alive[name] = True
        elif what == "twice":
            loss = run("ab")
            loss.backward(retain_graph=True)
            loss.backward()
            alive = {"a": True, "b": True}
        elif what == "clear":
            for name in choose.choice(["a", "b", "ab"]):
                clearing = choose.choice([optimizers[name], models[name]])
                clearing.zero_grad(set_to_none=choose.random() < 0.6)
                truths[name].forget()
                alive[name] = False
        elif what == "step":
            name = choose.choice("ab")
            if not alive[name]:
                continue
            linear = [m for m in models[name].modules() if isinstance(m, nn.Linear)]
            got[name].append(norms(nn.Sequential(*linear)))
            optimizers[name].step()
            truths[name].step()
            alive[name] = False
        elif what == "evaluate":
            with torch.no_grad() if choose.random() < 0.5 else torch.enable_grad():
                run(path)
        elif any(alive[name] for name in "ab") and alive["a"] and alive["b"]:
            for truth in truths.values():
                truth.inner = True
            x = data(choose.randrange(1000))[0].requires_grad_()
            torch.autograd.grad(b(a(x)).sum(), x, create_graph=choose.random() < 0.5)
            for truth in truths.values():
                truth.inner = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in recorders:
            each.close()
    for name in "ab":
        if truths[name].rows:
            np.testing.assert_allclose(sinks[name].metric("activation_grad_norm"), truths[name].rows, rtol=1e-6)
            np.testing.assert_allclose(sinks[name].metric("param_grad_norm"), got[name], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:gradlens. 20 backward passes")
@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed: int) -> None:
    random_program(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:gradlens. 20 backward passes")
def test_three_hundred_random_programs() -> None:
    for seed in range(25, 325):
        random_program(seed)


def test_parts_that_are_frozen_while_the_other_steps_by_a_closure() -> None:
    """As Lightning does with two optimizers: ``toggle_optimizer`` around each step, and a closure in it."""
    torch.manual_seed(0)
    both = nn.ModuleDict({"g": nn.Linear(4, 8), "d": nn.Linear(8, 1)})
    optimizers = {name: torch.optim.SGD(part.parameters(), 0.1) for name, part in both.items()}
    sink, expected = ListSink(), []
    with Recorder(both, sink, optimizer=list(optimizers.values()), on_error="raise"):
        for step in range(4):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            norms = []
            for name, other in (("g", "d"), ("d", "g")):
                both[name].requires_grad_(True)
                both[other].requires_grad_(False)
                optimizers[name].zero_grad()
                functional.softplus(both["d"](both["g"](x))).mean().backward()
                norms.append(float(torch.cat([p.grad.flatten() for p in both[name].parameters()]).double().norm()))
                optimizers[name].step(lambda: None)
            expected.append(norms)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), expected, rtol=1e-6)
