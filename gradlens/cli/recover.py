"""``gradlens recover``: repair the file of a killed run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gradlens.cli.options import runs_argument, say
from gradlens.format import plural, visible

if TYPE_CHECKING:
    from gradlens.storage import Recovery


@click.command()
@runs_argument
@click.option("--repack", is_flag=True, help="Rewrite intact files too, which makes files of earlier versions smaller.")
def recover(runs: tuple[str, ...], repack: bool) -> None:
    """Repair the files of killed runs, and save the intact rows of damaged files.

    RUNS are files, names under runs/, or folders; default: all runs under runs/. Intact files are not changed, and
    neither are files that are being written.
    """
    from gradlens.errors import GradlensError
    from gradlens.storage import recover_run, resolve_runs

    failed = []
    paths = resolve_runs(runs, default="all")
    for path in paths:
        try:
            for line in _describe(recover_run(path, repack=repack), repack):
                click.echo(visible(line))
        except GradlensError as error:
            if len(paths) == 1:
                raise
            say(str(error))
            failed.append(path)
    if failed:
        raise GradlensError(f"{plural(len(failed), 'file')} could not be recovered")


def _describe(found: Recovery, repacked: bool) -> list[str]:
    """Describe the state of the file and what was saved."""
    content = f"{plural(found.rows, 'row')} and {plural(found.epochs, 'epoch')}"
    content += f", up to step {found.last_step}" if found.rows else ""
    removed = [f"  removed {name}, left by a killed writer" for name in found.leftovers]
    if found.found == "whole":
        done = "rewritten" if repacked else "not changed"
        return [f"{found.path}: intact ({found.status}), {done}: {content}", *removed]
    if found.found == "unpacked":
        return [f"{found.path}: intact ({found.status}), but not packed when it ended; packed now: {content}", *removed]
    if found.found == "unfinished":
        return [
            f"{found.path}: its writer did not close it; all of it was saved: {content}; it is now {found.status}",
            *removed,
        ]
    lost = [f"  lost: {sentence}" for sentence in found.lost]
    kept = [f"  the damaged file is kept as {found.backup}"]
    return [
        f"{found.path}: damaged; the intact part was saved: {content}; it is now {found.status}",
        *lost,
        *kept,
        *removed,
    ]
