"""Columns for drawing rows that keep arriving, in a heatmap that grows to the right.

All columns but the last contain the same number of rows. When there are too many columns, pairs of neighbours are
merged; between merges, finished columns do not change. So neither memory nor time grows with the run.

Shapes: L layers, C columns, B chunks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.row_chunks import STATISTICS, RowChunks, combine, summarise
from gradlens.run import FloatArray

MOST = 512
"""Default maximum number of columns."""
PENDING = 4096
"""Maximum number of rows that wait until columns are read; many rows at once cost less."""
PENDING_NUMBERS = 1_000_000
"""Maximum number of their values."""
SPARE = 64
"""Columns that are added at once; then there may be as many too many."""
AT_ONCE = 1_000_000
"""Values that are combined at once: a model with very many layers is combined in slices of its layers."""


class Columns:
    """The columns of one metric.

    New rows are first kept in a list; reading any property sorts them into columns.

    Args:
        width: L, the number of values in a row.
        linear: Average the values; otherwise their logarithms.
        most: Maximum number of columns.
        dtype: The type in which their statistics are kept.
    """

    def __init__(self, width: int, *, linear: bool = False, most: int = MOST, dtype: type = np.float64) -> None:
        self.linear, self.most, self._size = linear, most, 1
        self._starts = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._width = width
        self._buffer: FloatArray = np.empty((most + SPARE, width, len(STATISTICS)), dtype=dtype)
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
        return self._buffer[: len(self._starts)]

    def add(self, steps: NDArray[np.int64], rows: FloatArray) -> None:
        """Append rows.

        Args:
            steps: (R,) optimizer step of each row.
            rows: (R, L) values; NaN means "not recorded".
        """
        if len(rows):
            self._pending.append((steps, rows))
            waiting = sum(len(part) for part, _ in self._pending)
            if waiting > PENDING or waiting * rows.shape[1] > PENDING_NUMBERS:
                self._settle()

    def _settle(self) -> None:
        """Sort waiting rows into columns."""
        if not self._pending:
            return
        parts, self._pending = self._pending, []
        steps, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        while len(rows):
            taken = self._take(steps, rows)
            steps, rows = steps[taken:], rows[taken:]

    def _take(self, steps: NDArray[np.int64], rows: FloatArray) -> int:
        """Sort the first of some rows into the last column, or into new ones; return how many."""
        last, one = len(self._starts) - 1, np.zeros(1, dtype=np.int64)
        if last >= 0 and self._counts[last] < self._size:
            taken = min(self._size - int(self._counts[last]), len(rows))
            joined = np.concatenate([self._buffer[last:][:1], self._summarise(rows[:taken], one)])
            self._buffer[last] = self._combine(joined, one)[0]
            self._counts[last] += taken
            return taken
        columns = min(max(AT_ONCE // (max(self._width, 1) * len(STATISTICS) * self._size), 1), SPARE)
        taken = min(columns * self._size, len(rows))
        at = np.arange(0, taken, self._size)
        self._append(steps[at], np.diff(np.append(at, taken)), self._summarise(rows[:taken], at))
        return taken

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
        before, count = len(self._starts), len(self._starts) + len(starts)
        if count > len(self._buffer):
            self._buffer = np.concatenate([self._buffer[:before], values]).astype(self._buffer.dtype, copy=False)
        self._buffer[before:count] = values
        self._starts = np.concatenate([self._starts, starts])
        self._counts = np.concatenate([self._counts, counts])
        while (count := len(self._starts)) > self.most:
            at = np.arange(0, count, 2)
            for part in _slices(self._width, count * len(STATISTICS)):
                self._buffer[: len(at), part] = combine(self._buffer[:count, part], at, linear=self.linear)
            self._counts = np.add.reduceat(self._counts, at)
            self._starts = self._starts[at]
            self._size *= 2

    def _combine(self, values: FloatArray, at: NDArray[np.int64]) -> FloatArray:
        found = np.empty((len(at), *values.shape[1:]), dtype=self._buffer.dtype)
        for part in _slices(values.shape[1], len(values) * len(STATISTICS)):
            found[:, part] = combine(values[:, part], at, linear=self.linear)
        return found

    def _summarise(self, rows: FloatArray, at: NDArray[np.int64]) -> FloatArray:
        found = np.empty((len(at), rows.shape[1], len(STATISTICS)), dtype=self._buffer.dtype)
        for part in _slices(rows.shape[1], len(rows) * len(STATISTICS)):
            found[:, part] = summarise(rows[:, part], at, linear=self.linear)
        return found

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


def _slices(width: int, numbers: int) -> Iterator[slice]:
    """Return slices of layers that have at most ``AT_ONCE`` numbers.

    Args:
        width: The number of layers.
        numbers: Numbers of each layer.

    Returns:
        The slices.
    """
    size = max(AT_ONCE // max(numbers, 1), 1)
    return (slice(start, start + size) for start in range(0, width, size))


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
        with np.errstate(over="ignore"):  # a loss of 1e300
            newest = np.asarray(rows[-self.keep :], dtype=np.float32)
        self.rows = np.concatenate([self.rows[max(len(self.rows) + len(newest) - self.keep, 0) :], newest])

    def columns(self, step: int, *, linear: bool, dtype: type = np.float64) -> Columns:
        """Return the rows from an optimizer step on as columns.

        Args:
            step: The first optimizer step.
            linear: As in ``Columns``.
            dtype: As in ``Columns``.
        """
        begin = int(np.searchsorted(self.steps, step))
        found = Columns(self.rows.shape[1], linear=linear, dtype=dtype)
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
