"""One panel of a heatmap, with its stages, epochs and marks; the colour bar and the key of several panels."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from gradlens.analysis.profile import epoch_starts, find_stages
from gradlens.charts.heatmap import Panel, Scale, merge_layers
from gradlens.charts.layer_names import shorten_names
from gradlens.charts.marks import NORMAL_RANGES, Marks
from gradlens.metrics import ACTIVATION_RMS, say_metric
from gradlens.plots.style import current, magnitude_colours, signed_colours
from gradlens.run import FloatArray, Layer, Run

MOST_SEEN = 4000
"""Most layers that are drawn one by one: more than a figure of 20 inches has dots, at 200 dots per inch."""
MOST_LABELS = 42
"""Most layer names beside a panel."""
MOST_EPOCH_LINES = 60
"""Most lines between epochs; more would hide the heatmap."""
MOST_FINDINGS = 3
FINDING_POINTS = 15
"""Points between the lines of two findings beside a panel, however wide the panel is."""
NAMES_SHARE = 0.45
"""Most of a panel's width that layer names may take."""
CORNER_INCHES = 0.35
"""Inches that a key needs for each column besides the label: the handle and the gaps."""
TICKS_APART = 0.12
"""Least distance of two ticks, as a share of the length of a colour bar."""


def colour_norm(scale: Scale) -> Normalize:
    """Return the matplotlib norm of a scale."""
    if scale.kind == "signed":
        return SymLogNorm(scale.quiet, vmin=scale.low, vmax=scale.high, base=10)
    return Normalize(scale.low, scale.high)


def draw_panel(
    axis: Axes, panel: Panel, scale: Scale, *, labels: bool, least_gap: float = 0.0, by: str = "step",
    inches: float = math.inf, along: float = math.inf,
) -> None:  # fmt: skip
    """Draw one panel.

    Args:
        axis: The axes to draw on.
        panel: The (L, C) values, layers by columns, and the edges of the columns.
        scale: The colour scale.
        labels: Whether layer names are drawn.
        least_gap: Least number of layers from one name to the next.
        by: The unit of the horizontal axis and of the edges, "step" or "epoch".
        inches: Width of the panel with its layer names.
        along: Width of the panel without its layer names.
    """
    whole = panel
    panel, edges = _as_fine_as_seen(panel)
    shown = np.where(np.isfinite(panel.drawn), panel.drawn, np.nan)
    colours = signed_colours() if scale.is_diverging else magnitude_colours()
    if panel.drawn.size:
        axis.pcolorfast(panel.edges, edges, shown, cmap=colours, norm=colour_norm(scale))
    axis.set_facecolor(current().missing)
    for mask, colour in ((np.isneginf(panel.drawn), current().zero), (np.isposinf(panel.drawn), current().nonfinite)):
        if mask.any():
            _overlay(axis, panel, edges, mask, colour)
    axis.set_ylim(len(whole.layers) - 0.5, -0.5)
    axis.set_xlim(panel.edges[0], max(panel.edges[-1], panel.edges[0] + 1))
    axis.set_xlabel("optimizer step" if by == "step" else "epochs done")
    axis.xaxis.set_major_locator(MaxNLocator(_ticks(along, 6), integer=True))
    for stage in find_stages(whole.layers)[1:]:
        axis.axhline(stage.start - 0.5, color=current().line, linewidth=0.9)
    if by == "step":
        mark_epochs(axis, panel.run, most=_ticks(along, 8))
    _label_layers(axis, whole.layers, labels, least_gap, inches)


