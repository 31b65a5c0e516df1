"""Between any two writes a run file is whole; and any write may find the disk full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE
from tests.storage.every_write import SHIM

ROOT = Path(__file__).parents[2]


def preload(folder: Path) -> dict[str, str]:
    """Build the shim; return the variable that loads it."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    (folder / "shim.c").write_text(SHIM)
    shim = str(folder / "shim.so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, str(folder / "shim.c"), "-ldl"], check=True)
    return {"LD_PRELOAD": shim}


def run(folder: Path, what: str, every: int, **environment: str) -> str:
    (folder / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.every_write", what, str(folder / "runs"), str(every)],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("every", [101, pytest.param(11, marks=pytest.mark.slow)])
def test_a_file_is_whole_between_any_two_writes(tmp_path: Path, every: int) -> None:
    assert "looked at" in run(tmp_path, "look", every, **preload(tmp_path))


@pytest.mark.parametrize("every", [601, pytest.param(61, marks=pytest.mark.slow)])
def test_a_full_disk_loses_nothing_that_was_flushed(tmp_path: Path, every: int) -> None:
    assert "full disks" in run(tmp_path, "fail", every, **preload(tmp_path))


@pytest.mark.slow  # as a full disk, by another way
@pytest.mark.parametrize("every", [12_000])
def test_a_file_that_may_not_grow_loses_nothing_that_was_flushed(tmp_path: Path, every: int) -> None:
    assert "full disks" in run(tmp_path, "fail", every)
