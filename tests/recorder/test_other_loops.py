"""Loops that other people have: optimizers that share parameters, hooks on optimizers, parameters that are replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from gradlens.errors import GradlensWarning, RecorderError
from gradlens.recorder import Recorder
from gradlens.recorder.unclosed_recorders import describe
from gradlens.recorder.unwrapping import find_optimizers
from gradlens.sinks import ListSink
from tests.recorder.small import backward, mlp, norms


def expect(sink: ListSink, truth: list[list[float]]) -> None:
    """Compare the rows with the truth."""
    np.testing.assert_allclose(sink.metric("param_grad_norm"), truth, rtol=1e-5)


@pytest.mark.parametrize("turns", ["010101", "000111"], ids=["in turn", "phases"])
def test_each_step_of_optimizers_that_share_parameters_is_a_row(turns: str) -> None:
    model, sink, truth = mlp(), ListSink(), []
    both = [SGD(model.parameters(), 0.1), Adam(model.parameters())]
    with Recorder(model, sink, optimizer=both, on_error="raise") as recorder:
        for step, which in enumerate(map(int, turns)):
            backward(model, step)
            truth.append(norms(model))
            both[which].step()
    expect(sink, truth)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
    assert recorder.notes[0] == "the optimizers share parameters: from row 0 on, each step of one of them is a row"


class Sam(Optimizer):
    """Its own ``step`` is never called: the optimizer inside steps."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.inner = SGD(self.param_groups, 0.1)
        self.elsewhere = SGD([nn.Parameter(torch.zeros(1))], 0.1)

    def second_step(self) -> None:
        self.inner.step()

    def step(self, closure: Any = None) -> None:
        raise NotImplementedError


def test_an_optimizer_inside_another_one_with_the_same_parameters_is_followed() -> None:
    model, sink, truth = mlp(), ListSink(), []
    optimizer = Sam(model.parameters())
    found = find_optimizers(optimizer, None)
    assert found.optimizers == [optimizer.inner]
    assert found.wrappers == [(0, optimizer)]
    with Recorder(model, sink, optimizer=optimizer, on_error="raise"):
        for step in range(3):
            backward(model, step)
            truth.append(norms(model))
            optimizer.second_step()
    expect(sink, truth)


def test_hooks_that_the_user_places_later_change_gradients_before_they_are_read() -> None:
    model, sink, truth = mlp(), ListSink(), []
    optimizer = SGD(model.parameters(), 0.1)

    def normalise(*_: Any) -> None:
        for parameter in model.parameters():
            parameter.grad.div_(parameter.grad.norm())
        truth.append(norms(model))

    with Recorder(model, sink, optimizer=optimizer, on_error="raise"):
        optimizer.register_step_pre_hook(normalise)
        for step in range(3):
            backward(model, step)
            optimizer.step()
    expect(sink, truth)
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [normalise]


@pytest.mark.parametrize("how", ["assigned", "added"])
def test_what_changed_in_the_model_is_said_at_the_end(how: str) -> None:
    model, sink = mlp(), ListSink()
    optimizer = SGD(model.parameters(), 0.1)
    said = {
        "assigned": "parameters were replaced or added after recording began",
        "added": "5: added to the model after recording began",
    }
    recorder = Recorder(model, sink, optimizer=optimizer).start()
    backward(model, 0)
    optimizer.step()
    if how == "assigned":
        model.load_state_dict({name: each.clone() for name, each in model.state_dict().items()}, assign=True)
    else:
        model.append(nn.Linear(3, 3))
    with pytest.warns(GradlensWarning, match=said[how]):
        recorder.close()
    assert any(said[how] in note for note in sink.notes)


def test_lazy_modules_without_shapes_are_refused_in_a_line() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(RecorderError, match=r"^0 and 1 more: a lazy module has no shape") as raised:
        Recorder(model, ListSink(), optimizer=SGD(model.parameters(), 0.1))
    assert "call the model once" in str(raised.value)
    model(torch.zeros(1, 4))
    Recorder(model, ListSink(), optimizer=SGD(model.parameters(), 0.1))


def test_copies_of_parameters_that_are_trained_are_named() -> None:
    model, sink = mlp(), ListSink()
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    optimizer = Adam(copies.values())
    recorder = Recorder(model, sink, optimizer=optimizer).start()
    torch.func.functional_call(model, copies, (torch.ones(2, 4),)).square().mean().backward()
    with pytest.warns(GradlensWarning, match=r"\(Adam\) holds none .* and no gradient reaches them \(functional_call"):
        optimizer.step()
    recorder.close()
    assert np.isfinite(sink.metric("activation_grad_norm")).all()


def test_optimizers_in_the_backward_pass_are_named_as_the_cause() -> None:
    model, sink = mlp(), ListSink()
    optimizers = {parameter: SGD([parameter], 0.1) for parameter in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with Recorder(model, sink) as recorder:
        for number in range(3):
            backward(model, number)
            recorder.step()
    assert [note for note in sink.notes if "to be given as optimizer=[...]: 0, 2, 4" in note]


@pytest.mark.parametrize("divided", [True, False])
def test_a_scale_taken_off_by_hand_is_told_from_clipping(divided: bool) -> None:
    model, sink = mlp(), ListSink()
    optimizer = SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(6):
            backward(model, step)
            if divided:
                for parameter in model.parameters():
                    parameter.grad.div_(1024)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    assert any("divided by 1024" in note for note in sink.notes) == divided


class Adamish:
    """Stands for an optimizer of Keras."""


def test_keras_is_refused_with_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adamish, "__module__", "keras.src.optimizers")
    with pytest.raises(RecorderError, match=r"on_train_batch_end"):
        find_optimizers(Adamish(), None)  # type: ignore[arg-type]


def test_a_generator_that_is_left_early_is_no_failure() -> None:
    assert describe(GeneratorExit()) == ("interrupted", "ended by GeneratorExit")


@pytest.mark.parametrize("scaled", [True, False], ids=["scaler", "no scaler"])
@pytest.mark.parametrize("noisy", [False, True], ids=["clipping alone", "noise elsewhere"])
def test_clipping_of_a_gradient_that_overflowed_is_no_other_change(scaled: bool, noisy: bool) -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler if scaled else None) as recorder:
        for step in range(6):
            optimizer.zero_grad()
            x = torch.full((4, 4), float("inf") if step == 5 else 1.0)
            scaler.scale(model(x).square().mean()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            if noisy and step == 2:
                model[0].weight.grad = torch.ones_like(model[0].weight)
            scaler.step(optimizer)
            scaler.update()
    assert len(sink.rows) == 6
    assert not np.isfinite(sink.rows[5].metrics["param_grad_norm"]).all()
    said = [note for note in recorder.notes if "gradients were changed" in note]
    assert len(said) == noisy
    assert all(note.startswith("in 1 row ") for note in said)
