"""The heatmap: layers by steps, so that one sees where the gradient goes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradlens.analysis.compare import label_runs
from gradlens.analysis.profile import (
    ACTIVATION_GRAD,
    HeatMatrix,
    depth_profile,
    end_to_end,
    epoch_starts,
    find_stages,
    heat_matrix,
    positive_range,
    rows_within,
    say_end_to_end,
    say_layer,
    say_power,
    say_rows,
)
from gradlens.errors import ConfigError
from gradlens.metrics import METRICS
from gradlens.plots.style import FAINT, MISSING, NONFINITE, ZERO, house_style, magnitude_colours
from gradlens.run import FloatArray, Run

COLUMNS = 1600
MOST_LABELS = 42
MOST_EPOCH_LINES = 60
PANELS_PER_ROW = 3


def draw_heatmap(
    runs: Sequence[Run],
    metric: str = ACTIVATION_GRAD,
    *,
    per_element: bool = False,
    steps: tuple[int | None, int | None] = (None, None),
) -> Figure:
    """Draw a metric of one or more runs as layers (input at the top) by steps, with one colour scale for all.

    Args:
        runs: One panel each.
        metric: Which; the colour is its log10.
        per_element: Divide norms by sqrt of the number of elements (RMS).
        steps: First and last optimizer step to show; None is the beginning, or the end.

    Returns:
        The figure; save it with ``save_figure``.

    Raises:
        ConfigError: There are no runs, one lacks the metric, none has a row, or one has none among the steps.
    """
    if not runs:
        raise ConfigError("a heatmap needs at least one run")
    windows = [rows_within(run, *steps) for run in runs]
    matrices = [
        heat_matrix(run, metric, columns=COLUMNS, per_element=per_element, rows=rows)
        for run, rows in zip(runs, windows, strict=True)
    ]
    if all(matrix.values.shape[1] == 0 for matrix in matrices):
        raise ConfigError(f"no row of {metric} has been recorded yet in {', '.join(run.name for run in runs)}")
    with house_style():
        return _draw(list(runs), matrices, metric, per_element, windows)


def _draw(runs: list[Run], matrices: list[HeatMatrix], metric: str, per_element: bool, windows: list[slice]) -> Figure:
    columns = min(len(runs), PANELS_PER_ROW)
    rows = math.ceil(len(runs) / columns)
    most_layers = max(len(run.layers) for run in runs)
    panel = min(max(1.5 + 0.105 * most_layers, 2.6), 6.5)
    figure = Figure(figsize=(2.6 + 3.6 * columns, 1.35 + panel * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    norm, titles = _scale(matrices), label_runs(runs)
    for i, axis in enumerate(axes.flat):
        if i >= len(runs):
            axis.set_visible(False)
            continue
        same = i % columns > 0 and _names(runs[i]) == _names(runs[i - 1])
        _draw_panel(axis, runs[i], matrices[i], norm, labels=not same)
        axis.set_title(titles[i], fontweight="bold")
    _colour_bar(figure, axes, norm, metric, per_element)
    _legend(figure, matrices)
    figure.suptitle(_caption(runs, metric, per_element, windows), x=0.01, ha="left", fontsize=8, wrap=False)
    return figure


def _names(run: Run) -> list[str]:
    return [layer.name for layer in run.layers]


def _scale(matrices: list[HeatMatrix]) -> Normalize:
    found = positive_range(matrices)
    low, high = (math.log10(found[0]), math.log10(found[1])) if found else (-1.0, 0.0)
    return Normalize(low, high if high > low else low + 1)


def _draw_panel(axis: Axes, run: Run, matrix: HeatMatrix, norm: Normalize, *, labels: bool) -> None:
    n_layers = len(run.layers)
    edges = np.arange(n_layers + 1) - 0.5
    values = matrix.values
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.where(np.isfinite(values) & (values > 0), values, np.nan))
    if values.size:
        axis.pcolorfast(matrix.steps, edges, logs, cmap=magnitude_colours(), norm=norm)
    axis.set_facecolor(MISSING)
    for mask, colour in ((values == 0, ZERO), (np.isinf(values), NONFINITE)):
        if mask.any():
            _overlay(axis, matrix, edges, mask, colour)
    axis.set_ylim(n_layers - 0.5, -0.5)
    axis.set_xlim(matrix.steps[0], max(matrix.steps[-1], matrix.steps[0] + 1))
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _mark_stages(axis, run)
    _mark_epochs(axis, run)
    _label_layers(axis, run, labels)


def _overlay(axis: Axes, matrix: HeatMatrix, edges: FloatArray, mask: NDArray[np.bool_], colour: str) -> None:
    shown = np.ma.masked_where(~mask, np.ones_like(matrix.values))
    axis.pcolorfast(matrix.steps, edges, shown, cmap=ListedColormap([colour]))


def _mark_stages(axis: Axes, run: Run) -> None:
    for stage in find_stages(run.layers)[1:]:
        axis.axhline(stage.start - 0.5, color="white", linewidth=0.9)


def _mark_epochs(axis: Axes, run: Run) -> None:
    starts = epoch_starts(run)
    if len(starts) < 2:
        return
    top = axis.secondary_xaxis("top")
    every = max(1, math.ceil(len(starts) / 10))
    numbers = np.arange(1, len(starts) + 1)
    shown = (numbers - 1) % every == 0
    top.set_xticks(starts[shown], [str(n) for n in numbers[shown]])
    top.tick_params(labelsize=6.5, colors=FAINT, length=2)
    top.set_xlabel("epoch", fontsize=7, color=FAINT)
    if len(starts) > MOST_EPOCH_LINES:
        return
    for start in starts[1:]:
        axis.axvline(start, color="white", linewidth=0.35, alpha=0.55)


def _label_layers(axis: Axes, run: Run, labels: bool) -> None:
    names = _names(run)
    chosen = choose_labels(run)
    size = 7.0 if len(chosen) <= 24 else 5.8
    axis.set_yticks(chosen, [names[i] for i in chosen] if labels else [])
    axis.tick_params(axis="y", length=2, labelsize=size)
    if labels:
        axis.set_ylabel("layer, from the input (top) to the output (bottom)")


def choose_labels(run: Run, most: int = MOST_LABELS) -> list[int]:
    """Choose the layers that get a label: all of them, or each stage's first and evenly spaced ones between."""
    count = len(run.layers)
    if count <= most:
        return list(range(count))
    gap = math.ceil(count / (most * 0.75))
    firsts = [stage.start for stage in find_stages(run.layers)]
    chosen: list[int] = []
    for i in firsts + list(range(0, count, gap)):
        if all(abs(i - other) >= gap for other in chosen):
            chosen.append(i)
    return sorted(chosen)


