"""Cards in one manner: the verdict, why, what to do next; below a card comes its evidence.

A card fits the window: labels stand in a column of their own, and what they say wraps beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gradlens.analysis.findings import HEALTHY, UNDECIDED
from gradlens.run import FloatArray
from gradlens.terminal.braille import braille, stretched

GOOD, OPEN, BAD = "bold green", "bold yellow", "bold red"
"""Styles of verdicts."""
CURVE_STYLES = ("dark_orange3", "deep_sky_blue1", "dark_cyan", "orange1", "pink3", "sky_blue2", "default")
LABEL_WIDTH = 5


@dataclass(frozen=True)
class Card:
    """What is said first of a run, or of several.

    Args:
        title: What it is about.
        verdict: The answer, in a word or a sentence.
        style: ``GOOD``, ``OPEN``, ``BAD``, or any of Rich's.
        beside: Facts that stand behind the verdict, in its line.
        lines: Label ("why", "next", "also", "note") and text, in order; a label that repeats is written once.
    """

    title: str
    verdict: str
    style: str = ""
    beside: Sequence[str] = ()
    lines: Sequence[tuple[str, str]] = field(default_factory=tuple)


def print_card(console: Console, card: Card) -> None:
    """Print a card over the whole width."""
    head = Text(card.verdict, card.style)
    for part in card.beside:
        head.append(f" · {part}", style="default")
    body: list[RenderableType] = [head]
    if card.lines:
        body.append(labelled(card.lines))
    title = Text(card.title, style="bold")
    console.print(Panel(Group(*body), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1)))


def labelled(lines: Sequence[tuple[str, str | Text]], *, width: int = LABEL_WIDTH) -> Table:
    """Return texts with a label before each; they wrap beside it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    before = ""
    for label, text in lines:
        dim = "dim" if label == "note" else ""
        grid.add_row(
            Text(label if label != before else "", style="dim"), Text(text, dim) if isinstance(text, str) else text
        )
        before = label
    return grid


def verdict_style(kind: str) -> str:
    """Return the style of a diagnosis' kind."""
    return {HEALTHY: GOOD, UNDECIDED: OPEN}.get(kind, BAD)


def evidence_table(title: str, *, caption: str | None = None) -> Table:
    """Return an empty table of evidence; its columns are added by the caller."""
    return Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip


def heading(text: str) -> Text:
    """Return the line above evidence that is no table, as it stands above tables."""
    return Text(f"\n{text}", style="italic")


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
