"""A recording that cannot be is said to be none: one warning with the cause and the cure, and the same in the notes."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.optimizer import _global_optimizer_pre_hooks

import gradlens
from gradlens.errors import GradlensWarning
from gradlens.recorder import Recorder, measuring
from gradlens.recorder.ranks import distributed
from gradlens.sinks import ListSink
from gradlens.storage.lock import lock_path
from tests.recorder.small import backward, data, mlp, norms


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in range(3):
        model.zero_grad()
        backward(model, step)
        optimizer.step()


def another_optimizer_steps(model: nn.Module, recorder: Recorder) -> None:
    optimizer = sgd(model)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def no_step_by_hand(model: nn.Module, recorder: Recorder) -> None:
    another_optimizer_steps(model, recorder)


def another_model(model: nn.Module, recorder: Recorder) -> None:
    other = mlp()
    another_optimizer_steps(other, recorder)


def no_backward(model: nn.Module, recorder: Recorder) -> None:
    with torch.no_grad():
        model(data(0)[0])


CAUSES: dict[str, tuple[Callable[[nn.Module, Recorder], None], bool, str]] = {
    "another optimizer": (
        another_optimizer_steps,
        True,
        r"4 backward passes came, and the optimizer given \(SGD\) never",
    ),
    "no optimizer": (no_step_by_hand, False, r"optimizer= was not given, and recorder.step\(\) was not called; pass"),
    "another model": (another_model, True, "no layer of the Sequential was called"),
    "no backward pass": (no_backward, True, "the model was called, and no backward pass reached its parameters"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_recording_without_a_row_says_why(name: str) -> None:
    act, given, match = CAUSES[name]
    model = mlp()
    recorder = Recorder(model, ListSink(), optimizer=sgd(model) if given else None)
    with pytest.warns(GradlensWarning, match=match) as caught, recorder:
        act(model, recorder)
    assert len(caught) == 1
    assert any("no row was recorded" in note for note in recorder.notes)


def test_every_that_chooses_nothing() -> None:
    model = mlp()
    optimizer = sgd(model)
    recorder = Recorder(model, ListSink(), optimizer=optimizer, every=lambda step: step > 100)
    with pytest.warns(GradlensWarning, match="every= chose none of 3 steps"), recorder:
        train(model, optimizer)


def test_an_exception_of_the_user_is_not_talked_over() -> None:
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), Recorder(model, ListSink(), optimizer=sgd(model)):
            raise KeyError("theirs")


@pytest.mark.parametrize("given", [True, False])
def test_twenty_passes_without_a_step_are_said_while_it_happens(given: bool) -> None:
    model = mlp()
    other = sgd(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Recorder(model, ListSink(), optimizer=sgd(model) if given else None):
            for step in range(30):
                other.zero_grad()
                backward(model, step)
                other.step()
                if step == 18:
                    assert not caught
            assert len(caught) == 1
    assert "20 backward passes" in str(caught[0].message)
    assert ("no step of the optimizer given" if given else "neither optimizer= was given") in str(caught[0].message)


def test_an_optimizer_of_other_parameters_is_named() -> None:
    model, other = mlp(), mlp()
    optimizer = sgd(other)
    recorder = Recorder(model, ListSink(), optimizer=optimizer)
    with pytest.warns(GradlensWarning, match=r"\(SGD\) holds none of the parameters of Sequential"), recorder:
        train(model, optimizer)


@pytest.mark.parametrize("passes", [1, 4])
def test_an_optimizer_that_takes_over_is_named(passes: int) -> None:
    """As where a framework makes its optimizer anew for the second phase of a training."""
    model, sink = mlp(), ListSink()
    first, second = sgd(model), torch.optim.Adam(model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Recorder(model, sink, optimizer=first) as recorder:
            train(model, first)
            for step in range(9):
                for part in range(passes):
                    backward(model, step + part)
                second.step()
                second.zero_grad()
            assert not caught
    assert len(sink.rows) == 3
    assert len(caught) == 1
    text = r"another optimizer \(Adam\) .* given \(SGD\) does not step: from row 3 on"
    assert re.search(text, str(caught[0].message))
    assert any("from row 3 on, steps of it are in no row" in note for note in recorder.notes)


@pytest.mark.parametrize("own", [True, False], ids=["given", "not given"])
def test_many_passes_and_steps_of_others_are_no_taking_over(own: bool) -> None:
    """Accumulation, an attack, and an inner optimizer of other parameters or of a copy."""
    model, sink = mlp(), ListSink()
    optimizer, copied = sgd(model), copy.deepcopy(model)
    others = [sgd(copied), torch.optim.Adam(nn.Linear(2, 2).parameters())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Recorder(model, sink, optimizer=optimizer if own else None) as recorder:
            for step in range(3):
                for part in range(30 if step else 3):
                    backward(model, part)
                    for other in others:
                        other.step()
                if not own:
                    recorder.step()
                optimizer.step()
                optimizer.zero_grad()
    assert len(sink.rows) == 3
    assert not _global_optimizer_pre_hooks


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_by_hand_after_the_gradients_were_cleared(to_none: bool) -> None:
    """As where a framework steps and clears in one call: a row of zeros would be taken for a gradient of 0."""
    model, sink = mlp(), ListSink()
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Recorder(model, sink) as recorder:
            for step in range(6):
                backward(model, step)
                if step == 5:
                    recorder.step(loss=1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=to_none)
                if step < 5:
                    recorder.step(loss=1.0)
    assert len(caught) == 1
    assert "after the gradients were cleared: such steps are in no row" in str(caught[0].message)
    assert [row.step for row in sink.rows] == [5]
    assert sink.metric("param_grad_norm").min() > 0


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaler_that_was_not_given_is_found(unscaled: bool) -> None:
    """What is recorded is what is recorded with scaler=, clipping after unscaling included."""

    def train(given: bool) -> ListSink:
        model, sink = mlp(), ListSink()
        optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        with Recorder(model, sink, optimizer=optimizer, scaler=scaler if given else None, on_error="raise"):
            for step in range(8):
                optimizer.zero_grad()
                x, y = data(step)
                scaler.scale(functional.cross_entropy(model(x), y)).backward()
                if unscaled:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                scaler.step(optimizer)
                scaler.update()
        return sink

    told, found = train(True), train(False)
    for metric in ("activation_grad_norm", "param_grad_norm", "nonfinite_count"):
        np.testing.assert_array_equal(found.metric(metric), told.metric(metric))
    assert [row.scalars for row in found.rows] == [row.scalars for row in told.rows]
    assert any("GradScaler" in note for note in found.notes)
    assert not any("GradScaler" in note for note in told.notes)


# --- layers that no hook sees -------------------------------------------------------------------------------------


class Direct(nn.Module):
    """Calls its layers' ``forward``, which runs no hook."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner:
            x = layer.forward(x)
        return x


