"""The heatmap: layers by steps, which shows where the gradient vanishes or explodes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from gradlens.analysis.derived_metrics import say_caution
from gradlens.analysis.gradient_ratio import (
    GradientRatio,
    gradient_ratio,
    over_seeds,
    say_all_zero,
    say_fate,
    say_message,
    say_power,
    say_ratio,
    say_rows,
)
from gradlens.analysis.groups import Group, group_runs, label_runs
from gradlens.analysis.profile import depth_profile, rows_within, say_layer
from gradlens.analysis.stats import median_of_all
from gradlens.charts.heatmap import Panel, Span, View, common_scale, make_panel
from gradlens.charts.marks import Marks, find_marks, steps_to_epochs
from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM, GRADIENT_NORMS, is_linear
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.panels import (
    MOST_SEEN,
    draw_colour_bar,
    draw_key,
    draw_marks,
    draw_panel,
    mark_formats,
    mark_handles,
    name_room,
)
from gradlens.plots.style import Look, fill, head_inches, house_style, usual_look
from gradlens.run import Run

COLUMNS = 1600
"""Most columns of a panel: about one per pixel of a wide screen."""
NAMES_IN = 1.7
"""Inches that the layer names and the colour bar take in a row of small panels."""
TITLE_LESS_IN = 1.2
"""Inches that a title leaves free in a figure as wide as one column of print, where it begins behind the names."""
LETTER_IN, USUAL_NAMES_IN = 0.056, 1.7
"""Width in inches of a letter of a layer's name, and of the names beside which a title has its usual length."""
LINE_IN = 0.15
"""Height in inches of a line of a title, for each beyond two."""
LAYERS = "layer, from the input (top) to the output (bottom)"
LABEL_CHARACTERS, BESIDE_IN = 16, 0.9
"""Characters of an axis label in an inch, and the height of what is above and below a panel of its height in inches."""
FEW_COLUMNS = 50
"""Columns of a panel that is only made for a sentence about its run."""
PANELS_PER_ROW = 3
MOST_SENTENCES = 4
"""Most runs, or groups of runs, that get a sentence in the caption."""
MOST_DIAGNOSED = 9
"""Most runs whose findings are marked; with more, the panels are too small."""
By = Literal["step", "epoch"]


def draw_heatmap(
    runs: Sequence[Run],
    metric: str | Sequence[str] = ACTIVATION_GRAD_NORM,
    *,
    per_element: bool = False,
    relative: bool = False,
    steps: Span = (None, None),
    minus: Run | None = None,
    by: By = "step",
    marks: bool = True,
    look: Look | None = None,
) -> GradlensFigure:
    """Draw metrics of one or more runs as layers (input at the top) by steps, with one colour scale for each metric.

    Args:
        runs: One panel each; with several metrics, one row of panels each.
        metric: A metric, or several. Magnitudes are coloured by their log10, shares and cosines by their value.
        per_element: Divide norms by sqrt of the number of elements (RMS).
        relative: Divide magnitudes by that of the last hidden layer, step by step.
        steps: First and last optimizer step to show; None is the beginning, or the end.
        minus: Show the difference from this run; for magnitudes, log10 of the ratio.
        by: What the horizontal axis counts: optimizer steps, or epochs, which compares runs of different batch sizes.
        marks: Mark drops of the learning rate, resumes, columns that are not finite, and the layers of findings.
        look: Theme, width and caption; light, for a screen and with a caption by default.

    Returns:
        The figure; save it with ``save_figure``.

    Raises:
        ConfigError: There are no runs, a run lacks a metric, no run has a row, or a run has no row among the steps; or
            as in ``make_panel``.
    """
    if not runs:
        raise ConfigError("a heatmap needs at least one run")
    look = look or usual_look()
    names = [metric] if isinstance(metric, str) else list(metric)
    views = [View(name, per_element, relative, steps) for name in names]
    panels = [
        [make_panel(run, view, columns=COLUMNS, minus=minus, most_layers=MOST_SEEN) for view in views] for run in runs
    ]
    for column, name in zip(zip(*panels, strict=True), names, strict=True):
        if all(panel.is_empty for panel in column):
            raise ConfigError(f"no row of {name} has been recorded yet in {', '.join(run.name for run in runs)}")
    marked = _find_marks(panels) if marks else [[Marks(np.empty(0), np.zeros(1, dtype=bool))] * len(names)] * len(runs)
    if by == "epoch":
        panels, marked = _in_epochs(panels, marked)
    with house_style(look):
        if len(names) > 1:
            return _draw_table(panels, marked, look, by)
        return _draw_grid([row[0] for row in panels], [row[0] for row in marked], look, by)


