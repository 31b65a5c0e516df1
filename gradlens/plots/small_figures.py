"""Small figures for the cards in a notebook."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradlens.analysis.compare import columns_of
from gradlens.analysis.groups import Group, group_name, group_runs
from gradlens.analysis.parts import by_rows
from gradlens.analysis.profile import typical_held
from gradlens.analysis.stats import median_of_all
from gradlens.charts.curves import make_curves
from gradlens.charts.heatmap import View, common_scale, make_panel
from gradlens.errors import ConfigError
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.plots.compare import draw_curves
from gradlens.plots.figure import CSS_DPI, GradlensFigure
from gradlens.plots.panels import MOST_SEEN, draw_colour_bar, draw_key, draw_panel
from gradlens.plots.profile import curve_handles, draw_curve, dress_axis, find_floor
from gradlens.plots.style import THEMES, Look, PlainPowers, house_style, looks_of
from gradlens.run import FloatArray, Run

COLUMNS = 400
"""Most columns of the small heatmap; more would not be seen at its width."""
HEIGHT_IN, WIDTH_IN = 2.5, 7.2
BESIDE_IN = 1.7
"""Width of the layer names and the colour bar beside a small heatmap."""
PROFILES_IN = 4.8
"""Width of the profiles, and of a heatmap for a telephone, which shows them and their legend without scrolling."""
ROW_IN = 0.18
"""Height of a row of the legend."""
MOST_ENTRIES = 14
"""Most entries of the legend below the profiles."""
MOST_GROUPS = 7
MOST_PANELS = 4
"""As many as there are colours in the palette."""
HIGH = 10
"""A loss whose highest value is this many times its median gets a log scale."""


def draw_small_heatmap(run: Run, metric: str, width_in: float = WIDTH_IN) -> GradlensFigure:
    """Draw a metric of a run as layers by steps; in a long run each column is a chunk of rows.

    Args:
        run: The run.
        metric: The metric's name.
        width_in: Width of the figure in inches.

    Returns:
        The figure.

    Raises:
        ConfigError: The run lacks the metric, or has no row of it yet.
    """
    panel = make_panel(run, View(metric), columns=COLUMNS, most_layers=MOST_SEEN)
    if panel.is_empty or np.isnan(panel.drawn).all():
        raise ConfigError(f"no row of {metric} has been recorded yet")
    with house_style():
        figure = GradlensFigure(figsize=(width_in, HEIGHT_IN), layout="constrained")
        axis, scale = figure.add_subplot(), common_scale([panel])
        gap = len(panel.layers) * 0.115 / (HEIGHT_IN - 0.9)
        along = width_in - BESIDE_IN
        draw_panel(axis, panel, scale, labels=True, least_gap=gap, inches=width_in, along=along)
        draw_colour_bar(figure, axis, [panel], scale, below=False, inches=HEIGHT_IN - 0.7)
        draw_key(figure, [panel])
    return figure


def _is_unknown(rows: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(rows).all(axis=1))


def draw_answer(runs: Sequence[Run], width_in: float = WIDTH_IN) -> GradlensFigure | None:
    """Draw the figure of a report's first screen: the heatmap of one run, or the profiles of several.

    Args:
        runs: The runs.
        width_in: Width of a heatmap in inches.

    Returns:
        The figure, without a caption; None where nothing is recorded.
    """
    measured = [run for run in runs if len(run.steps) and ACTIVATION_GRAD_NORM in run.metrics]
    measured = [run for run in measured if not by_rows(_is_unknown, typical_held(run, ACTIVATION_GRAD_NORM)).all()]
    if not measured:
        return None
    return (
        draw_small_heatmap(measured[0], ACTIVATION_GRAD_NORM, width_in)
        if len(measured) == 1
        else _draw_profiles(measured)
    )


def _draw_profiles(runs: Sequence[Run]) -> GradlensFigure:
    curves = make_curves(runs, ACTIVATION_GRAD_NORM)
    looks = looks_of([group_name(curve.runs[0]) for curve in curves])
    with house_style():
        handles = curve_handles(curves)[:MOST_ENTRIES]
        height = HEIGHT_IN + ROW_IN * -(-len(handles) // 2)
        figure = GradlensFigure(figsize=(PROFILES_IN, height), layout="constrained")
        axis = figure.add_subplot()
        for curve, line in zip(curves, looks, strict=True):
            draw_curve(axis, curve, *line, floor=find_floor(curves))
        axis.set_title("gradient norm over depth, median over rows", fontweight="bold")
        axis.set_ylabel("log10")
        dress_axis(axis, curves, PROFILES_IN - 0.5)
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


def svg(figure: GradlensFigure, runs: Sequence[Run]) -> str:
    """Return a figure as SVG for a page: text and background take the page's colours, lines those of its theme.

    Args:
        figure: A figure in the light theme.
        runs: Its runs.

    Returns:
        The element, without metadata.
    """
    out = io.StringIO()
    with house_style():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, dpi=CSS_DPI * 2)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    theme = THEMES["light"]
    for colour, name in ((theme.ink, "ink"), (theme.faint, "faint"), (theme.paper, "paper")):
        text = re.sub(rf"((?:fill|stroke): ?){colour}\b", rf"\1var(--{name})", text, flags=re.IGNORECASE)
    for light, dark in _both_themes(runs):
        text = re.sub(rf"((?:fill|stroke): ?){light}\b", rf"\1light-dark({light}, {dark})", text, flags=re.IGNORECASE)
    attributes = 'focusable="false" aria-hidden="true" preserveAspectRatio="xMinYMid meet"'
    return text.replace("<svg ", f"<svg {attributes} ", 1)


def _both_themes(runs: Sequence[Run]) -> set[tuple[str, str]]:
    """Return the colours of runs in the light and in the dark theme."""
    names = [group.model for group in group_runs(list(runs))]
    with house_style(Look("light")):
        light = looks_of(names)
    with house_style(Look("dark")):
        dark = looks_of(names)
    return {(one, other) for (one, _), (other, _) in zip(light, dark, strict=True)}


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
    if "loss" not in column or not len(values) or values.max() < HIGH * median_of_all(values):
        return ""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(PlainPowers())
    axis.yaxis.set_minor_formatter(PlainPowers(labelOnlyBase=False))
    axis.set_ylim(values.min() / 1.2, values.max() * 1.2)
    return ", log scale"
