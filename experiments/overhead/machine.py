"""What the operating system knows of this process: memory, processor time, and the machine's name."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

PROC = Path("/proc")


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held.

    Not by ``ru_maxrss`` where Linux tells better: a new process inherits that one from its parent.
    """
    if (PROC / "self" / "status").exists():
        return _high_water_mark("self")
    factor = 1 if sys.platform == "darwin" else 1024
    return factor * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _high_water_mark(pid: int | str) -> int:
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def descendants() -> list[int]:
    """List the processes that this one has begun, and theirs; none where there is no ``/proc``."""
    parents: dict[int, int] = {}
    for entry in PROC.glob("[0-9]*/stat"):
        fields = _stat(entry)
        if fields:
            parents[int(entry.parent.name)] = int(fields[1])
    found, new = [], [os.getpid()]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def _stat(path: Path) -> list[str]:
    """Read the fields of a ``stat`` file from the state on; none if the process is gone."""
    try:
        return path.read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def descendants_memory() -> int:
    """Return the most bytes that those processes have held, summed."""
    total = 0
    for pid in descendants():
        try:
            total += _high_water_mark(pid)
        except OSError:
            continue
    return total


def descendants_seconds() -> float:
    """Return the processor time that those processes have used, to a hundredth of a second each."""
    ticks = 0
    for pid in descendants():
        fields = _stat(PROC / str(pid) / "stat")
        ticks += sum(int(field) for field in fields[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def processor_name() -> str:
    """Return the model name of the processor, with its number of cores."""
    name = platform.processor() or platform.machine()
    info = PROC / "cpuinfo"
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder and those below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
