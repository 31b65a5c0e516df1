"""Bounded activation functions that are saturated."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check


def test_saturated_layers() -> None:
    data = arrays(noise=0.05)
    data["activation_rms"] = np.full((ROWS, LAYERS), 1.0)
    data["activation_rms"][:, -1] = 30.0  # logits
    data["zero_fraction"] = np.zeros((ROWS, LAYERS))
    check(diagnose_arrays(data), "healthy")
    data["activation_rms"][:, 3] = 12.0
    check(diagnose_arrays(data), "healthy")  # not bounded, as far as is known
    data["activation_grad_norm"][:, :4] /= 50
    found = diagnose_arrays(data)
    check(found, "saturated")
    assert found.findings[0].layers == ("layer4",)
    data["zero_fraction"][:] = 0.5  # a ReLU
    check(diagnose_arrays(data), "healthy")