def _colour_bar(figure: Figure, axes: NDArray[Any], norm: Normalize, metric: str, per_element: bool) -> None:
    bar = figure.colorbar(ScalarMappable(norm, magnitude_colours()), ax=axes, pad=0.012, aspect=36, fraction=0.04)
    title = METRICS[metric].title if metric in METRICS else metric
    if per_element:
        title = title.replace("L2 norm", "RMS per element")
    bar.set_label("\n".join(textwrap.wrap(f"log10 of the {title}", 72)))
    bar.ax.yaxis.set_major_locator(MaxNLocator(8))


def _legend(figure: Figure, matrices: list[HeatMatrix]) -> None:
    kinds = (
        ("exactly 0", ZERO, lambda v: v == 0),
        ("no gradient recorded", MISSING, np.isnan),
        ("not finite", NONFINITE, np.isinf),
    )
    patches = [
        Patch(facecolor=colour, edgecolor=FAINT, linewidth=0.4, label=label)
        for label, colour, test in kinds
        if any(test(matrix.values).any() for matrix in matrices)
    ]
    if patches:
        figure.legend(handles=patches, loc="outside lower left", ncols=len(patches))


def caption(
    runs: Sequence[Run],
    metric: str = ACTIVATION_GRAD,
    *,
    per_element: bool = False,
    steps: tuple[int | None, int | None] = (None, None),
) -> str:
    """Say in a sentence per run what the heatmap shows, from the numbers."""
    return _caption(runs, metric, per_element, [rows_within(run, *steps) for run in runs])


def _caption(runs: Sequence[Run], metric: str, per_element: bool, windows: list[slice]) -> str:
    told = list(zip(label_runs(list(runs)), runs, windows, strict=True))[:4]
    said = [f"{label}: {said}." for label, run, rows in told if (said := _say_run(run, metric, per_element, rows))]
    width = 80 + 62 * (min(len(runs), PANELS_PER_ROW) - 1)
    return "\n".join("\n".join(textwrap.wrap(line, width)) for line in said)


def _say_run(run: Run, metric: str, per_element: bool, rows: slice) -> str:
    if metric in (ACTIVATION_GRAD, "param_grad_norm"):
        way = end_to_end(run, metric, rows, per_element=per_element)
        if way is None or np.isnan(way.median()):
            return ""
        first, last = (say_layer(run.layers[i]) for i in (way.first, way.last))
        ratio = (
            f"{first} / {last}: {say_power(way.median())}, median of {say_rows(way.rows_known, rows.stop - rows.start)}"
        )
        return f"{say_end_to_end(way.median())} ({ratio})"
    profile = depth_profile(run, metric, rows, per_element=per_element)
    if np.isnan(profile).all():
        return ""
    low, high = int(np.nanargmin(profile)), int(np.nanargmax(profile))
    return (
        f"median over rows from {profile[low]:.1e} ({run.layers[low].name}) to {profile[high]:.1e} "
        f"({run.layers[high].name})"
    )
