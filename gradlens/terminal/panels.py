"""Curves over epochs in braille characters, in panels side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from gradlens.run import FloatArray
from gradlens.terminal.braille import braille, stretched

POINT_DOTS = 4
"""Dots of the only value of a curve, two cells wide."""
CURVE_STYLES = ("dark_orange3", "deep_sky_blue1", "dark_cyan", "orange1", "pink3", "sky_blue2", "default")


def curve_panel(
    title: str,
    curves: Sequence[tuple[str, FloatArray]],
    width: int,
    height: int,
    *,
    colour: bool,
    named: bool = True,
) -> RenderableType:
    """Draw curves over epochs in braille, with their names and last values above.

    Args:
        title: The quantity.
        curves: Names and (E,) values over epochs; NaN is a gap.
        width: Cells of the panel.
        height: Lines of the curves.
        colour: Whether colours are shown.
        named: Whether the names are shown above; otherwise ``curve_legend`` shows them for several panels.

    Returns:
        The panel, ``height + 1`` lines.
    """
    known = np.concatenate([values[np.isfinite(values)] for _, values in curves]) if curves else np.empty(0)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    log = low > 0 and high / low > 8
    scaled = [np.log10(values) if log else values for _, values in curves]
    floor, ceiling = (float(np.log10(low)), float(np.log10(high))) if log else (low, high)
    head = Text(title, style="bold")
    for i, (name, values) in enumerate(curves):
        curve_style = _curve_style(i, colour)
        if named:
            head.append(f"  {name}", curve_style)
        head.append(f" {_last(values)}", "default" if named else curve_style)
    head.truncate(width, overflow="ellipsis")
    axis = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}{' log' if log else ''}"][:height]
    gutter = max(map(len, axis))
    cells = max(width - gutter - 1, 8)
    # A single value is a point, not a line over the whole panel that would claim more values.
    dots = [stretched(values, 2 * cells) if len(values) != 1 else np.repeat(values, POINT_DOTS) for values in scaled]
    characters, numbers = braille([_padded(values, 2 * cells) for values in dots], floor, ceiling, cells, height)
    lines = [head]
    for label, row, row_numbers in zip(axis, characters.tolist(), numbers.tolist(), strict=True):
        line = Text(f"{label:>{gutter}} ", style="dim")
        for char, number in zip(row, row_numbers, strict=True):
            line.append(chr(char), _curve_style(number, colour))
        lines.append(line)
    return Text("\n").join(lines)


def _padded(values: FloatArray, length: int) -> FloatArray:
    return np.append(values, np.full(max(length - len(values), 0), np.nan))


def _curve_style(number: int, colour: bool) -> str:
    return CURVE_STYLES[number % len(CURVE_STYLES)] if colour else "default"


def curve_legend(names: Sequence[str]) -> Text:
    """Return the names of curves in their colours."""
    text = Text()
    for i, name in enumerate(names):
        text.append(f"{'   ' if i else ''}━ {name}", _curve_style(i, True))
    return text


def _last(values: FloatArray) -> str:
    known = values[np.isfinite(values)]
    return f"{known[-1]:.4g}" if len(known) else "-"


def side_by_side(console: Console, panels: Sequence[RenderableType], width: int) -> RenderableType:
    """Put panels side by side, as many as the window holds.

    Args:
        console: The console.
        panels: The panels.
        width: Cells of each panel.

    Returns:
        The rows of panels.
    """
    across = max((console.width + 3) // (width + 3), 1)
    grid = Table.grid(padding=(0, 3, 0, 0), pad_edge=False)
    for _ in range(across):
        grid.add_column(width=width, no_wrap=True)
    for start in range(0, len(panels), across):
        grid.add_row(*panels[start : start + across])
    return grid


def panel_width(console: Console, count: int) -> int:
    """Return the width of each of ``count`` panels, in cells: two panels side by side from 76 columns on."""
    across = 1 if console.width < 76 or count < 2 else 2
    return (console.width - 3 * (across - 1)) // across