def _find_marks(panels: list[list[Panel]]) -> list[list[Marks]]:
    """Find the marks of each panel; findings are marked beside the last panel of a run."""
    few = len(panels) <= MOST_DIAGNOSED
    return [
        [find_marks(panel, findings=few and panel is row[-1]) for panel in row] if not row[0].is_empty else
        [Marks(np.empty(0), np.zeros(0, dtype=bool)) for _ in row]
        for row in panels
    ]  # fmt: skip


def _in_epochs(panels: list[list[Panel]], marks: list[list[Marks]]) -> tuple[list[list[Panel]], list[list[Marks]]]:
    for row in panels:
        if row[0].run.epoch_of_step.size == 0 or len(np.unique(row[0].run.epoch_of_step)) < 2:
            raise ConfigError(
                f"run {row[0].run.name} has fewer than two epochs, so an axis of epochs is not possible",
                tip="--by step",
            )
    in_epochs = [[replace(panel, edges=steps_to_epochs(panel.run, panel.edges)) for panel in row] for row in panels]
    marks_in_epochs = [
        [
            replace(one, drops=steps_to_epochs(panel.run, one.drops), resumes=steps_to_epochs(panel.run, one.resumes))
            for panel, one in zip(row, ones, strict=True)
        ]
        for row, ones in zip(panels, marks, strict=True)
    ]
    return in_epochs, marks_in_epochs


def _columns_of_seeds(runs: Sequence[Run]) -> int:
    """Return the number of seeds if each model has as many, in order: each row of panels is then a model; else 0."""
    groups = group_runs(list(runs))
    counts = {len(group.runs) for group in groups}
    if len(groups) < 2 or len(counts) != 1 or sum(len(group.runs) for group in groups) != len(runs):
        return 0
    in_order = [run.name for group in groups for run in group.runs] == [run.name for run in runs]
    return counts.pop() if in_order else 0


def _panel_height(panels: Sequence[Panel], most: float) -> float:
    layers = max(len(panel.layers) for panel in panels)
    return min(max(1.5 + 0.105 * layers, 2.6), most)


def _draw_grid(panels: list[Panel], marks: list[Marks], look: Look, by: By) -> GradlensFigure:
    """Draw one metric: panels in rows, with one colour bar."""
    seeds = _columns_of_seeds([panel.run for panel in panels])
    most = {"one": 1, "two": 3 if len(panels) == 3 else 2}.get(look.width, PANELS_PER_ROW)
    columns = seeds if 1 < seeds <= 5 and look.width != "one" else min(len(panels), most)
    columns = math.ceil(len(panels) / math.ceil(len(panels) / columns))  # four panels are two by two, not three and one
    rows = math.ceil(len(panels) / columns)
    height = _panel_height(panels, 6.5 if rows < 3 else 2.5 if look.width == "two" else 3.2)
    width = look.inches(2.6 + (3.6 if columns <= PANELS_PER_ROW else 2.4) * columns)
    head = _head(panels, width, look)
    beside = NAMES_IN if columns > PANELS_PER_ROW else TITLE_LESS_IN if look.width == "one" else 0.0
    each = (width - beside) / columns
    labels = label_runs([panel.run for panel in panels])
    titles = [
        _title(panel, label, each - _beside_names(panel, width / columns), short=len(panels) > 1)
        for panel, label in zip(panels, labels, strict=True)
    ]
    above = LINE_IN * max(max(title.count("\n") for title in titles) - 1, 0)
    size = (width, 0.8 + head_inches(head) + (height + above) * rows)
    figure = GradlensFigure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    scale = common_scale(panels)
    for i, axis in enumerate(axes.flat):
        if i >= len(panels):
            axis.set_visible(False)
            continue
        same = i % columns > 0 and _names(panels[i]) == _names(panels[i - 1])
        draw_panel(axis, panels[i], scale, labels=not same, least_gap=_gap(panels[i], height), by=by,
                   inches=width / columns, along=each)  # fmt: skip
        draw_marks(axis, marks[i], panels[i].edges, findings=True)
        if not same:
            axis.set_ylabel(_wrapped(LAYERS, max(height - BESIDE_IN, 1.0), LABEL_CHARACTERS))
        axis.set_title(titles[i], fontweight="bold")
        if columns > 1 and i + columns < len(panels):
            axis.set_xlabel("")
    bar = draw_colour_bar(figure, axes, panels, scale, below=False, inches=height * rows - 0.6)
    draw_key(figure, panels, [*mark_handles(marks), *mark_formats(bar, panels[0], scale)])
    figure.suptitle(head, x=0.01, ha="left", fontsize=8)
    return figure


