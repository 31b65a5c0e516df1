"""Runs commands, each in a process forked from this one, which has imported what they need and nothing more.

A process that runs tests may hold gigabytes, and forking it then takes longer than a command. Reads a line of JSON with
the arguments, the folder and whether there is a terminal; answers with a line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import pty
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from matplotlib import font_manager

import gradlens
from gradlens.cli import run_command

SECONDS, MEGABYTES = 10.0, 500
COMMAND_MEGABYTES = 100
"""What a command has imported before it does anything; this process may hold more."""
SURROUNDINGS = {"COLUMNS": "100", "LINES": "40", "OMP_NUM_THREADS": "1"}


class Commands:
    """Starts the server, and asks it.

    Args:
        cache: A folder for caches.
    """

    def __init__(self, cache: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.command_server"],
            cwd=Path(__file__).parents[2],
            env={**kept, **SURROUNDINGS, "XDG_CACHE_HOME": str(cache)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, arguments: list[str], folder: Path, *, terminal: bool) -> Any:
        """Run a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, str(folder), terminal]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def cell(self, arguments: list[str], folder: Path) -> tuple[str, float, float, str]:
        """Return what came of a command, seconds, megabytes and what it said."""
        return tuple(self.ask(arguments, folder, terminal=False))

    def on_terminal(self, arguments: list[str], folder: Path) -> tuple[int, bytes]:
        """Return a command's exit code and the bytes that reach the terminal."""
        code, said = self.ask(arguments, folder, terminal=True)
        return code, said.encode("latin-1")

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def resident() -> float:
    """Return the memory of this process in megabytes: a forked one begins with it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cell(arguments: list[str], folder: Path) -> tuple[str, float, float, str]:
    """Run a command in a forked process; return what came of it, seconds, megabytes and what it said."""
    said = folder / "said.txt"
    began = time.monotonic()
    inherited = max(resident() - COMMAND_MEGABYTES, 0.0)
    child = os.fork()
    if not child:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        run_here(arguments, folder)
    ended = 0
    while not ended and time.monotonic() - began < 6 * SECONDS:
        ended, status, used = os.wait4(child, os.WNOHANG)
        time.sleep(0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "HANG", time.monotonic() - began, 0.0, ""
    text = said.read_text(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    verdict = "ok"
    if code < 0:
        verdict = "CRASH"
    elif "Traceback" in text or code == 99:
        verdict = "TRACEBACK"
    elif used.ru_maxrss / 1024 > MEGABYTES + inherited:
        verdict = "LARGE"
    elif used.ru_utime + used.ru_stime > SECONDS:
        verdict = "SLOW"
    elif code and not any("Error:" in line for line in text.splitlines()):
        verdict = "SILENT"
    return verdict, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text


def on_terminal(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a command on a terminal; return its exit code and what reaches the terminal, a character per byte."""
    child, terminal = pty.fork()
    if not child:
        os.environ.update(TERM="xterm-256color")
        run_here(arguments, folder)
    said = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            said += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode("latin-1")


def run_here(arguments: list[str], folder: Path) -> None:
    """In a forked process: run a command, and end; 99 where it did not end in a code."""
    code = 99
    with contextlib.suppress(BaseException):
        os.chdir(folder)
        sys.stdout = os.fdopen(1, "w", closefd=False, encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", closefd=False, encoding="utf-8")
        try:
            code = run_command(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def preload() -> None:
    """Import what commands import, so that a forked process need not."""
    for name in ("analysis", "charts", "diagnosis", "export", "plots", "report", "study", "terminal"):
        for module in pkgutil.walk_packages([f"{gradlens.__path__[0]}/{name}"], f"gradlens.{name}."):
            importlib.import_module(module.name)
    font_manager.findfont("sans")


def main() -> None:
    """Answer until stdin ends."""
    preload()
    for line in iter(sys.stdin.readline, ""):
        arguments, folder, terminal = json.loads(line)
        answer = (on_terminal if terminal else cell)(arguments, Path(folder))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
