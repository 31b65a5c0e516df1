"""How a recording ends where nobody calls ``close``, and what the file says about it.

=============================  ======================================================================================
Event                          What happens
=============================  ======================================================================================
Exception in the with block    Closed as failed; Ctrl-C, the end of a generator and a cancelled task: as interrupted.
                               A note names the exception.
End of the interpreter         Closed: as failed (Ctrl-C: interrupted) if an exception ended the program, else as
                               interrupted. The same at the end of a process of ``multiprocessing``.
Recorder is collected          Closed by the writer's thread, as interrupted: at such a moment nothing may wait.
New recorder of the same path  With ``overwrite`` or ``resume``: the earlier one is closed, as interrupted.
Ctrl-C while a file is closed  It waits until the file is closed; after ``PATIENCE_S`` it takes effect at once.
Fork                           The child closes nothing: the file belongs to the process that made the recorder.
=============================  ======================================================================================
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

from gradlens.run import Status
from gradlens.storage import finish_abandoned, lock_path, writer  # noqa: F401

PATIENCE_S = 2.0
"""Ctrl-C breaks off the closing of a file only after so many seconds."""
NO_CLOSE = "recorder.close() was not called"
LONGEST = 200
"""Characters of a note about an exception."""


class Closable(Protocol):
    """A recorder."""

    @property
    def path(self) -> Path | None:
        """Its file."""

    @property
    def process(self) -> int:
        """The process that made it."""

    @property
    def thread(self) -> threading.Thread:
        """The thread that started it."""

    def close_at_exit(self, status: Status, reason: str) -> None:
        """Close its file; what is called after that does nothing."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()
_known_error: BaseException | None = None
"""The exception that the interpreter had shown when the last recorder was started: it ends no recording."""
_follows_multiprocessing = False


def follow(recorder: Closable) -> None:
    """Close a recorder at the end of the interpreter, unless it is closed before."""
    global _known_error, _follows_multiprocessing
    _open.add(recorder)
    _known_error = _shown_error()
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _follows_multiprocessing:  # its processes end without the interpreter's end
        _follows_multiprocessing = True
        util.Finalize(None, close_all, exitpriority=100)


def forget(recorder: Closable) -> None:
    """Follow a recorder no more: it is closed."""
    _open.discard(recorder)


def describe(error: BaseException) -> tuple[Status, str]:
    """Return the status of a run that an exception ended, and the note about it: type and first line of its message."""
    text = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    name = type(error).__name__ + (" (SIGINT)" if isinstance(error, KeyboardInterrupt) else "")
    note = f"ended by {name}: {text}" if text else f"ended by {name}"
    stopped = isinstance(error, KeyboardInterrupt | GeneratorExit | asyncio.CancelledError)
    return ("interrupted" if stopped else "failed"), note[:LONGEST]


def describe_exit() -> tuple[Status, str]:
    """Return the status of a run that is open at the end of the interpreter, and the note about it."""
    error = _shown_error()
    if error is not None and error is not _known_error and not hasattr(sys, "ps1"):  # ps1: a prompt, which goes on
        status, note = describe(error)
        return status, f"{note}; {NO_CLOSE}"
    return "interrupted", f"ended by the end of the interpreter; {NO_CLOSE}"


def _shown_error() -> BaseException | None:
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


# The writer loads h5py, which ends itself at the end of the interpreter: what is registered after that runs before it.
@atexit.register
def close_all() -> None:
    """Close all recorders of this process that are open."""
    for recorder in list(_open):
        if recorder.process == os.getpid():
            status, note = describe_exit()
            with contextlib.suppress(Exception):
                recorder.close_at_exit(status, note)
    with interrupts_held("the files"):
        finish_abandoned()


def find_open(path: str | os.PathLike[str]) -> Closable | None:
    """Return the recorder of this process that writes a file, if there is one."""
    place = lock_path(Path(path).absolute())
    for recorder in list(_open):
        if recorder.process == os.getpid() and recorder.path is not None and lock_path(recorder.path) == place:
            return recorder
    return None


def find_replaceable(path: str | os.PathLike[str]) -> Closable | None:
    """Return the recorder of this process that writes a file and may be closed: that of another thread may not."""
    found = find_open(path)
    mine = found is not None and (found.thread is threading.current_thread() or not found.thread.is_alive())
    return found if mine else None


@contextlib.contextmanager
def interrupts_held(name: str, *, drop: bool = True) -> Iterator[None]:
    """Let Ctrl-C wait while a file is closed, for at most ``PATIENCE_S``.

    Args:
        name: What is closed, for the line that says so.
        drop: Whether a Ctrl-C that came meanwhile has no further effect, as where one has ended the program already.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and ``drop`` is False.
    """
    usual = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(usual):  # another thread, or Ctrl-C is ignored or handled by something other than Python
        yield
        return
    began, came = time.monotonic(), False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if time.monotonic() - began > PATIENCE_S:
            raise KeyboardInterrupt
        if not came:
            came = True
            after = f"Ctrl-C after {PATIENCE_S:g} s leaves it as it is, and resume=True takes over"
            with contextlib.suppress(Exception):
                sys.stderr.write(f"gradlens: closing {name}; {after}\n")

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came and not drop:
        usual(signal.SIGINT, None)
