"""``gradlens export``: write runs in the formats of other programs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

import click

from gradlens.cli.options import GivenPath, check_is_file_name, open_runs, runs_argument, say
from gradlens.format import plural
from gradlens.specs import EXPORT_FORMS, EXPORT_TABLES


@click.command()
@runs_argument
@click.option(
    "--to", "form", type=click.Choice(EXPORT_FORMS), help="Format. Default: that of the ending of -o PATH, else csv."
)
@click.option(
    "-o",
    "--output",
    type=GivenPath(),
    help="The file to write, or for tensorboard the folder; - prints CSV on stdout. Default: in exports/.",
)
@click.option(
    "--table", type=click.Choice(EXPORT_TABLES), help="The table to write as csv or parquet. Default: metrics."
)
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="Write only this metric; repeatable.")
@click.option(
    "--safe/--no-safe", default=True, show_default=True,
    help="In CSV, put an apostrophe before texts that a spreadsheet would compute (= + - @).",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing file or folder.")
def export(
    runs: tuple[str, ...],
    form: str | None,
    output: str | None,
    table: str | None,
    metrics: tuple[str, ...],
    safe: bool,
    overwrite: bool,
) -> None:
    """Write RUNS as tidy CSV, Parquet or TensorBoard events.

    RUNS are files, names under runs/, or folders; default: the newest run. Several runs are written into one table,
    which has a column run; for TensorBoard each run gets its own folder.
    """
    from gradlens.export import STDOUT, make_rows, make_wanted, write_csv, write_runs
    from gradlens.terminal.spinner import working

    wanted = make_wanted(form, output, table, metrics, safe=safe)
    if output is not None and wanted.form != "tensorboard":
        check_is_file_name(output)
    found = open_runs(runs, default="newest")
    if output == STDOUT:
        rows = make_rows(found, wanted)
        _print_csv(lambda stream: write_csv(rows, stream, safe=safe))
        return
    with working("writing tables"):
        written = write_runs(found, wanted, output, overwrite=overwrite)
    events = wanted.form == "tensorboard"
    said = f"{plural(written.count, 'step' if events else 'row')} of {plural(written.runs, 'run')}"
    then = f"; next: tensorboard --logdir {written.path}" if events else ""
    say(f"wrote {written.path}: {said}{then}")


def _print_csv(write: Callable[[TextIO], int]) -> None:
    """Write UTF-8 to stdout; it is no error if the reader of a pipe exits early."""
    stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
    try:
        write(stream)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        stream.detach()
