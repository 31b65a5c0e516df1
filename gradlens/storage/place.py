"""The place of a run file that is written: whether it is free, and the right of one process to write there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gradlens.atomic import replaceable, stale_names, write_errors
from gradlens.errors import NoRunError, RunExistsError, RunFileError
from gradlens.storage.locate import free_name
from gradlens.storage.lock import WriterLock, check_unlocked


class Place:
    """Where a run goes, and who may write there.

    Args:
        path: As it was given. A relative one counts from the working directory of now, whatever that is later.

    Raises:
        RunFileError: It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.shown = Path(path)
        """The path as it was given; messages show it."""
        with self.errors():
            path = replaceable(self.shown)  # a link stays, and the file that it leads to is written
            self.path = path.parent.resolve() / path.name  # also where a folder that ../a.h5 passes is removed
        self._lock: WriterLock | None = None
        self._process: int | None = None
        """The process that claimed it."""

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which an error of the system becomes a ``RunFileError`` that names the file."""
        what = f"{self.shown} cannot be written"
        return write_errors(what, tip="is there room, and may you write there?", also=RuntimeError)

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse a place where no run can be written.

        Args:
            overwrite: Whether a file that is there may be replaced.
            resume: Whether a file must be there.

        Raises:
            RunExistsError: A file is there.
            RunFileError: Somebody is writing it, there is none to resume, or its folder cannot be written to.
        """
        with self.errors():
            self._check(overwrite, resume)

    def _check(self, overwrite: bool, resume: bool) -> None:
        path, shown = self.path, self.shown
        if path.is_dir():
            raise RunFileError(f"{shown} is a folder; expected the name of a file", tip=f"{shown / 'run.h5'}")
        check_unlocked(path, shown)
        if resume:
            if not path.exists():
                raise NoRunError(f"{shown} is not there, so nothing can be resumed")
        elif path.exists() and not overwrite:
            raise RunExistsError(
                f"{shown} already exists; nothing was overwritten",
                tip=f"{free_name(shown).as_posix()} is free; overwrite=True (--overwrite) replaces the file",
            )
        there = next(folder for folder in path.parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise RunFileError(f"{shown} cannot be written: {there.name} is no folder that you may write to")

    def claim(self) -> None:
        """Make sure that nobody else writes here until it is released, and remove what killed writers left.

        Raises:
            RunFileError: Somebody else is writing here, or the folder cannot be made.
        """
        if self._lock is not None:
            return
        with self.errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.path, self.shown)
            self._process = os.getpid()
            for stale in stale_names(self.path):
                stale.unlink(missing_ok=True)

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the one that claimed it."""
        return self._process not in (None, os.getpid())

    def check_process(self) -> None:
        """Raise a RunFileError if this process was forked from the one that writes."""
        check_process(self._process)

    def release(self) -> None:
        """Let others write here."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


def check_process(process: int | None) -> None:
    """Raise a RunFileError if this is not the process that writes, but one that was forked from it."""
    if process not in (None, os.getpid()):
        raise RunFileError(
            "this process was forked from the one that writes the run, and cannot write it too",
            tip="make the recorder in the process that trains",
        )
