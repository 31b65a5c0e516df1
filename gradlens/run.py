"""The data types that recording and reading share: a run, a layer, a row.

Shapes: T rows (recorded steps), L layers, E epochs.
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
TAGS = {
    "query": "makes the queries of attention",
    "key": "makes the keys of attention",
    "value": "makes the values of attention",
    "attention": "makes queries, keys and values at once",
    "gate": "makes the gate of a gated block",
    "residual": "its output is added to a residual stream from which it was computed",
    "router": "chooses experts",
    "expert": "one of several experts, or all of them in one tensor",
    "adapter": "a small trained layer beside a larger one (LoRA)",
    "packed": "its weight is stored as integers (quantised)",
    "block": "contains other recorded layers",
    "constant": "has only vectors or numbers as parameters and is never called (a hyperparameter of a kernel)",
}
"""What a layer does beyond its role."""
Status = Literal["running", "complete", "interrupted", "failed"]
FloatArray = NDArray[np.floating[Any]]

RESUMED = "resumed at step "
"""The beginning of the note about a resumed run; the optimizer step follows."""
EPOCH_COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")
"""The columns that the table of epochs always has; a run may add others."""


@dataclass(frozen=True)
class Layer:
    """A module that owns a weight.

    Args:
        name: Its dotted name in the model.
        kind: Its class, "Conv2d".
        role: "main", "shortcut" (a projection in parallel to the main path) or "norm".
        depth: Its position on the main path, counted from 1 at the input; a shortcut or norm layer has the depth of
            the main layer that ran last before it.
        out_numel: Elements of its output in the first recorded step (whole batch); 0 if it never ran.
        param_numel: Elements of its parameters.
        calls: Number of calls in the first recorded step, micro-batches included; 0 if it never ran.
        tags: What it does beyond its role; see ``TAGS``.
        parents: Indices of the layers whose outputs it uses, directly or through operations without a weight. Empty
            for a layer that uses the input, and for all layers of a run without a graph.
    """

    name: str
    kind: str
    role: Role
    depth: int
    out_numel: int
    param_numel: int
    calls: int = 1
    tags: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()

    @property
    def stage(self) -> str:
        """The stage that it belongs to: its name up to the first dot, or "" where that part is a number."""
        first = self.name.split(".", 1)[0]
        return "" if first.isdigit() else first


@dataclass(frozen=True)
class Header:
    """The description of a run, known before its first row."""

    layers: tuple[Layer, ...]
    metrics: Mapping[str, int]
    """Metric name to its recording interval in rows."""
    model: str = ""
    seed: int = -1
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """The values recorded for one optimizer step."""

    step: int
    epoch: int
    """0-based index of the current epoch in the table of epochs."""
    metrics: dict[str, FloatArray]
    """Name to (L,) values; a missing metric is NaN in this row."""
    scalars: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class PartlyReadable(Protocol):
    """Metrics that can be read in parts."""

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop - 1`` of a metric, (stop - start, L), in a new array."""

    def read_chunks(self, name: str, start: int, stop: int, least: int) -> RowChunks:
        """Return statistics of at least ``least`` chunks of rows."""


@dataclass(frozen=True)
class Run:
    """One training of one model with one seed, read from a file.

    Arrays are numpy arrays and contain only rows that were written completely.
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
    """Name to (T, L) float32, read from the file on access."""
    epochs: Mapping[str, FloatArray]
    """Name to (E,)."""
    status: Status
    info: Mapping[str, Any]
    """model, seed, created, gradlens_version, format_version, config, environment, heartbeat, every (metric to its
    interval in rows), overhead (the recorder's time divided by the training time, NaN where unknown), notes (list of
    sentences)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How the training is set up, and what the loss reaches; see docs/facts.md. Empty if the file has none."""

    def metric(self, name: str) -> FloatArray:
        """Return a metric over steps and layers.

        Args:
            name: One of ``run.metrics``.

        Returns:
            (T, L) float32, in the metric's unit. NaN where a layer had no gradient in that row, or where the metric
            was not recorded in that row; inf where its gradient contained NaN or Inf.

        Raises:
            ConfigError: The run has no such metric.
        """
        self._check(name)
        return self.metrics[name]

    def _check(self, name: str) -> None:
        if name not in self.metrics:
            raise ConfigError(f"run {self.name} holds no metric {name!r}; it holds {', '.join(self.metrics) or 'none'}")

    def metric_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Return some rows of a metric. For a run in a file, only these rows are read.

        Args:
            name: One of ``run.metrics``.
            start: Index of the first row, not of its step.
            stop: Index of the row after the last.

        Returns:
            (stop - start, L) float32, as in ``metric``; a new array.

        Raises:
            ConfigError: As in ``metric``.
        """
        self._check(name)
        if isinstance(self.metrics, PartlyReadable):
            return self.metrics.read_rows(name, start, stop)
        return self.metrics[name][start:stop].copy()

    def row_chunks(self, name: str, *, least: int, start: int = 0, stop: int | None = None) -> RowChunks:
        """Return statistics of chunks of rows of a metric. For a run in a file, stored statistics are read, not rows.

        Args:
            name: One of ``run.metrics``.
            least: Minimum number of chunks, where there are as many rows; the result has up to about four times as
                many.
            start: Index of the first row.
            stop: Index of the row after the last; None for the end.

        Returns:
            Chunks in order. All but the first and the last have equal length.

        Raises:
            ConfigError: As in ``metric``.
        """
        self._check(name)
        stop = len(self.steps) if stop is None else min(stop, len(self.steps))
        start = min(max(start, 0), stop)
        if isinstance(self.metrics, PartlyReadable):
            return self.metrics.read_chunks(name, start, stop, least)
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

    @property
    def edges(self) -> NDArray[np.int64]:
        """(E, 2) indices of two layers, the output of the first of which feeds the second; (0, 2) without a graph."""
        found = [(parent, i) for i, layer in enumerate(self.layers) for parent in layer.parents]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def main_layers(self) -> NDArray[np.int64]:
        """Return the indices of the layers with the role "main", in the order in which they first ran, (M,).

        ``gradlens.analysis.paths.main_path`` returns those among them that lie on one path.
        """
        main = [i for i, layer in enumerate(self.layers) if layer.role == "main"]
        return np.array(sorted(main, key=lambda i: self.layers[i].depth), dtype=np.int64)

    def __repr__(self) -> str:
        return (
            f"Run({self.name}: {self.model or 'model'}{f' seed {self.seed}' if self.seed >= 0 else ''}, "
            f"{len(self.steps)} rows x {len(self.layers)} layers, {self.status})"
        )

    _repr_html_ = shown_by("run_card")


def jsonable(value: Any) -> str:
    """Return settings as JSON text that is the same for equal settings; what JSON cannot represent becomes a string."""
    return json.dumps(value, default=str, sort_keys=True)
