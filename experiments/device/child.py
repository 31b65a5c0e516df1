"""A part of the script in a process of its own: a crash, a hang or a broken GPU context there ends nothing else."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.device.checks import ROOT, Found, write_json

PATIENCE_SECONDS = 5.0
"""So long a part may go on after its deadline, and so long after SIGTERM."""
PAUSE_SECONDS = 0.2
LOG_CHARACTERS = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the script tells its own processes."""
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)


def run(name: str, options: argparse.Namespace, deadline: float, take: Callable[[Found], None]) -> Found:
    """Run a part in a process of its own, and end it when its time is over.

    Args:
        name: Of the part.
        options: The parsed command line.
        deadline: When it should be over, by ``time.time()``.
        take: Is called with what the part has found whenever there is something new.

    Returns:
        How it ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        return watch(command_of(name, options, deadline, out), out, deadline, take)


def command_of(name: str, options: argparse.Namespace, deadline: float, out: Path) -> list[str]:
    """Return the command that does a part."""
    command = [sys.executable, "-m", "experiments.device", "--child", name, "--to", str(out)]
    command += ["--deadline", str(deadline), "--parent", str(os.getpid()), "--device", options.device]
    command += ["--output", str(options.output), "--study", str(options.study), "--minutes", str(options.minutes)]
    return command + (["--quick"] if options.quick else []) + (["--data", options.data] if options.data else [])


def watch(command: list[str], out: Path, deadline: float, take: Callable[[Found], None]) -> Found:
    """Run a command that writes what it found into a file again and again."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    log = out.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            _wait(process, out, deadline + PATIENCE_SECONDS, take)
        finally:
            killed = process.poll() is None
            _end(process)
    _take_new(out, take, 0.0)
    return _how_it_ended(process.returncode, killed, log)


def _wait(process: subprocess.Popen[bytes], out: Path, until: float, take: Callable[[Found], None]) -> None:
    seen = 0.0
    while process.poll() is None and time.time() < until:
        time.sleep(PAUSE_SECONDS)
        seen = _take_new(out, take, seen)


def _take_new(out: Path, take: Callable[[Found], None], seen: float) -> float:
    """Pass on what the file holds if it is newer than what was seen; return how new it is."""
    try:
        changed = out.stat().st_mtime
        if changed > seen:
            take(json.loads(out.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return seen
    return changed


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it began."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None or number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)


def _how_it_ended(code: int, killed: bool, log: Path) -> Found:
    if code == 0 and not killed:
        return {}
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    reason = "was over its time, and killed" if killed else f"ended with exit code {code}"
    return {"status": "killed" if killed else "failed", "reason": reason, "log": text[-LOG_CHARACTERS:]}


def work(options: argparse.Namespace, plan: Any, make_part: Callable[..., Any], do_part: Callable[..., Found]) -> int:
    """Run a part in this process, which was begun for it alone, and write what it finds after each check."""
    threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()

    def save(found: Found) -> None:
        write_json(options.to, found)

    part = make_part(options.deadline, save)
    part.add(**do_part(plan, part))
    return 0


def _end_with(parent: int) -> None:
    """End this process when the one that began it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
