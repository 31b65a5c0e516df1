"""``gradlens summary``: the course of a run in one view."""

from __future__ import annotations

import click

from gradlens.cli.options import GivenPath, format_option, open_runs, print_rows
from gradlens.format import to_json


@click.command()
@click.argument("run", required=False, type=GivenPath())
@format_option
def summary(run: str | None, form: str) -> None:
    """Summarise RUN: diagnosis, notable facts, training table and depth profile.

    RUN is a file, a name under runs/, or a folder; default: the newest run.
    """
    found = open_runs([run] if run else [], default="newest")
    from gradlens.run_summary import layer_rows, summarise
    from gradlens.terminal.console import results
    from gradlens.terminal.summary import print_summary

    if form == "json":
        facts = [summarise(item).to_dict() for item in found]
        click.echo(to_json(facts[0] if len(facts) == 1 else facts))
    elif form == "csv":
        print_rows([{"run": item.name, **row} for item in found for row in layer_rows(item)], form)
    else:
        for item in found:
            print_summary(results(), item)
