"""Runs side by side in a terminal: the table of the last epoch, and curves over epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlens.analysis.compare import FINAL_ROWS, Group, final_table, say_interval
from gradlens.analysis.stats import Interval
from gradlens.run import FloatArray
from gradlens.terminal.console import has_colour

BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = ("dark_orange3", "deep_sky_blue4", "dark_cyan", "orange1", "pink3", "sky_blue2", "default")


def print_compare(console: Console, groups: list[Group], *, with_report: bool = False) -> None:
    """Print the table of the last epoch and, per quantity, each group's curve on one scale."""
    rows = final_table(groups, with_report=with_report)
    console.print(_table(groups, rows))
    console.print(_curves(console, groups))


def _table(groups: list[Group], rows: list[dict[str, Any]]) -> Table:
    """Return a row per group and a column per quantity: so any number of groups fits 80 columns."""
    table = Table(title="Last epoch", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", min_width=16)
    for row in rows:
        table.add_column(row["quantity"].replace(" ", "\n"), justify="right", no_wrap=True)
    told = {group.label: f"\n{group.say_extent()}" for group in groups}
    for key in rows[0]:
        if key not in ("quantity", "column"):
            table.add_row(Text(key + told.get(key, "")), *[_cell(row[key]) for row in rows])
    if any(len(group.runs) > 1 for group in groups):
        table.caption = "mean ± standard deviation between seeds; below it the 95 % interval of the mean"
    return table


def _cell(value: Interval | float) -> str:
    if not isinstance(value, Interval):
        return f"{value:.4g}"
    interval = f"\n{value.low:.2f} to {value.high:.2f}" if value.n > 1 else ""
    return say_interval(value) + interval


def _curves(console: Console, groups: list[Group]) -> Table:
    table = Table(
        title="Over epochs, mean over seeds",
        title_justify="left",
        box=None,
        pad_edge=False,
        show_header=False,
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    width = max(console.width - 62, 12)
    for column, title in FINAL_ROWS.items():
        curves = [np.array([interval.mean for interval in group.mean_curve(column)]) for group in groups]
        known = np.concatenate(curves) if curves else np.empty(0)
        known = known[np.isfinite(known)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for i, (group, curve) in enumerate(zip(groups, curves, strict=True)):
            colour = COLOURS[i % len(COLOURS)] if has_colour(console) else ""
            ends = f"{curve[0]:.3f} -> {curve[-1]:.3f}" if len(curve) else ""
            label = Text(f"{title if i == 0 else '':<20}{group.label}"[:44])
            table.add_row(label, Text(spark(curve, low, high, width), style=colour), ends)
    return table


def spark(curve: FloatArray, low: float, high: float, width: int) -> str:
    """Draw a curve as blocks of eight heights, as wide as fits; a gap where a value is missing."""
    if len(curve) > width:
        curve = curve[np.linspace(0, len(curve) - 1, width).round().astype(int)]
    elif len(curve):
        curve = np.repeat(curve, min(width // len(curve), 3))
    span = high - low if high > low else 1.0
    return "".join(
        BLOCKS[min(max(round((value - low) / span * 7), 0), 7)] if np.isfinite(value) else " " for value in curve
    )
