"""Accuracy and loss of several models over epochs, and a table of the last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradlens.analysis.compare import FINAL_ROWS, Group, Reference, final_table, find_lead, group_runs, say_interval
from gradlens.analysis.stats import Interval
from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.style import Look, current, fill, head_inches, house_style, looks_of, usual_look
from gradlens.run import FloatArray, Run

PANELS = (
    ("train_accuracy", "training accuracy"),
    ("val_accuracy", "validation accuracy"),
    ("train_loss", "training loss"),
    ("val_loss", "validation loss"),
)
MOST_SINGLE, MOST_BANDS = 4, 6
"""With more groups than these, the lines of single seeds and the bands are left out: they would hide the means."""
MOST_LINES = 12
"""With more single seeds than these, their lines are left out: a band shows a tangle better."""
ROW_IN = 0.2
"""Height of a row of the legend and of the table, in inches."""
ENDED = "after | a seed has ended: mean of the others"
FAR = 1.5
"""The axis of a loss is cut when its highest value is this many times the upper end of 95 % of the values."""


def draw_compare(
    runs: Sequence[Run], *, references: Sequence[Reference] = (), look: Look | None = None
) -> GradlensFigure:
    """Draw training and validation accuracy and loss over epochs, a line per model, and a table of the last epoch.

    Lines are means over seeds; where a seed has ended, the mean of the others goes on dotted. Bands are 95 % intervals
    of the mean; thin lines are single seeds. Networks that differ in depth have shades of one colour, stronger for the
    deeper ones.

    Args:
        runs: Runs with a table of epochs.
        references: Published numbers to add to the table.
        look: Theme, width and caption; light, for a screen and with a caption by default.

    Returns:
        The figure.

    Raises:
        ConfigError: No run has finished an epoch.
    """
    groups = group_runs([run for run in runs if len(run.epochs.get("epoch", ()))])
    if not groups:
        raise ConfigError("nothing to compare: no run has finished an epoch")
    look = look or usual_look()
    with house_style(look):
        return _draw(groups, references, look)


def _draw(groups: list[Group], references: Sequence[Reference], look: Look) -> GradlensFigure:
    table = final_table(groups, references)
    width, one = look.inches(7.2), look.width == "one"
    looks = looks_of([group.model for group in groups])
    head = fill(_sentences(groups), width)
    ended = [ENDED] if any(group_ends(group) for group in groups) else []
    columns = max(1, int(width * 13 / (max(map(len, [*map(_label, groups), *ended])) + 7)))
    names = ROW_IN * -(-(len(groups) + len(ended)) // columns) + 0.1
    rows = ROW_IN * ((len(table[0]) - 2) * (1.7 if one else 1) + 1.6) + 0.25
    panels = [2.1] * 4 if one else [2.2] * 2
    heights = [*panels, names, rows]
    figure = GradlensFigure(figsize=(width, sum(heights) + head_inches(head) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1 if one else 2, height_ratios=heights)
    for i, (column, title) in enumerate(PANELS):
        axis = figure.add_subplot(grid[i, 0] if one else grid[i // 2, i % 2])
        _draw_panel(axis, groups, column, looks)
        axis.set_title(title)
        if i < len(PANELS) - (1 if one else 2):
            axis.set_xlabel("")
    handles = [
        Line2D([], [], color=colour, linestyle=dash, label=_label(group))  # type: ignore[arg-type]
        for group, (colour, dash) in zip(groups, looks, strict=True)
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
        epochs = np.arange(1, curves.shape[1] + 1)
        stats = group.mean_curve(column)
        whole = np.array([s.n == len(group.runs) for s in stats])  # a mean over fewer seeds is another mean
        mean = np.where(whole, [s.mean for s in stats], np.nan)
        axis.plot(epochs, mean, color=colour, linestyle=dash, zorder=3, **_points(len(epochs)))
        if group_ends(group):
            rest = np.where(whole, np.nan, [s.mean for s in stats])
            joint = max(int(whole.sum()) - 1, 0)
            rest[joint] = mean[joint] if whole.any() else rest[joint]
            axis.plot(epochs, rest, color=colour, linestyle=REST, linewidth=1.0, zorder=2.5)
            axis.plot(epochs[joint], rest[joint], "|", color=colour, markersize=7, zorder=3)
        if len(group.runs) > 1 and _shows_seeds(groups):
            axis.plot(epochs, curves.T, color=colour, linewidth=0.6, alpha=0.6)
        if len(group.runs) > 1 and len(groups) <= MOST_BANDS:
            low, high = ([getattr(s, end) for s in stats] for end in ("low", "high"))
            axis.fill_between(epochs, low, high, where=whole, color=colour, alpha=0.15, linewidth=0)
        all_values.append(curves[np.isfinite(curves)])
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.grid(color=current().faint, alpha=0.2, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if "accuracy" in column:
        axis.set_ylim(0, 1.02)
    else:
        _limit(axis, np.concatenate(all_values))


REST = (0, (1, 1.5))
"""The dash style of a mean over the seeds that are left."""


def _points(count: int) -> dict[str, Any]:
    """Return the marker of a line: a single epoch is a point."""
    return {"marker": "o", "markersize": 3.5} if count == 1 else {}


def group_ends(group: Group) -> bool:
    """Return whether some seeds of a group have fewer epochs than others."""
    return len({len(run.epochs.get("epoch", ())) for run in group.runs}) > 1


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
    names = [key for key in rows[0] if key not in ("quantity", "column")]
    extents = {group.label: _extent(group) for group in groups}
    cells = [[_cell(row[name]).replace(" ±", "\n±" if narrow else " ±") for row in rows] for name in names]
    table = axis.table(
        cellText=[[*line, extents.get(name, "")] for name, line in zip(names, cells, strict=True)],
        rowLabels=[name.replace(", ", ",\n") if narrow else name for name in names],
        colLabels=[
            quantity.replace(" ", "\n" if narrow else " ")
            for quantity in (*(row["quantity"] for row in rows), "seeds, epochs")
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
    axis.set_title("last epoch" + (between.replace("standard deviation", "s. d.") if narrow else between))


def _extent(group: Group) -> str:
    counts = sorted(len(run.epochs.get("epoch", ())) for run in group.runs)
    epochs = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]}-{counts[-1]}"
    return f"{len(group.runs)}, {epochs}"


def _cell(value: Interval | float) -> str:
    return say_interval(value) if isinstance(value, Interval) else f"{value:.4g}"


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
    sentences = [_describe_lead(groups)]
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
        return f"Accuracy and loss of {who} over epochs."
    quantity, best, other = FINAL_ROWS[lead.column], lead.best.label, lead.other.label
    which = "" if len(groups) == 2 else f"The two best of {len(groups)}: "
    if lead.is_shown:
        return f"{which}{best} is ahead of {other} in {quantity} after the last epoch."
    if lead.difference.n > 1:
        return f"{which}no difference in {quantity} between {best} and {other} is shown after the last epoch."
    return f"{which}{best} is ahead of {other} in {quantity} after the last epoch, by one seed only."


def for_report(runs: Sequence[Run], groups: Sequence[Group]) -> tuple[GradlensFigure, str, list[Run]] | None:
    """Return the report's figure, its caption and its runs; None where no run has finished an epoch."""
    trained = [group for group in groups if any(len(run.epochs.get("epoch", ())) for run in group.runs)]
    return (draw_compare(runs), caption(trained), list(runs)) if trained else None
