"""Processes of tests: how long to wait for one, and several that train together.

Those are forked from one that has imported all they need, which costs seconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest


def some_slow(values: Iterable[Any], every: int = 3) -> list[Any]:
    """Return parameters of which one in so many is quick; the others are left to the slow suite."""
    return [each if i % every == 0 else pytest.param(each, marks=pytest.mark.slow) for i, each in enumerate(values)]


PATIENCE = 300.0
"""Seconds after which what another process is to do is given up, on however busy a machine."""


def start(folder: Path, rank: int, work: Callable[[int], object]) -> int:
    """Start a process that does its work and ends, and return its id; what it says goes to a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    with open(folder / f"rank{rank}.txt", "w") as said, contextlib.redirect_stderr(said):
        try:
            work(rank)
            code = 0
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def run_all(folder: Path, world: int, work: Callable[[int], object]) -> list[int]:
    """Let so many processes do their work, and return their exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    children = [start(folder, rank, work) for rank in range(world)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def free_port() -> int:
    """Return a port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
