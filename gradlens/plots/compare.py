"""Accuracy and loss of several nets over epochs, and the table of the last one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradlens.analysis.compare import FINAL_ROWS, Group, final_table, group_runs, say_interval
from gradlens.analysis.stats import Interval
from gradlens.errors import ConfigError
from gradlens.plots.style import FAINT, PALETTE, house_style
from gradlens.run import Run

PANELS = (
    ("train_accuracy", "training accuracy"),
    ("val_accuracy", "validation accuracy"),
    ("train_loss", "training loss"),
    ("val_loss", "validation loss"),
)


def draw_compare(runs: Sequence[Run], *, with_report: bool = False) -> Figure:
    """Draw training and validation accuracy and loss over epochs, a line per net, over the table of the last epoch.

    Lines are means over seeds, as long as all of them run, bands their 95 % intervals, thin lines the single seeds.

    Args:
        runs: Runs with a table of epochs.
        with_report: Put the report's own numbers into the table.

    Returns:
        The figure.

    Raises:
        ConfigError: No run has finished an epoch.
    """
    groups = group_runs([run for run in runs if len(run.epochs.get("epoch", ()))])
    if not groups:
        raise ConfigError("nothing to compare: no run has finished an epoch")
    with house_style():
        return _draw(groups, with_report)


def _draw(groups: list[Group], with_report: bool) -> Figure:
    table = final_table(groups, with_report=with_report)
    figure = Figure(figsize=(7.2, 7.0), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 0.68))
    for i, (column, title) in enumerate(PANELS):
        axis = figure.add_subplot(grid[i // 2, i % 2])
        _draw_panel(axis, groups, column)
        axis.set_title(title)
        if i == 0:
            axis.legend(loc="best")
    _draw_table(figure.add_subplot(grid[2, :]), groups, table)
    figure.suptitle(caption(groups), x=0.01, ha="left", fontsize=8)
    return figure


def _draw_panel(axis: Axes, groups: list[Group], column: str) -> None:
    highest = 0.0
    for i, group in enumerate(groups):
        curves = group.curve(column)
        epochs = np.arange(1, curves.shape[1] + 1)
        colour = PALETTE[i % len(PALETTE)]
        dash = ("-", "--", "-.", ":")[(i // len(PALETTE)) % 4]
        stats = group.mean_curve(column)
        whole = np.array([s.n == len(group.runs) for s in stats])  # a mean over fewer seeds is another mean
        mean = np.where(whole, [s.mean for s in stats], np.nan)
        axis.plot(epochs, mean, color=colour, linestyle=dash, label=_label(group))
        if len(group.runs) > 1:
            axis.plot(epochs, curves.T, color=colour, linewidth=0.6, alpha=0.6)
            low, high = ([getattr(s, end) for s in stats] for end in ("low", "high"))
            axis.fill_between(epochs, low, high, where=whole, color=colour, alpha=0.15, linewidth=0)
        highest = max(highest, float(np.max(curves[np.isfinite(curves)], initial=0)))
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(color=FAINT, alpha=0.2, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_ylim(0, 1.02 if "accuracy" in column else 1.05 * highest or 1.0)


def _label(group: Group) -> str:
    seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    return f"{group.label}{seeds}"


def _draw_table(axis: Axes, groups: list[Group], rows: list[dict[str, Any]]) -> None:
    axis.axis("off")
    columns = [key for key in rows[0] if key not in ("quantity", "column")]
    told = {group.label: "\n" + group.say_extent().replace(", ", ",\n") for group in groups}
    table = axis.table(
        cellText=[[_cell(row[key]) for key in columns] for row in rows],
        rowLabels=[row["quantity"] for row in rows],
        colLabels=[column.replace(", ", "\n") + told.get(column, "") for column in columns],
        loc="center",
        cellLoc="center",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    table.scale(1, 1.15)
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0.5)
        cell.set_edgecolor(FAINT)
        if row == 0:
            cell.set_height(2.8 * cell.get_height())
    axis.set_title("last epoch, mean ± standard deviation between seeds", pad=14)


def _cell(value: Interval | float) -> str:
    return say_interval(value) if isinstance(value, Interval) else f"{value:.4g}"


def caption(groups: list[Group]) -> str:
    """Say in a sentence what the figure shows, from the numbers."""
    said = [f"{_label(g)} {say_interval(g.final('val_accuracy'))}" for g in groups]
    bands = ""
    if any(len(g.runs) > 1 for g in groups):
        bands = " Lines: means while all seeds run, with the 95 % interval of the mean; thin: single seeds."
    text = f"{FINAL_ROWS['val_accuracy'].capitalize()} at the end: {'; '.join(said)}.{bands}"
    return "\n".join(textwrap.wrap(text, 125))
