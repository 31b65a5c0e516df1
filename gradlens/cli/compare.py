"""``gradlens compare``: accuracy, loss and other logged numbers of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gradlens.cli.options import (
    check_figure_options,
    figure_options,
    format_option,
    load_plots,
    look_options,
    open_runs,
    print_rows,
    runs_argument,
    say,
    write_figures,
)
from gradlens.format import plain

if TYPE_CHECKING:
    from gradlens.analysis.compare import Comparison
    from gradlens.analysis.groups import Group


@click.command()
@runs_argument
@click.option("--with-study", is_flag=True, help="Add the published numbers of the original study to the table.")
@click.option("--with-report", "with_study_as_before", is_flag=True, hidden=True)
@click.option(
    "--by",
    type=click.Choice(["epoch", "step"]),
    help="Compare over epochs, or logged scalars over steps; default: epochs where they were logged.",
)
@format_option
@look_options
@figure_options
def compare(
    runs: tuple[str, ...],
    with_study: bool,
    with_study_as_before: bool,
    by: Literal["epoch", "step"] | None,
    form: str,
    theme: str,
    width: str,
    caption: bool,
    outputs: tuple[Path, ...],
    terminal: bool,
) -> None:
    """Compare accuracy and loss of RUNS over epochs, or logged scalars over steps where no epochs were logged.

    The comparison is at the last epoch or step that all runs have; what else differs between the runs is listed first.
    Seeds of one model are grouped, with the 95 % interval of their mean. RUNS are files, names under runs/, or
    folders; default: all runs under runs/.
    """
    check_figure_options(outputs, terminal)
    found = open_runs(runs, default="all")
    from gradlens.analysis.compare import are_equally_long, compare_runs, final_table
    from gradlens.studies import references

    comparison = compare_runs(found, by=by)
    groups = list(comparison.groups)
    for run in comparison.repeats:
        say(f"{run.path} repeats a seed of the same model and settings: it is left out")
    published = references() if with_study or with_study_as_before else ()
    if form == "table":
        from gradlens.terminal.compare import print_compare
        from gradlens.terminal.console import results

        print_compare(results(), comparison, published)
    else:
        if comparison.unequal:
            say("not equal: " + "; ".join(comparison.unequal))
        own = None if are_equally_long(groups) else final_table(groups, own=True)
        rows = [_flat(row, comparison) for row in final_table(groups, published)]
        for row, more in zip(rows, own or [], strict=False):
            row |= {f"{g.label} own last": plain(more[g.label].mean) for g in groups}
        if form == "json" and comparison.unit == "step":
            rows = [row | {"curves": _curves(row, groups)} for row in rows]
        print_rows(rows, form)
    if terminal:
        return
    load_plots()
    from gradlens.plots import draw_compare, figure_name
    from gradlens.plots.compare import caption as say_caption
    from gradlens.plots.style import make_look

    look = make_look(theme, width, caption=caption)
    kept = [run for group in groups for run in group.runs]
    write_figures(
        lambda: draw_compare(found, references=published, look=look, by=by),
        figure_name("compare", kept, *([f"{by}s"] if by else []), *look.details()),
        outputs,
        runs=kept,
        caption=say_caption(groups),
        look=look,
    )


def _flat(row: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    from gradlens.analysis.stats import Interval

    flat: dict[str, Any] = {"quantity": row["quantity"], comparison.unit: comparison.groups[0].end}
    if (window := comparison.groups[0].window) is not None:
        flat["mean of steps"] = window.width
    for key, value in row.items():
        if isinstance(value, Interval):
            parts = {"": value.mean, " std": value.std, " low": value.low, " high": value.high, " n": value.n}
            flat |= {f"{key}{name}": None if part != part else part for name, part in parts.items()}
        elif key not in ("quantity", "column"):
            flat[key] = plain(value)
    return flat


def _curves(row: dict[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """Return the smoothed curves of a quantity, by label: steps and means; null where a group ended earlier."""
    from gradlens.analysis.compare import columns_of

    column = next(name for name, title in columns_of(groups).items() if title == row["quantity"])
    return {
        group.label: {
            "step": group.positions.astype(int).tolist(),
            "mean": [plain(interval.mean) for interval in group.mean_curve(column)],
        }
        for group in groups
    }
