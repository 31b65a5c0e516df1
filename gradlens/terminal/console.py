"""Two consoles: results on stdout, progress and messages on stderr. Rich honours NO_COLOR and pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment

from gradlens.format import visible

STATUS_STYLE = {"complete": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "waiting": "dim"}


class _TextConsole(Console):
    """A console on which every text is text: no markup in it is obeyed, and no hidden character reaches the screen."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object; control characters in its texts are shown as escapes, but for line ends."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.replace("\n", "").isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(visible, text.split("\n"))), style)


class _PipeConsole(_TextConsole):
    """A console that survives the end of a pipe (``gradlens heatmap | head``), because the figure is written later."""

    def on_broken_pipe(self) -> None:
        """Discard further output."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def results() -> Console:
    """Return the console for results (stdout)."""
    return _PipeConsole(highlight=False, soft_wrap=False, markup=False, emoji=False)


def messages() -> Console:
    """Return the console for progress and messages (stderr)."""
    return _TextConsole(stderr=True, highlight=False, markup=False, emoji=False)


def has_colour(console: Console) -> bool:
    """Return whether the console shows colours."""
    return console.color_system is not None and not console.no_color


def is_live(console: Console) -> bool:
    """Return whether the console can overwrite its output, which a terminal can.

    Below a cell of a notebook every update would stay visible. Jupyter sets ``JPY_PARENT_PID`` for the processes that
    a cell starts.
    """
    return console.is_terminal and "JPY_PARENT_PID" not in os.environ


def start_live(console: Console, render: Callable[[], RenderableType], *, per_second: float) -> Live | None:
    """Start a display that is updated in place.

    Args:
        console: The console; text that is printed to it meanwhile appears above the display.
        render: Returns the content to show.
        per_second: Updates per second.

    Returns:
        The display, which the caller stops; None if the console cannot overwrite its output.
    """
    if not is_live(console):
        return None
    live = Live(console=console, get_renderable=render, refresh_per_second=per_second, transient=True)
    live.start()
    return live
