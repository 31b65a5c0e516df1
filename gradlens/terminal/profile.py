"""The depth profile in a terminal: a line per layer with a mark per profile, and the table of slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlens.analysis.bootstrap import Estimate
from gradlens.analysis.stats import Interval
from gradlens.charts.curves import Curve, say_curve, say_theory
from gradlens.charts.layer_names import shorten_names
from gradlens.format import say_signed
from gradlens.metrics import is_linear, say_metric
from gradlens.terminal.console import has_colour

MARKS = "ox+*#@&%"
COLOURS = ("dark_orange3", "deep_sky_blue4", "dark_cyan", "orange1", "pink3", "sky_blue2", "default")
MOST_LAYERS = 48
MOST_LABEL = 24


def print_profile(console: Console, curves: Sequence[Curve], metric: str, *, per_element: bool = False) -> None:
    """Print the profiles on one scale, input at the top, and their slopes.

    Args:
        console: The console to print to.
        curves: The profiles; each covers (L,) layers.
        metric: Their metric.
        per_element: Whether they are the root mean square per element.
    """
    title = say_metric(metric, per_element=per_element)
    console.print(Text(title if is_linear(metric) else f"log10 of the {title}", style="bold"))
    console.print(_legend(curves, has_colour(console)))
    for line in _lines(curves, console.width, has_colour(console)):
        console.print(line, no_wrap=True, overflow="crop")
    if any(curve.fits[0] for curve in curves):
        console.print(_slopes(curves))
    elif is_linear(metric):
        for curve in curves:
            console.print(say_curve(curve, metric), highlight=False, markup=False)
    for curve in curves:
        if text := say_theory(curve):
            console.print(text)


def _legend(curves: Sequence[Curve], colour: bool) -> Text:
    text = Text()
    for i, curve in enumerate(curves):
        seeds = f" ({len(curve.runs)} seeds)" if len(curve.runs) > 1 else ""
        text.append("   " if i else "")
        text.append(MARKS[i % len(MARKS)], _style(i, colour))
        text.append(f" {curve.label}{seeds}")
    if any(np.isneginf(curve.centre).any() for curve in curves):
        text.append("   0 exactly 0")
    return text


def _style(number: int, colour: bool) -> str:
    return f"bold {COLOURS[number % len(COLOURS)]}" if colour else ""


def _lines(curves: Sequence[Curve], width: int, colour: bool) -> list[Text]:
    most = max(len(curve.layers) for curve in curves)
    longest = max(curves, key=lambda curve: len(curve.layers)).layers
    of_one = all(curve.runs == curves[0].runs for curve in curves)  # the main path, and other sections beside it
    same = of_one or all(layer.name == longest[i].name for curve in curves for i, layer in enumerate(curve.layers))
    names = [layer.name if same else f"layer {i + 1}" for i, layer in enumerate(longest)]
    label = min(max(map(len, names)), MOST_LABEL, width // 3)
    names = shorten_names(names, label)
    cells = max(width - label - 3, 10)
    known = np.concatenate([curve.centre[np.isfinite(curve.centre)] for curve in curves])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    lines = [_axis(label, cells, low, high)]
    chosen = sorted({round(i) for i in np.linspace(0, most - 1, min(most, MOST_LAYERS))})
    for i in chosen:
        line = Text(f"{names[i][:label]:>{label}} ", style="dim")
        line.append_text(_row([_at(curve, i + 1) for curve in curves], low, high, cells, colour))
        lines.append(line)
    if len(chosen) < most:
        lines.append(Text(f"{len(chosen)} of {most} layers, evenly spaced", style="dim"))
    return lines


def _at(curve: Curve, place: int) -> float:
    at = np.flatnonzero(np.round(curve.places) == place)
    return float(curve.centre[at[0]]) if len(at) else math.nan


def _axis(label: int, cells: int, low: float, high: float) -> Text:
    left, right = (f"{round(end, 1) + 0.0:+.1f}" for end in (low, high))
    return Text(" " * (label + 1) + left + right.rjust(cells - len(left)), style="dim")


def _row(values: list[float], low: float, high: float, cells: int, colour: bool) -> Text:
    """Draw one layer: a mark per profile at its value; of several marks in one cell the first is shown."""
    marks: dict[int, tuple[str, str]] = {}
    span = high - low if high > low else 1.0
    for i, value in enumerate(values):
        if math.isnan(value):
            continue
        place = 0 if value == -math.inf else round((value - low) / span * (cells - 1))
        marks.setdefault(place, ("0" if value == -math.inf else MARKS[i % len(MARKS)], _style(i, colour)))
    text = Text("·" if 0 not in marks else "", style="dim")
    for place in range(1 if 0 not in marks else 0, cells):
        text.append(*marks.get(place, (" ", "")))
    text.rstrip()
    return text


def _slopes(curves: Sequence[Curve]) -> Table:
    """Return the table of slopes, a row per profile and section."""
    table = Table(
        title="Decades toward the input: below 0 the values shrink in the backward pass", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column("", overflow="fold")
    for name in ("per layer", "95 % interval", "first / last", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for curve in curves:
        for i, fit in enumerate(curve.fits[0]):
            over = next((seeds for seeds in curve.seeds if seeds.section == fit.section), None)
            slope, total = (over.slope, over.decades) if over else (fit.slope, fit.decades)
            cells = (*_cells(slope, 3), *_cells(total, 2))
            table.add_row(Text(f"  {fit.section}" if i else curve.label), *cells)
    several = any(curve.seeds for curve in curves)
    table.caption = "intervals over seeds, or over rows for a single seed" if several else "intervals over rows"
    return table


def _cells(value: Estimate | Interval, digits: int) -> tuple[str, str]:
    centre = value.value if isinstance(value, Estimate) else value.mean
    ends = f"{say_signed(value.low, digits)} to {say_signed(value.high, digits)}"
    return say_signed(centre, digits), "-" if math.isnan(value.low) else ends
