"""``gradlens report``: a report of all runs on one page."""

from __future__ import annotations

from pathlib import Path

import click

from gradlens.cli.options import GivenFile, command_line, open_runs, runs_argument, say
from gradlens.format import plural


@click.command()
@runs_argument
@click.option(
    "-o", "--output", "outputs", multiple=True, type=GivenFile(dir_okay=False, path_type=Path),
    help="Write the report to this file (.html, .md, .pdf, .docx); repeatable. Default: report.html.",
)  # fmt: skip
@click.option(
    "--lang", "language", type=click.Choice(["en", "id"]), default="en", show_default=True,
    help="Language of the report: English or Indonesian.",
)  # fmt: skip
def report(runs: tuple[str, ...], outputs: tuple[Path, ...], language: str) -> None:
    """Write a report of RUNS: claims, findings, heatmaps, curves, hyper-parameters.

    RUNS are files, names under runs/, or folders, including the folders in them; default: all runs under runs/. The
    HTML page needs no network connection and no other file; a Markdown report has its figures in files of their own.
    """
    from gradlens.report.content import collect
    from gradlens.report.files import DEFAULT, check_report, write_report
    from gradlens.terminal.spinner import working

    for path in outputs or (DEFAULT,):
        check_report(path, language)
    found = open_runs(runs, default="all")
    with working("reading metrics and judging runs"):
        facts = collect(found, command=command_line())
    for path in facts.left_out:
        say(f"{path} repeats a seed of the same model and settings: it is left out")
    for path in outputs or (DEFAULT,):
        with working(f"drawing figures and writing {path}"):
            written, *figures = write_report(facts, path, language=language, asked=bool(outputs))
        more = f" and {plural(len(figures), 'figure')}" if figures else ""
        say(f"wrote {written}{more}")
