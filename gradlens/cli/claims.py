"""``gradlens claims``: test the claims of the original study."""

from __future__ import annotations

from pathlib import Path

import click

from gradlens.cli.options import GivenPath, format_option, open_runs, print_rows, runs_argument, say
from gradlens.errors import ConfigError
from gradlens.format import to_json


@click.command()
@runs_argument
@click.option("--detail", is_flag=True, help="Also show the verdict of each setting, the criteria, and all numbers.")
@click.option(
    "--keep",
    type=GivenPath(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Also write the numbers of RUNS that the claims use into FOLDER (runs.jsonl.gz, a few kB for each run).",
)
@click.option(
    "--from",
    "kept",
    type=GivenPath(exists=True, path_type=Path),
    metavar="FOLDER",
    help="Judge by the numbers that --keep wrote into FOLDER, instead of RUNS; all verdicts and numbers are the same.",
)
@format_option
def claims(runs: tuple[str, ...], detail: bool, keep: Path | None, kept: Path | None, form: str) -> None:
    """Test the claims of the original study with RUNS.

    Shows the verdict on each claim and the evidence for it. RUNS are files, names under runs/, or folders, including
    the folders in them; default: all runs under runs/. The claims need runs of plain and residual models that were
    trained with the same settings and share at least two seeds; gradlens run report makes such runs. Control runs
    (such as plain8 and plain34-nobn-sigmoid), and runs of models whose shortcut passes only the value or only the
    gradient (resnet34-valueonly, resnet34-gradonly), are recognised by the name of their model. Only runs
    that the command run trained are judged: a model in your own loop may have the same name and be another one.
    """
    if kept is not None and (runs or keep):
        raise ConfigError("--from FOLDER takes the place of RUNS, and its numbers are kept already")
    from gradlens import studies

    if kept is None:
        found = open_runs(runs, default="all")
        judgement = studies.judge(found)
        if keep is not None:
            say(f"wrote {studies.keep(found, keep)}")
    else:
        judgement = studies.judge_kept(kept)
    if form == "json":
        click.echo(to_json(judgement.to_dict()))
    elif form == "csv":
        print_rows(judgement.rows(), form)
    else:
        from gradlens.terminal.claims import print_claims
        from gradlens.terminal.console import results

        print_claims(results(), judgement, detail=detail)
