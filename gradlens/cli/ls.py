"""``gradlens ls``: the runs in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from gradlens.cli.options import GivenPath, format_option, print_rows


@click.command()
@click.argument("folder", type=GivenPath(path_type=Path), default=Path("runs"))
@format_option
def ls(folder: Path, form: str) -> None:
    """List the runs in FOLDER and in the folders below it, with their state and last accuracy.

    FOLDER is a folder, or the name of one under runs/; default: runs.
    """
    from gradlens.storage.locate import folder_named
    from gradlens.terminal.console import results
    from gradlens.terminal.listing import folder_rows, print_listing

    folder = folder_named(folder) or folder
    rows = folder_rows(folder)
    if form == "table":
        print_listing(results(), folder, rows)
    else:
        print_rows(rows, form)
