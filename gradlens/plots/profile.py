"""The depth profile: a metric over the layers, and the first step compared with theory."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from gradlens.analysis.derived_metrics import say_caution
from gradlens.analysis.groups import Group, group_name
from gradlens.analysis.profile import find_stages
from gradlens.analysis.stats import median
from gradlens.charts.curves import Curve, Steps, Theory, make_curves, say_curve, say_curves, say_farthest, say_theory
from gradlens.charts.heatmap import quiet_end
from gradlens.metrics import ACTIVATION_GRAD_NORM, SHOWN_METRICS, is_linear, say_metric
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.style import (
    Look,
    PlainPowers,
    current,
    fill,
    head_inches,
    house_style,
    looks_of,
    usual_look,
)
from gradlens.run import FloatArray, Run

MOST_SENTENCES = 4
"""Most profiles that get a sentence each in the caption; more are put into one sentence."""
MOST_INSIDE = 2
"""Most entries of a legend inside the panel; a longer one is below the panel."""
MOST_POINTS = 48
"""Most layers of a line with a point at each layer."""
MOST_NAMES = 14
"""Most names of layers or stages along the axis."""


def draw_profile(
    curves: Sequence[Curve],
    metric: str,
    *,
    per_element: bool = False,
    steps: Steps = (None, None),
    look: Look | None = None,
) -> GradlensFigure:
    """Draw profiles, a line each, input at the left; a second panel compares the first step with theory.

    Args:
        curves: The profiles, as ``make_curves`` returns them; each covers (L,) layers.
        metric: Their metric.
        per_element: Whether they are the root mean square per element.
        steps: Their first and last optimizer step; None is the beginning, or the end.
        look: Theme, width and caption; light, for a screen and with a caption by default.

    Returns:
        The figure; save it with ``save_figure``.
    """
    look = look or usual_look()
    with house_style(look):
        return _draw(list(curves), metric, per_element, steps, look)


def _draw(curves: list[Curve], metric: str, per_element: bool, steps: Steps, look: Look) -> GradlensFigure:
    with_theory = any(curve.theory for curve in curves)
    width = look.inches(9.6 if with_theory else 6.4)
    sentences = [*_describe(curves, metric), *([] if look.width == "one" else _how_to_read(curves, metric))]
    head, stacked = fill(sentences, width), with_theory and look.width == "one"
    height = {"one": 2.6, "two": 3.2}.get(look.width, 3.8) * (2 if stacked else 1)
    figure = GradlensFigure(figsize=(width, height + head_inches(head) + 0.1 * len(curves)), layout="constrained")
    panels = 2 if with_theory else 1
    axes = figure.subplots(panels if stacked else 1, 1 if stacked else panels, squeeze=False).ravel()
    inches = width / (1 if stacked else panels)
    looks = looks_of([group_name(curve.runs[0]) for curve in curves])
    for curve, line in zip(curves, looks, strict=True):
        draw_curve(axes[0], curve, *line, floor=find_floor(curves))
    title = say_metric(metric, per_element=per_element)
    title = title if is_linear(metric) else f"log10 of the {title}"
    axes[0].set_ylabel("\n".join(textwrap.wrap(title, {"screen": 48, "two": 36}.get(look.width, 26))))
    axes[0].set_title(_say_steps(steps), fontweight="bold")
    scale_axis(axes[0], curves, metric)
    _place_legend(axes[0], curve_handles(curves), inches)
    if with_theory:
        for curve, line in zip(curves, looks, strict=True):
            if curve.theory is not None:
                _draw_theory(axes[1], curve.theory, *line, every=len(curves) <= MOST_SENTENCES)
        axes[1].axhline(0, color=current().faint, linewidth=0.6)
        axes[1].set_ylabel(
            "decades relative to the last hidden layer".replace(" the ", "\nthe " if look.width == "one" else " the ")
        )
        axes[1].set_title("\n".join(textwrap.wrap("first step: measured, and theory of initialisation",
                                                  int(inches * 12))), fontweight="bold")  # fmt: skip
        _place_legend(axes[1], _theory_handles(curves), inches)
    for axis in axes:
        dress_axis(axis, curves, inches)
    figure.suptitle(head, x=0.01, ha="left", fontsize=8)
    return figure


def _place_legend(axis: Axes, handles: Sequence[Any], inches: float) -> None:
    """Put a short legend inside the panel, and a long one below it, where it hides no line."""
    for handle in handles:  # a long entry would make the panel narrow
        handle.set_label("\n".join(textwrap.wrap(handle.get_label(), max(int(inches * 12) - 6, 12))))
    letters = max(len(line) for handle in handles for line in handle.get_label().split("\n"))
    if len(handles) <= MOST_INSIDE and letters < inches * 8:
        axis.legend(handles=handles, loc="best")
        return
    columns = max(1, int(inches * 12 / (letters + 6)))
    below = axis.transAxes + ScaledTranslation(0, -0.46, axis.get_figure().dpi_scale_trans)  # type: ignore[union-attr]
    axis.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=columns, borderaxespad=0
    )


def scale_axis(axis: Axes, curves: Sequence[Curve], metric: str) -> None:
    """Scale the vertical axis for the metric: decades, a share or cosine between its limits, or a signed magnitude.

    Args:
        axis: The axes with the curves.
        curves: The profiles.
        metric: Their metric.
    """
    if not is_linear(metric):
        return
    known = SHOWN_METRICS[metric]
    if known.limits:
        axis.set_ylim(*known.limits)
    if known.scale == "signed":
        quiet = quiet_end(np.concatenate([curve.centre for curve in curves]))
        axis.set_yscale("symlog", linthresh=quiet)
        axis.yaxis.set_major_formatter(PlainPowers(linthresh=quiet))
        axis.yaxis.set_minor_locator(NullLocator())
    if known.scale == "signed" or (known.limits and known.limits[0] < 0):
        axis.axhline(0, color=current().ink, linewidth=0.7)


def _say_steps(steps: Steps) -> str:
    first, last = steps
    if first is None and last is None:
        return "all steps"
    return f"steps {first or 0} to {'the end' if last is None else last}"


def find_floor(curves: Sequence[Curve]) -> float:
    """Return the height at which exact zeros of magnitudes are drawn: below all other values."""
    known = np.concatenate([np.concatenate([curve.centre, curve.low, curve.high]) for curve in curves])
    known = known[np.isfinite(known)]
    return float(known.min() - 0.06 * max(np.ptp(known), 1.0)) if len(known) else 0.0


def draw_curve(axis: Axes, curve: Curve, colour: str, dash: str, floor: float = 0.0) -> None:
    """Draw a profile with its band; exact zeros are drawn at a floor below all other values.

    A layer whose gradient is exactly 0 in most rows has a filled triangle there; one whose band reaches 0 (in a tenth
    of the rows or more) has an open one.

    Args:
        axis: The axes to draw on.
        curve: The profile: (L,) centre, low and high ends, in decades or in the unit of a linear metric.
        colour: The colour of line and band.
        dash: The dash style of the line.
        floor: The height of exact zeros.
    """
    x = curve.places
    shown = np.where(np.isfinite(curve.centre), curve.centre, np.nan)
    points: dict[str, Any] = {"marker": ".", "markersize": 4} if len(x) <= MOST_POINTS else {}
    axis.plot(x, shown, color=colour, linestyle=dash, **points)
    low, high = (np.where(np.isneginf(end), floor, end) for end in (curve.low, curve.high))
    band = np.isfinite(low) & np.isfinite(high)
    axis.fill_between(x, low, high, where=band, color=colour, alpha=0.15, linewidth=0)
    zeros = np.isneginf(curve.centre)
    for here, face in ((zeros, colour), (np.isneginf(curve.low) & ~zeros, "none")):
        if here.any():
            axis.plot(x[here], np.full(here.sum(), floor), "v", color=colour, markersize=4, markerfacecolor=face)


def _draw_theory(axis: Axes, theory: Theory, colour: str, dash: str, *, every: bool) -> None:
    """Draw the line and band of theory, and the measurements: every seed, or the median of the seeds."""
    x = np.arange(1, len(theory.decades) + 1)
    axis.plot(x, theory.decades, color=colour, linestyle=dash)
    low, high = (theory.decades + sign * 2 * theory.spread for sign in (-1, 1))
    axis.fill_between(x, low, high, where=np.isfinite(low), color=colour, alpha=0.15, linewidth=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a layer without a value
        rows = theory.measured if every else median(theory.measured, axis=0)[None]
    for measured in rows:
        shown: FloatArray = np.where(np.isfinite(measured), measured, np.nan)
        axis.plot(x, shown, "o", color=colour, markersize=2.8, markerfacecolor="none", markeredgewidth=0.8)


def curve_handles(curves: Sequence[Curve]) -> list[Line2D]:
    """Return legend handles of the profiles, and of the marks of exact zeros."""
    handles = []
    for curve, (colour, dash) in zip(curves, looks_of([group_name(curve.runs[0]) for curve in curves]), strict=True):
        handles.append(Line2D([], [], color=colour, linestyle=dash, label=_label(curve)))  # type: ignore[arg-type]
    mark: dict[str, Any] = {"color": current().ink, "linestyle": "none", "marker": "v", "markersize": 4}
    if any(np.isneginf(curve.centre).any() for curve in curves):
        handles.append(Line2D([], [], label="exactly 0 in most rows", **mark))
    if any((np.isneginf(curve.low) & ~np.isneginf(curve.centre)).any() for curve in curves):
        handles.append(Line2D([], [], label="exactly 0 in a tenth of the rows or more", markerfacecolor="none", **mark))
    return handles


def _label(curve: Curve) -> str:
    return f"{curve.label} ({len(curve.runs)} seeds)" if len(curve.runs) > 1 else curve.label


def _theory_handles(curves: list[Curve]) -> list[Line2D | Patch]:
    without = [curve.label for curve in curves if curve.theory is None]
    dot: dict[str, Any] = {"marker": "o", "markersize": 2.8, "markerfacecolor": "none", "linestyle": "none"}
    which = "each seed" if len(curves) <= MOST_SENTENCES else "median of the seeds"
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=current().ink, label=f"measured, {which}", **dot),
        Line2D([], [], color=current().ink, label="theory"),
        Patch(
            color=current().ink, alpha=0.15, linewidth=0, label="theory ± at most 2 standard deviations between seeds"
        ),
    ]
    if without:
        handles.append(Line2D([], [], linestyle="none", label=f"no theory for {', '.join(without[:2])}"))
    return handles


def dress_axis(axis: Axes, curves: Sequence[Curve], inches: float) -> None:
    """Label the axis with layers or stages if all curves have the same layers, and mark where stages begin.

    Args:
        axis: The axes with the curves.
        curves: The profiles.
        inches: The width of the axes.
    """
    layers = curves[0].layers
    same = all([layer.name for layer in curve.layers] == [layer.name for layer in layers] for curve in curves)
    axis.set_xlabel("layer, from the input (left) to the output (right)")
    axis.grid(color=current().faint, alpha=0.2, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if not same:
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        return
    stages = find_stages(layers)
    for stage in stages[1:]:
        axis.axvline(stage.start + 0.5, color=current().faint, linewidth=0.5, alpha=0.7)
    if 1 < len(stages) <= MOST_NAMES:
        centres = [(stage.start + stage.stop + 1) / 2 for stage in stages]
        shown = _apart([stage.name for stage in stages], centres, len(layers), inches)
        axis.set_xticks([centres[i] for i in shown], [stages[i].name for i in shown])
        axis.tick_params(axis="x", length=0)
        axis.grid(visible=False, axis="x")
        return
    most = min(MOST_NAMES, max(3, int(inches * 3)))
    chosen = sorted({round(i) for i in np.linspace(0, len(layers) - 1, min(len(layers), most))})
    names = [layers[i].name for i in chosen]
    upright = 0.06 * (max(map(len, names)) + 1) * len(names) < inches - 0.9
    turned: dict[str, Any] = {} if upright else {"rotation": 30, "ha": "right"}
    axis.set_xticks([i + 1 for i in chosen], names, **turned)


def _apart(names: Sequence[str], centres: Sequence[float], count: int, inches: float) -> list[int]:
    """Choose names, of 7 points, that do not touch each other; shorter names are chosen first."""
    per_layer = max(inches - 0.9, 0.5) / max(count, 1)
    chosen: list[int] = []
    for i in sorted(range(len(names)), key=lambda i: len(names[i])):
        half = [0.5 * 0.054 * (len(names[j]) + 0.8) for j in range(len(names))]
        if all(abs(centres[i] - centres[j]) * per_layer >= half[i] + half[j] for j in chosen):
            chosen.append(i)
    return sorted(chosen)


def caption(curves: Sequence[Curve], metric: str) -> str:
    """Describe the figure in a sentence per profile, from the numbers, and say how to read it.

    Args:
        curves: The profiles.
        metric: Their metric.

    Returns:
        The sentences, a line each. The figure itself shows as many of them as fit three lines.
    """
    return "\n".join([*_describe(curves, metric), *_how_to_read(curves, metric)])


def _describe(curves: Sequence[Curve], metric: str) -> list[str]:
    if len(curves) <= MOST_SENTENCES:
        return [f"{say_curve(curve, metric)}." for curve in curves]
    return [f"{say_curves(curves)}."]


def _how_to_read(curves: Sequence[Curve], metric: str) -> list[str]:
    bands = []
    if any(len(curve.runs) == 1 for curve in curves):
        bands.append("80 % of the rows of a single run")
    if any(len(curve.runs) > 1 for curve in curves):
        bands.append("the 95 % interval of the mean over several seeds")
    sentences = [f"Lines are medians over rows; bands are {', or '.join(bands)}."]
    sentences += [text for text in [say_caution(metric)] if text]
    if len(curves) <= MOST_SENTENCES:
        return sentences + [f"{text}." for curve in curves if (text := say_theory(curve))]
    return sentences + [f"{text}." for text in [say_farthest(curves)] if text]


def for_report(runs: Sequence[Run], groups: Sequence[Group]) -> tuple[GradlensFigure, str, list[Run]] | None:
    """Return the report's figure, its caption and its runs; None where nothing is recorded."""
    measured = [run for run in runs if len(run.steps) and ACTIVATION_GRAD_NORM in run.metrics]
    if not measured:
        return None
    curves = make_curves(measured, ACTIVATION_GRAD_NORM)
    return draw_profile(curves, ACTIVATION_GRAD_NORM), caption(curves, ACTIVATION_GRAD_NORM), measured
