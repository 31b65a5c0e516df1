"""Destinations for a recorder's rows: the protocol of a sink, a sink that drops rows, and one that keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gradlens.run import FloatArray, Header, Row, Status


class Sink(Protocol):
    """The destination of a recorder's rows, such as a list or a file.

    The calls come in this order: ``claim``, ``open``, any number of ``write_...`` and ``flush``, ``close``.
    """

    def claim(self) -> None:
        """Reserve the destination before the first row, so that no other recorder writes to it."""

    def open(self, header: Header) -> None:
        """Begin the run."""

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Store one row, or the result of a function, which the sink may call later."""

    def amend_row(self, row: Row) -> None:
        """Store a row in place of the last one: values were logged for it after it had been stored."""

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Store one row of the table of epochs; on return, everything so far is stored."""

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Store the recorder's overhead and its notes so far; they replace the previous ones."""

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Store facts about the training; they replace the previous ones."""

    def flush(self) -> None:
        """Return when everything so far is stored."""

    def close(self, status: Status) -> None:
        """End the run."""


def row_of(row: Row | Callable[[], Row]) -> Row:
    """Return the row, calling the function that makes it where necessary."""
    return row() if callable(row) else row


class NullSink:
    """A sink that stores nothing; all ranks but the first have it."""

    def claim(self) -> None:
        """Do nothing."""

    def open(self, header: Header) -> None:
        """Do nothing."""

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Drop a row."""

    def amend_row(self, row: Row) -> None:
        """Drop a row."""

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Drop an epoch."""

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Drop the state."""

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Drop the facts."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self, status: Status) -> None:
        """Do nothing."""


@dataclass
class ListSink:
    """A sink that keeps everything in memory; for tests and short experiments."""

    header: Header | None = None
    rows: list[Row] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    status: Status = "running"
    overhead: float = math.nan
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def claim(self) -> None:
        """Do nothing."""

    def open(self, header: Header) -> None:
        """Begin the run."""
        self.header = header

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row."""
        self.rows.append(row_of(row))

    def amend_row(self, row: Row) -> None:
        """Replace the last row."""
        self.rows[-1] = row

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs."""
        self.epochs.append(dict(values))

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep the overhead and the notes."""
        self.overhead, self.notes = overhead, tuple(notes)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep the facts."""
        self.facts = dict(facts)

    def flush(self) -> None:
        """Do nothing."""

    def close(self, status: Status) -> None:
        """End the run."""
        self.status = status

    def metric(self, name: str) -> FloatArray:
        """Return a metric over the rows so far, (T, L), NaN where it was not recorded."""
        assert self.header is not None
        missing = np.full(len(self.header.layers), np.nan)
        return np.array([row.metrics.get(name, missing) for row in self.rows])
