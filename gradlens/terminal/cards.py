"""Cards: a frame with the verdict, the reason and the next step; the evidence is printed below a card.

A card fits the window: labels have a column of their own, and texts wrap in the column beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gradlens.diagnosis.kinds import HEALTHY, NOT_KNOWN, UNDECIDED

GOOD, OPEN, BAD = "bold green", "bold yellow", "bold red"
"""Styles of verdicts."""
LABEL_WIDTH = 5


@dataclass(frozen=True)
class Card:
    """The summary of one run or of several.

    Args:
        title: The subject.
        verdict: The verdict, in a word or a sentence.
        style: ``GOOD``, ``OPEN``, ``BAD``, or any style of Rich.
        beside: Facts that follow the verdict in its line.
        lines: Pairs of a label ("why", "next", "also", "check", "note") and a text; a repeated label is printed once.
    """

    title: str
    verdict: str
    style: str = ""
    beside: Sequence[str] = ()
    lines: Sequence[tuple[str, str | Text]] = field(default_factory=tuple)


def print_card(console: Console, card: Card) -> None:
    """Print a card over the whole width of the window."""
    head = Text(card.verdict, card.style)
    for part in card.beside:
        head.append(f" · {part}", style="default")
    body: list[RenderableType] = [head]
    if card.lines:
        body.append(labelled(card.lines))
    title = Text(card.title, style="bold")
    console.print(Panel(Group(*body), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1)))


def labelled(lines: Sequence[tuple[str, str | Text]], *, width: int = LABEL_WIDTH) -> Table:
    """Return a table of labels and texts; the texts wrap in their column.

    Args:
        lines: Pairs of a label and a text; a repeated label is shown once.
        width: Cells of the column of labels.
    """
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
    """Return the style for a kind of diagnosis, or for its verdict."""
    return {HEALTHY: GOOD, UNDECIDED: OPEN, NOT_KNOWN: OPEN}.get(kind, BAD)


def evidence_table(title: str, *, caption: str | None = None) -> Table:
    """Return an empty table in the style of evidence; the caller adds the columns."""
    return Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip


def heading(text: str) -> Text:
    """Return a heading in the style of the titles of tables."""
    return Text(f"\n{text}", style="italic")
