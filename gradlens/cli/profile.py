"""``gradlens profile``: a metric over depth, compared with theory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradlens.cli.options import (
    check_figure_options,
    figure_options,
    format_option,
    load_plots,
    look_options,
    metrics_option,
    open_runs,
    parse_steps,
    print_rows,
    runs_argument,
    say,
    write_figures,
)
from gradlens.metrics import ACTIVATION_GRAD_NORM, is_linear
from gradlens.specs import say_span


@click.command()
@runs_argument
@metrics_option(ACTIVATION_GRAD_NORM)
@click.option("--per-element", is_flag=True, help="Divide norms by sqrt(number of elements), which gives the RMS.")
@click.option(
    "--steps",
    metavar="FIRST:LAST",
    default=":",
    help="Optimizer steps to use; FIRST or LAST may be omitted. Default: all.",
)
@click.option(
    "--rows", "kind", type=click.Choice(["slopes", "layers"]), default="slopes", show_default=True,
    help="Rows of json and csv: one per run and section, or one per layer, as always for metrics without a slope.",
)  # fmt: skip
@format_option
@look_options
@figure_options
def profile(
    runs: tuple[str, ...],
    metric: str,
    per_element: bool,
    steps: str,
    kind: str,
    form: str,
    theme: str,
    width: str,
    caption: bool,
    outputs: tuple[Path, ...],
    terminal: bool,
) -> None:
    """Show a metric over the layers, its slope, and the first step compared with theory.

    RUNS are files, names under runs/, or folders; default: the newest run. Seeds of one model are grouped.
    """
    check_figure_options(outputs, terminal)
    window = parse_steps(steps)
    opened = open_runs(runs, default="newest")
    from gradlens.analysis.derived_metrics import with_derived
    from gradlens.analysis.groups import repeated_runs
    from gradlens.charts.curves import layer_rows, make_curves, slope_rows

    found = [with_derived(run) for run in opened]
    for run in repeated_runs(found):
        say(f"{run.path} repeats a seed of the same model and settings: it is left out")
    curves = make_curves(found, metric, per_element=per_element, steps=window)
    if form == "table":
        from gradlens.terminal.console import results
        from gradlens.terminal.profile import print_profile

        print_profile(results(), curves, metric, per_element=per_element)
    else:
        sloped = kind == "slopes" and not is_linear(metric)
        print_rows(slope_rows(curves) if sloped else layer_rows(curves), form)
    if terminal:
        return
    load_plots()
    from gradlens.plots import draw_profile, figure_name
    from gradlens.plots.profile import caption as say_caption
    from gradlens.plots.style import make_look

    look = make_look(theme, width, caption=caption)
    details = [
        *([metric] if metric != ACTIVATION_GRAD_NORM else []),
        *(["per-element"] if per_element else []),
        *say_span(window),
        *look.details(),
    ]
    view: dict[str, Any] = {"per_element": per_element, "steps": window}
    write_figures(
        lambda: draw_profile(curves, metric, **view, look=look),
        figure_name("profile", found, *details),
        outputs,
        runs=found,
        caption=say_caption(curves, metric).replace("\n", " "),
        look=look,
    )
