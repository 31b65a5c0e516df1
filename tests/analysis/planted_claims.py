"""Runs of plain and residual nets that never were, whose numbers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.metrics import METRICS_OF_PATHS
from gradlens.run import Layer, Run

LAYERS, ROWS = 12, 60
NAMES = [f"layer{1 + i // 4}.{i % 4}.conv1" for i in range(LAYERS - 1)] + ["fc"]


def planted(
    model: str,
    seed: int,
    *,
    decades: float = 0.0,
    share: float = 0.6,
    accuracy: Sequence[float] = (0.3, 0.6, 0.9),
    val_accuracy: float = 0.6,
    loss: float = 0.5,
    val_loss: float = 1.0,
    status: str = "complete",
    copies: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Return a run.

    Args:
        model: Its name.
        seed: Its seed.
        decades: log10 of the gradient at the first layer over that at the last hidden one.
        share: Of the gradient that came through a block's shortcut, with both parts at a right angle.
        accuracy: Of training, epoch by epoch.
        val_accuracy: Of the last epoch.
        loss: Of training, in the last epoch.
        val_loss: Of validation, in the last epoch.
        status: How it ended.
        copies: Share of the validation pictures that were trained on.
        settings: More of the configuration.
    """
    rng = np.random.default_rng(seed)
    profile = np.append(10.0 ** (np.linspace(max(decades, -200.0), 0, LAYERS - 1) - 1), 1.0)
    profile[0] = 10.0 ** (decades - 1)  # exactly 0 of -inf
    noise = 10 ** (0.02 * rng.normal(size=(ROWS, 1)))  # one for all layers: the ratio stays what it is
    metrics = {"activation_grad_norm": profile * noise}
    if model.startswith("resnet"):
        short = np.full((ROWS, LAYERS), np.nan)
        short[::5, 1:-1:2] = np.sqrt(share)
        branch = np.where(np.isnan(short), np.nan, np.sqrt(1 - share))
        cosine = np.where(np.isnan(short), np.nan, 0.0)
        metrics |= dict(zip(METRICS_OF_PATHS, (short, branch, cosine), strict=True))
    n = len(accuracy)
    falls = np.linspace(1.6, 1.0, n) if n > 1 else np.ones(n)
    epochs = {
        "epoch": np.arange(1.0, n + 1),
        "train_accuracy": np.array(accuracy, dtype=np.float64),
        "val_accuracy": np.full(n, val_accuracy),
        "train_loss": np.append(falls[:-1], loss),
        "val_loss": np.full(n, val_loss),
    }
    facts = {"classes": list("abcde"), "val_share_exact_copy_in_train": copies}
    config = {"image_size": 64, "split": "group", "epochs": 30, "data_facts": facts, **(settings or {})}
    return Run(
        name=f"{model}-s{seed}",
        path=Path(f"{model}-s{seed}.h5"),
        layers=tuple(Layer(name, "Conv2d", "main", i + 1, 64, 9) for i, name in enumerate(NAMES)),
        steps=np.arange(ROWS),
        epoch_of_step=np.minimum(np.arange(ROWS) // 20, n - 1).astype(np.int32),
        scalars={"loss": np.full(ROWS, 1.6)},
        metrics=metrics,
        epochs=epochs,
        status=status,  # type: ignore[arg-type]
        info={"model": model, "seed": seed, "config": {"model": model, "seed": seed, **config}},
    )


def seeds(model: str, count: int = 5, **changes: Any) -> list[Run]:
    """Return runs of several seeds; a change may be a list, one for each."""
    return [
        planted(model, seed, **{k: v[seed] if isinstance(v, list) else v for k, v in changes.items()})
        for seed in range(count)
    ]
