"""Layers without a gradient that a shortcut passes by, and layers that were replaced or unfrozen while recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import SGD

import gradlens
from gradlens import diagnose_arrays
from gradlens.errors import GradlensWarning
from tests.diagnosis.recordings import ROWS, arrays, check
from tests.recorder.small import backward, mlp

MANY = 120
FALLS, STANDS = np.geomspace(2, 0.5, ROWS), np.full(400, 1.6)


def with_zeros(layers: int, at: list[int], begin: int = 0, rows: int = ROWS) -> dict:
    data = arrays(noise=0.1, layers=layers, rows=rows)
    for name in ("activation_grad_norm", "param_grad_norm", "update_ratio"):
        data[name][begin:, at] = 0
    return data


@pytest.mark.parametrize("loss", [FALLS, None], ids=["learns", "unknown"])
def test_one_narrow_layer_of_many_is_off_by_chance(loss: np.ndarray | None) -> None:
    found = diagnose_arrays(with_zeros(MANY, [50]), scalars={} if loss is None else {"loss": loss})
    check(found, "healthy")
    assert found.notes[0].startswith("the gradient is exactly 0 in every row at 1 layer of 120 (layer")
    assert "a shortcut passes the gradient by" in found.notes[0]


@pytest.mark.parametrize(
    ("layers", "at", "begin", "loss"),
    [(8, [3], 0, FALLS), (MANY, [50, 51, 52], 0, FALLS), (MANY, [50], 20, FALLS), (MANY, [50], 0, STANDS)],
    ids=["one of few", "too many", "died", "does not learn"],
)
def test_layers_that_a_shortcut_passes_by_are_said_to_be_so(
    layers: int, at: list[int], begin: int, loss: np.ndarray
) -> None:
    found = diagnose_arrays(with_zeros(layers, at, begin, len(loss)), scalars={"loss": loss})
    check(found, "zero_gradient")
    finding = found.findings[0]
    assert len(finding.layers) == len(at)
    assert "no gradient reaches the output" in finding.evidence
    assert "layers before it get theirs past it" in finding.evidence
    assert finding.remedy.startswith("The model is trained without layer")


@pytest.mark.parametrize("layers", [8, MANY])
def test_zeros_before_which_nothing_has_a_gradient_are_no_chance(layers: int) -> None:
    found = diagnose_arrays(with_zeros(layers, [0]), scalars={"loss": FALLS})
    check(found, "zero_gradient")
    assert "no gradient passes: its units are all off" in found.findings[0].evidence


def record(path: Path, change: Callable[[nn.Sequential, SGD], None], steps: int = 15) -> gradlens.Diagnosis:
    model = mlp()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = SGD([each for each in model.parameters() if each.requires_grad], 0.1)
    with gradlens.record(model, path, optimizer=optimizer, on_error="raise") as recorder:
        for step in range(steps):
            if step == 10:
                change(model, optimizer)
            optimizer.zero_grad()
            loss = backward(model, step)
            optimizer.step()
            recorder.log(loss=loss.detach())
    return gradlens.diagnose(gradlens.read_run(path))


def test_a_layer_that_is_unfrozen_between_two_looks_is_not_said_to_be_frozen(tmp_path: Path) -> None:
    def thaw(model: nn.Sequential, optimizer: SGD) -> None:
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": list(model[0].parameters())})

    assert not any("frozen" in note for note in record(tmp_path / "thawed.h5", thaw).notes)
    frozen = record(tmp_path / "frozen.h5", lambda model, optimizer: None)
    assert any(note.startswith("frozen from the first row on") for note in frozen.notes)


def test_a_layer_whose_weight_was_replaced_is_not_said_to_be_unused(tmp_path: Path) -> None:
    def replace(model: nn.Sequential, optimizer: SGD) -> None:
        parametrizations.weight_norm(model[2])

    with pytest.warns(GradlensWarning, match="parameters were replaced"):
        found = record(tmp_path / "a.h5", replace)
    assert not any("not used" in note for note in found.notes)
