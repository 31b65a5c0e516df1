"""A comparison of runs in a terminal: the table of the last epoch, and curves over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.console import Group as RichGroup
from rich.table import Table
from rich.text import Text

from gradlens.analysis.compare import FINAL_ROWS, Group, Reference, final_table, find_lead, say_interval
from gradlens.analysis.stats import Interval
from gradlens.format import brackets, plural
from gradlens.run import FloatArray
from gradlens.terminal.cards import GOOD, OPEN, Card, evidence_table, heading, print_card
from gradlens.terminal.console import has_colour
from gradlens.terminal.panels import curve_legend, curve_panel, panel_width, side_by_side

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_LINES = 6


def print_compare(console: Console, groups: list[Group], references: Sequence[Reference] = ()) -> None:
    """Print which group is ahead, the table of the last epoch, and the curves of all groups for each quantity.

    Args:
        console: The console to print to.
        groups: The groups of runs.
        references: Published numbers to add to the table.
    """
    rows = final_table(groups, references)
    print_card(console, compare_card(groups))
    console.print(_table(groups, rows))
    console.print(heading("Over epochs, mean over seeds"))
    console.print(_panels(console, groups) if has_colour(console) else _curves(console, groups))


def compare_card(groups: list[Group]) -> Card:
    """Return the card: which group is ahead, by how much, and whether more than one seed shows it."""
    runs = sum(len(group.runs) for group in groups)
    title = f"{plural(runs, 'run')} in {plural(len(groups), 'group')}"
    lead = find_lead(groups)
    if lead is None:
        known = groups[0].final("val_accuracy")
        result = f"validation accuracy {say_interval(known)}" if known.n else "no accuracy is known"
        todo = "add runs of another model to compare with"
        return Card(title, f"{groups[0].label}: {result}", OPEN, (), [("next", todo)])
    best, other, gap = lead.best, lead.other, lead.difference
    quantity = FINAL_ROWS[lead.column]
    why = (
        f"{quantity} after the last epoch: {say_interval(best.final(lead.column))} against "
        f"{say_interval(other.final(lead.column))}, a difference of {gap.mean:+.3f}"
    )
    if gap.n > 1:
        why += f"{brackets(gap.low, gap.high, sign=True)} (Welch's 95 % interval over seeds)"
    if lead.is_shown:
        verdict, style = f"{best.label} is ahead of {other.label} in {quantity}", GOOD
        todo = "gradlens diagnose finds the problems of each run, gradlens heatmap and gradlens profile show them"
    elif gap.n > 1:
        verdict, style = f"{best.label} and {other.label}: no difference in {quantity} is shown", OPEN
        todo = "more seeds narrow the interval: gradlens run MODEL --seeds 0-9"
    else:
        verdict, style = f"{best.label} is ahead of {other.label} in {quantity}, by one seed only", OPEN
        todo = "train more seeds to find out whether the difference is due to the seed: gradlens run MODEL --seeds 0-4"
    lines = [("why", why), ("next", todo)]
    if len(groups) > 2:
        lines.insert(1, ("", f"these are the two best of {len(groups)} groups; the table shows all"))
    return Card(title, verdict, style, (), lines)


def _table(groups: list[Group], rows: list[dict[str, Any]]) -> Table:
    """Return a row per group and a column per quantity, so that any number of groups fits 80 columns."""
    table = evidence_table("Last epoch")
    table.add_column("", min_width=16)
    for row in rows:
        table.add_column(row["quantity"].replace(" ", "\n"), justify="right", no_wrap=True)
    extents = {group.label: f"\n{group.say_extent()}" for group in groups}
    for key in rows[0]:
        if key not in ("quantity", "column"):
            table.add_row(Text(key + extents.get(key, "")), *[_cell(row[key]) for row in rows])
    if any(len(group.runs) > 1 for group in groups):
        table.caption = "mean ± standard deviation between seeds; second line: 95 % interval of the mean"
    return table


def _cell(value: Interval | float) -> str:
    if not isinstance(value, Interval):
        return f"{value:.4g}"
    interval = f"\n{value.low:.2f} to {value.high:.2f}" if value.n > 1 else ""
    return say_interval(value) + interval


def _panels(console: Console, groups: list[Group]) -> RenderableType:
    """Return a panel per quantity, with a curve per group."""
    width = panel_width(console, len(FINAL_ROWS))
    panels = []
    for column, title in FINAL_ROWS.items():
        curves = [(group.label, _mean_curve(group, column)) for group in groups]
        panels.append(curve_panel(title, curves, width, CURVE_LINES, colour=True, named=False))
    return RichGroup(curve_legend([group.label for group in groups]), side_by_side(console, panels, width))


def _mean_curve(group: Group, column: str) -> FloatArray:
    return np.array([interval.mean for interval in group.mean_curve(column)])


def _curves(console: Console, groups: list[Group]) -> Table:
    """Return a line per quantity and group, for terminals without colour."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    ends = 18
    label = min(max(len(group.label) for group in groups), max(console.width - 20 - ends - 12, 12), 44)
    width = max(console.width - 20 - label - ends - 4, 8)
    for column, title in FINAL_ROWS.items():
        curves = [_mean_curve(group, column) for group in groups]
        known = np.concatenate(curves) if curves else np.empty(0)
        known = known[np.isfinite(known)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for i, (group, curve) in enumerate(zip(groups, curves, strict=True)):
            ends_text = f"{curve[0]:.3f} -> {curve[-1]:.3f}" if len(curve) else ""
            name = Text(group.label)
            name.truncate(label, overflow="ellipsis")
            table.add_row(Text(title if i == 0 else ""), name, Text(spark(curve, low, high, width)), ends_text)
    return table


def spark(curve: FloatArray, low: float, high: float, width: int) -> str:
    """Draw a curve as block characters of eight heights.

    Args:
        curve: (E,) values over epochs; NaN is a gap.
        low: The value of the lowest block.
        high: The value of the highest block.
        width: Most cells.

    Returns:
        The characters.
    """
    if len(curve) > width:
        curve = curve[np.linspace(0, len(curve) - 1, width).round().astype(int)]
    elif len(curve):
        curve = np.repeat(curve, width // len(curve))
    span = high - low if high > low else 1.0
    return "".join(
        BLOCKS[min(max(round((value - low) / span * 7), 0), 7)] if np.isfinite(value) else " " for value in curve
    )
