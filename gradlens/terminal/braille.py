"""Curves in braille: two by four dots a cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray

BLANK = 0x2800
BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""The bit of each dot, (4, 2): line by column within a cell (Unicode 15, block Braille Patterns)."""


def braille(
    curves: Sequence[FloatArray], low: float, high: float, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw curves into cells.

    Args:
        curves: Each (N,) values from the left on, at most ``2 * width`` of them are drawn, a dot each; NaN is a gap.
        low: The value at the lower edge.
        high: The value at the upper edge.
        width: Cells a line.
        height: Lines.

    Returns:
        (height, width) characters, blank where there is nothing, and the number of the curve that is seen there.
    """
    bits = np.zeros((height, width), dtype=np.int64)
    owner = np.zeros((height, width), dtype=np.int64)
    for number, curve in enumerate(curves):
        dots = _dots(curve[: 2 * width], low, high, 2 * width, 4 * height)
        cells = (dots.reshape(height, 4, width, 2) * BITS[None, :, None, :]).sum(axis=(1, 3))
        bits |= cells
        owner[cells > 0] = number
    return np.where(bits > 0, BLANK + bits, ord(" ")), owner


def _dots(curve: FloatArray, low: float, high: float, columns: int, lines: int) -> NDArray[np.bool_]:
    """Return which dots a curve covers, each joined with the one before."""
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
    """Return values, spread evenly over so many places: each repeated, or some left out."""
    if not len(values):
        return values
    return values[np.arange(width) * len(values) // width]
