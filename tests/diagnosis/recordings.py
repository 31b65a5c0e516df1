"""Synthetic recordings, healthy except for requested changes, and checks that every diagnosis must pass."""

from __future__ import annotations

import numpy as np

from gradlens import Diagnosis, diagnose_arrays
from gradlens.diagnosis.kinds import KINDS

ROWS, LAYERS = 60, 8


def arrays(decades: float = 0.0, noise: float = 0.2, rows: int = ROWS, layers: int = LAYERS, seed: int = 0) -> dict:
    """Return a recording.

    Args:
        decades: log10 of the first layer's gradient over the last hidden layer's.
        noise: Standard deviation of the noise, in decades.
        rows: Number of rows.
        layers: Number of layers.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    depth = np.append(np.linspace(decades, 0, layers - 1), 0.3)
    logs = depth + noise * rng.normal(size=(rows, layers)) + noise * rng.normal(size=(rows, 1))
    update = np.full((rows, layers), 1e-3) * 10.0 ** np.minimum(depth, 0)
    return {
        "activation_grad_norm": 10.0**logs,
        "param_grad_norm": 2 * 10.0**logs,
        "update_ratio": update,
        "param_norm": 1 + np.arange(rows)[:, None] * update,
    }


def check(found: Diagnosis, kind: str) -> None:
    assert found.kind == kind, str(found)
    assert str(found).startswith(f"{found.run}: {kind}")
    for finding in found.findings:
        assert finding.kind in KINDS
        assert 0 < finding.confidence <= 1
        for text in (finding.evidence, finding.threshold, finding.source, finding.remedy):
            assert len(text) > 10
            assert text in " ".join(str(found).split()) or "  " in text
        assert finding.remedy.endswith(".")
        assert any(digit in finding.evidence for digit in "0123456789")
        assert finding.steps[0] <= finding.steps[1]


LONG = 120


def recording(layers: int = 9, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Return a healthy recording of every metric, with some metrics replaced."""
    rng = np.random.default_rng(0)

    def grid(typical: float, spread: float = 0.1) -> np.ndarray:
        return typical * 10 ** (spread * rng.normal(size=(LONG, layers)))

    return {
        "activation_grad_norm": grid(1.0),
        "param_grad_norm": grid(2.0),
        "update_ratio": grid(1e-3),
        "activation_rms": grid(1.0, 0.01),
        "zero_fraction": np.full((LONG, layers), 0.5),
        "grad_coherence": 0.2 + 0.05 * rng.normal(size=(LONG, layers)),
    } | changes


STUCK, FALLS = np.full(LONG, 1.6), np.geomspace(2, 0.1, LONG)


def kind(loss: np.ndarray = STUCK, lr: np.ndarray | None = None, layers: int = 9, **changes: np.ndarray) -> str:
    scalars = {"loss": loss} | ({} if lr is None else {"lr": lr})
    return diagnose_arrays(recording(layers, **changes), scalars=scalars).kind
