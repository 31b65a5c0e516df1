"""One writer for each run file."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import time
from pathlib import Path

from gradlens.errors import RunFileError

if sys.platform != "win32":  # there a file that is open cannot be replaced, which serves as well
    import fcntl

CLOCKS_S = 3600.0
"""The most by which the clock of another machine may be ahead, or behind."""
_held: dict[Path, int] = {}
"""The locks that this process holds, each with the process that took it: a forked one does not hold them."""


class WriterLock:
    """The right to write a run file, held until it is released or the process ends, however it ends.

    It is a lock of the operating system on a hidden file next to the run file (``.NAME.lock``). It belongs to the
    process (POSIX record lock), so that children that outlive it, such as those that load data, do not hold it.

    Args:
        path: The run file.
        shown: Its name in messages, where that is another.

    Raises:
        RunFileError: Somebody else is writing it; or its folder cannot be written to.
    """

    def __init__(self, path: Path, shown: Path | None = None) -> None:
        self._run = shown or path
        self._path = lock_path(path)
        self._process = os.getpid()
        self._file = -1
        if _is_held(self._path):
            raise _refusal(self._run, f"in this process ({self._process})")
        self._file = self._acquire()
        _held[self._path] = self._process

    def _acquire(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if _lock(file) is not False:
                    if not _is_at(file, self._path):  # released by its owner meanwhile
                        os.close(file)
                        continue
                    with contextlib.suppress(OSError):  # no room
                        os.truncate(file, 0)
                        os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
                    return file
                raise _refusal(self._run, f"by {os.read(file, 200).decode(errors='replace') or 'another process'}")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(file)
                raise

    def release(self) -> None:
        """Let others write; a second call, or one in a forked process, does nothing."""
        if self._file < 0 or os.getpid() != self._process:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._file)
        self._file = -1
        _held.pop(self._path, None)

    def __del__(self) -> None:
        """Release."""
        with contextlib.suppress(Exception):
            self.release()


def check_unlocked(path: Path, shown: Path | None = None) -> None:
    """Raise a RunFileError if somebody is writing a run file at the moment; takes nothing and leaves nothing."""
    place, shown = lock_path(path), shown or path
    if _is_held(place):
        raise _refusal(shown, f"in this process ({os.getpid()})")
    try:
        file = os.open(place, os.O_RDWR)
    except OSError:
        return
    try:
        if _lock(file) is False:
            raise _refusal(shown, f"by {os.read(file, 200).decode(errors='replace') or 'another process'}")
    finally:
        os.close(file)


def killed_while_packing(path: Path) -> bool:
    """Return whether the writer of a run that has ended was killed on this machine before its file was packed.

    Its hidden lock file is left; nobody holds it.
    """
    return _is_written_here(path) is False


def stopped_without_closing(path: Path, heartbeat: float) -> bool:
    """Return whether the writer of a run whose file says that it is running has ended.

    Where it ran on this machine its lock tells, which is free once its process has ended, however it ended. Elsewhere
    nothing but its signs of life is known, in the time of its own clock: it has ended after ``CLOCKS_S`` without one.

    Args:
        path: The run file.
        heartbeat: The writer's last sign of life, in seconds since 1970.
    """
    written = _is_written_here(path)
    return seconds_silent(heartbeat) > CLOCKS_S if written is None else not written


def _is_written_here(path: Path) -> bool | None:
    """Return whether a process holds the lock of a run file; None where no lock file of this machine is there."""
    place = lock_path(path)
    if _is_held(place):  # to open it and close it would release it
        return True
    try:
        file = os.open(place, os.O_RDWR)
    except OSError:
        return None
    try:
        taken, owner = _lock(file), os.read(file, 200).decode(errors="replace")
        here = owner.endswith(f" on {platform.node()}") and _is_at(file, place)  # not removed by its owner meanwhile
    except OSError:
        return None
    finally:
        os.close(file)
    return True if taken is False else False if taken and here else None


def seconds_silent(heartbeat: float) -> float:
    """Return the seconds since a writer's last sign of life; inf where the time of it cannot be one.

    Args:
        heartbeat: The time of it, in seconds since 1970, as a file has it; the writer's clock may be a little ahead.
    """
    ago = time.time() - heartbeat
    return max(ago, 0.0) if ago > -CLOCKS_S else math.inf


def lock_path(path: Path) -> Path:
    """Return the hidden file next to a run file whose lock its writer holds; the same by whatever way it is named."""
    there = Path(os.path.realpath(path))
    return there.with_name(f".{there.name}.lock")


def _is_held(place: Path) -> bool:
    """Return whether this process holds a lock: opening and closing its file again would release it."""
    return _held.get(place) == os.getpid()


def _lock(file: int) -> bool | None:
    """Take the lock; False where another process holds it, None on a system or file system that knows none."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _refusal(path: Path, by: str) -> RunFileError:
    return RunFileError(f"{path} is being written {by}", tip="another name, or wait until that run has ended")
