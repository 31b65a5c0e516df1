"""Columns for drawing rows that keep arriving, in a heatmap that grows to the right.

All columns but the last contain the same number of rows. When there are too many columns, pairs of neighbours are
merged; between merges, finished columns do not change. So neither memory nor time grows with the run.

Shapes: L layers, C columns, B chunks of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.row_chunks import STATISTICS, RowChunks, combine, summarise
from gradlens.run import FloatArray

MOST = 512
"""Default maximum number of columns."""
PENDING = 4096
"""Maximum number of rows that wait until columns are read; many rows at once cost less."""


class Columns:
    """The columns of one metric.

    New rows are first kept in a list; reading any property sorts them into columns.

    Args:
        width: L, the number of values in a row.
        linear: Average the values; otherwise their logarithms.
        most: Maximum number of columns.
    """

    def __init__(self, width: int, *, linear: bool = False, most: int = MOST) -> None:
        self.linear, self.most, self._size = linear, most, 1
        self._starts = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._values: FloatArray = np.empty((0, width, len(STATISTICS)))
        self._pending: list[tuple[NDArray[np.int64], FloatArray]] = []

    def __len__(self) -> int:
        self._settle()
        return len(self._starts)

    @property
    def size(self) -> int:
        """The number of rows in a column; the last column may have fewer."""
        self._settle()
        return self._size

    @property
    def starts(self) -> NDArray[np.int64]:
        """(C,) first optimizer step of each column."""
        self._settle()
        return self._starts

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) number of rows in each column."""
        self._settle()
        return self._counts

    @property
    def values(self) -> FloatArray:
        """(C, L, 5) ``gradlens.row_chunks.STATISTICS``."""
        self._settle()
        return self._values

    def add(self, steps: NDArray[np.int64], rows: FloatArray) -> None:
        """Append rows.

        Args:
            steps: (R,) optimizer step of each row.
            rows: (R, L) values; NaN means "not recorded".
        """
        if len(rows):
            self._pending.append((steps, rows))
            if sum(len(part) for part, _ in self._pending) > PENDING:
                self._settle()

    def _settle(self) -> None:
        """Sort waiting rows into columns."""
        if not self._pending:
            return
        parts, self._pending = self._pending, []
        steps, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        room = self._size - int(self._counts[-1]) if len(self._starts) else 0
        first = min(max(room, 0), len(rows))
        starts = np.arange(first, len(rows), self._size)
        if first:
            joined = summarise(rows[:first], np.zeros(1, dtype=np.int64), linear=self.linear)
            self._values[-1:] = self._combine(np.concatenate([self._values[-1:], joined]), np.zeros(1, dtype=np.int64))
            self._counts[-1] += first
        if len(starts):
            new = summarise(rows[first:], starts - first, linear=self.linear)
            self._append(steps[starts], np.diff(np.append(starts, len(rows))), new)

    def add_chunks(self, steps: NDArray[np.int64], chunks: RowChunks) -> None:
        """Append chunks of rows; all but the first and the last must have one size.

        Args:
            steps: (B,) first optimizer step of each chunk.
            chunks: The chunks.
        """
        self._settle()
        counts = np.diff(chunks.edges)
        if len(counts):
            self._size = max(self._size, int(counts.max()))
            self._append(steps, counts, chunks.values)

    def _append(self, starts: NDArray[np.int64], counts: NDArray[np.int64], values: FloatArray) -> None:
        self._starts = np.concatenate([self._starts, starts])
        self._counts = np.concatenate([self._counts, counts])
        self._values = np.concatenate([self._values, values])
        while len(self._starts) > self.most:
            at = np.arange(0, len(self._starts), 2)
            self._values = self._combine(self._values, at)
            self._counts = np.add.reduceat(self._counts, at)
            self._starts = self._starts[at]
            self._size *= 2

    def _combine(self, values: FloatArray, at: NDArray[np.int64]) -> FloatArray:
        return combine(values, at, linear=self.linear)

    def fitted(self, width: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Return at most ``width`` columns, each merged from the same number of columns.

        Args:
            width: Maximum number of columns.

        Returns:
            (C,) first optimizer step of each column, and (C, L, 5) statistics.
        """
        factor = 1
        while len(self) > factor * width:
            factor *= 2
        at = np.arange(0, len(self), factor)
        return self.starts[at], self.values if factor == 1 else self._combine(self.values, at)


class Recent:
    """The newest rows.

    Args:
        width: L, the number of values in a row.
        keep: Number of rows to keep.
    """

    def __init__(self, width: int, keep: int) -> None:
        self.keep = keep
        self.steps = np.empty(0, dtype=np.int64)
        self.rows: FloatArray = np.empty((0, width), dtype=np.float32)

    def add(self, steps: NDArray[np.int64], rows: FloatArray) -> None:
        """Append rows and drop the oldest.

        Args:
            steps: (R,) optimizer step of each row.
            rows: (R, L) values; NaN means "not recorded".
        """
        self.steps = np.concatenate([self.steps, steps])[-self.keep :]
        self.rows = np.concatenate([self.rows, np.asarray(rows, dtype=np.float32)])[-self.keep :]

    def columns(self, step: int, *, linear: bool) -> Columns:
        """Return the rows from an optimizer step on as columns.

        Args:
            step: The first optimizer step.
            linear: As in ``Columns``.
        """
        begin = int(np.searchsorted(self.steps, step))
        found = Columns(self.rows.shape[1], linear=linear)
        found.add(self.steps[begin:], self.rows[begin:])
        return found


def known_rows(steps: NDArray[np.int64], rows: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the rows in which anything was recorded, and their steps.

    Args:
        steps: (R,) optimizer step of each row.
        rows: (R, L) values; NaN means "not recorded", as in rows between those of a longer recording interval.
    """
    known = ~np.isnan(rows).all(axis=1)
    return steps[known], rows[known]


def shown(values: FloatArray) -> FloatArray:
    """Return the value to draw for each column: inf if any value is inf; else the mean; 0 if all are 0; else NaN.

    Args:
        values: (C, L, 5) ``STATISTICS``.

    Returns:
        (C, L) in the metric's unit.
    """
    edges: NDArray[Any] = np.arange(len(values) + 1)
    return RowChunks(edges, values).shown
