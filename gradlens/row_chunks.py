"""Statistics of chunks of rows: per layer the minimum, mean and maximum, and the number of values.

A long run is stored at several levels, like map tiles: chunks of 64 rows, of 256 rows, and so on. Statistics of larger
chunks are computed from those of smaller ones. So a figure of a million rows reads a few thousand chunks and no rows.

Shapes: T rows, L layers, B chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

STATISTICS = ("min", "mean", "max", "count", "zeros")
LEVELS = (64, 256, 1024, 4096, 16384, 65536)
"""Rows per chunk at each level; each level has four times the rows of the one before."""


def summarise(values: FloatArray, starts: NDArray[np.int64], *, linear: bool | NDArray[np.bool_] = False) -> FloatArray:
    """Compute the statistics of chunks of rows.

    Args:
        values: (T, ...) values; NaN means "not recorded".
        starts: (B,) index of the first row of each chunk, ascending; the last chunk ends with the last row.
        linear: Take the arithmetic mean of finite values. Otherwise, as for magnitudes, the geometric mean of finite
            positive values. May be an array that broadcasts against a row.

    Returns:
        (B, ..., 5) float64: ``STATISTICS``. ``min`` and ``max`` are over all recorded values, inf included; ``count``
        is the number of values in the mean, ``zeros`` the number of exact zeros.
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
    """Compute the statistics of larger chunks from those of smaller ones.

    Args:
        blocks: (N, ..., 5) ``STATISTICS`` of the smaller chunks.
        starts: (B,) index of the first smaller chunk in each larger one, ascending.
        linear: As in ``summarise``.

    Returns:
        (B, ..., 5) ``STATISTICS``.
    """
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
    """Return the terms of the mean: logarithms, or the values themselves for a linear metric."""
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
    """Statistics of consecutive chunks of rows of one metric.

    Args:
        edges: (B + 1,) index of the first row of each chunk, then the index after the last row.
        values: (B, L, 5) ``STATISTICS``.
    """

    edges: NDArray[np.int64]
    values: FloatArray

    @property
    def low(self) -> FloatArray:
        """(B, L) smallest value, NaN where nothing was recorded."""
        return self.values[..., 0]

    @property
    def mean(self) -> FloatArray:
        """(B, L) mean, NaN where it has no values."""
        return self.values[..., 1]

    @property
    def high(self) -> FloatArray:
        """(B, L) largest value, inf where a value was not finite."""
        return self.values[..., 2]

    @property
    def count(self) -> FloatArray:
        """(B, L) number of values in the mean."""
        return self.values[..., 3]

    @property
    def zeros(self) -> FloatArray:
        """(B, L) number of values that were exactly 0."""
        return self.values[..., 4]

    @property
    def shown(self) -> FloatArray:
        """(B, L) the value drawn for each chunk: inf if any value is inf; else the mean; 0 if all are 0; else NaN."""
        means = np.where(self.count > 0, self.mean, np.where(self.zeros > 0, 0.0, np.nan))
        return np.where(np.isinf(self.high), np.inf, means)

    def merged(self, most: int, *, linear: bool = False) -> RowChunks:
        """Merge chunks until at most ``most`` are left, with about equal numbers of rows.

        Args:
            most: Maximum number of chunks.
            linear: As in ``summarise``.

        Returns:
            The merged chunks.
        """
        if len(self.values) <= most:
            return self
        wanted = np.linspace(self.edges[0], self.edges[-1], most + 1)[:-1]
        starts = np.unique(np.searchsorted(self.edges[:-1], wanted, side="right") - 1)
        return RowChunks(np.append(self.edges[starts], self.edges[-1]), combine(self.values, starts, linear=linear))


def choose_level(rows: int, most: int) -> int:
    """Return the largest level at which so many rows give at least ``most`` full chunks; 1 means single rows.

    Args:
        rows: Number of rows.
        most: Minimum number of chunks.
    """
    fitting = [level for level in LEVELS if rows // level >= most]
    return fitting[-1] if fitting else 1
