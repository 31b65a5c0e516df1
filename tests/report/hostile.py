"""Runs whose every text is an attack on a page, and runs with every odd value."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink

ATTACK = "<script>alert(1)</script>"
ATTACKS = (
    ATTACK,
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "{{style}} & 'a' \u2028 {b|c} $x$",
)


def write_hostile(path: Path, seed: int = 0, steps: int = 30) -> Path:
    """Write a run whose names and settings are attacks; values: exact zeros, NaN, inf, and ordinary ones."""
    layers = tuple(Layer(f"{text}.{i}", "Conv2d", "main", i + 1, 10, 9) for i, text in enumerate(ATTACKS))
    config = {"data": ATTACK, ATTACKS[1]: ATTACKS[2], "data_facts": {"classes": list(ATTACKS)}}
    environment = {"device": ATTACK, ATTACKS[1]: ATTACKS[3]}
    sink = FileSink(path)
    rhythm = {"activation_grad_norm": 1, "grad_coherence": 5}
    sink.open(Header(layers, rhythm, model=ATTACK, seed=seed, config=config, environment=environment))
    for step in range(steps):
        values = np.array([1e-30, 0.0 if step % 2 else 1e-3, np.nan, np.inf if step == 7 else 2.0])
        metrics = {"activation_grad_norm": values}
        if step % 5 == 0:
            metrics["grad_coherence"] = np.array([-0.5, 0.0, 0.25, 1.0])
        sink.write_row(Row(step, step // 15, metrics, {"loss": 1.0}))
    for epoch in (1, 2):
        sink.write_epoch(
            {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 2.0, "val_accuracy": 0.4}
        )
    sink.close("complete")
    return path
