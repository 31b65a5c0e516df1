"""Non-finite values: which pass broke first, and where; steps that a GradScaler skips are not a fault."""

from __future__ import annotations

import numpy as np
import pytest

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check


def test_a_backward_pass_that_breaks() -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][20, :5] = np.inf
    data["nonfinite_count"] = np.zeros((ROWS, LAYERS))
    data["nonfinite_count"][20, :5] = 7
    found = diagnose_arrays(data, scalars={"loss": np.ones(ROWS)}, steps=np.arange(ROWS) + 100)
    check(found, "nonfinite")
    finding = found.findings[0]
    assert (finding.layers[0], finding.steps, finding.confidence) == ("layer5", (120, 120), 1.0)
    assert "backward pass: layer5" in finding.evidence
    assert "the gradient at layer6, the next layer, is finite" in finding.evidence
    assert "35 entries" in finding.evidence


@pytest.mark.parametrize("count", [np.inf, -np.inf, -7.0, 1e300])
def test_a_count_that_no_recorder_writes_is_not_said(count: float) -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][20, :5] = np.inf
    data["nonfinite_count"] = np.zeros((ROWS, LAYERS))
    data["nonfinite_count"][20, :5] = count
    found = diagnose_arrays(data, scalars={"loss": np.ones(ROWS)}, steps=np.arange(ROWS) + 100)
    check(found, "nonfinite")
    assert "of parameter gradients are NaN or Inf" not in found.findings[0].evidence


def test_a_forward_pass_that_breaks() -> None:
    data = arrays(noise=0.05)
    data["activation_rms"] = np.ones((ROWS, LAYERS))
    data["activation_rms"][20:, 3:] = np.inf
    data["param_grad_norm"][20:] = np.inf
    found = diagnose_arrays(data)
    check(found, "nonfinite")
    assert found.findings[0].layers[0] == "layer4"
    assert "forward pass: the output of layer4" in found.findings[0].evidence


def test_steps_that_a_scaler_skips_are_not_a_fault() -> None:
    data, skipped = arrays(noise=0.05), np.zeros(ROWS)
    skipped[:6] = 1
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][:6] = np.inf
    found = diagnose_arrays(data, scalars={"skipped": skipped, "loss": np.ones(ROWS)})
    check(found, "healthy")
    assert "6 steps that the GradScaler skipped are left out" in found.notes[-1]
    skipped[:20] = 1
    check(diagnose_arrays(data, scalars={"skipped": skipped}), "nonfinite")
