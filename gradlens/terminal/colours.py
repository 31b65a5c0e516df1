"""Colours of magnitudes in a terminal (viridis, interpolated), and marks for where there is no colour."""

from __future__ import annotations

import math

from rich.color import Color
from rich.style import Style
from rich.text import Text

# viridis (Smith & van der Walt 2015) at 0.12, 0.21, ..., 1.00.
VIRIDIS = (
    (72, 36, 117), (68, 57, 131), (58, 83, 139), (47, 106, 142), (37, 131, 142), (31, 154, 138),
    (53, 183, 121), (103, 204, 92), (160, 218, 57), (213, 226, 26), (253, 231, 37),
)  # fmt: skip
ZERO, MISSING, NONFINITE = (0, 0, 0), (200, 200, 200), (230, 0, 126)
SHADES = ".:-=+*#%@"

Rgb = tuple[int, int, int]


def magnitude_colour(value: float, low: float, high: float) -> Rgb:
    """Return the colour of a value on a log scale from ``low`` to ``high``."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return NONFINITE
    if value <= 0:
        return ZERO
    place = _share(value, low, high) * (len(VIRIDIS) - 1)
    i = min(int(place), len(VIRIDIS) - 2)
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(VIRIDIS[i], VIRIDIS[i + 1], strict=True))
    return red, green, blue


def magnitude_mark(value: float, low: float, high: float) -> str:
    """Return the mark of a value without colour: light to dense, 0 zero, ? missing, ! not finite."""
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "!"
    if value <= 0:
        return "0"
    return SHADES[round(_share(value, low, high) * (len(SHADES) - 1))]


def _share(value: float, low: float, high: float) -> float:
    if high <= low:
        return 1.0
    return min(max((math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low)), 0.0), 1.0)


def style(foreground: Rgb, background: Rgb | None = None) -> Style:
    """Return a style of these colours."""
    back = Color.from_rgb(*background) if background else None
    return Style(color=Color.from_rgb(*foreground), bgcolor=back)


def strip(values: list[float], *, colour: bool) -> Text:
    """Draw values as one line of cells on a log scale of their own."""
    positive = [v for v in values if math.isfinite(v) and v > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    text = Text()
    for value in values:
        if colour:
            text.append("█", style(magnitude_colour(value, low, high)))
        else:
            text.append(magnitude_mark(value, low, high))
    return text


def scale_line(low: float, high: float, *, colour: bool, width: int = 24) -> Text:
    """Draw the scale: from the smallest to the largest value."""
    text = Text(f"10^{math.log10(low):+.1f} ")
    for i in range(width):
        value = low * (high / low) ** (i / max(width - 1, 1))
        if colour:
            text.append("█", style(magnitude_colour(value, low, high)))
        else:
            text.append(magnitude_mark(value, low, high))
    return text.append(f" 10^{math.log10(high):+.1f}")
