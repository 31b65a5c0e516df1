"""Gradients without a common direction."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check


def test_incoherent_gradients() -> None:
    rng = np.random.default_rng(0)
    data, stuck = arrays(noise=0.05), {"loss": np.full(ROWS, 1.6)}
    data["grad_coherence"] = 0.001 * rng.normal(size=(ROWS, LAYERS))
    found = diagnose_arrays(data, scalars=stuck)
    check(found, "incoherent")
    assert len(found.findings[0].layers) >= LAYERS // 2
    check(diagnose_arrays(data, scalars={"loss": np.geomspace(2, 0.2, ROWS)}), "healthy")
    data["grad_coherence"][: ROWS // 3] += 0.3  # near convergence only noise is left
    check(diagnose_arrays(data, scalars=stuck), "healthy")
    both = arrays(-8) | {"grad_coherence": data["grad_coherence"] * 0}
    assert diagnose_arrays(both, scalars=stuck).kinds == ("vanishing",)
