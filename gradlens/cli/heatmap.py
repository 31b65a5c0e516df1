"""``gradlens heatmap``: a metric of all layers over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from gradlens.cli.options import (
    GivenPath,
    check_figure_options,
    figure_options,
    load_plots,
    look_options,
    metric_names,
    metrics_option,
    open_runs,
    parse_steps,
    runs_argument,
    write_figures,
)
from gradlens.errors import ConfigError
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.specs import say_span

DEFAULT = (ACTIVATION_GRAD_NORM,)


@click.command()
@runs_argument
@metrics_option(DEFAULT[0], several=True)
@click.option("--per-element", is_flag=True, help="Divide norms by sqrt(number of elements), which gives the RMS.")
@click.option("--relative", is_flag=True, help="Divide magnitudes by that of the last hidden layer at the same step.")
@click.option(
    "--minus",
    metavar="RUN",
    type=GivenPath(),
    help="Show the difference from this run; for magnitudes, log10 of the ratio.",
)
@click.option(
    "--steps",
    metavar="FIRST:LAST",
    default=":",
    help="Optimizer steps to show; FIRST or LAST may be omitted. Default: all.",
)
@click.option(
    "--by",
    type=click.Choice(["step", "epoch"]),
    default="step",
    show_default=True,
    help="Unit of the horizontal axis of the figure.",
)
@click.option(
    "--marks/--no-marks", default=True, show_default=True,
    help="Mark in the figure: drops of the learning rate, steps that are not finite, layers of findings.",
)  # fmt: skip
@look_options
@figure_options
def heatmap(
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    per_element: bool,
    relative: bool,
    minus: str | None,
    steps: str,
    by: Literal["step", "epoch"],
    marks: bool,
    theme: str,
    width: str,
    caption: bool,
    outputs: tuple[Path, ...],
    terminal: bool,
) -> None:
    """Show a metric of all layers over the steps, in the terminal and as a figure.

    RUNS are files, names under runs/, or folders; default: the newest run. Several runs share one colour scale. Each
    of several metrics gets a column of panels: --metric param_grad_norm,grad_coherence,coherent_grad_norm.
    """
    check_figure_options(outputs, terminal)
    window = parse_steps(steps)
    plain, subtracted = open_runs(runs, default="newest"), open_runs((minus,), default="newest") if minus else []
    from gradlens.analysis.derived_metrics import check_metric, with_derived

    found, others = [with_derived(run) for run in plain], [with_derived(run) for run in subtracted]
    if len(others) > 1:
        raise ConfigError(f"--minus {minus}: expected one run, got {len(others)}")
    other = others[0] if others else None
    for item in [*found, *others]:
        for metric in metrics:
            check_metric(item, metric)
    view: dict[str, Any] = {"per_element": per_element, "relative": relative, "steps": window, "minus": other}
    from gradlens.terminal.console import results
    from gradlens.terminal.heatmap import print_heatmap

    for metric in metrics:
        print_heatmap(results(), found, metric, **view)
    if terminal:
        return
    load_plots()
    from gradlens.plots import draw_heatmap, figure_name
    from gradlens.plots.heatmap import caption as say_caption
    from gradlens.plots.style import make_look

    look = make_look(theme, width, caption=caption)
    details = [
        *metric_names(metrics, DEFAULT),
        *(["per-element"] if per_element else []),
        *(["relative"] if relative else []),
        *([f"minus-{other.name}"] if other else []),
        *say_span(window),
        *(["epochs"] if by == "epoch" else []),
        *look.details(),
    ]
    write_figures(
        lambda: draw_heatmap(found, metrics, **view, by=by, marks=marks, look=look),
        figure_name("heatmap", found, *details),
        outputs,
        runs=[*found, *others],
        look=look,
        caption=say_caption(found, metrics, **view).replace("\n", " "),
    )
