"""A matrix of layers by columns as cells of a canvas: half blocks in colour, bars, and the scale."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import say_power
from gradlens.analysis.profile import chunk_means, chunk_starts
from gradlens.run import FloatArray
from gradlens.terminal.colours import MISSING, NONFINITE, SHADES, ZERO, Rgb, magnitude_colour
from gradlens.terminal.live.canvas import DEFAULT, DIM, Canvas

Ints = NDArray[np.int64]
STEPS = 48
"""Number of colours of the scale: few, so that noise does not change every cell at every update."""


def _packed(rgb: Rgb) -> int:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


SCALE = [magnitude_colour(10.0 ** (i / (STEPS - 1)), 1.0, 10.0) for i in range(STEPS)]
PALETTE = np.array([_packed(rgb) for rgb in (*SCALE, ZERO, MISSING, NONFINITE)])
"""The colours of codes: the scale, then exactly 0, not recorded, not finite."""
AT_ZERO, AT_MISSING, AT_NONFINITE = STEPS, STEPS + 1, STEPS + 2
MARKS = np.array([ord(SHADES[i * len(SHADES) // STEPS]) for i in range(STEPS)] + [ord(char) for char in "0?!"])
SPECIAL = ((AT_ZERO, "exactly 0"), (AT_MISSING, "not recorded"), (AT_NONFINITE, "not finite"))
UPPER, LOWER, FULL, SPACE = (ord(char) for char in "▀▄█ ")


@dataclass(frozen=True)
class Scale:
    """The range of the colours; a little wider than the values, so that it seldom changes."""

    low: float
    high: float
    linear: bool

    @classmethod
    def of(cls, values: FloatArray, *, linear: bool) -> Scale:
        """Return the scale for values, of any shape; 1 to 10 if none is known."""
        known = values[np.isfinite(values)]
        if not linear:
            known = known[known > 0]
        if not len(known):
            return cls(0.0, 1.0, linear)
        ends = known if linear else np.log10(known)
        low, high = float(ends.min()), float(ends.max())
        unit = 10.0 ** math.floor(math.log10(max(high - low, abs(high), 1e-9))) / 2 if linear else 0.5
        low, high = math.floor(low / unit) * unit, math.ceil(high / unit) * unit
        return cls(low, high if high > low else low + unit, linear)

    def shares(self, values: FloatArray) -> FloatArray:
        """Return the positions of values between the ends, 0 to 1, in their shape; NaN if a value has none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            places = values if self.linear else np.log10(np.where(values > 0, values, np.nan))
            shares = np.clip((places - self.low) / (self.high - self.low), 0.0, 1.0)
        return np.where(np.isfinite(values), shares, np.nan)

    def codes(self, values: FloatArray) -> Ints:
        """Return indices into ``PALETTE``, in the shape of the values."""
        shares = self.shares(values)
        codes = np.where(np.isnan(shares), 0.0, shares * (STEPS - 1)).round().astype(np.int64)
        codes[np.isnan(values)] = AT_MISSING
        codes[np.isinf(values)] = AT_NONFINITE
        if not self.linear:
            codes[values <= 0] = AT_ZERO
        return codes

    def say(self, end: float) -> str:
        """Return the label of an end."""
        return f"{end:.3g}" if self.linear else say_power(end)


def fit_layers(values: FloatArray, lines: int, *, linear: bool) -> tuple[FloatArray, Ints]:
    """Fit layers to lines: neighbours are merged if there are too many layers; else every layer gets as many lines.

    Args:
        values: (L, ...) values of layers, input first.
        lines: Most lines.
        linear: Whether values are averaged as they are, instead of their logarithm.

    Returns:
        (at most ``lines``, ...) values, and the index of the first layer of each line.
    """
    count = len(values)
    if count <= lines:
        first = np.repeat(np.arange(count), lines // count)
        return values[first], first
    starts = chunk_starts(count, lines)
    if not linear:
        return chunk_means(values, starts), starts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no known value
        return np.array([np.nanmean(part, axis=0) for part in np.split(values, starts[1:])]), starts


def draw_heat(canvas: Canvas, x: int, y: int, codes: Ints, *, colour: bool) -> None:
    """Draw codes: with colour two lines of codes per line of the window, without colour one line as characters.

    Args:
        canvas: The canvas.
        x: First cell.
        y: First line.
        codes: (lines, width) indices into ``PALETTE``.
        colour: Whether colours are shown.
    """
    if not colour:
        canvas.block(x, y, MARKS[codes], DEFAULT)
        return
    above, below = _pairs(PALETTE[codes])
    canvas.block(x, y, UPPER, above, below)


def draw_bars(canvas: Canvas, x: int, y: int, values: FloatArray, scale: Scale, width: int, *, colour: bool) -> None:
    """Draw a bar for each value; its length is the position of the value on the scale.

    Args:
        canvas: The canvas.
        x: First cell.
        y: First line.
        values: (lines,) values.
        scale: The scale.
        width: Cells of the longest bar.
        colour: Whether colours are shown; then two bars share a line of the window.
    """
    shares = scale.shares(values)
    lengths = np.where(np.isnan(shares), 0, np.ceil(np.nan_to_num(shares) * width)).astype(np.int64)
    lengths = np.where(np.isnan(shares), 0, np.maximum(lengths, 1))
    on = np.arange(width) < lengths[:, None]
    if not colour:
        canvas.block(x, y, np.where(on, FULL, SPACE), DEFAULT)
        return
    colours = np.where(on, PALETTE[scale.codes(values)][:, None], DEFAULT)
    above, below = _pairs(colours)
    characters = np.where(above >= 0, UPPER, np.where(below >= 0, LOWER, SPACE))
    canvas.block(x, y, characters, np.where(above >= 0, above, below), np.where(above >= 0, below, DEFAULT))


def _pairs(lines: Ints) -> tuple[Ints, Ints]:
    """Return the even lines and the odd lines; an odd number of lines is filled up with the default colour."""
    if len(lines) % 2:
        lines = np.concatenate([lines, np.full_like(lines[:1], DEFAULT)])
    return lines[::2], lines[1::2]


def draw_scale(canvas: Canvas, x: int, y: int, scale: Scale, codes: Ints, width: int, *, colour: bool) -> int:
    """Draw the scale, and the meaning of the special codes among those shown.

    Args:
        canvas: The canvas.
        x: First cell.
        y: The line.
        scale: The scale.
        codes: The codes that are shown.
        width: Cells of the scale.
        colour: Whether colours are shown.

    Returns:
        The cell after it.
    """
    x = canvas.text(x, y, f"{scale.say(scale.low)} ", attributes=DIM)
    along = np.arange(width) * STEPS // width
    canvas.block(x, y, FULL if colour else MARKS[along][None], PALETTE[along][None] if colour else DEFAULT)
    x = canvas.text(x + width, y, f" {scale.say(scale.high)}", attributes=DIM)
    for code, title in SPECIAL:
        if (codes == code).any():
            x = canvas.text(x, y, "  ")
            canvas.block(x, y, np.array([[FULL if colour else MARKS[code]]]), PALETTE[code] if colour else DEFAULT)
            x = canvas.text(x + 1, y, f" {title}", attributes=DIM)
    return x
