"""Small figures for the cards in a notebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from gradlens.analysis.compare import columns_of
from gradlens.analysis.groups import Group
from gradlens.charts.heatmap import View, common_scale, make_panel
from gradlens.errors import ConfigError
from gradlens.plots.compare import draw_curves
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.panels import draw_colour_bar, draw_key, draw_panel
from gradlens.plots.style import PlainPowers, house_style
from gradlens.run import Run

COLUMNS = 400
"""Most columns of the small heatmap; more would not be seen at its width."""
HEIGHT_IN, WIDTH_IN = 2.5, 7.2
MOST_GROUPS = 7
MOST_PANELS = 4
"""As many as there are colours in the palette."""
HIGH = 10
"""A loss whose highest value is this many times its median gets a log scale."""


def draw_small_heatmap(run: Run, metric: str) -> GradlensFigure:
    """Draw a metric of a run as layers by steps; in a long run each column is a chunk of rows.

    Args:
        run: The run.
        metric: The metric's name.

    Returns:
        The figure.

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
    """Draw accuracy and loss over epochs, or logged scalars over steps, at most four panels in a row.

    Args:
        groups: Groups of runs; at most the first ``MOST_GROUPS`` are drawn.

    Returns:
        The figure.

    Raises:
        ConfigError: No run has finished an epoch.
    """
    shown = [group for group in groups if len(group.positions)][:MOST_GROUPS]
    if not shown:
        raise ConfigError("no run has finished an epoch")
    with house_style():
        figure = GradlensFigure(figsize=(9.6, 2.2 + 0.16 * -(-len(shown) // 2)), layout="constrained")
        titles = list(columns_of(shown).items())[:MOST_PANELS]
        axes = figure.subplots(1, len(titles), squeeze=False)[0]
        for axis, (column, title) in zip(axes, titles, strict=True):
            draw_curves(axis, shown, column)
            axis.set_title(title + _use_log_scale(axis, shown, column))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2 if len(shown) > 1 else 1)
    return figure


def _use_log_scale(axis: Axes, groups: Sequence[Group], column: str) -> str:
    """Use a log scale for a loss that began far above its later values; return what to add to the title."""
    values = np.concatenate([group.curve(column).ravel() for group in groups])
    values = values[np.isfinite(values) & (values > 0)]
    if "loss" not in column or not len(values) or values.max() < HIGH * np.median(values):
        return ""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(PlainPowers())
    axis.yaxis.set_minor_formatter(PlainPowers(labelOnlyBase=False))
    axis.set_ylim(values.min() / 1.2, values.max() * 1.2)
    return ", log scale"
