"""``gradlens claims``: test the claims of the original study."""

from __future__ import annotations

import click

from gradlens.cli.options import format_option, open_runs, print_rows, runs_argument
from gradlens.format import to_json


@click.command()
@runs_argument
@click.option("--detail", is_flag=True, help="Also show the verdict of each setting, the criteria, and all numbers.")
@format_option
def claims(runs: tuple[str, ...], detail: bool, form: str) -> None:
    """Test the claims of the original study with RUNS.

    Shows the verdict on each claim and the evidence for it. RUNS are files, names under runs/, or folders, including
    the folders in them; default: all runs under runs/. The claims need runs of plain and residual models that were
    trained with the same settings and share at least two seeds; gradlens run report makes such runs. Control runs
    (such as plain8 and plain34-nobn-sigmoid), and runs of models whose shortcut passes only the value or only the
    gradient (resnet34-valueonly, resnet34-gradonly), are recognised by the name of their model.
    """
    found = open_runs(runs, default="all")
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
