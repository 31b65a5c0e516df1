"""The runs in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlens.errors import GradlensError
from gradlens.storage import read_card
from gradlens.terminal.console import STATUS_STYLE

STALE_SECONDS = 60.0
COLUMNS = ("run", "status", "epochs", "rows", "train acc", "val acc", "data / note")
MANY = 200


def run_rows(paths: list[Path]) -> list[dict[str, Any]]:
    """Return a row of facts per run file; what cannot be read says why."""
    return [_row(path) for path in paths]


def _row(path: Path) -> dict[str, Any]:
    try:
        card = read_card(path)
    except GradlensError as error:
        return {"run": path.stem, "status": "unreadable", "note": error.message}
    stale = card["status"] == "running" and time.time() - float(card.get("heartbeat", 0)) > STALE_SECONDS
    return {
        "run": path.stem,
        **{key: value for key, value in card.items() if key != "heartbeat"},
        "note": "no sign of life for a minute: killed?" if stale else "",
    }


def print_listing(console: Console, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Print the table of runs."""
    title = f"{len(rows)} run(s) in {folder}"
    if len(rows) > MANY:
        _print_many(console, title, rows)
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS[:2]:
        table.add_column(name, no_wrap=True)
    for name in COLUMNS[2:-1]:
        table.add_column(name, justify="right")
    table.add_column(COLUMNS[-1], overflow="fold")
    for row in rows:
        name, status, *numbers, note = _cells(row)
        table.add_row(Text(name), Text(status, style=STATUS_STYLE.get(status, "red")), *numbers, Text(note))
    console.print(table)


def _print_many(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Print a line for each of many runs, cut where the window ends; a rich table of a thousand takes a second."""
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
