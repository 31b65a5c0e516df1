"""Gradients that explode over depth or over steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradlens import diagnose, diagnose_arrays
from gradlens.run import Layer, Run
from tests.diagnosis.recordings import ROWS, arrays, check


def test_growth_over_depth_is_judged_by_the_law_of_batch_norm() -> None:
    deep = np.linspace(49 * 0.083, 0, 50)
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0 ** np.append(deep, 0), (ROWS, 1))}), "healthy")
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0 ** np.append(2 * deep, 0), (ROWS, 1))}), "exploding")


def test_branches_that_are_scaled_down_are_no_growth_over_depth() -> None:
    """As with LayerScale (Touvron et al. 2021): layers of the trunk have 10^6 times the gradient of those inside."""
    decades = np.tile([6.0, 0.2, -0.3, 0.1], 6)
    comb = np.append(decades, [0.0, 6.0])
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0**comb, (ROWS, 1))}), "healthy")
    growing = np.append(np.linspace(8, 0, 24) + decades / 10, [0.0, 1.0])
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0**growing, (ROWS, 1))}), "exploding")


def test_a_layer_that_feeds_the_head_past_all_others_is_not_compared_with_one_inside_a_branch() -> None:
    """A transformer with LayerScale: the embedding alone has the trunk's gradient, blocks have that of a branch."""
    names = ["embedding", *(f"block{i}" for i in range(8)), "head"]
    decades = np.array([5.0, *np.zeros(8), 5.0])
    grid = np.tile(10.0**decades, (ROWS, 1)).astype(np.float32)
    for skips in (True, False):
        parents = [(), *((i,) for i in range(9))]
        parents[-1] = (0, *range(1, 9)) if skips else (8,)
        layers = tuple(Layer(name, "Linear", "main", i + 1, 8, 8, parents=parents[i]) for i, name in enumerate(names))
        steps, epochs = np.arange(ROWS), np.zeros(ROWS, dtype=np.int32)
        run = Run("t", Path("t.h5"), layers, steps, epochs, {}, {"activation_grad_norm": grid}, {}, "complete", {})
        check(diagnose(run), "healthy" if skips else "exploding")


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
