"""Curves in braille characters: each cell has two by four dots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray

BLANK = 0x2800
BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""(4, 2) bit of each dot, line by column within a cell (Unicode 15, block Braille Patterns)."""


def braille(
    curves: Sequence[FloatArray], low: float, high: float, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw curves into cells.

    Args:
        curves: (N,) values each, from left to right, a dot each; at most ``2 * width`` are drawn; NaN is a gap.
        low: The value at the lower edge.
        high: The value at the upper edge.
        width: Cells per line.
        height: Lines.

    Returns:
        (height, width) code points of the characters, and (height, width) numbers of the curves that they show.
    """
    bits = np.zeros((height, width), dtype=np.int64)
    curve_number = np.zeros((height, width), dtype=np.int64)
    for number, curve in enumerate(curves):
        dots = _dots(curve[: 2 * width], low, high, 2 * width, 4 * height)
        cells = (dots.reshape(height, 4, width, 2) * BITS[None, :, None, :]).sum(axis=(1, 3))
        bits |= cells
        curve_number[cells > 0] = number
    return np.where(bits > 0, BLANK + bits, ord(" ")), curve_number


def _dots(curve: FloatArray, low: float, high: float, columns: int, lines: int) -> NDArray[np.bool_]:
    """Return (lines, columns), which dots a curve covers; each dot is joined with the previous one."""
    dots = np.zeros((lines, columns), dtype=bool)
    span = high - low if high > low else 1.0
    with np.errstate(invalid="ignore"):
        places = (1 - np.clip((curve - low) / span, 0, 1)) * (lines - 1)
    before = -1
    for column, place in enumerate(places.tolist()):
        if place != place:
            before = -1
            continue
        line = round(place)
        first = line if before < 0 else before + (line > before) - (line < before)
        dots[min(first, line) : max(first, line) + 1, column] = True
        before = line
    return dots


def stretched(values: FloatArray, width: int) -> FloatArray:
    """Return (width,) values spread evenly: each value is repeated, or some are left out.

    Args:
        values: (N,) or (N, ...) values.
        width: The number of values to return.

    Returns:
        (width, ...) values; none if there are none.
    """
    if not len(values):
        return values
    return values[np.arange(width) * len(values) // width]
