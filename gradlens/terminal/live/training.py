"""A training in the full-screen view: another process shows the file, so that the view does not slow the training.

Events of the training are kept meanwhile, and printed when the user leaves the view; later events are printed at once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from types import TracebackType

from rich.console import Console

from gradlens.events import Ended, Event, Note, Started, StepDone
from gradlens.terminal.progress import TrainingView

GRACE_S = 4.0
"""Seconds that the view may take to notice the end of the run."""


class LiveTraining:
    """Shows each training in full screen until the user leaves the view, and then as ``TrainingView`` does.

    Args:
        console: The console for the lines.
    """

    def __init__(self, console: Console) -> None:
        self._lines = TrainingView(console)
        self._watcher: subprocess.Popen[bytes] | None = None
        self._kept: list[Event] = []
        self._step: StepDone | None = None
        self._entered = False

    def __enter__(self) -> LiveTraining:
        if not can_show():
            self._lines(Note("--live needs a terminal; the training is shown line by line", warning=True))
            self._hand_over()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_watching(0.0)
        self._lines.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        """Show an event, or keep it while the full screen is shown."""
        if self._watcher is not None and self._watcher.poll() is not None:  # the user left
            self._hand_over()
        if self._watcher is None:
            self._lines(event)
            if isinstance(event, Started) and not self._entered:
                self._watcher = subprocess.Popen(watch_command(event.path))
        elif isinstance(event, StepDone):
            self._step = event
        else:
            self._kept.append(event)
            if isinstance(event, Ended):
                self._stop_watching(GRACE_S)

    def _hand_over(self) -> None:
        """Print the kept events, and later events at once."""
        self._watcher = None
        if not self._entered:
            self._entered = True
            self._lines.__enter__()
        self._print_kept()

    def _print_kept(self) -> None:
        kept, self._kept = self._kept, []
        for event in kept:
            self._lines(event)
        if self._step is not None:
            self._lines(self._step)
            self._step = None

    def _stop_watching(self, seconds: float) -> None:
        """Wait until the view has ended; end it after this many seconds."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                watcher.wait(seconds)
            if watcher.poll() is None:
                watcher.terminate()  # it restores the terminal
            try:
                watcher.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                watcher.kill()
                watcher.wait()
        self._step = None
        self._print_kept()


def can_show() -> bool:
    """Return whether there is a terminal with a keyboard."""
    return sys.stdout.isatty() and sys.stdin is not None and sys.stdin.isatty() and os.environ.get("TERM") != "dumb"


def watch_command(path: str) -> list[str]:
    """Return the command that shows a run and leaves when it ends."""
    return [sys.executable, "-m", "gradlens", "watch", path, "--leave-at-end"]
