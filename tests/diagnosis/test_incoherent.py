"""Gradients without a common direction."""

from __future__ import annotations

import numpy as np

from gradlens import Diagnosis, diagnose_arrays
from gradlens.run import Layer
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


def test_behind_batch_norm_only_whole_batches_count() -> None:
    rng = np.random.default_rng(0)
    names = [f"layer{i + 1}" for i in range(LAYERS)]
    layers = [Layer(name, "Conv2d", "main", i + 1, 100, 100) for i, name in enumerate(names)]
    layers += [Layer(f"{name}.bn", "BatchNorm2d", "norm", i + 1, 100, 10) for i, name in enumerate(names)]
    data = {name: np.hstack([grid, grid]) for name, grid in arrays(noise=0.05).items()}
    stuck, none = {"loss": np.full(ROWS, 1.6)}, 0.001 * rng.normal(size=(ROWS, 2 * LAYERS))

    def found(**metrics: np.ndarray) -> Diagnosis:
        return diagnose_arrays(data | metrics, layers=layers, scalars=stuck)

    assert "incoherent" not in found(grad_coherence=none - 0.2).kinds
    check(found(grad_coherence=none + 0.3, batch_coherence=none), "incoherent")
    assert "of batches in succession is" in found(batch_coherence=none).findings[0].evidence
    assert "incoherent" not in found(grad_coherence=none, batch_coherence=none + 0.1).kinds
    assert "incoherent" not in found(batch_coherence=none - 0.3).kinds  # steps that are too large turn it around
