"""A line on stderr that says what is being done, with a sign that turns; only in a terminal, and without Rich.

It is shown while packages are imported, which is why it must not need any.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gradlens.format import visible

SIGNS, PLAIN_SIGNS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
INTERVAL_S = 0.1
SOON_S = 0.5
"""Work that is done by then shows no line: it would only flicker."""
CLEAR = "\r\x1b[K"


class Working:
    """What is being done; ``say`` changes the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._over = threading.Event()

    def say(self, text: str) -> None:
        """Show another text from now on."""
        self._text = text

    def turn(self, after_s: float) -> None:
        """Show the text with a sign that turns, until ``end``.

        Args:
            after_s: Seconds to wait before the line is shown.
        """
        signs = SIGNS if (sys.stderr.encoding or "").lower().startswith("utf") else PLAIN_SIGNS
        if self._over.wait(after_s):
            return
        number = 0
        while True:
            line = f"{signs[number % len(signs)]} {visible(self._text)}"
            sys.stderr.write(CLEAR + line[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
            if self._over.wait(INTERVAL_S):
                break
            number += 1
        sys.stderr.write(CLEAR)
        sys.stderr.flush()

    def end(self) -> None:
        """Remove the line."""
        self._over.set()


@contextmanager
def working(text: str, *, at_once: bool = False) -> Iterator[Working]:
    """Show what is being done while it is done; nothing where stderr is no terminal, or below a notebook's cell.

    Args:
        text: What is being done.
        at_once: Show it from the start, not only after half a second.

    Yields:
        The line, whose text can be changed.
    """
    line = Working(text)
    if not _is_terminal():
        yield line
        return
    thread = threading.Thread(target=line.turn, args=(0.0 if at_once else SOON_S,), daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.end()
        thread.join()


def _is_terminal() -> bool:
    try:
        shown = sys.stderr.isatty()
    except (AttributeError, ValueError):  # no stderr, or a closed one
        return False
    return shown and "JPY_PARENT_PID" not in os.environ and os.environ.get("RANK", "0") == "0"
