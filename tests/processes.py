"""Processes of tests: how long to wait for one, and several that train together.

Those are forked from one that has imported all they need, which costs seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import traceback
import uuid
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


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module of tests in a new process, and return what it returns, by way of JSON.

    For what forks often: a process that has run many tests holds gigabytes, and forking it takes long.
    """
    root = Path(__file__).parents[1]
    module = ".".join(Path(work.__code__.co_filename).relative_to(root).with_suffix("").parts)
    code = (
        "import importlib, json, sys; module, name, given = sys.argv[1:];"
        "print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(given))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, module, work.__name__, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def free_port() -> int:
    """Return a port of this machine that nobody listens to, and that no other caller gets while this process lives.

    The system gives ports of its own range to whoever asks for any, also in the moment before the caller uses this one,
    so it is one below that range; and a lock on a file keeps it from other processes that ask here.
    """
    first = system_ports()
    places = list(range(LOWEST_PORT, first))
    random.Random(uuid.uuid4().int).shuffle(places)
    for port in places:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if _reserve(port):
                return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LOWEST_PORT = 10240
_reserved: list[Any] = []
"""Locked files of the ports that this process has got."""


def system_ports() -> int:
    """Return the first port of the range from which the system takes one where any will do."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 32768


def _reserve(port: int) -> bool:
    """Keep a port from other processes that ask for one, as far as the system knows locks of files."""
    if sys.platform == "win32":
        return True
    import fcntl

    file = (Path(tempfile.gettempdir()) / f"gradlens-tests-port-{port}").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))  # its last owner may have removed it
    except OSError:
        ours = False
    if not ours:
        file.close()
        return False
    _reserved.append(file)
    atexit.register(lambda: Path(file.name).unlink(missing_ok=True))
    return True
