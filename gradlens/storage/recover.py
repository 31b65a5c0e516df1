"""Make the file of a killed run whole again, and keep what is whole of a damaged one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gradlens.atomic import stale_names, whole_file, write_errors
from gradlens.errors import DamagedError
from gradlens.format import plural
from gradlens.row_chunks import LEVELS
from gradlens.run import Status
from gradlens.storage.contents import BROKEN
from gradlens.storage.lock import WriterLock
from gradlens.storage.one_thread import alone
from gradlens.storage.packing import pack
from gradlens.storage.run_file import open_run_file
from gradlens.storage.stored_file import StoredFile

READ_ROWS = 4096
TRIED_ROWS = 1 << 16
"""Rows that are tried at once for whether they can be read; where they cannot, 64 at once."""
BACKUP = ".damaged"
"""What is put behind the name of a damaged file when what is whole of it takes its place."""


@dataclass
class Recovery:
    """What was found in a run file, and what was saved.

    Args:
        path: The file.
        found: "whole", "unpacked" (it is whole, but its writer was killed while it packed the file, or had no room),
            "unfinished" (its writer was killed, or could not close it) or "damaged".
        rows: Rows that the file holds now.
        epochs: Epochs that it holds now.
        last_step: The last row's optimizer step; -1 where there is none.
        status: The run's status now.
        lost: What could not be saved, a sentence each.
        leftovers: Names of files that killed writers left next to it, and that were removed.
        backup: Where the damaged file lies now; None where it was not damaged.
    """

    path: Path
    found: str
    rows: int
    epochs: int
    last_step: int
    status: Status
    lost: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    backup: Path | None = None


def recover_run(path: Path, *, repack: bool = False) -> Recovery:
    """Pack the file of a writer that was killed, so that any program can append to it; leave a whole file untouched.

    It is copied to a file next to it, packed, and takes the old one's place in one step. Rows that a checksum shows to
    be damaged are kept as NaN, and the damaged file is kept next to it as ``NAME.h5.damaged``.

    Args:
        path: The file.
        repack: Write a whole file anew too, in the form that a run has today when it ends: what an earlier gradlens
            wrote gets levels, compression and checksums.

    Returns:
        What was found and saved.

    Raises:
        NoRunError: There is no such file.
        DamagedError: Nothing of it can be read.
        RunFileError: It is being written, no run, or the folder cannot be written to.
    """
    with open_run_file(path, salvage=True):
        pass
    with write_errors(f"{path} cannot be recovered", tip="may you write there?"):
        lock = WriterLock(path)
    try:
        leftovers = stale_names(path)
        for name in leftovers:
            name.unlink(missing_ok=True)
        found = _recover(path, repack)
        found.leftovers = [name.name for name in leftovers]
        return found
    finally:
        lock.release()


@alone()
def _recover(path: Path, repack: bool) -> Recovery:
    whole = _look(path)
    if whole is not None and whole.found == "whole" and not repack:
        return whole
    backup = path.with_name(path.name + BACKUP) if whole is None else None
    lost: dict[str, list[tuple[int, int]]] = {}
    with (
        write_errors(f"{path} cannot be recovered", tip="is there room?"),
        whole_file(path, keep=backup) as temporary,
        open_run_file(path, salvage=True) as source,
    ):
        before = source.n_steps
        cut_unreadable(source)
        ended = source.status()
        status: Status = "interrupted" if ended == "running" else ended
        said = [f"the last {plural(before - source.n_steps, 'row')}"] if source.n_steps < before else []
        note = [] if whole is not None else ["recovered from a damaged file: what is missing is NaN"]
        pack(
            source,
            temporary,
            status=status,
            notes=note,
            salvaged=lambda name, start, stop: lost.setdefault(name, []).append((start, stop)),
        )
        said += [*source.doubts, *(_say_lost(name, spans) for name, spans in lost.items())]
    saved = _look(path)
    if saved is None:
        raise DamagedError(f"{path} was recovered, and cannot be read: please report this")
    saved.found, saved.lost, saved.backup = ("damaged" if whole is None else whole.found), said, backup
    return saved


def _look(path: Path) -> Recovery | None:
    """Read everything in a file; None where something is damaged."""
    try:
        with open_run_file(path) as source:
            source.layers()
            state = source.state()
            columns = {name: source.column(name) for name in source.columns}
            for name in source.metrics:
                for start in range(0, source.n_steps, READ_ROWS):
                    source.rows(name, start, start + READ_ROWS)
            _read_levels(source)
            steps = columns["step"]
            ended = source.closed and state["status"] != "running"
            found = "unfinished" if not ended else "whole" if source.packed else "unpacked"
            last = int(steps[-1]) if len(steps) else -1
            return Recovery(path, found, source.n_steps, source.n_epochs, last, state["status"])
    except DamagedError:
        return None


def _read_levels(source: StoredFile) -> None:
    for level in LEVELS if source.has_levels else ():
        for name in source.metrics:
            if source.n_steps >= level:
                source.level(level, name, 0, source.n_steps // level)


def _say_lost(metric: str, spans: list[tuple[int, int]]) -> str:
    rows = sum(stop - start for start, stop in spans)
    return f"{plural(rows, 'row')} of {metric}, the first from row {spans[0][0]} on"


def cut_unreadable(source: StoredFile) -> None:
    """Cut a damaged file's counts to the rows and epochs whose columns can be read at all."""
    if not source.salvage:
        return
    for name in source.columns:
        kind = "n_epochs" if name.startswith("epoch/") else "n_steps"
        count = getattr(source, kind)
        readable = _readable(source, name, count)
        if readable < count and name in ("step", "epoch/epoch"):
            setattr(source, kind, readable)


def _readable(source: StoredFile, name: str, count: int) -> int:
    """Return how many of the first values of a column can be read."""
    start, size = 0, TRIED_ROWS
    while start < count:
        try:
            if not len(source.contents.read(name, start, min(start + size, count))):
                return start
            start += size
        except BROKEN:
            if size == LEVELS[0]:
                return start
            size = LEVELS[0]
    return count
