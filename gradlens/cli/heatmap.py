"""``gradlens heatmap``: layers by steps."""

from __future__ import annotations

from pathlib import Path

import click

from gradlens.cli.options import check_figure_options, figure_options, open_runs, runs_argument, write_figures
from gradlens.config import parse_span, say_span
from gradlens.metrics import METRICS


@click.command()
@runs_argument
@click.option("--metric", type=click.Choice(list(METRICS)), default="activation_grad_norm", show_default=True)
@click.option("--per-element", is_flag=True, help="Divide norms by sqrt(number of elements): the RMS.")
@click.option("--steps", metavar="FIRST:LAST", default=":", help="Optimizer steps to show; either may be left out.")
@figure_options
def heatmap(
    runs: tuple[str, ...], metric: str, per_element: bool, steps: str, outputs: tuple[Path, ...], terminal: bool
) -> None:
    """Show layers by steps, in the terminal and as a picture.

    RUNS are files, names under runs/, or folders; left out, it is the newest run. Several share one colour scale.
    """
    check_figure_options(outputs, terminal)
    found = open_runs(runs, default="newest")
    window = parse_span(steps)
    for item in found:
        item.metric_rows(metric, 0, 0)
    from gradlens.terminal.console import results
    from gradlens.terminal.heatmap import print_heatmap

    print_heatmap(results(), found, metric, per_element=per_element, steps=window)
    if terminal:
        return
    from gradlens.plots import draw_heatmap, figure_name
    from gradlens.plots.heatmap import caption

    details = [metric] if metric != "activation_grad_norm" else []
    name = figure_name("heatmap", found, *details, *(["per-element"] if per_element else []), *say_span(window))
    write_figures(
        lambda: draw_heatmap(found, metric, per_element=per_element, steps=window),
        name,
        outputs,
        runs=found,
        caption=caption(found, metric, per_element=per_element, steps=window).replace("\n", " "),
    )
