"""Gradients that explode over depth or over steps."""

from __future__ import annotations

import numpy as np
import pytest

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import ROWS, arrays, check


def test_growth_over_depth_is_judged_by_the_law_of_batch_norm() -> None:
    deep = np.linspace(49 * 0.083, 0, 50)
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0 ** np.append(deep, 0), (ROWS, 1))}), "healthy")
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0 ** np.append(2 * deep, 0), (ROWS, 1))}), "exploding")


@pytest.mark.parametrize("loss", [None, "rises", "falls"])
def test_growth_over_steps(loss: str | None) -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][30:] *= 10.0 ** np.linspace(0.5, 8, 30)[:, None]
    scalars = {} if loss is None else {"loss": 10.0 ** np.linspace(0, 5 if loss == "rises" else -5, ROWS)}
    found = diagnose_arrays(data, scalars=scalars)
    check(found, "healthy" if loss == "falls" else "exploding")
    if found.findings:
        assert 35 <= found.findings[0].steps[0] <= 48


def test_growth_that_ends_in_non_finite_values() -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][40:46] *= 10.0 ** np.arange(1, 7)[:, None]
        data[name][46:] = np.inf
    found = diagnose_arrays(data, scalars={"loss": np.where(np.arange(ROWS) < 46, 1.0, np.nan)})
    check(found, "exploding")
    assert found.kinds == ("exploding", "nonfinite")
    assert found.findings[1].steps[0] == 46
    assert "forward pass: the loss itself is not finite" in found.findings[1].evidence


def test_one_spike_is_not_an_explosion() -> None:
    data = arrays(noise=0.05)
    data["param_grad_norm"][30] *= 1e6
    check(diagnose_arrays(data), "healthy")
