"""The depth profile: a metric over the layers, and the first step beside theory."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradlens.analysis.curves import Curve, Steps, Theory, say_curve, say_theory
from gradlens.analysis.profile import find_stages
from gradlens.metrics import METRICS
from gradlens.plots.style import FAINT, INK, PALETTE, house_style
from gradlens.run import FloatArray

DASHES = ("-", "--", "-.", ":")
MOST_TOLD = 6
MOST_NAMES = 14


def draw_profile(
    curves: Sequence[Curve], metric: str, *, per_element: bool = False, steps: Steps = (None, None)
) -> Figure:
    """Draw profiles, a line each, input at the left; beside it the first step against theory, where there is one.

    Args:
        curves: As ``make_curves`` returns them.
        metric: What they are of.
        per_element: Whether they are the root mean square per element.
        steps: The span of optimizer steps that they are of.

    Returns:
        The figure; save it with ``save_figure``.
    """
    with house_style():
        return _draw(list(curves), metric, per_element, steps)


def _draw(curves: list[Curve], metric: str, per_element: bool, steps: Steps) -> Figure:
    with_theory = any(curve.theory for curve in curves)
    figure = Figure(figsize=(9.6 if with_theory else 6.4, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if with_theory else 1, squeeze=False)[0]
    for i, curve in enumerate(curves):
        _draw_curve(axes[0], curve, *_look(i))
    title = METRICS[metric].title if metric in METRICS else metric
    axes[0].set_ylabel("\n".join(textwrap.wrap(f"log10 of the {_per_element(title, per_element)}", 56)))
    axes[0].set_title(_say_steps(steps), fontweight="bold")
    axes[0].legend(handles=_handles(curves), loc="best")
    if with_theory:
        for i, curve in enumerate(curves):
            if curve.theory is not None:
                _draw_theory(axes[1], curve.theory, *_look(i))
        axes[1].axhline(0, color=FAINT, linewidth=0.6)
        axes[1].set_ylabel("decades relative to the last hidden layer")
        axes[1].set_title("first step: measured, and theory of initialisation", fontweight="bold")
        axes[1].legend(handles=_theory_handles(curves), loc="best")
    for axis in axes:
        _dress(axis, curves)
    figure.suptitle(caption(curves, metric, width=160 if with_theory else 104), x=0.01, ha="left", fontsize=8)
    return figure


def _say_steps(steps: Steps) -> str:
    first, last = steps
    if first is None and last is None:
        return "all steps"
    return f"steps {first or 0} to {'the end' if last is None else last}"


def _look(number: int) -> tuple[str, str]:
    return PALETTE[number % len(PALETTE)], DASHES[(number // len(PALETTE)) % len(DASHES)]


def _per_element(title: str, per_element: bool) -> str:
    return title.replace("L2 norm", "RMS per element") if per_element else title


def _draw_curve(axis: Axes, curve: Curve, colour: str, dash: str) -> None:
    x = np.arange(1, len(curve.decades) + 1)
    shown = np.where(np.isfinite(curve.decades), curve.decades, np.nan)
    axis.plot(x, shown, color=colour, linestyle=dash, marker=".", markersize=4)
    band = np.isfinite(curve.low) & np.isfinite(curve.high)
    axis.fill_between(x, curve.low, curve.high, where=band, color=colour, alpha=0.15, linewidth=0)
    zeros = np.isneginf(curve.decades)
    if zeros.any():  # they lie below every axis
        axis.plot(
            x[zeros], np.full(zeros.sum(), 0.02), "v", color=colour, markersize=4, transform=axis.get_xaxis_transform()
        )


def _draw_theory(axis: Axes, theory: Theory, colour: str, dash: str) -> None:
    x = np.arange(1, len(theory.decades) + 1)
    axis.plot(x, theory.decades, color=colour, linestyle=dash)
    low, high = (theory.decades + sign * 2 * theory.spread for sign in (-1, 1))
    axis.fill_between(x, low, high, where=np.isfinite(low), color=colour, alpha=0.15, linewidth=0)
    for measured in theory.measured:
        shown: FloatArray = np.where(np.isfinite(measured), measured, np.nan)
        axis.plot(x, shown, "o", color=colour, markersize=2.8, markerfacecolor="none", markeredgewidth=0.8)


def _handles(curves: list[Curve]) -> list[Line2D]:
    handles = []
    for i, curve in enumerate(curves):
        colour, dash = _look(i)
        handles.append(Line2D([], [], color=colour, linestyle=dash, label=_label(curve)))  # type: ignore[arg-type]
    if any(np.isneginf(curve.decades).any() for curve in curves):
        handles.append(Line2D([], [], color=INK, linestyle="none", marker="v", markersize=4, label="exactly 0"))
    return handles


def _label(curve: Curve) -> str:
    return f"{curve.label} ({len(curve.runs)} seeds)" if len(curve.runs) > 1 else curve.label


def _theory_handles(curves: list[Curve]) -> list[Line2D | Patch]:
    without = [curve.label for curve in curves if curve.theory is None]
    dot = {"marker": "o", "markersize": 2.8, "markerfacecolor": "none", "linestyle": "none"}
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, label="measured, each seed", **dot),  # type: ignore[arg-type]
        Line2D([], [], color=INK, label="theory"),
        Patch(color=INK, alpha=0.15, linewidth=0, label="2 standard deviations between seeds, at most"),
    ]
    if without:
        handles.append(Line2D([], [], linestyle="none", label=f"no theory for {', '.join(without[:2])}"))
    return handles


def _dress(axis: Axes, curves: list[Curve]) -> None:
    """Name the layers where all curves have the same, and mark their stages."""
    layers = curves[0].layers
    same = all([layer.name for layer in curve.layers] == [layer.name for layer in layers] for curve in curves)
    axis.set_xlabel("layer, from the input (left) to the output (right)")
    axis.grid(color=FAINT, alpha=0.2, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if not same:
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        return
    stages = find_stages(layers)
    for stage in stages[1:]:
        axis.axvline(stage.start + 0.5, color=FAINT, linewidth=0.5, alpha=0.7)
    if 1 < len(stages) <= MOST_NAMES:
        axis.set_xticks([(stage.start + stage.stop + 1) / 2 for stage in stages], [stage.name for stage in stages])
        axis.tick_params(axis="x", length=0)
        axis.grid(visible=False, axis="x")
        return
    chosen = sorted({round(i) for i in np.linspace(0, len(layers) - 1, min(len(layers), MOST_NAMES))})
    axis.set_xticks([i + 1 for i in chosen], [layers[i].name for i in chosen], rotation=30, ha="right")


def caption(curves: Sequence[Curve], metric: str, *, width: int = 160) -> str:
    """Say in a sentence per profile what the figure shows, from the numbers."""
    said = [f"{say_curve(curve, metric)}." for curve in curves[:MOST_TOLD]]
    bands = []
    if any(len(curve.runs) == 1 for curve in curves):
        bands.append("of one run 8 in 10 of its rows")
    if any(len(curve.runs) > 1 for curve in curves):
        bands.append("of several seeds the 95 % interval of their mean")
    said.append(f"Lines: medians over rows; bands: {', '.join(bands)}.")
    said += [f"{text}." for curve in curves[:MOST_TOLD] if (text := say_theory(curve))]
    return "\n".join("\n".join(textwrap.wrap(line, width)) for line in said)
