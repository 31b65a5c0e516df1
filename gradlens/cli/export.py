"""``gradlens export``: runs for other programs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

import click

from gradlens.cli.options import open_runs, runs_argument
from gradlens.format import plural
from gradlens.specs import EXPORT_FORMS, EXPORT_TABLES


@click.command()
@runs_argument
@click.option("--to", "form", type=click.Choice(EXPORT_FORMS), help="Default: by the ending of -o PATH, else csv.")
@click.option("-o", "--output", type=click.Path(), help="A file, for tensorboard a folder; - prints CSV.")
@click.option(
    "--table", type=click.Choice(EXPORT_TABLES), help="Which table to write (default metrics); csv and parquet."
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def export(
    runs: tuple[str, ...],
    form: str | None,
    output: str | None,
    table: str | None,
    metrics: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write RUNS as tidy CSV, Parquet or TensorBoard events.

    RUNS are files, names under runs/, or folders; left out, it is the newest run. Several go into one table, with a
    column run; for TensorBoard, into a folder each. Without -o it goes to exports/.
    """
    from gradlens.export import STDOUT, make_rows, make_wanted, write_csv, write_runs

    wanted = make_wanted(form, output, table, metrics)
    found = open_runs(runs, default="newest")
    if output == STDOUT:
        rows = make_rows(found, wanted)
        _print_csv(lambda stream: write_csv(rows, stream))
        return
    written = write_runs(found, wanted, output, overwrite=overwrite)
    events = wanted.form == "tensorboard"
    said = f"{plural(written.count, 'step' if events else 'row')} of {plural(written.runs, 'run')}"
    then = f"; next: tensorboard --logdir {written.path}" if events else ""
    click.echo(f"wrote {written.path}: {said}{then}", err=True)


def _print_csv(write: Callable[[TextIO], int]) -> None:
    """Write UTF-8 to stdout; a reader that leaves early has what it wanted."""
    stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
    try:
        write(stream)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        stream.detach()
