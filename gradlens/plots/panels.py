"""What one heatmap panel shows: the picture, its stages, epochs and marks, and the colour bar of several."""

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
from gradlens.charts.heatmap import Panel, Scale
from gradlens.charts.layer_names import shorten_names
from gradlens.charts.marks import NORMAL_RANGES, Marks
from gradlens.metrics import say_metric
from gradlens.plots.style import current, magnitude_colours, signed_colours
from gradlens.run import FloatArray, Layer, Run

MOST_LABELS = 42
MOST_EPOCH_LINES = 60
MOST_FINDINGS = 3
FINDING_POINTS = 15
"""From one finding's line beside a panel to the next, however wide the panel is."""
NAMES_SHARE = 0.45
"""Of a panel's width, names of layers take at most."""
CORNER_INCHES = 0.35
"""Of a key: what stands before its first label, between two, and behind the last."""
TICKS_APART = 0.12
"""Of the length of a colour bar."""


def colour_norm(scale: Scale) -> Normalize:
    """Return matplotlib's own form of a scale."""
    if scale.kind == "signed":
        return SymLogNorm(scale.quiet, vmin=scale.low, vmax=scale.high, base=10)
    return Normalize(scale.low, scale.high)


def draw_panel(
    axis: Axes, panel: Panel, scale: Scale, *, labels: bool, least_gap: float = 0.0, by: str = "step",
    inches: float = math.inf, along: float = math.inf,
) -> None:  # fmt: skip
    """Draw one panel.

    Args:
        axis: Where.
        panel: What.
        scale: Its colours.
        labels: Whether its layers are named.
        least_gap: Layers between two names, at least.
        by: What is counted on the level axis, "step" or "epoch"; the panel's edges are in it.
        inches: How wide the panel is, with its layers' names.
        along: How wide it is without them.
    """
    edges = np.arange(len(panel.layers) + 1) - 0.5
    shown = np.where(np.isfinite(panel.drawn), panel.drawn, np.nan)
    colours = signed_colours() if scale.is_diverging else magnitude_colours()
    if panel.drawn.size:
        axis.pcolorfast(panel.edges, edges, shown, cmap=colours, norm=colour_norm(scale))
    axis.set_facecolor(current().missing)
    for mask, colour in ((np.isneginf(panel.drawn), current().zero), (np.isposinf(panel.drawn), current().nonfinite)):
        if mask.any():
            _overlay(axis, panel, edges, mask, colour)
    axis.set_ylim(len(panel.layers) - 0.5, -0.5)
    axis.set_xlim(panel.edges[0], max(panel.edges[-1], panel.edges[0] + 1))
    axis.set_xlabel("optimizer step" if by == "step" else "epochs done")
    axis.xaxis.set_major_locator(MaxNLocator(_ticks(along, 6), integer=True))
    for stage in find_stages(panel.layers)[1:]:
        axis.axhline(stage.start - 0.5, color=current().line, linewidth=0.9)
    if by == "step":
        mark_epochs(axis, panel.run, most=_ticks(along, 8))
    _label_layers(axis, panel.layers, labels, least_gap, inches)


def _overlay(axis: Axes, panel: Panel, edges: FloatArray, mask: NDArray[np.bool_], colour: str) -> None:
    shown = np.ma.masked_where(~mask, np.ones_like(panel.drawn))
    axis.pcolorfast(panel.edges, edges, shown, cmap=ListedColormap([colour]))


def _ticks(inches: float, most: int) -> int:
    """Return how many numbers stand below each other's width on an axis."""
    return max(min(most, int((inches - 0.3) * 2.4)) if math.isfinite(inches) else most, 2)


def mark_epochs(axis: Axes, run: Run, *, most: int = 8) -> None:
    """Number epochs above a panel, at most so many, and separate them by faint lines where they are few."""
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
"""Marker at the top, and dashes."""


