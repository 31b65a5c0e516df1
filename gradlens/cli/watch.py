"""``gradlens watch``: follow a run that is being written."""

from __future__ import annotations

import click

from gradlens.metrics import METRICS


@click.command()
@click.argument("run", required=False, type=click.Path())
@click.option("--metric", type=click.Choice(list(METRICS)), help="Which to begin with; the key m goes on to the next.")
@click.option("--leave-at-end", is_flag=True, hidden=True, help="Leave when the run ends, as ``run --live`` asks.")
def watch(run: str | None, metric: str | None, leave_at_end: bool) -> None:
    """Follow RUN while it is written: heatmap, profile, curves and findings, in a full screen.

    RUN is a file, a name under runs/, or a folder; left out, it is the newest run. It may still be to come. Keys: q
    quits, space pauses, m changes the metric, r the range, f shows all findings, ? helps. Where stdout is no terminal,
    a line is printed for each epoch until the run ends.
    """
    from gradlens.terminal.live.watch import watch as follow

    follow(run, metric=metric or "", leave_at_end=leave_at_end)
