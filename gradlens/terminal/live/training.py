"""A training in the full-screen view: a process of its own shows the file, so that the training is not held up.

What the training says meanwhile is kept, and printed when the view is left; from then on it is shown line by line.
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
"""So long the view may take to see that the run has ended."""


class LiveTraining:
    """Shows the events of trainings as ``TrainingView`` does, and each training in full screen before that.

    Args:
        console: Where the lines go.
    """

    def __init__(self, console: Console) -> None:
        self._lines = TrainingView(console)
        self._watcher: subprocess.Popen[bytes] | None = None
        self._kept: list[Event] = []
        self._step: StepDone | None = None
        self._entered = False

    def __enter__(self) -> LiveTraining:
        if not can_show():
            self._lines(Note("--live needs a terminal: it is shown line by line", warning=True))
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
        """Show lines from now on, with what was said meanwhile."""
        self._watcher = None
        if not self._entered:
            self._entered = True
            self._lines.__enter__()
        self._say_kept()

    def _say_kept(self) -> None:
        kept, self._kept = self._kept, []
        for event in kept:
            self._lines(event)
        if self._step is not None:
            self._lines(self._step)
            self._step = None

    def _stop_watching(self, seconds: float) -> None:
        """Wait until the view has left the screen; after a while, ask it to leave."""
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
        self._say_kept()


def can_show() -> bool:
    """Return whether there is a terminal with a keyboard."""
    return sys.stdout.isatty() and sys.stdin is not None and sys.stdin.isatty() and os.environ.get("TERM") != "dumb"


def watch_command(path: str) -> list[str]:
    """Return the command that shows a run and leaves when it ends."""
    return [sys.executable, "-m", "gradlens", "watch", path, "--leave-at-end"]
