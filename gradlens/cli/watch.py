"""``gradlens watch``: follow a run that is being written."""

from __future__ import annotations

import click

from gradlens.cli.options import GivenPath
from gradlens.metrics import METRICS


@click.command()
@click.argument("run", required=False, type=GivenPath())
@click.option(
    "--metric",
    type=click.Choice(list(METRICS)),
    metavar="METRIC",
    help="The metric to show first; the key m shows the next one.",
)
@click.option("--leave-at-end", is_flag=True, hidden=True, help="Leave when the run ends, as ``run --live`` asks.")
def watch(run: str | None, metric: str | None, leave_at_end: bool) -> None:
    """Follow RUN in full screen while it is written: heatmap, profile, curves and findings.

    RUN is a file, a name under runs/, or a folder; default: the newest run. It need not exist yet. Keys: q quits,
    space pauses, m changes the metric, r changes the range of rows, f shows all findings, ? shows the help. If stdout
    is no terminal, a line is printed for each epoch until the run ends.
    """
    from gradlens.terminal.live.watch import watch as follow

    follow(run, metric=metric or "", leave_at_end=leave_at_end)