def averaged_from_copies(model: nn.Module, step: int) -> None:
    """Set gradients as federated averaging does: the model that is recorded is never called."""
    client = copy.deepcopy(model)
    backward(client, step)
    for p, q in zip(model.parameters(), client.parameters(), strict=True):
        p.grad = q.grad.clone()


@pytest.mark.parametrize(
    ("build", "make_gradients", "match"),
    [
        (Direct, backward, "no layer was called as a module, although gradients reached"),
        (mlp, averaged_from_copies, "no backward pass came; the gradients were set by hand"),
    ],
    ids=["forward() of layers", "copies"],
)
def test_layers_that_were_not_called_are_not_said_to_be_compiled(
    build, make_gradients, match: str, monkeypatch
) -> None:
    monkeypatch.setattr(measuring, "has_compiled", lambda: False)  # other tests may have compiled something
    model, sink = build(), ListSink()
    optimizer = sgd(model)
    got = []
    recorder = Recorder(model, sink, optimizer=optimizer)

    def run() -> None:
        for step in range(4):
            optimizer.zero_grad()
            make_gradients(model, step)
            got.append(norms(model))
            optimizer.step()

    with pytest.warns(GradlensWarning, match=match) as caught, recorder:
        run()
    assert len(caught) == 1
    assert "compile" not in " ".join([str(caught[0].message), *recorder.notes])
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)
    assert np.isnan(sink.metric("activation_grad_norm")).all()


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:gradlens. this is one of 2 processes")
@pytest.mark.parametrize("first_is_done", [False, True])
def test_a_bare_model_in_several_processes(
    first_is_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process has the file; the second says so and trains on."""
    model, first = mlp(), gradlens.record(other := mlp(), tmp_path / "run.h5", optimizer=sgd(other))
    first.start()
    train(other, first._optimizers[0])
    if first_is_done:
        first.close()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 1)
    optimizer = sgd(model)
    with pytest.warns(GradlensWarning, match="process 2 of 2, and another one records .* DistributedDataParallel"):
        second = gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer).start()
    train(model, optimizer)
    second.close()
    first.close()
    run = gradlens.read_run(tmp_path / "run.h5")
    assert (len(run.steps), run.status) == (3, "complete")


# --- clip_coefficient only where something clipped ------------------------------------------------------------------


def surgery(model: nn.Module, step: int) -> None:
    """Project the gradient of one task away from the other's (Yu et al. 2020)."""
    grads = []
    for task in range(2):
        model.zero_grad()
        backward(model, 10 * step + task)
        grads.append([p.grad.clone() for p in model.parameters()])
    for p, a, b in zip(model.parameters(), *grads, strict=True):
        p.grad = a + b - (a * b).sum().clamp(max=0) / b.square().sum().clamp(min=1e-12) * b


def noise(model: nn.Module, step: int) -> None:
    model.zero_grad()
    backward(model, step)
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad.mul_(0.9).add_(torch.randn(p.shape, generator=generator), alpha=0.02)


def replacement(model: nn.Module, step: int) -> None:
    """Replace all gradients by others that are smaller."""
    model.zero_grad()
    backward(model, step)
    for p in model.parameters():
        p.grad = p.grad.flip(0) * 0.1


@pytest.mark.parametrize("change", [surgery, noise, replacement])
def test_what_is_no_clipping_has_no_coefficient(change: Callable[[nn.Module, int], None]) -> None:
    model, sink = mlp(), ListSink()
    optimizer = sgd(model)
    got = []
    with Recorder(model, sink, optimizer=optimizer, on_error="raise"):
        for step in range(20):
            change(model, step)
            got.append(norms(model))
            optimizer.step()
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)
    assert not any("clip_coefficient" in row.scalars for row in sink.rows)
    assert any("not by clipping alone" in note for note in sink.notes)


