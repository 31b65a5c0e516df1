"""Full-screen use of a terminal, which is restored however the view ends.

Keys are read one by one without Enter (cbreak mode). States and transitions:

=============  =========================================  ==================
state          event                                      next state
=============  =========================================  ==================
restored       ``__enter__``, or SIGCONT after a stop     full screen
full screen    SIGTSTP (Ctrl-Z): restore, then stop       stopped, restored
full screen    SIGWINCH: draw all cells again             full screen
full screen    SIGINT, SIGTERM, SIGHUP raise; or the end  restored
=============  =========================================  ==================
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from importlib import import_module
from types import FrameType, TracebackType
from typing import Any

from gradlens.terminal.live.canvas import Canvas, Painter

try:
    import termios
    import tty
except ImportError:  # Windows: keys are asked for, see _wait_for_console
    termios = tty = None  # type: ignore[assignment]

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
NAMED = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b[5~": "pageup", "\x1b[6~": "pagedown",
    "\x1b[C": "right", "\x1b[D": "left", "\x1bOC": "right", "\x1bOD": "left", "\x1b": "escape", " ": "space",
    "\r": "enter", "\n": "enter", "\x04": "q",
}  # fmt: skip
CONSOLE_KEYS = {"H": "up", "P": "down", "I": "pageup", "Q": "pagedown", "M": "right", "K": "left"}
"""The second character of keys that are no character, as msvcrt.getwch returns them on Windows."""
ASK_S = 0.05
"""On Windows, nothing waits for keys and for time at once: keys and the window's size are asked for this often."""


class Screen:
    """The whole window of a terminal; a context manager.

    Args:
        system: The colours of the terminal, as for ``Painter``.
        output: The file descriptor of the terminal; None means stdout. Keys are read from stdin if that is a terminal.
    """

    def __init__(self, system: str | None, output: int | None = None) -> None:
        self._out = sys.stdout.fileno() if output is None else output
        self._in = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._painter = Painter(system)
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] | None = None
        self._rest = ""

    def __enter__(self) -> Screen:
        if termios is not None:
            self._wake = os.pipe()
            for end in self._wake:
                os.set_blocking(end, False)
        try:
            for name, handler in (("SIGTERM", _end), ("SIGHUP", _end), ("SIGWINCH", self._resized)):
                self._handle(name, handler)
            self._handle("SIGTSTP", self._stop)
            self._handle("SIGCONT", self._continue)
            self._enter_full_screen()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle("SIGINT", signal.SIG_IGN)  # a second Ctrl-C must not interrupt the restoring
        with contextlib.suppress(OSError):  # the terminal may be closed
            self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()
        if self._wake is not None:
            for end in self._wake:
                os.close(end)
            self._wake = None

    def _handle(self, name: str, handler: Any) -> None:
        number = getattr(signal, name, None)
        if number is not None:
            with contextlib.suppress(ValueError):  # not the main thread
                self._handlers.setdefault(number, signal.signal(number, handler))

    def _enter_full_screen(self) -> None:
        if self._in is not None and termios is not None:
            self._saved = termios.tcgetattr(self._in)
            tty.setcbreak(self._in)
        self._write(ENTER)
        self._painter.forget()

    def _restore(self) -> None:
        """Leave the terminal as it was; may be called twice."""
        try:
            self._write(LEAVE)
        finally:
            if self._saved is not None and self._in is not None:
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._saved)
                self._saved = None

    # --- signals ------------------------------------------------------------------------------------------

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self._painter.forget()
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake[1], b"!")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def _continue(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTSTP, self._stop)
        if self._saved is None:
            self._enter_full_screen()
        self._wake_up()

    # --- showing and waiting ------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the window."""
        with contextlib.suppress(OSError):
            width, height = os.get_terminal_size(self._out)
            if width > 0 and height > 0:
                return width, height
        return 80, 24

    def show(self, canvas: Canvas) -> int:
        """Show a canvas; return the number of bytes that were sent."""
        return self._write(self._painter.paint(canvas))

    def forget(self) -> None:
        """Send all cells of the next canvas."""
        self._painter.forget()

    def _write(self, text: str) -> int:
        data = text.encode("utf-8", "replace")
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._out, rest) :]
            except BlockingIOError:
                time.sleep(0.01)
        return len(data)

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys.

        Args:
            seconds: Longest time to wait.

        Returns:
            The keys that were pressed, and "resize" if the window changed; none if the time has passed.
        """
        if self._wake is None:
            return self._wait_for_console(seconds)
        sources = [self._wake[0]] + ([] if self._in is None else [self._in])
        ready, _, _ = select.select(sources, [], [], max(seconds, 0.0))
        keys: list[str] = []
        if self._wake[0] in ready:
            os.read(self._wake[0], 4096)
            keys.append("resize")
        if self._in in ready:
            data = os.read(self._in, 1024)  # type: ignore[arg-type]
            if not data:
                self._in = None  # stdin is closed: no more keys
            keys += split_keys(data.decode("utf-8", "replace"))
        return keys

    def _wait_for_console(self, seconds: float) -> list[str]:
        """Wait for keys where the system has no terminals, as on Windows; without a console, only wait."""
        try:
            console: Any = import_module("msvcrt") if self._in is not None else None
        except ImportError:
            console = None
        size, until = self.size, time.monotonic() + max(seconds, 0.0)
        while (left := until - time.monotonic()) > 0:
            keys = [] if console is None else console_keys(console)
            if size != self.size:
                self._painter.forget()
                keys.append("resize")
            if keys:
                return keys
            time.sleep(min(ASK_S, left))
        return []


def console_keys(console: Any) -> list[str]:
    """Return the keys that were pressed in a console of Windows.

    Args:
        console: The module msvcrt.

    Returns:
        The keys, with names as in ``split_keys``.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    keys = []
    while console.kbhit():
        key = console.getwch()
        if key == "\x03":
            raise KeyboardInterrupt
        keys.append(CONSOLE_KEYS.get(console.getwch(), "") if key in ("\x00", "\xe0") else NAMED.get(key, key))
    return [key for key in keys if key]


def split_keys(text: str) -> list[str]:
    """Split the input from a keyboard into keys; keys that are no character have names, such as "up"."""
    keys = []
    while text:
        if text[0] == "\x1b" and len(text) > 2 and text[1] in "[O":
            length = next((i + 1 for i, char in enumerate(text) if i > 1 and "@" <= char <= "~"), len(text))
        else:
            length = 1
        keys.append(NAMED.get(text[:length], text[:length]))
        text = text[length:]
    return keys


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
