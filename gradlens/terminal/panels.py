"""Curves over epochs in braille, in panels beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from gradlens.run import FloatArray
from gradlens.terminal.braille import braille, stretched

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
        title: What they all are.
        curves: Names and (E,) values; NaN is a gap.
        width: Columns for the whole.
        height: Lines for the curves.
        colour: Whether colours are seen.
        named: Whether names stand above, and not the values alone; ``curve_legend`` tells the names of several panels.
    """
    known = np.concatenate([values[np.isfinite(values)] for _, values in curves]) if curves else np.empty(0)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    log = low > 0 and high / low > 8
    scaled = [np.log10(values) if log else values for _, values in curves]
    floor, ceiling = (float(np.log10(low)), float(np.log10(high))) if log else (low, high)
    head = Text(title, style="bold")
    for i, (name, values) in enumerate(curves):
        look = _look(i, colour)
        if named:
            head.append(f"  {name}", look)
        head.append(f" {_last(values)}", "default" if named else look)
    head.truncate(width, overflow="ellipsis")
    axis = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}{' log' if log else ''}"][:height]
    gutter = max(map(len, axis))
    cells = max(width - gutter - 1, 8)
    characters, owner = braille([stretched(values, 2 * cells) for values in scaled], floor, ceiling, cells, height)
    lines = [head]
    for place, row, owners in zip(axis, characters.tolist(), owner.tolist(), strict=True):
        line = Text(f"{place:>{gutter}} ", style="dim")
        for char, number in zip(row, owners, strict=True):
            line.append(chr(char), _look(number, colour))
        lines.append(line)
    return Text("\n").join(lines)


def _look(number: int, colour: bool) -> str:
    return CURVE_STYLES[number % len(CURVE_STYLES)] if colour else "default"


def curve_legend(names: Sequence[str]) -> Text:
    """Return the names of curves in their colours."""
    text = Text()
    for i, name in enumerate(names):
        text.append(f"{'   ' if i else ''}━ {name}", _look(i, True))
    return text


def _last(values: FloatArray) -> str:
    known = values[np.isfinite(values)]
    return f"{known[-1]:.4g}" if len(known) else "-"


def side_by_side(console: Console, panels: Sequence[RenderableType], width: int) -> RenderableType:
    """Put panels of a width beside each other, as many as the window holds."""
    across = max((console.width + 3) // (width + 3), 1)
    grid = Table.grid(padding=(0, 3, 0, 0), pad_edge=False)
    for _ in range(across):
        grid.add_column(width=width, no_wrap=True)
    for start in range(0, len(panels), across):
        grid.add_row(*panels[start : start + across])
    return grid


def panel_width(console: Console, count: int) -> int:
    """Return how wide each of so many panels is: two beside each other from 76 columns on."""
    across = 1 if console.width < 76 or count < 2 else 2
    return (console.width - 3 * (across - 1)) // across
