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
from gradlens.terminal.summary import STATUS_STYLE

STALE_SECONDS = 60.0


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
    table = Table(title=f"{len(rows)} run(s) in {folder}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("epochs", "rows", "train acc", "val acc"):
        table.add_column(name, justify="right")
    table.add_column("data / note", overflow="fold")
    for row in rows:
        status = str(row["status"])
        table.add_row(
            Text(row["run"]),
            Text(status, style=STATUS_STYLE.get(status, "red")),
            *[str(row.get(key, "-")) for key in ("epochs", "rows")],
            *[_share(row.get(key)) for key in ("train_accuracy", "val_accuracy")],
            Text(row["note"] or str(row.get("data") or "")),
        )
    console.print(table)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
