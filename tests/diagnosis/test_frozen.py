"""Layers whose weights do not change."""

from __future__ import annotations

import numpy as np
import pytest

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check, facts


def test_frozen_layers() -> None:
    data = arrays(noise=0.05)
    data["update_ratio"][20:, [2, 4]] = 0
    found = diagnose_arrays(data)
    check(found, "frozen")
    assert (found.findings[0].layers, found.findings[0].steps) == (("layer3", "layer5"), (20, 59))
    sparse = arrays(noise=0.05)
    sparse["update_ratio"][np.arange(ROWS) % 25 != 0] = np.nan
    sparse["update_ratio"][:, 2] *= 0
    check(diagnose_arrays(sparse), "frozen")
    norms = arrays(noise=0.05)
    del norms["update_ratio"]
    norms["param_norm"][:, 2] = 3.3
    found = diagnose_arrays(norms)
    check(found, "frozen")
    assert found.findings[0].layers == ("layer3",)


def test_a_learning_rate_of_zero() -> None:
    lr = np.where(np.arange(ROWS) < 20, 0.1, 0)
    found = diagnose_arrays(arrays(), scalars={"lr": lr})
    check(found, "frozen")
    assert found.findings[0].steps == (20, 59)
    check(diagnose_arrays(arrays(), scalars={"lr": np.linspace(1, 0, ROWS)}), "healthy")


def test_gradients_are_said_to_arrive_only_where_they_do() -> None:
    data = arrays(noise=0.05)
    data["update_ratio"][:, [2, 4]] = 0
    assert "at 2 layers, although gradients arrive" in diagnose_arrays(data).findings[0].evidence
    zero = {name: values.copy() for name, values in data.items()}
    zero["param_grad_norm"][:, [2, 4]] = 0
    found = diagnose_arrays(zero)
    assert found.kinds == ("zero_gradient",)
    assert "at 2 layers, and the gradient is exactly 0" in found.notes[0]  # a consequence
    assert "arrive" not in found.notes[0]
    mixed = {name: values.copy() for name, values in zero.items()}
    mixed["param_grad_norm"][:, 2] = 1.0
    assert (
        "although gradients arrive at 1; and the gradient is exactly 0 at 1"
        in diagnose_arrays(mixed).of_kind("frozen")[0].evidence
    )
    unknown = {name: values for name, values in data.items() if name != "param_grad_norm"}
    evidence = diagnose_arrays(unknown).findings[0].evidence
    assert "and whether gradients arrive was not recorded" in evidence
    assert "although" not in evidence


def test_gradients_that_came_before_the_layer_stood_are_no_evidence() -> None:
    data = arrays(noise=0.05)
    data["update_ratio"][20:, 2] = 0
    data["param_grad_norm"][20:, 2] = 0
    found = diagnose_arrays(data)
    assert "the gradient is exactly 0" in found.findings[0].evidence
    assert any("frozen" in note and "the gradient is exactly 0" in note for note in found.notes)


@pytest.mark.parametrize(
    ("share", "noted", "spent"),
    [(0.0, False, False), (0.02, False, False), (0.04, False, False), (0.07, True, False), (0.4, True, False),
     (0.6, False, True)],
)  # fmt: skip
def test_a_schedule_that_ends_near_0_is_noted_only_where_it_takes_up_steps(
    share: float, noted: bool, spent: bool
) -> None:
    """A cosine to 0 has 2 % of its steps there; every training under one had a note that said nothing."""
    last = ROWS - 1
    rate = {"first": 1e-3, "last": 1e-7, "largest": 1e-3, "near_zero_since": round(last * (1 - share)), "every": 1.0}
    layers = [f"layer{i + 1}" for i in range(LAYERS)]
    group = {"layers": layers, "count": 16, "lr": rate}
    one = {"class": "SGD", "foreign": {"count": 0, "numel": 0}, "groups": [group], "schedulers": ["CosineAnnealingLR"]}
    scalars = {"loss": np.geomspace(2.0, 1.9, ROWS)}
    found = diagnose_arrays(arrays(noise=0.0), scalars=scalars, facts=facts(optimizers=[one]))
    assert any("it is at most a thousandth" in note for note in found.notes) == noted
    assert any("at most a thousandth, for" in finding.evidence for finding in found.findings) == spent
