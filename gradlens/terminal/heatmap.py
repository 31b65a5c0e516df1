"""The heatmap in a terminal: half-block characters, two layers per line, fitted to the window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from gradlens.analysis.gradient_ratio import say_power
from gradlens.analysis.profile import chunk_starts, find_stages
from gradlens.charts.heatmap import Panel, Scale, Span, View, common_scale, make_panel, merge_layers
from gradlens.charts.layer_names import shorten_names
from gradlens.metrics import say_metric
from gradlens.run import FloatArray, Run
from gradlens.terminal.colours import (
    MISSING,
    NONFINITE,
    ZERO,
    Rgb,
    place_colour,
    place_mark,
    scale_between,
    style,
)
from gradlens.terminal.console import has_colour

MARGIN = 3
MOST_LINES_PIPED = 60
"""Most lines of a heatmap if stdout is no terminal and has no height."""


def print_heatmap(
    console: Console,
    runs: Sequence[Run],
    metric: str,
    *,
    per_element: bool = False,
    relative: bool = False,
    steps: Span = (None, None),
    minus: Run | None = None,
) -> None:
    """Print one heatmap per run, input at the top, all with one scale.

    Args:
        console: The console; the heatmap fills its width and height and never exceeds them.
        runs: The runs.
        metric: The metric's name.
        per_element: Divide norms by sqrt of the number of elements.
        relative: Divide magnitudes by that of the last hidden layer.
        steps: First and last optimizer step to show; None is the beginning, or the end.
        minus: Show the difference from this run.
    """
    label = min(max((len(layer.name) for run in runs for layer in run.layers), default=8), 20, console.width // 4)
    columns = max(console.width - label - MARGIN, 10)
    view = View(metric, per_element, relative, steps)
    panels = [make_panel(run, view, columns=columns, minus=minus) for run in runs]
    scale, colour = common_scale(panels), has_colour(console)
    for panel in panels:
        console.print(Text(_title(panel), style="bold"))
        if panel.is_empty:
            console.print("no row has been recorded yet")
            continue
        for line in _lines(console, panel, scale, label, columns, colour):
            console.print(line, no_wrap=True, overflow="crop")
        console.print(_axis(panel, label, columns), no_wrap=True, overflow="crop")
    if any(np.isfinite(panel.drawn).any() for panel in panels):
        console.print(_legend(panels, scale, colour=colour))


def _title(panel: Panel) -> str:
    over = f" {'over' if panel.kind == 'ratio' else 'minus'} {panel.minus.name}" if panel.minus else ""
    relative = ", relative to the last hidden layer" if panel.view.relative else ""
    metric = say_metric(panel.view.metric, per_element=panel.view.per_element)
    return f"{panel.run.name}{over}  {metric}{relative}"


def _lines(console: Console, panel: Panel, scale: Scale, label: int, columns: int, colour: bool) -> list[Text]:
    most = max(console.height - 6, 8) if console.is_terminal else MOST_LINES_PIPED
    step = 2 if colour else 1  # layers per line
    count = len(panel.layers)
    first = list(range(count)) if count <= most * step else chunk_starts(count, most * step).tolist()
    drawn = merge_layers(panel, first).drawn if len(first) < count else panel.drawn
    drawn = np.repeat(drawn, max(columns // drawn.shape[1], 1), axis=1)  # fill the line
    starts = {stage.start: stage.name for stage in find_stages(panel.layers)}
    names = shorten_names([layer.name for layer in panel.layers], label)
    lines: list[Text] = []
    for i in range(0, len(drawn), step):
        covered = range(first[i], first[i + step] if i + step < len(first) else count)
        stages = [starts[layer] for layer in covered if layer in starts]
        by_layer = len(covered) == 1 or len(starts) == 1
        name = names[covered.start] if by_layer else "/".join(stages[:2])
        line = Text(f"{name[:label]:>{label}} ", style="dim")
        if colour:
            _append_half_blocks(line, drawn[i], drawn[i + 1] if i + 1 < len(drawn) else None, scale)
        else:
            line.append(_marks(drawn[i], scale))
        lines.append(line)
    return lines


def _colours(drawn: FloatArray, scale: Scale) -> list[Rgb]:
    """Return the colour of each cell of a line."""
    colours: list[Rgb] = []
    for value, place in zip(drawn, scale.places(np.where(np.isfinite(drawn), drawn, np.nan)), strict=True):
        if np.isfinite(value):
            colours.append(place_colour(float(place), signed=scale.is_diverging))
        else:
            colours.append(MISSING if np.isnan(value) else NONFINITE if value > 0 else ZERO)
    return colours


def _marks(drawn: FloatArray, scale: Scale) -> str:
    """Return the characters of a line without colour: ? is not recorded, ! is not finite, 0 is exactly 0."""
    marks = []
    for value, place in zip(drawn, scale.places(np.where(np.isfinite(drawn), drawn, np.nan)), strict=True):
        if np.isfinite(value):
            marks.append(place_mark(float(place), signed=scale.is_diverging))
        else:
            marks.append("?" if np.isnan(value) else "!" if value > 0 else "0")
    return "".join(marks)


def _append_half_blocks(line: Text, above: FloatArray, below: FloatArray | None, scale: Scale) -> None:
    tops = _colours(above, scale)
    bottoms: list[Rgb | None] = [*_colours(below, scale)] if below is not None else [None] * len(tops)
    for top, bottom in zip(tops, bottoms, strict=True):
        line.append("▀", style(top, bottom))


def _axis(panel: Panel, label: int, columns: int) -> Text:
    first, last = f"step {panel.edges[0]:.0f}", f"{panel.edges[-1]:.0f}"
    cells = panel.drawn.shape[1]
    width = cells * max(columns // cells, 1)
    return Text(" " * (label + 1) + first + last.rjust(max(width - len(first), len(last) + 1)), style="dim")


def _legend(panels: Sequence[Panel], scale: Scale, *, colour: bool) -> Text:
    in_decades = scale.kind in ("magnitude", "ratio")
    low, high = (say_power(end) if in_decades else f"{end:+.3g}" for end in (scale.low, scale.high))
    text = scale_between(low, high, colour=colour, signed=scale.is_diverging)
    kinds = (
        ("exactly 0", ZERO, "0", np.isneginf),
        ("not recorded", MISSING, "?", np.isnan),
        ("not finite", NONFINITE, "!", np.isposinf),
    )
    for title, rgb, mark, test in kinds:
        if any(test(panel.drawn).any() for panel in panels):
            text.append("   ")
            text.append("█" if colour else mark, style(rgb) if colour else "")
            text.append(f" {title}")
    return text
