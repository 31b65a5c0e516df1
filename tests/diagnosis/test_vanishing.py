"""A vanishing gradient: found where and when it begins; it is not a fault if the first layers learn."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check


def test_near_convergence_all_gradients_are_tiny_and_that_is_healthy() -> None:
    data = arrays()
    fall = 10.0 ** np.linspace(0, -9, ROWS)[:, None]
    for name in ("activation_grad_norm", "param_grad_norm", "update_ratio"):
        data[name] = data[name] * fall
    check(diagnose_arrays(data, scalars={"loss": fall[:, 0]}), "healthy")


def test_where_and_when_it_begins_to_vanish() -> None:
    data, steps = arrays(noise=0.05), np.arange(ROWS) * 10
    for name in ("activation_grad_norm", "update_ratio"):
        data[name][25:, :3] *= 1e-5
    finding = diagnose_arrays(data, [f"block{i}" for i in range(LAYERS)], steps=steps).findings[0]
    assert (finding.kind, finding.layers, finding.steps) == ("vanishing", ("block0", "block1", "block2"), (250, 590))


def test_a_temporary_fault_is_not_reported() -> None:
    data = arrays(noise=0.05)
    data["activation_grad_norm"][:20, :3] *= 1e-6
    check(diagnose_arrays(data), "healthy")
    data = arrays(noise=0.05, rows=100)
    data["activation_grad_norm"][75:, :3] *= 1e-6
    data["update_ratio"][75:, :3] *= 1e-6
    check(diagnose_arrays(data), "vanishing")  # it lasts to the end


def test_a_small_gradient_is_not_a_fault_if_the_first_layers_learn() -> None:
    data = arrays(-5)
    data["update_ratio"][:] = 1e-3
    learns, stuck = np.geomspace(2, 0.5, ROWS), np.full(ROWS, 1.6)
    found = diagnose_arrays(data, scalars={"loss": learns})
    check(found, "healthy")
    assert "this is not a fault" in found.notes[0]
    check(diagnose_arrays(data, scalars={"loss": stuck}), "vanishing")
    data = arrays(-12)
    data["update_ratio"][:] = 1e-3  # weight decay changes them
    check(diagnose_arrays(data, scalars={"loss": learns}), "vanishing")


def test_exact_zeros() -> None:
    data = arrays(noise=0.1)
    for name in ("activation_grad_norm", "param_grad_norm", "update_ratio"):
        data[name][:, :3] = 0
    found = diagnose_arrays(data)
    check(found, "zero_gradient")  # an exact zero is no small number
    assert found.kinds == ("zero_gradient",)  # that these layers are frozen is a consequence
    assert (
        "exactly 0 at 3 layers (layer1, layer2, layer3) in 60 rows, and not by underflow" in found.findings[0].evidence
    )
    assert any("frozen" in note for note in found.notes)
    underflow = arrays(-45, noise=0.1)
    underflow["activation_grad_norm"][:, :2] = 0
    found = diagnose_arrays(underflow)
    check(found, "vanishing")
    assert "exactly 0 at 2 layers up to layer2, by underflow" in found.findings[0].evidence
    nothing = {"activation_grad_norm": np.zeros((ROWS, LAYERS))}
    check(diagnose_arrays(nothing), "undecided")
