"""``gradlens compare``: accuracy and loss of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradlens.cli.options import (
    check_figure_options,
    figure_options,
    format_option,
    look_options,
    open_runs,
    print_rows,
    runs_argument,
    say,
    write_figures,
)
from gradlens.errors import ConfigError


@click.command()
@runs_argument
@click.option("--with-study", is_flag=True, help="Add the published numbers of the original study to the table.")
@click.option("--with-report", "with_study_as_before", is_flag=True, hidden=True)
@format_option
@look_options
@figure_options
def compare(
    runs: tuple[str, ...],
    with_study: bool,
    with_study_as_before: bool,
    form: str,
    theme: str,
    width: str,
    caption: bool,
    outputs: tuple[Path, ...],
    terminal: bool,
) -> None:
    """Compare accuracy and loss of RUNS over epochs.

    Seeds of one model are grouped, with the 95 % interval of their mean. RUNS are files, names under runs/, or
    folders; default: all runs under runs/.
    """
    check_figure_options(outputs, terminal)
    found = [run for run in open_runs(runs, default="all") if len(run.epochs.get("epoch", ()))]
    if not found:
        raise ConfigError("nothing to compare: no run has finished an epoch")
    from gradlens.analysis.compare import final_table, group_runs, repeated_runs
    from gradlens.studies import references

    for run in repeated_runs(found):
        say(f"{run.path} repeats a seed of the same model and settings: it is left out")
    groups = group_runs(found)
    published = references() if with_study or with_study_as_before else ()
    if form == "table":
        from gradlens.terminal.compare import print_compare
        from gradlens.terminal.console import results

        print_compare(results(), groups, published)
    else:
        print_rows([_flat(row) for row in final_table(groups, published)], form)
    if terminal:
        return
    from gradlens.plots import draw_compare, figure_name
    from gradlens.plots.compare import caption as say_caption
    from gradlens.plots.style import make_look

    look = make_look(theme, width, caption=caption)
    write_figures(
        lambda: draw_compare(found, references=published, look=look),
        figure_name("compare", found, *look.details()),
        outputs,
        runs=found,
        caption=say_caption(groups),
        look=look,
    )


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    from gradlens.analysis.stats import Interval

    flat: dict[str, Any] = {"quantity": row["quantity"]}
    for key, value in row.items():
        if isinstance(value, Interval):
            parts = {"": value.mean, " std": value.std, " low": value.low, " high": value.high, " n": value.n}
            flat |= {f"{key}{name}": None if part != part else part for name, part in parts.items()}
        elif key not in ("quantity", "column"):
            flat[key] = value
    return flat