def test_a_closure_with_several_evaluations_does_not_clip() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=6)
    with Recorder(model, sink, optimizer=optimizer, on_error="raise"):
        for step in range(10):

            def closure(step: int = step) -> torch.Tensor:
                optimizer.zero_grad()
                return backward(model, step)

            optimizer.step(closure)
    assert not any("clip_coefficient" in row.scalars for row in sink.rows)
    assert not any("discarded" in note for note in sink.notes)


class DeepSpeedEngine(nn.Module):
    """Like DeepSpeed's: it wraps the model, and averages gradients over the ranks before its optimizer steps."""

    data_parallel_group = "both"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


HOLD = """
import fcntl, os, sys
fcntl.lockf(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_ranks_of_an_engine_are_combined_and_a_first_rank_may_come_second(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(distributed.dist, "get_process_group_ranks", lambda group: {"both": [0, 1]}[group])
    ranks = distributed.find_ranks(DeepSpeedEngine(mlp()))
    assert ranks is not None
    assert (ranks.world, ranks.batch_parts) == (2, 2)
    with pytest.warns(GradlensWarning, match="not wrapped"):
        assert distributed.find_ranks(mlp()) is None
    path = tmp_path / "run.h5"
    assert distributed.bare_rank(path) == ""  # nobody writes it
    command = [sys.executable, "-c", HOLD, str(lock_path(path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert distributed.bare_rank(path) == "process 1 of 2"
        other.communicate()
