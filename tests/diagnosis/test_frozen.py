"""Layers whose weights do not change."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import ROWS, arrays, check


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
