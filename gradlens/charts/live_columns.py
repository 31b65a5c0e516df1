"""Rows that keep coming, as columns of a picture that grows to the right.

Each column stands for as many rows as every other; when there are too many columns, each two become one. So what is
drawn once stays as it is until then, and neither memory nor time grows with the run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.row_chunks import STATISTICS, RowChunks, combine, summarise
from gradlens.run import FloatArray

MOST = 512
PENDING = 4096
"""Rows that wait, at most, until somebody looks: many at once cost less."""


class Columns:
    """The columns of one metric.

    Args:
        width: Values in a row (layers).
        linear: Whether they are averaged as they are, and not their logarithms.
        most: So many columns at most.

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
        """Rows in a column; the last may have fewer."""
        self._settle()
        return self._size

    @property
    def starts(self) -> NDArray[np.int64]:
        """(C,) the optimizer step at which each begins."""
        self._settle()
        return self._starts

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) the rows in each."""
        self._settle()
        return self._counts

    @property
    def values(self) -> FloatArray:
        """(C, width, 5) ``gradlens.row_chunks.STATISTICS``."""
        self._settle()
        return self._values

    def add(self, steps: NDArray[np.int64], rows: FloatArray) -> None:
        """Put rows behind those that are there.

        Args:
            steps: (R,) their optimizer steps.
            rows: (R, width) their values; NaN is "not recorded".
        """
        if len(rows):
            self._pending.append((steps, rows))
            if sum(len(part) for part, _ in self._pending) > PENDING:
                self._settle()

    def _settle(self) -> None:
        """Put what waits into columns."""
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
            blocks = summarise(rows[first:], starts - first, linear=self.linear)
            self._append(steps[starts], np.diff(np.append(starts, len(rows))), blocks)

    def add_chunks(self, steps: NDArray[np.int64], blocks: RowChunks) -> None:
        """Put blocks of rows, all but the first and last of one size, behind those that are there.

        Args:
            steps: (B,) the optimizer step at which each begins.
            blocks: Of rows.
        """
        self._settle()
        counts = np.diff(blocks.edges)
        if len(counts):
            self._size = max(self._size, int(counts.max()))
            self._append(steps, counts, blocks.values)

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
        """Return at most so many columns, each of as many of these as every other.

        Returns:
            (C,) the step at which each begins, and (C, width, 5) statistics.
        """
        factor = 1
        while len(self) > factor * width:
            factor *= 2
        at = np.arange(0, len(self), factor)
        return self.starts[at], self.values if factor == 1 else self._combine(self.values, at)


class Recent:
    """The newest rows as they are.

    Args:
        width: Values in a row.
        keep: So many rows.
    """

    def __init__(self, width: int, keep: int) -> None:
        self.keep = keep
        self.steps = np.empty(0, dtype=np.int64)
        self.rows: FloatArray = np.empty((0, width), dtype=np.float32)

    def add(self, steps: NDArray[np.int64], rows: FloatArray) -> None:
        """Put rows behind those that are there, and drop the oldest."""
        self.steps = np.concatenate([self.steps, steps])[-self.keep :]
        self.rows = np.concatenate([self.rows, np.asarray(rows, dtype=np.float32)])[-self.keep :]

    def columns(self, step: int, *, linear: bool) -> Columns:
        """Return the rows from an optimizer step on as columns."""
        begin = int(np.searchsorted(self.steps, step))
        found = Columns(self.rows.shape[1], linear=linear)
        found.add(self.steps[begin:], self.rows[begin:])
        return found


def known_rows(steps: NDArray[np.int64], rows: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Leave out the rows of a metric of coarser rhythm in which nothing was recorded."""
    known = ~np.isnan(rows).all(axis=1)
    return steps[known], rows[known]


def shown(values: FloatArray) -> FloatArray:
    """Return what stands for columns in a picture, (C, width): inf where any value is, else the mean, or 0, or NaN."""
    edges: NDArray[Any] = np.arange(len(values) + 1)
    return RowChunks(edges, values).shown
