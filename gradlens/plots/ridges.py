"""Ridges: the distribution of a metric over the steps, layer above layer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradlens.analysis.derived_metrics import say_caution
from gradlens.analysis.profile import find_stages
from gradlens.charts.curves import Steps
from gradlens.charts.heatmap import quiet_end
from gradlens.charts.layer_names import shorten_names
from gradlens.charts.ridges import Ridges, common_grid
from gradlens.metrics import SHOWN_METRICS, is_linear, say_metric
from gradlens.plots.figure import Picture
from gradlens.plots.panels import choose_labels, name_room
from gradlens.plots.style import Look, current, fill, head_inches, house_style
from gradlens.run import FloatArray

MOST_RIDGES = 42
PANELS_PER_ROW = 3
OVERLAP = 2.4
"""Rows that the highest ridge is high."""
MOST_TOLD = 4


def draw_ridges(
    ridges: Sequence[Ridges],
    metric: str,
    *,
    per_element: bool = False,
    steps: Steps = (None, None),
    look: Look | None = None,
) -> Picture:
    """Draw a panel per run, and in it the density over steps of each layer, the input's at the top.

    All densities of the figure have one scale, so that equal areas stand for equally many steps.

    Args:
        ridges: As ``make_ridges`` returns them.
        metric: What they are of.
        per_element: Whether they are the root mean square per element.
        steps: The span of optimizer steps that they are of.
        look: Ground and width; on a screen, light, where it is left out.

    Returns:
        The figure; save it with ``save_figure``.
    """
    look = look or Look()
    with house_style(look):
        return _draw(list(ridges), metric, per_element, look)


def _draw(ridges: list[Ridges], metric: str, per_element: bool, look: Look) -> Picture:
    columns = 1 if look.width == "one" else min(len(ridges), PANELS_PER_ROW)
    rows = -(-len(ridges) // columns)
    width = look.inches(1.4 + 3.1 * columns)
    lines = _said(ridges, metric)
    head = fill(lines if look.width == "one" else [*lines, *_how(metric)], width)
    most = max(min(len(one.layers), MOST_RIDGES) for one in ridges)
    height = min(1.3 + 0.115 * most, 5.6)
    figure = Picture(figsize=(width, 0.3 + head_inches(head) + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    grid = common_grid(ridges)
    chosen = [choose_labels(one.layers, MOST_RIDGES) for one in ridges]
    drawn = [np.array([one.density(i, grid) for i in at]) for one, at in zip(ridges, chosen, strict=True)]
    peaks = np.concatenate([densities.max(axis=1) for densities in drawn])
    unit = OVERLAP / (float(np.quantile(peaks, 0.9)) or 1.0)
    for k, axis in enumerate(axes):
        if k >= len(ridges):
            axis.set_visible(False)
            continue
        same = k % columns > 0 and _names(ridges[k]) == _names(ridges[k - 1])
        _draw_panel(axis, ridges[k], chosen[k], grid, np.minimum(drawn[k] * unit, 1.6 * OVERLAP), labels=not same,
                    inches=width / columns)  # fmt: skip
        title = textwrap.wrap(ridges[k].label, max(int(width / columns * 11), 16))
        axis.set_title("\n".join(title), fontweight="bold")
        text = say_metric(metric, per_element=per_element)
        text = text if is_linear(metric) else f"log10 of the {text}"
        axis.set_xlabel("\n".join(textwrap.wrap(text, int((width / columns - 0.9) * 12))))
        if SHOWN_METRICS[metric].scale == "signed":
            axis.set_xscale("symlog", linthresh=quiet_end(np.concatenate([one.values.ravel() for one in ridges])))
    figure.suptitle(head, x=0.01, ha="left", fontsize=8)
    return figure


def _names(ridges: Ridges) -> list[str]:
    return [layer.name for layer in ridges.layers]


def _draw_panel(
    axis: Axes, ridges: Ridges, chosen: list[int], grid: FloatArray, heights: FloatArray, *, labels: bool,
    inches: float,
) -> None:  # fmt: skip
    theme = current()
    stages = find_stages(ridges.layers)
    stage_of = {i: number for number, stage in enumerate(stages) for i in range(stage.start, stage.stop)}
    for row, (layer, height) in enumerate(zip(chosen, heights, strict=True)):
        colour = theme.palette[1 if stage_of[layer] % 2 == 0 else 5]
        axis.fill_between(grid, row - height, row, color=colour, linewidth=0, alpha=0.9, zorder=2 + row)
        axis.plot(grid, row - height, color=theme.paper, linewidth=0.6, zorder=2 + row)
        if ridges.zeros[layer] > 0:
            axis.text(
                0.01, row, f"exactly 0 in {ridges.zeros[layer]:.0%}", va="bottom", fontsize=5.5, color=theme.ink,
                transform=axis.get_yaxis_transform(), zorder=200,
            )  # fmt: skip
    axis.set_ylim(len(chosen) - 0.4, -OVERLAP - 0.4)
    axis.set_xlim(grid[0], grid[-1])
    size = 7.0 if len(chosen) <= 24 else 5.8
    names = shorten_names(_names(ridges), name_room(inches, size))
    axis.set_yticks(range(len(chosen)), [names[i] for i in chosen] if labels else [])
    axis.tick_params(axis="y", length=2 if labels else 0, labelsize=size)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(color=theme.faint, alpha=0.25, linewidth=0.5, axis="x")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def caption(ridges: Sequence[Ridges], metric: str) -> str:
    """Say in a sentence per run what the ridges show, from the numbers, and how to read them."""
    return "\n".join([*_said(ridges, metric), *_how(metric)])


def _how(metric: str) -> list[str]:
    said = [
        "Each ridge is the distribution over steps in one layer, the input's at the top; the colour changes with the "
        "stage, and equal areas are equally many steps."
    ]
    return said + [text for text in [say_caution(metric)] if text]


def _said(ridges: Sequence[Ridges], metric: str) -> list[str]:
    said = []
    for one in ridges[:MOST_TOLD]:
        with np.errstate(invalid="ignore"):
            known = [i for i in range(len(one.layers)) if np.isfinite(one.values[:, i]).any()]
            spreads = [float(np.subtract(*np.nanquantile(one.values[:, i], [0.9, 0.1]))) for i in known]
        if not known:
            continue
        widest, narrowest = known[int(np.argmax(spreads))], known[int(np.argmin(spreads))]
        unit = "" if is_linear(metric) else " decades"
        said.append(
            f"{one.label}: 8 in 10 steps lie within {max(spreads):.2f}{unit} in {one.layers[widest].name}, the widest, "
            f"and {min(spreads):.2f} in {one.layers[narrowest].name}, the narrowest."
        )
    if len(ridges) > MOST_TOLD:
        said.append(f"Beside these {len(ridges) - MOST_TOLD} more runs are shown.")
    return said
