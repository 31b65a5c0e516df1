"""``gradlens claims``: the original study's claims, put to the test."""

from __future__ import annotations

import click

from gradlens.cli.options import format_option, open_runs, print_rows, runs_argument
from gradlens.format import to_json


@click.command()
@runs_argument
@click.option("--detail", is_flag=True, help="Also each setting's verdict, the tests, and all numbers.")
@format_option
def claims(runs: tuple[str, ...], detail: bool, form: str) -> None:
    """Judge the original study's claims by RUNS: what would count, the evidence, the verdict.

    RUNS are files, names under runs/, or folders with all that is in them; left out, all runs under runs/. Needed are
    runs of plain and residual nets that were trained alike, with two seeds or more in common; see
    gradlens run report. Runs of controls, and of halves of the shortcut, are told by their model's name.
    """
    found = open_runs(runs, default="all", deep=True)
    from gradlens.studies import judge

    judgement = judge(found)
    if form == "json":
        click.echo(to_json(judgement.to_dict()))
    elif form == "csv":
        print_rows(judgement.rows(), form)
    else:
        from gradlens.terminal.claims import print_claims
        from gradlens.terminal.console import results

        print_claims(results(), judgement, detail=detail)
