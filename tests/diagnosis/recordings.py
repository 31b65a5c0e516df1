"""Synthetic recordings, healthy except for requested changes, and checks that every diagnosis must pass."""

from __future__ import annotations

import re

import numpy as np

from gradlens import Diagnosis, diagnose_arrays
from gradlens.diagnosis.kinds import KINDS, NOT_KNOWN
from gradlens.report.translator import translate
from tests.report.english_words import english_in

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
    said = NOT_KNOWN if kind == "healthy" and found.learning == "unknown" else kind
    assert str(found).startswith(f"{found.run}: {said}")
    for finding in found.findings:
        assert finding.kind in KINDS
        assert 0 < finding.confidence <= 1
        for text in (finding.evidence, finding.threshold, finding.source, finding.remedy):
            assert len(text) > 10
            assert text in " ".join(str(found).split()) or "  " in text
        assert finding.remedy.endswith(".")
        assert any(digit in finding.evidence for digit in "0123456789")
        assert finding.steps[0] <= finding.steps[1]
    texts = [text for finding in found.findings for text in (finding.evidence, finding.threshold, finding.remedy)]
    for text in (found.reason, found.learning_evidence, *found.notes, *texts):
        said = "" if NAMELESS.search(text) else translate(text, "id")
        assert not english_in(said), f"{text} -> {said}"


NAMELESS = re.compile(r"^ |: $|\(\)|\b(?:at|of|shape)(?: :| {2})")
"""Facts of a test that name no layer, loss or shape, which a report never has."""
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


def facts(**changes: object) -> dict:
    """Return the facts of a training in which nothing is wrong, with some replaced; ``graph`` is merged.

    Args:
        changes: Key, as in docs/facts.md, to value.
    """
    layers = [f"layer{i + 1}" for i in range(LAYERS)]
    rate = {"first": 1e-3, "last": 1e-3, "largest": 1e-3, "near_zero_since": None, "every": None}
    found = {
        "version": 1,
        "first_step": 0,
        "last_step": ROWS - 1,
        "looks": 7,
        "totals": {"count": 16, "numel": 800, "trainable": 800, "in_optimizer": 800, "without_optimizer": 0},
        "parameters": [state(layers)],
        "optimizers": [
            {
                "class": "SGD",
                "foreign": {"count": 0, "numel": 0},
                "groups": [{"layers": layers, "count": 16, "lr": rate}],
                "schedulers": [],
            }
        ],
        "graph": {"losses": [], "outputs": []},
    }
    graph = {**found["graph"], **changes.pop("graph", {})}  # type: ignore[dict-item]
    return {**found, **changes, "graph": graph}


def state(layers: list[str], **changes: object) -> dict:
    """Return parameters that the optimizer has and that get gradients, with some facts replaced."""
    return {
        "layers": layers,
        "names": ["weight", "bias"],
        "count": 2 * len(layers),
        "numel": 100 * len(layers),
        "requires_grad": True,
        "optimizer": 0,
        "dtype": "float32",
        "gradient": "arriving",
        "since": 0,
        "seen": ["arriving"],
        "weights_zero": False,
    } | changes
