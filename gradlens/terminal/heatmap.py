"""The heatmap in a terminal: half blocks, two layers a line, fitted to the window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from gradlens.analysis.profile import (
    HeatMatrix,
    block_means,
    block_starts,
    find_stages,
    heat_matrix,
    positive_range,
    rows_within,
)
from gradlens.metrics import METRICS
from gradlens.run import FloatArray, Run
from gradlens.terminal.colours import (
    MISSING,
    NONFINITE,
    ZERO,
    magnitude_colour,
    magnitude_mark,
    scale_line,
    style,
)
from gradlens.terminal.console import has_colour

MARGIN = 3
MOST_LINES_PIPED = 60


def print_heatmap(
    console: Console,
    runs: Sequence[Run],
    metric: str,
    *,
    per_element: bool = False,
    steps: tuple[int | None, int | None] = (None, None),
) -> None:
    """Print one heatmap per run, input at the top, all with one scale.

    Args:
        console: Where to; its width and height are filled, never exceeded.
        runs: The runs.
        metric: Which metric.
        per_element: Divide norms by sqrt of the number of elements.
        steps: First and last optimizer step to show; None is the beginning, or the end.
    """
    label = min(max((len(layer.name) for run in runs for layer in run.layers), default=8), 20, console.width // 4)
    columns = max(console.width - label - MARGIN, 10)
    matrices = [
        heat_matrix(run, metric, columns=columns, per_element=per_element, rows=rows_within(run, *steps))
        for run in runs
    ]
    found = positive_range(matrices)
    low, high = found or (1.0, 1.0)
    colour = has_colour(console)
    for run, matrix in zip(runs, matrices, strict=True):
        console.print(Text(f"{run.name}  {METRICS[metric].title if metric in METRICS else metric}", style="bold"))
        if matrix.values.shape[1] == 0:
            console.print("no row has been recorded yet")
            continue
        for line in _lines(console, run, matrix, label, columns, (low, high), colour):
            console.print(line, no_wrap=True, overflow="crop")
        console.print(_axis(matrix, label, columns), no_wrap=True, overflow="crop")
    if found:
        console.print(_legend(matrices, low, high, colour=colour))


def _lines(
    console: Console,
    run: Run,
    matrix: HeatMatrix,
    label: int,
    columns: int,
    scale: tuple[float, float],
    colour: bool,
) -> list[Text]:
    most = max(console.height - 6, 8) if console.is_terminal else MOST_LINES_PIPED
    step = 2 if colour else 1  # layers a line
    values, first = _fit_layers(matrix.values, most * step)
    values = _fit_columns(values, columns)
    starts = {stage.start: stage.name for stage in find_stages(run.layers)}
    lines: list[Text] = []
    for i in range(0, len(values), step):
        covered = range(first[i], first[i + step] if i + step < len(first) else len(run.layers))
        stages = [starts[layer] for layer in covered if layer in starts]
        whole = len(covered) == 1 or len(starts) == 1
        name = run.layers[covered.start].name if whole else "/".join(stages[:2])
        line = Text(f"{name[:label]:>{label}} ", style="dim")
        if colour:
            below = values[i + 1] if i + 1 < len(values) else None
            _append_half_blocks(line, values[i], below, scale)
        else:
            line.append("".join(magnitude_mark(float(v), *scale) for v in values[i]))
        lines.append(line)
    return lines


def _fit_layers(values: FloatArray, most: int) -> tuple[FloatArray, list[int]]:
    """Merge neighbouring layers where there are more than lines; return the first layer of each."""
    if len(values) <= most:
        return values, list(range(len(values)))
    starts = block_starts(len(values), most)
    return block_means(values, starts), starts.tolist()


def _fit_columns(values: FloatArray, columns: int) -> FloatArray:
    """Widen cells to fill the line where there are fewer steps than columns."""
    return np.repeat(values, max(columns // values.shape[1], 1), axis=1)


def _append_half_blocks(line: Text, above: FloatArray, below: FloatArray | None, scale: tuple[float, float]) -> None:
    for column, value in enumerate(above):
        top = magnitude_colour(float(value), *scale)
        if below is None:
            line.append("▀", style(top))
        else:
            line.append("▀", style(top, magnitude_colour(float(below[column]), *scale)))


def _axis(matrix: HeatMatrix, label: int, columns: int) -> Text:
    first, last = f"step {matrix.steps[0]:.0f}", f"{matrix.steps[-1]:.0f}"
    cells = matrix.values.shape[1]
    width = cells * max(columns // cells, 1)
    return Text(" " * (label + 1) + first + last.rjust(max(width - len(first), len(last) + 1)), style="dim")


def _legend(matrices: list[HeatMatrix], low: float, high: float, *, colour: bool) -> Text:
    text = scale_line(low, high, colour=colour)
    kinds = (
        ("exactly 0", ZERO, "0", lambda v: v == 0),
        ("not recorded", MISSING, "?", np.isnan),
        ("not finite", NONFINITE, "!", np.isinf),
    )
    for title, rgb, mark, test in kinds:
        if any(test(m.values).any() for m in matrices):
            text.append("   ")
            text.append("█" if colour else mark, style(rgb) if colour else "")
            text.append(f" {title}")
    return text
