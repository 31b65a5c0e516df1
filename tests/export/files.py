"""Runs with the numbers that an export can get wrong, and what reads exports back."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink

LAYERS = (
    Layer('odd, "name"', "Linear", "main", 1, 10, 20),
    Layer("größe", "Linear", "shortcut", 1, 11, 21, calls=2),
    Layer("head", "Linear", "main", 2, 12, 22),
)
TINY, LARGE = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)
NORMS = np.array(
    [[0.1, TINY, LARGE], [np.inf, 0.0, -0.0], [np.nan, 1 / 3, 1e-20], [np.nan] * 3, [16777217.0, 1e10, 123456.789]],
    np.float32,
)
RATIOS = np.array(
    [[1e-3] * 3, [np.nan] * 3, [5e-3, np.nan, np.nan], [np.nan] * 3, [2e-3, np.nan, np.inf]],
    np.float32,
)
STEPS = np.array([0, 1, 2, 3, 7])
EPOCHS = [1, 1, 2, 2, 3]
LOSSES = [0.1, 1 / 3, float("nan"), float("inf"), 1e-300]


def write_odd_run(
    path: Path, *, metrics: Mapping[str, np.ndarray] | None = None, first_epoch: float = 1.0, epochs: int = 2
) -> Path:
    """Write a run of five rows, the last in an epoch that has not ended, or where all have, after the third."""
    metrics = {"activation_grad_norm": NORMS, "update_ratio": RATIOS} if metrics is None else metrics
    sink = FileSink(path)
    sink.open(Header(LAYERS, dict.fromkeys(metrics, 1), model="odd", seed=3))
    for row, step in enumerate(STEPS.tolist()):
        values = {name: grid[row] for name, grid in metrics.items()}
        sink.write_row(Row(step, EPOCHS[row] - 1, values, {"loss": LOSSES[row], "step": float(row)}))
    for epoch in range(epochs):
        sink.write_epoch({"epoch": first_epoch + epoch, "train_loss": 1 / (epoch + 3), "extra": float("inf")})
    sink.close("complete")
    return path


def read_csv(text: str | Path) -> list[dict[str, str]]:
    if isinstance(text, Path):
        text = text.read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Read a folder of events as TensorBoard does: tag to (step, wall time, value)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
