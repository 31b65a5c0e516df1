"""What stands for many rows at once: per layer the least, mean and largest value, and how many there were.

A long run is kept level by level, as map tiles are: blocks of 64 rows, of 256, and so on. Chunks of chunks follow from
blocks alone, so that a picture of a million rows needs a few thousand of them, and none of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

STATISTICS = ("min", "mean", "max", "count", "zeros")
LEVELS = (64, 256, 1024, 4096, 16384, 65536)
"""Rows per block, level by level; each is four times the one before."""


def summarise(values: FloatArray, starts: NDArray[np.int64], *, linear: bool | NDArray[np.bool_] = False) -> FloatArray:
    """Put blocks of rows into statistics.

    Args:
        values: (T, ...) values; NaN is "not recorded".
        starts: (B,) the first row of each block, ascending; the last block ends with the rows.
        linear: Whether the mean is arithmetic, over finite values; otherwise it is geometric, over finite positive
            ones, as suits magnitudes. May be an array that broadcasts against a row.

    Returns:
        (B, ..., 5) float64: ``STATISTICS``. ``min`` and ``max`` are over all that is recorded, inf included; ``count``
        is how many values the mean is of, ``zeros`` how many were exactly 0.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = np.asarray(values, dtype=np.float64)
    counted = np.isfinite(values) & (np.asarray(linear) | (values > 0))
    terms = _forward(np.where(counted, values, 1.0), linear)
    counts = np.add.reduceat(counted, starts, axis=0, dtype=np.float64)
    sums = np.add.reduceat(np.where(counted, terms, 0.0), starts, axis=0)
    zeros = np.add.reduceat(values == 0, starts, axis=0, dtype=np.float64)
    return _join(
        np.fmin.reduceat(values, starts, axis=0), sums, np.fmax.reduceat(values, starts, axis=0), counts, zeros, linear
    )


def combine(blocks: FloatArray, starts: NDArray[np.int64], *, linear: bool | NDArray[np.bool_] = False) -> FloatArray:
    """Put blocks of blocks into statistics: (N, ..., 5) to (B, ..., 5); arguments as in ``summarise``."""
    low, mean, high, count, zeros = np.moveaxis(np.asarray(blocks, dtype=np.float64), -1, 0)
    terms = np.where(count > 0, count * _forward(np.where(count > 0, mean, 1.0), linear), 0.0)
    return _join(
        np.fmin.reduceat(low, starts, axis=0),
        np.add.reduceat(terms, starts, axis=0),
        np.fmax.reduceat(high, starts, axis=0),
        np.add.reduceat(count, starts, axis=0),
        np.add.reduceat(zeros, starts, axis=0),
        linear,
    )


def _forward(values: FloatArray, linear: bool | NDArray[np.bool_]) -> FloatArray:
    """Return what is averaged: the logarithm, or of a linear metric the value."""
    if not np.any(linear):
        return np.log(values)
    return np.where(linear, values, np.log(np.where(np.asarray(linear) | (values <= 0), 1.0, values)))


def _join(
    low: FloatArray,
    sums: FloatArray,
    high: FloatArray,
    counts: FloatArray,
    zeros: FloatArray,
    linear: bool | NDArray[np.bool_],
) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        means = sums / counts
        means = np.where(linear, means, np.exp(np.where(linear, 0.0, means)))
    means = np.where(counts > 0, means, np.nan)
    return np.stack([low, means, high, counts, zeros], axis=-1)


@dataclass(frozen=True)
class RowChunks:
    """Statistics of neighbouring blocks of rows of one metric.

    Args:
        edges: (B + 1,) the row at which each block begins, and at the end the row after the last.
        values: (B, L, 5) ``STATISTICS``.
    """

    edges: NDArray[np.int64]
    values: FloatArray

    @property
    def low(self) -> FloatArray:
        """(B, L) least value, NaN where nothing was recorded."""
        return self.values[..., 0]

    @property
    def mean(self) -> FloatArray:
        """(B, L) mean, NaN where nothing went into it."""
        return self.values[..., 1]

    @property
    def high(self) -> FloatArray:
        """(B, L) largest value, inf where one was not finite."""
        return self.values[..., 2]

    @property
    def count(self) -> FloatArray:
        """(B, L) values that went into the mean."""
        return self.values[..., 3]

    @property
    def zeros(self) -> FloatArray:
        """(B, L) values that were exactly 0."""
        return self.values[..., 4]

    @property
    def shown(self) -> FloatArray:
        """(B, L) what stands for a block in a picture: inf where any value is, else the mean, or 0, or NaN."""
        means = np.where(self.count > 0, self.mean, np.where(self.zeros > 0, 0.0, np.nan))
        return np.where(np.isinf(self.high), np.inf, means)

    def merged(self, most: int, *, linear: bool = False) -> RowChunks:
        """Return at most so many blocks, of about equal numbers of rows."""
        if len(self.values) <= most:
            return self
        wanted = np.linspace(self.edges[0], self.edges[-1], most + 1)[:-1]
        starts = np.unique(np.searchsorted(self.edges[:-1], wanted, side="right") - 1)
        return RowChunks(np.append(self.edges[starts], self.edges[-1]), combine(self.values, starts, linear=linear))


def choose_level(rows: int, most: int) -> int:
    """Return how many rows a block should have, so that rows give at least ``most`` of them; 1 for rows alone."""
    fitting = [level for level in LEVELS if rows // level >= most]
    return fitting[-1] if fitting else 1
