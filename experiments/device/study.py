"""Carry out the runs of the study, one after another, until the time limit, and keep the numbers that claims use."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.device.checks import ERROR, MEASURED, ROOT, SKIPPED, STOPPED, Found, Part

LEAST_SECONDS = 30.0
"""No run is begun without so much time."""
CLOSING_SECONDS = 10.0
"""Time that a run gets to close its file."""
KEEPING_SECONDS = 20.0
"""Time for reading all runs at the end, to keep their numbers."""


def measure(part: Part) -> None:
    """Carry out the list."""
    data, lines = part.options.get("data"), read_list(part.options.get("study"))
    reason = _what_is_missing(data, lines)
    if reason:
        part.add(reason=reason)
        part.check("study", lambda: {"status": SKIPPED, "reason": reason}, needs=0)
        return
    for line in lines:
        needs = LEAST_SECONDS + CLOSING_SECONDS + KEEPING_SECONDS
        part.check(f"study: {line}", lambda line=line: run_line(part, line, str(data)), needs=needs)
    if any((runs_folder(part)).rglob("*.h5")):
        part.check("study: numbers kept", lambda: keep_numbers(part))


def runs_folder(part: Part) -> Path:
    """Return the folder of the runs."""
    return Path(part.options["folder"]) / "runs"


def keep_numbers(part: Part) -> Found:
    """Write the numbers of all runs that the claims use into the folder ``kept``; the runs themselves may be lost."""
    kept = Path(part.options["folder"]) / "kept"
    command = [sys.executable, "-m", "gradlens", "claims", str(runs_folder(part)), "--keep", str(kept)]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, timeout=max(part.left, 1.0),
        env=environment(), check=False,
    )  # fmt: skip
    last = (done.stderr.strip().splitlines() or [""])[-1]
    files = {path.name: path.stat().st_size for path in kept.iterdir()} if kept.is_dir() else {}
    status = MEASURED if done.returncode == 0 else ERROR
    return {"status": status, "exit_code": done.returncode, "size_bytes": files, "last_line": last}


def environment() -> dict[str, str]:
    """Return the environment of a process that finds this checkout."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def read_list(path: Path | None) -> list[str]:
    """Return the lines of a list without comments; none where there is no such file."""
    if path is None or not path.exists():
        return []
    lines = [line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def _what_is_missing(data: str | None, lines: list[str]) -> str:
    if not lines:
        return "the list of runs is empty"
    if not data:
        return "no --data"
    path = Path(data.split(":", 1)[1]) if ":" in data else None
    return f"{path}: there is no such file or folder" if path is not None and not path.exists() else ""


def run_line(part: Part, line: str, data: str) -> Found:
    """Carry out one run; when the time is up it is interrupted, and closes its file."""
    out = runs_folder(part)
    added = ["--data", data, "--device", part.device, "--out", str(out)]
    command = [sys.executable, "-m", "gradlens", "run", *shlex.split(line), *added]
    began = time.time()
    log = out.parent / "study.log"
    out.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment())
        seconds = part.left - CLOSING_SECONDS - KEEPING_SECONDS
        code = wait(run, seconds)
    stopped = time.time() - began >= seconds  # an interrupt before the command handles it ends in another code than 130
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    status = MEASURED if code == 0 else STOPPED if stopped else ERROR
    return {"status": status, "exit_code": code, "run_seconds": round(time.time() - began, 1), "last_line": last}


def wait(run: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for a process; afterwards interrupt it, and kill it if that does not end it."""
    for patience, act in ((seconds, lambda: run.send_signal(signal.SIGINT)), (CLOSING_SECONDS, run.kill)):
        try:
            return run.wait(max(patience, 0))
        except subprocess.TimeoutExpired:
            act()
        except BaseException:
            run.kill()
            raise
    return run.wait()
