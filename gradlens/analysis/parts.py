"""Matrices of rows by layers, a few layers or a few rows at a time, so that a wide one is never copied as a whole.

A metric of 30,000 layers takes as much memory as its file has zeros. It is kept once, as float32, as the file has it;
whatever is computed from it in float64 is computed in parts, and is the same to the bit.

Shapes: T rows, L layers, l layers of a part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray

NUMBERS_AT_ONCE = 1_000_000
"""Numbers that are computed with at once; each takes up to about 50 bytes meanwhile."""


def parts_of(count: int, numbers: int) -> list[slice]:
    """Divide layers, or rows, into parts of at most ``NUMBERS_AT_ONCE`` numbers.

    Args:
        count: How many there are.
        numbers: How many numbers each of them has.

    Returns:
        The parts in order; one, where there is nothing to divide.
    """
    size = max(NUMBERS_AT_ONCE // max(numbers, 1), 1)
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def over_layers(make: Callable[[slice], Any], layers: int, rows: int) -> NDArray[Any]:
    """Compute something for a few layers at a time, and join it.

    Args:
        make: Returns, for some of the layers, an array whose last axis is the layers.
        layers: How many layers there are.
        rows: How many numbers each of them has.

    Returns:
        What it returns for all layers.
    """
    found = [make(part) for part in parts_of(layers, rows)]
    return np.asarray(found[0]) if len(found) == 1 else np.concatenate(found, axis=-1)


def by_layers(function: Callable[..., Any], *grids: FloatArray) -> NDArray[Any]:
    """Apply a function to a few layers of matrices at a time.

    Args:
        function: Gets (T, l) float64 of each matrix; the last axis of what it returns is the layers.
        grids: (T, L) matrices with the same layers.

    Returns:
        What it returns for all layers.
    """
    layers, rows = grids[0].shape[1], max(len(grid) for grid in grids)
    return over_layers(lambda part: function(*(_exact(grid[:, part]) for grid in grids)), layers, rows)


def by_rows(function: Callable[..., Any], *grids: FloatArray) -> NDArray[Any]:
    """Apply a function to a few rows of matrices at a time.

    Args:
        function: Gets (t, L) float64 of each matrix; the first axis of what it returns is the rows.
        grids: (T, L) matrices with the same rows.

    Returns:
        What it returns for all rows.
    """
    rows, layers = len(grids[0]), max(grid.shape[1] for grid in grids)
    found = [function(*(_exact(grid[part]) for grid in grids)) for part in parts_of(rows, layers)]
    return np.asarray(found[0]) if len(found) == 1 else np.concatenate(found)


def _exact(values: FloatArray) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
