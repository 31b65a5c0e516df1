"""Dead units."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check


def test_dead_layers() -> None:
    data = arrays(noise=0.05)
    data["zero_fraction"] = np.full((ROWS, LAYERS), 0.5)
    data["zero_fraction"][:, -1] = np.nan  # no activation function after it
    check(diagnose_arrays(data), "healthy")
    data["zero_fraction"][30:, 4] = 1.0
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][30:, :5] = 0
    found = diagnose_arrays(data)
    check(found, "dead")
    assert found.kinds == ("dead",)  # that the gradient is 0 is a consequence
    assert (found.findings[0].layers, found.findings[0].steps) == (("layer5",), (30, 59))
    assert "a consequence, not a separate fault: zero_gradient" in " ".join(found.notes)
    data = arrays(noise=0.05)
    data["zero_fraction"] = np.full((ROWS, LAYERS), 0.5)
    data["zero_fraction"][20:24] = 1.0
    check(diagnose_arrays(data), "healthy")