def _draw_table(panels: list[list[Panel]], marks: list[list[Marks]], look: Look, by: By) -> GradlensFigure:
    """Draw several metrics: a row of panels per run, a column with a colour bar per metric; or all in one column."""
    across = look.width != "one"
    count, metrics = len(panels), len(panels[0])
    rows, columns = (count, metrics) if across else (count * metrics, 1)
    all_panels = [panel for row in panels for panel in row]
    height = _panel_height(all_panels, 2.8 if not across else 4.6 if count < 3 else 3.2)
    width = look.inches(1.6 + 2.9 * columns)
    head = _head(all_panels, width, look)
    figure = GradlensFigure(figsize=(width, 1.2 * across + head_inches(head) + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    labels, formats = label_runs([row[0].run for row in panels]), list[Patch]()
    for m in range(metrics):
        column = [row[m] for row in panels]
        own_axes: NDArray[Any] = axes[:, m] if across else axes[m * count : (m + 1) * count, 0]
        scale = common_scale(column)
        for i, axis in enumerate(own_axes):
            named = m == 0 or not across or _names(column[i]) != _names(panels[i][m - 1])
            draw_panel(axis, column[i], scale, labels=named, least_gap=_gap(column[i], height), by=by,
                       inches=width / columns)  # fmt: skip
            draw_marks(axis, marks[i][m], column[i].edges, findings=m == metrics - 1)
            if i == 0 or not across:
                title = column[i].view.metric if across else f"{labels[i]}: {column[i].view.metric}"
                axis.set_title(_wrapped(title, width / columns - (0.2 if across else 1.4)), fontweight="bold")
            if across and m == 0:
                axis.set_ylabel(_wrapped(labels[i], height), fontweight="bold", fontsize=9)
            if across and i + 1 < count:
                axis.set_xlabel("")
        along = 0.78 * width / columns if across else height * count - 0.6
        bar = draw_colour_bar(figure, own_axes, column, scale, below=across, inches=along)
        formats += mark_formats(bar, column[0], scale)
    unique = list({handle.get_label(): handle for handle in formats}.values())
    draw_key(figure, all_panels, [*mark_handles([one for row in marks for one in row]), *unique])
    figure.suptitle(head, x=0.01, ha="left", fontsize=8)
    return figure


def _title(panel: Panel, label: str, inches: float, *, short: bool) -> str:
    """Return the title of a panel: the run, and the message of its gradient."""
    if panel.view.metric not in GRADIENT_NORMS or panel.minus is not None:
        return _wrapped(label, inches)
    rows = rows_within(panel.run, *panel.view.steps)
    message = say_message(_ratio(panel.run, panel.view), rows.stop - rows.start, short=short)
    if short:
        return "\n".join(_wrapped(text, inches) for text in (label, message) if text)
    return _wrapped(f"{label}: {message}" if message else label, inches)


def _names(panel: Panel) -> list[str]:
    return [layer.name for layer in panel.layers]


def _beside_names(panel: Panel, inches: float) -> float:
    """Return by how many inches a title must be shorter, because it begins behind long names of layers.

    A title takes 0.7 of the inches that its length is reckoned by.
    """
    longest = min(max(map(len, _names(panel)), default=0), name_room(inches, 7.0))
    return max(longest * LETTER_IN - USUAL_NAMES_IN, 0.0) / 0.7


def _gap(panel: Panel, height_in: float) -> float:
    """Return how many layers apart two names of 6 points must be, so that they do not overlap."""
    return len(panel.layers) * 0.105 / max(height_in - 0.9, 0.5)


def _wrapped(text: str, inches: float, characters: int = 10) -> str:
    return "\n".join(textwrap.wrap(text, max(int(inches * characters), 9)))


def _head(panels: Sequence[Panel], width: float, look: Look) -> str:
    return fill(_sentences(panels, short=look.width == "one"), width)


def caption(
    runs: Sequence[Run],
    metric: str | Sequence[str] = ACTIVATION_GRAD_NORM,
    *,
    per_element: bool = False,
    relative: bool = False,
    steps: Span = (None, None),
    minus: Run | None = None,
) -> str:
    """Describe the heatmap in a sentence per run and metric, from the numbers, and say how to read it.

    Args:
        runs: As for ``draw_heatmap``.
        metric: As for ``draw_heatmap``.
        per_element: As for ``draw_heatmap``.
        relative: As for ``draw_heatmap``.
        steps: As for ``draw_heatmap``.
        minus: As for ``draw_heatmap``.

    Returns:
        The sentences, a line each. The figure itself shows as many of them as fit three lines.
    """
    names = [metric] if isinstance(metric, str) else list(metric)
    views = [View(name, per_element, relative, steps) for name in names]
    columns = COLUMNS if minus else FEW_COLUMNS
    panels = [
        make_panel(run, view, columns=columns, minus=minus, most_layers=MOST_SEEN) for run in runs for view in views
    ]
    return "\n".join(_sentences(panels))


def _sentences(panels: Sequence[Panel], *, short: bool = False) -> list[str]:
    """Describe the panels and how to read them; a figure as wide as one column of print leaves out the latter."""
    metrics = list(dict.fromkeys(panel.view.metric for panel in panels))
    runs = list({id(panel.run): panel.run for panel in panels}.values())
    labels = {id(run): label for run, label in zip(runs, label_runs(runs), strict=True)}
    sentences = _describe_groups(panels) if len(runs) > MOST_SENTENCES else []
    run_by_run = not sentences
    for run in runs[:MOST_SENTENCES] if run_by_run else []:
        own = [panel for panel in panels if panel.run is run]
        texts = [_describe_difference(panel) if panel.minus is not None else _describe_panel(panel) for panel in own]
        if len(metrics) > 1:
            texts = [f"{panel.view.metric}: {text}" for panel, text in zip(own, texts, strict=True) if text]
        if any(texts):
            sentences.append(f"{labels[id(run)]}: {'; '.join(text for text in texts if text)}.")
    if len(runs) > MOST_SENTENCES and run_by_run:
        sentences.append(f"The figure shows {plural(len(runs) - MOST_SENTENCES, 'more run')}.")
    if short:
        return sentences
    cautions = dict.fromkeys(text for metric in metrics if (text := say_caution(metric)))
    return [*sentences, _how_to_read(panels), *cautions]


def _describe_groups(panels: Sequence[Panel]) -> list[str]:
    """Describe the gradient of many runs, grouped over seeds; return nothing for other metrics than gradients."""
    view = panels[0].view
    if (
        view.metric not in GRADIENT_NORMS
        or panels[0].minus is not None
        or any(one.view.metric != view.metric for one in panels)
    ):
        return []
    sentences = []
    for group in group_runs([panel.run for panel in panels]):
        ratios = [_ratio(run, view) for run in group.runs]
        known = sorted(value for ratio in ratios if ratio is not None and not np.isnan(value := ratio.typical()))
        if not known:
            continue
        ends = say_power(known[0]) if len(known) == 1 else f"{say_power(known[0])} to {say_power(known[-1])}"
        sentences.append(
            f"{group.label} ({plural(len(known), 'seed')}): {say_fate(over_seeds(known))} "
            f"(first over last hidden layer {ends}, medians over rows)."
        )
    return sentences[:MOST_SENTENCES]


def _how_to_read(panels: Sequence[Panel]) -> str:
    """Return a sentence on how to read the heatmap."""
    text = "Each row of a panel is a layer, with the input at the top; each column is an optimizer step"
    if any(is_linear(panel.view.metric) for panel in panels):
        text += ", or the steps up to the next recorded value"
    if any(panel.minus is not None for panel in panels):
        who = panels[0].run.name if len({id(panel.run) for panel in panels}) == 1 else "the panel's run"
        return f"{text}. Red: {who} has more than {panels[0].minus.name}; blue: it has less."  # type: ignore[union-attr]
    if any(panel.view.relative for panel in panels):
        return f"{text}. Red is larger than in the last hidden layer; blue is smaller."
    if any(panel.kind in ("signed", "difference") for panel in panels):
        text += ". Red is above 0; blue is below 0"
    return f"{text}."


def _ratio(run: Run, view: View) -> GradientRatio | None:
    return gradient_ratio(run, view.metric, rows_within(run, *view.steps), per_element=view.per_element)


def _describe_panel(panel: Panel) -> str:
    run, view = panel.run, panel.view
    rows = rows_within(run, *view.steps)
    if view.metric in GRADIENT_NORMS:
        ratio = _ratio(run, view)
        if ratio is None:
            return ""
        nothing = say_all_zero(ratio, rows.stop - rows.start)
        if np.isnan(typical := ratio.typical()):
            return nothing
        known = f"median of {_say_rows(view, ratio.rows_known, rows)}"
        text = f"{say_fate(typical)}; {say_ratio(say_layer(ratio.first), say_layer(ratio.last), typical)} ({known})"
        return "; ".join(filter(None, [text, nothing]))
    profile = depth_profile(run, view.metric, rows, per_element=view.per_element)
    if np.isnan(profile).all():
        return ""
    low, high = int(np.nanargmin(profile)), int(np.nanargmax(profile))
    values = [say_value(profile[i], view.metric) for i in (low, high)]
    middle = f", median layer {say_value(median_of_all(profile), view.metric)}" if is_linear(view.metric) else ""
    return (
        f"median over rows from {values[0]} ({run.layers[low].name}) to {values[1]} ({run.layers[high].name}){middle}"
    )


def _say_rows(view: View, known: int, rows: slice) -> str:
    """Return which rows a number covers; "shown" is added if the heatmap shows a part of the run."""
    text = say_rows(known, rows.stop - rows.start)
    return text if view.steps == (None, None) else f"{text} shown"


def _describe_difference(panel: Panel) -> str:
    finite = np.where(np.isfinite(panel.drawn), panel.drawn, np.nan)
    if np.isnan(finite).all() or panel.minus is None:
        return "there is no step at which both runs have a value"
    centre, share = median_of_all(finite), float((finite > 0).sum() / np.isfinite(finite).sum())
    typical = f"{say_power(centre)} times that of" if panel.kind == "ratio" else f"differs by {centre:+.3f} from"
    return f"{typical} {panel.minus.name}, median over layers and steps; larger in {share:.0%} of them"


def say_value(value: float, metric: str) -> str:
    """Format a value of a metric: a magnitude with an exponent, a share or cosine with two decimals.

    Args:
        value: The value.
        metric: The metric's name.

    Returns:
        The text.
    """
    return f"{value:+.2f}" if is_linear(metric) and 0.01 <= abs(value) < 100 else f"{value:.1e}"


MOST_PANELS = 6
"""Most panels of the report's figure."""


def for_report(runs: Sequence[Run], groups: Sequence[Group]) -> tuple[GradlensFigure, str, list[Run]] | None:
    """Return the report's figure, its caption and its runs; None where nothing is recorded."""
    measured = [run for run in runs if len(run.steps) and ACTIVATION_GRAD_NORM in run.metrics]
    firsts = [group.runs[0] for group in groups if any(run is group.runs[0] for run in measured)][:MOST_PANELS]
    return (draw_heatmap(firsts), caption(firsts), firsts) if firsts else None
