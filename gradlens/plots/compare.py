"""Accuracy and loss of several models over epochs, or scalars over steps, and a table of the end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradlens.analysis.compare import (
    Reference,
    columns_of,
    compare_runs,
    final_table,
    find_lead,
    say_end,
    say_interval,
    say_unequal,
)
from gradlens.analysis.groups import Group, length_of, n_epochs
from gradlens.analysis.stats import Interval
from gradlens.analysis.step_curves import has_scalars
from gradlens.format import plural
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.style import DASHES, Look, current, fill, head_inches, house_style, looks_of, usual_look
from gradlens.run import FloatArray, Run

MOST_SINGLE, MOST_BANDS = 4, 6
"""With more groups than these, the lines of single seeds and the bands are left out: they would hide the means."""
MOST_PANELS = 6
"""Further quantities are in the JSON and CSV output only."""
MOST_RAW = 2000
"""Logged values of a run that are drawn behind its smoothed curve."""
MOST_LINES = 12
"""With more single seeds than these, their lines are left out: a band shows a tangle better."""
ROW_IN = 0.2
"""Height of a row of the legend and of the table, in inches."""
NO_NAMES = ("quantity", "column")
"""The keys of a row of the table that are no names of models."""
ENDED = "after | a seed has ended: mean of the others"
FAR = 1.5
"""The axis of a loss is cut when its highest value is this many times the upper end of 95 % of the values."""


def draw_compare(
    runs: Sequence[Run],
    *,
    references: Sequence[Reference] = (),
    look: Look | None = None,
    by: Literal["epoch", "step"] | None = None,
) -> GradlensFigure:
    """Draw accuracy and loss over epochs, or logged scalars over steps, a line per model, and a table of the end.

    Lines are means over seeds; where a seed has ended, the mean of the others goes on dotted. Bands are 95 % intervals
    of the mean; thin lines are single seeds. Networks that differ in depth have shades of one colour, stronger for the
    deeper ones.

    Args:
        runs: Runs with a table of epochs, or with logged scalars.
        references: Published numbers to add to the table.
        look: Theme, width and caption; light, for a screen and with a caption by default.
        by: As in ``compare_runs``.

    Returns:
        The figure.

    Raises:
        ConfigError: No run has finished an epoch, or logged a scalar.
    """
    groups = list(compare_runs(runs, by=by).groups)
    look = look or usual_look()
    with house_style(look):
        return _draw(groups, references, look)


def _draw(groups: list[Group], references: Sequence[Reference], look: Look) -> GradlensFigure:
    table = final_table(groups, references)[:MOST_PANELS]
    width, one = look.inches(7.2), look.width == "one"
    looks = looks_of([group.model for group in groups])
    head = fill(_sentences(groups), width)
    ended = [ENDED] if any(group_ends(group) for group in groups) else []
    labels = [_in_lines(_label(group), int(width * 12) - 6) for group in groups]
    columns = max(1, int(width * 13 / (max(map(len, [*"\n".join(labels).split("\n"), *ended])) + 7)))
    lines = max(label.count("\n") + 1 for label in labels)
    names = ROW_IN * lines * -(-(len(groups) + len(ended)) // columns) + 0.1
    lines = max(_row_label(name, narrow=one).count("\n") + 1 for name in table[0] if name not in NO_NAMES)
    rows = ROW_IN * ((len(table[0]) - 2) * max(1.7 if one else 1.0, 0.85 * lines) + 1.6) + 0.25
    panels = [2.1] * len(table) if one else [2.2] * -(-len(table) // 2)
    heights = [*panels, names, rows]
    figure = GradlensFigure(figsize=(width, sum(heights) + head_inches(head) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1 if one else 2, height_ratios=heights)
    for i, row in enumerate(table):
        axis = figure.add_subplot(grid[i, 0] if one else grid[i // 2, i % 2])
        _draw_panel(axis, groups, row["column"], looks)
        axis.set_title(row["quantity"])
        if i < len(table) - (1 if one else 2):
            axis.set_xlabel("")
    handles = [
        Line2D([], [], color=colour, linestyle=dash, label=label, **_mark_single(group.positions, dash))  # type: ignore[arg-type]
        for group, label, (colour, dash) in zip(groups, labels, looks, strict=True)
    ]
    if any(group_ends(group) for group in groups):
        handles.append(Line2D([], [], color=current().ink, linestyle=REST, linewidth=1.0, label=ENDED))
    legend = figure.add_subplot(grid[-2, :])
    legend.axis("off")
    legend.legend(handles=handles, loc="center", ncols=columns)
    _draw_table(figure.add_subplot(grid[-1, :]), groups, table, looks, narrow=one)
    figure.suptitle(head, x=0.01, ha="left", fontsize=8)
    return figure


def draw_curves(axis: Axes, groups: Sequence[Group], column: str) -> None:
    """Draw a quantity over epochs, a line per group.

    Args:
        axis: The axes to draw on.
        groups: Groups of runs; their curves are (S, E), seeds by epochs.
        column: A column of the table of epochs, such as ``val_loss``.
    """
    _draw_panel(axis, list(groups), column, looks_of([group.model for group in groups]))


def _draw_panel(axis: Axes, groups: list[Group], column: str, looks: list[tuple[str, str]]) -> None:
    all_values = []
    for group, (colour, dash) in zip(groups, looks, strict=True):
        curves = group.curve(column)
        epochs = group.positions
        stats = group.mean_curve(column)
        whole = np.array([s.n == len(group.runs) for s in stats])  # a mean over fewer seeds is another mean
        mean = np.where(whole, [s.mean for s in stats], np.nan)
        if group.window is not None and len(group.runs) == 1 and len(groups) <= MOST_BANDS:
            _draw_raw(axis, group.runs[0], column, colour)
        axis.plot(epochs, mean, color=colour, linestyle=dash, zorder=3, label=_label(group), **_mark_single(mean, dash))
        if group_ends(group):
            rest = np.where(whole, np.nan, [s.mean for s in stats])
            joint = max(int(whole.sum()) - 1, 0)
            rest[joint] = mean[joint] if whole.any() else rest[joint]
            axis.plot(epochs, rest, color=colour, linestyle=REST, linewidth=1.0, zorder=2.5)
            axis.plot(epochs[joint], rest[joint], "|", color=colour, markersize=7, zorder=3)
        if len(group.runs) > 1 and _shows_seeds(groups):
            axis.plot(epochs, curves.T, color=colour, linewidth=0.6, alpha=0.6, **_mark_single(curves))
        if len(group.runs) > 1 and len(groups) <= MOST_BANDS:
            low, high = ([getattr(s, end) for s in stats] for end in ("low", "high"))
            axis.fill_between(epochs, low, high, where=whole, color=colour, alpha=0.15, linewidth=0)
        all_values.append(curves[np.isfinite(curves)])
    axis.set_xlabel(groups[0].unit)
    if np.ptp(places := np.concatenate([group.positions for group in groups])):  # alike in all panels
        beside = rcParams["axes.xmargin"] * np.ptp(places)
        axis.set_xlim(places.min() - beside, places.max() + beside)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(color=current().faint, alpha=0.2, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    values = np.concatenate(all_values)
    if not len(values):
        axis.text(0.5, 0.5, "no value", transform=axis.transAxes, ha="center", color=current().faint)
        axis.set(xticks=[], yticks=[])
    if "acc" in column and values.max(initial=0.0) <= 1 and values.min(initial=0.0) >= 0:
        axis.set_ylim(0, 1.02)
    elif values.min(initial=0.0) >= 0:
        _limit(axis, np.concatenate(all_values))


def _mark_single(values: FloatArray, dash: str = "-") -> dict[str, Any]:
    """Return a marker for curves of one value, which a line would not show; it is hollow where the line is dashed."""
    if values.shape[-1] != 1:
        return {}
    hollow = {} if dash == DASHES[0] else {"markerfacecolor": current().paper, "markeredgewidth": 1.4}
    return {"marker": "o", "markersize": 5, **hollow}


def _draw_raw(axis: Axes, run: Run, column: str, colour: str) -> None:
    """Draw the values of a scalar as they were logged, faintly behind its smoothed curve."""
    if column in run.scalars:
        every = -(-len(run.steps) // MOST_RAW)
        axis.plot(run.steps[::every], run.scalars[column][::every], color=colour, linewidth=0.5, alpha=0.25, zorder=2)


REST = (0, (1, 1.5))
"""The dash style of a mean over the seeds that are left."""


def group_ends(group: Group) -> bool:
    """Return whether some seeds of a group have fewer epochs, or steps, than others."""
    return len({length_of(run, group.unit) for run in group.runs}) > 1


def _shows_seeds(groups: Sequence[Group]) -> bool:
    """Return whether single seeds have lines of their own."""
    return len(groups) <= MOST_SINGLE and sum(len(group.runs) for group in groups) <= MOST_LINES


def _limit(axis: Axes, values: FloatArray) -> None:
    """Cut the axis of a loss above 95 % of the values if some are far higher, and write how far those go."""
    highest = float(values.max(initial=0.0))
    upper = 1.2 * float(np.quantile(values, 0.95)) if len(values) else 1.0
    cut = highest > FAR * upper > 0
    axis.set_ylim(0, upper if cut else 1.05 * highest or 1.0)
    if cut:
        note = f"axis cut; highest value {highest:.3g}"
        axis.text(0.99, 0.97, note, transform=axis.transAxes, ha="right", va="top", fontsize=7, color=current().faint)


def _label(group: Group) -> str:
    seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    return f"{group.label}{seeds}"


def _draw_table(
    axis: Axes, groups: list[Group], rows: list[dict[str, Any]], looks: list[tuple[str, str]], *, narrow: bool
) -> None:
    """Draw a row per model and a column per quantity, so that any number of models fits."""
    axis.axis("off")
    names = [key for key in rows[0] if key not in NO_NAMES]
    extents = {group.label: _extent(group) for group in groups}
    cells = [[_cell(row[name]).replace(" ±", "\n±" if narrow else " ±") for row in rows] for name in names]
    table = axis.table(
        cellText=[[*line, extents.get(name, "")] for name, line in zip(names, cells, strict=True)],
        rowLabels=[_row_label(name, narrow=narrow) for name in names],
        colLabels=[
            quantity.replace(" ", "\n" if narrow else " ")
            for quantity in (
                *(row["quantity"] for row in rows),
                f"{'seeds, ' if any(group.seeds for group in groups) else ''}{groups[0].unit}s",
            )
        ],
        bbox=[0.0, 0.0, 1.0, 1.0],  # type: ignore[arg-type]
        cellLoc="center",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    colours = {group.label: colour for group, (colour, _) in zip(groups, looks, strict=True)}
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.5)
        cell.set_edgecolor(current().faint)
        if row == 0:
            cell.set_height(1.6 * cell.get_height())
        elif column < 0:
            cell.get_text().set_color(colours.get(names[row - 1], current().ink))
    several = any(len(group.runs) > 1 for group in groups)
    between = ", mean ± standard deviation between seeds" if several else ""
    axis.set_title(say_end(groups) + (between.replace("standard deviation", "s. d.") if narrow else between))


def _row_label(name: str, *, narrow: bool) -> str:
    """Return the name of a row of the table, in lines that leave room for the columns."""
    parts = name.replace(", ", ",\n").split("\n") if narrow else [name]
    return "\n".join(_in_lines(part, 15 if narrow else 34) for part in parts)


def _in_lines(text: str, most: int) -> str:
    return "\n".join(textwrap.wrap(text, most))


def _extent(group: Group) -> str:
    length = group.say_length().rpartition(" ")[0].replace(" to ", "-")
    return f"{len(group.runs)}, {length}" if group.seeds else length


def _cell(value: Interval | float) -> str:
    if isinstance(value, Interval):
        return say_interval(value)
    return "-" if np.isnan(value) else f"{value:.4g}"


def caption(groups: list[Group]) -> str:
    """Describe the figure in sentences: which model is ahead, and what lines and bands are; the table has the numbers.

    Args:
        groups: The groups in the figure.

    Returns:
        The sentences, in one line.
    """
    return " ".join(_sentences(groups))


def _sentences(groups: list[Group]) -> list[str]:
    """Return the sentences of the caption, the most important first."""
    unequal = say_unequal(groups)
    sentences = [f"Not equal: {'; '.join(unequal)}."] if unequal else []
    sentences.append(_describe_lead(groups))
    if (window := groups[0].window) is not None and window.width > 1:
        thin = " Thin lines are the logged values." if len(groups) <= MOST_BANDS else ""
        sentences.append(f"Lines are smoothed: each value is the mean of the last {window.width:,} steps.{thin}")
    if any(len(group.runs) > 1 for group in groups):
        more = ", dotted where a seed has ended" if any(map(group_ends, groups)) else ""
        sentences.append(f"Lines are means over seeds{more}.")
        if len(groups) <= MOST_BANDS:
            sentences.append("Bands are 95 % intervals of the mean.")
        if _shows_seeds(groups):
            sentences.append("Thin lines are single seeds.")
    return sentences


def _describe_lead(groups: list[Group]) -> str:
    lead = find_lead(groups)
    if lead is None:
        who = _label(groups[0]) if len(groups) == 1 else plural(len(groups), "model")
        what = "Accuracy and loss" if groups[0].window is None else "Logged scalars"
        return f"{what} of {who} over {groups[0].unit}s."
    quantity, best, other = columns_of(groups)[lead.column], lead.best.label, lead.other.label
    end = say_end(groups).partition(",")[0]
    when = f"after the {end}" if end.startswith("last") else f"at {end}"
    shown = max(len(lead.tied), 2)
    which = "" if len(groups) == shown else f"The {'two' if shown == 2 else shown} best of {len(groups)}: "
    if lead.is_shown:
        return f"{which}{best} is ahead of {other} in {quantity} {when}."
    if lead.difference.mean == 0:
        return f"{which}{lead.say_equal(quantity)} {when}."
    if lead.difference.n > 1:
        return f"{which}no difference in {quantity} between {best} and {other} is shown {when}."
    only = lead.say_runs()
    return f"{which}{best} is ahead of {other} in {quantity} {when}, by {only}."


def for_report(runs: Sequence[Run], groups: Sequence[Group]) -> tuple[GradlensFigure, str, list[Run]] | None:
    """Return the report's figure, its caption and its runs; None where no run has epochs or logged scalars."""
    if not any(n_epochs(run) or has_scalars(run) for group in groups for run in group.runs):
        return None
    shown = list(compare_runs(runs).groups)
    return draw_compare(runs), caption(shown), [run for group in shown for run in group.runs]
