"""``gradlens recover``: make the file of a killed run whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gradlens.format import plural

if TYPE_CHECKING:
    from gradlens.storage import Recovery


@click.command()
@click.argument("runs", nargs=-1, type=click.Path())
@click.option("--repack", is_flag=True, help="Write whole files anew too: what an earlier gradlens wrote gets smaller.")
def recover(runs: tuple[str, ...], repack: bool) -> None:
    """Make the files of killed runs appendable again, and keep what is whole of damaged ones.

    RUNS are files, names under runs/, or folders; left out, all runs under runs/. Whole files are left untouched, and
    so are those that are being written.
    """
    from gradlens.errors import GradlensError
    from gradlens.storage import recover_run, resolve_runs

    failed = []
    for path in resolve_runs(runs, default="all"):
        try:
            for line in _say(recover_run(path, repack=repack), repack):
                click.echo(line)
        except GradlensError as error:
            if len(runs) == 1:
                raise
            click.echo(str(error), err=True)
            failed.append(path)
    if failed:
        raise GradlensError(f"{plural(len(failed), 'file')} could not be recovered")


def _say(found: Recovery, repacked: bool) -> list[str]:
    """Say what was found, and what was saved."""
    held = f"{plural(found.rows, 'row')} and {plural(found.epochs, 'epoch')}"
    held += f", up to step {found.last_step}" if found.rows else ""
    beside = [f"  removed {name}, left by a killed writer" for name in found.leftovers]
    if found.found == "whole":
        done = "packed anew" if repacked else "left untouched"
        return [f"{found.path}: whole ({found.status}), {done}: {held}", *beside]
    if found.found == "unfinished":
        return [f"{found.path}: its writer did not close it; saved all of it: {held}; {found.status} now", *beside]
    lost = [f"  lost: {sentence}" for sentence in found.lost]
    kept = [f"  the damaged file is kept as {found.backup}"]
    return [f"{found.path}: damaged; saved what is whole: {held}; {found.status} now", *lost, *kept, *beside]
