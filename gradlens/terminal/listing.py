"""The list of the runs in a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.table import Table
from rich.text import Text

from gradlens.engines.notes import RunNote, find_noted, read_note
from gradlens.errors import GradlensError
from gradlens.format import plural, visible
from gradlens.storage import find_runs, read_card
from gradlens.storage.locate import name_below
from gradlens.storage.lock import killed_while_packing, seconds_silent, stopped_without_closing
from gradlens.terminal.cards import BAD, GOOD, OPEN, Card, print_card
from gradlens.terminal.console import STATUS_STYLE

STALE_SECONDS = 60.0
"""A running run whose last heartbeat, which comes every second, is older than this may have been killed."""
COLUMNS = ("run", "status", "epochs", "rows", "train acc", "val acc", "data / note")
MANY = 200
"""More runs than this are printed as plain lines, because a Rich table would be slow."""
MOST_NOTES = 3
LEAST_DATA = 10
"""Least width of the last column; in a narrower window it is left out."""
STOPPED = "stopped without closing its file"
SILENT = "no sign of life for a minute: killed?"
FIRST_RUN = "gradlens run plain34 makes one"


HANDED = ("waiting", "failed")
ABANDONED = "nobody starts it any more; the same command does"


def folder_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row of facts per run in a folder, and per run of an experiment that waits there or failed to start.

    Args:
        folder: The folder.

    Returns:
        The rows, by name.

    Raises:
        NoRunError: There is no such folder.
    """
    paths = find_runs(folder)
    noted = [path for path in find_noted(folder) if not path.exists()]
    return run_rows(sorted([*paths, *noted]), folder)


def run_rows(paths: list[Path], folder: Path | None = None) -> list[dict[str, Any]]:
    """Return a row of facts per run file; a file that cannot be read has a note that says why.

    Args:
        paths: The files.
        folder: The folder that is listed; a run in a folder below it is named ``norm/plain34-s0``.
    """
    return [_row(path, path.stem if folder is None else name_below(path, folder)) for path in paths]


def _row(path: Path, name: str) -> dict[str, Any]:
    job = read_note(path)
    if job is not None and not path.exists():
        return {"run": visible(name), "status": "failed" if job.failed else "waiting", "note": _why(job)}
    try:
        card = read_card(path)
    except GradlensError as error:
        return {"run": visible(name), "status": "unreadable", "note": visible(error.message)}
    beat = float(card.pop("heartbeat", 0))
    stopped = card["status"] == "running" and stopped_without_closing(path, beat)
    silent = card["status"] == "running" and not stopped and seconds_silent(beat) > STALE_SECONDS
    row = {
        "run": visible(name),
        **card,
        "seed": card["seed"] if card["seed"] >= 0 else None,
        "status": "interrupted" if stopped else card["status"],
        "note": STOPPED if stopped else SILENT if silent else _left(path, card["status"]),
    }
    if job is not None and card["status"] != "complete" and (job.failed or stopped or silent):
        row |= {"status": "failed" if job.failed else row["status"], "note": _why(job) or row["note"]}
    return row


def _left(path: Path, status: str) -> str:
    """Return what a writer left that was killed after the last row and before its file was packed."""
    if status == "running" or not killed_while_packing(path):
        return ""
    return "whole, but its writer was killed before it was packed: gradlens recover packs it"


def _why(job: RunNote) -> str:
    """Return why a run of an experiment failed, or waits after a failure."""
    reason = visible(job.reasons[-1]) if job.reasons else ""
    if job.failed:
        return reason if len(job.reasons) < 2 else f"{reason} (attempt {len(job.reasons)})"
    if job.abandoned:
        return ABANDONED
    return f"attempt {len(job.reasons) + 1}, after: {reason}" if reason else ""


def print_listing(console: Console, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Print the card of a folder, and the table of its runs."""
    title = f"{plural(len(rows), 'run')} in {folder}"
    if len(rows) > MANY:
        _print_many(console, title, rows)
        return
    print_card(console, _card(title, rows))
    if not rows:
        return
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    last = len(COLUMNS) - 1
    room = console.width - sum(widths[:last]) - 2 * len(COLUMNS)
    # The card has the data that all runs share, and the notes.
    shown = last if _common_data(rows) is not None or room < LEAST_DATA else last + 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i in range(shown):
        most = min(widths[i], room) if i == last else None
        side: JustifyMethod = "right" if 2 <= i < last else "left"
        fold: OverflowMethod = "ellipsis" if i else "fold"  # the end of a long name distinguishes it from others
        table.add_column(COLUMNS[i], justify=side, no_wrap=i > 0, overflow=fold, max_width=most)
    for row in cells:
        styled = [Text(cell, style=STATUS_STYLE.get(cell, "red") if i == 1 else "") for i, cell in enumerate(row)]
        table.add_row(*styled[:shown])
    console.print(table)


def _card(title: str, rows: list[dict[str, Any]]) -> Card:
    """Return the card: how many runs have which state, what is wrong, and what to do next."""
    counts = Counter(str(row["status"]) for row in rows)
    verdict = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "no run"
    wrong = [row for row in rows if row["status"] == "unreadable" or row["note"]]
    style = BAD if wrong or counts["failed"] else OPEN if counts["interrupted"] or not rows else GOOD
    lines = [("why", f"{row['run']}: {row['note']}") for row in wrong[:MOST_NOTES]]
    lines += [("", f"and {len(wrong) - MOST_NOTES} more")] if len(wrong) > MOST_NOTES else []
    data = _common_data(rows)
    lines += [("data", data)] if data else []
    if any(row["note"] == ABANDONED for row in wrong) or (wrong and all(row["status"] in HANDED for row in wrong)):
        todo = "the same command continues"
    elif wrong:
        todo = "gradlens recover repairs the file of a killed run"
    elif counts["running"]:
        todo = "gradlens watch follows the newest run"
    else:
        todo = "gradlens summary RUN shows one of them, gradlens compare RUN... compares several" if rows else FIRST_RUN
    return Card(title, verdict, style, (), [*lines, ("next", todo)])


def _common_data(rows: list[dict[str, Any]]) -> str | None:
    """Return the data that all runs were trained on; None if they differ, or if there is a note to show."""
    found = {str(row.get("data") or "") for row in rows}
    return found.pop() if len(found) == 1 and not any(row["note"] for row in rows) else None


def _print_many(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Print a line for each run, cut to the window; a Rich table of a thousand rows takes a second."""
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [Text(title, style="italic")]
    for i, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:-1], strict=True)]
        line = Text("  ".join([*padded, row[-1]]), style="bold" if i == 0 else "")
        if i:
            line.stylize(STATUS_STYLE.get(row[1], "red"), widths[0] + 2, widths[0] + 2 + len(row[1]))
        lines.append(line)
    for line in lines:
        line.truncate(console.width)
    console.print(Text("\n").join(lines), no_wrap=True, overflow="crop")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (str(row.get(key, "-")) for key in ("epochs", "rows"))
    shares = (_share(row.get(key)) for key in ("train_accuracy", "val_accuracy"))
    return (row["run"], str(row["status"]), *numbers, *shares, row["note"] or str(row.get("data") or ""))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
