"""Runs of plain and residual networks that never were, whose numbers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.metrics import METRICS_OF_PATHS
from gradlens.run import Layer, Run
from gradlens.study import judge_claims
from gradlens.study.evidence import Verdict
from gradlens.study.run_groups import WITH

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
        seed: Its seed; -1 where it is unknown.
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
    rng = np.random.default_rng(abs(seed))
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


SLOW, FAST = (0.3, 0.4, 0.5, 0.6), (0.5, 0.8, 0.9, 0.95)
JITTER = [-0.02, -0.01, 0.0, 0.01, 0.02]
CONTROLS = [*seeds("plain34-nobn-sigmoid", 2, decades=-18.0), *seeds("plain8", 2, decades=0.2)]


def curves(base: tuple[float, ...], jitter: list[float] = JITTER) -> list[tuple[float, ...]]:
    return [tuple(value + shift for value in base) for shift in jitter]


def verdict(runs: list[Run], key: str, condition: str = WITH) -> Verdict:
    judged = {one.claim.key: one for one in judge_claims(runs).claims}
    return judged[key].overall[condition]


def pair(plain: dict[str, Any], resnet: dict[str, Any], suffix: str = "", count: int = 5) -> list[Run]:
    return [*seeds(f"plain34{suffix}", count, **plain), *seeds(f"resnet34{suffix}", count, **resnet)]


def ends(train: float, val: float, loss: float, val_loss: float, noise: float = 0.01) -> dict[str, Any]:
    shifts = [noise * shift / 0.02 for shift in JITTER]
    return {
        "accuracy": [(0.3, 0.5, train + s) for s in shifts],
        "val_accuracy": [val + s for s in shifts],
        "loss": [loss + s for s in shifts],
        "val_loss": [val_loss + s for s in shifts],
    }


def over_depth(
    plain: float, resnet: float, plain_gap: float = 0.0, resnet_gap: float = 0.0, size: int = 64
) -> list[Run]:
    """Final training accuracy and gap change by so much per ten layers."""
    runs = []
    for family, fit, gap in (("plain", plain, plain_gap), ("resnet", resnet, resnet_gap)):
        for depth in (20, 32, 44):
            far = (depth - 20) / 10
            for seed, shift in enumerate(JITTER[1:4]):
                train = 0.9 + fit * far + shift / 10
                runs.append(
                    planted(
                        f"{family}{depth}",
                        seed,
                        accuracy=(0.3, 0.5, train),
                        val_accuracy=train - 0.2 - gap * far,
                        settings={"image_size": size},
                    )
                )
    return runs


def halves(
    gradient: float, value: float, *, decades: float = 1.0, plain: float = 2.0, count: int = 5, gap: float = 0.4
) -> list[Run]:
    """Plain and residual network, and halves of the shortcut that close such a share of the gap in accuracy."""

    def level(share: float) -> list[tuple[float, ...]]:
        return [(0.5 - gap / 2 + gap * share + shift / 4,) * 3 for shift in JITTER]

    jitter = [level(0.0), level(1.0), level(gradient)[::-1], level(value)]
    names = ("plain34", "resnet34", "resnet34-gradonly", "resnet34-valueonly")
    sizes = (plain, 1.0, decades, -2.0)
    runs = []
    for name, accuracy, size in zip(names, jitter, sizes, strict=True):
        runs += seeds(name, count, accuracy=accuracy, decades=size)
    return runs
