"""Small figures, that stand inside a card of a notebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from gradlens.analysis.compare import FINAL_ROWS, Group
from gradlens.charts.heatmap import View, common_scale, make_panel
from gradlens.errors import ConfigError
from gradlens.plots.compare import draw_curves
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.panels import draw_colour_bar, draw_key, draw_panel
from gradlens.plots.style import house_style
from gradlens.run import Run

COLUMNS = 400
HEIGHT_IN, WIDTH_IN = 2.5, 7.2
MOST_GROUPS = 7
HIGH = 10
"""So many times its median is a loss that would press all others to the floor."""


def draw_small_heatmap(run: Run, metric: str) -> GradlensFigure:
    """Draw a metric of a run as layers by steps; of a long run, blocks of rows are read and no more.

    Raises:
        ConfigError: The run lacks the metric, or has no row of it yet.
    """
    panel = make_panel(run, View(metric), columns=COLUMNS)
    if panel.is_empty or np.isnan(panel.drawn).all():
        raise ConfigError(f"no row of {metric} has been recorded yet")
    with house_style():
        figure = GradlensFigure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        axis, scale = figure.add_subplot(), common_scale([panel])
        gap = len(panel.layers) * 0.115 / (HEIGHT_IN - 0.9)
        draw_panel(axis, panel, scale, labels=True, least_gap=gap, inches=WIDTH_IN)
        draw_colour_bar(figure, axis, [panel], scale, below=False, inches=HEIGHT_IN - 0.7)
        draw_key(figure, [panel])
    return figure


def draw_small_curves(groups: Sequence[Group]) -> GradlensFigure:
    """Draw accuracy and loss over epochs, four panels in a row; of many groups the first.

    Raises:
        ConfigError: None has finished an epoch.
    """
    shown = [group for group in groups if group.curve("epoch").shape[1]][:MOST_GROUPS]
    if not shown:
        raise ConfigError("no run has finished an epoch")
    with house_style():
        figure = GradlensFigure(figsize=(9.6, 2.2 + 0.16 * -(-len(shown) // 2)), layout="constrained")
        axes = figure.subplots(1, len(FINAL_ROWS))
        for axis, (column, title) in zip(axes, FINAL_ROWS.items(), strict=True):
            draw_curves(axis, shown, column)
            axis.set_title(title + _bend(axis, shown, column))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2 if len(shown) > 1 else 1)
    return figure


def _bend(axis: Axes, groups: Sequence[Group], column: str) -> str:
    """Scale a loss that began high above where it went on by its logarithm, and say so."""
    values = np.concatenate([group.curve(column).ravel() for group in groups])
    values = values[np.isfinite(values) & (values > 0)]
    if "loss" not in column or not len(values) or values.max() < HIGH * np.median(values):
        return ""
    axis.set_yscale("log")
    axis.set_ylim(values.min() / 1.2, values.max() * 1.2)
    return ", log scale"
