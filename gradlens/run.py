"""The shared language of both wings: what a run, a layer and a row are.

Shapes: T recorded steps, L layers, E epochs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gradlens.errors import ConfigError
from gradlens.lazy import shown_by
from gradlens.metrics import is_linear
from gradlens.row_chunks import STATISTICS, RowChunks, choose_level, summarise

Role = Literal["main", "shortcut", "norm"]
Status = Literal["running", "complete", "interrupted", "failed"]
FloatArray = NDArray[np.floating[Any]]

RESUMED = "resumed at step "
"""How a note begins that says where a run went on after it had stopped; the step follows."""
EPOCH_COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")
"""The columns of the table of epochs that every run has; a run may have more."""


@dataclass(frozen=True)
class Layer:
    """A module that owns a weight.

    Args:
        name: Its dotted name in the model.
        kind: Its class, "Conv2d".
        role: "main", "shortcut" (a projection beside the main path) or "norm".
        depth: Its place on the main path, counted from 1 at the input; a shortcut or norm layer has the
            depth of the main layer that ran last before it.
        out_numel: Elements of its output in the first recorded step (whole batch); 0 if it never ran.
        param_numel: Elements of its parameters.
        calls: How often it was called in the first recorded step, micro-batches included; 0 if it never ran.
    """

    name: str
    kind: str
    role: Role
    depth: int
    out_numel: int
    param_numel: int
    calls: int = 1

    @property
    def stage(self) -> str:
        """The part of the name before the first dot: the stage it belongs to; "" where that is a mere number."""
        first = self.name.split(".", 1)[0]
        return "" if first.isdigit() else first


@dataclass(frozen=True)
class Header:
    """What is known of a run before its first row."""

    layers: tuple[Layer, ...]
    metrics: Mapping[str, int]
    """Metric name to its rhythm in rows."""
    model: str = ""
    seed: int = -1
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """What is recorded for one optimizer step."""

    step: int
    epoch: int
    """0-based index of the epoch in progress, that is, into the table of epochs."""
    metrics: dict[str, FloatArray]
    """Name to (L,) values; a metric that is not there is NaN in this row."""
    scalars: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class PartlyReadable(Protocol):
    """Metrics of which parts can be read without the rest."""

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Return some rows of a metric, (stop - start, L)."""

    def read_blocks(self, name: str, start: int, stop: int, least: int) -> RowChunks:
        """Return statistics of at least so many blocks of rows."""


@dataclass(frozen=True)
class Run:
    """One training of one model with one seed, read from a file.

    Arrays are numpy, cut to what was completely written.
    """

    name: str
    path: Path
    layers: tuple[Layer, ...]
    steps: NDArray[np.int64]
    """(T,) index of the optimizer step, counted from 0."""
    epoch_of_step: NDArray[np.int32]
    """(T,) 0-based index into ``epochs``."""
    scalars: Mapping[str, FloatArray]
    """Name to (T,)."""
    metrics: Mapping[str, FloatArray]
    """Name to (T, L) float32, read from the file when asked for."""
    epochs: Mapping[str, FloatArray]
    """Name to (E,)."""
    status: Status
    info: Mapping[str, Any]
    """model, seed, created, gradlens_version, format_version, config, environment, heartbeat, every (metric to rows),
    overhead (the recorder's time over the training's, NaN where unknown), notes (list of sentences)."""

    def metric(self, name: str) -> FloatArray:
        """Return a metric over steps and layers.

        Args:
            name: One of ``run.metrics``.

        Returns:
            (T, L) float32. NaN where a layer had no gradient in that row, or where the metric has a
            coarser rhythm; inf where its gradient held NaN or Inf.

        Raises:
            ConfigError: The run holds no such metric.
        """
        self._check(name)
        return self.metrics[name]

    def _check(self, name: str) -> None:
        if name not in self.metrics:
            raise ConfigError(f"run {self.name} holds no metric {name!r}; it holds {', '.join(self.metrics) or 'none'}")

    def metric_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Return some rows of a metric; of a stored run, no others are read.

        Args:
            name: One of ``run.metrics``.
            start: Index of the first row, not of its step.
            stop: Index of the row after the last.

        Returns:
            (stop - start, L) float32, as in ``metric``.

        Raises:
            ConfigError: As in ``metric``.
        """
        self._check(name)
        if isinstance(self.metrics, PartlyReadable):
            return self.metrics.read_rows(name, start, stop)
        return self.metrics[name][start:stop]

    def row_chunks(self, name: str, *, least: int, start: int = 0, stop: int | None = None) -> RowChunks:
        """Return statistics of blocks of rows of a metric; of a stored run, no more is read than that takes.

        Args:
            name: One of ``run.metrics``.
            least: At least so many blocks where there are as many rows; up to about four times as many come.
            start: Index of the first row.
            stop: Index of the row after the last; None for the end.

        Returns:
            Blocks in order; they are of equal length, but for the first and the last.

        Raises:
            ConfigError: As in ``metric``.
        """
        self._check(name)
        stop = len(self.steps) if stop is None else min(stop, len(self.steps))
        start = min(max(start, 0), stop)
        if isinstance(self.metrics, PartlyReadable):
            return self.metrics.read_blocks(name, start, stop, least)
        if start == stop:
            return RowChunks(np.array([start]), np.empty((0, len(self.layers), len(STATISTICS))))
        starts = np.arange(start, stop, choose_level(stop - start, least))
        values = self.metrics[name][start:stop]
        return RowChunks(np.append(starts, stop), summarise(values, starts - start, linear=is_linear(name)))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.info.get("model", ""))

    @property
    def seed(self) -> int:
        """The seed, -1 where unknown."""
        return int(self.info.get("seed", -1))

    @property
    def config(self) -> Mapping[str, Any]:
        """What the user asked for."""
        config = self.info.get("config", {})
        return config if isinstance(config, Mapping) else {}

    def main_layers(self) -> NDArray[np.int64]:
        """Return the indices of the main path's layers, input first."""
        main = [i for i, layer in enumerate(self.layers) if layer.role == "main"]
        return np.array(sorted(main, key=lambda i: self.layers[i].depth), dtype=np.int64)

    def __repr__(self) -> str:
        return (
            f"Run({self.name}: {self.model or 'model'} seed {self.seed}, {len(self.steps)} rows x "
            f"{len(self.layers)} layers, {self.status})"
        )

    _repr_html_ = shown_by("run_card")


def jsonable(value: Any) -> str:
    """Encode a configuration as JSON text, turning what JSON does not know into text."""
    return json.dumps(value, default=str, sort_keys=True)
