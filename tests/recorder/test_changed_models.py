"""Models that change while they are recorded: parameters replaced, layers renamed, gradients from before recording."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD

from gradlens.errors import GradlensWarning
from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.small import backward, mlp, norms

CHANGED_AT, STEPS = 6, 12
OF_PARAMETERS = ("param_grad_norm", "param_norm", "update_ratio", "nonfinite_count")


def unparametrise(model: nn.Sequential) -> None:
    parametrize.remove_parametrizations(model[2], "weight")


def replace(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())


def assign(model: nn.Sequential) -> None:
    state = {name: each.clone() for name, each in model[2].state_dict().items()}
    model[2].load_state_dict(state, assign=True)


def in_place(model: nn.Sequential) -> None:
    model[2]._parameters["weight"] = nn.Parameter(model[2].weight.detach().clone())


@pytest.mark.parametrize(
    ("prepare", "change"),
    [
        (parametrizations.weight_norm, unparametrise),
        (None, lambda model: parametrizations.weight_norm(model[2])),
        (None, replace),
        (None, assign),
    ],
    ids=["weight norm removed", "weight norm added", "a new parameter", "assigned"],
)
def test_a_layer_whose_parameters_were_replaced_has_none_of_its_metrics(
    prepare: Callable[[nn.Module], nn.Module] | None, change: Callable[[nn.Sequential], None]
) -> None:
    model, sink, truth = mlp(), ListSink(), []
    if prepare is not None:
        prepare(model[2])
    optimizer = SGD(model.parameters(), 0.1)
    metrics = ("activation_grad_norm", *OF_PARAMETERS)
    every = dict.fromkeys(metrics, 1)
    recorder = Recorder(model, sink, optimizer=optimizer, metrics=metrics, every=every, on_error="raise").start()
    for step in range(STEPS):
        if step == CHANGED_AT:
            change(model)
            held = set(optimizer.param_groups[0]["params"])
            optimizer.add_param_group({"params": [each for each in model.parameters() if each not in held]})
        optimizer.zero_grad()
        backward(model, step)
        truth.append(norms(model))
        optimizer.step()
    with pytest.warns(GradlensWarning, match="^gradlens: 2: parameters were replaced or added"):
        recorder.close()
    expected = np.array(truth)
    assert np.isfinite(expected).all()
    expected[CHANGED_AT:, 1] = np.nan
    np.testing.assert_allclose(sink.metric("param_grad_norm"), expected, rtol=1e-5)
    for metric in OF_PARAMETERS:
        found = sink.metric(metric)
        assert np.isnan(found[CHANGED_AT:, 1]).all()
        assert np.isfinite(found[:CHANGED_AT]).any()
    assert np.isfinite(sink.metric("update_ratio")[:, [0, 2]]).all()
    assert np.isfinite(sink.metric("activation_grad_norm")).all()


def test_a_parameter_that_torch_does_not_hear_of_is_found_in_a_look() -> None:
    model, sink = mlp(), ListSink()
    optimizer = SGD(model.parameters(), 0.1)
    recorder = Recorder(model, sink, optimizer=optimizer, on_error="raise").start()
    for step in range(STEPS):
        if step == CHANGED_AT:
            in_place(model)
        backward(model, step)
        optimizer.step()
    with pytest.warns(GradlensWarning, match="parameters were replaced"):
        recorder.close()
    missing = np.isnan(sink.metric("param_grad_norm")[:, 1])
    assert missing.tolist() == [step >= 8 for step in range(STEPS)]


@pytest.mark.parametrize("change", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_a_parametrisation_that_keeps_the_parameter_is_no_replacement(change: Callable[[nn.Module], nn.Module]) -> None:
    model, sink = mlp(), ListSink()
    optimizer = SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer, on_error="raise") as recorder:
        for step in range(STEPS):
            if step == CHANGED_AT:
                change(model[2])
            backward(model, step)
            optimizer.step()
    assert np.isfinite(sink.metric("param_grad_norm")).all()
    assert not recorder.notes


def test_hooks_on_registrations_are_removed() -> None:
    hooks = torch.nn.modules.module._global_parameter_registration_hooks
    before, model = len(hooks), mlp()
    optimizer = SGD(model.parameters(), 0.1)
    with Recorder(model, ListSink(), optimizer=optimizer, on_error="raise"):
        assert len(hooks) == before + 1
        backward(model, 0)
        optimizer.step()
    assert len(hooks) == before


class Wrapped(nn.Module):
    """A layer inside another module, as adapters put it there."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def test_a_layer_that_has_another_name_now_is_still_recorded() -> None:
    model, sink, truth = mlp(), ListSink(), []
    optimizer = SGD(model.parameters(), 0.1)
    recorder = Recorder(model, sink, optimizer=optimizer, on_error="raise").start()
    layers = [model[0], model[2], model[4]]
    for step in range(STEPS):
        if step == CHANGED_AT:
            model[2] = Wrapped(model[2])
        optimizer.zero_grad()
        backward(model, step)
        truth.append(norms(nn.ModuleList(layers)))
        optimizer.step()
    with pytest.warns(GradlensWarning, match=r"^gradlens: 2\.down, 2\.up: added to the model") as said:
        recorder.close()
    assert len(said) == 1
    np.testing.assert_allclose(sink.metric("param_grad_norm"), truth, rtol=1e-5)
    assert "recorded under the name that it had when recording began: 2 (now 2.base)" in sink.notes


@pytest.mark.parametrize("left", [True, False], ids=["gradients left", "cleared"])
@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_of_passes_before_the_recording(left: bool, to_none: bool) -> None:
    model, sink, truth = mlp(), ListSink(), []
    optimizer = SGD(model.parameters(), 0.1)
    backward(model, 0)
    if not left:
        optimizer.zero_grad(set_to_none=to_none)
    with Recorder(model, sink, optimizer=optimizer, on_error="raise") as recorder:
        for step in range(3):
            backward(model, 1 + step)
            truth.append(norms(model))
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
    np.testing.assert_allclose(sink.metric("param_grad_norm"), truth, rtol=1e-5)
    assert np.isnan(sink.metric("activation_grad_norm")).any(axis=1).tolist() == [left, False, False]
    assert any("before recording began" in note for note in recorder.notes) == left


def test_gradients_that_are_cleared_between_the_first_passes() -> None:
    """The generator's pass reaches the discriminator, whose old gradients are cleared before its own pass."""
    first, second, sink = mlp(), nn.Linear(3, 2), ListSink()
    both = nn.ModuleDict({"first": first, "second": second})
    mine, other = SGD(first.parameters(), 0.1), SGD(second.parameters(), 0.1)
    second(backward(first, 0).new_ones(4, 3)).sum().backward()
    mine.zero_grad()
    with Recorder(both, sink, optimizer=[mine, other], on_error="raise"):
        second(first(torch.ones(5, 4))).square().sum().backward()
        mine.step()
        other.zero_grad()
        second(torch.ones(5, 3)).square().sum().backward()
        expected = norms(second)
        other.step()
    np.testing.assert_allclose(sink.metric("param_grad_norm")[0, 3:], expected, rtol=1e-5)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