def _as_fine_as_seen(panel: Panel) -> tuple[Panel, FloatArray]:
    """Return a panel without more layers than a figure can show, and the edges of its layers, (L + 1,)."""
    count = len(panel.layers)
    if panel.starts is not None:
        return panel, np.append(panel.starts, count) - 0.5
    if count <= MOST_SEEN:
        return panel, np.arange(count + 1) - 0.5
    starts = np.arange(0, count, -(-count // MOST_SEEN))
    return merge_layers(panel, starts.tolist()), np.append(starts, count) - 0.5


def _overlay(axis: Axes, panel: Panel, edges: FloatArray, mask: NDArray[np.bool_], colour: str) -> None:
    shown = np.ma.masked_where(~mask, np.ones_like(panel.drawn))
    axis.pcolorfast(panel.edges, edges, shown, cmap=ListedColormap([colour]))


def _ticks(inches: float, most: int) -> int:
    """Return how many tick labels fit an axis of this width."""
    return max(min(most, int((inches - 0.3) * 2.4)) if math.isfinite(inches) else most, 2)


def mark_epochs(axis: Axes, run: Run, *, most: int = 8) -> None:
    """Number the epochs above a panel, and separate them by faint lines if they are few.

    Args:
        axis: The axes of the panel, in optimizer steps.
        run: The run.
        most: Most numbers.
    """
    starts = epoch_starts(run)
    if len(starts) < 2:
        return
    first, last = axis.get_xlim()
    within = (starts >= first) & (starts < last)
    numbers = np.arange(1, len(starts) + 1)[within]
    starts = starts[within]
    if not len(starts):
        return
    faint = current().faint
    top = axis.secondary_xaxis("top")
    shown = (numbers - 1) % max(1, math.ceil(len(starts) / most)) == 0
    top.set_xticks(starts[shown], [str(n) for n in numbers[shown]])
    top.tick_params(labelsize=6.5, colors=faint, length=2)
    top.set_xlabel("epoch", fontsize=7, color=faint)
    if len(starts) > MOST_EPOCH_LINES:
        return
    for start in starts:
        if start > first:
            axis.axvline(start, color=current().line, linewidth=0.35, alpha=0.55)


DROPS: tuple[str, Any] = ("v", (0, (1, 2)))
RESUMES: tuple[str, Any] = (">", (0, (5, 2)))
"""The marker at the top of a line, and its dash style."""


def draw_marks(axis: Axes, marks: Marks, edges: FloatArray, *, findings: bool) -> None:
    """Mark learning-rate drops, resumes and columns that are not finite, and beside the panel the layers of findings.

    Args:
        axis: The axes of the panel.
        marks: The marks; steps are in the unit of the horizontal axis.
        edges: (C + 1,) edges of the panel's columns, in the same unit.
        findings: Whether there is room for findings at the right.
    """
    theme, vertical = current(), axis.get_xaxis_transform()
    for steps, sign, dash in ((marks.drops, *DROPS), (marks.resumes, *RESUMES)):
        for step in steps:
            axis.axvline(step, color=theme.ink, linewidth=0.9, linestyle=dash)
        axis.plot(steps, np.full(len(steps), 0.985), sign, color=theme.ink, markersize=4.2, transform=vertical,
                  markeredgecolor=theme.paper, markeredgewidth=0.5)  # fmt: skip
    if marks.broken.any():
        broken = ((edges[:-1] + edges[1:]) / 2)[marks.broken]
        axis.plot(broken, np.zeros(len(broken)), "^", color=theme.nonfinite, markersize=4, transform=vertical,
                  clip_on=False)  # fmt: skip
    for k, (finding, first, last) in enumerate(marks.findings[:MOST_FINDINGS] if findings else ()):
        beside, name = (
            offset_copy(
                axis.get_yaxis_transform(), axis.get_figure(root=True), x=points + FINDING_POINTS * k, units="points"
            )
            for points in (5, 8)
        )
        axis.plot([1, 1], [first - 0.4, last + 0.4], color=theme.palette[0], linewidth=1.6, transform=beside,
                  clip_on=False, solid_capstyle="butt")  # fmt: skip
        place, side = _name_place(first, last, axis.get_ylim()[0])
        axis.text(1, place, finding.kind, rotation=90, va=side, fontsize=7, transform=name, color=theme.palette[0])


def _name_place(first: float, last: float, end: float) -> tuple[float, Any]:
    """Return where the name of a finding is, and its alignment: near an end of the panel it extends inwards."""
    middle = (first + last) / 2
    if middle < end / 3:
        return first - 0.4, "top"
    return (last + 0.4, "bottom") if middle > 2 * end / 3 else (middle, "center")


def mark_handles(marks: Sequence[Marks]) -> list[Line2D]:
    """Return legend handles for the kinds of marks that any of the panels has."""
    theme, handles = current(), []
    for name, label, (sign, dash) in (("drops", "learning rate drops", DROPS), ("resumes", "resumed", RESUMES)):
        if any(len(getattr(one, name)) for one in marks):
            handles.append(Line2D([], [], color=theme.ink, marker=sign, markersize=3.5, linestyle=dash, label=label))
    if any(one.broken.any() for one in marks):
        handles.append(
            Line2D([], [], color=theme.nonfinite, marker="^", markersize=4, linestyle="none", label="step not finite")
        )
    if any(one.findings for one in marks):
        handles.append(Line2D([], [], color=theme.palette[0], linewidth=1.6, label="layers of a finding"))
    return handles


def mark_formats(bar: Colorbar, panel: Panel, scale: Scale) -> list[Patch]:
    """Hatch the parts of a colour bar outside the normal range of 16-bit formats, for metrics per element.

    Below that range numbers lose digits and then become 0; a GradScaler multiplies gradients to avoid this.

    Args:
        bar: The colour bar.
        panel: A panel that it belongs to.
        scale: The colour scale, in log10.

    Returns:
        Legend handles for the hatched parts; none if there are none.
    """
    if scale.kind != "magnitude" or not (panel.view.per_element or panel.view.metric == ACTIVATION_RMS):
        return []
    handles = []
    for (name, ends), hatch in zip(NORMAL_RANGES.items(), ("////", "xxxx"), strict=True):
        least, most = (math.log10(end) for end in ends)
        for low, high in ((scale.low, min(least, scale.high)), (max(most, scale.low), scale.high)):
            if low < high:
                span: dict[str, Any] = {"facecolor": "none", "edgecolor": "#FFFFFF", "hatch": hatch, "linewidth": 0.0}
                (bar.ax.axvspan if bar.orientation == "horizontal" else bar.ax.axhspan)(low, high, **span)
                label = f"outside {name}'s normal range ({ends[0]:.1e} to {ends[1]:.1e})"
                handles.append(Patch(facecolor="#777777", edgecolor="#FFFFFF", hatch=hatch, label=label))
    return handles


def _label_layers(axis: Axes, layers: Sequence[Layer], labels: bool, least_gap: float, inches: float) -> None:
    chosen = choose_labels(layers, least_gap=least_gap)
    size = 7.0 if len(chosen) <= 24 else 5.8
    names = shorten_names([layer.name for layer in layers], name_room(inches, size))
    axis.set_yticks(chosen, [names[i] for i in chosen] if labels else [])
    axis.tick_params(axis="y", length=2, labelsize=size)


def name_room(inches: float, points: float) -> float:
    """Return how many characters a layer's name may have beside a panel.

    Args:
        inches: Width of the panel with its layer names.
        points: Size of the font.

    Returns:
        The number of characters; infinite if the width is.
    """
    return inches * NAMES_SHARE * 72 / (0.56 * points)


def choose_labels(layers: Sequence[Layer], most: int = MOST_LABELS, least_gap: float = 0.0) -> list[int]:
    """Choose the layers that get a label: all of them, or the first of each stage and evenly spaced ones between.

    Args:
        layers: The layers, input first.
        most: Most labels.
        least_gap: Least number of layers from one label to the next.

    Returns:
        The indices of the layers, in order.
    """
    count = len(layers)
    if count <= most and least_gap <= 1:
        return list(range(count))
    gap = max(math.ceil(count / (most * 0.75)), math.ceil(least_gap))
    firsts = [stage.start for stage in find_stages(tuple(layers))]
    chosen: list[int] = []
    for i in firsts + list(range(0, count, gap)):
        if all(abs(i - other) >= gap for other in chosen):
            chosen.append(i)
    return sorted(chosen)


def draw_colour_bar(
    figure: Figure, axes: Any, panels: Sequence[Panel], scale: Scale, *, below: bool, inches: float
) -> Colorbar:
    """Draw the colour bar of panels that share a scale.

    Args:
        figure: The figure.
        axes: The axes of the panels.
        panels: The panels.
        scale: Their colour scale.
        below: Whether the bar is below the panels; otherwise it is at their right.
        inches: Length of the bar.

    Returns:
        The colour bar.
    """
    colours = signed_colours() if scale.is_diverging else magnitude_colours()
    place = {"location": "bottom", "aspect": 22, "pad": 0.03} if below else {"pad": 0.012, "aspect": inches / 0.11}
    bar = figure.colorbar(ScalarMappable(colour_norm(scale), colours), ax=axes, fraction=0.04, shrink=0.98, **place)
    text = say_colour(panels[0], several=len({id(panel.run) for panel in panels}) > 1)
    bar.set_label("\n".join(textwrap.wrap(text, int(inches * 13))), fontsize=7 if below else 8)
    if scale.kind != "signed":
        bar.locator = MaxNLocator(5 if below else 8)
        bar.update_ticks()
    else:
        bar.set_ticks(signed_ticks(scale))
        bar.ax.minorticks_off()
    return bar


def signed_ticks(scale: Scale) -> list[float]:
    """Return the ticks of a signed scale: 0 and a few powers of ten on both sides."""
    first, last = math.ceil(math.log10(scale.quiet) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
    powers: list[float] = []
    for k in range(last, first - 1, -1):
        place = float(scale.places(np.array(10.0**k)))
        if place > 0.5 + TICKS_APART and (not powers or scale.places(np.array(powers[-1])) > place + TICKS_APART):
            powers.append(10.0**k)
    return [*(-p for p in powers), 0.0, *reversed(powers)]


def say_colour(panel: Panel, *, several: bool = False) -> str:
    """Return the label of the colour bar.

    Args:
        panel: A panel.
        several: Whether the bar belongs to several runs, which the label then does not name.

    Returns:
        The label.
    """
    name = "the run" if several else panel.run.name
    title = say_metric(panel.view.metric, per_element=panel.view.per_element)
    if panel.minus is not None and panel.kind == "ratio":
        return f"log10 of {name} over {panel.minus.name}: {title}"
    if panel.minus is not None:
        return f"{name} minus {panel.minus.name}: {title}"
    if panel.kind == "ratio":
        return f"log10 of the {title}, relative to the last hidden layer"
    return f"log10 of the {title}" if panel.kind == "magnitude" else title


def draw_key(figure: Figure, panels: Sequence[Panel], extra: Sequence[Any] = ()) -> None:
    """Draw a key of the colours for zero, missing and non-finite values, if the panels have any, and of other marks.

    Args:
        figure: The figure.
        panels: Its panels.
        extra: Legend handles of other marks.
    """
    kinds = (
        ("exactly 0", current().zero, np.isneginf),
        ("no gradient recorded", current().missing, np.isnan),
        ("not finite", current().nonfinite, np.isposinf),
    )
    handles: list[Any] = [
        Patch(facecolor=colour, edgecolor=current().faint, linewidth=0.4, label=label)
        for label, colour, test in kinds
        if any(test(panel.drawn).any() for panel in panels)
    ]
    handles += extra
    if handles:
        columns = key_columns([handle.get_label() for handle in handles], figure.get_figwidth())
        figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def key_columns(labels: Sequence[str], inches: float) -> int:
    """Return how many columns of a key fit a width; each column is as wide as its widest label.

    Args:
        labels: The labels; they fill one column after the other.
        inches: The width of the figure.

    Returns:
        The number of columns, at least 1.
    """
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        widths = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(widths) * 0.0585 + CORNER_INCHES * (len(widths) + 1) <= inches:
            return columns
    return 1
