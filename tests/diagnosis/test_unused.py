"""Layers that never receive a gradient."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import arrays, check


def test_a_layer_that_never_receives_a_gradient() -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][:, 3] = np.nan
    data["update_ratio"][:, 3] = 0
    found = diagnose_arrays(data)
    check(found, "unused")
    assert found.findings[0].layers == ("layer4",)
    assert len(found.findings) == 1
    data["param_grad_norm"][40, 3] = 1  # used late
    assert "unused" not in diagnose_arrays(data).kinds