def draw_marks(axis: Axes, marks: Marks, edges: FloatArray, *, findings: bool) -> None:
    """Mark learning-rate drops, resumes and columns that are not finite, and beside the panel the layers of findings.

    Args:
        axis: The panel.
        marks: What was found; steps in the unit of the level axis.
        edges: Of the panel's columns.
        findings: Whether there is room for them at the right.
    """
    theme, upright = current(), axis.get_xaxis_transform()
    for steps, sign, dash in ((marks.drops, *DROPS), (marks.resumes, *RESUMES)):
        for step in steps:
            axis.axvline(step, color=theme.ink, linewidth=0.9, linestyle=dash)
        axis.plot(steps, np.full(len(steps), 0.985), sign, color=theme.ink, markersize=4.2, transform=upright,
                  markeredgecolor=theme.paper, markeredgewidth=0.5)  # fmt: skip
    if marks.broken.any():
        broken = ((edges[:-1] + edges[1:]) / 2)[marks.broken]
        axis.plot(broken, np.zeros(len(broken)), "^", color=theme.nonfinite, markersize=4, transform=upright,
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
        axis.text(1, (first + last) / 2, finding.kind, rotation=90, va="center", fontsize=7, transform=name,
                  color=theme.palette[0])  # fmt: skip


def mark_handles(marks: Sequence[Marks]) -> list[Line2D]:
    """Explain what is marked in any of the panels."""
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
    """Hatch what of a colour bar lies outside the normal range of 16-bit formats, where single elements are shown.

    Below it numbers lose digits and then become 0; a GradScaler multiplies gradients by its scale against that.
    """
    if scale.kind != "magnitude" or not (panel.view.per_element or panel.view.metric == "activation_rms"):
        return []
    handles = []
    for (name, ends), hatch in zip(NORMAL_RANGES.items(), ("////", "xxxx"), strict=True):
        least, most = (math.log10(end) for end in ends)
        for low, high in ((scale.low, min(least, scale.high)), (max(most, scale.low), scale.high)):
            if low < high:
                span: dict[str, Any] = {"facecolor": "none", "edgecolor": "#FFFFFF", "hatch": hatch, "linewidth": 0.0}
                (bar.ax.axvspan if bar.orientation == "horizontal" else bar.ax.axhspan)(low, high, **span)
                said = f"outside {name}'s normal range ({ends[0]:.1e} to {ends[1]:.1e})"
                handles.append(Patch(facecolor="#777777", edgecolor="#FFFFFF", hatch=hatch, label=said))
    return handles


def _label_layers(axis: Axes, layers: Sequence[Layer], labels: bool, least_gap: float, inches: float) -> None:
    chosen = choose_labels(layers, least_gap=least_gap)
    size = 7.0 if len(chosen) <= 24 else 5.8
    names = shorten_names([layer.name for layer in layers], name_room(inches, size))
    axis.set_yticks(chosen, [names[i] for i in chosen] if labels else [])
    axis.tick_params(axis="y", length=2, labelsize=size)


def name_room(inches: float, points: float) -> float:
    """Return how many letters of so many points a layer's name may have beside a panel."""
    return inches * NAMES_SHARE * 72 / (0.56 * points)


def choose_labels(layers: Sequence[Layer], most: int = MOST_LABELS, least_gap: float = 0.0) -> list[int]:
    """Choose the layers that get a label: all of them, or each stage's first and evenly spaced ones between."""
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
    """Draw the colour bar of panels that share a scale: at their right, or below them, along so many inches."""
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
    """Return 0 and a few powers of ten on both sides of it."""
    first, last = math.ceil(math.log10(scale.quiet) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
    powers: list[float] = []
    for k in range(last, first - 1, -1):
        place = float(scale.places(np.array(10.0**k)))
        if place > 0.5 + TICKS_APART and (not powers or scale.places(np.array(powers[-1])) > place + TICKS_APART):
            powers.append(10.0**k)
    return [*(-p for p in powers), 0.0, *reversed(powers)]


def say_colour(panel: Panel, *, several: bool = False) -> str:
    """Say what the colour stands for; of several runs no name is said."""
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
    """Name the colours that stand for no number, where they are seen, and whatever else is marked."""
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
    """Return how many columns of a key fit; they are filled one after the other, each as wide as its widest label."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        widths = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(widths) * 0.0585 + CORNER_INCHES * (len(widths) + 1) <= inches:
            return columns
    return 1
