"""Where a recorder's rows go: what a sink must do, one that keeps nothing, and one that keeps rows in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gradlens.run import FloatArray, Header, Row, Status


class Sink(Protocol):
    """Where a recorder's rows go: a list, a file, or nothing."""

    def claim(self) -> None:
        """Make sure that nobody else writes there, before the first row."""

    def open(self, header: Header) -> None:
        """Begin the run."""

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row, or what a function returns when the sink comes to it."""

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs; on return, everything so far is kept."""

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep what the recorder cost so far, and what a reader should know, in place of what was said before."""

    def flush(self) -> None:
        """Return when everything so far is kept."""

    def close(self, status: Status) -> None:
        """End the run."""


def row_of(row: Row | Callable[[], Row]) -> Row:
    """Return the row itself."""
    return row() if callable(row) else row


class NullSink:
    """Keep nothing: the sink of all ranks but the first."""

    def claim(self) -> None:
        """Return."""

    def open(self, header: Header) -> None:
        """Begin the run."""

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Drop a row."""

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Drop an epoch."""

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Drop it."""

    def flush(self) -> None:
        """Return."""

    def close(self, status: Status) -> None:
        """End the run."""


@dataclass
class ListSink:
    """Keep everything in memory; for tests and short experiments."""

    header: Header | None = None
    rows: list[Row] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    status: Status = "running"
    overhead: float = math.nan
    notes: tuple[str, ...] = ()

    def claim(self) -> None:
        """Return."""

    def open(self, header: Header) -> None:
        """Begin the run."""
        self.header = header

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row."""
        self.rows.append(row_of(row))

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs."""
        self.epochs.append(dict(values))

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep the overhead and the notes."""
        self.overhead, self.notes = overhead, tuple(notes)

    def flush(self) -> None:
        """Return."""

    def close(self, status: Status) -> None:
        """End the run."""
        self.status = status

    def metric(self, name: str) -> FloatArray:
        """Return a metric over the rows so far, (T, L)."""
        assert self.header is not None
        missing = np.full(len(self.header.layers), np.nan)
        return np.array([row.metrics.get(name, missing) for row in self.rows])
