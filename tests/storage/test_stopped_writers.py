"""A run whose writer was killed reads as interrupted; one whose writer is alive, or cannot be asked, as running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradlens.storage import lock, read_run
from gradlens.storage.lock import lock_path
from gradlens.terminal.listing import SILENT, STOPPED, folder_rows
from tests.conftest import RunMaker

WRITE = """
import sys
from gradlens.run import Header, Layer, Row
from gradlens.storage.writer import FileSink
sink = FileSink(sys.argv[1])
sink.open(Header((Layer("a", "Linear", "main", 1, 4, 9),), {"param_grad_norm": 1}, model="own", seed=0))
sink.write_row(Row(0, 0, {"param_grad_norm": [1.0]}, {"loss": 1.0}))
sink.flush()
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started = []

    def start(name: str) -> subprocess.Popen[str]:
        (tmp_path / "runs").mkdir(exist_ok=True)
        command = [sys.executable, "-c", WRITE, str(tmp_path / "runs" / name)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def states(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["run"]: (row["status"], row["note"]) for row in folder_rows(folder)}


def test_a_killed_writer_is_known_at_once_and_a_suspended_one_is_alive(writer, tmp_path, monkeypatch) -> None:
    runs = tmp_path / "runs"
    killed, alive = writer("killed.h5"), writer("alive.h5")
    assert states(runs) == {"alive": ("running", ""), "killed": ("running", "")}
    killed.kill()
    killed.wait()
    alive.send_signal(signal.SIGSTOP)
    try:
        assert states(runs) == {"alive": ("running", ""), "killed": ("interrupted", STOPPED)}
        assert {name: read_run(runs / f"{name}.h5").status for name in ("alive", "killed")} == {
            "alive": "running",
            "killed": "interrupted",
        }
        assert lock_path(runs / "killed.h5").exists()  # asking leaves all as it is: recover needs it
        later = lock.time.time() + 7200.0
        monkeypatch.setattr(lock.time, "time", lambda: later)
        assert read_run(runs / "alive.h5").status == "running"  # it holds its lock, however long it is silent
    finally:
        alive.send_signal(signal.SIGCONT)
    assert alive.communicate("")[0] == ""
    assert alive.returncode == 0


@pytest.fixture
def copied(writer, tmp_path: Path) -> Path:
    """A run that is being written, copied without its lock file."""
    writer("live.h5")
    (tmp_path / "elsewhere").mkdir()
    return Path(shutil.copy(tmp_path / "runs" / "live.h5", tmp_path / "elsewhere" / "far.h5"))


@pytest.mark.parametrize("owner", [None, "process 7 on another-machine", "", "process 7 on"])
def test_elsewhere_an_hour_of_silence_is_the_end(
    owner: str | None, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if owner is not None:
        lock_path(copied).write_text(owner)
    now = lock.time.time()
    for silent, expected in (
        (0.0, ("running", "")),
        (50.0, ("running", "")),
        (300.0, ("running", SILENT)),
        (3500.0, ("running", SILENT)),
        (3700.0, ("interrupted", STOPPED)),
    ):
        monkeypatch.setattr(lock.time, "time", lambda ago=silent: now + ago)
        assert states(copied.parent)["far"] == expected
        assert read_run(copied).status == expected[0]


def test_where_a_file_system_keeps_no_locks_a_free_one_says_nothing(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_path(copied).write_text(f"process {os.getpid()} on {lock.platform.node()}")
    assert read_run(copied).status == "interrupted"

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    assert read_run(copied).status == "running"


@pytest.mark.parametrize("status", ["complete", "interrupted", "failed"])
def test_runs_that_ended_keep_what_they_say(status: str, make_run: RunMaker, tmp_path: Path, monkeypatch) -> None:
    path = make_run("run", status=status)
    later = lock.time.time() + 1e6
    monkeypatch.setattr(lock.time, "time", lambda: later)
    assert read_run(path).status == status
    assert states(tmp_path / "runs") == {"run": (status, "")}
