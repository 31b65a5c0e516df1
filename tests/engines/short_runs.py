"""What the tests of engines with many short runs share: the journal of the runs, and what is true at the end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gradlens import read_run
from tests.processes import PATIENCE


def journal(folder: Path) -> list[str]:
    """Return the lines that the runs have written."""
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(ready: Callable[[], object], driver: subprocess.Popen[str] | None = None) -> None:
    """Wait until something is true, and fail if the driver ends before."""
    end = time.monotonic() + PATIENCE / 3
    while not ready():
        assert time.monotonic() < end
        assert driver is None or driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def assert_each_once(folder: Path, runs: int) -> None:
    """Assert that all runs are complete, that none was completed twice, and that each has each of its rows once."""
    ends = sorted(line for line in journal(folder) if line.endswith("complete"))
    assert ends == [f"run{i:03}.h5 complete" for i in range(runs)]
    for i in range(runs):
        run = read_run(folder / "group" / f"run{i:03}.h5")
        assert run.status == "complete"
        assert list(run.steps) == list(range(12))
