"""Write runs as a table or as events: which format, which columns, and to which place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradlens.errors import ConfigError
from gradlens.export.csvfile import write_csv
from gradlens.export.destinations import default_place, whole_file, whole_folder
from gradlens.export.optional_libraries import check_library
from gradlens.export.parquet import write_parquet
from gradlens.export.tables import Table, distinct, held_metrics, make_table
from gradlens.export.tensorboard_events import write_events
from gradlens.run import Run
from gradlens.specs import EXPORT_FORMS, EXPORT_TABLES

STDOUT = "-"


@dataclass(frozen=True)
class Wanted:
    """What to write.

    Args:
        form: One of ``EXPORT_FORMS``.
        table: One of ``EXPORT_TABLES``.
        metrics: Columns of the table of metrics, or series of events; () for all.
        safe: Whether no text of a CSV file may be a formula.
    """

    form: str
    table: str
    metrics: tuple[str, ...]
    safe: bool = True


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        path: The file, or the folder of events.
        count: Rows of a table, or steps as events.
        runs: How many runs it holds.
    """

    path: Path
    count: int
    runs: int


def make_wanted(
    form: str | None,
    output: str | os.PathLike[str] | None,
    table: str | None,
    metrics: Sequence[str],
    *,
    safe: bool = True,
) -> Wanted:
    """Check what was asked for, and choose what was not.

    Args:
        form: One of ``EXPORT_FORMS``; None chooses by the ending of ``output``, else CSV.
        output: A file or folder; "-" is standard output; None is the default place.
        table: One of ``EXPORT_TABLES``; None is the table of metrics.
        metrics: Which metrics; () for all.
        safe: Whether no text of a CSV file may be a formula.

    Returns:
        What to export, complete.

    Raises:
        ConfigError: Two of them contradict each other, or one is not known.
        GradlensError: The library that writes the format is not installed.
    """
    chosen = choose_form(form, None if output is None else os.fspath(output))
    if chosen == "tensorboard" and table is not None:
        raise ConfigError("--table is for csv and parquet; TensorBoard gets all numbers")
    table = table or "metrics"
    if table not in EXPORT_TABLES:
        raise ConfigError(f"unknown table {table!r}; expected one of {', '.join(EXPORT_TABLES)}")
    if metrics and table != "metrics":
        raise ConfigError(f"--metric chooses columns of the table metrics, not of {table}")
    check_library(chosen)
    return Wanted(chosen, table, tuple(metrics), safe)


def choose_form(form: str | None, output: str | None) -> str:
    """Choose the format by what was asked for, and by the ending of the output.

    Returns:
        One of ``EXPORT_FORMS``.

    Raises:
        ConfigError: They contradict each other, or the ending says nothing.
    """
    if form is not None and form not in EXPORT_FORMS:
        raise ConfigError(f"unknown format {form!r}; expected one of {', '.join(EXPORT_FORMS)}")
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


def write_runs(
    runs: Sequence[Run], wanted: Wanted, output: str | os.PathLike[str] | None, *, overwrite: bool
) -> Written:
    """Write runs to one table, or to a folder of events each.

    Args:
        runs: Each file is written once.
        wanted: See ``make_wanted``.
        output: A file, for events a folder; None is the default place under ``exports/``.
        overwrite: Replace what is there.

    Returns:
        Where the export is, and how much it holds.

    Raises:
        ConfigError: No run holds a metric that was asked for, or the output is a run itself.
        RunExistsError: The output is there, and is not to be replaced.
        RunFileError: It cannot be written.
    """
    named = distinct(runs)
    metrics = held_metrics(named.values(), wanted.metrics)
    path = Path(output) if output is not None else default_place(wanted.form, named, wanted.table)
    if wanted.form == "tensorboard":
        return Written(path, _write_events(named, metrics, path, overwrite), len(named))
    rows = make_table(wanted.table, named, metrics)
    with whole_file(path, named, overwrite=overwrite) as temporary:
        return Written(path, _write_table(rows, wanted, temporary), len(named))


def make_rows(runs: Sequence[Run], wanted: Wanted) -> Table:
    """Return the table that would be written.

    Raises:
        ConfigError: No run holds a metric that was asked for.
    """
    named = distinct(runs)
    return make_table(wanted.table, named, held_metrics(named.values(), wanted.metrics))


def _write_table(rows: Table, wanted: Wanted, path: Path) -> int:
    if wanted.form == "parquet":
        return write_parquet(rows, path)
    with path.open("w", encoding="utf-8", newline="") as stream:
        return write_csv(rows, stream, safe=wanted.safe)


def _write_events(runs: Mapping[str, Run], metrics: Sequence[str], path: Path, overwrite: bool) -> int:
    with whole_folder(path, overwrite=overwrite) as temporary:
        return sum(
            write_events(run, temporary / name if len(runs) > 1 else temporary, metrics) for name, run in runs.items()
        )
