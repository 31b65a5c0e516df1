"""A window for tests: a program in a pseudo-terminal, and what a person would see there."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

from tests.processes import PATIENCE

PART = re.compile(
    r"\x1b\[(?P<marks>[?]?)(?P<numbers>[\d;]*)(?P<final>[A-Za-z])|(?P<text>[^\x1b\r\n])|(?P<line>\r?\n|\r)"
)


class Window:
    """A terminal of so many columns and lines with a program in it; a context manager."""

    def __init__(self, arguments: list[str], columns: int = 80, lines: int = 24, **environment: str) -> None:
        self.columns, self.lines = columns, lines
        self.modes: set[str] = set()
        self.sent = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._clear()
        self._rest = ""
        self._master, slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(slave)
        variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        variables |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gradlens", *arguments], stdin=slave, stdout=slave, stderr=slave, env=variables,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._slave = slave

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def resize(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def settings(self) -> list:
        return termios.tcgetattr(self._slave)

    @property
    def screen(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.cells)

    def wait_for(self, wanted: str | Callable[[str], bool]) -> str:
        """Read until the screen holds a text, or is as wanted."""
        end = time.monotonic() + PATIENCE
        while not (wanted in self.screen if isinstance(wanted, str) else wanted(self.screen)):
            ended = self.process.poll() is not None
            more = self._read(0.1)
            assert more or not (ended or time.monotonic() > end), f"never saw {wanted!r}; but:\n{self.screen}"
        while self._read(0.03):  # the rest of the picture
            pass
        return self.screen

    def wait_end(self) -> int:
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it goes on:\n{self.screen}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        data = self._decoder.decode(os.read(self._master, 65536))
        self.sent += data
        self._feed(data)
        return True

    def _clear(self) -> None:
        self.cells = [[" "] * 400 for _ in range(200)]
        self.x = self.y = 0

    def _feed(self, data: str) -> None:
        data = self._rest + data
        cut = data.rfind("\x1b")
        whole = cut < 0 or re.match(r"\x1b\[[?]?[\d;]*[A-Za-z]", data[cut:])
        data, self._rest = (data, "") if whole else (data[:cut], data[cut:])
        for part in PART.finditer(data):
            if part["text"]:
                self.cells[self.y][self.x] = part["text"]
                self.x += 1
            elif part["line"]:
                self.x, self.y = 0, min(self.y + ("\n" in part["line"]), 199)
            elif part["marks"]:
                (self.modes.add if part["final"] == "h" else self.modes.discard)(part["numbers"])
                if part["numbers"] == "1049":
                    self._clear()
            elif part["final"] == "H":
                numbers = [int(number or 1) for number in part["numbers"].split(";")]
                self.y, self.x = numbers[0] - 1, (numbers[1] if len(numbers) > 1 else 1) - 1
            elif part["final"] == "J":
                self._clear()
