"""Colours of magnitudes in a terminal (viridis, interpolated), and characters for terminals without colour."""

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
# ColorBrewer RdBu (Brewer 2003): blue below 0, red above.
SIGNED = (
    (5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247),
    (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31),
)  # fmt: skip
ZERO, MISSING, NONFINITE = (0, 0, 0), (128, 128, 128), (230, 0, 126)
SHADES = ".:-=+*#%@"
"""Without colour: from small to large."""
BELOW, ABOVE = "DCBA", "abcd"
"""Without colour: from far below 0 to just below it, and from just above 0 to far above it."""

Rgb = tuple[int, int, int]


def magnitude_colour(value: float, low: float, high: float) -> Rgb:
    """Return the colour of a value on a log scale.

    Args:
        value: The magnitude; NaN is missing.
        low: The lower end of the scale, positive.
        high: The upper end of the scale.

    Returns:
        Red, green and blue, 0 to 255.
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return NONFINITE
    if value <= 0:
        return ZERO
    return place_colour(_share(value, low, high))


def place_colour(place: float, *, signed: bool = False) -> Rgb:
    """Return the colour at a position on a scale.

    Args:
        place: The position, 0 to 1.
        signed: Whether the scale is signed; its zero is at 0.5.

    Returns:
        Red, green and blue, 0 to 255.
    """
    colours = SIGNED if signed else VIRIDIS
    at = place * (len(colours) - 1)
    i = min(int(at), len(colours) - 2)
    red, green, blue = (round(a + (b - a) * (at - i)) for a, b in zip(colours[i], colours[i + 1], strict=True))
    return red, green, blue


def place_mark(place: float, *, signed: bool = False) -> str:
    """Return the character at a position on a scale, from light to dense; on a signed scale D to A, a blank, a to d.

    Args:
        place: The position, 0 to 1.
        signed: Whether the scale is signed; its zero is at 0.5.

    Returns:
        One character.
    """
    if not signed:
        return SHADES[round(place * (len(SHADES) - 1))]
    marks = f"{BELOW} {ABOVE}"
    return marks[round(place * (len(marks) - 1))]


def magnitude_mark(value: float, low: float, high: float) -> str:
    """Return the character of a value on a log scale: light to dense; 0 is zero, ? is missing, ! is not finite."""
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "!"
    if value <= 0:
        return "0"
    return place_mark(_share(value, low, high))


def _share(value: float, low: float, high: float) -> float:
    if high <= low:
        return 1.0
    return min(max((math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low)), 0.0), 1.0)


def style(foreground: Rgb, background: Rgb | None = None) -> Style:
    """Return a Rich style with these colours."""
    back = Color.from_rgb(*background) if background else None
    return Style(color=Color.from_rgb(*foreground), bgcolor=back)


def strip(values: list[float], *, colour: bool) -> Text:
    """Draw values as one line of cells, on a log scale from the smallest to the largest.

    Args:
        values: The magnitudes, one cell each.
        colour: Whether colours are shown.

    Returns:
        The line.
    """
    positive = [v for v in values if math.isfinite(v) and v > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    text = Text()
    for value in values:
        if colour:
            text.append("█", style(magnitude_colour(value, low, high)))
        else:
            text.append(magnitude_mark(value, low, high))
    return text


def scale_between(low: str, high: str, *, colour: bool, signed: bool = False, width: int = 24) -> Text:
    """Draw a scale between the labels of its ends.

    Args:
        low: The label of the lower end.
        high: The label of the upper end.
        colour: Whether colours are shown.
        signed: Whether the scale is signed; 0 is in the middle.
        width: Cells of the scale.

    Returns:
        The line.
    """
    text = Text(f"{low} ")
    for i in range(width):
        place = i / max(width - 1, 1)
        if colour:
            text.append("█", style(place_colour(place, signed=signed)))
        else:
            text.append(place_mark(place, signed=signed))
    return text.append(f" {high}")
