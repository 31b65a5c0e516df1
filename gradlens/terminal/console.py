"""Two consoles: results go to stdout, progress and messages go to stderr. Rich honours NO_COLOR and pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live

STATUS_STYLE = {"complete": "green", "running": "cyan", "interrupted": "yellow", "failed": "red"}


class _PatientConsole(Console):
    """Goes on when the reader of a pipe has left (``gradlens heatmap | head``): the figure is still to be written."""

    def on_broken_pipe(self) -> None:
        """Write what follows into nothing."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def results() -> Console:
    """Return the console for results (stdout)."""
    return _PatientConsole(highlight=False, soft_wrap=False)


def messages() -> Console:
    """Return the console for progress and messages (stderr)."""
    return Console(stderr=True, highlight=False)


def has_colour(console: Console) -> bool:
    """Return whether colours will be seen."""
    return console.color_system is not None and not console.no_color


def is_live(console: Console) -> bool:
    """Return whether what was shown can be drawn over: in a terminal.

    Below a cell of a notebook every version would stay, one under the other; Jupyter leaves this variable to what a
    cell starts.
    """
    return console.is_terminal and "JPY_PARENT_PID" not in os.environ


def start_live(console: Console, render: Callable[[], RenderableType], *, per_second: float) -> Live | None:
    """Begin to draw over what was shown, where that can be done; elsewhere return None.

    Args:
        console: Where to; what is printed to it meanwhile stands above.
        render: Returns what is shown now.
        per_second: How often it is drawn.
    """
    if not is_live(console):
        return None
    live = Live(console=console, get_renderable=render, refresh_per_second=per_second, transient=True)
    live.start()
    return live
