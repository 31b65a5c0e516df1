"""A comparison of runs in a terminal: a table, and curves over epochs or steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.console import Group as RichGroup
from rich.table import Table
from rich.text import Text

from gradlens.analysis.compare import (
    Comparison,
    Reference,
    are_equally_long,
    columns_of,
    final_table,
    find_lead,
    say_end,
    say_interval,
)
from gradlens.analysis.groups import Group
from gradlens.analysis.stats import Interval
from gradlens.format import brackets, plural, say_decimals
from gradlens.run import FloatArray
from gradlens.terminal.cards import BAD, GOOD, OPEN, Card, evidence_table, heading, print_card
from gradlens.terminal.console import has_colour
from gradlens.terminal.panels import curve_legend, curve_panel, panel_width, side_by_side

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_LINES = 6
MOST_QUANTITIES = 6
"""More columns than these do not fit into 80 characters."""
MORE_TRAINING = "longer training may show a difference; gradlens diagnose finds a run that does not learn"
POINT = 2
"""Cells of a curve of a single epoch."""
LOG_MORE = "recorder.log(loss=loss) in each run makes them comparable"
OWN_SEEDS = 'gradlens.record(..., info={"model": NAME, "seed": N}) puts the seeds of a model together'


def print_compare(console: Console, comparison: Comparison, references: Sequence[Reference] = ()) -> None:
    """Print in what runs are unequal, which group is ahead, a table, and the curves of all groups for each quantity.

    Args:
        console: The console to print to.
        comparison: The groups of runs.
        references: Published numbers to add to the table.
    """
    groups = list(comparison.groups)
    if comparison.unequal:
        console.print(Text("Not equal: " + "; ".join(comparison.unequal), style="yellow"))
    rows = final_table(groups, references)
    shown = rows[:MOST_QUANTITIES]
    print_card(console, compare_card(groups))
    console.print(_table(groups, shown, say_end(groups).capitalize()))
    if not are_equally_long(groups):
        own = final_table(groups, own=True)[:MOST_QUANTITIES]
        console.print(_table(groups, own, f"Each run's own last {comparison.unit}"))
    if len(rows) > len(shown):
        more = ", ".join(row["quantity"] for row in rows[MOST_QUANTITIES:])
        console.print(Text(f"not shown, but in --format json: {more}", style="dim"))
    console.print(heading(_say_curves(groups)))
    titles = {row["column"]: row["quantity"] for row in shown}
    console.print(_panels(console, groups, titles) if has_colour(console) else _curves(console, groups, titles))


def _say_curves(groups: list[Group]) -> str:
    """Return the heading of the curves: over what they are, and how they are smoothed."""
    mean = ", mean over seeds" if any(len(group.runs) > 1 for group in groups) else ""
    window = groups[0].window
    if window is None:
        return f"Over epochs{mean}"
    smooth = f"; smoothed: each value is the mean of the last {window.width:,} steps" if window.width > 1 else ""
    return f"Over steps{mean}{smooth}"


def compare_card(groups: list[Group]) -> Card:
    """Return the card: which group is ahead, by how much, and whether more than one seed shows it."""
    runs = sum(len(group.runs) for group in groups)
    title = f"{plural(runs, 'run')} in {plural(len(groups), 'group')}"
    lead = find_lead(groups)
    if lead is None:
        titles = columns_of(groups)
        column = "val_accuracy" if "val_accuracy" in titles else next(iter(titles))
        known = groups[0].final(column)
        result = f"{titles[column]} {say_interval(known)}" if known.n else f"no {titles[column]} is known"
        todo = "add runs of another model to compare with"
        ends = [(name, group.label, group.final(column)) for column, name in titles.items() for group in groups]
        broken = [f"{name} of {label} is not finite" for name, label, end in ends if not end.n and end.left_out]
        if broken:
            return Card(title, broken[0], BAD, (), [("next", "gradlens diagnose finds the step and the cause")])
        if len(groups) > 1:
            return Card(title, "no accuracy or loss is known of two groups", OPEN, (), [("next", LOG_MORE)])
        return Card(title, f"{groups[0].label}: {result}", OPEN, (), [("next", todo)])
    best, other, gap = lead.best, lead.other, lead.difference
    quantity = columns_of(groups)[lead.column]
    why = (
        f"{quantity} at {_the(say_end(groups))}: {say_interval(best.final(lead.column))} against "
        f"{say_interval(other.final(lead.column))}, a difference of {say_decimals(gap.mean, sign=True)}"
    )
    if gap.n > 1:
        why += f"{brackets(gap.low, gap.high, sign=True)} (Welch's 95 % interval over seeds)"
    if lead.is_shown:
        verdict, style = f"{best.label} is ahead of {other.label} in {quantity}", GOOD
        todo = "gradlens diagnose finds the problems of each run, gradlens heatmap and gradlens profile show them"
    elif gap.mean == 0:
        verdict, style, todo = lead.say_equal(quantity), OPEN, MORE_TRAINING
    elif gap.n > 1:
        verdict, style = f"{best.label} and {other.label}: no difference in {quantity} is shown", OPEN
        todo = f"more seeds narrow the interval: {_more_seeds(best, other, '0-9')}"
    else:
        verdict, style = f"{best.label} is ahead of {other.label} in {quantity}, by {lead.say_runs()}", OPEN
        more = _more_seeds(best, other, "0-4")
        todo = f"train more seeds to find out whether the difference is due to the seed: {more}"
    lines = [("why", why), ("next", todo)]
    if len(groups) > (shown := max(len(lead.tied), 2)):
        best_ones = "two" if shown == 2 else str(shown)
        lines.insert(1, ("", f"these are the {best_ones} best of {len(groups)} groups; the table shows all"))
    return Card(title, verdict, style, (), lines)


def _more_seeds(best: Group, other: Group, seeds: str) -> str:
    """Return how to train more seeds: by the command, or in the loop of one's own that recorded the runs."""
    own = any("recipe" not in run.config for group in (best, other) for run in group.runs)
    return OWN_SEEDS if own else f"gradlens run MODEL --seeds {seeds}"


