"""``gradlens export``: write runs in the formats of other programs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from gradlens.cli.options import open_runs, runs_argument
from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.specs import EXPORT_FORMS, EXPORT_TABLES

if TYPE_CHECKING:
    from gradlens.run import Run

STDOUT = "-"


@click.command()
@runs_argument
@click.option(
    "--to", "form", type=click.Choice(EXPORT_FORMS), help="Format. Default: that of the ending of -o PATH, else csv."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="The file to write, or for tensorboard the folder; - prints CSV on stdout. Default: in exports/.",
)
@click.option(
    "--table", type=click.Choice(EXPORT_TABLES), help="The table to write as csv or parquet (default metrics)."
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Write only this metric; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file or folder.")
def export(
    runs: tuple[str, ...],
    form: str | None,
    output: str | None,
    table: str | None,
    metrics: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write RUNS as tidy CSV, Parquet or TensorBoard events.

    RUNS are files, names under runs/, or folders; default: the newest run. Several runs are written into one table,
    which has a column run; for TensorBoard each run gets its own folder.
    """
    form = choose_form(form, output)
    if form == "tensorboard" and table is not None:
        raise ConfigError("--table is for csv and parquet; TensorBoard gets all numbers")
    table = table or "metrics"
    if metrics and table != "metrics":
        raise ConfigError(f"--metric chooses columns of the table metrics, not of {table}")
    from gradlens.export import check_library, default_place, distinct, held_metrics

    check_library(form)
    found = distinct(open_runs(runs, default="newest"))
    chosen = held_metrics(found.values(), metrics)
    path = Path(output) if output is not None else default_place(form, found, table)
    if form == "tensorboard":
        _write_events(found, chosen, path, overwrite)
    else:
        _write_table(found, chosen, table, form, path, overwrite)


def choose_form(form: str | None, output: str | None) -> str:
    """Return the format of the export, from the option --to and the ending of the output.

    Args:
        form: The value of --to, or None.
        output: The value of -o, or None.

    Returns:
        One of ``EXPORT_FORMS``.

    Raises:
        ConfigError: The two contradict each other, or the ending is that of no format.
    """
    if output is None:
        return form or "csv"
    ending = Path(output).suffix.lower()
    meant = "csv" if output == STDOUT else {".csv": "csv", ".parquet": "parquet"}.get(ending)
    if meant is None and form is None and (not ending or output.endswith("/") or Path(output).is_dir()):
        meant = "tensorboard"
    if form and meant and form != meant:
        raise ConfigError(f"--to {form} and -o {output} contradict each other: that would be {meant}")
    if not (form or meant):
        raise ConfigError(
            f"the ending of {output} names no format", tip=f"--to {', '.join(EXPORT_FORMS)}; or .csv, .parquet"
        )
    return form or meant or ""


def _write_table(
    runs: Mapping[str, Run], metrics: Sequence[str], table: str, form: str, path: Path, overwrite: bool
) -> None:
    from gradlens.export import make_table, whole_file, write_csv, write_parquet

    rows = make_table(table, runs, metrics)
    if str(path) == STDOUT:
        _print_csv(lambda stream: write_csv(rows, stream))
        return
    with whole_file(path, runs, overwrite=overwrite) as temporary:
        if form == "parquet":
            count = write_parquet(rows, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                count = write_csv(rows, stream)
    click.echo(f"wrote {path}: {plural(count, 'row')} of {plural(len(runs), 'run')}", err=True)


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


def _write_events(runs: Mapping[str, Run], metrics: Sequence[str], path: Path, overwrite: bool) -> None:
    from gradlens.export import whole_folder, write_events

    with whole_folder(path, overwrite=overwrite) as temporary:
        count = sum(
            write_events(run, temporary / name if len(runs) > 1 else temporary, metrics) for name, run in runs.items()
        )
    click.echo(
        f"wrote {path}: {plural(count, 'step')} of {plural(len(runs), 'run')}; next: tensorboard --logdir {path}",
        err=True,
    )