def _the(end: str) -> str:
    return f"the {end}" if end.startswith("last") else end


def _table(groups: list[Group], rows: list[dict[str, Any]], title: str) -> Table:
    """Return a row per group and a column per quantity, so that any number of groups fits 80 columns."""
    table = evidence_table(title)
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
        return "-" if math.isnan(value) else f"{value:.4g}"
    interval = f"\n{value.low:.2f} to {value.high:.2f}" if value.n > 1 else ""
    return say_interval(value) + interval


def _panels(console: Console, groups: list[Group], titles: Mapping[str, str]) -> RenderableType:
    """Return a panel per quantity, with a curve per group."""
    width = panel_width(console, len(titles))
    panels = []
    for column, title in titles.items():
        labels = [group.label for group in groups]
        curves = list(zip(labels, _mean_curves(groups, column), strict=True))
        panels.append(curve_panel(title, curves, width, CURVE_LINES, colour=True, named=False))
    return RichGroup(curve_legend([group.label for group in groups]), side_by_side(console, panels, width))


def _mean_curves(groups: list[Group], column: str) -> list[FloatArray]:
    """Return the mean curve of each group, all equally long: NaN where a group ended earlier."""
    curves = [np.array([interval.mean for interval in group.mean_curve(column)]) for group in groups]
    length = max(map(len, curves), default=0)
    return [np.append(curve, np.full(length - len(curve), np.nan)) for curve in curves]


def _curves(console: Console, groups: list[Group], titles: Mapping[str, str]) -> Table:
    """Return a line per quantity and group, for terminals without colour."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    ends = 20
    label = min(max(len(group.label) for group in groups), max(console.width - 20 - ends - 12, 12), 44)
    width = max(console.width - 20 - label - ends - 4, 8)
    for column, title in titles.items():
        curves = _mean_curves(groups, column)
        known = np.concatenate(curves) if curves else np.empty(0)
        known = known[np.isfinite(known)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for i, (group, curve) in enumerate(zip(groups, curves, strict=True)):
            seen = curve[np.isfinite(curve)]
            ends_text = f"{say_decimals(seen[0])} -> {say_decimals(seen[-1])}" if len(seen) else "-"
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
        curve = np.repeat(curve, POINT if len(curve) == 1 else width // len(curve))
    span = high - low if high > low else 1.0
    return "".join(
        BLOCKS[min(max(round((value - low) / span * 7), 0), 7)] if np.isfinite(value) else " " for value in curve
    )
